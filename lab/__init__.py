"""The lab: topologies, worlds, faults, checks and verdicts around the manager (`ccm`) and the hardware (`emul`).

`from lab import Topology, Scenario` loads only what is asked for, so that `lab --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.api import Lab, run
    from lab.errors import InputError, LabError, MachineError
    from lab.scenario import Scenario
    from lab.topology import Topology

__all__ = ["InputError", "Lab", "LabError", "MachineError", "Scenario", "Topology", "run"]

_HOME = {
    "InputError": "lab.errors",
    "Lab": "lab.api",
    "LabError": "lab.errors",
    "MachineError": "lab.errors",
    "Scenario": "lab.scenario",
    "Topology": "lab.topology",
    "run": "lab.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'lab' has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(_HOME[name]), name)
    return value
