"""The requester: turns work requests into request packets (InfiniBand specification vol. 1, 9.7.3).

Pulled: `next_frame` gives the packet at the window's cursor, or nothing while something forbids to send. Knows the
window and the extended headers; what comes back is the completer's.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from emul.vocabulary import SendFlags, WCStatus, WROpcode
from emul.window import SendWindow
from emul.wire.frame import Flow
from emul.wire.headers import ACK_REQUEST, ATOMIC_ETH, IMM, PAD_SHIFT, RETH, SOLICITED_EVENT, Opcode
from emul.wire.psn import PSN_MASK, psn_distance
from emul.wqe import SendWqe

PACKETS_IN_FLIGHT_MAX: Final = 512
"""Unacknowledged packets of one queue pair; more would overrun the receiving port's ring before its adapter wakes."""
ACK_REQUEST_EVERY: Final = 64
"""An acknowledgement is asked for at least every so many packets of a long message."""

_FIRST: Final = 0
_MIDDLE: Final = 1
_LAST: Final = 2
_ONLY: Final = 3
# The opcodes of a message's FIRST, MIDDLE, LAST and ONLY packet. Plain numbers: arithmetic on members of an
# enumeration is several times slower, and this is done for each packet.
_PLACES: Final[dict[int, tuple[int, ...]]] = {
    int(opcode): tuple(int(each) for each in places)
    for opcode, places in {
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
    }.items()
}  # fmt: skip
_WITH_EXTRA_WORD: Final = frozenset(
    {int(WROpcode.SEND_WITH_IMM), int(WROpcode.SEND_WITH_INV), int(WROpcode.RDMA_WRITE_WITH_IMM)}
)
"""Their last packet carries four bytes more: immediate data, or the key to be invalidated."""
_WRITES: Final = frozenset({int(WROpcode.RDMA_WRITE), int(WROpcode.RDMA_WRITE_WITH_IMM)})
_READ_REQUEST: Final = int(Opcode.RDMA_READ_REQUEST)
_READ: Final = int(WROpcode.RDMA_READ)
_FLUSH: Final = int(WROpcode.FLUSH)
_ATOMIC_WRITE: Final = int(WROpcode.ATOMIC_WRITE)
_COMPARE_SWAP: Final = int(WROpcode.ATOMIC_CMP_AND_SWP)
_FENCE: Final = int(SendFlags.FENCE)
_SOLICITED: Final = int(SendFlags.SOLICITED)
_ADDRESS_MASK: Final = (1 << 64) - 1
_ZEROS: Final = (b"", b"\0", b"\0\0", b"\0\0\0")
_WORD: Final = Struct("!I")
_WORD_AND_RETH: Final = Struct("!IQII")


