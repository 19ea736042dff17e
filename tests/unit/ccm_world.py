"""Two or more managers back to back on a virtual clock: a helper of the ccm tests.

Executes the managers' actions on bytearrays: inboxes, outboxes, status pages and fence tables of each node.
Operations take a seeded random time, so that different seeds give different interleavings. Cables can be cut (with a
carrier event) or made silent, hosts crash and boot. Every action is kept in `log` with its time and node.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ccm import actions as ac
from ccm import events as ev
from ccm.exchange import (
    AREA_BYTES,
    SLOTS,
    Record,
    RecordKind,
    Refusal,
    Sessions,
    ViAddress,
    emit_record,
    parse_record,
    slot_range,
)
from ccm.manager import Manager
from ccm.needs import Needs
from ccm.peerinfo import OWN_VERSIONS
from ccm.peering import PartnerConfig
from ccm.session import Phase
from emul.clock import MILLISECOND, SECOND, Instant

RETRY_NS = 17 * MILLISECOND
TRANSMISSIONS = 8
EVENTS_MAX = 400_000


@dataclass
class Hardware:
    """What outlives the host of a node."""

    node: int
    stage: int = 1
    incarnation: int = 0
    heartbeat: int = 0
    epochs: dict[int, int] = field(default_factory=dict)
    fences: dict[tuple[int, int], int] = field(default_factory=dict)
    inboxes: dict[int, bytearray] = field(default_factory=dict)
    outboxes: dict[int, bytearray] = field(default_factory=dict)
    lanes: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    """(partner, path, client) -> (epoch, fence epoch) of queue pairs that exist."""
    manager: Manager | None = None
    life: int = 0
    """Counts boots and crashes: what was scheduled for a former life is dropped."""
    connections: dict[tuple[int, int], int] = field(default_factory=dict)
    accepted: dict[tuple[int, int], int] = field(default_factory=dict)
    """(caller, path) -> the connection that the firmware has accepted last; requests of older ones are dropped."""


class World:
    """All nodes are partners of each other over `paths` cables each."""

    def __init__(
        self, seed: int = 1, nodes: tuple[int, ...] = (1, 2), paths: int = 2, needs: dict[str, Needs] | None = None
    ):
        self.random = random.Random(seed)
        self.seed = seed
        self.now = Instant(1_000 * MILLISECOND)
        self.paths = paths
        self.needs = needs if needs is not None else {"mirror": Needs(), "echo": Needs(message_bytes=512)}
        self.cut: set[tuple[int, int, int]] = set()
        """(lower node, higher node, path) without carrier."""
        self.silent: set[tuple[int, int, int]] = set()
        self.log: list[tuple[int, int, ac.Action]] = []
        self.versions: dict[int, tuple[int, int]] = {}
        """Node -> range of protocol versions, where it isn't the usual one."""
        self.hardware = {node: Hardware(node) for node in nodes}
        self.strangers: set[tuple[int, int]] = set()
        """(node, other): `other` is no partner of `node` (any more)."""
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._qp_num = 16
        self._timers: dict[int, int] = {}

    # running

    def boot(self, node: int) -> None:
        """A new incarnation of the host attaches: queue pairs of the former one are gone."""
        hardware = self.hardware[node]
        hardware.life += 1
        hardware.incarnation += 1
        hardware.stage = 2
        hardware.lanes.clear()
        hardware.connections.clear()
        self._timers.pop(node, None)  # a timer of the former life that is due at the same moment never comes
        partners = [
            PartnerConfig(other, f"n{other}", tuple((path, path) for path in range(self.paths)))
            for other in self.hardware
            if other != node and (node, other) not in self.strangers
        ]
        hardware.manager = Manager(
            node, f"n{node}", hardware.incarnation, partners, lambda p: hardware.epochs.get(p, 0),
            self.versions.get(node, OWN_VERSIONS), now=self.now,
        )
        for path in range(self.paths):
            if any(self.is_cut(node, partner.node, path) for partner in partners):
                self.give(node, ev.CarrierLost(path))
        for partner in partners:
            for name, needs in self.needs.items():
                self.give(node, ev.ClientOpened(partner.node, name, needs))
        self._arm(node)

    def crash(self, node: int) -> None:
        """The host is gone; its hardware answers."""
        self.hardware[node].life += 1
        self.hardware[node].manager = None

    def remove(self, node: int, other: int) -> None:
        """`node` is told that `other` is no partner any more."""
        self.strangers.add((node, other))
        manager = self.hardware[node].manager
        if manager is not None and other in manager.peerings:
            self.give(node, ev.PartnerRemoved(other))

    def add(self, node: int, other: int) -> None:
        """`node` is told that `other` is a partner, and its clients open their sessions; not while it is leaving."""
        me = self.hardware[node]
        if me.manager is not None and other in me.manager.peerings:
            return
        self.strangers.discard((node, other))
        if me.manager is None:
            return
        paths = tuple((path, path) for path in range(self.paths))
        self.give(node, ev.PartnerAdded(other, f"n{other}", paths, me.epochs.get(other, 0)))
        for name, needs in self.needs.items():
            self.give(node, ev.ClientOpened(other, name, needs))

    def give(self, node: int, event: ev.Event) -> None:
        """Hands an event to a manager and executes what it wants done."""
        manager = self.hardware[node].manager
        if manager is not None:
            self._execute(node, manager.handle(event, now=self.now))
            self._arm(node)

    def run(self, for_ns: int = SECOND, until: Callable[[], bool] | None = None) -> bool:
        """Runs the world; whether `until` came true (at once when it does)."""
        end = self.now + for_ns
        for _ in range(EVENTS_MAX):
            if until is not None and until():
                return True
            if not self._heap or self._heap[0][0] > end:
                self.now = Instant(end)
                return until is not None and until()
            at, _, call = heapq.heappop(self._heap)
            self.now = Instant(max(at, self.now))
            call()
        raise AssertionError(f"seed {self.seed}: the world does not come to rest")

    def later(self, delay_ns: int, call: Callable[[], None]) -> None:
        """Schedules a call."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_ns, self._count, call))

    def _arm(self, node: int) -> None:
        manager = self.hardware[node].manager
        deadline = manager.next_deadline() if manager is not None else None
        if deadline is None or self._timers.get(node) == deadline:
            return
        self._timers[node] = deadline
        life = self.hardware[node].life
        self.later(max(0, deadline - self.now), lambda: self._tick(node, deadline, life))

    def _tick(self, node: int, deadline: int, life: int) -> None:
        hardware = self.hardware[node]
        if hardware.manager is None or hardware.life != life or self._timers.get(node) != deadline:
            return
        self._timers.pop(node, None)
        hardware.heartbeat += 1
        self._execute(node, hardware.manager.on_time(now=self.now))
        self._arm(node)

    # cables

    def _cable(self, a: int, b: int, path: int) -> tuple[int, int, int]:
        return min(a, b), max(a, b), path

    def is_cut(self, a: int, b: int, path: int) -> bool:
        """Whether the cable has no carrier."""
        return self._cable(a, b, path) in self.cut

    def works(self, a: int, b: int, path: int) -> bool:
        """Whether frames pass."""
        return not self.is_cut(a, b, path) and self._cable(a, b, path) not in self.silent

    def cut_cable(self, a: int, b: int, path: int) -> None:
        """Carrier lost on both ends."""
        self.cut.add(self._cable(a, b, path))
        for node in (a, b):
            self.give(node, ev.CarrierLost(path))

    def restore_cable(self, a: int, b: int, path: int) -> None:
        """The carrier is back."""
        self.cut.discard(self._cable(a, b, path))
        for node in (a, b):
            self.give(node, ev.CarrierFound(path))

    # what tests ask

    def session(self, node: int, partner: int, name: str):
        """A session of a manager."""
        manager = self.hardware[node].manager
        assert manager is not None
        return next(s for s in manager.peerings[partner].sessions.sessions.values() if s.name == name)

    def all_ready(self) -> bool:
        """Whether every session of every manager is ready, with equal epochs on both sides."""
        for node, hardware in self.hardware.items():
            if hardware.manager is None:
                return False
            for partner, peering in hardware.manager.peerings.items():
                for name in self.needs:
                    mine = next((s for s in peering.sessions.sessions.values() if s.name == name), None)
                    if mine is None or not mine.alerted:
                        return False
                    if self.hardware[partner].manager is None or self.session(partner, node, name).epoch != mine.epoch:
                        return False
        return True

    def paths_up(self) -> bool:
        """Whether every path is up on both sides."""
        return all(
            path.state.name == "UP"
            for hardware in self.hardware.values()
            if hardware.manager is not None
            for peering in hardware.manager.peerings.values()
            for path in peering.paths.paths
        )

    def describe(self) -> dict[int, object]:
        """What each manager says of itself, for a failing test."""
        return {node: hw.manager.status() if hw.manager else None for node, hw in self.hardware.items()}

    def actions(self, node: int, *kinds: type) -> list[ac.Action]:
        """What a node's manager wanted done, of some kinds."""
        return [action for _, who, action in self.log if who == node and isinstance(action, kinds)]

    # executing

    def _execute(self, node: int, actions: list[ac.Action]) -> None:
        for action in actions:
            self.log.append((self.now, node, action))
            method = getattr(self, "_do_" + type(action).__name__, None)
            if method is not None:
                method(self.hardware[node], action)

    def _operate(self, me: Hardware, partner: int, path: int, work: Callable[[], ev.Event | None]) -> None:
        """A request on the well-known connection: `work` at the partner, its event back here, or PeerLost."""
        life, connection = me.life, me.connections.get((partner, path))

        def current() -> bool:
            return me.life == life and me.connections.get((partner, path)) == connection

        def arrive(attempt: int) -> None:
            ended = self.hardware[partner].accepted.get((me.node, path)) != connection
            if connection is not None and not ended and self.works(me.node, partner, path):
                event = work()  # a repetition does it again: reads and writes of state don't mind
                self.later(self._delay(), lambda: answer(event, attempt))
            else:
                again(attempt)

        def answer(event: ev.Event | None, attempt: int) -> None:
            if not self.works(me.node, partner, path):
                again(attempt)
            elif current() and event is not None:
                self.give(me.node, event)

        def again(attempt: int) -> None:
            if attempt < TRANSMISSIONS:
                self.later(RETRY_NS, lambda: arrive(attempt + 1))
            elif current():
                self.give(me.node, ev.PeerLost(partner, path, "retries exhausted"))

        self.later(self._delay(), lambda: arrive(1))

    def _delay(self) -> int:
        return self.random.randint(5_000, 400_000)

    def _do_ConnectPeer(self, me: Hardware, action: ac.ConnectPeer) -> None:
        partner, path, life = action.partner, action.path, me.life
        self._count += 1
        me.connections[partner, path] = connection = self._count

        def answer() -> None:
            if (
                me.life == life
                and me.connections.get((partner, path)) == connection
                and self.works(me.node, partner, path)
            ):
                self.hardware[partner].accepted[me.node, path] = connection
                self.give(me.node, ev.PeerConnected(partner, path, me.fences.get((partner, path), 0), 3))

        self.later(self._delay(), answer)

    def _do_ForgetPartner(self, me: Hardware, action: ac.ForgetPartner) -> None:
        held = [key for key in (*me.lanes, *me.connections) if key[0] == action.partner]
        assert not held, f"seed {self.seed}: node {me.node} forgets {action.partner} and holds {held}"
        me.outboxes.pop(action.partner, None)

    def _do_DisconnectPeer(self, me: Hardware, action: ac.DisconnectPeer) -> None:
        me.connections.pop((action.partner, action.path), None)

    def _do_ReadStatus(self, me: Hardware, action: ac.ReadStatus) -> None:
        def work() -> ev.Event:
            other = self.hardware[action.partner]
            return ev.StatusRead(action.partner, action.path, other.stage, other.incarnation, 0, other.heartbeat)

        self._operate(me, action.partner, action.path, work)

    def _do_ReadSeen(self, me: Hardware, action: ac.ReadSeen) -> None:
        def work() -> ev.Event:
            outbox = self._box(self.hardware[action.partner].outboxes, me.node)
            offset, size = slot_range(RecordKind.SEEN, action.path)
            found = parse_record(bytes(outbox[offset : offset + size]), RecordKind.SEEN, action.path)
            return ev.SeenRead(action.partner, action.path, found if isinstance(found, Record) else None)

        self._operate(me, action.partner, action.path, work)

    def _do_WriteRecord(self, me: Hardware, action: ac.WriteRecord) -> None:
        record = action.record
        data = emit_record(record)
        offset, _ = slot_range(record.kind, record.index)
        self._box(me.outboxes, action.partner)[offset : offset + len(data)] = data

        def work() -> ev.Event:
            other = self.hardware[action.partner]
            self._box(other.inboxes, me.node)[offset : offset + len(data)] = data
            life = other.life
            self.later(self._delay(), lambda: self._scan(other, me.node, record.kind, record.index, life))
            return ev.RecordWritten(action.partner, action.path, record.kind, record.index, record.sequence)

        self._operate(me, action.partner, action.path, work)

    def _scan(self, me: Hardware, partner: int, kind: RecordKind, index: int, life: int) -> None:
        offset, size = slot_range(kind, index)
        found = parse_record(bytes(self._box(me.inboxes, partner)[offset : offset + size]), kind, index)
        if me.life != life or found is None or me.manager is None or not me.manager.knows(partner):
            return  # as the driver, which looks into the inboxes of its partners alone
        if isinstance(found, Refusal):
            self.give(me.node, ev.RecordRefused(partner, found.reason))
        else:
            self.give(me.node, ev.RecordArrived(partner, found))

    def _do_ReadInbox(self, me: Hardware, action: ac.ReadInbox) -> None:
        life = me.life
        for kind, slot in SLOTS.items():
            for index in range(slot.count):
                self.later(0, lambda kind=kind, index=index: self._scan(me, action.partner, kind, index, life))

    def _do_RequestFence(self, me: Hardware, action: ac.RequestFence) -> None:
        def work() -> ev.Event:
            other = self.hardware[action.partner]
            former = other.fences.get((me.node, action.path), 0)
            other.fences[me.node, action.path] = max(former, action.epoch)
            if action.epoch > former:
                life = other.life
                self.later(
                    self._delay(),
                    lambda: (
                        self.give(other.node, ev.FencedByPartner(me.node, action.path, action.epoch))
                        if other.life == life and other.manager is not None and other.manager.knows(me.node)
                        else None
                    ),
                )
            return ev.FenceAnswered(action.partner, action.path, action.number)

        self._operate(me, action.partner, action.over, work)

    def _do_OpenLanes(self, me: Hardware, action: ac.OpenLanes) -> None:
        key = (action.partner, action.path, action.client)
        assert key not in me.lanes, f"seed {self.seed}: lanes {key} opened twice"
        me.lanes[key] = (action.epoch, action.fence_epoch)
        self._qp_num += action.needs.vis
        vis = tuple(ViAddress(self._qp_num + vi, 7) for vi in range(action.needs.vis))
        event = ev.LanesOpened(action.partner, action.path, action.client, action.epoch, vis, 0, 0, 0)
        self._soon(me, event)

    def _do_ConnectLanes(self, me: Hardware, action: ac.ConnectLanes) -> None:
        self._soon(me, ev.LanesConnected(action.partner, action.path, action.client, action.epoch))

    def _do_CloseLanes(self, me: Hardware, action: ac.CloseLanes) -> None:
        del me.lanes[action.partner, action.path, action.client]

    def _do_Move(self, me: Hardware, action: ac.Move) -> None:
        assert me.manager is not None
        epoch = me.manager.peerings[action.partner].sessions.sessions[action.client].epoch
        self._soon(me, ev.Moved(action.partner, action.client, epoch, action.vi, action.path))

    def _do_RememberEpoch(self, me: Hardware, action: ac.RememberEpoch) -> None:
        assert action.epoch > me.epochs.get(action.partner, 0), f"seed {self.seed}: epoch falls"
        me.epochs[action.partner] = action.epoch

    def _soon(self, me: Hardware, event: ev.Event) -> None:
        life = me.life
        self.later(20_000, lambda: self.give(me.node, event) if me.life == life else None)

    def _box(self, boxes: dict[int, bytearray], partner: int) -> bytearray:
        return boxes.setdefault(partner, bytearray(AREA_BYTES))


