"""A send work request as an adapter holds it, from the host's ring to its completion.

First it is what the host wrote, its numbers unchecked; `emul.work_requests` then finds the memory that it names, and
the send window gives it its PSNs. One object for all of this, as one is made for each request.
"""

from __future__ import annotations

from collections.abc import Sequence

from emul.regions import MemoryRegion
from emul.vocabulary import WCStatus, WROpcode

RESPONDED = frozenset(
    {
        int(WROpcode.RDMA_READ),
        int(WROpcode.ATOMIC_CMP_AND_SWP),
        int(WROpcode.ATOMIC_FETCH_AND_ADD),
        int(WROpcode.FLUSH),
        int(WROpcode.ATOMIC_WRITE),
    }
)
"""Requests that are completed by a response of their own and never by an acknowledgement; each holds one of the
max_rd_atomic slots while it is in flight."""
_RDMA_READ = int(WROpcode.RDMA_READ)
Piece = tuple[int, int, int]
"""lkey, addr, length."""


class SendWqe:
    """A work request on its way."""

    # What most requests leave as it is stands in the class: an instance takes no time for it.
    further: Sequence[Piece] = ()
    """Pieces of memory after the first."""
    inline: bytes | None = None
    """The data itself, taken when the request was posted."""
    compare_add: int = 0
    swap: int = 0
    status: WCStatus | None = None
    """Not None where the request was found wrong when it was taken: it completes with it when its turn comes."""
    region: MemoryRegion | None = None
    """Where its first piece lies: a region may lose its key while the request is under way."""
    regions: Sequence[MemoryRegion] = ()
    """The same for the pieces after it."""
    data: memoryview | bytes | None = b""
    """Its only piece of local memory, the source, or for a READ or an atomic the target; None where it has several:
    what they add up to may be more than the adapter has room for."""
    pieces: Sequence[memoryview] = ()
    """All of them, where they are several."""
    length: int = 0
    """Bytes that move, one way or the other."""
    responded: bool = False
    received: int = 0
    """Packets that are settled: acknowledged, or of a response arrived."""
    asked_at: int = -1
    """Value of `received` at which a response's missing rest was last asked for again."""
    packets: int = 0
    first_psn: int = 0
    last_psn: int = 0

    def __init__(
        self,
        wr_id: int,
        opcode: int,
        flags: int,
        imm: int,
        remote_addr: int,
        rkey: int,
        lkey: int = 0,
        addr: int = 0,
        size: int = 0,
    ) -> None:
        self.wr_id = wr_id
        self.opcode = opcode
        self.flags = flags
        self.imm = imm
        """Immediate data, the key to be invalidated, or a FLUSH's type and selectivity as the FETH has them."""
        self.remote_addr = remote_addr
        self.rkey = rkey
        self.lkey = lkey
        """First piece of memory: key, ..."""
        self.addr = addr
        self.size = size
        """... address and length; for a FLUSH the length there."""

    def is_reachable(self) -> bool:
        """Whether all of its local memory still has its keys."""
        if self.region is not None and not self.region.valid:
            return False
        for region in self.regions:  # noqa: SIM110 (this is asked for each packet: all() takes three times as long)
            if not region.valid:
                return False
        return True

    def response_bytes(self) -> int:
        """Payload of its response; zero where the response only says that it was done."""
        return self.length if self.opcode == _RDMA_READ else 0

    def gather(self, offset: int, size: int) -> bytes | memoryview:
        """At most `size` bytes from `offset` of all pieces together."""
        if self.data is not None:
            return self.data[offset : offset + size]
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

    def scatter(self, offset: int, payload: bytes) -> None:
        """Stores a part of a response, which may cross from one piece into the next."""
        if isinstance(self.data, memoryview):
            self.data[offset : offset + len(payload)] = payload
            return
        for piece in self.pieces:
            if offset >= len(piece):
                offset -= len(piece)
                continue
            room = min(len(piece) - offset, len(payload))
            piece[offset : offset + room] = payload[:room]
            payload, offset = payload[room:], 0
            if not payload:
                return
