"""Where compiled hot modules are, and when they may stand in for their sources.

Optional, and never in the way: `python -m emul.compile` builds extension modules from the same sources, and `use` lets
a package's modules come from there for as long as each source is byte for byte the one that was compiled. Without them,
after an edit, or with CCM_LAB_PLAIN=1, plain Python runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import MutableSequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
MODULES = (
    "adapter", "answers", "clock", "completer", "congestion", "neighbours", "node_memory", "qp", "queues", "regions",
    "requester",
    "responder", "vocabulary", "window", "wire/frame", "wire/icrc", "wire/psn",
)  # fmt: skip
"""What runs for each packet, and the values that it handles. All or none: they call each other without looking."""
BUILT = PACKAGE / "_compiled" / str(sys.implementation.cache_tag)
MANIFEST = BUILT / "made-from.json"
PLAIN_VARIABLE = "CCM_LAB_PLAIN"


def fingerprints() -> dict[str, str]:
    """Each hot module's digest as its source is now."""
    return {name: hashlib.sha256((PACKAGE / f"{name}.py").read_bytes()).hexdigest() for name in MODULES}


@functools.cache
def is_current() -> bool:
    """Whether there are extension modules made from the sources as they are (looked at once in a process)."""
    if os.environ.get(PLAIN_VARIABLE) or not MANIFEST.is_file():
        return False
    try:
        known: object = json.loads(MANIFEST.read_text())
        return known == fingerprints()
    except (OSError, ValueError):
        return False


def use(package: str, package_path: MutableSequence[str]) -> bool:
    """Lets modules of `package` come from the compiled ones, where these are current; whether they are."""
    if not is_current():
        return False
    package_path.insert(0, str(BUILT.joinpath(*package.split("."))))
    if str(BUILT) not in sys.path:
        sys.path.append(str(BUILT))  # the shared library that all of them load by name
    return True
