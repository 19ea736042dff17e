"""Carries out what the manager wants with the verbs, and turns what happens into the manager's events.

With its parts (`peers`, `sessions`, `notes`) the only part of `ccm` that touches adapters and clients. One thread.
Work of clients does not pass through the manager: sessions post on their lanes directly, and the manager learns that a
path lives. Slow verbs are chores: one of them at most comes between two looks at completions, so that making or giving
back a path's queue pairs doesn't hold up the work on another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ccm import actions as ac
from ccm import events as ev
from ccm.adapter_port import AdapterPort
from ccm.client import Client, Partner
from ccm.driver.notes import Notes
from ccm.driver.peers import PeerDriver
from ccm.driver.sessions import SessionDriver
from ccm.driver.timed import TimedClients
from ccm.driver.wiring import DriverConfig, Log, PathConfig, Wiring
from ccm.history import HistoryWriter
from ccm.journal import JournalledManager
from ccm.manager import Manager
from ccm.needs import client_key
from ccm.peering import PartnerConfig
from ccm.session import SessionState
from emul.clock import MILLISECOND, Instant, earliest
from emul.errors import DeviceGone
from emul.node_memory import PATHS_MAX, NodeMemory
from emul.verbs import Context
from emul.vocabulary import AsyncEvent, EventType

EVENTS_PER_TURN_MAX = 10_000
"""More follow-up events than this in one turn is a loop of ours."""
REOPEN_INTERVAL_NS = 100 * MILLISECOND
"""How often a dead adapter is tried again."""


class Driver:
    """Executes one manager's actions.

    `log` takes a word and fields for each thing worth a line. `reopen` gives a new way to an adapter that died. `clock`
    is read in the midst of long turns, where time passes by itself; the simulator's doesn't. `journal` takes the lines
    of the manager's journal.
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
        journal: Callable[[str], None] | None = None,
    ) -> None:
        self._wiring = wiring = Wiring(config, incarnation, node_memory, history, clients, log, now=now, clock=clock)
        wiring.ports = [None] * len(contexts)
        rng = random.Random(seed ^ (incarnation << 32))
        self._peers = PeerDriver(wiring, rng)
        self._sessions = SessionDriver(wiring, rng)
        self._execute_one = _dispatch(self._peers, self._sessions, Notes(wiring))
        self._execute_one[ac.ForgetPartner] = self._forget_partner
        self._timed = TimedClients(wiring, clients)
        self._contexts = list(contexts)
        self._reopen = reopen if reopen is not None else self._contexts.__getitem__
        self._reopen_at: Instant | None = None
        self._clock = clock
        self._carrier = [True] * len(contexts)
        self._opened = [False] * len(contexts)
        partners = [
            PartnerConfig(node, name, tuple((path.index, path.adapter) for path in paths))
            for node, (name, paths) in config.partners.items()
        ]
        known_epoch = node_memory.session_epoch
        who = (config.node_id, config.name, incarnation, partners, known_epoch)
        self.manager = (
            Manager(*who, config.versions, config.settings, now=now)
            if journal is None
            else JournalledManager(*who, config.versions, config.settings, now=now, write=journal)
        )

    # turns

    def start(self, now: Instant) -> None:
        """Opens the adapters and looks at their carriers; the first attempts to connect follow with the timers."""
        self._wiring.now = now
        for index in range(len(self._contexts)):
            self._open_port(index)
        self._peers.clear_outboxes()
        self._pump()

    def wake(self, index: int, now: Instant) -> bool:
        """Adapter `index` has completions; whether the manager had anything to do with them."""
        self._wiring.now = now
        port = self._wiring.ports[index]
        if port is not None:
            port.wake(now)
        if not self._wiring.events:
            return False
        self._pump()
        return True

    def take_events(self, now: Instant) -> None:
        """Looks for asynchronous and connection events of all adapters."""
        self._wiring.now = now
        self._gather()
        self._pump()

    def on_time(self, now: Instant) -> None:
        """Timers of the manager and the driver, and a step of the chores."""
        wiring = self._wiring
        wiring.set_now(now if self._clock is None else Instant(self._clock()))
        for port in wiring.ports:
            if port is not None and not port.gone:
                port.drain()  # what has come counts before anything is found late
        self._sessions.tell_life()
        self._sessions.find_stuck()
        self._sessions.tell_loads()
        if self._reopen_at is not None and now >= self._reopen_at:
            self._reopen_ports()
        self.take_events(wiring.now)
        self._execute(self.manager.on_time(now=wiring.now))
        wiring.chores.step(now=wiring.now)
        self._pump()

    def next_deadline(self) -> Instant | None:
        """When `on_time` is due."""
        return earliest(
            self.manager.next_deadline(), self._reopen_at, self._wiring.chores.deadline(now=self._wiring.now)
        )

    # clients

    def open_clients(self, now: Instant) -> None:
        """Asks each client what it needs of each partner, and opens its sessions."""
        for client in self._wiring.clients.values():
            try:
                self.open_client(client, now)
            except (Exception, SystemExit) as error:  # one client's mistake is not the others'
                self._wiring.on_client_exception(client.name, error)
                self._pump()

    def open_client(self, client: Client, now: Instant, partner: int | None = None) -> None:
        """(Re)opens one client's sessions, or the one with `partner`. Raises NeedsError for needs that no session can
        give.
        """
        self._wiring.set_now(now)
        for each in self._wiring.partners.values():
            if partner in (None, each.id):
                self._wiring.open_session(client, each)
        self._pump()

    def clients_on_time(self, now: Instant) -> None:
        """Runs the timers of clients that are due."""
        self._timed.run(now)

    def clients_deadline(self) -> Instant | None:
        """The earliest of them."""
        return self._timed.deadline()

    def close_client(self, client: Client, now: Instant, partner: int | None = None) -> None:
        """Orderly close of a client's sessions, or of the one with `partner`."""
        self._wiring.set_now(now)
        for number in self._wiring.partners if partner is None else (partner,):
            self._wiring.tell(ev.ClientClosed(number, client.name))
        self._pump()

    def call(self, client: Client, callback: Callable[[], None]) -> None:
        """Calls a client; what it raises is noted and goes no further."""
        self._wiring.call(client, callback)

    def replace_client(self, client: Client) -> None:
        """Another object takes the place of the client of that name, and gets its callbacks from now on."""
        clients = self._wiring.clients
        clients[client_key(client.name)] = client
        self._sessions.replace_client(client)
        self._timed.adopt(list(clients.values()))
        self._wiring.client_errors.pop(client.name, None)

    def close_all(self, now: Instant) -> None:
        """Orderly close of every session."""
        self._wiring.set_now(now)
        for client in self._wiring.clients.values():
            for partner in self._wiring.partners:
                self._wiring.tell(ev.ClientClosed(partner, client.name))
        self._pump()

    def avoid_path(self, partner: int, path: int, now: Instant, *, avoided: bool) -> None:
        """Moves all work away from a path while there is another, or lets it come back."""
        self._wiring.set_now(now)
        self._wiring.tell(ev.PathAvoided(partner, path, avoided))
        self._pump()

    def add_partner(self, number: int, name: str, paths: Sequence[PathConfig], now: Instant, *, opened: bool) -> None:
        """The cluster has a new member; `opened`: the clients are open, and get their sessions with it."""
        wiring = self._wiring
        wiring.set_now(now)
        wiring.add_partner(number, name, paths)
        numbers = tuple((path.index, path.adapter) for path in paths)
        wiring.tell(ev.PartnerAdded(number, name, numbers, wiring.node.session_epoch(number)))
        wiring.log("partner.added", {"partner": number})
        self._pump()
        for client in wiring.clients.values() if opened else ():
            try:
                self.open_client(client, now, number)
            except (Exception, SystemExit) as error:  # one client's mistake is not the others'
                wiring.on_client_exception(client.name, error)
                self._pump()

    def remove_partner(self, number: int, now: Instant) -> None:
        """A member leaves: its sessions are closed in order, then everything that was held for it is given back."""
        self._wiring.set_now(now)
        self._wiring.tell(ev.PartnerRemoved(number))
        self._pump()

    def _forget_partner(self, action: ac.ForgetPartner) -> None:
        self._wiring.chores.add(self._forgetting(action.partner), now=self._wiring.now, put_off=True)

    def _forgetting(self, partner: int) -> Iterator[None]:
        yield from self._peers.forget(partner)
        self._sessions.forget(partner)
        self._wiring.log("partner.removed", {"partner": partner})
        self._wiring.remove_partner(partner)

    def has_sessions(self) -> bool:
        """Whether there are sessions that are not closed."""
        return any(
            session.state is not SessionState.CLOSED
            for peering in self.manager.peerings.values()
            for session in peering.sessions.sessions.values()
        )

    def release(self) -> None:
        """Carries out what was put off."""
        self._wiring.chores.finish()

    def shut_down(self, now: Instant) -> None:
        """Gives everything back, well-known connections included."""
        self._wiring.now = now
        self.release()
        self._sessions.close()
        self._peers.close()

    # looking

    @property
    def ports(self) -> list[AdapterPort | None]:
        """The adapters; None for one that never answered."""
        return self._wiring.ports

    @property
    def partners(self) -> dict[int, Partner]:
        """By node id."""
        return self._wiring.partners

    @property
    def client_errors(self) -> dict[str, dict[str, object]]:
        """How often each client's callbacks raised, and what the last time."""
        wiring = self._wiring
        counts, last = wiring.client_errors, wiring.last_errors
        return {name: {"count": counts[name], "last": last[name]} for name in counts}

    def counters(self) -> list[dict[str, object]]:
        """State and counters of each adapter."""
        found: list[dict[str, object]] = []
        for index, port in enumerate(self._wiring.ports):
            if port is None or port.gone:
                found.append({"index": index, "gone": True})
                continue
            counters: dict[str, int] = {}
            port.attempt(partial(_copy, port.context.counters, counters))
            found.append({"index": index, "gone": port.gone, "carrier": self._carrier[index], "counters": counters})
        return found

    def resources(self) -> list[dict[str, int]]:
        """Verbs resources that this host holds in each adapter."""
        found: list[dict[str, int]] = []
        for port in self._wiring.ports:
            held: dict[str, int] = {}
            if port is not None and not port.gone:
                port.attempt(partial(_copy, port.context.resources, held))
            found.append(held)
        return found

    # adapters

    def _open_port(self, index: int) -> None:
        wiring = self._wiring
        try:
            if self._opened[index]:
                self._contexts[index] = self._reopen(index)
            self._opened[index] = True
            port = AdapterPort(index, self._contexts[index], wiring.incarnation)
        except (DeviceGone, OSError) as error:
            wiring.log("adapter.gone", {"adapter": index, "error": str(error)})
            self._lose_port(index)
            return
        wiring.ports[index] = port
        port.now = wiring.now
        self._set_carrier(index, port.had_carrier)

    def _lose_port(self, index: int) -> None:
        """The adapter's process is dead: its paths have no carrier until another one answers."""
        port = self._wiring.ports[index]
        if port is not None:
            port.gone = port.let_go = True
        self._reopen_at = Instant(self._wiring.now + REOPEN_INTERVAL_NS)
        self._set_carrier(index, False)

    def _reopen_ports(self) -> None:
        self._reopen_at = None
        self.release()
        ports = self._wiring.ports
        for index, port in enumerate(ports):
            if port is None or port.gone:
                self._peers.forget_adapter(index)
                self._open_port(index)
                if ports[index] is not port:
                    self._tell_fences()

    def _tell_fences(self) -> None:
        """The fences that stand: an adapter that was out of reach may have raised one, and could tell nobody."""
        wiring = self._wiring
        for partner, peering in self.manager.peerings.items():
            for path in peering.paths.paths:
                epoch = wiring.node.fence_epoch(partner * PATHS_MAX + path.index)
                if epoch:
                    wiring.tell(ev.FencedByPartner(partner, path.index, epoch))

    def _set_carrier(self, index: int, up: bool) -> None:
        if up != self._carrier[index]:
            self._carrier[index] = up
            self._wiring.tell(ev.CarrierFound(index) if up else ev.CarrierLost(index))

    def _gather(self) -> None:
        written: dict[int, None] = {}
        for index, port in enumerate(self._wiring.ports):
            if port is None or port.gone:
                if self._reopen_at is None or (port is not None and not port.let_go):
                    self._lose_port(index)
                continue
            for event in port.context.get_async_events():
                if event.event_type is EventType.EXCHANGE_WRITTEN:
                    written[event.element] = None
                else:
                    self._on_async(index, event)
            for cm_event in port.context.get_cm_events():
                self._peers.on_cm_event(index, cm_event)
        for partner in written:
            self._peers.scan(partner)

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
            if partner in self._wiring.partners:
                epoch = self._wiring.node.fence_epoch(event.element)
                self._wiring.tell(ev.FencedByPartner(partner, path, epoch))
        elif kind is EventType.IDENTITY_REFUSED:
            partner, path = divmod(event.element, PATHS_MAX)
            if partner in self._wiring.partners:
                self._wiring.tell(ev.DoubleRefused(partner, path))
        elif kind is EventType.VERSION_REFUSED:
            partner, path = divmod(event.element, PATHS_MAX)
            if partner in self._wiring.partners:
                self._wiring.tell(ev.VersionRefused(partner, path))
        elif kind is EventType.CQ_ERR:
            # Nothing more will ever complete there, and all queue pairs to come would use it too.
            self._wiring.log("cq.lost", {"adapter": index})
            self._lose_port(index)

    # events to the manager, its actions to the parts

    def _pump(self) -> None:
        wiring = self._wiring
        if not wiring.events and not wiring.chores:
            return  # no verb was used that could have brought an event along
        for _ in range(EVENTS_PER_TURN_MAX):
            if not wiring.events:
                self._gather()
                if not wiring.events:
                    return
            if self._clock is not None:
                wiring.set_now(Instant(self._clock()))  # the verbs of the event before may have taken a while
            event = wiring.events.popleft()
            self._execute(self.manager.handle(event, now=wiring.now))
        raise AssertionError(f"{EVENTS_PER_TURN_MAX} events in one turn, the last {event}")

    def _execute(self, actions: list[ac.Action]) -> None:
        execute = self._execute_one
        for action in actions:
            execute[type(action)](action)


