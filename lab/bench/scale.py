"""What clusters cost as they grow: bring-up, idling, and how soon a silent path is noticed; simulated and in netns.

All nodes are behind one switch and every node is every other's partner with one client in common, so that N nodes have
N (N - 1) / 2 pairs of partners. A node's probes have a budget (`ccm.budget`), so that the frames of an idle node stay
below a bound however large the cluster is; processor time may grow with the pairs and no faster. For detection each
node has two adapters behind two switches, one cable falls silent, and the slowest pair of partners that it served is
held against the formula.

Each simulated cluster has a process of its own, so that what it takes of memory is its own, too.

`lab.bench.scale_largest` does the same for the largest clusters.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ccm.budget import Rate, detection_ns
from ccm.history import Kind, new_entries
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND
from lab.bench import Row, compare, limit
from lab.bench.ready import _busy_ns, _lab
from lab.bench.sim import ready_world, star
from lab.campaign.runs import rare_collections
from lab.errors import EXIT_PASS
from lab.fabric import namespaces
from lab.scenario import At, Step
from lab.topology import Topology
from lab.world import PlannedFault

NAME = "scale"
HELP = "frames, CPU time and detection of idle clusters as they grow"
REPETITIONS = 1
COMPILED = True

SIZES = (2, 4, 8, 16, 32, 64)
NETNS_SIZES = (2, 8, 16)
DETECTION_SIZES = (2, 8, 24)
IDLE_NS = 400 * MILLISECOND
NETNS_IDLE_S = 3.0
NETNS_PATIENCE = 4
"""So many times as long as in the simulator: who was held up while it began has rarer turns for a while."""
ROUNDS = 2
"""Idling is measured when each path has had so many turns: until then the probes of the bring-up are still about."""
FRAMES_OF_A_NODE_MAX_PER_S = 2 * DEFAULTS.idle_probes_per_s * 1.1
"""A node asks as often as its budget allows and is asked as often; a tenth for address resolution."""
GROWTH_MAX = 1.5
"""Processor time for a pair in a large cluster, against that of the smallest that is measured."""
ROUND_TRIP_NS = MILLISECOND
"""Of a probe in the simulator, hosts' wake-ups included."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one cluster: bring-up for each pair (CPU us), idling for each node (frames/s) and pair (CPU us/s)."""

    bring_up_us: float
    frames: float
    idle_us: float
    bring_up_frames: float = 0.0
    """For each pair; 0: not measured, as is ..."""
    memory_bytes: float = 0.0
    """... what a pair takes in the simulator, its part of nodes and cards included."""


def run(repetitions: int) -> list[Row]:
    """Rows for the simulator, for detection, and for netns where the machine lets us."""
    rows: list[Row] = []
    for _ in range(repetitions):
        rows = simulated(SIZES)
    with rare_collections():
        rows += [detection(size) for size in DETECTION_SIZES]
    return rows + in_namespaces(NETNS_SIZES)


def simulated(sizes: tuple[int, ...]) -> list[Row]:
    """Rows for clusters of these sizes in the simulator; the smallest is the reference of the others."""
    with rare_collections():
        return _rows("sim", {size: apart(size) for size in sizes})


def in_namespaces(sizes: tuple[int, ...]) -> list[Row]:
    """The same in netns; no rows where the machine doesn't let us, a row that misses its target for what did not get
    ready.
    """
    if not namespaces.may_make_namespaces():
        return []
    measured = {size: in_netns(size) for size in sizes}
    rows = _rows("netns", {size: cost for size, cost in measured.items() if cost is not None})
    return rows + [
        limit(f"netns, {size} nodes: clusters that were NOT ready", 1, "", "clusters", 1, at_most=0)
        for size, cost in measured.items()
        if cost is None
    ]


def _rows(where: str, costs: dict[int, Cost]) -> list[Row]:
    if not costs:
        return []
    first = min(costs)
    rows = []
    for size, cost in costs.items():
        case, least, words = f"{where}, {size} nodes", costs[first], f"{first} nodes"
        rows += [
            limit(f"{case}: frames of a node", cost.frames, "/s", words, least.frames,
                  at_most=FRAMES_OF_A_NODE_MAX_PER_S),
            compare(f"{case}: idle CPU of a pair", cost.idle_us, "us/s", words, least.idle_us, at_most=GROWTH_MAX),
            compare(f"{case}: bring-up CPU of a pair", cost.bring_up_us, "us", words, least.bring_up_us,
                    at_most=GROWTH_MAX),
        ]  # fmt: skip
        if cost.memory_bytes:
            rows += [
                compare(f"{case}: bring-up frames of a pair", cost.bring_up_frames, "frames", words,
                        least.bring_up_frames, at_most=GROWTH_MAX),
                compare(f"{case}: memory of a pair", cost.memory_bytes / 1024, "KiB", words,
                        least.memory_bytes / 1024, at_most=GROWTH_MAX),
            ]  # fmt: skip
    return rows


