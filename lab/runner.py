"""Runs one scenario in one world, from bring-up to teardown, and gathers the evidence.

Phases: bring-up, ready, load (with the faults), quiet (all is healed and has to converge), stop, close, teardown.
Decides when things happen; how they happen is the world's business, what they mean that of lab.check.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ccm.history import Kind, read_entries
from emul.clock import MILLISECOND, SECOND
from emul.node_memory import fence_slot
from lab.check.evidence import Evidence, NodeResources, PathEnd, Session, merge
from lab.plan import Plan
from lab.scenario import Scenario
from lab.schedule import Schedule
from lab.sessions import expected_sessions, expected_streams, pairs
from lab.topology import Topology
from lab.watcher import FlowWatch, Watcher
from lab.world import HostUnreachable, World

READY_BOUND_NS = 30 * SECOND
"""Until all sessions are ready after bring-up."""
TRIGGER_BOUND_NS = 10 * SECOND
"""How long the load goes on for a trigger that has not fired."""
SETTLE_NS = 300 * MILLISECOND
"""Load goes on this long after the last fault, before the quiet phase; also how long a fault without `for` stays."""
CONVERGE_BOUND_NS = 10 * SECOND
"""The quiet phase's bound, where the scenario allows less than that."""
QUIET_NS = 200 * MILLISECOND
"""Load in the quiet phase after everything has converged."""
DRAIN_BOUND_NS = 5 * SECOND
CLOSE_BOUND_NS = 5 * SECOND
LATE_NS = 250 * MILLISECOND
"""The runner itself came this late: the machine was overloaded, and timing is doubtful."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Something to tell a person who watches. `at_ns` counts from the start of the load (negative before)."""

    phase: str
    at_ns: int
    text: str


@dataclass(slots=True)
class Timings:
    """Wall-clock or virtual durations of the phases in ns."""

    bring_up: int = 0
    ready: int = 0
    run: int = 0
    teardown: int = 0


@dataclass(slots=True)
class Outcome:
    """All that a run gave, before anybody judges it."""

    evidence: Evidence
    timings: Timings
    troubles: list[str]
    """What went wrong with the run itself: a phase that did not end within its bound."""
    wire: str
    trace_hash: str
    details: Mapping[str, object]


