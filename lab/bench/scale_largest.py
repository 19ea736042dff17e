"""What the largest clusters cost: 256 simulated nodes, full meshes of 32 and 64 in netns (see `lab.bench.scale`).

The simulated one has 32,640 pairs of partners: some minutes of one core, and 5 GiB. Each bound is that of `scale`, held
against a small cluster in the same run.
"""

from __future__ import annotations

from lab.bench import Row
from lab.bench.scale import in_namespaces, simulated

NAME = "scale-largest"
HELP = "the same for 256 nodes in the simulator and 64 in netns (minutes, 5 GiB)"
REPETITIONS = 1
COMPILED = True
SIZES = (32, 256)
NETNS_SIZES = (16, 32, 64)


def run(repetitions: int) -> list[Row]:
    """Rows for the simulator, and for netns where the machine lets us."""
    rows: list[Row] = []
    for _ in range(repetitions):
        rows = simulated(SIZES)
    return rows + in_namespaces(NETNS_SIZES)
