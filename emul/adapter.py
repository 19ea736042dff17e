"""The interconnect adapter: frames in, frames out, doorbells and time, without any I/O (H1).

Takes a frame apart as far as its queue pair, hands it there, and collects what all queue pairs, the connection machine
and the neighbours want to send. Pulled by whoever drives it: the adapter process on a real port, the simulator, a test.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from errno import EINVAL
from typing import Final

from emul.clock import Instant, earliest
from emul.cm_machine import ConnectionMachine
from emul.congestion import CNP_RESERVED, CNP_TRAFFIC_CLASS, cnp_bth
from emul.counters import port_counters, with_known_names
from emul.errors import RDMAError
from emul.firmware import FIRMWARE_ACCESS, Firmware, FirmwareLink, FirmwareSink, Identity
from emul.flows import flow_of, flow_to, source_port
from emul.hardware_faults import HardwareFaults, Report
from emul.host_context import HostContext, Reply, Request
from emul.host_objects import Tally
from emul.memory import Memory
from emul.neighbours import Neighbours, Route
from emul.node_memory import NodeMemory
from emul.port_facts import PortFacts, eui64, path_mtu_for
from emul.qp import QueuePair
from emul.regions import RegionTable
from emul.vocabulary import MTU, AsyncEvent, EventType, QPAttr, QPState
from emul.wire.address import IPV4_ADDRESS_BYTES, gid_bytes, gid_text
from emul.wire.discovery import is_discovery, parse_discovery
from emul.wire.frame import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    Arp,
    Envelopes,
    icrc_matches,
)
from emul.wire.headers import BTH, DETH, DETH_BYTES, P_KEY_FULL, Opcode
from emul.wire.heading import Heading, Headings, parse_heading
from emul.wire.mad import CM_Q_KEY, parse_mad

FRAMES_PER_PULL_MAX: Final = 64
"""Frames that one call of `poll_transmit` gives at the most."""
QP_FRAMES_PER_TURN: Final = 16
"""Frames that one queue pair sends before the next one gets its turn."""
DOORBELLS_PER_TURN_MAX: Final = 256
FIRMWARE_VERSION = "1.0.0"
MADS_WAITING_MAX: Final = 256
"""Management datagrams that wait for a neighbour's address; older ones are dropped (their sender repeats them)."""
_CM_QPN: Final = 1
_QPN_FIRST: Final = 0x11
_MULTICAST_BIT: Final = 1
_MAD_SOURCE_PORT: Final = 0xC001
_ACK_REQUEST: Final = 0x80
"""In the byte before the PSN."""