@dataclass(slots=True)
class Runner:
    """One run. Call `run` once."""

    scenario: Scenario
    topology: Topology
    plan: Plan
    world: World
    tell: Callable[[Progress], None] = lambda progress: None
    keep: bool = False
    before_stop: Callable[[], None] = lambda: None
    """Called before the world is taken down, in every way of ending: takes what would be gone with it."""
    _watcher: Watcher = field(init=False)
    _schedule: Schedule = field(init=False)
    _troubles: list[str] = field(default_factory=list)
    _suspensions: list[str] = field(default_factory=list)
    _loaded: dict[int, int] | None = None
    """Node id to the incarnation of its host that was told last to start its workload; None: there is to be none."""
    _load_at: int = 0
    _resources: dict[int, dict[str, dict[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._watcher = Watcher(self.plan.node_ids, expected_sessions(self.plan))
        self._schedule = Schedule(self.plan, self.world, self.scenario.steps, self._say)

    def run(self) -> Outcome:
        """Runs the scenario. Takes the world down in every way of ending; exceptions go on to the caller after that."""
        timings = Timings()
        begun = time.monotonic_ns()
        collected = None
        try:
            self.world.start()
            timings.bring_up = time.monotonic_ns() - begun
            nodes, cables = len(self.topology.nodes), len(self.topology.cables)
            self._say("up", f"{nodes} nodes, {cables} cables, wire {self.world.wire}")
            collected = self._phases(timings)
        finally:
            stopping = time.monotonic_ns()
            details, wire = (self.world.details(), self.world.wire) if collected else ({}, "")
            try:
                self.before_stop()
            finally:
                if not (self.keep and collected):
                    self.world.stop()
            timings.teardown = time.monotonic_ns() - stopping
        assert collected is not None
        collected.leftovers = [] if self.keep else self.world.leftovers()
        return Outcome(collected, timings, self._troubles, wire, self.world.trace_hash(), details)

    def _phases(self, timings: Timings) -> Evidence:
        """Everything between bring-up and teardown."""
        world, begun = self.world, self.world.now()
        ready = self._wait(self._watcher.all_ready, READY_BOUND_NS)
        timings.ready = world.now() - begun
        if not ready:
            missing = ", ".join(self._session_name(session) for session in self._watcher.missing()[:4])
            self._troubles.append(f"not ready within {READY_BOUND_NS // SECOND} s: {missing}")
            return self._collect(None, None, None)
        self._say("ready", f"{len(self._watcher.sessions)} sessions ready after {timings.ready / 1e6:.1f} ms")
        self._note_resources("ready")
        self._start_load()
        self._fault_phase()
        quiet_at = self._quiet_phase()
        stopped_at = self._stop_load()
        self._note_resources("loaded")
        nvram = {number: world.nvram(node) for node, number in self.plan.node_ids.items()}
        close_at = self._close()
        timings.run = world.now() - self._load_at
        self._note_resources("closed")
        evidence = self._collect(quiet_at, stopped_at, close_at, nvram=nvram)
        if self.keep:  # whoever looks at the lab afterwards wants to see it at work
            for node in self.topology.nodes:
                self._ask(node, {"op": "open"})
        return evidence

    # -- time ---------------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        """One look around: lets a little time pass, reads news, retries what hosts could not take yet."""
        due = self.world.now() + self.world.poll_ns
        self.world.advance(due)
        late = self.world.now() - due
        if late > LATE_NS:
            self._suspensions.append(f"the lab itself was not run for {late / MILLISECOND:.0f} ms")
        news = self._watcher.poll(self._histories())
        for entry in news:
            name, session = self._node_name(entry.node), Session(entry.node, entry.partner, entry.client)
            if entry.kind == Kind.SUSPENDED and not self._schedule.paused(name, entry.at - entry.extra, entry.at):
                self._suspensions.append(f"host {name} was not run for {entry.extra / MILLISECOND:.0f} ms")
            self._schedule.on_alert(entry.kind, session, name)
            self._tell_entry(entry.kind, entry.at, session, entry.extra)
        self._load_restarted_hosts()

    def _wait(self, condition: Callable[[], bool], bound_ns: int) -> bool:
        """Polls until the condition holds; False when the bound passes first."""
        until = self.world.now() + bound_ns
        while not condition():
            if self.world.now() >= until:
                return False
            self._poll()
        return True

    def _linger(self, duration_ns: int) -> None:
        until = self.world.now() + duration_ns
        while self.world.now() < until:
            self._poll()

    # -- load ---------------------------------------------------------------------------------------------------------

    def _start_load(self) -> None:
        self._load_at = self.world.now()
        self._schedule.begin(self._load_at)
        self._loaded = {}
        self._load_restarted_hosts()
        clients = ", ".join(
            f"{client} {load.record_bytes} B x {load.depth}" for client, load in self.scenario.workload.items()
        )
        self._say("load", clients or "none")
        for session in list(self._watcher.ready):
            # It was told before the load was there to see it.
            self._schedule.on_alert(Kind.READY_ALERT, session, self._node_name(session.node))

    def _load_restarted_hosts(self) -> None:
        """Each incarnation of a host is told once to start its workload; one that doesn't answer yet is told later."""
        told, there = self._loaded, self._watcher.incarnation
        if told is None or told == there:
            return
        for node, number in self.plan.node_ids.items():
            incarnation = there.get(number, 0)
            if told.get(number) != incarnation and self._start_workload(node):
                told[number] = incarnation

    def _start_workload(self, node: str) -> bool:
        for client, load in self.scenario.workload.items():
            if client not in self.topology.nodes[node].clients:
                continue
            request = {
                "op": "workload.start", "client": client, "record": load.record_bytes, "depth": load.depth,
                "rate": min((r for r in (load.rate_per_s, self.world.rate_max_per_s) if r is not None), default=None),
            }  # fmt: skip
            if self._ask(node, request) is None:
                return False
        return True

    def _stop_load(self) -> int:
        """Tells all hosts to stop submitting and waits until nothing is outstanding."""
        stopped_at = self.world.now()
        self._loaded = None
        for node in self.topology.nodes:
            self._ask(node, {"op": "workload.stop"})
        if not self._wait(lambda: self._outstanding() == 0, DRAIN_BOUND_NS):
            self._troubles.append(
                f"{self._outstanding()} requests still outstanding {DRAIN_BOUND_NS // SECOND} s after the stop"
            )
        self._say("stop", "workload drained")
        return stopped_at

    def _outstanding(self) -> int:
        total = 0
        for node in self.topology.nodes:
            state = self._ask(node, {"op": "workload.state"}) or {}
            total += sum_outstanding(state)
        return total

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault_phase(self) -> None:
        """Until each fault has happened and was undone, or its trigger did not fire in time; then a little longer."""
        until = self._load_at + self._schedule.last_moment_ns + TRIGGER_BOUND_NS
        while self._schedule.goes_on and self.world.now() < until:
            self._advance_to_next_fault()
            self._schedule.poll()
        self._linger(SETTLE_NS)
        self._schedule.poll()

    def _advance_to_next_fault(self) -> None:
        """Polls, but no further than the next moment of the schedule, so that a fault comes when it should."""
        now, soon = self.world.now(), self._schedule.next_moment()
        if soon is None or soon >= now + self.world.poll_ns:
            self._poll()
        elif soon > now:
            self.world.advance(soon)

    # -- quiet phase and end ------------------------------------------------------------------------------------------

    def _quiet_phase(self) -> int:
        """Everything heals; then all sessions have to be ready and each stream has to commit new work."""
        self._schedule.undo_all()
        quiet_at = self.world.now()
        flow = FlowWatch(expected_streams(self.plan, self.scenario), quiet_at)
        flow.begin(self._histories())

        def converged() -> bool:
            return flow.poll(self._histories()) and self._watcher.all_ready()

        bound = max([CONVERGE_BOUND_NS, *(_within(parameters) for parameters in self.scenario.expect.values())])
        if self._wait(converged, bound):
            took = (self.world.now() - quiet_at) / MILLISECOND
            self._say("quiet", f"all sessions ready and working {took:.1f} ms after the last heal")
        else:
            missing = ", ".join(self._session_name(session) for session in self._watcher.missing()[:4])
            self._troubles.append(
                f"not converged within {bound / SECOND:.0f} s of the last heal; not ready: {missing or 'none'}"
            )
        self._linger(QUIET_NS)
        return quiet_at

    def _close(self) -> int:
        """Orderly close of all sessions, on all nodes."""
        close_at = self.world.now()
        for node in self.topology.nodes:
            self._ask(node, {"op": "close"})
        if self._wait(lambda: not self._watcher.ready, CLOSE_BOUND_NS):
            self._say("close", "all sessions closed")
        else:
            left = ", ".join(self._session_name(session) for session in list(self._watcher.ready)[:4])
            self._troubles.append(f"not closed within {CLOSE_BOUND_NS // SECOND} s: {left}")
        self._linger(2 * self.world.poll_ns)
        return close_at

    # -- evidence -----------------------------------------------------------------------------------------------------

    def _collect(
        self,
        quiet_at: int | None,
        stopped_at: int | None,
        close_at: int | None,
        nvram: Mapping[int, bytes | memoryview] | None = None,
    ) -> Evidence:
        world, ids, now = self.world, self.plan.node_ids, self.world.now()
        return Evidence(
            nodes={number: name for name, number in ids.items()},
            clients=dict(enumerate(self.topology.client_names, start=1)),
            sessions=self._watcher.sessions,
            streams=expected_streams(self.plan, self.scenario),
            entries=merge([list(read_entries(world.history(node))) for node in ids]),
            faults=self._schedule.records(),
            nvram=nvram if nvram is not None else {ids[node]: world.nvram(node) for node in ids},
            fences=self._fences(),
            counters={ids[node]: world.counters(node) for node in ids},
            resources={number: NodeResources(**moments) for number, moments in sorted(self._resources.items())},
            load_at=self._load_at or now,
            quiet_at=quiet_at or now,
            stopped_at=stopped_at or now,
            close_at=close_at,
            suspensions=tuple(self._suspensions),
        )

    def _fences(self) -> dict[PathEnd, int]:
        """What stands in each node's memory for the paths that lead to it."""
        standing = {}
        for node, other in pairs(self.plan):
            number, partner = self.plan.node_ids[node], self.plan.node_ids[other]
            for path in self.plan.paths(node, other):
                epoch = self.world.fence_epoch(other, fence_slot(number, path.index))
                standing[PathEnd(number, partner, path.index)] = epoch
        return standing

    def _note_resources(self, moment: str) -> None:
        for node, number in self.plan.node_ids.items():
            reply = self._ask(node, {"op": "resources"})
            if reply is not None:
                self._resources.setdefault(number, {})[moment] = flat_counts(reply)

    # -- small things -------------------------------------------------------------------------------------------------

    def _ask(self, node: str, request: Mapping[str, object]) -> dict[str, object] | None:
        """None where the host is not there, or refused."""
        try:
            reply = self.world.host(node, request)
        except HostUnreachable:
            return None
        return None if "error" in reply else reply

    def _histories(self) -> dict[str, memoryview]:
        return {node: self.world.history(node) for node in self.topology.nodes}

    def _node_name(self, number: int) -> str:
        return next((name for name, known in self.plan.node_ids.items() if known == number), str(number))

    def _session_name(self, session: Session) -> str:
        names = self.topology.client_names
        client = names[session.client - 1] if 0 < session.client <= len(names) else str(session.client)
        return f"{client} {self._node_name(session.node)}->{self._node_name(session.partner)}"

    def _say(self, phase: str, text: str, at: int | None = None) -> None:
        moment = self.world.now() if at is None else at
        self.tell(Progress(phase, moment - self._load_at if self._load_at else 0, text))

    def _tell_entry(self, kind: Kind, at: int, session: Session, extra: int) -> None:
        """Tells of alerts and path changes while the load runs."""
        if not self._load_at or kind not in _TOLD or (kind == Kind.SESSION_CLOSED and self._loaded is None):
            return  # at the end all sessions are closed, which nobody wants to read one by one
        way = f"{self._node_name(session.node)}->{self._node_name(session.partner)}"
        if kind in (Kind.PATH_DOWN, Kind.PATH_UP):
            self._say("path", f"{way} path {extra} {_TOLD[kind]}", at)
        else:
            self._say("alert", f"{self._session_name(session)} {_TOLD[kind]}", at)


_TOLD = {
    Kind.PATH_DOWN: "down",
    Kind.PATH_UP: "up",
    Kind.READY_ALERT: "ready",
    Kind.ERROR_ALERT: "broken",
    Kind.SESSION_CLOSED: "closed",
}
"""What is told while the load runs, and the word for it."""


def _within(parameters: Mapping[str, object]) -> int:
    value = parameters.get("within_ns", 0)
    return value if isinstance(value, int) else 0


def sum_outstanding(state: object) -> int:
    """All figures called "outstanding" in a host's answer, wherever they stand."""
    if not isinstance(state, Mapping):
        return 0
    total = 0
    for key, value in state.items():
        if key == "outstanding" and isinstance(value, int):
            total += value
        else:
            total += sum_outstanding(value)
    return total


def flat_counts(reply: Mapping[str, object], prefix: str = "") -> dict[str, int]:
    """The whole numbers of an answer by name; those of nested objects are summed under their own name."""
    counts: dict[str, int] = {}
    for key, value in reply.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            counts[key] = counts.get(key, 0) + value
        elif isinstance(value, Mapping):
            for name, amount in flat_counts(value).items():
                counts[name] = counts.get(name, 0) + amount
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Mapping):
                    for name, amount in flat_counts(item).items():
                        counts[name] = counts.get(name, 0) + amount
    return counts
