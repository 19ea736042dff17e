"""The requester: turns work requests into request packets (InfiniBand specification vol. 1, 9.7.3).

Pulled: `next_packet` gives the packet at the window's cursor, or nothing while something forbids to send. Knows the
window and the headers; what comes back is the completer's.
"""

from __future__ import annotations

from emul.vocabulary import SendFlags, WCStatus, WROpcode
from emul.window import SendWindow, SendWqe
from emul.wire.headers import ACK_REQUEST, BTH, IMM, P_KEY_FULL, PAD_SHIFT, RETH, SOLICITED_EVENT, Opcode
from emul.wire.psn import PSN_MASK, psn_distance

PACKETS_IN_FLIGHT_MAX = 512
"""Unacknowledged packets of one queue pair; more would overrun the receiving port's ring before its adapter wakes."""
ACK_REQUEST_EVERY = 64
"""An acknowledgement is asked for at least every so many packets of a long message."""

# Base opcodes: + FIRST, MIDDLE, LAST, ONLY as they stand in the BTH; immediate data makes LAST and ONLY one more.
# Plain numbers: arithmetic on members of an enumeration is several times slower, and this is done for each packet.
_SEND_PLACES = tuple(int(each) for each in (Opcode.SEND_FIRST, Opcode.SEND_MIDDLE, Opcode.SEND_LAST, Opcode.SEND_ONLY))
_WRITE_PLACES = tuple(place + int(Opcode.RDMA_WRITE_FIRST) for place in (0, 1, 2, 4))
_PLACES: dict[WROpcode, tuple[int, ...]] = {
    WROpcode.SEND: _SEND_PLACES,
    WROpcode.SEND_WITH_IMM: _SEND_PLACES,
    WROpcode.RDMA_WRITE: _WRITE_PLACES,
    WROpcode.RDMA_WRITE_WITH_IMM: _WRITE_PLACES,
}
_WITH_IMMEDIATE = frozenset({WROpcode.SEND_WITH_IMM, WROpcode.RDMA_WRITE_WITH_IMM})
_WRITES = frozenset({WROpcode.RDMA_WRITE, WROpcode.RDMA_WRITE_WITH_IMM})
_FENCE, _SOLICITED = int(SendFlags.FENCE), int(SendFlags.SOLICITED)
_ADDRESS_MASK = (1 << 64) - 1
_ZEROS = (b"", b"\0", b"\0\0", b"\0\0\0")


class Requester:
    """The sending side of a queue pair."""

    __slots__ = ("_destination", "_mtu", "_reads_max", "_window", "retransmitted")

    def __init__(self, window: SendWindow, *, destination_qpn: int, reads_max: int) -> None:
        self._window = window
        self._mtu = window.mtu
        self._destination = destination_qpn
        self._reads_max = reads_max
        self.retransmitted = 0
        """Packets sent more than once."""

    def next_packet(self) -> tuple[bytes, bytes] | None:
        """BTH, and the rest: extended headers and padded payload. Moves the cursor. None while nothing may be sent."""
        window = self._window
        wqes, index, packet = window.wqes, window.index, window.packet
        if index >= len(wqes):
            return None
        wqe, oldest = wqes[index], wqes[0]
        if wqe.status is not WCStatus.SUCCESS:
            return None  # it and all behind it wait until it is the oldest, and then it breaks the queue pair
        is_read = wqe.opcode is WROpcode.RDMA_READ
        position = wqe.received if is_read else packet  # a READ is asked for from what it lacks
        in_flight = wqe.first_psn + position - oldest.first_psn - oldest.received
        if in_flight & PSN_MASK >= PACKETS_IN_FLIGHT_MAX:
            return None
        if is_read:
            return self._read_request(wqe) if window.reads_in_flight() < self._reads_max else None
        if packet == 0 and wqe.flags & _FENCE and window.reads_in_flight():
            return None
        last = wqe.packets - 1
        if packet == last:
            window.index = index + 1
            window.packet = 0
        else:
            window.packet = packet + 1
        return self._segment(wqe, packet, last)

    def _segment(self, wqe: SendWqe, packet: int, last: int) -> tuple[bytes, bytes]:
        opcode = wqe.opcode
        place = (3 if last == 0 else 0) if packet == 0 else (2 if packet == last else 1)
        number = _PLACES[opcode][place]
        payload = wqe.data if last == 0 else wqe.data[packet * self._mtu : (packet + 1) * self._mtu]
        pad = -len(payload) & 3
        flags = pad << PAD_SHIFT
        head = RETH.pack(wqe.remote_addr, wqe.rkey, wqe.length) if packet == 0 and opcode in _WRITES else b""
        psn = (wqe.first_psn + packet) & PSN_MASK
        self._count(psn, psn)
        if packet == last:
            psn |= ACK_REQUEST
            if opcode in _WITH_IMMEDIATE:
                number += 1
                head += IMM.pack(wqe.imm)
            if wqe.flags & _SOLICITED:
                flags |= SOLICITED_EVENT
        elif packet % ACK_REQUEST_EVERY == ACK_REQUEST_EVERY - 1:
            psn |= ACK_REQUEST
        return BTH.pack(number, flags, P_KEY_FULL, self._destination, psn), b"".join((head, payload, _ZEROS[pad]))

    def _read_request(self, wqe: SendWqe) -> tuple[bytes, bytes]:
        self._window.index += 1
        self._window.packet = 0
        done = wqe.received * self._mtu
        psn = (wqe.first_psn + wqe.received) & PSN_MASK
        self._count(psn, wqe.last_psn)
        bth = BTH.pack(Opcode.RDMA_READ_REQUEST, 0, P_KEY_FULL, self._destination, psn | ACK_REQUEST)
        return bth, RETH.pack((wqe.remote_addr + done) & _ADDRESS_MASK, wqe.rkey, wqe.length - done)

    def _count(self, psn: int, last_psn: int) -> None:
        window = self._window
        if psn_distance(psn, window.highest_psn) <= 0:
            self.retransmitted += 1
        if psn_distance(last_psn, window.highest_psn) > 0:
            window.highest_psn = last_psn
