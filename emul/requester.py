"""The requester: turns work requests into request packets (InfiniBand specification vol. 1, 9.7.3).

Pulled: `next_packet` gives the packet at the window's cursor, or nothing while something forbids to send. Knows the
window and the headers; what comes back is the completer's.
"""

from __future__ import annotations

from emul.vocabulary import SendFlags, WCStatus, WROpcode
from emul.window import SendWindow, SendWqe
from emul.wire.headers import (
    ACK_REQUEST,
    ATOMIC_ETH,
    BTH,
    IMM,
    P_KEY_FULL,
    PAD_SHIFT,
    RETH,
    SOLICITED_EVENT,
    Opcode,
)
from emul.wire.psn import PSN_MASK, psn_distance

PACKETS_IN_FLIGHT_MAX = 512
"""Unacknowledged packets of one queue pair; more would overrun the receiving port's ring before its adapter wakes."""
ACK_REQUEST_EVERY = 64
"""An acknowledgement is asked for at least every so many packets of a long message."""

# The opcodes of a message's FIRST, MIDDLE, LAST and ONLY packet. Plain numbers: arithmetic on members of an
# enumeration is several times slower, and this is done for each packet.
_PLACES: dict[WROpcode, tuple[int, int, int, int]] = {
    WROpcode.SEND: (Opcode.SEND_FIRST, Opcode.SEND_MIDDLE, Opcode.SEND_LAST, Opcode.SEND_ONLY),
    WROpcode.SEND_WITH_IMM: (
        Opcode.SEND_FIRST, Opcode.SEND_MIDDLE, Opcode.SEND_LAST_WITH_IMMEDIATE, Opcode.SEND_ONLY_WITH_IMMEDIATE,
    ),
    WROpcode.SEND_WITH_INV: (
        Opcode.SEND_FIRST, Opcode.SEND_MIDDLE, Opcode.SEND_LAST_WITH_INVALIDATE, Opcode.SEND_ONLY_WITH_INVALIDATE,
    ),
    WROpcode.RDMA_WRITE: (
        Opcode.RDMA_WRITE_FIRST, Opcode.RDMA_WRITE_MIDDLE, Opcode.RDMA_WRITE_LAST, Opcode.RDMA_WRITE_ONLY,
    ),
    WROpcode.RDMA_WRITE_WITH_IMM: (
        Opcode.RDMA_WRITE_FIRST, Opcode.RDMA_WRITE_MIDDLE, Opcode.RDMA_WRITE_LAST_WITH_IMMEDIATE,
        Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE,
    ),
}  # fmt: skip
_PLACES = {opcode: tuple(int(each) for each in places) for opcode, places in _PLACES.items()}  # type: ignore[misc]
_WITH_EXTRA_WORD = frozenset({WROpcode.SEND_WITH_IMM, WROpcode.SEND_WITH_INV, WROpcode.RDMA_WRITE_WITH_IMM})
"""Their last packet carries four bytes more: immediate data, or the key to be invalidated."""
_WRITES = frozenset({WROpcode.RDMA_WRITE, WROpcode.RDMA_WRITE_WITH_IMM})
_FENCE, _SOLICITED = int(SendFlags.FENCE), int(SendFlags.SOLICITED)
_ADDRESS_MASK = (1 << 64) - 1
_ZEROS = (b"", b"\0", b"\0\0", b"\0\0\0")


