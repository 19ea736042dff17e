"""Where compiled hot modules are, and when they may stand in for their sources.

Optional, and never in the way: `emul.compile` builds extension modules from the same sources, and `use` lets a
package's modules come from there for as long as each source is byte for byte the one that was compiled. Without them,
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
ROOT = PACKAGE.parent
"""Where the packages lie side by side."""
MODULES = tuple(
    f"emul/{name}"
    for name in (
        "adapter", "answers", "clock", "cm_connection", "cm_machine", "completer", "congestion", "diversion",
        "firmware", "flows", "hardware_faults", "host_context", "host_objects", "local", "memory", "neighbours",
        "node_memory", "port/packet", "port/xdp", "port_facts", "process", "qp", "queues", "regions", "requester",
        "responder", "sinks", "vocabulary", "window", "wire/frame", "wire/heading", "wire/headers", "wire/icrc",
        "wire/psn", "work_requests", "wqe",
    )
)  # fmt: skip
"""What runs for each packet, and the values that it handles. All or none: they call each other without looking. Not
`verbs`: programs give them plain numbers for enumerations, wrong types to be told of, and want weak references.
"""
BUILT = PACKAGE / "_compiled" / str(sys.implementation.cache_tag)
MANIFEST = BUILT / "made-from.json"
PLAIN_VARIABLE = "CCM_LAB_PLAIN"


def fingerprints(modules: tuple[str, ...], root: Path = ROOT) -> dict[str, str]:
    """Each module's digest as its source is now. Raises OSError where one is missing."""
    return {name: hashlib.sha256((root / f"{name}.py").read_bytes()).hexdigest() for name in modules}


@functools.cache
def is_current() -> bool:
    """Whether there are extension modules made from the sources as they are (looked at once in a process)."""
    if os.environ.get(PLAIN_VARIABLE) or not MANIFEST.is_file():
        return False
    try:
        known: object = json.loads(MANIFEST.read_text())
        return isinstance(known, dict) and bool(known) and known == fingerprints(tuple(known))
    except (OSError, ValueError):
        return False


def use(package: str, package_path: MutableSequence[str]) -> bool:
    """Lets modules of `package` come from the compiled ones, where these are current; whether they are."""
    place = BUILT.joinpath(*package.split("."))
    if not is_current() or not place.is_dir():
        return False
    package_path.insert(0, str(place))
    if str(BUILT) not in sys.path:
        sys.path.append(str(BUILT))  # the shared library that all of them load by name
    return True
