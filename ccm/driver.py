"""The driver: carries out what the manager wants with the verbs, and turns what happens into the manager's events.

The only part of `ccm` that touches adapters and clients. One thread, never blocking but for slow verbs, which answer
within a fraction of a millisecond. Work of clients does not pass through the manager: sessions post on their lanes
directly, and the manager learns that a path lives. What gives something back (closing queue pairs of a lost path)
waits until the replay is under way, but never past the next thing that the partner is told.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ccm import actions as ac
from ccm import events as ev
from ccm.adapter_port import AdapterPort
from ccm.client import Client, Partner, Session
from ccm.exchange import SLOTS, Record, Refusal, emit_record, parse_record, slot_range
from ccm.history import HistoryWriter, Kind
from ccm.lanes import Lanes, PathLife
from ccm.manager import Manager
from ccm.needs import NeedsError, client_key
from ccm.peer_link import PeerIdentity, PeerLink
from ccm.peering import PartnerConfig
from ccm.reasons import Reason
from ccm.session import SessionState
from ccm.stream import Stream
from emul.clock import MILLISECOND, Instant, earliest
from emul.cm import CmEvent
from emul.errors import DeviceGone, RDMAError
from emul.node_memory import INBOX_BYTES, PATHS_MAX, BootStatus, NodeMemory, Stage, fence_slot
from emul.verbs import MR, Context
from emul.vocabulary import AccessFlags, AsyncEvent, EventType, WCStatus

EVENTS_PER_TURN_MAX = 10_000
"""More follow-up events than this in one turn is a loop of ours."""
DEFER_NS = 5 * MILLISECOND
"""How long giving back what a lost path held is put off: slow verbs would hold up the replay's completions."""
REOPEN_INTERVAL_NS = 100 * MILLISECOND
"""How often a dead adapter is tried again."""
EXCEPTIONS_MAX = 64
"""A client whose callbacks raised this often loses its sessions."""
_HEADER_GLANCE = 48
"""Bytes of a slot whose change tells that there is a new record."""

Log = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class PathConfig:
    """One path as the configuration names it."""

    index: int
    adapter: int
    remote: str


@dataclass(frozen=True, slots=True)
class DriverConfig:
    """Who this node is, and who its partners are."""

    node_id: int
    name: str
    cluster_key: bytes
    partners: Mapping[int, tuple[str, tuple[PathConfig, ...]]]
    client_ids: Mapping[str, int]
    """Client name -> number in the history."""


