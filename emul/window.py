"""The send window: work requests that were taken from the send queue and are not completed yet, in PSN order.

Requester and completer meet here: the requester moves the cursor forward as it sends, the completer removes what was
acknowledged and moves the cursor back where something was lost. Knows PSNs, nothing of frames.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from emul.regions import MemoryRegion
from emul.vocabulary import WCStatus, WROpcode
from emul.wire.psn import PSN_MASK, psn_add, psn_distance

RESPONDED = frozenset(
    {
        WROpcode.RDMA_READ,
        WROpcode.ATOMIC_CMP_AND_SWP,
        WROpcode.ATOMIC_FETCH_AND_ADD,
        WROpcode.FLUSH,
        WROpcode.ATOMIC_WRITE,
    }
)
"""Requests that are completed by a response of their own and never by an acknowledgement; each holds one of the
max_rd_atomic slots while it is in flight."""


class SendWqe:
    """A work request on its way."""

    __slots__ = (
        "asked_at", "compare_add", "data", "first_psn", "flags", "flush_length", "imm", "last_psn", "length", "opcode",
        "packets", "pieces", "received", "regions", "remote_addr", "responded", "rkey", "status", "swap", "wr_id",
    )  # fmt: skip

    def __init__(
        self,
        wr_id: int,
        opcode: WROpcode,
        flags: int,
        imm: int,
        remote_addr: int,
        rkey: int,
        pieces: list[memoryview],
        length: int,
        regions: list[MemoryRegion] | tuple[MemoryRegion, ...] = (),
        status: WCStatus = WCStatus.SUCCESS,
    ) -> None:
        self.wr_id = wr_id
        self.opcode = opcode
        self.flags = flags
        self.imm = imm
        """Immediate data, the key to be invalidated, or a FLUSH's type and selectivity as the FETH has them."""
        self.remote_addr = remote_addr
        self.rkey = rkey
        self.pieces = pieces
        """Local memory: the source, or for a READ or an atomic the target."""
        self.regions = regions
        """Where the pieces lie: a region may lose its key while the request is under way."""
        self.responded = opcode in RESPONDED
        self.data: memoryview | bytes | None = pieces[0] if len(pieces) == 1 else b"" if not pieces else None
        """Its only piece; None where it has several: what they add up to may be more than the adapter has room for."""
        self.length = length
        """Bytes that move, one way or the other."""
        self.status = status
        """Not SUCCESS where the request was found wrong when it was taken: it completes with it when its turn comes."""
        self.compare_add = 0
        self.swap = 0
        self.flush_length = 0
        self.received = 0
        """Packets that are settled: acknowledged, or of a response arrived."""
        self.asked_at = -1
        """Value of `received` at which a response's missing rest was last asked for again."""
        self.packets = 0
        self.first_psn = 0
        self.last_psn = 0

    def is_reachable(self) -> bool:
        """Whether all of its local memory still has its keys."""
        for region in self.regions:  # noqa: SIM110 (this is asked for each packet: all() takes three times as long)
            if not region.valid:
                return False
        return True

    def response_bytes(self) -> int:
        """Payload of its response; zero where the response only says that it was done."""
        return self.length if self.opcode is WROpcode.RDMA_READ else 0

    def gather(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` of all pieces together."""
        parts = []
        for piece in self.pieces:
            if offset >= len(piece):
                offset -= len(piece)
                continue
            parts.append(piece[offset : offset + size])
            size -= len(parts[-1])
            offset = 0
            if not size:
                break
        return b"".join(parts)

    def scatter(self, offset: int, payload: memoryview) -> None:
        """Stores a part of a response, which may cross from one piece into the next."""
        for piece in self.pieces:
            if offset >= len(piece):
                offset -= len(piece)
                continue
            room = min(len(piece) - offset, len(payload))
            piece[offset : offset + room] = payload[:room]
            payload, offset = payload[room:], 0
            if not payload:
                return


class SendWindow:
    """Requests in flight, and the cursor at what is to be sent next."""

    __slots__ = ("highest_psn", "index", "mtu", "next_psn", "packet", "wqes")

    def __init__(self, mtu: int, first_psn: int) -> None:
        self.mtu = mtu
        self.wqes: deque[SendWqe] = deque()
        self.next_psn = first_psn
        """PSN of the first packet of the next request to be added."""
        self.highest_psn = (first_psn - 1) & PSN_MASK
        """The furthest PSN that an answer may name."""
        self.index = 0
        """Cursor: position in `wqes` ..."""
        self.packet = 0
        """... and packet within that request."""

    def add(self, wqe: SendWqe) -> None:
        """Gives the request its PSNs: one for each packet, of a READ one for each packet of its response."""
        packets = wqe.packets = -(-wqe.length // self.mtu) or 1
        wqe.first_psn = self.next_psn
        wqe.last_psn = (self.next_psn + packets - 1) & PSN_MASK
        self.next_psn = (self.next_psn + packets) & PSN_MASK
        self.wqes.append(wqe)

    def oldest_psn(self) -> int:
        """The oldest PSN that is not acknowledged; the next one to be used when all are."""
        if not self.wqes:
            return self.next_psn
        first = self.wqes[0]
        return psn_add(first.first_psn, first.received)

    def sent_end(self) -> int:
        """The PSN after the last one sent since the cursor was last moved back."""
        if self.index < len(self.wqes):
            return psn_add(self.wqes[self.index].first_psn, self.packet)
        return self.next_psn

    def in_flight(self) -> bool:
        """Whether anything before the cursor waits for an answer."""
        return self.index > 0 or self.packet > (self.wqes[0].received if self.wqes else 0)

    def responses_due(self) -> int:
        """Requests before the cursor whose own response is not complete: the slots of max_rd_atomic in use."""
        return sum(1 for wqe in islice(self.wqes, self.index) if wqe.responded)

    def has_begun(self, wqe: SendWqe) -> bool:
        """Whether any packet of it was ever sent."""
        return psn_distance(wqe.first_psn, self.highest_psn) <= 0

    def is_drained(self) -> bool:
        """Whether nothing that was begun is still to be completed."""
        return not self.wqes or not self.has_begun(self.wqes[0])

    def pop_oldest(self) -> SendWqe:
        """Removes the oldest request, wherever the cursor stands."""
        if self.index:
            self.index -= 1
        else:
            self.packet = 0
        return self.wqes.popleft()

    def settle(self, wqe: SendWqe, packets: int) -> bool:
        """The first `packets` of the oldest request, which has no response, are acknowledged; False when that is no
        news.
        """
        if packets <= wqe.received:
            return False
        wqe.received = packets
        if self.index == 0 and self.packet < packets:
            self.packet = packets
        return True

    def rewind(self, psn: int) -> None:
        """Moves the cursor to the packet `psn`, as far as that is a step back; a READ is asked for from what it
        lacks.
        """
        for position, wqe in enumerate(self.wqes):
            if psn_distance(psn, wqe.last_psn) > 0:
                continue
            packet = 0 if wqe.responded else max(0, psn_distance(psn, wqe.first_psn))
            if (position, packet) < (self.index, self.packet):
                self.index, self.packet = position, packet
            return
