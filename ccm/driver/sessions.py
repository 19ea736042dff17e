"""The driver's part for clients: their sessions' queue pairs, streams and alerts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from ccm import actions as ac
from ccm import events as ev
from ccm.client import Client, Partner, Region, Session
from ccm.driver.loads import LoadMeter
from ccm.driver.wiring import SLOW_NS, Wiring, checked_region
from ccm.history import Kind
from ccm.lanes import REQUEST_MAX_NS, Lanes, PathLife
from ccm.needs import Needs, NeedsError
from ccm.settings import BY_BYTES
from ccm.stream import Stream
from emul.clock import MILLISECOND, Instant, after
from emul.errors import DeviceGone, RDMAError
from emul.node_memory import fence_slot
from emul.vocabulary import WCStatus

OWN_CLIENTS = "ccm.clients."
NOT_MENDABLE = frozenset(
    {WCStatus.RNR_RETRY_EXC_ERR, WCStatus.REM_OP_ERR, WCStatus.REM_INV_REQ_ERR, WCStatus.GENERAL_ERR}
)
"""What the partner's client brings about: it takes no messages, or not such ones; and a message that is lost for good
(GENERAL_ERR, from `find_stuck`). New queue pairs change nothing.
"""
STUCK_LOOK_NS = 250 * MILLISECOND
"""How often requests that don't complete, and messages that were not told, are looked for."""
HOLE_MAX_NS = 2 * REQUEST_MAX_NS
"""How long messages wait for an earlier one: longer than it takes to find one whose completion was lost."""


