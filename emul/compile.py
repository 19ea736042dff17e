"""Compiles the hot modules with mypyc: `python -m emul.compile` (see `emul.compiled`).

Needs a C compiler, Python's headers and mypy. The same sources, the same tests; nothing is changed when it fails.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from emul.compiled import BUILT, MANIFEST, MODULES, PACKAGE, fingerprints

_LAST_WORDS = 2000
"""Characters of the compiler's complaint that are passed on."""


def build() -> None:
    """Compiles into BUILT. Raises RuntimeError with the compiler's last words."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        shutil.copytree(PACKAGE, root / "emul", ignore=shutil.ignore_patterns("_compiled", "__pycache__"))
        made_from = fingerprints()
        command = [sys.executable, "-m", "mypyc", *(f"emul/{name}.py" for name in MODULES)]
        done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout)[-_LAST_WORDS:].strip())
        shutil.rmtree(BUILT, ignore_errors=True)
        for library in root.rglob("*.so"):
            place = library.relative_to(root)
            if place.parts[0] != "build":
                (BUILT / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(library, BUILT / place)
        MANIFEST.write_text(json.dumps(made_from))


def main() -> int:
    """0 when compiled, 3 where the machine lacks what it takes."""
    try:
        build()
    except (RuntimeError, OSError) as error:
        sys.stderr.write(f"not compiled, plain Python goes on: {error}\n")
        return 3
    sys.stderr.write(f"{len(MODULES)} modules compiled into {BUILT}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
