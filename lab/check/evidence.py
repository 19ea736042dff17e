"""What checks look at, and what they say.

`Evidence` is all that outsiders saw of a run: the histories of the nodes in one order, the schedule with the moments at
which each fault took effect, the NVRAM of both sides as it stood at the end, counters, resources. It knows nothing of
sessions, ledgers or paths as the manager keeps them: a checker that shares the manager's books shares its mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ccm.history import Entry, Kind
from lab.wire.analyzer import Report

NANOSECONDS_PER_MILLISECOND = 1_000_000
BUSY_TURN_NS = 100 * NANOSECONDS_PER_MILLISECOND


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found. `ok` is None where there was nothing to look at ("not exercised")."""

    name: str
    ok: bool | None
    exercised: int
    """How many things were looked at."""
    detail: str


class Session(NamedTuple):
    """A client's conversation with the same client on a partner, seen from `node`; node and client ids."""

    node: int
    partner: int
    client: int


class PathEnd(NamedTuple):
    """One path to a partner, seen from `node`."""

    node: int
    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One fault of the schedule and what became of it. Times in ns on the scale of the history."""

    id: int
    kind: str
    target: str
    at: int | None
    """When it took effect; None when its trigger never fired."""
    cleared: int | None
    """When it was undone; None for a fault that has no duration (a dropped frame)."""
    fired: int = 0
    paths: frozenset[PathEnd] = frozenset()
    """Path ends that it touches; empty for faults of a whole node."""
    nodes: frozenset[int] = frozenset()
    """Nodes whose host or power it touches."""
    counts_frames: bool = False
    """Whether `fired` counts frames that met the fault (True) or the fault itself."""


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What a host held at three moments, as it reported: verbs resources, descriptors, threads. Empty: not asked."""

    ready: Mapping[str, int] = field(default_factory=dict)
    loaded: Mapping[str, int] = field(default_factory=dict)
    closed: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Evidence:
    """Everything that the checks of one run may look at."""

    nodes: Mapping[int, str]
    clients: Mapping[int, str]
    sessions: Sequence[Session]
    """Every session that has to be there."""
    streams: Sequence[Session]
    """Those whose `node` submits work in this run."""
    entries: Sequence[Entry]
    """The histories of all nodes, in the order of time."""
    faults: Sequence[FaultRecord] = ()
    nvram: Mapping[int, bytes | memoryview] = field(default_factory=dict)
    """Node id to its NVRAM card's contents after the work was stopped: first half its own log, second half a mirror."""
    counters: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Node id to the sums of its adapters' counters."""
    fences: Mapping[PathEnd, int] = field(default_factory=dict)
    """By the path end that is fenced: the fence epoch that stands in the partner's memory at the end."""
    resources: Mapping[int, NodeResources] = field(default_factory=dict)
    leftovers: Sequence[str] = ()
    """What was still there after the teardown."""
    load_at: int = 0
    """When the workload was started."""
    quiet_at: int = 0
    """When the last fault was undone and the quiet phase began."""
    stopped_at: int = 0
    """When the workload was told to stop."""
    close_at: int | None = None
    """When the hosts were told to close their sessions; None if the run never came to it."""
    wire: Mapping[str, Report | None] = field(default_factory=dict)
    """By cable that was captured, what the analyzer found in it; None where the lab itself forged frames on it."""
    suspensions: Sequence[str] = ()
    """Signs that the machine was overloaded."""
    _by_node: dict[tuple[int, int], list[tuple[int, Entry]]] = field(default_factory=dict)
    _by_session: dict[tuple[int, int, int, int], list[tuple[int, Entry]]] = field(default_factory=dict)
    _of_one_kind: dict[tuple[Session, Kind], list[Entry]] = field(default_factory=dict)
    """What `of_session` gave: the checks ask for the same ones again and again."""
    _submitted: dict[Session, dict[tuple[int, int], Entry]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for position, entry in enumerate(self.entries):
            placed = (position, entry)
            self._by_node.setdefault((entry.node, entry.kind), []).append(placed)
            self._by_session.setdefault((entry.node, entry.partner, entry.client, entry.kind), []).append(placed)

    def of(self, node: int, *kinds: Kind) -> list[Entry]:
        """The entries of `node` of these kinds, in the order in which they were written."""
        return _in_order([self._by_node.get((node, kind), []) for kind in kinds])

    def of_session(self, session: Session, *kinds: Kind) -> list[Entry]:
        """The entries of one session of these kinds, in the order in which they were written (not to be changed)."""
        if len(kinds) == 1:
            known = self._of_one_kind.get((session, kinds[0]))
            if known is None:
                known = _in_order([self._by_session.get((*session, kinds[0]), [])])
                self._of_one_kind[session, kinds[0]] = known
            return known
        return _in_order([self._by_session.get((*session, kind), []) for kind in kinds])

    def submitted(self, session: Session) -> Mapping[tuple[int, int], Entry]:
        """What a session's client submitted, by incarnation and sequence."""
        known = self._submitted.get(session)
        if known is None:
            known = {(entry.incarnation, entry.sequence): entry for entry in self.of_session(session, Kind.SUBMITTED)}
            self._submitted[session] = known
        return known

    def alerts(self, session: Session) -> list[Entry]:
        """What the client was told, with the starts of its host in between, in the order in which it happened."""
        kinds = (Kind.READY_ALERT, Kind.ERROR_ALERT, Kind.SESSION_CLOSED)
        told = [self._by_session.get((*session, kind), []) for kind in kinds]
        return _in_order([self._by_node.get((session.node, Kind.HOST_STARTED), []), *told])

    @property
    def stamp_slack_ns(self) -> int:
        """How much too early an entry may be stamped: a host stamps with the beginning of its turn, and a busy machine
        may take the processor away in its midst.
        """
        return BUSY_TURN_NS if self.suspensions else 0

    def session_name(self, session: Session) -> str:
        """For messages: "nvram-mirror a->b"."""
        client = self.clients.get(session.client, f"client {session.client}")
        return f"{client} {self.node_name(session.node)}->{self.node_name(session.partner)}"

    def node_name(self, node: int) -> str:
        """For messages."""
        return self.nodes.get(node, f"node {node}")

    def ms(self, at: int) -> str:
        """For messages: a moment in ms since the load began."""
        return f"{(at - self.load_at) / NANOSECONDS_PER_MILLISECOND:.3f} ms"


def merge(histories: Iterable[Sequence[Entry]]) -> list[Entry]:
    """All histories as one, by time. A node's entries stay in the order in which it wrote them, also where a stamp is a
    little older than the one before it: what was written first happened first.
    """
    placed: list[tuple[int, Entry]] = []
    for history in histories:
        latest = 0
        for entry in history:
            latest = max(latest, entry.at)
            placed.append((latest, entry))
    placed.sort(key=lambda one: one[0])
    return [entry for _, entry in placed]


def _in_order(lists: Sequence[list[tuple[int, Entry]]]) -> list[Entry]:
    if len(lists) == 1:
        return [entry for _, entry in lists[0]]
    return [entry for _, entry in sorted((placed for part in lists for placed in part), key=lambda placed: placed[0])]


class Findings:
    """Collects what a check finds wrong, and turns it into a result. Keeps the first few problems, counts the rest."""

    SHOWN_MAX = 5

    def __init__(self, name: str) -> None:
        self.name = name
        self.exercised = 0
        self.problems = 0
        self._shown: list[str] = []

    def looked(self, count: int = 1) -> None:
        """Counts things looked at."""
        self.exercised += count

    def problem(self, text: str) -> None:
        """Something that must not be."""
        self.problems += 1
        if len(self._shown) < self.SHOWN_MAX:
            self._shown.append(text)

    def result(self, good: str, nothing: str = "not exercised") -> CheckResult:
        """`good` is the detail when all is well, `nothing` when there was nothing to look at."""
        if self.problems:
            more = f" (and {self.problems - len(self._shown)} more)" if self.problems > len(self._shown) else ""
            return CheckResult(self.name, False, self.exercised, "; ".join(self._shown) + more)
        if self.exercised == 0:
            return CheckResult(self.name, None, 0, nothing)
        return CheckResult(self.name, True, self.exercised, good)
