"""One node of a small world: the real manager with what its host and its node's memory hold.

Takes one input at a time (an event of the manager's, or something that happens to the host) and gives what that asks of
the network, in order. Knows nothing of the other node: what must hold between both is given as a question.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ccm import actions as ac
from ccm import events as ev
from ccm.exchange import Info, Record, RecordKind, Seen, Sessions, ViAddress
from ccm.handshake import Step
from ccm.manager import Manager
from ccm.needs import Needs, client_key
from ccm.path import PathState
from ccm.peerinfo import Capability
from ccm.peering import PartnerConfig, Peering
from ccm.reasons import Reason
from ccm.session import Phase, SessionState
from emul.clock import MICROSECOND, SECOND, Instant
from tests.explore.bounds import Bounds
from tests.explore.copying import fields_of

CLIENT = "mirror"
FRESH = 1_000
"""New sequence numbers are larger than this; the ones of a state are small (see tests/explore/canonical.py)."""
MTU = 3
INSTANTS = {
    "since", "up_since", "connect_by", "fence_retry_at", "poll_at", "relink_at", "retry_at", "_base_at", "_busy_until",
    "_shaken_until", "_window_at", "last_life_at", "next_probe_at", "probe_at",
}  # fmt: skip
"""Of a path and its liveness."""

Slot = tuple[int, int]
"""Kind and index."""
Write = tuple[int, int, int, int]
"""Kind, index, sequence, number of the record in the catalogue."""
Input = tuple[Any, ...]
Output = tuple[Any, ...]


class Violation(AssertionError):
    """Something that must hold does not."""


class InboxNeeded(Exception):
    """The manager reads its inbox: say what is in it."""


class Catalogue:
    """Records without their sequence numbers, by number."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._numbers: dict[Record, int] = {}

    def add(self, record: Record) -> Write:
        """The record in short."""
        bare = dataclasses.replace(record, sequence=0)
        number = self._numbers.setdefault(bare, len(self.records))
        if number == len(self.records):
            self.records.append(bare)
        return (int(record.kind), record.index, record.sequence, number)

    def whole(self, write: Write) -> Record:
        """The record again."""
        return dataclasses.replace(self.records[write[3]], sequence=write[2])


@dataclass
class Lanes:
    """Queue pairs of the client on one path, as they really are."""

    epoch: int
    fence_epoch: int
    vis: tuple[ViAddress, ...]
    remote: tuple[ViAddress, ...] = ()