class Requester:
    """The sending side of a queue pair."""

    __slots__ = ("_mtu", "_window", "draining", "retransmitted", "slots")

    def __init__(self, window: SendWindow, *, max_rd_atomic: int) -> None:
        self._window = window
        self._mtu = window.mtu
        self.slots = max_rd_atomic
        """Requests with a response of their own that may be in flight."""
        self.draining = False
        """Only what was begun is sent on (SQD)."""
        self.retransmitted = 0
        """Packets sent more than once."""

    def next_frame(self, flow: Flow) -> bytes | None:
        """The packet at the cursor, which moves. None while nothing may be sent."""
        window = self._window
        wqes, index, packet = window.wqes, window.index, window.packet
        if index >= len(wqes):
            return None
        wqe = wqes[index]
        if wqe.status is not None:
            return None  # it and all behind it wait until it is the oldest, and then it breaks the queue pair
        if not wqe.is_reachable():
            wqe.status = WCStatus.LOC_PROT_ERR
            return None
        responded = wqe.responded
        if index or packet:
            oldest = wqes[0]
            position = wqe.received if responded else packet  # a READ is asked for from what it lacks
            in_flight = wqe.first_psn + position - oldest.first_psn - oldest.received
            if in_flight & PSN_MASK >= PACKETS_IN_FLIGHT_MAX:
                return None
        if self.draining and not window.has_begun(wqe):
            return None
        if packet == 0 and (responded or wqe.flags & _FENCE) and not self._has_slot(wqe):
            return None
        if responded:
            return self._single(wqe, flow)
        last = wqe.packets - 1
        if packet == last:
            window.pass_request(wqe)
        else:
            window.packet = packet + 1
        return self._segment(wqe, packet, last, flow)

    def _has_slot(self, wqe: SendWqe) -> bool:
        due = self._window.responses_due
        return not due if wqe.flags & _FENCE else due < self.slots

    def _segment(self, wqe: SendWqe, packet: int, last: int, flow: Flow) -> bytes:
        opcode = wqe.opcode
        payload = wqe.data
        if payload is None or last:
            payload = wqe.gather(packet * self._mtu, self._mtu)
        flags = 0
        pad = -len(payload) & 3
        if pad:
            flags = pad << PAD_SHIFT
            payload = b"".join((payload, _ZEROS[pad]))
        psn = (wqe.first_psn + packet) & PSN_MASK
        self._count(psn, psn)
        if packet == last:
            place = _LAST if packet else _ONLY
            psn |= ACK_REQUEST
            if wqe.flags & _SOLICITED:
                flags |= SOLICITED_EVENT
        else:
            place = _MIDDLE if packet else _FIRST
            if packet % ACK_REQUEST_EVERY == ACK_REQUEST_EVERY - 1:
                psn |= ACK_REQUEST
        head: bytes
        if packet == 0 and opcode in _WRITES:
            head = _WORD_AND_RETH.pack(psn, wqe.remote_addr, wqe.rkey, wqe.length)
        else:
            head = _WORD.pack(psn)
        if packet == last and opcode in _WITH_EXTRA_WORD:
            head += IMM.pack(wqe.imm)
        return flow.packet(_PLACES[opcode][place] << 8 | flags, head, payload)

    def _single(self, wqe: SendWqe, flow: Flow) -> bytes:
        """A request of one packet that is completed by its own response."""
        self._window.pass_request(wqe)
        psn = (wqe.first_psn + wqe.received) & PSN_MASK
        self._count(psn, wqe.last_psn)
        number, rest = self._request(wqe)
        return flow.packet(number << 8, _WORD.pack(psn | ACK_REQUEST) + rest, b"")

    def _request(self, wqe: SendWqe) -> tuple[int, bytes]:
        """Opcode, extended headers and payload."""
        opcode, addr, rkey = wqe.opcode, wqe.remote_addr, wqe.rkey
        if opcode == _READ:
            done = wqe.received * self._mtu
            return _READ_REQUEST, RETH.pack((addr + done) & _ADDRESS_MASK, rkey, wqe.length - done)
        if opcode == _FLUSH:
            return int(Opcode.FLUSH), IMM.pack(wqe.imm) + RETH.pack(addr, rkey, wqe.size)
        if opcode == _ATOMIC_WRITE:
            data = wqe.gather(0, wqe.length)
            return int(Opcode.ATOMIC_WRITE), b"".join((RETH.pack(addr, rkey, wqe.length), data))
        if opcode == _COMPARE_SWAP:
            return int(Opcode.COMPARE_SWAP), ATOMIC_ETH.pack(addr, rkey, wqe.swap, wqe.compare_add)
        return int(Opcode.FETCH_ADD), ATOMIC_ETH.pack(addr, rkey, wqe.compare_add, 0)

    def _count(self, psn: int, last_psn: int) -> None:
        window = self._window
        if psn_distance(psn, window.highest_psn) <= 0:
            self.retransmitted += 1
        if psn_distance(last_psn, window.highest_psn) > 0:
            window.highest_psn = last_psn
