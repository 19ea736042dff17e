"""How fast the simulator is: events, simulated seconds, schedules; in CPU time, as other programs are about.

The pair sends its heartbeats every 5 ms over two paths each way (its partners have work under way) and mirrors 1,000
records of 4 KiB a second, 500 from each node. The compiled modules (`nox -s compile`) are used where they are current;
each row says whether they were. The step-wise checks are on in the schedules and off in the other rows.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass

import emul
from emul.clock import MILLISECOND, SECOND
from lab.bench import Row, at_least, median
from lab.campaign.runs import rare_collections, run_one, tasks_of
from lab.plan import Plan
from lab.sessions import expected_sessions
from lab.sim.world import SimWorld
from lab.topology import Topology
from lab.watcher import Watcher

NAME = "sim"
HELP = "simulated events, seconds and schedules in a second of CPU time"
REPETITIONS = 3

WRITES_PER_S = 1000
RECORD_BYTES, DEPTH = 4096, 8
WARM_UP_NS = 100 * MILLISECOND
PAIR_NS = 2 * SECOND
SIXTEEN_NS = SECOND // 4
READY_WITHIN_NS = 30 * SECOND
HEAP_EVENTS = 200_000
HEAP_DEPTH = 100
SCHEDULES = 4
CORES = 2
SCHEDULE_NS = 10 * SECOND


@dataclass(frozen=True, slots=True)
class Measured:
    """One stretch of simulation."""

    virtual_ns: int
    cpu_ns: int
    events: int

    @property
    def speed(self) -> float:
        """Simulated seconds in a second of CPU time."""
        return self.virtual_ns / self.cpu_ns

    @property
    def events_per_s(self) -> float:
        """Events in a second of CPU time."""
        return self.events * SECOND / self.cpu_ns


def run(repetitions: int) -> list[Row]:
    """The rows of targets.md, `sim`."""
    heap: list[float] = []
    pair: list[Measured] = []
    sixteen: list[Measured] = []
    schedules: list[float] = []
    with rare_collections():
        for repetition in range(repetitions):
            heap.append(empty_loop())
            pair.append(simulate(Topology.load("ha-pair"), repetition, PAIR_NS, WRITES_PER_S // 2))
            heap.append(empty_loop())
            sixteen.append(simulate(star(16), repetition, SIXTEEN_NS, WRITES_PER_S // 16))
            schedules.append(schedules_per_minute(repetition))
    loop, how = median(heap), "compiled" if emul.COMPILED else "plain"
    speed, wide = median([one.speed for one in pair]), median([one.speed for one in sixteen])
    return [
        at_least(f"events, pair ({how})", median([one.events_per_s for one in pair]), "/s", "empty heapq loop", loop),
        at_least(f"pair, 1,000 writes/s ({how})", speed, "s/s", "real time", 1.0, least=20),
        at_least(f"16 nodes, 1,000 writes/s ({how})", wide, "s/s", "real time", 1.0),
        at_least(f"ten-second schedules, {CORES} cores ({how})", median(schedules), "/min", "real time",
                 CORES * 60 * SECOND / SCHEDULE_NS, least=240 / (CORES * 60 * SECOND / SCHEDULE_NS)),
    ]  # fmt: skip


def empty_loop() -> float:
    """Events a second of a heap that does nothing: what a scheduler in Python can reach."""

    def nothing() -> None:
        """An event."""

    heap = [(number, 0, number, nothing) for number in range(HEAP_DEPTH)]
    begun = time.process_time_ns()
    for sequence in range(HEAP_DEPTH, HEAP_DEPTH + HEAP_EVENTS):
        at, _, _, action = heapq.heappop(heap)
        action()
        heapq.heappush(heap, (at + HEAP_DEPTH, 0, sequence, action))
    return HEAP_EVENTS * SECOND / (time.process_time_ns() - begun)


def simulate(topology: Topology, seed: int, virtual_ns: int, rate_per_s: int) -> Measured:
    """A cluster whose nodes mirror `rate_per_s` records a second each; 0: idle."""
    world = ready_world(topology, seed)
    try:
        for node in topology.nodes if rate_per_s else ():
            request = {"op": "workload.start", "client": "nvram-mirror", "record": RECORD_BYTES, "depth": DEPTH}
            reply = world.host(node, {**request, "rate": rate_per_s})
            assert reply.get("ok"), reply
        world.advance(world.now() + WARM_UP_NS)
        events, begun = world.scheduler.events, time.process_time_ns()
        world.advance(world.now() + virtual_ns)
        return Measured(virtual_ns, time.process_time_ns() - begun, world.scheduler.events - events)
    finally:
        world.stop()


def ready_world(topology: Topology, seed: int) -> SimWorld:
    """A world whose sessions are all ready."""
    plan = Plan(topology)
    world = SimWorld(plan, seed=seed, watched=False)
    world.start()
    watcher = Watcher(plan.node_ids, expected_sessions(plan))
    while not watcher.all_ready():
        assert world.now() < READY_WITHIN_NS, f"{len(watcher.missing())} sessions are not ready"
        world.advance(world.now() + 5 * MILLISECOND)
        watcher.poll({node: world.history(node) for node in topology.nodes})
    return world


def star(nodes: int, clients: tuple[str, ...] = ("nvram-mirror",), nvram: str = "1MiB") -> Topology:
    """`nodes` nodes with one adapter each behind one switch: every node is every other's partner."""
    names = [f"n{number}" for number in range(nodes)]
    lines = [f"name: star-{nodes}", f"defaults: {{adapters: [ic0], nvram: {nvram}, clients: [{', '.join(clients)}]}}"]
    lines += ["nodes:", *(f"  {name}: {{}}" for name in names), "switches: [hub]", "cables:"]
    return Topology.parse("\n".join([*lines, *(f"  {name}: [{name}.ic0, hub]" for name in names)]))


def schedules_per_minute(repetition: int) -> float:
    """Random schedules of a pair, scaled to ten simulated seconds each and to CORES cores."""
    first = repetition * SCHEDULES
    tasks = tasks_of(Topology.load("ha-pair"), None, world="sim", seed=first, runs=SCHEDULES, report=None)
    ran = [run_one(task) for task in tasks]
    virtual, spent = sum(one.virtual_ns for one in ran), sum(one.cpu_ns for one in ran)
    return CORES * 60 * SECOND / (spent * SCHEDULE_NS / virtual)