@dataclass
class Node:
    """What outlives a host, and the host's manager."""

    number: int
    bounds: Bounds
    catalogue: Catalogue
    now: int = SECOND
    """Its own clock: only its timers advance it."""
    incarnation: int = 0
    stage: int = 1
    manager: Manager | None = None
    wants: bool = False
    """The client wants its session."""
    epoch: int = 0
    """Highest session epoch that a reboot doesn't lose."""
    fences: dict[int, int] = field(default_factory=dict)
    """Path -> fence epoch, raised by the partner."""
    outbox: dict[Slot, Write] = field(default_factory=dict)
    lanes: dict[int, Lanes] = field(default_factory=dict)
    opened: dict[int, int] = field(default_factory=dict)
    """Path -> how often queue pairs were made there."""
    chores: list[ac.Action] = field(default_factory=list)
    routes: dict[int, tuple[int, tuple[ViAddress, ...]]] = field(default_factory=dict)
    """VI -> path over which its work is posted, and our ends of the queue pairs there."""
    moves: dict[int, int] = field(default_factory=dict)
    """VI -> path that its work is on the way to."""
    # what the checks remember
    step: dict[int, int] = field(default_factory=dict)
    ready_epoch: int = 0
    """Last epoch of which the client had a ready alert."""
    open_epoch: int = 0
    """Of that, while neither error nor close followed."""
    told: set[tuple[int, int, int, int]] = field(default_factory=set)
    """(epoch, own incarnation, partner's, digest) that the partner was told to be ready for."""
    seen: set[tuple[int, int, int]] = field(default_factory=set)
    """(path, own incarnation, partner's) of SEEN records that were really written."""

    outputs: list[Output] = field(default_factory=list)
    _events: deque[Input] = field(default_factory=deque)

    @property
    def partner(self) -> int:
        """The other node's number."""
        return 3 - self.number

    @property
    def peering(self) -> Peering:
        """The manager's side of the pair."""
        assert self.manager is not None
        return self.manager.peerings[self.partner]

    # inputs

    def take(self, inputs: Iterable[Input], inbox: tuple[Write, ...] | None) -> tuple[Output, ...]:
        """Takes inputs in order, and all events that follow at once; gives what is asked of the network. Raises
        Violation, whatever the manager raises, and InboxNeeded when `inbox` is None and the manager reads it.
        """
        self.outputs, self._events = [], deque(inputs)
        if self.manager is not None:
            self.peering.publisher._sequence = FRESH
        while self._events:
            name, *rest = self._events.popleft()
            own = _OWN.get(name)
            if own is not None:
                own(self, *rest)
            elif name == "inbox":
                if inbox is None:
                    raise InboxNeeded
                self._events.extend(("record", *write) for write in inbox)
                self.outputs.append(("looked",))
            else:
                self._give(_EVENTS[name](self, *rest))
            self._check()
        return tuple(self.outputs)

    def boot(self, down: int) -> None:
        """The next incarnation of the host attaches; `down`: bit set of ports without carrier."""
        self.incarnation += 1
        self.stage = 2
        self.lanes, self.outbox, self.chores, self.routes, self.moves = {}, {}, [], {}, {}
        self.step, self.open_epoch, self.wants = {}, 0, True
        paths = tuple((index, index) for index in range(self.bounds.paths))
        self.manager = Manager(
            self.number, f"n{self.number}", self.incarnation,
            [PartnerConfig(self.partner, f"n{self.partner}", paths)], lambda _: self.epoch,
            self.bounds.version_of(self.number, self.incarnation), now=Instant(self.now),
        )  # fmt: skip
        for path in range(self.bounds.paths):
            if down >> path & 1:
                self._give(ev.CarrierLost(path))
        self._give(ev.ClientOpened(self.partner, CLIENT, Needs()))

    def crash(self) -> None:
        """The host is gone; its memory and its queue pairs stay."""
        self.manager = None
        self.chores, self.moves = [], {}

    def open_client(self) -> None:
        """The client wants its session (again)."""
        self.wants = True
        self._give(ev.ClientOpened(self.partner, CLIENT, Needs()))

    def close_client(self) -> None:
        """It doesn't want it any more."""
        self.wants = False
        self._give(ev.ClientClosed(self.partner, CLIENT))

    def timers(self) -> tuple[int, ...]:
        """What is armed: paths by index, then the sessions, then the return to paths that came back."""
        if self.manager is None:
            return ()
        return tuple(number for number, deadline in enumerate(self._deadlines()) if deadline is not None)

    def run_timer(self, number: int) -> None:
        """Time passes until a timer is due: for what it belongs to, and for nothing else, so that timers come in any
        order.
        """
        assert self.manager is not None
        self.now += MICROSECOND
        for place, deadline in enumerate(self._deadlines()):
            if deadline is not None and (place == number or deadline <= self.now):
                self._shift(place, self.now - deadline + (place != number))
        self.manager._touched.add(self.partner)
        self._carry_out(self.manager.on_time(now=Instant(self.now)))

    def _deadlines(self) -> list[Instant | None]:
        peering = self.peering
        paths = [path.next_deadline() for path in peering.paths.paths]
        return [*paths, peering.sessions.next_deadline(), peering.settling.rebalance_at]

    def _shift(self, place: int, by: int) -> None:
        """Time passes for a path, for the sessions, or for the return: `by` earlier."""
        peering = self.peering
        paths = peering.paths.paths
        if place < len(paths):
            for clocks in (paths[place], paths[place].liveness):
                for name in INSTANTS & set(fields_of(clocks)):
                    if getattr(clocks, name) is not None:
                        setattr(clocks, name, Instant(getattr(clocks, name) + by))
        elif place == len(paths):
            for session in peering.sessions.sessions.values():
                for name in ("close_by", "mend_by", "refused_until", "stranded_by"):
                    if getattr(session, name) is not None:
                        setattr(session, name, Instant(getattr(session, name) + by))
        else:
            assert peering.settling.rebalance_at is not None
            peering.settling.rebalance_at = Instant(peering.settling.rebalance_at + by)

    def do_chore(self) -> None:
        """The oldest of what takes its time."""
        action = self.chores.pop(0)
        if isinstance(action, ac.WriteRecord):
            self._put(action)
        else:
            self._do(action)

    def raise_fence(self, path: int, epoch: int) -> None:
        """By the partner, in this node's memory; the host is told."""
        if epoch > self.fences.get(path, 0):
            self.fences[path] = epoch
            if self.manager is not None:
                self.outputs.append(("news", ("fenced by partner", path, epoch)))

    def move(self, vi: int) -> None:
        """The work of a virtual interface has arrived at the path that it moves to."""
        path = self.moves.pop(vi, None)
        if path is None:
            return  # called off
        self.routes[vi] = (path, self.lanes[path].vis)
        [session] = self.peering.sessions.sessions.values()
        self._give(ev.Moved(self.partner, session.client, session.epoch, vi, path))

    def fail_vi(self, path: int, mendable: bool) -> None:
        """A request on the client's virtual interface ends in error."""
        epoch = self.lanes[path].epoch
        self._give(ev.ViFailed(self.partner, path, client_key(CLIENT), epoch, False, "RNR_RETRY_EXC_ERR", mendable))

    # actions

    def _give(self, event: ev.Event) -> None:
        assert self.manager is not None
        self._carry_out(self.manager.handle(event, now=Instant(self.now)))

    def _carry_out(self, actions: list[ac.Action]) -> None:
        for action in actions:
            handler = _CARRY_OUT.get(type(action))
            if handler is not None:
                handler(self, action)

    def _connect(self, action: ac.ConnectPeer) -> None:
        self.step[action.path] = 0
        self.outputs.append(("connect", action.path))

    def _disconnect(self, action: ac.DisconnectPeer) -> None:
        self.outputs.append(("disconnect", action.path))

    def _read_status(self, action: ac.ReadStatus) -> None:
        self.outputs.append(("request", action.path, ("status",)))

    def _read_seen(self, action: ac.ReadSeen) -> None:
        self.outputs.append(("request", action.path, ("seen",)))

    def _fence(self, action: ac.RequestFence) -> None:
        self.outputs.append(("request", action.over, ("fence", action.path, action.epoch, action.number)))

    def _write(self, action: ac.WriteRecord) -> None:
        if self.chores:
            self.chores.append(action)  # not before the queue pairs that it tells of are there, or gone
        else:
            self._put(action)

    def _put(self, action: ac.WriteRecord) -> None:
        record = action.record
        if not self.bounds.movable and self.number == 2 and isinstance(record.body, Info):
            less = dataclasses.replace(record.body, capabilities=int(Capability.FIRMWARE_FENCE))
            record = dataclasses.replace(record, body=less)
        write = self.catalogue.add(record)
        self.outbox[write[:2]] = write
        pair = (record.writer_incarnation, record.partner_incarnation)
        if isinstance(record.body, Seen):
            self.seen = {flag for flag in self.seen if flag[2] >= pair[1]} | {(record.index, *pair)}
        elif isinstance(record.body, Sessions):
            ready = {
                (entry.epoch, *pair, record.body.digest) for entry in record.body.entries if entry.phase == Phase.READY
            }
            # Who read of an incarnation that is over is over too.
            self.told = {told for told in self.told if told[2] >= pair[1]} | ready
        self.outputs.append(("request", action.path, ("write", *write)))

    def _read_inbox(self, action: ac.ReadInbox) -> None:
        self._events.append(("inbox",))

    def _queue(self, action: ac.Action) -> None:
        if self.bounds.chores:
            self.chores.append(action)
        else:
            self._do(action)

    def _do(self, action: ac.Action) -> None:
        if isinstance(action, ac.OpenLanes):
            self._open_lanes(action)
        elif isinstance(action, ac.ConnectLanes):
            lanes = self.lanes.get(action.path)
            if lanes is not None and lanes.epoch == action.epoch:
                lanes.remote = action.remote.vis
                self._events.append(("lanes connected", action.path, action.client, action.epoch))
        elif isinstance(action, ac.CloseLanes) and self.lanes.pop(action.path, None) is None:
            raise Violation(f"node {self.number} closes queue pairs on path {action.path} that aren't there")

    def _open_lanes(self, action: ac.OpenLanes) -> None:
        agreement = self.peering.settling.agreement
        if not self.bounds.chores and (agreement is None or agreement.refusal):
            raise Violation(f"node {self.number} makes queue pairs before versions are agreed")
        if action.path in self.lanes:
            raise Violation(f"node {self.number} makes queue pairs on path {action.path} twice")
        count = self.opened[action.path] = self.opened.get(action.path, 0) + 1
        vis = (ViAddress(1000 * self.number + 100 * action.path + count, 0),)
        self.lanes[action.path] = Lanes(action.epoch, action.fence_epoch, vis)
        self._events.append(("lanes opened", action.path, action.client, action.epoch, vis))

    def _move(self, action: ac.Move) -> None:
        if not self.bounds.movable:
            raise Violation(f"node {self.number} moves work in mid-stream, which its partner can't take")
        self.moves[action.vi] = action.path
        if not self.bounds.moves:
            self._events.append(("moved", action.vi))

    def _route(self, action: ac.Route) -> None:
        former = self.routes.get(action.vi)
        self.moves.pop(action.vi, None)
        self.routes[action.vi] = (action.path, self.lanes[action.path].vis)
        if former is not None and former != self.routes[action.vi]:
            self.outputs.append(("ask", "fenced", *former))

    def _remember(self, action: ac.RememberEpoch) -> None:
        if action.epoch <= self.epoch:
            raise Violation(f"node {self.number} proposes epoch {action.epoch} after {self.epoch}")
        self.epoch = action.epoch

    # what must hold

    def _note_step(self, action: ac.NoteStep) -> None:
        former = self.step.get(action.path, 0)
        if action.step not in (1, former + 1):
            raise Violation(f"node {self.number} takes step {action.step} of path {action.path} after step {former}")
        self.step[action.path] = action.step
        if action.step == 3:
            text = f"read 2 of node {self.number} succeeds on path {action.path}"
            self.outputs.append(("ask", "seen", (action.path, action.incarnation, self.incarnation), text))

    def _alert_ready(self, action: ac.AlertReady) -> None:
        epoch, peering = action.epoch, self.peering
        if epoch <= self.ready_epoch:
            raise Violation(f"node {self.number} alerts ready for epoch {epoch} after {self.ready_epoch}")
        if self.open_epoch:
            raise Violation(f"node {self.number} alerts ready for epoch {epoch} while {self.open_epoch} is not over")
        if not self.wants:
            raise Violation(f"node {self.number} alerts ready for epoch {epoch} to a client that has closed")
        agreement = peering.settling.agreement
        if agreement is None or agreement.refusal:
            raise Violation(f"node {self.number} alerts ready without an agreed version")
        digest = peering.sessions.digest()
        mine = (epoch, self.incarnation, peering.partner_incarnation, digest)
        if mine not in self.told:
            raise Violation(f"node {self.number} alerts ready for epoch {epoch} and has not told so: {mine}")
        self.outputs.append(("ask", "told", (epoch, peering.partner_incarnation, self.incarnation, digest)))
        self.ready_epoch = self.open_epoch = epoch

    def _alert_end(self, action: ac.AlertError | ac.AlertClosed) -> None:
        if self.open_epoch != action.epoch:
            raise Violation(f"node {self.number} alerts the end of epoch {action.epoch}, {self.open_epoch} is open")
        self.open_epoch = 0
        self.routes, self.moves = {}, {}

    def _check(self) -> None:
        if self.manager is None:
            return
        for session in self.peering.sessions.sessions.values():
            idle = session.state in (SessionState.CLOSED, SessionState.WAITING)
            if idle and self.lanes and not self.chores:
                raise Violation(f"session of node {self.number} is {session.state.name} and has queue pairs")
            alerted = session.state is SessionState.READY
            if alerted is not bool(self.open_epoch) and session.state is not SessionState.CLOSING:
                raise Violation(f"node {self.number}: session {session.state.name}, epoch {self.open_epoch} is open")
            lost = [vi for vi, (path, _) in self.routes.items() if path not in self.lanes]
            if (
                session.state is SessionState.READY
                and lost
                and not (session.stranded or session.mending or self.chores)
            ):
                raise Violation(f"node {self.number} posts work of VIs {lost} on paths that have no queue pairs")

    def flags_needed(self) -> frozenset[tuple[int, int, int]]:
        """SEEN flags that the other node must have written, as paths of ours count as proven by them."""
        if self.manager is None:
            return frozenset()
        return frozenset(
            (path.index, path.handshake.partner_incarnation, self.incarnation)
            for path in self.peering.paths.paths
            if path.proven or path.handshake.step in (Step.WRITE_KNOWN, Step.DONE)
        )

    def readiness(self) -> tuple[int, int, tuple[tuple[int, object, object], ...]] | None:
        """Epoch, partner's incarnation and ends of the queue pairs on each path; None while not ready on all paths."""
        if self.manager is None or not self.wants or not self.open_epoch:
            return None
        peering = self.peering
        [session] = peering.sessions.sessions.values()
        for path in peering.paths.paths:
            lanes = self.lanes.get(path.index)
            usable = path.state is PathState.UP and path.pairing.lane_usable(session.client, session.epoch)
            if not usable or lanes is None or lanes.epoch != self.open_epoch:
                return None
        if session.state is not SessionState.READY or session.stranded or set(self.routes) != set(session.routes):
            return None
        ends = tuple((path, lanes.vis, lanes.remote) for path, lanes in sorted(self.lanes.items()))
        return self.open_epoch, peering.partner_incarnation, ends

    def refuses(self) -> bool:
        """Whether it has refused the partner for want of a common version, and says so."""
        info = self.outbox.get((int(RecordKind.INFO), 0))
        if self.manager is None or info is None:
            return False
        body = self.catalogue.whole(info).body
        assert isinstance(body, Info)
        return body.refusal == Reason.NO_COMMON_VERSION


