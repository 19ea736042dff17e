"""A small world of two real managers whose every next step can be listed: what the explorer branches on.

The managers are the real ones; firmware, memory and network around them are reduced to what can differ:

- each path has one reliable connection in each direction, whose requests are executed at the partner in their order and
  whose answers are taken in their order, each as a step of its own;
- a step may be held up for any time, since each manager has a clock of its own that only its own timers advance;
  without a budget for slowness a timer runs only when nothing is under way for its node;
- faults have budgets: a host crashes, a connection breaks at any point, a cable is cut, a write that was under way on a
  broken connection lands later (until the partner's firmware has accepted a new connection of that path, which ends the
  old one), a timer runs although answers are under way, a client closes. Booting, plugging in and opening again are
  always possible: so that faults can be over.

What holds in each state is checked against what was really written and executed here, not against the manager's books.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field

from ccm import actions as ac
from ccm import events as ev
from ccm.exchange import Record, RecordKind, Seen, Sessions, ViAddress
from ccm.handshake import Step
from ccm.manager import Manager
from ccm.needs import Needs
from ccm.peering import PartnerConfig, Peering
from ccm.session import Phase, SessionState
from emul.clock import SECOND, Instant

CLIENT = "mirror"
FAULTS = ("crash", "break", "cut", "late", "slow", "close")
BREAK_AFTER = 16
"""The path of a break step is path + BREAK_AFTER x number of requests that are still executed."""

Label = tuple[str, int, int]
"""A step: what, at which node (0: neither), on which path."""
Slot = tuple[RecordKind, int]


class Violation(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Bounds:
    """Size of a world: paths, and how often each fault may happen.

    `grain`: 2, each request, each answer and each look at the inbox is a step of its own; 1, all requests under way on
    a connection are executed and looked at together, and their answers taken together in another step; 0, in the same
    step. In all of them a connection that breaks does so after any of the requests, and their answers are lost.
    `chores`: making queue pairs takes a step.
    """

    paths: int = 1
    crash: int = 0
    break_: int = 0
    cut: int = 0
    late: int = 0
    slow: int = 0
    close: int = 0
    grain: int = 0
    chores: bool = False

    def budget(self) -> tuple[int, ...]:
        """As a world keeps it."""
        return (self.crash, self.break_, self.cut, self.late, self.slow, self.close)


@dataclass
class Link:
    """The caller's well-known connection of one path."""

    connected: bool = False
    broken: bool = False
    requests: list[tuple] = field(default_factory=list)
    """Not executed yet."""
    answers: list[ev.Event] = field(default_factory=list)
    """Executed; the caller does not know."""


@dataclass
class Lanes:
    """Queue pairs of the client on one path, as they really are."""

    epoch: int
    vis: tuple[ViAddress, ...]
    remote: tuple[ViAddress, ...] = ()


@dataclass
class Node:
    """One node: what outlives its host, and its host's manager."""

    number: int
    now: int = SECOND
    incarnation: int = 0
    stage: int = 1
    manager: Manager | None = None
    wants: bool = False
    """The client wants its session."""
    epoch: int = 0
    """Highest session epoch that a reboot doesn't lose."""
    fences: dict[int, int] = field(default_factory=dict)
    """Path -> fence epoch, raised by the partner."""
    inbox: dict[Slot, Record] = field(default_factory=dict)
    unread: set[Slot] = field(default_factory=set)
    outbox: dict[Slot, Record] = field(default_factory=dict)
    links: dict[int, Link] = field(default_factory=dict)
    adrift: dict[int, list[Record]] = field(default_factory=dict)
    """Path -> writes of broken connections that may still land."""
    lanes: dict[int, Lanes] = field(default_factory=dict)
    opened: dict[int, int] = field(default_factory=dict)
    """Path -> how often queue pairs were made there."""
    chores: list[ac.Action] = field(default_factory=list)
    news: list[ev.Event] = field(default_factory=list)
    """Asynchronous events of the adapter."""
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

    @property
    def peering(self) -> Peering:
        """The manager's side of the pair."""
        assert self.manager is not None
        return self.manager.peerings[3 - self.number]


