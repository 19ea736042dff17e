"""Compiles hot modules with mypyc: `python -m emul.compile` for the adapter alone (see `emul.compiled`).

Needs a C compiler, Python's headers and mypy. The same sources, the same tests; nothing is changed when it fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from emul.compiled import BUILT, MANIFEST, MODULES, ROOT, fingerprints

_LAST_WORDS = 2000
"""Characters of the compiler's complaint that are passed on."""
_NO_DEBUGGING = {"MYPYC_DEBUG_LEVEL": "0"}
EXIT_MACHINE = 3
"""The machine lacks what it takes."""


def build(modules: tuple[str, ...] = MODULES) -> None:
    """Compiles `modules` into BUILT. Raises RuntimeError with the compiler's last words."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for package in sorted({name.split("/")[0] for name in modules}):
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("_compiled", "__pycache__"))
        made_from = fingerprints(modules, root)
        command = [sys.executable, "-m", "mypyc", *(f"{name}.py" for name in modules)]
        environment = {**_NO_DEBUGGING, **os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout)[-_LAST_WORDS:].strip())
        _replace(root, made_from)


def _replace(root: Path, made_from: dict[str, str]) -> None:
    """What was built takes the place of what there was; the manifest comes last, as nothing counts without it."""
    shutil.rmtree(BUILT, ignore_errors=True)
    for library in root.rglob("*.so"):
        place = library.relative_to(root)
        if place.parts[0] != "build":
            (BUILT / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, BUILT / place)
    MANIFEST.write_text(json.dumps(made_from))


def main(modules: tuple[str, ...] = MODULES) -> int:
    """0 when compiled, EXIT_MACHINE where the machine lacks what it takes."""
    try:
        build(modules)
    except (RuntimeError, OSError) as error:
        sys.stderr.write(f"not compiled, plain Python goes on: {error}\n")
        return EXIT_MACHINE
    sys.stderr.write(f"{len(modules)} modules compiled into {BUILT}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