class SessionDriver:
    """Sessions by (partner, client), their lanes by (partner, path, client)."""

    def __init__(self, wiring: Wiring, rng: random.Random) -> None:
        self._wiring = wiring
        self._rng = rng
        self._sessions: dict[tuple[int, int], Session] = {}
        self._lanes: dict[tuple[int, int, int], Lanes] = {}
        self._lives: dict[tuple[int, int], PathLife] = {}
        """Of the paths that carry virtual interfaces."""
        self._lives_made = 0
        self._stirred: list[PathLife] = []
        """Those of them on which something completed since `tell_life` was last called."""
        self._moves: dict[tuple[int, int, int], int] = {}
        self._stuck_look_at = Instant(0)
        self._loads = LoadMeter() if wiring.config.settings.balance == BY_BYTES else None

    def tell_life(self) -> None:
        """What completed on the paths since the last call, for the manager."""
        if not self._stirred:
            return
        self._stirred.sort(key=_number_of)
        for life in self._stirred:
            if life.at > life.told:
                life.told = life.at
                self._wiring.tell(ev.LifeSeen(life.partner, life.path, life.at))
        self._stirred.clear()

    def tell_loads(self) -> None:
        """How much the virtual interfaces have in flight, now and then, where the manager balances by that."""
        if self._loads is not None:
            for event in self._loads.look(self._sessions.values(), now=self._wiring.now):
                if event.partner in self._wiring.partners:
                    self._wiring.tell(event)

    def find_stuck(self) -> None:
        """Gives up virtual interfaces whose oldest request doesn't complete, or whose messages wait for one that does
        not come: a completion was lost, and nothing later shows that.
        """
        now = self._wiring.now
        if now < self._stuck_look_at:
            return
        self._stuck_look_at = after(now, STUCK_LOOK_NS)
        for lanes in list(self._lanes.values()):
            session = lanes.session
            if lanes.port.gone:
                continue  # its path is lost, and what it held may be closed already
            for vi in lanes.vis:
                if vi.take_silent(now):
                    self._wiring.log("message.untold", {"client": lanes.client.name, "path": lanes.path})
            stuck = any(vi.is_stuck(stream, now) for vi, stream in zip(lanes.vis, session.streams, strict=False))
            hole = any(arrivals.has_hole(now, HOLE_MAX_NS) for arrivals in session.arrivals)
            if stuck or hole:
                self._wiring.log("lanes.stuck", {"client": lanes.client.name, "path": lanes.path})
                lanes.fail(WCStatus.GENERAL_ERR if hole else WCStatus.FATAL_ERR, now)

    def forget(self, partner: int) -> None:
        """A partner that left; its queue pairs are closed already."""
        self._sessions = {key: session for key, session in self._sessions.items() if key[0] != partner}
        self._lives = {key: life for key, life in self._lives.items() if key[0] != partner}
        self._stirred[:] = [life for life in self._stirred if life.partner != partner]
        self._moves = {key: path for key, path in self._moves.items() if key[0] != partner}

    def close(self) -> None:
        """Destroys all queue pairs."""
        for lanes in self._lanes.values():
            for _ in lanes.close():
                pass
        self._lanes.clear()

    def replace_client(self, client: Client) -> None:
        """Its sessions' callbacks go to this object from now on."""
        for (_, _, key), lanes in self._lanes.items():
            if self._wiring.clients[key] is client:
                lanes.adopt(client)

    # queue pairs

    def open_lanes(self, action: ac.OpenLanes) -> None:
        """Queues it."""
        self._wiring.chores.add(self._opening(action), now=self._wiring.now)

    def connect_lanes(self, action: ac.ConnectLanes) -> None:
        """Queues it."""
        self._wiring.chores.add(self._connecting(action), now=self._wiring.now)

    def close_lanes(self, action: ac.CloseLanes) -> None:
        """Nothing that fails on them counts from now on; destroying them may wait."""
        key = (action.partner, action.path, action.client)
        if key in self._lanes:
            self._lanes[key].failed = True
        self._wiring.chores.add(self._closing(key), now=self._wiring.now, put_off=True)

    def _opening(self, action: ac.OpenLanes) -> Iterator[None]:
        wiring, which = self._wiring, (action.partner, action.path, action.client, action.epoch)
        client, partner = wiring.clients[action.client], wiring.partners[action.partner]
        port = wiring.port_of(action.partner, action.path)
        if port is None:
            wiring.tell(ev.LanesFailed(*which, "the adapter is dead", adapter_gone=True))
            return
        regions = wiring.ask(client, lambda: self._regions(client, partner, action.needs.exposed_bytes), None)
        if regions is None:  # without its memory the client gets no session; the path and the others go on
            wiring.tell(ev.LanesFailed(*which, "the client gave no memory that fits"))
            return
        source, exposed = regions
        life = self._life(action.partner, action.path)
        lanes = Lanes(self, port, action.path, self._session(action, source), client, life)
        self._lanes[action.partner, action.path, action.client] = lanes
        fence = (fence_slot(action.partner, action.path), action.fence_epoch)
        try:
            self._reserve(lanes, action.needs)
            yield from lanes.open(action.needs, source, exposed, fence, lambda: self._rng.getrandbits(24))
        except RDMAError as error:
            self._refused(which, error)
            return
        entry = lanes.entry()
        wiring.tell(ev.LanesOpened(*which, entry.vis, entry.rkey, entry.address, entry.length))

    def _life(self, partner: int, path: int) -> PathLife:
        life = self._lives.get((partner, path))
        if life is None:
            self._lives_made += 1
            life = self._lives[partner, path] = PathLife(partner, path, self._lives_made, self._stirred)
        return life

    def _reserve(self, lanes: Lanes, needs: Needs) -> None:
        """Makes room for the completions of what the client needs. Raises RDMAError where the adapter has none."""
        try:
            lanes.reserve(needs)
        except DeviceGone:
            raise
        except RDMAError as error:
            wanted = f"{needs.vis} VIs of depth {needs.depth} are too much for adapter {lanes.port.index}"
            raise RDMAError(error.error_code, f"{wanted}: {error.sentence}") from error

    def _regions(self, client: Client, partner: Partner, exposed_bytes: int) -> tuple[Region | None, Region | None]:
        source = checked_region(client.source(partner), "source")
        exposed = checked_region(client.exposed(partner), "exposed")
        if exposed_bytes != (exposed.length if exposed is not None else 0):
            raise NeedsError(f"{exposed_bytes} exposed bytes were agreed, exposed() gave {exposed}")
        return source, exposed

    def _connecting(self, action: ac.ConnectLanes) -> Iterator[None]:
        wiring, which = self._wiring, (action.partner, action.path, action.client, action.epoch)
        lanes = self._lanes.get((action.partner, action.path, action.client))
        if lanes is None or lanes.session.epoch != action.epoch or lanes.failed:
            return
        fence = (fence_slot(action.partner, action.path), lanes.fence_epoch)
        address = wiring.paths[action.partner, action.path].remote
        try:
            yield from lanes.connect(action.remote, address, action.mtu, fence)
        except RDMAError as error:
            self._refused(which, error)
        else:
            wiring.tell(ev.LanesConnected(*which))

    def _refused(self, which: tuple[int, int, int, int], error: RDMAError) -> None:
        self._wiring.note_gone(error)
        self._wiring.tell(ev.LanesFailed(*which, str(error), adapter_gone=isinstance(error, DeviceGone)))

    def _closing(self, key: tuple[int, int, int]) -> Iterator[None]:
        lanes = self._lanes.pop(key, None)
        if lanes is not None:
            yield from lanes.close()

    def _session(self, action: ac.OpenLanes, source: Region | None) -> Session:
        """The runtime of a session's epoch, made with its first queue pairs."""
        key, wiring = (action.partner, action.client), self._wiring
        session = self._sessions.get(key)
        if session is None or session.epoch != action.epoch:
            client, partner = wiring.clients[action.client], wiring.partners[action.partner]
            source_bytes = source.length if source is not None else 0
            streams = tuple(Stream(action.needs.depth, source_bytes) for _ in range(action.needs.vis))
            closed = ev.ClientClosed(partner.id, client.name)
            session = Session(
                partner, action.client, action.epoch, action.needs, streams, partial(wiring.tell, closed),
                partial(wiring.open_session, client, partner),
            )  # fmt: skip
            self._sessions[key] = session
        return session

    # streams

    def hold_path(self, action: ac.HoldPath) -> None:
        """Posts nothing more there."""
        if action.client:
            epoch = self._sessions[action.partner, action.client].epoch
            self._wiring.note(Kind.VIS_FAILED, action.partner, action.client, epoch=epoch, extra=action.path)
        for (partner, path, client), lanes in list(self._lanes.items()):
            if (partner, path) != (action.partner, action.path) or action.client not in (0, client):
                continue
            lanes.port.now = self._wiring.now
            lanes.port.drain()  # what completed before the loss was noticed needs no replay
            for stream, vi in zip(lanes.session.streams, lanes.vis, strict=False):  # some may not be made yet
                if stream.lane is vi or stream.former is vi:
                    stream.hold()

    def route(self, action: ac.Route) -> None:
        """Posts what is unconfirmed, if its former path was lost, and all that comes."""
        lanes = self._lanes.get((action.partner, action.path, action.client))
        if lanes is None:
            return
        self._moves.pop((action.partner, action.client, action.vi), None)
        stream = lanes.session.streams[action.vi]
        waiting = len(stream.entries) if stream.lane is None and stream.former is None else 0
        if waiting:
            epoch = lanes.session.epoch
            self._wiring.note(
                Kind.REPLAYED, action.partner, action.client, epoch=epoch, length=waiting, extra=action.path
            )
        self._note_route(lanes, action.vi)
        self._post(lanes, lambda: stream.route(lanes.vis[action.vi]))

    def move(self, action: ac.Move) -> None:
        """Waits for the work under way first."""
        lanes = self._lanes.get((action.partner, action.path, action.client))
        if lanes is None:
            return
        stream = lanes.session.streams[action.vi]
        self._moves[action.partner, action.client, action.vi] = action.path
        stream.begin_move()
        if stream.drained:
            self._finish_move(lanes.session, action.vi)

    def _finish_move(self, session: Session, vi: int) -> None:
        partner, client = session.partner.id, session.client_key
        path = self._moves.pop((partner, client, vi), None)
        lanes = self._lanes.get((partner, path, client)) if path is not None else None
        if lanes is None or path is None:
            return
        target = lanes.vis[vi]
        self._note_route(lanes, vi)
        self._post(lanes, lambda: session.streams[vi].finish_move(target))
        self._wiring.tell(ev.Moved(partner, client, session.epoch, vi, path))

    def _note_route(self, lanes: Lanes, vi: int) -> None:
        session = lanes.session
        self._wiring.note(
            Kind.ROUTED, session.partner.id, session.client_key, epoch=session.epoch, offset=vi, extra=lanes.path
        )

    def _post(self, lanes: Lanes, work: Callable[[], object]) -> None:
        try:
            work()
        except RDMAError as error:
            self._wiring.note_gone(error)
            lanes.fail(WCStatus.FATAL_ERR, self._wiring.now)

    # what lanes tell

    def on_stream_drained(self, lanes: Lanes, vi: int, now: Instant) -> None:
        """LaneOwner."""
        self._finish_move(lanes.session, vi)

    def on_lane_failed(self, lanes: Lanes, status: WCStatus, now: Instant) -> None:
        """LaneOwner: an error on a virtual interface. One that the partner fenced is the path's end, not its own."""
        session, wiring = lanes.session, self._wiring
        partner, slot = session.partner.id, fence_slot(session.partner.id, lanes.path)
        epoch = wiring.node.fence_epoch(slot)
        if epoch > lanes.fence_epoch:
            wiring.tell(ev.FencedByPartner(partner, lanes.path, epoch))
            return
        suspected = status in (WCStatus.RETRY_EXC_ERR, WCStatus.FATAL_ERR)
        mendable = status not in NOT_MENDABLE
        key, epoch = session.client_key, session.epoch
        wiring.tell(ev.ViFailed(partner, lanes.path, key, epoch, suspected, status.name, mendable))

    def on_client_exception(self, name: str, error: BaseException) -> None:
        """LaneOwner."""
        self._wiring.on_client_exception(name, error)

    def watched(self, client: Client, callback: Callable[..., None]) -> Callable[..., None]:
        """LaneOwner: the callback, timed where it may be anybody's; the manager's own clients don't block."""
        clock, name = self._wiring.clock, client.name
        if clock is None or type(client).__module__.startswith(OWN_CLIENTS):
            return callback

        def timed(*arguments: object) -> None:
            begun = clock()
            try:
                callback(*arguments)
            finally:
                if clock() - begun >= SLOW_NS:
                    self._wiring.on_slow_client(name, clock() - begun)

        return timed

    # alerts

    def alert_ready(self, action: ac.AlertReady) -> None:
        """History first, then the client, then what its partner sent before it knew."""
        wiring = self._wiring
        session = self._sessions[action.partner, action.client]
        assert session.epoch == action.epoch
        wiring.note(Kind.READY_ALERT, action.partner, action.client, epoch=action.epoch)
        wiring.log("session.ready", {"partner": action.partner, "client": action.name, "epoch": action.epoch})
        session.alive = True
        client = wiring.clients[action.client]
        wiring.call(client, lambda: client.on_ready(session, wiring.now))
        early, session.early = session.early, []
        for data in early:
            wiring.call(client, partial(client.on_message, session, data, wiring.now))

    def alert_error(self, action: ac.AlertError) -> None:
        """The epoch is broken."""
        session, client = self._end_session(action.partner, action.client)
        self._tell_end(Kind.ERROR_ALERT, "session.error", action)
        self._wiring.call(client, lambda: client.on_error(session, action.reason, self._wiring.now))

    def alert_closed(self, action: ac.AlertClosed) -> None:
        """The epoch is closed."""
        session, client = self._end_session(action.partner, action.client)
        self._tell_end(Kind.SESSION_CLOSED, "session.closed", action)
        self._wiring.call(client, lambda: client.on_closed(session, action.reason, self._wiring.now))

    def _end_session(self, partner: int, client: int) -> tuple[Session, Client]:
        session = self._sessions[partner, client]
        session.alive = False
        for stream in session.streams:
            stream.drop()
        return session, self._wiring.clients[client]

    def _tell_end(self, kind: Kind, word: str, action: ac.AlertError | ac.AlertClosed) -> None:
        partner, epoch, reason = action.partner, action.epoch, action.reason
        self._wiring.note(kind, partner, action.client, epoch=epoch, extra=reason)
        fields: dict[str, object] = {"partner": partner, "client": action.name, "epoch": epoch, "reason": reason.name}
        self._wiring.log(word, fields)


def _number_of(life: PathLife) -> int:
    return life.number
