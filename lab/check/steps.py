"""What must hold after every step of a run, looked at while it happens (checks 5 and 9-13, 15 of the catalogue).

`StepChecks` is given each entry of the nodes' histories as it is written, in the order of time, and may look at what
outsiders can see besides: NVRAM cards, fence epochs, which faults are on. It keeps its own books of both and shares
nothing with the manager. What it finds is noted with the moment, so that a run goes on and shows what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ccm.history import Entry, Kind
from emul.node_memory import Stage
from emul.wire.icrc import crc32
from lab.check.evidence import NANOSECONDS_PER_MILLISECOND, CheckResult, PathEnd, Session

NAME = "steps.hold"
MIRROR = 1
"""The NVRAM mirror's number in the history: its records can be found on the cards."""
BROKEN_MAX = 20
"""Problems kept; more are counted."""
LOOK_BACK = 64
"""A commit makes the record that was committed so many before it be looked at once more."""
GRACE_NS = 1_000 * NANOSECONDS_PER_MILLISECOND
"""A path may go down so long after the last fault that touched it."""
SERVICE_BOUND_NS = 5_000 * NANOSECONDS_PER_MILLISECOND
"""Partners that nothing has touched for so long have their sessions."""
ONE_WAY_BOUND_NS = 2_000 * NANOSECONDS_PER_MILLISECOND
"""A path that carries nothing, or one way only, is down on both sides after this."""
UPS_MAX = 25
"""Of one path in a second: a path that flaps is held down longer and longer."""
UPS_WITHIN_NS = 1_000 * NANOSECONDS_PER_MILLISECOND


class Facts(Protocol):
    """What outsiders see besides the histories. Nodes by their ids."""

    def card(self, node: int) -> memoryview:
        """The node's NVRAM card: first half its own log, second half the mirror of another's."""

    def standing_fence(self, end: PathEnd) -> int:
        """The fence epoch for `end` that stands in its partner's memory."""

    def quiet_since(self, end: PathEnd) -> int | None:
        """Since when no fault has touched the path or either node; None: one does."""

    def mute_since(self, end: PathEnd) -> int | None:
        """Since when a fault keeps the path from carrying both ways; None: none does."""

    def awake_since(self, node: int) -> int | None:
        """Since when the node's host runs; None: it is down or stopped."""


@dataclass(slots=True)
class _Stream:
    """What a client submitted in one session, and what became of it."""

    under_way: dict[tuple[int, int], Entry] = field(default_factory=dict)
    """By incarnation and sequence, in the order of submission."""
    newest: dict[int, Entry] = field(default_factory=dict)
    """By offset: the last that was submitted there."""
    committed: list[Entry] = field(default_factory=list)
    """The last LOOK_BACK."""
    last: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _Told:
    """What one client was told of one session."""

    ready: int = 0
    highest: int = 0
    ended: int = 0


