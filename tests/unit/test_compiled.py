"""Compiled modules stand in for their sources only while they are made from them."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emul import compiled


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place as `python -m emul.compile` leaves it, with nothing in it but the manifest."""
    monkeypatch.delenv(compiled.PLAIN_VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "BUILT", tmp_path)
    monkeypatch.setattr(compiled, "MANIFEST", tmp_path / "made-from.json")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "made-from.json").write_text(json.dumps(compiled.fingerprints(compiled.MODULES)))
    compiled.is_current.cache_clear()
    yield tmp_path
    compiled.is_current.cache_clear()


def test_modules_made_from_the_sources_come_first(built: Path) -> None:
    (built / "emul" / "wire").mkdir(parents=True)
    path = ["/sources/emul/wire"]
    assert compiled.use("emul.wire", path)
    assert path == [str(built / "emul" / "wire"), "/sources/emul/wire"]
    assert str(built) in sys.path


MANIFESTS = ("", "[]", "{}", "not JSON", '{"emul/adapter": "of another source"}', '{"emul/gone": ""}')


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_after_an_edit_plain_python_runs(built: Path, manifest: str) -> None:
    (built / "made-from.json").write_text(manifest)
    path = ["/sources/emul"]
    assert not compiled.use("emul", path)
    assert path == ["/sources/emul"]


def test_without_compiled_modules_plain_python_runs(built: Path) -> None:
    (built / "made-from.json").unlink()
    assert not compiled.is_current()


def test_plain_python_can_be_asked_for(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.PLAIN_VARIABLE, "1")
    assert not compiled.is_current()


def test_a_package_that_was_not_compiled_with_the_others_stays_plain(built: Path) -> None:
    path = ["/sources/ccm"]
    assert not compiled.use("ccm", path)
    assert path == ["/sources/ccm"]


def test_every_hot_module_exists() -> None:
    from ccm.compile import MODULES
    from lab.compile import MODULES as SIMULATOR_MODULES

    for name in (*compiled.MODULES, *MODULES, *SIMULATOR_MODULES):
        assert (compiled.ROOT / f"{name}.py").is_file(), name


def test_every_package_with_hot_modules_looks_for_the_compiled_ones() -> None:
    """Otherwise plain code imports the source, while compiled code takes its classes for compiled ones, and crashes."""
    from ccm.compile import MODULES
    from lab.compile import MODULES as SIMULATOR_MODULES

    packages = {name.rpartition("/")[0] for name in (*compiled.MODULES, *MODULES, *SIMULATOR_MODULES)}
    inits = {package: (compiled.ROOT / package / "__init__.py").read_text(encoding="utf-8") for package in packages}
    assert [package for package, text in inits.items() if "use(__name__, __path__)" not in text] == []


def test_no_plain_class_inherits_from_a_compiled_one() -> None:
    """Such a class could not even be made where the compiled modules are in use."""
    from ccm.compile import MODULES as MANAGER_MODULES
    from lab.compile import MODULES as SIMULATOR_MODULES

    hot = {f"{name}.py" for name in (*compiled.MODULES, *MANAGER_MODULES, *SIMULATOR_MODULES)}
    classes = {name for file in hot for name, _ in classes_of(compiled.ROOT / file)}
    plain = [
        file
        for package in ("emul", "ccm", "lab")
        for file in sorted((compiled.ROOT / package).rglob("*.py"))
        if str(file.relative_to(compiled.ROOT)) not in hot and "_compiled" not in file.parts
    ]
    wrong = [f"{file}: {name}" for file in plain for name, bases in classes_of(file) if bases & classes]
    assert wrong == []


def classes_of(file: Path) -> list[tuple[str, set[str]]]:
    """The classes of a module, each with the names of its bases."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [(node.name, {base.id for base in node.bases if isinstance(base, ast.Name)}) for node in found]
