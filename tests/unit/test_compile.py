"""`emul.compile`, and what stands in for what a machine lacks."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emul import compile as compiling
from emul import compiled

SMALL = ("emul/wire/psn",)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled modules go."""
    monkeypatch.setattr(compiling, "BUILT", tmp_path / "built")
    monkeypatch.setattr(compiling, "MANIFEST", tmp_path / "built" / "made-from.json")
    return tmp_path / "built"


@pytest.mark.skipif(
    shutil.which("cc") is None or importlib.util.find_spec("mypyc") is None, reason="no C compiler, or no mypyc"
)
def test_a_compiled_module_lies_where_it_is_looked_for_with_what_it_was_made_from(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYPYC_OPT_LEVEL", "0")
    assert compiling.main(SMALL) == 0
    assert list((place / "emul" / "wire").glob("psn.*.so"))
    assert json.loads((place / "made-from.json").read_text()) == compiled.fingerprints(SMALL)


def test_what_cannot_be_compiled_is_told_and_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.mkdir()
    (place / "kept").touch()
    assert compiling.main(("emul/no_such_module",)) == compiling.EXIT_MACHINE
    assert "not compiled, plain Python goes on" in capsys.readouterr().err
    assert [each.name for each in place.iterdir()] == ["kept"]


def test_a_machine_without_mypyc_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert compiling.main(SMALL) == compiling.EXIT_MACHINE
    assert "plain Python goes on" in capsys.readouterr().err
    assert not place.exists()


def test_without_isal_the_standard_librarys_crc_serves() -> None:
    program = "import sys; sys.modules['isal'] = None; import emul.wire.icrc as i, zlib; assert i.crc32 is zlib.crc32"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=compiled.ROOT)
