"""The lab from Python: `run` for a scenario with a verdict, `Lab` for a cluster to play with.

from lab import Lab, Scenario, Topology, run

result = run(Scenario.load("cable-cut"), world="sim", seed=7)
with Lab(Topology.load("ha-pair")) as lab:
lab.wait_ready()
lab.cables["ic0"].cut()
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lab.errors import InputError, LabError
from lab.plan import Plan
from lab.report.directory import copy_logs, write_lines, write_report
from lab.runner import READY_BOUND_NS, Progress, Runner
from lab.scenario import At, Scenario, Step
from lab.sessions import expected_sessions
from lab.topology import Topology
from lab.verdict import Result, judge
from lab.watcher import Watcher
from lab.world import HostUnreachable, PlannedFault, World
from lab.worlds import make_world, world_for

if TYPE_CHECKING:
    from lab.netns_world import NetnsWorld

SEED_BITS = 31


def fresh_seed() -> int:
    """A seed for a run for which none was given."""
    return random.SystemRandom().getrandbits(SEED_BITS)


def run(
    scenario: Scenario | str | Path,
    *,
    topology: Topology | None = None,
    world: str | None = None,
    wire: str = "auto",
    seed: int | None = None,
    report: Path | None = None,
    keep: bool = False,
    capture: bool = False,
    tell: Callable[[Progress], None] | None = None,
) -> Result:
    """Runs one scenario and judges it; writes its report into the directory `report` if one is given.

    `topology` replaces the scenario's own; without `world` its nodes decide (mostly netns). With `capture`, what
    crosses each cable goes into `report`/cables/*.pcapng (real worlds only). Everything is taken down in every way of
    ending, also with KeyboardInterrupt, unless `keep`. Raises InputError and MachineError before anything was started.
    """
    played = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario, topology)
    cluster = topology if topology is not None else played.load_topology()
    chosen = fresh_seed() if seed is None else seed
    plan = Plan(cluster)
    world = world or world_for(cluster)
    place = make_world(world, plan, wire=wire, seed=chosen, keep=keep)
    captured = _begin_capture(place, report) if capture else None

    def keep_logs() -> None:
        if captured is not None:
            captured.end_captures()
        if report is not None:
            with contextlib.suppress(OSError):  # a report without logs is better than a lab that isn't taken down
                copy_logs(place.logs(), report)
                write_lines(place.journals(), report)

    runner = Runner(played, cluster, plan, place, tell or (lambda progress: None), keep, keep_logs)
    outcome = runner.run()
    if captured is not None:
        outcome.evidence.wire = captured.judge_captures()
    result = judge(played, cluster.name, world, chosen, outcome)
    if report is not None:
        if captured is not None:
            captured.write_captures(report / "cables", _fault_facts(result))
        write_report(result, cluster, report)
    return result


def _begin_capture(place: World, report: Path | None) -> NetnsWorld:
    """Lets the world capture its cables from its start on. Raises InputError for one that has no real frames."""
    from lab.netns_world import NetnsWorld

    if not isinstance(place, NetnsWorld):
        raise InputError(None, None, None, f"capture: the world {place.name} has no real frames; netns and docker have")
    if report is None:
        raise InputError(None, None, None, "capture: needs the directory of a report to write to")
    place.capturing = True
    return place


def _fault_facts(result: Result) -> list[dict[str, object]]:
    """What the comments in a capture tell of the faults; those of the injector tell themselves."""
    return [
        {"target": fault.target, "text": f"fault {fault.id}: {fault.kind} {fault.target}", "at": fault.at,
         "cleared": fault.cleared}
        for fault in result.outcome.evidence.faults
        if not fault.counts_frames
    ]  # fmt: skip


class Cable:
    """A cable of a running lab. Each method gives the time in ns at which it took effect."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def cut(self, end: str | None = None) -> int:
        """Takes the carrier away, on both ends or at the node or switch `end` alone."""
        if end is None:
            return self._lab.inject("cable.cut", self.name)
        return self._lab.inject("cable.cut_one_end", self.name, end=end)

    def blackhole(self, source: str | None = None) -> int:
        """Loses all frames in silence, both ways or only those from `source`."""
        if source is None:
            return self._lab.inject("cable.blackhole", self.name)
        return self._lab.inject("cable.blackhole_one_way", self.name, **{"from": source})

    def restore(self) -> int:
        """Undoes what was done to it."""
        return self._lab.heal(self.name)


class Host:
    """The host of a node of a running lab."""

    def __init__(self, lab: Lab, node: str) -> None:
        self._lab = lab
        self.node = node

    def crash(self) -> int:
        """Kills it; `boot` starts it again."""
        return self._lab.inject("host.crash", self.node)

    def boot(self) -> int:
        """Starts it after a crash."""
        return self._lab.heal(self.node)

    def leave(self) -> int:
        """The node leaves the cluster: its partners close with it and forget it, its host shuts down."""
        return self._lab.inject("operator.remove_member", self.node)

    def join(self) -> int:
        """It is a member again: its host boots, and the others are told."""
        return self._lab.heal(self.node)

    def ask(self, request: Mapping[str, object]) -> dict[str, object]:
        """One request to its control interface, such as {"op": "status"}. Raises LabError when it doesn't answer."""
        try:
            return self._lab.world.host(self.node, request)
        except HostUnreachable as error:
            raise LabError(f"host {self.node} does not answer: {error}") from error


class Lab:
    """A cluster that runs inside a `with` block: `lab.cables["ic0"].cut()`, `lab.hosts["b"].crash()`."""

    def __init__(
        self, topology: Topology | str | Path, *, world: str = "netns", wire: str = "auto", seed: int | None = None
    ) -> None:
        self.topology = topology if isinstance(topology, Topology) else Topology.load(topology)
        self.plan = Plan(self.topology)
        self.seed = fresh_seed() if seed is None else seed
        self.world = make_world(world, self.plan, wire=wire, seed=self.seed)
        self.cables = {name: Cable(self, name) for name in self.topology.cables}
        self.hosts = {name: Host(self, name) for name in self.topology.nodes}
        self._active: list[PlannedFault] = []
        self._next_id = 1
        self._watcher = Watcher(self.plan.node_ids, expected_sessions(self.plan))

    def __enter__(self) -> Lab:
        try:
            self.world.start()
        except BaseException:
            self.world.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.world.stop()

    def inject(self, fault: str, target: str, **parameters: int | float | str) -> int:
        """Makes a fault of the catalogue happen now; gives when it took effect, in ns."""
        planned = PlannedFault(self._next_id, Step(At(0), fault, target, None, parameters))
        self._next_id += 1
        at = self.world.apply(planned)
        self._active.append(planned)
        return at

    def heal(self, target: str | None = None) -> int:
        """Undoes the faults at `target`, or all; gives when the last of them was undone (now, where there was none)."""
        at = self.world.now()
        for fault in [fault for fault in self._active if target is None or fault.step.target == target]:
            at = self.world.clear(fault)
            self._active.remove(fault)
        return at

    def wait(self, condition: Callable[[], bool], within_ns: int) -> bool:
        """Lets time pass until the condition holds; False when `within_ns` passed first."""
        until = self.world.now() + within_ns
        while not condition():
            if self.world.now() >= until:
                return False
            self.world.advance(self.world.now() + self.world.poll_ns)
        return True

    def ready(self) -> bool:
        """Whether all sessions are ready now, as their clients were told."""
        self._watcher.poll({node: self.world.history(node) for node in self.topology.nodes})
        return self._watcher.all_ready()

    def wait_ready(self, within_ns: int = READY_BOUND_NS) -> None:
        """Until all sessions are ready. Raises LabError when that takes too long."""
        if not self.wait(self.ready, within_ns):
            raise LabError(f"{len(self._watcher.missing())} sessions are not ready after {within_ns / 1e9:.0f} s")