class Requester:
    """The sending side of a queue pair."""

    __slots__ = ("_destination", "_mtu", "_window", "draining", "retransmitted", "slots")

    def __init__(self, window: SendWindow, *, destination_qpn: int, max_rd_atomic: int) -> None:
        self._window = window
        self._mtu = window.mtu
        self._destination = destination_qpn
        self.slots = max_rd_atomic
        """Requests with a response of their own that may be in flight."""
        self.draining = False
        """Only what was begun is sent on (SQD)."""
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
        if not wqe.is_reachable():
            wqe.status = WCStatus.LOC_PROT_ERR
            return None
        responded = wqe.responded
        position = wqe.received if responded else packet  # a READ is asked for from what it lacks
        in_flight = wqe.first_psn + position - oldest.first_psn - oldest.received
        if in_flight & PSN_MASK >= PACKETS_IN_FLIGHT_MAX:
            return None
        if self.draining and not window.has_begun(wqe):
            return None
        if packet == 0 and (responded or wqe.flags & _FENCE) and not self._has_slot(wqe):
            return None
        if responded:
            return self._single(wqe)
        last = wqe.packets - 1
        if packet == last:
            window.index = index + 1
            window.packet = 0
        else:
            window.packet = packet + 1
        return self._segment(wqe, packet, last)

    def _has_slot(self, wqe: SendWqe) -> bool:
        due = self._window.responses_due()
        return not due if wqe.flags & _FENCE else due < self.slots

    def _segment(self, wqe: SendWqe, packet: int, last: int) -> tuple[bytes, bytes]:
        opcode = wqe.opcode
        place = (3 if last == 0 else 0) if packet == 0 else (2 if packet == last else 1)
        payload = wqe.data
        if payload is None:
            payload = wqe.gather(packet * self._mtu, self._mtu)
        elif last:
            payload = payload[packet * self._mtu : (packet + 1) * self._mtu]
        pad = -len(payload) & 3
        flags = pad << PAD_SHIFT
        head = RETH.pack(wqe.remote_addr, wqe.rkey, wqe.length) if packet == 0 and opcode in _WRITES else b""
        psn = (wqe.first_psn + packet) & PSN_MASK
        self._count(psn, psn)
        if packet == last:
            psn |= ACK_REQUEST
            if opcode in _WITH_EXTRA_WORD:
                head += IMM.pack(wqe.imm)
            if wqe.flags & _SOLICITED:
                flags |= SOLICITED_EVENT
        elif packet % ACK_REQUEST_EVERY == ACK_REQUEST_EVERY - 1:
            psn |= ACK_REQUEST
        bth = BTH.pack(_PLACES[opcode][place], flags, P_KEY_FULL, self._destination, psn)
        return bth, b"".join((head, payload, _ZEROS[pad]))

    def _single(self, wqe: SendWqe) -> tuple[bytes, bytes]:
        """A request of one packet that is completed by its own response."""
        self._window.index += 1
        self._window.packet = 0
        psn = (wqe.first_psn + wqe.received) & PSN_MASK
        self._count(psn, wqe.last_psn)
        number, rest = self._request(wqe)
        return BTH.pack(number, 0, P_KEY_FULL, self._destination, psn | ACK_REQUEST), rest

    def _request(self, wqe: SendWqe) -> tuple[int, bytes]:
        """Opcode, extended headers and payload."""
        opcode, addr, rkey = wqe.opcode, wqe.remote_addr, wqe.rkey
        if opcode is WROpcode.RDMA_READ:
            done = wqe.received * self._mtu
            return Opcode.RDMA_READ_REQUEST, RETH.pack((addr + done) & _ADDRESS_MASK, rkey, wqe.length - done)
        if opcode is WROpcode.FLUSH:
            return Opcode.FLUSH, IMM.pack(wqe.imm) + RETH.pack(addr, rkey, wqe.flush_length)
        if opcode is WROpcode.ATOMIC_WRITE:
            return Opcode.ATOMIC_WRITE, RETH.pack(addr, rkey, wqe.length) + wqe.gather(0, wqe.length)
        if opcode is WROpcode.ATOMIC_CMP_AND_SWP:
            return Opcode.COMPARE_SWAP, ATOMIC_ETH.pack(addr, rkey, wqe.swap, wqe.compare_add)
        return Opcode.FETCH_ADD, ATOMIC_ETH.pack(addr, rkey, wqe.compare_add, 0)

    def _count(self, psn: int, last_psn: int) -> None:
        window = self._window
        if psn_distance(psn, window.highest_psn) <= 0:
            self.retransmitted += 1
        if psn_distance(last_psn, window.highest_psn) > 0:
            window.highest_psn = last_psn
