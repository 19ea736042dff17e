"""What idle clusters cost as they grow, in the simulator: frames and CPU time of each node, for each partner.

All nodes are behind one switch and every node is every other's partner with one client in common, so that N nodes have
N (N - 1) / 2 pairs of partners. Linear means: the cost of one pair stays what it is, however many there are.
"""

from __future__ import annotations

import time

from emul.clock import MILLISECOND, SECOND
from lab.bench import Row, compare, limit, median
from lab.bench.sim import ready_world, star
from lab.campaign.runs import rare_collections

NAME = "scale"
HELP = "frames and CPU time of idle clusters of up to 64 nodes in the simulator (256 with --repetitions 0)"
REPETITIONS = 1

SIZES = (2, 4, 8, 16, 32, 64)
LARGEST = 256
IDLE_NS = 400 * MILLISECOND
SETTLED_AFTER_NS = 400 * MILLISECOND
"""Partners count as busy for 200 ms after their sessions were made: their probes come more often until then."""
FRAMES_OF_A_PAIR_MAX_PER_S = 250
"""Two nodes probe each other every 20 ms over one path: request and response, 200 frames a second, and room for ARP."""
GROWTH_MAX = 1.5
"""CPU time of a pair in the largest cluster, against that of the smallest."""


def run(repetitions: int) -> list[Row]:
    """One row of frames and one of CPU time for each size."""
    sizes = (*SIZES, LARGEST) if repetitions == 0 else SIZES
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    with rare_collections():
        for _ in range(max(1, repetitions)):
            for size in sizes:
                found[size].append(idle(size))
    frames = {size: median([one for one, _ in figures]) for size, figures in found.items()}
    spent = {size: median([one for _, one in figures]) for size, figures in found.items()}
    first = sizes[0]
    rows = [
        limit(f"{size} nodes: frames of a pair", frames[size], "/s", f"{first} nodes", frames[first],
              at_most=FRAMES_OF_A_PAIR_MAX_PER_S)
        for size in sizes
    ]  # fmt: skip
    return rows + [
        compare(f"{size} nodes: CPU time of a pair", spent[size], "us/s", f"{first} nodes", spent[first],
                at_most=GROWTH_MAX)
        for size in sizes
    ]  # fmt: skip


def idle(size: int) -> tuple[float, float]:
    """(frames, CPU time in us) that one pair of partners takes in a simulated second of an idle cluster."""
    topology = star(size, clients=("failover-monitor",), nvram="64KiB")
    world = ready_world(topology, 1)
    try:
        world.advance(world.now() + SETTLED_AFTER_NS)
        sent = sum(world.counters(node)["sent_pkts"] for node in topology.nodes)
        begun = time.process_time_ns()
        world.advance(world.now() + IDLE_NS)
        spent = time.process_time_ns() - begun
        sent = sum(world.counters(node)["sent_pkts"] for node in topology.nodes) - sent
    finally:
        world.stop()
    pairs = size * (size - 1) // 2
    return sent * SECOND / IDLE_NS / pairs, spent / 1000 * SECOND / IDLE_NS / pairs
