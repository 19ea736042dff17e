"""Lets the step-wise checks look at a simulated run: hands them the histories as they grow, and what outsiders see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccm.history import Kind, entry_at, is_whole
from emul.clock import MILLISECOND
from emul.node_memory import fence_slot
from lab.check.evidence import CheckResult, PathEnd
from lab.check.holdings import LEFT_BOUND_NS, HoldingChecks
from lab.check.steps import StepChecks
from lab.plan import Plan
from lab.sessions import expected_sessions
from lab.sim.probe import Probe
from lab.sim.scheduler import Priority
from lab.world import PlannedFault, touched

if TYPE_CHECKING:
    from lab.sim.world import SimWorld

LOOK_NS = 50 * MILLISECOND
"""How often bounds in time are looked at."""
VERSIONS = ("operator.version_skew", "adapter.firmware_old")
"""Faults after which partners refuse each other for their versions."""
MUTING = ("cable.cut", "cable.cut_one_end", "cable.blackhole", "cable.blackhole_one_way")
"""Faults that keep a cable from carrying both ways."""
STIRRING = frozenset(
    {Kind.ERROR_ALERT, Kind.SESSION_CLOSED, Kind.PATH_DOWN, Kind.PATH_FENCED, Kind.ROUTED, Kind.VIS_FAILED}
)
"""After these a host gives things back: its adapters are looked at."""
STIRRED_NS = 2 * LEFT_BOUND_NS
"""For how long."""


class SimWatch:
    """`Facts` of a simulated world, and the checks that use them."""

    def __init__(self, world: SimWorld, plan: Plan, *, busy: bool) -> None:
        self._world = world
        self._nodes = {number: world.nodes[name] for name, number in plan.node_ids.items()}
        names = {number: name for name, number in plan.node_ids.items()}
        self._plan = plan
        self._seen = dict.fromkeys(self._nodes, 0)
        self._on: dict[int, tuple[set[PathEnd], set[int], bool, int]] = {}
        """Faults that are on, by number: path ends and nodes touched, whether they mute, since when."""
        self._path_at: dict[PathEnd, int] = {}
        self._node_at: dict[int, int] = {}
        self._awake: dict[int, tuple[object, int]] = {}
        self.checks = StepChecks(names, expected_sessions(plan), self, busy=busy)
        self._calm_at = 0
        """When the last fault that is not on any more took effect or ended."""
        self._stirred_until: dict[int, int] = {}
        self._skewing: set[int] = set()
        """Faults of VERSIONS, by number."""
        self._probe = Probe(plan, self._nodes, awake_since=self.awake_since, calm_since=self.calm_since, now=world.now)
        self.holdings = HoldingChecks(names, self._probe, settings=plan.topology.settings)
        self._held_kinds = self.holdings.kinds()
        for number, node in self._nodes.items():
            node.after_turn = lambda number=number: self._after_turn(number)
        world.scheduler.after(LOOK_NS, Priority.HOST, self._look)

    # -- what happens -------------------------------------------------------------------------------------------------

    def on_fault(self, fault: PlannedFault, now: int) -> None:
        """It takes effect, or waits for its frame from now on."""
        reached = touched(self._plan, fault)
        self._note_hang(fault, None)
        if fault.kind in VERSIONS:
            self._skewing.add(fault.id)
        self._on[fault.id] = (reached.paths, reached.nodes, fault.kind in MUTING, now)
        self._mark(reached.paths, reached.nodes, now)

    def on_clear(self, fault: PlannedFault, now: int) -> None:
        """It is over."""
        self._note_hang(fault, now + LEFT_BOUND_NS)
        known = self._on.pop(fault.id, None)
        if known is not None:
            self._mark(known[0], known[1], now)

    def on_passing(self, fault: PlannedFault, now: int) -> None:
        """A fault without duration has happened."""
        self.on_fault(fault, now)
        self.on_clear(fault, now)

    def on_stranger(self) -> None:
        """A stranger's frame is on its way."""
        self._probe.note_stranger()

    def _note_hang(self, fault: PlannedFault, until: int | None) -> None:
        if fault.kind == "operator.wrong_key":
            self._probe.note_keys()
        if fault.kind == "adapter.hang" and fault.step.target is not None:
            node, _, adapter = fault.step.target.partition(".")
            self._probe.on_hang(self._plan.node_ids[node], adapter, until=until)

    def _mark(self, paths: set[PathEnd], nodes: set[int], now: int) -> None:
        self._calm_at = now
        self._path_at.update(dict.fromkeys(paths, now))
        self._node_at.update(dict.fromkeys(nodes, now))

    def _after_turn(self, number: int) -> None:
        """The host of a node has run: what it wrote is looked at."""
        node, seen = self._nodes[number], self._seen[number]
        buffer = node.history.buffer
        stirred = node.has_changed() or number in self._probe.young
        if stirred:
            self.holdings.on_turn(number, self._world.now())
        while is_whole(buffer, seen):
            entry = entry_at(buffer, seen)
            seen += 1
            self.checks.on_entry(entry)
            if entry.kind in self._held_kinds:
                self.holdings.on_entry(entry)
            stirred = stirred or entry.kind in STIRRING
        self._seen[number] = seen
        if stirred:
            self._stirred_until[number] = self._world.now() + STIRRED_NS

    def _look(self) -> None:
        now = self._world.now()
        for number, node in self._nodes.items():
            running = node.host if not node.paused else None
            if self._awake.get(number, (None, 0))[0] is not running:
                self._awake[number] = (running, now)
        self.checks.on_time(now)
        for number, until in list(self._stirred_until.items()):
            self.holdings.look_at_all(number, now)
            if now > until:
                del self._stirred_until[number]
        self.holdings.on_time(now)
        self._world.scheduler.after(LOOK_NS, Priority.HOST, self._look)

    def results(self) -> list[CheckResult]:
        """What was found, as checks of the run."""
        return [self.checks.result(), *self.holdings.results()]

    # -- Facts --------------------------------------------------------------------------------------------------------

    def card(self, node: int) -> memoryview:
        """Facts."""
        return self._nodes[node].nvram.buffer

    def standing_fence(self, end: PathEnd) -> int:
        """Facts."""
        return self._nodes[end.partner].memory.fence_epoch(fence_slot(end.node, end.path))

    def quiet_since(self, end: PathEnd) -> int | None:
        """Facts."""
        for paths, nodes, _, _ in self._on.values():
            if end in paths or end.node in nodes or end.partner in nodes:
                return None
        moments = (self._path_at.get(end, 0), self._node_at.get(end.node, 0), self._node_at.get(end.partner, 0))
        return max(moments)

    def mute_since(self, end: PathEnd) -> int | None:
        """Facts."""
        return min((at for paths, _, mute, at in self._on.values() if mute and end in paths), default=None)

    def awake_since(self, node: int) -> int | None:
        """Facts: as far as it was looked at, so rather a little too late."""
        running, since = self._awake.get(node, (None, 0))
        return since if running is not None else None

    def calm_since(self, *, but_versions: bool = False) -> int | None:
        """Since when no fault is on anywhere (but those of versions, where that is said); None: one is."""
        return None if self._on.keys() - (self._skewing if but_versions else set()) else self._calm_at