class Adapter:
    """One interconnect card with one port."""

    def __init__(
        self,
        *,
        port: PortFacts,
        identity: Identity,
        node_memory: NodeMemory,
        rng: random.Random,
        wake_host: Callable[[], None],
        allocate: Callable[[int, str], Memory] = lambda length, name: Memory.plain(length),
        release: Callable[[Memory], None] = lambda memory: None,
        make_bell: Callable[[], Memory] = lambda: Memory.plain(0),
        ring_bell: Callable[[Memory], None] = lambda bell: None,
    ) -> None:
        self._port = port
        self._node = node_memory
        self._rng = rng
        self._allocate = allocate
        self._release = release
        self._make_bell, self._ring_bell = make_bell, ring_bell
        self._wake_host = wake_host
        self._counters: Counter[str] = Counter()
        self._received = 0
        self._sent = 0
        self._frames_received = 0
        self._octets_received = 0
        self._octets_sent = 0
        self._carrier = True
        ipv6 = any(len(address) != IPV4_ADDRESS_BYTES for address in port.addresses)
        self._active_mtu = path_mtu_for(port.mtu, ipv6=ipv6)
        self._envelopes = Envelopes(*port.addresses)
        self._neighbours = Neighbours(mac=port.mac, addresses=port.addresses)
        self._qps: dict[int, QueuePair] = {}
        self._links: dict[int, FirmwareLink] = {}
        self._headings = Headings()
        self._active: deque[QueuePair] = deque()
        self._timers: list[tuple[Instant, int]] = []
        self._out: deque[bytes] = deque()
        self._waiting_mads: list[tuple[Route, bytes]] = []
        self._next_qpn = _QPN_FIRST + rng.randrange(1 << 16)
        self._next_pd = 1
        self.regions = RegionTable(rng)
        self.tally = Tally()
        self._firmware = Firmware(
            identity=identity,
            node_memory=node_memory,
            regions=self.regions,
            rng=rng,
            open_qp=self._open_firmware_qp,
            close_qp=self._close_firmware_qp,
            fresh_pd=self.fresh_pd,
            fresh_psn=self.fresh_psn,
            forget=lambda number: self.cm.forget(number),
            on_old=lambda: self.faults.on_old_firmware(),
        )
        self.cm = ConnectionMachine(
            source_for=self._neighbours.source_for,
            gids=frozenset(gid_bytes(address) for address in port.addresses),
            guid=eui64(port.mac),
            rng=rng,
            acceptor=self._firmware,
            control=self,
        )
        self.host: HostContext | None = None
        self.faults = HardwareFaults(self)
        self._disturbed: HardwareFaults | None = None
        """Asked only while a fault is armed or holds something back."""
        self._by_cm: set[int] = set()
        """Queue pairs that connection management connected."""
        self._plugged = True
        self._first_psn: int | None = None

    # -- in -----------------------------------------------------------------------------------------------------------

    def on_frame(self, frame: bytes, *, now: Instant) -> None:
        """One frame from the cable. Whatever it is, it is handled or counted; it never raises."""
        if self._disturbed is not None and not self._disturbed.admits(frame, now=now):
            return
        self._frames_received += 1
        self._octets_received += len(frame)
        heading = self._headings.find(frame)
        if heading is None:
            self._on_stranger(frame, now)
        else:
            self._on_packet(frame, heading, now)

    def _on_stranger(self, frame: bytes, now: Instant) -> None:
        """A frame that doesn't begin like one that was seen before, or is none of the good ones."""
        ethertype = frame[12] << 8 | frame[13] if len(frame) > 14 else 0
        if ethertype == ETHERTYPE_IPV4:
            accepted = self._envelopes.accept(frame)
        elif ethertype == ETHERTYPE_IPV6:
            accepted = self._envelopes.accept6(frame)
            if accepted == "rx_not_roce" and is_discovery(frame):
                self._on_discovery(frame)
                return
        elif ethertype == ETHERTYPE_ARP:
            self._on_arp(frame)
            return
        else:
            accepted = "rx_not_roce" if len(frame) > 14 else "rx_truncated"
        if isinstance(accepted, str):
            self._counters[accepted] += 1
            return
        if not icrc_matches(frame, accepted):
            self._counters["rx_icrc_error"] += 1
            return
        heading = parse_heading(frame, accepted)
        if isinstance(heading, str):
            self._counters[heading] += 1
        elif heading.qpn == _CM_QPN:
            self._on_mad(heading.opcode, memoryview(frame)[heading.start : heading.end], accepted.source, now)
        else:
            if self._addressee(heading) is not None:
                self._headings.remember(frame, heading)
            self._on_packet(frame, heading, now)

    def _addressee(self, heading: Heading) -> QueuePair | None:
        qp = self._qps.get(heading.qpn)
        if qp is None or qp.route is None or qp.route.path != heading.accepted.path:
            return None
        return qp

    def _on_packet(self, frame: bytes, heading: Heading, now: Instant) -> None:
        qp = self._addressee(heading)
        if qp is None:
            self._counters["rx_wrong_source" if heading.qpn in self._qps else "rx_no_qp"] += 1
            return
        start, end, opcode = heading.start, heading.end, heading.opcode
        psn = frame[start - 3] << 16 | frame[start - 2] << 8 | frame[start - 1]
        ack_requested = frame[start - 4] >= _ACK_REQUEST
        disturbed = self._disturbed
        data = frame
        if disturbed is not None:
            left = disturbed.on_packet(qp, heading, psn, frame)
            if left is None:
                return
            data, start, end = left, 0, len(left)
        self._received += 1
        if not qp.on_packet(opcode, psn, ack_requested, data, start, end, now=now, solicited=heading.solicited):
            if opcode == Opcode.CNP:
                qp.congestion.cnp_handled += 1  # counted, never answered
            else:
                self._counters["rx_unexpected"] += 1
            return
        if heading.accepted.congested and qp.congestion.on_marked(now=now):
            self._notify(qp)
        if self.cm.awaited:
            self._greet(qp, now)
        self._after(qp)
        if disturbed is not None:
            disturbed.after_packet()

    def _greet(self, qp: QueuePair, now: Instant) -> None:
        expected = qp.query().rq_psn
        if self.cm.awaited.get(qp.number, expected) != expected:
            self.cm.on_communication(qp.number, now=now)  # the responder moved on: that was the packet that was due
            self._after_cm(now)

    def _notify(self, qp: QueuePair) -> None:
        """Tells the peer that its packets met congestion."""
        if qp.route is not None and qp.route.mac is not None:
            flow = flow_to(self._port.mac, qp.route, source_port(qp.number), traffic_class=CNP_TRAFFIC_CLASS)
            self._out.append(flow.frame(cnp_bth(qp.attr.dest_qp_num), CNP_RESERVED))

    def _after(self, qp: QueuePair) -> None:
        if qp.attention:
            self._attend(qp)
        if qp.active:
            return  # when it must be looked at again shows when its turn has come
        if qp.may_have_more():
            qp.active = True
            self._active.append(qp)
        else:
            self._watch_time(qp)

    def _attend(self, qp: QueuePair) -> None:
        """What a queue pair may have brought about: a message for the firmware, written regions, an error."""
        link = self._links.get(qp.number)
        qp.attention = link is not None
        if link is not None:
            self._after_link(qp, link)
        if qp.overrun:
            self._lose_completion_queue(qp)
        if qp.events:
            if self.host is not None and qp.number in self.host.qps:
                for event in qp.events:
                    self.host.tell(AsyncEvent(event, qp.number))
            self._counters["resp_remote_access_errors"] += EventType.QP_ACCESS_ERR in qp.events
            self._counters["resp_remote_invalid_request"] += EventType.QP_REQ_ERR in qp.events
            qp.events.clear()

    def _after_link(self, qp: QueuePair, link: FirmwareLink) -> None:
        for watcher in qp.take_written():
            if self.host is not None:
                self.host.tell(AsyncEvent(EventType.EXCHANGE_WRITTEN, watcher))
        if link.arrived:
            self._firmware.on_messages(link)
            self._after_firmware()

    def _on_arp(self, frame: bytes) -> None:
        arp = Arp.parse(frame)
        if arp is None or arp.sender_mac[0] & _MULTICAST_BIT:
            self._counters["rx_bad_arp"] += 1
            return
        self._on_neighbour(self._neighbours.on_arp(arp))

    def _on_discovery(self, frame: bytes) -> None:
        message = parse_discovery(frame)
        if message is None or frame[6] & _MULTICAST_BIT:
            self._counters["rx_bad_nd"] += 1
        else:
            self._on_neighbour(self._neighbours.on_discovery(message, frame[6:12]))

    def _on_neighbour(self, changed: Route | None) -> None:
        """What the neighbours have to say goes out; a route that changed gets its queue pairs going."""
        self._out.extend(self._neighbours.out)
        self._neighbours.out.clear()
        if changed is not None:
            for qp in self._qps.values():
                if qp.route is changed:
                    qp.flow = None  # built anew
                    self._after(qp)
            self._send_mads()

    def _on_mad(self, opcode: int, body: memoryview, source: bytes, now: Instant) -> None:
        if opcode != Opcode.UD_SEND_ONLY or len(body) < DETH_BYTES:
            self._counters["rx_bad_mad"] += 1
            return
        q_key, sender = DETH.unpack_from(body)
        if q_key != CM_Q_KEY or sender & 0xFFFFFF != _CM_QPN:  # answers go to QP 1, so it must be what asks
            self._counters["rx_bad_mad"] += 1
            return
        parsed = parse_mad(bytes(body[DETH_BYTES:]))
        if parsed is None:
            self._counters["rx_bad_mad"] += 1
            return
        self.cm.on_message(*parsed, source, now=now)
        self._after_firmware()
        self._after_cm(now)

    def on_doorbell(self, *, now: Instant) -> bool:
        """Takes what the host has posted; False when no doorbell had been rung."""
        host, disturbed = self.host, self._disturbed
        if host is None or (disturbed is not None and disturbed.hung):
            return False
        rang = False
        for _ in range(DOORBELLS_PER_TURN_MAX):
            number = host.doorbells.take()
            if number is None:
                break
            rang = True
            if disturbed is not None and disturbed.keeps_doorbell(number, now=now):
                continue
            self._ring(number)
            if number == -1:
                break  # all were looked at; a host that fakes overruns gets no more than one look in a turn
        return rang

    def _ring(self, number: int) -> None:
        qp = self.host.qps.get(number) if self.host is not None else None
        if number == -1:
            self.look_at_all_queues()
        elif qp is not None:
            qp.take_work()
            self._after(qp)

    def look_at_all_queues(self) -> None:
        """Takes posted work without a doorbell: after an overrun of the ring, and now and then in case one was lost."""
        if self.host is not None and not self.faults.hung:
            for qp in list(self.host.qps.values()):
                qp.take_work()
                self._after(qp)

    def on_carrier(self, up: bool) -> None:
        """The port's carrier, as read: a change is an asynchronous event for the host."""
        self._plugged = up
        up = up and not self.faults.port_off
        if up is self._carrier or self.faults.hung:
            return
        self._carrier = up
        self._counters["link_downed" if not up else "link_upped"] += 1
        if up:
            self._neighbours.announce()  # the cable may lead elsewhere now, to whom our addresses are new
            self._on_neighbour(None)
        if self.host is not None:
            self.host.tell(AsyncEvent(EventType.PORT_ACTIVE if up else EventType.PORT_ERR, 1))

    # -- out ----------------------------------------------------------------------------------------------------------

    def poll_transmit(self, frames_max: int = FRAMES_PER_PULL_MAX, *, now: Instant) -> list[bytes]:
        """The next frames to be sent, at most `frames_max`; queue pairs take turns."""
        frames: list[bytes] = []
        disturbed = self._disturbed
        if disturbed is not None:
            disturbed.now = now
            if disturbed.hung:
                return frames
            self._note_faults()
        while self._out and len(frames) < frames_max:
            frames.append(self._out.popleft())
        active = self._active
        while active and len(frames) < frames_max:
            qp = active.popleft()
            if self._pull(qp, frames, min(QP_FRAMES_PER_TURN, frames_max - len(frames)), now):
                active.append(qp)
            else:
                qp.active = False
            if qp.attention:
                self._attend(qp)
            self._watch_time(qp)
        if disturbed is not None and frames and disturbed.loses_sent(len(frames)):
            frames = []
        self._sent += len(frames)
        for sent in frames:
            self._octets_sent += len(sent)
        return frames

    def _pull(self, qp: QueuePair, frames: list[bytes], frames_max: int, now: Instant) -> bool:
        """Adds what a queue pair has to send, at most `frames_max`; whether it may have more."""
        if qp.flow is None and qp.route is not None and qp.route.mac is not None:
            qp.flow = flow_of(self._port.mac, qp.route, qp)
        for _ in range(frames_max):
            frame = qp.next_frame(now=now)
            if frame is None:
                return False
            frames.append(frame)
            if not qp.may_have_more():
                return False
        return True

    def has_frames(self) -> bool:
        """Whether `poll_transmit` may have something."""
        return bool(self._out) or bool(self._active)

    # -- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self, *, now: Instant) -> Instant | None:
        """When `on_time` is due; it may turn out to have nothing to do."""
        at = self._timers[0][0] if self._timers else None
        cm_at = self.cm.next_at
        if cm_at is not None and (at is None or cm_at < at):
            at = cm_at
        if self._disturbed is None and not self._neighbours.asking and not self._firmware.fencing:
            return at  # as nearly always
        fault_at = None
        if self._disturbed is not None:
            fault_at = self._disturbed.deadline()
            if self._disturbed.hung:
                return fault_at
        return earliest(at, self._neighbours.deadline(), self._firmware.deadline(now), fault_at)

    def on_time(self, *, now: Instant) -> None:
        """Everything whose time has come."""
        if self._disturbed is not None:
            self._disturbed.on_time(now=now)
            self._note_faults()
            if self.faults.hung:
                return
        while self._timers and self._timers[0][0] <= now:
            at, number = heapq.heappop(self._timers)
            qp = self._qps.get(number)
            if qp is not None and qp.timer_at == at:
                qp.timer_at = None
                qp.on_time(now=now)
                self._after(qp)
        self.cm.on_time(now=now)
        self._after_cm(now)
        self._neighbours.on_time(now=now)
        self._out.extend(self._neighbours.out)
        self._neighbours.out.clear()
        self._firmware.poll()
        self._after_firmware()

    def _watch_time(self, qp: QueuePair) -> None:
        # One timer for each queue pair, set for the earliest moment that was ever asked for: most deadlines are moved
        # into the future by the next acknowledgement, and are looked at again only when the old moment comes.
        deadline = qp.deadline()
        if deadline is not None and (qp.timer_at is None or deadline < qp.timer_at):
            qp.timer_at = deadline
            heapq.heappush(self._timers, (deadline, qp.number))

    # -- the host -----------------------------------------------------------------------------------------------------

    def attach(self, incarnation: int) -> HostContext:
        """A host opens the adapter: what another incarnation owned is destroyed, the same one gets a fresh context
        too.
        """
        if self.host is not None:
            self.host.destroy()
        self.host = HostContext(
            self, allocate=self._allocate, release=self._release, wake=self._wake_host, incarnation=incarnation,
            make_bell=self._make_bell, ring_bell=self._ring_bell,
        )  # fmt: skip
        return self.host

    def execute(self, request: Request, memories: list[Memory], *, now: Instant) -> tuple[Reply, list[Memory]]:
        """One slow verb of the host. A card that hangs answers none: its driver asks `faults.hung` first."""
        self.faults.now = now
        if self.host is None:
            return {"errno": EINVAL, "message": "no host is attached"}, []
        answer = self.host.execute(request, memories, now=now)
        self._after_cm(now)
        number = request.get("qp_num")
        qp = self._qps.get(number) if isinstance(number, int) else None
        if qp is not None:
            qp.take_work()
            self._after(qp)
        return answer

    def counters(self) -> dict[str, int]:
        """Counters of the adapter, of its queue pairs together, and of its firmware."""
        total = Counter(self._counters)
        total["rcvd_pkts"], total["sent_pkts"] = self._received, self._sent
        for qp in self._qps.values():
            total.update(qp.counters())
        total["firmware_refused"] = self._firmware.refused
        total["firmware_links"] = self._firmware.links()
        total["cm_connections"] = self.cm.connections()
        total.update(self.cm.counters)
        total.update(self.faults.counters())
        total.update(self.tally.counters())
        return with_known_names(total)

    def port_counters(self) -> dict[str, int]:
        """Services."""
        counted = {**self._counters, "rcvd_frames": self._frames_received, "sent_frames": self._sent}
        return port_counters(counted, octets_received=self._octets_received, octets_sent=self._octets_sent)

    def inspect(self) -> list[dict[str, object]]:
        """How each queue pair stands."""
        return [qp.inspect() for qp in self._qps.values()]

    def port_state(self) -> dict[str, object]:
        """Services."""
        return {
            "state": "ACTIVE" if self._carrier else "DOWN",
            "active_mtu": int(self._active_mtu),
            "max_mtu": int(MTU.MTU_4096),
            "gids": [gid_text(address) for address in self._port.addresses],
        }

    def device_facts(self) -> dict[str, object]:
        """Services."""
        guid = eui64(self._port.mac)  # as Linux makes a RoCE card's
        return {"fw_version": FIRMWARE_VERSION, "node_guid": guid, "sys_image_guid": guid}

    def fresh_pd(self) -> int:
        """Services."""
        number, self._next_pd = self._next_pd, self._next_pd + 1
        return number

    def fresh_qpn(self) -> int:
        """Services."""
        reused = self._disturbed.reused_qpn() if self._disturbed is not None else None
        if reused is not None and reused not in self._qps:
            return reused
        while True:
            self._next_qpn = self._next_qpn + 1 if self._next_qpn < 0xFFFFFE else _QPN_FIRST
            if self._next_qpn not in self._qps and not self.cm.holds(self._next_qpn):
                return self._next_qpn

    def fence_epoch(self, slot: int) -> int:
        """Services."""
        return self._node.fence_epoch(slot)

    def add_qp(self, qp: QueuePair) -> None:
        """Services."""
        self._qps[qp.number] = qp
        self.faults.adopt(qp)

    def remove_qp(self, number: int) -> None:
        """Services."""
        qp = self._qps.pop(number, None)
        if qp is None:
            return
        self._counters.update(qp.counters())
        self._by_cm.discard(number)
        self.faults.forget(number)
        qp.timer_at = None
        if qp.active:
            qp.active = False
            self._active.remove(qp)

    def modify_qp(
        self, qp: QueuePair, attr: QPAttr, address: bytes | None, *, now: Instant, given: frozenset[str] | None = None
    ) -> None:
        """Services."""
        if attr.qp_state is QPState.RTR and attr.path_mtu > self._active_mtu:
            raise RDMAError(EINVAL, f"path MTU {attr.path_mtu.size} does not fit the port's {self._active_mtu.size}")
        try:
            route = None if address is None else self._neighbours.route(address, now=now)
        except ValueError as error:
            raise RDMAError(EINVAL, f"QP {qp.number}: {error}") from None
        self._out.extend(self._neighbours.out)
        self._neighbours.out.clear()
        if attr.qp_state is QPState.ERR:
            qp.fail(None, None)  # the host knows: no QP_FATAL
        else:
            qp.modify(attr, route, given)
        self._after(qp)

    # -- QpControl of the connection machine --------------------------------------------------------------------------

    def path_mtu_max(self) -> MTU:
        """QpControl."""
        return self._active_mtu

    def ready_to_receive(self, qpn: int, attr: QPAttr, address: bytes, *, now: Instant) -> bool:
        """QpControl."""
        attr.path_mtu = min(attr.path_mtu, self._active_mtu)
        self._by_cm.add(qpn)
        return self._move(qpn, attr, QPState.RTR, address, now)

    def ready_to_send(self, qpn: int, attr: QPAttr, *, now: Instant) -> bool:
        """QpControl."""
        if not self._move(qpn, attr, QPState.RTS, None, now):
            return False
        self._qps[qpn].take_work()  # what was posted while only the peer could send
        return True

    def broken(self, qpn: int, *, now: Instant) -> None:
        """QpControl."""
        qp = self._qps.get(qpn)
        if qp is not None:
            qp.fail(None)
            self._after(qp)

    def fresh_psn(self) -> int:
        """QpControl."""
        drawn = self._rng.randrange(1 << 24)
        if self._first_psn is None:
            return drawn
        self.faults.on_first_psn()
        return self._first_psn

    def _move(self, qpn: int, attr: QPAttr, state: QPState, address: bytes | None, now: Instant) -> bool:
        qp = self._qps.get(qpn)
        if qp is None:
            return False
        attr.qp_state = state
        try:
            self.modify_qp(qp, attr, address, now=now)
        except RDMAError:
            return False
        return True

    # -- hardware faults: for whoever injects them, and Card ----------------------------------------------------------

    def inject(
        self, fault: str, parameters: Mapping[str, object], *, now: Instant, number: int | None = None, seed: int = 0
    ) -> Report:
        """Injects a hardware fault (`emul.fault_kinds`); gives its report, "id" is its number. Raises RDMAError."""
        self._disturbed = self.faults
        try:
            return self.faults.inject(fault, parameters, now=now, number=number, seed=seed)
        finally:
            self._note_faults()

    def heal(self, number: int | None = None, *, now: Instant) -> list[Report]:
        """Undoes one of them, or all; gives the reports. Raises RDMAError for one that there never was."""
        self._disturbed = self.faults
        try:
            return self.faults.heal(number, now=now)
        finally:
            self._note_faults()

    def _note_faults(self) -> None:
        self._disturbed = self.faults if self.faults.busy else None

    def queue_pairs(self) -> Mapping[int, QueuePair]:
        """Card."""
        return self._qps

    def partner_links(self) -> list[FirmwareLink]:
        """The firmware's ends of partners' well-known connections, those that have not proven themselves too."""
        return list(self._links.values())

    def role_of(self, number: int) -> str:
        """Card."""
        if number in self._links:
            return "firmware"
        return "path" if number in self._by_cm else "client"

    def look_after(self, qp: QueuePair) -> None:
        """Card."""
        self._after(qp)

    def take_late(self, what: bytes | int, *, now: Instant) -> None:
        """Card."""
        if isinstance(what, int):
            self._ring(what)
        else:
            self.on_frame(what, now=now)

    def take_stalled(self, frame: bytes, heading: Heading, *, now: Instant) -> None:
        """Card."""
        self._on_packet(frame, heading, now)

    def switch_port(self, *, on: bool) -> None:
        """Card."""
        self.on_carrier(self._plugged)

    def drop_key(self, key: int) -> None:
        """Card."""
        self.regions.deregister(key)

    def keep_stale_keys(self, *, on: bool) -> None:
        """Card."""
        self.regions.keeps_stale = on
        if not on:
            self.regions.forget_stale()

    def stale_uses(self) -> int:
        """Card."""
        return self.regions.stale_uses

    def speak_version(self, version: int | None) -> None:
        """Card."""
        self._firmware.old_version = version

    def begin_at_psn(self, first: int | None) -> None:
        """Card."""
        self._first_psn = first

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _after_cm(self, now: Instant) -> None:
        for address, mad in self.cm.out:
            try:
                route = self._neighbours.route(address, now=now)
            except ValueError:  # strangers' addresses fill the table: they get no answer
                self._counters["tx_no_route"] += 1
                continue
            bth = BTH.pack(Opcode.UD_SEND_ONLY, 0, P_KEY_FULL, _CM_QPN, self._rng.randrange(1 << 24))
            self._waiting_mads.append((route, bth + DETH.pack(CM_Q_KEY, _CM_QPN) + mad))
        self.cm.out.clear()
        self._out.extend(self._neighbours.out)
        self._neighbours.out.clear()
        self._send_mads()
        if self.cm.events and self.host is not None:
            self._wake_host()

    def _send_mads(self) -> None:
        waiting, self._waiting_mads = self._waiting_mads[-MADS_WAITING_MAX:], []
        for route, packet in waiting:
            if route.mac is None:
                self._waiting_mads.append((route, packet))
            else:
                self._out.append(flow_to(self._port.mac, route, _MAD_SOURCE_PORT).frame(packet[:12], packet[12:]))

    def _after_firmware(self) -> None:
        for event in self._firmware.events:
            if self.host is not None:
                self.host.tell(event)
        self._firmware.events.clear()
        for number in self._firmware.talking:
            qp = self._qps.get(number)
            if qp is not None:
                qp.take_work()
                self._after(qp)
        self._firmware.talking.clear()

    def _open_firmware_qp(self, link: FirmwareLink) -> int:
        sink = FirmwareSink(link)
        qp = QueuePair(
            number=self.fresh_qpn(),
            pd=link.pd,
            regions=self.regions,
            work=link,
            send_sink=sink,
            receive_sink=sink,
            signal_all=False,
            fence_epoch=self.fence_epoch,
        )
        qp.modify(QPAttr(qp_state=QPState.INIT, qp_access_flags=FIRMWARE_ACCESS))
        qp.attention = True
        self._links[qp.number] = link
        self.add_qp(qp)
        return qp.number

    def _close_firmware_qp(self, number: int) -> None:
        self._links.pop(number, None)
        self.remove_qp(number)

    def _lose_completion_queue(self, qp: QueuePair) -> None:
        qp.overrun = False
        self._counters["cq_overrun"] += 1
        if self.host is not None:
            self.host.tell_lost_queue(qp.number)
        qp.fail(None)


__all__ = ["FRAMES_PER_PULL_MAX", "Adapter", "PortFacts"]