_OWN: dict[str, Callable[..., None]] = {
    "boot": Node.boot,
    "crash": Node.crash,
    "open": Node.open_client,
    "close": Node.close_client,
    "timer": Node.run_timer,
    "chore": Node.do_chore,
    "raise": Node.raise_fence,
    "moved": Node.move,
    "vi": Node.fail_vi,
}
_EVENTS: dict[str, Callable[..., ev.Event]] = {
    "connected": lambda node, path: ev.PeerConnected(node.partner, path, node.fences.get(path, 0), MTU),
    "unreachable": lambda node, path: ev.PeerRefused(node.partner, path, Reason.UNREACHABLE),
    "lost": lambda node, path: ev.PeerLost(node.partner, path),
    "status": lambda node, path, stage, life: ev.StatusRead(node.partner, path, stage, life, 0, 0),
    "seen": lambda node, path, write: ev.SeenRead(node.partner, path, write and node.catalogue.whole(write)),
    "written": lambda node, path, kind, index, sequence: ev.RecordWritten(node.partner, path, kind, index, sequence),
    "answered": lambda node, path, number: ev.FenceAnswered(node.partner, path, number),
    "record": lambda node, *write: ev.RecordArrived(node.partner, node.catalogue.whole(write)),
    "fenced by partner": lambda node, path, epoch: ev.FencedByPartner(node.partner, path, epoch),
    "carrier": lambda node, path, up: ev.CarrierFound(path) if up else ev.CarrierLost(path),
    "lanes opened": lambda node, path, client, epoch, vis: ev.LanesOpened(
        node.partner, path, client, epoch, vis, 0, 0, 0
    ),
    "lanes connected": lambda node, path, client, epoch: ev.LanesConnected(node.partner, path, client, epoch),
}
_CARRY_OUT: dict[type, Callable[..., None]] = {
    ac.ConnectPeer: Node._connect,
    ac.DisconnectPeer: Node._disconnect,
    ac.ReadStatus: Node._read_status,
    ac.ReadSeen: Node._read_seen,
    ac.WriteRecord: Node._write,
    ac.ReadInbox: Node._read_inbox,
    ac.RequestFence: Node._fence,
    ac.OpenLanes: Node._queue,
    ac.ConnectLanes: Node._queue,
    ac.CloseLanes: Node._queue,
    ac.Move: Node._move,
    ac.Route: Node._route,
    ac.RememberEpoch: Node._remember,
    ac.NoteStep: Node._note_step,
    ac.AlertReady: Node._alert_ready,
    ac.AlertError: Node._alert_end,
    ac.AlertClosed: Node._alert_end,
}
