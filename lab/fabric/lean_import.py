"""Imports parts of a package without all the rest that its `__init__` would bring.

`import pyroute2` loads nftables, WireGuard, DHCP, a database of network objects and more: 90 ms and 33 MB. The encoders
of rtnetlink messages alone take a third of the time and half of the memory, and each lab would pay that at its start.
For processes of ours alone: elsewhere somebody may want the whole package.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def import_with_parts_of(package: str, module: str) -> ModuleType:
    """Imports `module`, which imports submodules of `package`, and runs `package/__init__.py` only if it has to.

    The package must not have been imported before; if it was, this is an ordinary import.
    """
    if package in sys.modules:
        return importlib.import_module(module)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return importlib.import_module(module)
    stand_in = ModuleType(package)
    stand_in.__path__ = list(spec.submodule_search_locations)
    stand_in.__spec__ = spec
    sys.modules[package] = stand_in
    try:
        return importlib.import_module(module)
    except (ImportError, AttributeError):
        # A version whose parts need the whole: forget all of it, and import it as usual.
        for name in [known for known in sys.modules if known == package or known.startswith(f"{package}.")]:
            del sys.modules[name]
        return importlib.import_module(module)