def check_alerts(world: World) -> None:
    """Exactly one ready alert for each client, side and epoch; errors once, after their ready and before the next."""
    open_epoch: dict[tuple[int, int, int], int] = {}
    last_epoch: dict[tuple[int, int, int], int] = {}
    told_ready: set[tuple[int, int, int, int]] = set()
    """(node that told, partner, client, epoch)."""
    for at, node, action in world.log:
        if isinstance(action, ac.WriteRecord) and isinstance(action.record.body, Sessions):
            told_ready |= {
                (node, action.partner, entry.client, entry.epoch)
                for entry in action.record.body.entries
                if entry.phase == Phase.READY
            }
        elif isinstance(action, ac.AlertReady):
            key = (node, action.partner, action.client)
            for side in ((node, action.partner), (action.partner, node)):
                told = (*side, action.client, action.epoch) in told_ready
                assert told, f"seed {world.seed}: ready alert on {node} before {side[0]} told that it is ready"
            assert action.epoch > last_epoch.get(key, 0), f"seed {world.seed}: ready again for {action.epoch} at {at}"
            last_epoch[key] = open_epoch[key] = action.epoch
        elif isinstance(action, ac.AlertError | ac.AlertClosed):
            key = (node, action.partner, action.client)
            assert open_epoch.pop(key, None) == action.epoch, (
                f"seed {world.seed}: alert for {action} without ready at {at}"
            )