class StepChecks:
    """The checks of one run. `busy`: on a machine that is so late that paths look dead, nothing is judged by time."""

    def __init__(self, nodes: Mapping[int, str], sessions: list[Session], facts: Facts, *, busy: bool = False) -> None:
        self.looked = 0
        self.problems = 0
        self.broken: list[str] = []
        self._nodes = nodes
        self._sessions = sessions
        self._facts = facts
        self._busy = busy
        self._incarnation: dict[int, int] = {}
        self._stage: dict[int, int] = {}
        self._clients_at: dict[int, int] = {}
        """When the node's clients were opened, in boot stage KERNEL."""
        self._steps: dict[PathEnd, int] = {}
        self._read: set[tuple[int, int]] = set()
        """(node, partner) where node has read partner's status at least once."""
        self._up: dict[PathEnd, bool] = {}
        self._ups: dict[PathEnd, list[int]] = {}
        self._lost: dict[tuple[int, int], tuple[int, set[int]]] = {}
        """By node and partner: the path lost last, and those fenced since they were lost."""
        self._fenced: dict[PathEnd, int] = {}
        self._told: dict[Session, _Told] = {}
        self._streams: dict[Session, _Stream] = {}
        self._delivered: dict[tuple[Session, int], int] = {}
        self._closing = False
        self._handlers: dict[int, Callable[[Entry], None]] = {
            Kind.HOST_STARTED: self._on_started,
            Kind.STAGE: self._on_stage,
            Kind.HANDSHAKE_STEP: self._on_step,
            Kind.PATH_UP: self._on_up,
            Kind.PATH_DOWN: self._on_down,
            Kind.PATH_FENCED: self._on_fenced,
            Kind.REPLAYED: self._on_replayed,
            Kind.READY_ALERT: self._on_ready,
            Kind.ERROR_ALERT: self._on_error,
            Kind.SESSION_CLOSED: self._on_closed,
            Kind.SUBMITTED: self._on_submitted,
            Kind.COMMITTED: self._on_committed,
            Kind.DELIVERED: self._on_delivered,
        }

    def on_entry(self, entry: Entry) -> None:
        """One more entry of a history; entries of all nodes come in the order of time."""
        handler = self._handlers.get(entry.kind)
        if handler is not None:
            self.looked += 1
            handler(entry)

    def result(self) -> CheckResult:
        """What was found, as a check of the run."""
        if self.problems:
            more = f" (and {self.problems - len(self.broken)} more)" if self.problems > len(self.broken) else ""
            return CheckResult(NAME, False, self.looked, "; ".join(self.broken[:5]) + more)
        return CheckResult(NAME, True if self.looked else None, self.looked, f"{self.looked} steps looked at")

    # -- hosts, handshakes --------------------------------------------------------------------------------------------

    def _on_started(self, entry: Entry) -> None:
        node = entry.node
        self._expect(entry, entry.incarnation > self._incarnation.get(node, 0), "an incarnation that is not newer")
        self._incarnation[node] = entry.incarnation
        self._stage[node] = 0
        self._clients_at.pop(node, None)
        for end in [end for end in self._steps if end.node == node]:
            del self._steps[end]
        for end in [end for end in self._up if end.node == node]:
            del self._up[end]
        self._lost = {key: lost for key, lost in self._lost.items() if key[0] != node}
        for session, told in self._told.items():
            if session.node == node:
                told.ready = 0
                self._streams.pop(session, None)

    def _on_stage(self, entry: Entry) -> None:
        self._expect(entry, entry.extra > self._stage.get(entry.node, 0), f"boot stage {entry.extra} after a later one")
        self._stage[entry.node] = entry.extra
        if entry.extra == Stage.KERNEL:
            self._clients_at[entry.node] = entry.at

    def _on_step(self, entry: Entry) -> None:
        end, step = PathEnd(entry.node, entry.partner, entry.offset), entry.extra
        before = self._steps.get(end, 0)
        self._expect(entry, step <= before + 1, f"step {step} on path {end.path} after step {before}")
        if step == 1:
            self._read.add((entry.node, entry.partner))
        elif step == 3:
            seen = (entry.partner, entry.node) in self._read
            self._expect(entry, seen, f"step 3 on path {end.path} before the partner had read anything")
        self._steps[end] = step

    # -- paths --------------------------------------------------------------------------------------------------------

    def _on_up(self, entry: Entry) -> None:
        end = PathEnd(entry.node, entry.partner, entry.extra)
        self._expect(entry, not self._up.get(end), f"path {end.path} up twice")
        self._expect(entry, self._steps.get(end) == 4, f"path {end.path} up before its handshake was complete")
        self._up[end] = True
        lost = self._lost.get((end.node, end.partner))
        if lost is not None and lost[0] == end.path:
            del self._lost[end.node, end.partner]  # a new life of it: what the former had was fenced or given up
        ups = self._ups.setdefault(end, [])
        ups.append(entry.at)
        while ups[0] < entry.at - UPS_WITHIN_NS:
            ups.pop(0)
        self._expect(entry, len(ups) <= UPS_MAX, f"path {end.path} came up {len(ups)} times in a second")

    def _on_down(self, entry: Entry) -> None:
        end = PathEnd(entry.node, entry.partner, entry.extra)
        self._expect(entry, bool(self._up.get(end)), f"path {end.path} down that was not up")
        self._up[end] = False
        _, fenced = self._lost.get((end.node, end.partner), (0, set()))
        self._lost[end.node, end.partner] = (end.path, fenced - {end.path})
        since = self._facts.quiet_since(end)
        if since is not None and not self._busy and not self._closing:
            self._expect(
                entry, entry.at - since <= GRACE_NS,
                f"path {end.path} went down (reason {entry.length}), and nothing had touched it for"
                f" {(entry.at - since) / NANOSECONDS_PER_MILLISECOND:.0f} ms",
            )  # fmt: skip

    def _on_fenced(self, entry: Entry) -> None:
        end, epoch = PathEnd(entry.node, entry.partner, entry.extra), entry.sequence
        standing = self._facts.standing_fence(end)
        self._expect(entry, epoch > self._fenced.get(end, 0), f"path {end.path} fenced at an epoch that is not newer")
        self._expect(entry, standing >= epoch, f"path {end.path} fenced at {epoch}, and {standing} stands there")
        self._fenced[end] = epoch
        lost = self._lost.get((end.node, end.partner))
        if lost is not None:
            lost[1].add(end.path)

    def _on_replayed(self, entry: Entry) -> None:
        path, fenced = self._lost.get((entry.node, entry.partner), (None, set()))
        self._expect(entry, path is None or path in fenced, f"work posted again before path {path} was fenced")

    # -- alerts -------------------------------------------------------------------------------------------------------

    def _on_ready(self, entry: Entry) -> None:
        session, epoch = _session(entry), entry.epoch
        told = self._told.setdefault(session, _Told())
        self._expect(entry, epoch > told.highest, f"a ready alert of epoch {epoch} after one of {told.highest}")
        self._expect(entry, not told.ready, f"a ready alert while epoch {told.ready} was ready")
        proven = any(
            step == 4 for end, step in self._steps.items() if (end.node, end.partner) == (entry.node, entry.partner)
        )
        self._expect(entry, proven, "a ready alert before a handshake was complete")
        other = self._told.get(Session(session.partner, session.node, session.client))
        if other is not None and other.ready:
            self._expect(entry, other.ready == epoch, f"ready in epoch {epoch}, the partner in {other.ready}")
        told.ready = told.highest = epoch

    def _on_error(self, entry: Entry) -> None:
        told = self._told.setdefault(_session(entry), _Told())
        self._expect(entry, told.ready == entry.epoch, f"an error alert of epoch {entry.epoch}, ready is {told.ready}")
        self._end(entry, told)

    def _on_closed(self, entry: Entry) -> None:
        told = self._told.setdefault(_session(entry), _Told())
        self._expect(entry, told.ended < entry.epoch, f"epoch {entry.epoch} closed after its end")
        self._closing = True
        self._end(entry, told)

    def _end(self, entry: Entry, told: _Told) -> None:
        told.ready, told.ended = 0, max(told.ended, entry.epoch)
        stream = self._streams.get(_session(entry))
        if stream is not None:
            stream.under_way.clear()

    # -- work ---------------------------------------------------------------------------------------------------------

    # Most entries of a run are these: their words are made where something is wrong, and not before.

    def _on_submitted(self, entry: Entry) -> None:
        stream = self._stream_of(_session(entry))
        name = (entry.incarnation, entry.sequence)
        if name <= stream.last:
            self._break(entry, f"submitted {entry.sequence} after {stream.last[1]}")
        stream.last = name
        stream.under_way[name] = entry
        stream.newest[entry.offset] = entry

    def _on_committed(self, entry: Entry) -> None:
        session = _session(entry)
        stream, told = self._stream_of(session), self._told.get(session)
        name = (entry.incarnation, entry.sequence)
        ready = told.ready if told is not None else 0
        if ready != entry.epoch:
            self._break(entry, f"{entry.sequence} committed in epoch {entry.epoch}, ready is {ready}")
        oldest = next(iter(stream.under_way), None)
        if oldest != name:
            self._break(entry, f"{entry.sequence} committed, the oldest under way is {oldest}")
        submitted = stream.under_way.pop(name, None)
        if submitted is None:
            return
        if submitted.digest != entry.digest:
            self._break(entry, f"{entry.sequence} committed with other bytes")
        if session.client != MIRROR:
            return
        self._look_at_cards(entry, submitted, stream)
        stream.committed.append(submitted)
        if len(stream.committed) > LOOK_BACK:
            self._look_at_cards(entry, stream.committed.pop(0), stream)

    def _look_at_cards(self, entry: Entry, record: Entry, stream: _Stream) -> None:
        """A committed record is on both cards, as long as nothing newer was submitted in its place."""
        if stream.newest.get(record.offset) is not record:
            return
        own, mirror = self._facts.card(record.node), self._facts.card(record.partner)
        begin, end, middle = record.offset, record.offset + record.length, len(mirror) // 2
        if crc32(own[begin:end]) != record.digest:
            self._break(entry, f"record {record.sequence} is not on the own card")
        if crc32(mirror[middle + begin : middle + end]) != record.digest:
            self._break(entry, f"record {record.sequence} is not on the partner's card")

    def _on_delivered(self, entry: Entry) -> None:
        session = _session(entry)
        former = self._delivered.get((session, entry.epoch), 0)
        if entry.sequence <= former:
            self._break(entry, f"message {entry.sequence} delivered after {former}")
        self._delivered[session, entry.epoch] = entry.sequence
        told = self._told.get(session)
        ready = told.ready if told is not None else 0
        if ready != entry.epoch:
            self._break(entry, f"a message in epoch {entry.epoch}, ready is {ready}")
        sent = self._streams.get(Session(session.partner, session.node, session.client))
        if sent is not None and sent.under_way:
            found = [each.digest for each in sent.under_way.values() if each.sequence == entry.sequence]
            if entry.digest not in found:
                self._break(entry, f"message {entry.sequence} was not sent like that")

    # -- time ---------------------------------------------------------------------------------------------------------

    def on_time(self, now: int) -> None:
        """Now and then: what had to happen within a bound has happened."""
        if self._busy or self._closing:
            return
        self.looked += 1
        for end, up in self._up.items():
            mute = self._facts.mute_since(end) if up else None
            awake = self._facts.awake_since(end.node)
            if mute is not None and awake is not None and now - max(mute, awake) > ONE_WAY_BOUND_NS:
                self._note(now, end.node, end.partner, f"path {end.path} is up, and carries nothing or one way only")
        for session in self._sessions:
            told = self._told.get(session)
            if (told is None or not told.ready) and self._should_serve(session, now):
                self._note(now, session.node, session.partner, f"no session of client {session.client} though it could")

    def _should_serve(self, session: Session, now: int) -> bool:
        """Whether some path between the two has been whole for as long as the bound says, and both hosts ran."""
        for node in (session.node, session.partner):
            awake, opened = self._facts.awake_since(node), self._clients_at.get(node)
            if awake is None or opened is None or now - max(awake, opened) <= SERVICE_BOUND_NS:
                return False
        ends = [end for end in self._steps if (end.node, end.partner) == (session.node, session.partner)]
        quiet = [self._facts.quiet_since(end) for end in ends]
        return any(since is not None and now - since > SERVICE_BOUND_NS for since in quiet)

    def _stream_of(self, session: Session) -> _Stream:
        stream = self._streams.get(session)
        if stream is None:
            stream = self._streams[session] = _Stream()
        return stream

    # -- notes --------------------------------------------------------------------------------------------------------

    def _expect(self, entry: Entry, holds: bool, text: str) -> None:
        if not holds:
            self._break(entry, text)

    def _break(self, entry: Entry, text: str) -> None:
        client = f" client {entry.client}" if entry.client else ""
        self._note(entry.at, entry.node, entry.partner, text, client)

    def _note(self, at: int, node: int, partner: int, text: str, client: str = "") -> None:
        self.problems += 1
        if len(self.broken) < BROKEN_MAX:
            way = self._nodes.get(node, str(node)) + (f"->{self._nodes.get(partner, partner)}" if partner else "")
            self.broken.append(f"{way}{client} at {at / NANOSECONDS_PER_MILLISECOND:.3f} ms: {text}")


def _session(entry: Entry) -> Session:
    return Session(entry.node, entry.partner, entry.client)