def _copy(verb: Callable[[], dict[str, int]], into: dict[str, int]) -> None:
    into.update(verb())


def _dispatch(peers: PeerDriver, sessions: SessionDriver, notes: Notes) -> dict[type, Callable[[Any], None]]:
    """Who carries out which action."""
    return {
        ac.ConnectPeer: peers.connect_peer,
        ac.ProbePath: peers.probe_path,
        ac.DisconnectPeer: peers.disconnect_peer,
        ac.ReadStatus: peers.read_status,
        ac.ReadSeen: peers.read_seen,
        ac.WriteRecord: peers.write_record,
        ac.ReadInbox: peers.read_inbox,
        ac.RequestFence: peers.request_fence,
        ac.OpenLanes: sessions.open_lanes,
        ac.ConnectLanes: sessions.connect_lanes,
        ac.CloseLanes: sessions.close_lanes,
        ac.HoldPath: sessions.hold_path,
        ac.Route: sessions.route,
        ac.Move: sessions.move,
        ac.AlertReady: sessions.alert_ready,
        ac.AlertError: sessions.alert_error,
        ac.AlertClosed: sessions.alert_closed,
        ac.RememberEpoch: notes.remember_epoch,
        ac.TellPartnerStatus: notes.tell_partner_status,
        ac.NoteStep: notes.step,
        ac.NotePathUp: notes.path_up,
        ac.NotePathDown: notes.path_down,
        ac.NotePathFenced: notes.path_fenced,
        ac.NoteRefused: notes.refused,
    }