class World:
    """Nodes 1 and 2."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.budget = bounds.budget()
        self.cut: frozenset[int] = frozenset()
        self.nodes = (Node(1), Node(2))

    # what can happen next

    def steps(self) -> Iterator[tuple[Label, int]]:
        """Each step with the index of the budget that it costs; -1 for none."""
        crash, break_, cut, late, slow, close = (left > 0 for left in self.budget)
        for node in self.nodes:
            number = node.number
            if node.manager is None:
                yield ("boot", number, -1), -1
            else:
                yield from self._own_steps(node, slow=slow, close=close)
                if crash:
                    yield ("crash", number, -1), 0
            for path, link in sorted(node.links.items()):
                if path in self.cut or link.broken:
                    continue
                if link.requests:
                    yield ("execute", number, path), -1
                if link.answers and node.manager is not None:
                    yield ("answer", number, path), -1
                if break_ and (link.requests or link.answers) and node.manager is not None:
                    for executed in range(1 if self.bounds.grain == 2 else len(link.requests) + 1):
                        yield ("break", number, path + executed * BREAK_AFTER), 1
            for path, records in sorted(node.adrift.items()):
                if late and records:
                    yield ("late", number, path), 3
        for path in range(self.bounds.paths):
            if path in self.cut:
                yield ("restore", 0, path), -1
            elif cut:
                yield ("cut", 0, path), 2

    def _own_steps(self, node: Node, *, slow: bool, close: bool) -> Iterator[tuple[Label, int]]:
        number = node.number
        if node.unread:
            yield ("look", number, -1), -1
        if node.news:
            yield ("notice", number, -1), -1
        if node.chores:
            yield ("chore", number, -1), -1
        busy = bool(node.unread or node.news or node.chores) or any(
            (link.requests or link.answers) and path not in self.cut for path, link in node.links.items()
        )
        assert node.manager is not None
        if node.manager.next_deadline() is not None:
            if not busy:
                yield ("timer", number, -1), -1
            elif slow:
                yield ("timer", number, -1), 4
        if not node.wants:
            yield ("open", number, -1), -1
        elif close:
            yield ("close", number, -1), 5

    def take(self, label: Label, cost: int) -> None:
        """Takes one step. Raises Violation."""
        if cost >= 0:
            self.budget = tuple(left - (place == cost) for place, left in enumerate(self.budget))
        what, number, path = label
        getattr(self, f"_{what}")(self.nodes[number - 1], path)
        self._check_states()

    # steps of a node

    def _boot(self, node: Node, path: int) -> None:
        node.incarnation += 1
        node.stage = 2
        for number, link in node.links.items():
            self._set_adrift(node, number, link)
        node.links, node.lanes, node.outbox, node.chores, node.news = {}, {}, {}, [], []
        node.unread = set(node.inbox)
        node.step, node.open_epoch, node.wants = {}, 0, True
        paths = tuple((index, index) for index in range(self.bounds.paths))
        partner = PartnerConfig(3 - node.number, f"n{3 - node.number}", paths)
        node.manager = Manager(
            node.number, f"n{node.number}", node.incarnation, [partner], lambda _: node.epoch, now=Instant(node.now)
        )
        for cut in sorted(self.cut):
            self._give(node, ev.CarrierLost(cut))
        self._give(node, ev.ClientOpened(3 - node.number, CLIENT, Needs()))

    def _crash(self, node: Node, path: int) -> None:
        node.manager = None
        node.chores, node.news, node.unread = [], [], set()

    def _open(self, node: Node, path: int) -> None:
        node.wants = True
        self._give(node, ev.ClientOpened(3 - node.number, CLIENT, Needs()))

    def _close(self, node: Node, path: int) -> None:
        node.wants = False
        self._give(node, ev.ClientClosed(3 - node.number, CLIENT))

    def _timer(self, node: Node, path: int) -> None:
        assert node.manager is not None
        deadline = node.manager.next_deadline()
        assert deadline is not None
        node.now = max(node.now, deadline)
        self._carry_out(node, node.manager.on_time(now=Instant(node.now)))

    def _look(self, node: Node, path: int) -> None:
        slots, node.unread = sorted(node.unread), set()
        for slot in slots:
            if slot in node.inbox:
                self._give(node, ev.RecordArrived(3 - node.number, node.inbox[slot]))

    def _notice(self, node: Node, path: int) -> None:
        self._give(node, node.news.pop(0))

    def _chore(self, node: Node, path: int) -> None:
        self._do_chore(node, node.chores.pop(0))

    # steps of the network

    def _execute(self, node: Node, path: int) -> None:
        """The partner's adapter executes the oldest request, or all that are under way."""
        other = self.nodes[2 - node.number]
        for _ in range(1 if self.bounds.grain == 2 else len(node.links[path].requests)):
            self._execute_one(node, path)
        if self.bounds.grain < 2 and other.manager is not None:
            if other.unread:
                self._look(other, -1)
            while other.news:
                self._notice(other, -1)
        if self.bounds.grain == 0 and node.manager is not None:
            self._answer(node, path)

    def _execute_one(self, node: Node, path: int) -> None:
        link, other, partner = node.links[path], self.nodes[2 - node.number], 3 - node.number
        what, *rest = link.requests.pop(0)
        if what == "connect":
            node.adrift.pop(path, None)
            answer: ev.Event = ev.PeerConnected(partner, path, node.fences.get(path, 0), 3)
        elif what == "status":
            answer = ev.StatusRead(partner, path, other.stage, other.incarnation, 0, 0)
        elif what == "seen":
            answer = ev.SeenRead(partner, path, other.outbox.get((RecordKind.SEEN, path)))
        elif what == "write":
            self._land(other, rest[0])
            record = rest[0]
            answer = ev.RecordWritten(partner, path, record.kind, record.index, record.sequence)
        else:
            fenced, epoch, number = rest
            if epoch > other.fences.get(fenced, 0):
                other.fences[fenced] = epoch
                if other.manager is not None:
                    other.news.append(ev.FencedByPartner(node.number, fenced, epoch))
            answer = ev.FenceAnswered(partner, fenced, number)
        link.answers.append(answer)

    def _answer(self, node: Node, path: int) -> None:
        link = node.links.get(path)
        if link is None:
            return  # what the partner saw of the requests has ended it
        for _ in range(1 if self.bounds.grain == 2 else len(link.answers)):
            if link.answers:  # what the manager does about one may end the connection
                answer = link.answers.pop(0)
                link.connected |= isinstance(answer, ev.PeerConnected)
                self._give(node, answer)

    def _break(self, node: Node, path: int) -> None:
        """The connection fails, after some more requests were executed or before."""
        executed, path = divmod(path, BREAK_AFTER)
        for _ in range(executed):
            self._execute_one(node, path)
        link, partner = node.links[path], 3 - node.number
        self._set_adrift(node, path, link)
        link.broken = True
        self._give(node, ev.PeerLost(partner, path) if link.connected else _unreachable(partner, path))

    def _late(self, node: Node, path: int) -> None:
        self._land(self.nodes[2 - node.number], node.adrift[path].pop(0))

    def _cut(self, _: Node, path: int) -> None:
        self.cut |= {path}
        self._tell_both(ev.CarrierLost(path))

    def _restore(self, _: Node, path: int) -> None:
        self.cut -= {path}
        self._tell_both(ev.CarrierFound(path))

    def _tell_both(self, event: ev.Event) -> None:
        for node in self.nodes:
            if node.manager is not None:
                self._give(node, event)

    def _land(self, other: Node, record: Record) -> None:
        slot = (record.kind, record.index)
        other.inbox[slot] = record
        if other.manager is not None:
            other.unread.add(slot)

    def _set_adrift(self, node: Node, path: int, link: Link) -> None:
        if self.budget[3] > 0:
            writes = [rest[0] for what, *rest in link.requests if what == "write"]
            if writes:
                node.adrift.setdefault(path, []).extend(writes)
        link.requests, link.answers = [], []

    # what the manager wants

    def _give(self, node: Node, event: ev.Event) -> None:
        assert node.manager is not None
        self._carry_out(node, node.manager.handle(event, now=Instant(node.now)))

    def _carry_out(self, node: Node, actions: list[ac.Action]) -> None:
        for action in actions:
            handler = _CARRY_OUT.get(type(action))
            if handler is not None:
                handler(self, node, action)

    def _connect(self, node: Node, action: ac.ConnectPeer) -> None:
        node.links[action.path] = Link(requests=[("connect",)])

    def _disconnect(self, node: Node, action: ac.DisconnectPeer) -> None:
        link = node.links.pop(action.path, None)
        if link is not None:
            self._set_adrift(node, action.path, link)

    def _request(self, node: Node, path: int, *request: object) -> None:
        link = node.links.get(path)
        if link is None:
            raise Violation(f"node {node.number} asks for {request} on path {path}, which has no connection")
        if not link.broken:
            link.requests.append(request)

    def _read_status(self, node: Node, action: ac.ReadStatus) -> None:
        self._request(node, action.path, "status")

    def _read_seen(self, node: Node, action: ac.ReadSeen) -> None:
        self._request(node, action.path, "seen")

    def _fence(self, node: Node, action: ac.RequestFence) -> None:
        self._request(node, action.over, "fence", action.path, action.epoch, action.number)

    def _write(self, node: Node, action: ac.WriteRecord) -> None:
        if node.chores:
            node.chores.append(action)  # not before the queue pairs that it tells of are there, or gone
            return
        record = action.record
        node.outbox[record.kind, record.index] = record
        if isinstance(record.body, Seen):
            node.seen.add((record.index, record.writer_incarnation, record.partner_incarnation))
        elif isinstance(record.body, Sessions):
            node.told |= {
                (entry.epoch, record.writer_incarnation, record.partner_incarnation, record.body.digest)
                for entry in record.body.entries
                if entry.phase == Phase.READY
            }
        if node.links.get(action.path) is not None:
            self._request(node, action.path, "write", record)

    def _read_inbox(self, node: Node, action: ac.ReadInbox) -> None:
        node.unread = set(node.inbox)
        if not self.bounds.chores:
            self._look(node, -1)

    def _queue(self, node: Node, action: ac.Action) -> None:
        if self.bounds.chores:
            node.chores.append(action)
        else:
            self._do_chore(node, action)

    def _do_chore(self, node: Node, action: ac.Action) -> None:
        if isinstance(action, ac.WriteRecord):
            waiting, node.chores = node.chores, []
            self._write(node, action)
            node.chores = waiting
        elif isinstance(action, ac.OpenLanes):
            self._open_lanes(node, action)
        elif isinstance(action, ac.ConnectLanes):
            lanes = node.lanes.get(action.path)
            if lanes is not None and lanes.epoch == action.epoch:
                lanes.remote = action.remote.vis
                self._give(node, ev.LanesConnected(action.partner, action.path, action.client, action.epoch))
        elif isinstance(action, ac.CloseLanes) and node.lanes.pop(action.path, None) is None:
            raise Violation(f"node {node.number} closes queue pairs on path {action.path} that aren't there")

    def _open_lanes(self, node: Node, action: ac.OpenLanes) -> None:
        agreement = node.peering.settling.agreement
        if not self.bounds.chores and (agreement is None or agreement.refusal):
            raise Violation(f"node {node.number} makes queue pairs before versions are agreed")
        if action.path in node.lanes:
            raise Violation(f"node {node.number} makes queue pairs on path {action.path} twice")
        count = node.opened[action.path] = node.opened.get(action.path, 0) + 1
        vis = (ViAddress(1000 * node.number + 100 * action.path + count, 0),)
        node.lanes[action.path] = Lanes(action.epoch, vis)
        self._give(node, ev.LanesOpened(action.partner, action.path, action.client, action.epoch, vis, 0, 0, 0))

    def _move(self, node: Node, action: ac.Move) -> None:
        epoch = node.peering.sessions.sessions[action.client].epoch
        self._give(node, ev.Moved(action.partner, action.client, epoch, action.vi, action.path))

    def _remember(self, node: Node, action: ac.RememberEpoch) -> None:
        if action.epoch <= node.epoch:
            raise Violation(f"node {node.number} proposes epoch {action.epoch} after {node.epoch}")
        node.epoch = action.epoch

    # what must hold

    def _note_step(self, node: Node, action: ac.NoteStep) -> None:
        former = node.step.get(action.path, 0)
        if action.step not in (1, former + 1):
            raise Violation(f"node {node.number} takes step {action.step} of path {action.path} after step {former}")
        node.step[action.path] = action.step
        other = self.nodes[2 - node.number]
        if action.step == 3 and (action.path, action.incarnation, node.incarnation) not in other.seen:
            raise Violation(
                f"read 2 of node {node.number} succeeds on path {action.path}, and incarnation {action.incarnation} of "
                f"node {other.number} has never written that it has seen incarnation {node.incarnation}"
            )

    def _alert_ready(self, node: Node, action: ac.AlertReady) -> None:
        epoch, other, peering = action.epoch, self.nodes[2 - node.number], node.peering
        if epoch <= node.ready_epoch:
            raise Violation(f"node {node.number} alerts ready for epoch {epoch} after {node.ready_epoch}")
        if node.open_epoch:
            raise Violation(f"node {node.number} alerts ready for epoch {epoch} while {node.open_epoch} is not over")
        pair = (node.incarnation, peering.partner_incarnation)
        digest = peering.sessions.digest()
        for side, told in ((node, (epoch, *pair, digest)), (other, (epoch, *pair[::-1], digest))):
            if told not in side.told:
                raise Violation(
                    f"node {node.number} (incarnation {pair[0]}) alerts ready for epoch {epoch} with incarnation "
                    f"{pair[1]}, and node {side.number} has not told that it is ready for that with these manifests"
                )
        agreement = peering.settling.agreement
        if agreement is None or agreement.refusal:
            raise Violation(f"node {node.number} alerts ready without an agreed version")
        node.ready_epoch = node.open_epoch = epoch

    def _alert_end(self, node: Node, action: ac.AlertError | ac.AlertClosed) -> None:
        if node.open_epoch != action.epoch:
            raise Violation(f"node {node.number} alerts the end of epoch {action.epoch}, {node.open_epoch} is open")
        node.open_epoch = 0

    def _check_states(self) -> None:
        for node in self.nodes:
            if node.manager is not None:
                self._check_state(node)
        first, second = self.nodes
        if first.manager is None or second.manager is None or not first.open_epoch == second.open_epoch > 0:
            return
        for node, other in ((first, second), (second, first)):
            known = node.peering.partner_incarnation
            if known > other.incarnation:
                raise Violation(f"node {node.number} knows incarnation {known} of {other.number}, which never was")

    def _check_state(self, node: Node) -> None:
        other, peering = self.nodes[2 - node.number], node.peering
        for path in peering.paths.paths:
            handshake = path.handshake
            proven = handshake.step in (Step.WRITE_KNOWN, Step.DONE) or path.proven
            if proven:
                flag = (path.index, handshake.partner_incarnation, node.incarnation)
                if flag not in other.seen:
                    raise Violation(
                        f"path {path.index} of node {node.number} is proven with incarnation "
                        f"{handshake.partner_incarnation} of node {other.number}, which has not seen it"
                    )
        for session in peering.sessions.sessions.values():
            idle = session.state in (SessionState.CLOSED, SessionState.WAITING)
            if idle and node.lanes and not node.chores:
                raise Violation(f"session of node {node.number} is {session.state.name} and has queue pairs")

    def is_ready(self) -> bool:
        """Both sides ready in one epoch, each with the other's present incarnation, on queue pairs that belong
        together on every path.
        """
        if self.cut or any(node.manager is None or not node.wants for node in self.nodes):
            return False
        first, second = self.nodes
        if not first.open_epoch == second.open_epoch > 0:
            return False
        return all(self._side_is_ready(node, self.nodes[2 - node.number]) for node in self.nodes)

    def _side_is_ready(self, node: Node, other: Node) -> bool:
        peering = node.peering
        [session] = peering.sessions.sessions.values()
        if peering.partner_incarnation != other.incarnation or session.state is not SessionState.READY:
            return False
        return all(
            path.usable
            and path.index in node.lanes
            and path.index in other.lanes
            and node.lanes[path.index].remote == other.lanes[path.index].vis
            and node.lanes[path.index].epoch == node.open_epoch
            and path.pairing.lane_usable(session.client, session.epoch)
            for path in peering.paths.paths
        )

    # copies

    def frozen(self) -> bytes:
        """The world as bytes, to go on from several times."""
        return pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def thawed(data: bytes) -> World:
        """A copy to go on with."""
        world: World = pickle.loads(data)
        return world


def _unreachable(partner: int, path: int) -> ev.PeerRefused:
    from ccm.reasons import Reason

    return ev.PeerRefused(partner, path, Reason.UNREACHABLE)


_CARRY_OUT = {
    ac.ConnectPeer: World._connect,
    ac.DisconnectPeer: World._disconnect,
    ac.ReadStatus: World._read_status,
    ac.ReadSeen: World._read_seen,
    ac.WriteRecord: World._write,
    ac.ReadInbox: World._read_inbox,
    ac.RequestFence: World._fence,
    ac.OpenLanes: World._queue,
    ac.ConnectLanes: World._queue,
    ac.CloseLanes: World._queue,
    ac.Move: World._move,
    ac.RememberEpoch: World._remember,
    ac.NoteStep: World._note_step,
    ac.AlertReady: World._alert_ready,
    ac.AlertError: World._alert_end,
    ac.AlertClosed: World._alert_end,
}
