"""Compiles the simulator's hot modules with those of manager and adapter: `python -m lab.compile` (`emul.compiled`)."""

from __future__ import annotations

import sys

from ccm.compile import MODULES as MANAGER_MODULES
from emul.compile import main
from emul.compiled import MODULES as ADAPTER_MODULES

MODULES = (
    "lab/check/evidence", "lab/check/mirror", "lab/check/recovery", "lab/check/steps", "lab/sim/adapter",
    "lab/sim/cable", "lab/sim/node", "lab/sim/pace", "lab/sim/scheduler", "lab/sim/streams", "lab/sim/watch",
)  # fmt: skip
"""What runs for each event of the simulator, and for each entry of its histories."""

if __name__ == "__main__":
    # The simulator is worth nothing to a lab of real processes: without it the others are compiled all the same.
    everything = (*ADAPTER_MODULES, *MANAGER_MODULES)
    sys.exit(main((*everything, *MODULES)) and main(everything))