def apart(size: int) -> Cost:
    """`in_simulator` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(in_simulator, size).result()


def _resident_bytes() -> int:
    """What this process has in memory (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled_ns(size: int) -> int:
    """How long after its sessions are ready a cluster idles as it will for ever."""
    return SECOND // 2 + ROUNDS * size * (SECOND // DEFAULTS.idle_probes_per_s)


def in_simulator(size: int) -> Cost:
    """A cluster of `size` nodes in the simulator."""
    topology = star(size, clients=("failover-monitor",), nvram="64KiB")
    pairs = size * (size - 1) // 2
    memory, begun = _resident_bytes(), time.process_time_ns()
    world = ready_world(topology, 1)
    bring_up = time.process_time_ns() - begun
    memory = _resident_bytes() - memory
    frames = sum(world.counters(node)["sent_pkts"] for node in topology.nodes)
    try:
        world.advance(world.now() + settled_ns(size))
        sent = sum(world.counters(node)["sent_pkts"] for node in topology.nodes)
        begun = time.process_time_ns()
        world.advance(world.now() + IDLE_NS)
        spent = time.process_time_ns() - begun
        sent = sum(world.counters(node)["sent_pkts"] for node in topology.nodes) - sent
    finally:
        world.stop()
    in_s = SECOND / IDLE_NS
    return Cost(
        bring_up / 1000 / pairs, sent * in_s / size, spent / 1000 * in_s / pairs, frames / pairs, memory / pairs
    )


def in_netns(size: int) -> Cost | None:
    """The same of real processes; None where they are not ready within `lab up`'s bound."""
    from lab.fabric.client import Fabric
    from lab.netns_world import NetnsWorld
    from lab.plan import Plan

    text = star_text(size, 1)
    topology, pairs, name = Topology.parse(text), size * (size - 1) // 2, f"bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "star.yaml"
        file.write_text(text, encoding="utf-8")
        done = _lab("up", str(file), "--name", name)
    fabric = Fabric.attach(name)
    try:
        if done.returncode != EXIT_PASS:
            return None
        world = NetnsWorld.over(Plan(topology), fabric)
        pids = [int(one["pid"]) for one in fabric.processes() if one["kind"] in ("host", "adapter") and one["pid"]]
        bring_up = sum(map(_busy_ns, pids))
        time.sleep(NETNS_PATIENCE * settled_ns(size) / SECOND)
        sent = -sum(world.counters(node)["sent_pkts"] for node in topology.nodes)
        spent, begun = -sum(map(_busy_ns, pids)), time.monotonic()
        time.sleep(NETNS_IDLE_S)
        spent, took = spent + sum(map(_busy_ns, pids)), time.monotonic() - begun
        sent += sum(world.counters(node)["sent_pkts"] for node in topology.nodes)
    finally:
        fabric.stop()
    return Cost(bring_up / 1000 / pairs, sent / took / size, spent / 1000 / took / pairs)


def detection(size: int) -> Row:
    """How long it takes until a cable of an idle cluster that has fallen silent is noticed in each pair that it served,
    by the quicker of the two.
    """
    world = ready_world(Topology.parse(star_text(size, 2)), 1)
    try:
        world.advance(world.now() + settled_ns(2 * size))
        starts = {node: new_entries(world.history(node), 0)[1] for node in world.nodes}
        begun = world.apply(PlannedFault(1, Step(At(0), "cable.blackhole", "n0-0", None, {})))
        world.advance(world.now() + 10 * SECOND)
        noticed: dict[frozenset[int], int] = {}
        for node, start in starts.items():
            for entry in new_entries(world.history(node), start)[0]:
                if entry.kind == Kind.PATH_DOWN:
                    pair = frozenset((entry.node, entry.partner))
                    noticed[pair] = min(noticed.get(pair, entry.at), entry.at)
        assert len(noticed) == size - 1, f"{len(noticed)} pairs lost a path, expected {size - 1}"
    finally:
        world.stop()
    bound = detection_ns(idle_paths=2 * (size - 1), rate=Rate.IDLE, round_trip_ns=ROUND_TRIP_NS)
    slowest = max(noticed.values()) - begun
    return compare(f"sim, {size} nodes, idle: a silent path is noticed", slowest / MILLISECOND, "ms",
                   "the formula", bound / MILLISECOND, at_most=1)  # fmt: skip


def star_text(nodes: int, adapters: int) -> str:
    """`nodes` nodes with so many adapters, each behind its own switch; all share the failover monitor."""
    names = [f"ic{number}" for number in range(adapters)]
    switches = [f"hub{number}" for number in range(adapters)]
    lines = [
        f"name: star-{nodes}-{adapters}",
        f"defaults: {{adapters: [{', '.join(names)}], nvram: 64KiB, clients: [failover-monitor]}}",
        "nodes:", *(f"  n{node}: {{}}" for node in range(nodes)), f"switches: [{', '.join(switches)}]", "cables:",
    ]  # fmt: skip
    cables = [
        f"  n{node}-{each}: [n{node}.ic{each}, hub{each}]" for node in range(nodes) for each in range(adapters)
    ]
    return "\n".join([*lines, *cables])