class Driver:
    """Executes one manager's actions.

    `log` takes a word and fields for each thing worth a line. `clock` is read in the midst of long turns, where time
    passes by itself; the simulator's doesn't.
    """

    def __init__(
        self,
        config: DriverConfig,
        contexts: Sequence[Context],
        node_memory: NodeMemory,
        history: HistoryWriter,
        clients: Sequence[Client],
        incarnation: int,
        seed: int,
        log: Log,
        *,
        now: Instant,
        reopen: Callable[[int], Context] | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.config = config
        self.incarnation = incarnation
        self._node = node_memory
        self._history = history
        self._clients = {client_key(client.name): client for client in clients}
        self._rng = random.Random(seed ^ (incarnation << 32))
        self._log = log
        self._contexts = list(contexts)
        self._reopen = reopen if reopen is not None else self._contexts.__getitem__
        self._reopen_at: Instant | None = None
        self._clock = clock
        self.now = now
        self.ports: list[AdapterPort | None] = [None] * len(contexts)
        self.partners = {node: Partner(node, name) for node, (name, _) in config.partners.items()}
        self.client_errors: dict[str, int] = {}
        self._paths = {(node, path.index): path for node, (_, paths) in config.partners.items() for path in paths}
        self._links: dict[tuple[int, int], PeerLink] = {}
        self._outboxes: dict[tuple[int, int], MR] = {}
        self._sessions: dict[tuple[int, int], Session] = {}
        self._lanes: dict[tuple[int, int, int], Lanes] = {}
        self._lives = {key: PathLife() for key in self._paths}
        self._moves: dict[tuple[int, int, int], int] = {}
        self._glances: dict[tuple[int, int, int], bytes] = {}
        self._events: deque[ev.Event] = deque()
        self._deferred: deque[Callable[[], None]] = deque()
        self._deferred_until = now
        self._carrier: list[bool] = [True] * len(contexts)
        self._opened: list[bool] = [False] * len(contexts)
        self.manager = Manager(
            config.node_id,
            config.name,
            incarnation,
            [
                PartnerConfig(node, name, tuple((path.index, path.adapter) for path in paths))
                for node, (name, paths) in config.partners.items()
            ],
            node_memory.session_epoch,
            now=now,
        )

    # turns

    def start(self, now: Instant) -> None:
        """Opens the adapters and looks at their carriers; the first attempts to connect follow with the timers."""
        self.now = now
        for index in range(len(self._contexts)):
            self._open_port(index)
        for partner in self.partners:
            outbox = self._node.outbox(partner)
            outbox[:] = bytes(len(outbox))  # a former incarnation's records are nobody's any more
        self._pump()

    def wake(self, index: int, now: Instant) -> bool:
        """Adapter `index` has completions; whether the manager had anything to do with them."""
        self.now = now
        port = self.ports[index]
        if port is not None:
            port.wake(now)
        if not self._events:
            return False
        self._pump()
        return True

    def take_events(self, now: Instant) -> None:
        """Looks for asynchronous and connection events of all adapters."""
        self.now = now
        self._gather()
        if self._events:
            self._pump()

    def on_time(self, now: Instant) -> None:
        """Timers of the manager and the driver; call after `wake`, so that what has come counts as life."""
        self._set_now(now if self._clock is None else Instant(self._clock()))
        for port in self.ports:
            if port is not None and not port.gone:
                port.drain()  # what has come counts before anything is found late
        for (partner, path), life in self._lives.items():
            if life.at > life.told:
                life.told = life.at
                self._events.append(ev.LifeSeen(partner, path, life.at))
        if self._reopen_at is not None and now >= self._reopen_at:
            self._reopen_ports()
        self._pump()
        self._execute(self.manager.on_time(now=self.now))
        self._pump()
        if self._deferred and now >= self._deferred_until:
            self._deferred.popleft()()

    def next_deadline(self) -> Instant | None:
        """When `on_time` is due."""
        until = self._deferred_until if self._deferred else None
        return earliest(self.manager.next_deadline(), self._reopen_at, until)

    def open_clients(self, now: Instant) -> None:
        """Asks each client what it needs of each partner, and opens its sessions."""
        for client in self._clients.values():
            self.open_client(client, now)

    def open_client(self, client: Client, now: Instant) -> None:
        """(Re)opens one client's sessions. Raises NeedsError for needs that no session can give."""
        self.now = now
        for partner in self.partners.values():
            needs = client.needs(partner)
            if needs is not None:
                exposed = client.exposed(partner)
                if needs.exposed_bytes != (exposed.length if exposed is not None else 0):
                    raise NeedsError(f"{client.name} says {needs.exposed_bytes} exposed bytes and exposes {exposed}")
                self._events.append(ev.ClientOpened(partner.id, client.name, needs))
        self._pump()

    def close_all(self, now: Instant) -> None:
        """Orderly close of every session."""
        self._set_now(now)
        for client in self._clients.values():
            for partner in self.partners:
                self._events.append(ev.ClientClosed(partner, client.name))
        self._pump()

    def has_sessions(self) -> bool:
        """Whether there are sessions that are not closed."""
        return any(
            session.state is not SessionState.CLOSED
            for peering in self.manager.peerings.values()
            for session in peering.sessions.sessions.values()
        )

    def release(self) -> None:
        """Carries out what was put off."""
        while self._deferred:
            self._deferred.popleft()()

    def shut_down(self, now: Instant) -> None:
        """Gives everything back, well-known connections included."""
        self.now = now
        self.release()
        for lanes in self._lanes.values():
            lanes.close()
        self._lanes.clear()
        for link in self._links.values():
            link.close()
        self._links.clear()

    def counters(self) -> list[dict[str, object]]:
        """State and counters of each adapter."""
        found: list[dict[str, object]] = []
        for index, port in enumerate(self.ports):
            if port is None or port.gone:
                found.append({"index": index, "gone": True})
                continue
            counters: dict[str, int] = {}
            port.attempt(lambda port=port, counters=counters: counters.update(port.context.counters()))  # type: ignore[misc]
            found.append({"index": index, "gone": port.gone, "carrier": self._carrier[index], "counters": counters})
        return found

    def resources(self) -> list[dict[str, int]]:
        """Verbs resources that this host holds in each adapter."""
        found: list[dict[str, int]] = []
        for port in self.ports:
            held: dict[str, int] = {}
            if port is not None and not port.gone:
                port.attempt(lambda port=port, held=held: held.update(port.context.resources()))  # type: ignore[misc]
            found.append(held)
        return found

    @property
    def sessions(self) -> list[tuple[Client, Session]]:
        """All sessions that are ready now."""
        return [(self._clients[key], session) for (_, key), session in self._sessions.items() if session.alive]

    # adapters

    def _open_port(self, index: int) -> None:
        try:
            context = self._contexts[index] = self._reopen(index) if self._opened[index] else self._contexts[index]
            self._opened[index] = True
            port = AdapterPort(index, context, self.incarnation)
            up = context.query_port(1).state == "ACTIVE"
        except (DeviceGone, OSError) as error:
            self._log("adapter.gone", {"adapter": index, "error": str(error)})
            self._lose_port(index)
            return
        self.ports[index] = port
        port.now = self.now
        self._set_carrier(index, up)

    def _lose_port(self, index: int) -> None:
        """The adapter's process is dead: its paths have no carrier until another one answers."""
        port = self.ports[index]
        if port is not None:
            port.gone = True
        self._reopen_at = Instant(self.now + REOPEN_INTERVAL_NS)
        self._set_carrier(index, False)

    def _reopen_ports(self) -> None:
        self._reopen_at = None
        self.release()
        for index, port in enumerate(self.ports):
            if port is None or port.gone:
                for key in [key for key in self._outboxes if key[0] == index]:
                    del self._outboxes[key]
                self._open_port(index)

    def _set_carrier(self, index: int, up: bool) -> None:
        if up != self._carrier[index]:
            self._carrier[index] = up
            self._events.append(ev.CarrierFound(index) if up else ev.CarrierLost(index))

    def _gather(self) -> None:
        written: dict[int, None] = {}
        for index, port in enumerate(self.ports):
            if port is None or port.gone:
                if self._reopen_at is None:
                    self._lose_port(index)
                continue
            for event in port.context.get_async_events():
                if event.event_type is EventType.EXCHANGE_WRITTEN:
                    written[event.element] = None
                else:
                    self._on_async(index, event)
            for cm_event in port.context.get_cm_events():
                self._on_cm_event(index, cm_event)
        for partner in written:
            self._scan(partner)

    def _on_cm_event(self, index: int, event: CmEvent) -> None:
        for (partner, path), link in self._links.items():
            if self._paths[partner, path].adapter == index and link.number == event.number:
                epoch = self._node.fence_epoch(fence_slot(partner, path))
                refused = ev.PeerRefused(partner, path, Reason.VERBS_FAILED, "could not agree with the reply")
                self._try_verb(partial(link.on_cm_event, event, epoch), refused)
                return

    def _on_async(self, index: int, event: AsyncEvent) -> None:
        kind = event.event_type
        if kind is EventType.PORT_ERR:
            self._set_carrier(index, False)
        elif kind is EventType.PORT_ACTIVE:
            self._set_carrier(index, True)
        elif kind is EventType.DEVICE_FATAL:
            self._lose_port(index)
        elif kind is EventType.PATH_FENCED:
            partner, path = divmod(event.element, PATHS_MAX)
            if partner in self.partners:
                self._events.append(ev.FencedByPartner(partner, path, self._node.fence_epoch(event.element)))
        elif kind is EventType.CQ_ERR:
            self._log("cq.overrun", {"adapter": index})

    # the pump: events to the manager, its actions to the verbs

    def _pump(self) -> None:
        for _ in range(EVENTS_PER_TURN_MAX):
            if not self._events:
                self._gather()
                if not self._events:
                    return
            if self._clock is not None:
                self._set_now(Instant(self._clock()))  # the verbs of the event before may have taken a while
            event = self._events.popleft()
            self._execute(self.manager.handle(event, now=self.now))
        raise AssertionError(f"{EVENTS_PER_TURN_MAX} events in one turn, the last {event}")

    def _defer(self, giving_back: Callable[[], None]) -> None:
        if not self._deferred:
            self._deferred_until = Instant(self.now + DEFER_NS)
        self._deferred.append(giving_back)

    def _set_now(self, now: Instant) -> None:
        self.now = now
        for port in self.ports:
            if port is not None:
                port.now = now

    def _execute(self, actions: list[ac.Action]) -> None:
        for action in actions:
            _EXECUTE[type(action)](self, action)

    def _tell(self, event: ev.Event) -> None:
        self._events.append(event)

    def _try_verb(self, verb: Callable[[], None], lost: ev.Event) -> None:
        """Carries out a verb; an adapter that refuses it is an event, not an exception."""
        try:
            verb()
        except RDMAError as error:
            self._note_gone(error)
            self._log("verb.refused", {"error": str(error)})
            self._tell(lost)

    def _note_gone(self, error: RDMAError) -> None:
        if isinstance(error, DeviceGone):
            for index, port in enumerate(self.ports):
                if port is not None and not port.gone:
                    port.attempt(lambda port=port: port.context.query_port(1))  # type: ignore[misc]
                    if port.gone:
                        self._lose_port(index)

    # well-known connections and records

    def _connect_peer(self, action: ac.ConnectPeer) -> None:
        self.release()
        key = (action.partner, action.path)
        path = self._paths[key]
        port = self.ports[path.adapter]
        if port is None or port.gone:
            self._tell(ev.PeerRefused(*key, Reason.VERBS_FAILED, "the adapter is dead"))
            return
        identity = PeerIdentity(
            self.config.node_id, self.incarnation, self.config.cluster_key, action.partner, action.path, path.remote
        )
        try:
            outbox = self._outbox(port, action.partner)
            link = self._links[key] = PeerLink(port, identity, outbox, self._rng, self._tell)
            link.connect()
        except RDMAError as error:
            self._note_gone(error)
            self._tell(ev.PeerRefused(*key, Reason.VERBS_FAILED, str(error)))

    def _outbox(self, port: AdapterPort, partner: int) -> MR:
        """Our outbox for `partner` as a region of one adapter: source of the writes, and what it may read."""
        key = (port.index, partner)
        if key not in self._outboxes:
            offset = self._node.exchange_offset(partner) + INBOX_BYTES
            self._outboxes[key] = MR(port.pd, INBOX_BYTES, AccessFlags.NONE, self._node.memory, offset)
        return self._outboxes[key]

    def _disconnect_peer(self, action: ac.DisconnectPeer) -> None:
        link = self._links.pop((action.partner, action.path), None)
        if link is not None:
            link.silence()
            self._defer(link.close)

    def _read_status(self, action: ac.ReadStatus) -> None:
        self._on_link(action.partner, action.path, PeerLink.read_status)

    def _read_seen(self, action: ac.ReadSeen) -> None:
        self._on_link(action.partner, action.path, PeerLink.read_seen)

    def _write_record(self, action: ac.WriteRecord) -> None:
        self.release()  # what the record says is gone is gone
        data = emit_record(action.record)
        offset, _ = slot_range(action.record.kind, action.record.index)
        self._node.outbox(action.partner)[offset : offset + len(data)] = data
        self._on_link(action.partner, action.path, lambda link: link.write_record(action.record, len(data)))

    def _request_fence(self, action: ac.RequestFence) -> None:
        self._log("fence.request", {"partner": action.partner, "path": action.path, "over": action.over})
        self._on_link(
            action.partner, action.over, lambda link: link.request_fence(action.path, action.epoch, action.number)
        )

    def _on_link(self, partner: int, path: int, verb: Callable[[PeerLink], None]) -> None:
        link = self._links.get((partner, path))
        lost = ev.PeerLost(partner, path, "verb refused")
        if link is None:
            self._tell(lost)
        else:
            self._try_verb(partial(verb, link), lost)

    def _read_inbox(self, action: ac.ReadInbox) -> None:
        for key in [key for key in self._glances if key[0] == action.partner]:
            del self._glances[key]
        self._scan(action.partner)

    def _scan(self, partner: int) -> None:
        """Looks at the slots of an inbox; what is new becomes events."""
        if partner not in self.partners:
            return
        inbox = self._node.inbox(partner)
        for kind, slot in SLOTS.items():
            for index in range(slot.count):
                offset = slot.offset + index * slot.stride
                glance = bytes(inbox[offset : offset + _HEADER_GLANCE])
                if self._glances.get((partner, kind, index)) == glance:
                    continue
                found = parse_record(bytes(inbox[offset : offset + slot.stride]), kind, index)
                self._glances[partner, kind, index] = glance
                if isinstance(found, Record):
                    self._tell(ev.RecordArrived(partner, found))
                elif isinstance(found, Refusal):
                    self._glances.pop((partner, kind, index))  # perhaps caught in mid-write: look again next time
                    self._tell(ev.RecordRefused(partner, found.reason))

    # sessions

    def _session(self, action: ac.OpenLanes) -> Session:
        """The runtime of a session's epoch, made with its first lanes."""
        key = (action.partner, action.client)
        session = self._sessions.get(key)
        if session is None or session.epoch != action.epoch:
            client, partner = self._clients[action.client], self.partners[action.partner]
            source = client.source(partner)
            streams = tuple(
                Stream(action.needs.depth, source.length if source is not None else 0) for _ in range(action.needs.vis)
            )
            session = Session(
                partner, action.client, action.epoch, action.needs, streams,
                lambda: self._tell(ev.ClientClosed(partner.id, client.name)),
            )  # fmt: skip
            self._sessions[key] = session
        return session

    def _open_lanes(self, action: ac.OpenLanes) -> None:
        self.release()
        key = (action.partner, action.path, action.client)
        client, partner = self._clients[action.client], self.partners[action.partner]
        port = self.ports[self._paths[action.partner, action.path].adapter]
        failed = (action.partner, action.path, action.client, action.epoch)
        if port is None or port.gone:
            self._tell(ev.LanesFailed(*failed, "the adapter is dead"))
            return
        lanes = Lanes(self, port, action.path, self._session(action), client, self._lives[action.partner, action.path])
        fence = (fence_slot(action.partner, action.path), action.fence_epoch)
        try:
            entry = lanes.open(
                action.needs, client.source(partner), client.exposed(partner), fence, lambda: self._rng.getrandbits(24)
            )
        except RDMAError as error:
            self._note_gone(error)
            self._tell(ev.LanesFailed(*failed, str(error)))
            return
        self._lanes[key] = lanes
        self._tell(
            ev.LanesOpened(
                action.partner,
                action.path,
                action.client,
                action.epoch,
                entry.vis,
                entry.rkey,
                entry.address,
                entry.length,
            )
        )

    def _connect_lanes(self, action: ac.ConnectLanes) -> None:
        lanes = self._lanes.get((action.partner, action.path, action.client))
        if lanes is None:
            return
        which = (action.partner, action.path, action.client, action.epoch)
        fence = (fence_slot(action.partner, action.path), lanes.fence_epoch)
        try:
            lanes.connect(action.remote, self._paths[action.partner, action.path].remote, action.mtu, fence)
        except RDMAError as error:
            self._note_gone(error)
            self._tell(ev.LanesFailed(*which, str(error)))
        else:
            self._tell(ev.LanesConnected(*which))

    def _close_lanes(self, action: ac.CloseLanes) -> None:
        lanes = self._lanes.pop((action.partner, action.path, action.client), None)
        if lanes is not None:
            lanes.failed = True
            self._defer(lanes.close)

    def _hold_path(self, action: ac.HoldPath) -> None:
        for (partner, path, _), lanes in list(self._lanes.items()):
            if (partner, path) != (action.partner, action.path):
                continue
            lanes.port.now = self.now
            lanes.port.drain()  # what completed before the loss was noticed needs no replay
            for stream, vi in zip(lanes.session.streams, lanes.vis, strict=True):
                if stream.lane is vi or stream.former is vi:
                    stream.hold()

    def _route(self, action: ac.Route) -> None:
        lanes = self._lanes.get((action.partner, action.path, action.client))
        if lanes is None:
            return
        self._moves.pop((action.partner, action.client, action.vi), None)
        stream = lanes.session.streams[action.vi]
        waiting = len(stream.entries) if stream.lane is None and stream.former is None else 0
        if waiting:
            self._note(
                Kind.REPLAYED,
                action.partner,
                action.client,
                epoch=lanes.session.epoch,
                length=waiting,
                extra=action.path,
            )
        self._post(lanes, lambda: stream.route(lanes.vis[action.vi]))

    def _move(self, action: ac.Move) -> None:
        lanes = self._lanes.get((action.partner, action.path, action.client))
        if lanes is None:
            return
        stream = lanes.session.streams[action.vi]
        self._moves[action.partner, action.client, action.vi] = action.path
        stream.begin_move()
        if stream.drained:
            self._finish_move(lanes.session, action.vi)

    def on_stream_drained(self, lanes: Lanes, vi: int, now: Instant) -> None:
        """LaneOwner."""
        self._finish_move(lanes.session, vi)

    def _finish_move(self, session: Session, vi: int) -> None:
        partner, client = session.partner.id, session.client_key
        path = self._moves.pop((partner, client, vi), None)
        lanes = self._lanes.get((partner, path, client)) if path is not None else None
        if lanes is None or path is None:
            return
        target = lanes.vis[vi]
        self._post(lanes, lambda: session.streams[vi].finish_move(target))
        self._tell(ev.Moved(partner, client, session.epoch, vi, path))

    def _post(self, lanes: Lanes, work: Callable[[], object]) -> None:
        try:
            work()
        except RDMAError as error:
            self._note_gone(error)
            lanes.fail(WCStatus.FATAL_ERR, self.now)

    def on_lane_failed(self, lanes: Lanes, status: WCStatus, now: Instant) -> None:
        """LaneOwner: an error on a virtual interface. One that the partner fenced is the path's end, not its own."""
        session = lanes.session
        partner, slot = session.partner.id, fence_slot(session.partner.id, lanes.path)
        epoch = self._node.fence_epoch(slot)
        if epoch > lanes.fence_epoch:
            self._tell(ev.FencedByPartner(partner, lanes.path, epoch))
            return
        suspected = status in (WCStatus.RETRY_EXC_ERR, WCStatus.FATAL_ERR)
        self._tell(ev.ViFailed(partner, lanes.path, session.client_key, session.epoch, suspected, status.name))

    # alerts

    def _alert_ready(self, action: ac.AlertReady) -> None:
        session = self._sessions[action.partner, action.client]
        assert session.epoch == action.epoch
        self._note(Kind.READY_ALERT, action.partner, action.client, epoch=action.epoch)
        self._log("session.ready", {"partner": action.partner, "client": action.name, "epoch": action.epoch})
        session.alive = True
        client = self._clients[action.client]
        self._call(client, lambda: client.on_ready(session, self.now))
        early, session.early = session.early, []
        for data in early:
            self._call(client, lambda data=data: client.on_message(session, data, self.now))  # type: ignore[misc]

    def _alert_error(self, action: ac.AlertError) -> None:
        session = self._end_session(action.partner, action.client)
        self._note(Kind.ERROR_ALERT, action.partner, action.client, epoch=action.epoch, extra=action.reason)
        self._log(
            "session.error",
            {"partner": action.partner, "client": action.name, "epoch": action.epoch, "reason": action.reason.name},
        )
        client = self._clients[action.client]
        self._call(client, lambda: client.on_error(session, action.reason, self.now))

    def _alert_closed(self, action: ac.AlertClosed) -> None:
        session = self._end_session(action.partner, action.client)
        self._note(Kind.SESSION_CLOSED, action.partner, action.client, epoch=action.epoch, extra=action.reason)
        self._log("session.closed", {"partner": action.partner, "client": action.name, "epoch": action.epoch})
        client = self._clients[action.client]
        self._call(client, lambda: client.on_closed(session, action.reason, self.now))

    def _end_session(self, partner: int, client: int) -> Session:
        session = self._sessions[partner, client]
        session.alive = False
        for stream in session.streams:
            stream.drop()
        return session

    def _call(self, client: Client, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            self.on_client_exception(client.name, error)

    def on_client_exception(self, name: str, error: Exception) -> None:
        """LaneOwner: a callback raised. Counted and logged; a client that goes on so loses its sessions."""
        count = self.client_errors[name] = self.client_errors.get(name, 0) + 1
        self._log("client.exception", {"client": name, "error": repr(error), "count": count})
        if count == EXCEPTIONS_MAX:
            for partner in self.partners:
                self._tell(ev.ClientClosed(partner, name))

    # history

    def _remember_epoch(self, action: ac.RememberEpoch) -> None:
        self._node.raise_session_epoch(action.partner, action.epoch)

    def _tell_partner_status(self, action: ac.TellPartnerStatus) -> None:
        stage, incarnation = Stage(action.stage), action.incarnation
        if action.changed:
            self._note(Kind.PARTNER_STATUS, action.partner, sequence=incarnation, extra=stage)
            fields: dict[str, object] = {"partner": action.partner, "stage": stage.name, "incarnation": incarnation}
            self._log("partner.status", fields)
        status = BootStatus(stage, incarnation, action.progress, action.heartbeat, "")
        partner = self.partners[action.partner]
        for client in self._clients.values():
            self._call(client, lambda client=client: client.on_partner_status(partner, status, self.now))  # type: ignore[misc]

    def _note_step(self, action: ac.NoteStep) -> None:
        self._note(
            Kind.HANDSHAKE_STEP, action.partner, offset=action.path, extra=action.step, sequence=action.incarnation
        )

    def _note_path_up(self, action: ac.NotePathUp) -> None:
        self._note(Kind.PATH_UP, action.partner, extra=action.path)
        self._log("path.up", {"partner": action.partner, "path": action.path})

    def _note_path_down(self, action: ac.NotePathDown) -> None:
        self._note(Kind.PATH_DOWN, action.partner, length=action.reason, extra=action.path)
        self._log("path.down", {"partner": action.partner, "path": action.path, "reason": action.reason.name})

    def _note_path_fenced(self, action: ac.NotePathFenced) -> None:
        self._note(Kind.PATH_FENCED, action.partner, sequence=action.epoch, extra=action.path)
        self._log("path.fenced", {"partner": action.partner, "path": action.path, "epoch": action.epoch})

    def _note_refused(self, action: ac.NoteRefused) -> None:
        fields = {"partner": action.partner, "path": action.path, "reason": action.reason.name, "text": action.text}
        self._log("refused", fields)

    def _note(
        self, kind: Kind, partner: int, client: int = 0, *, epoch: int = 0, sequence: int = 0, offset: int = 0,
        length: int = 0, extra: int = 0,
    ) -> None:  # fmt: skip
        number = self.config.client_ids[self._clients[client].name] if client else 0
        self._history.note(
            self.now,
            kind,
            self.config.node_id,
            partner,
            number,
            self.incarnation,
            epoch,
            sequence,
            offset,
            length,
            0,
            extra,
        )


_EXECUTE: dict[type, Callable[..., None]] = {
    ac.ConnectPeer: Driver._connect_peer,
    ac.DisconnectPeer: Driver._disconnect_peer,
    ac.ReadStatus: Driver._read_status,
    ac.ReadSeen: Driver._read_seen,
    ac.WriteRecord: Driver._write_record,
    ac.ReadInbox: Driver._read_inbox,
    ac.RequestFence: Driver._request_fence,
    ac.OpenLanes: Driver._open_lanes,
    ac.ConnectLanes: Driver._connect_lanes,
    ac.CloseLanes: Driver._close_lanes,
    ac.HoldPath: Driver._hold_path,
    ac.Route: Driver._route,
    ac.Move: Driver._move,
    ac.RememberEpoch: Driver._remember_epoch,
    ac.AlertReady: Driver._alert_ready,
    ac.AlertError: Driver._alert_error,
    ac.AlertClosed: Driver._alert_closed,
    ac.TellPartnerStatus: Driver._tell_partner_status,
    ac.NoteStep: Driver._note_step,
    ac.NotePathUp: Driver._note_path_up,
    ac.NotePathDown: Driver._note_path_down,
    ac.NotePathFenced: Driver._note_path_fenced,
    ac.NoteRefused: Driver._note_refused,
}
