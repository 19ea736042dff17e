"""Queues in memory that a host and an adapter share: send, receive, completion and doorbell rings.

Each ring has one producer and one consumer, which run in different processes and look at the same bytes; the simulator
lets both look at a bytearray. Python has no memory barriers, so an entry counts only once its stamp (its running
number, written as its last word and read before all others: who read it last could take the old fields of an entry with
its new stamp) is there, and whoever sleeps looks again after a bounded time. An adapter reads these
bytes as hostile input: whatever a host wrote, an index stays inside its ring and a length inside 32 bits.

Layouts, little-endian; every ring begins with a header of 64 bytes:

    send      header: retired u32. Entries of 128: opcode u8, flags u8, num_sge u8, -, imm u32, wr_id u64,
              remote_addr u64, rkey u32, lkey u32, addr u64, length u32, stamp u32; from byte 48 further SGEs of 16
              (lkey u32, length u32, addr u64), or inline data, or an atomic's compare_add u64 and swap u64
    receive   header: consumed u32. Entries of 128: wr_id u64, lkey u32, length u32, addr u64, num_sge u32, stamp u32;
              further SGEs of 16 from byte 32
    completion header: consumed u32, armed u32 (1 any, 2 solicited). Entries of 32: wr_id u64, byte_len u32,
              qp_num u32, imm u32, status u8, opcode u8, flags u8, -, -, stamp u32
    doorbell  header: sleeping u32, beats u32. Entries of 8: qp_num u32, stamp u32
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from emul.vocabulary import SGE, WC, SendFlags, WCFlags, WCOpcode, WCStatus, WROpcode
from emul.wqe import SendWqe

HEADER_BYTES: Final = 64
SEND_STRIDE: Final = 128
RECEIVE_STRIDE: Final = 128
COMPLETION_STRIDE: Final = 32
DOORBELL_STRIDE: Final = 8
DOORBELLS: Final = 1024
"""Doorbells that may wait; a host that rings more often makes the adapter look at all its queues."""
SEND_SGES_MAX: Final = 6
RECEIVE_SGES_MAX: Final = 7
INLINE_BYTES_MAX: Final = 80
"""Data that a send request may carry in its own entry."""
QUEUE_DEPTH_MAX: Final = 16_384
_MASK: Final = 0xFFFF_FFFF

_SEND: Final = struct.Struct("<BBBxIQQIIQII")
_SGE: Final = struct.Struct("<IIQ")
_OPERANDS: Final = struct.Struct("<QQ")
_RECEIVE: Final = struct.Struct("<QIIQII")
_COMPLETION: Final = struct.Struct("<QIIIBBBxxxxxI")
_DOORBELL: Final = struct.Struct("<II")
# Where in an entry its stamp stands, and what comes after the fixed fields.
_SEND_STAMP: Final = 44
_RECEIVE_STAMP: Final = 28
_COMPLETION_STAMP: Final = 28
_MORE_SENT: Final = 48
_MORE_RECEIVED: Final = 32
_INLINE: Final = int(SendFlags.INLINE)
_PLAIN_OPCODES: Final = int(WROpcode.RDMA_READ)
_ATOMICS: Final = (int(WROpcode.ATOMIC_CMP_AND_SWP), int(WROpcode.ATOMIC_FETCH_AND_ADD))
_ARMED_ANY: Final = 1
_ARMED_SOLICITED: Final = 2
assert _SEND.size == _MORE_SENT == _SEND_STAMP + 4
assert _RECEIVE.size == _MORE_RECEIVED == _RECEIVE_STAMP + 4
assert _COMPLETION.size == _COMPLETION_STAMP + 4
assert _MORE_SENT + INLINE_BYTES_MAX == SEND_STRIDE
assert _MORE_SENT + (SEND_SGES_MAX - 1) * _SGE.size == SEND_STRIDE
assert _MORE_RECEIVED + (RECEIVE_SGES_MAX - 1) * _SGE.size == RECEIVE_STRIDE
assert _COMPLETION.size == COMPLETION_STRIDE


def send_ring_bytes(depth: int) -> int:
    """Memory that a send ring of `depth` entries takes."""
    return HEADER_BYTES + depth * SEND_STRIDE


def receive_ring_bytes(depth: int) -> int:
    """Memory that a receive ring of `depth` entries takes."""
    return HEADER_BYTES + depth * RECEIVE_STRIDE


def completion_ring_bytes(depth: int) -> int:
    """Memory that a completion ring of `depth` entries takes."""
    return HEADER_BYTES + depth * COMPLETION_STRIDE


def index_span(depth: int) -> int:
    """Where running numbers begin again at 0: the largest multiple of `depth` in 32 bits, as otherwise the entry after
    the last would not be the first one, and one that still waits be overwritten.
    """
    return (1 << 32) // depth * depth


DOORBELL_RING_BYTES: Final = HEADER_BYTES + DOORBELLS * DOORBELL_STRIDE


class SendRing:
    """The send queue: the host posts, the adapter takes and later retires in order."""

    __slots__ = ("_buffer", "_depth", "_head", "_index", "_retired", "_span", "_words")

    def __init__(self, buffer: memoryview, depth: int) -> None:
        self._buffer = buffer
        self._depth = depth
        self._span = index_span(depth)
        self._head = self._words = buffer.cast("I")
        self._index = 0
        self._retired = 0

    def free(self) -> int:
        """Host: how many requests fit now."""
        return self._depth - ((self._index - self._head[0]) % self._span)

    def post(
        self,
        opcode: int,
        flags: int,
        wr_id: int,
        sges: Sequence[SGE],
        remote_addr: int = 0,
        rkey: int = 0,
        imm: int = 0,
        inline: bytes | None = None,
        operands: tuple[int, int] = (0, 0),
    ) -> bool:
        """Host: adds one request; False when the queue is full.

        `inline` is at most INLINE_BYTES_MAX and goes with SendFlags.INLINE, instead of `sges`; `operands` are an
        atomic's (compare_add, swap).
        """
        if self.free() <= 0:
            return False
        offset = HEADER_BYTES + self._index % self._depth * SEND_STRIDE
        if inline is not None:
            self._buffer[offset + _MORE_SENT : offset + _MORE_SENT + len(inline)] = inline
            sges = (SGE(0, len(inline), 0),)
        elif opcode in _ATOMICS:
            _OPERANDS.pack_into(self._buffer, offset + _MORE_SENT, *operands)
        else:
            for position, sge in enumerate(sges[1:]):
                place = offset + _MORE_SENT + _SGE.size * position
                _SGE.pack_into(self._buffer, place, sge.lkey, sge.length, sge.addr)
        first = sges[0] if sges else SGE(0, 0, 0)
        stamp = self._index = (self._index + 1) % self._span
        _SEND.pack_into(
            self._buffer, offset, opcode, flags, len(sges), imm, wr_id, remote_addr, rkey, first.lkey, first.addr,
            first.length, stamp,
        )  # fmt: skip
        return True

    def post_one(
        self, opcode: int, flags: int, wr_id: int, lkey: int, addr: int, length: int, remote_addr: int, rkey: int
    ) -> bool:
        """Host: the same for one piece of memory and no immediate data, without building lists."""
        index = self._index
        if (index - self._head[0]) % self._span >= self._depth:
            return False
        stamp = self._index = (index + 1) % self._span
        _SEND.pack_into(
            self._buffer, HEADER_BYTES + index % self._depth * SEND_STRIDE, opcode, flags, 1, 0, wr_id, remote_addr,
            rkey, lkey, addr, length, stamp,
        )  # fmt: skip
        return True

    def take(self) -> SendWqe | None:
        """Adapter: the next request as it stands in the ring, None while there is none."""
        index = self._index
        offset = HEADER_BYTES + index % self._depth * SEND_STRIDE
        following = (index + 1) % self._span
        if self._words[(offset + _SEND_STAMP) >> 2] != following:
            return None
        opcode: int
        flags: int
        count: int
        opcode, flags, count, imm, wr_id, remote_addr, rkey, lkey, addr, length, _ = _SEND.unpack_from(
            self._buffer, offset
        )
        self._index = following
        if count == 0 and not flags & _INLINE:
            lkey = addr = length = 0
        wqe = SendWqe(wr_id, opcode, flags, imm, remote_addr, rkey, lkey, addr, length)
        if count != 1 or flags >= _INLINE or opcode > _PLAIN_OPCODES:
            self._take_more(wqe, offset + _MORE_SENT, count)
        return wqe

    def _take_more(self, wqe: SendWqe, more: int, count: int) -> None:
        """What stands behind the first piece."""
        if wqe.flags & _INLINE:
            wqe.inline = bytes(self._buffer[more : more + min(wqe.size, INLINE_BYTES_MAX)])
        elif wqe.opcode in _ATOMICS:
            wqe.compare_add, wqe.swap = _OPERANDS.unpack_from(self._buffer, more)
        elif count > 1:
            wqe.further = _further_pieces(self._buffer, more, min(count, SEND_SGES_MAX) - 1)

    def retire(self, count: int) -> None:
        """Adapter: the oldest `count` requests are completed; their entries may be used again."""
        self._retired = (self._retired + count) % self._span
        self._head[0] = self._retired


def _further_pieces(buffer: memoryview, offset: int, count: int) -> list[tuple[int, int, int]]:
    """The pieces after the first, as (lkey, addr, length)."""
    pieces = []
    for position in range(count):
        lkey, length, addr = _SGE.unpack_from(buffer, offset + _SGE.size * position)
        pieces.append((lkey, addr, length))
    return pieces


class ReceiveEntry(NamedTuple):
    """A receive work request: where a message goes."""

    wr_id: int
    sges: tuple[tuple[int, int, int], ...]
    """(lkey, addr, length) each."""


class ReceiveRing:
    """The receive queue: the host posts buffers, the adapter takes them in order. Queue pairs may share one."""

    __slots__ = ("_buffer", "_depth", "_head", "_index", "_span", "_words")

    def __init__(self, buffer: memoryview, depth: int) -> None:
        self._buffer = buffer
        self._depth = depth
        self._span = index_span(depth)
        self._head = self._words = buffer.cast("I")
        self._index = 0

    def post(self, wr_id: int, sges: Sequence[SGE]) -> bool:
        """Host: adds one buffer of up to RECEIVE_SGES_MAX pieces; False when the queue is full."""
        index = self._index
        if (index - self._head[0]) % self._span >= self._depth:
            return False
        offset = HEADER_BYTES + index % self._depth * RECEIVE_STRIDE
        for position, sge in enumerate(sges[1:]):
            place = offset + _MORE_RECEIVED + _SGE.size * position
            _SGE.pack_into(self._buffer, place, sge.lkey, sge.length, sge.addr)
        first = sges[0] if sges else SGE(0, 0, 0)
        stamp = self._index = (index + 1) % self._span
        _RECEIVE.pack_into(self._buffer, offset, wr_id, first.lkey, first.length, first.addr, len(sges), stamp)
        return True

    def post_one(self, wr_id: int, lkey: int, addr: int, length: int) -> bool:
        """Host: the same for a buffer of one piece."""
        index = self._index
        if (index - self._head[0]) % self._span >= self._depth:
            return False
        stamp = self._index = (index + 1) % self._span
        offset = HEADER_BYTES + index % self._depth * RECEIVE_STRIDE
        _RECEIVE.pack_into(self._buffer, offset, wr_id, lkey, length, addr, 1, stamp)
        return True

    def take(self) -> ReceiveEntry | None:
        """Adapter: the oldest buffer, None when none is posted."""
        offset = HEADER_BYTES + self._index % self._depth * RECEIVE_STRIDE
        following = (self._index + 1) % self._span
        if self._words[(offset + _RECEIVE_STAMP) >> 2] != following:
            return None
        count: int
        wr_id, lkey, length, addr, count, _ = _RECEIVE.unpack_from(self._buffer, offset)
        self._index = self._head[0] = following
        if count == 1:
            return ReceiveEntry(wr_id, ((lkey, addr, length),))
        if count == 0:
            return ReceiveEntry(wr_id, ())
        further = _further_pieces(self._buffer, offset + _MORE_RECEIVED, min(count, RECEIVE_SGES_MAX) - 1)
        return ReceiveEntry(wr_id, ((lkey, addr, length), *further))

    def holds(self, count: int) -> bool:
        """Adapter: whether at least `count` buffers, 1 ... depth, are posted (for the limit of a shared queue): they
        are posted in order, so that the last of them tells.
        """
        last = (self._index + count - 1) % self._span
        stamp = self._words[(HEADER_BYTES + last % self._depth * RECEIVE_STRIDE + _RECEIVE_STAMP) >> 2]
        return stamp == (last + 1) % self._span


_WC_STATUS: Final = {int(status): status for status in WCStatus}
_WC_OPCODE: Final = {int(opcode): opcode for opcode in WCOpcode}
_WC_FLAGS: Final = {number: WCFlags(number) for number in range(16)}


class CompletionRing:
    """The completion queue: the adapter pushes, the host polls and may ask to be woken by the next one."""

    __slots__ = ("_buffer", "_depth", "_head", "_index", "_span", "_words")

    def __init__(self, buffer: memoryview, depth: int) -> None:
        self._buffer = buffer
        self._depth = depth
        self._span = index_span(depth)
        self._head = self._words = buffer.cast("I")
        self._index = 0

    def push(self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int) -> bool:
        """Adapter: adds one; False when the host left no room (a CQ overrun)."""
        index = self._index
        if (index - self._head[0]) % self._span >= self._depth:
            return False
        stamp = self._index = (index + 1) % self._span
        _COMPLETION.pack_into(
            self._buffer, HEADER_BYTES + index % self._depth * COMPLETION_STRIDE, wr_id, byte_len, qp_num, imm, status,
            opcode, flags, stamp,
        )  # fmt: skip
        return True

    def waiting(self) -> int:
        """Adapter: completions that the host has not polled, as far as it tells."""
        return min((self._index - self._head[0]) % self._span, self._depth)

    def armed(self) -> int:
        """Adapter: what the host wants to be woken by: 0 nothing, 1 any completion, 2 solicited ones."""
        return self._head[1]

    def take_armed(self, solicited: bool) -> bool:
        """Adapter: whether the host wants to be woken by a completion that was solicited (an error counts as such), or
        not; asks once, so it is disarmed after.
        """
        armed = self._head[1]
        if not armed or (armed == _ARMED_SOLICITED and not solicited):
            return False
        self._head[1] = 0
        return True

    def poll(self, entries_max: int) -> list[WC]:
        """Host: the oldest completions."""
        completions: list[WC] = []
        words, index = self._words, self._index
        for _ in range(entries_max):
            offset = HEADER_BYTES + index % self._depth * COMPLETION_STRIDE
            following = (index + 1) % self._span
            if words[(offset + _COMPLETION_STAMP) >> 2] != following:
                break
            wr_id, length, qp_num, imm, status, opcode, flags, _ = _COMPLETION.unpack_from(self._buffer, offset)
            index = self._index = self._head[0] = following
            # As WC(...), in half the time.
            how, what, more = _WC_STATUS[status], _WC_OPCODE[opcode], _WC_FLAGS[flags]
            fields = (wr_id, how, what, length, qp_num, imm, more, 0, 0, 0, 0, 0, 0)
            completions.append(tuple.__new__(WC, fields))
        return completions

    def arm(self, solicited_only: bool = False) -> None:
        """Host: wake me with the next one. Poll once more afterwards: one may have come in between. Asking for all is
        never weakened by asking for solicited ones.
        """
        if not solicited_only:
            self._head[1] = _ARMED_ANY
        elif self._head[1] != _ARMED_ANY:
            self._head[1] = _ARMED_SOLICITED


class DoorbellRing:
    """Which queue pairs have new work. Overrun is no error: the adapter then looks at all of them."""

    __slots__ = ("_buffer", "_head", "_index", "_words")

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._head = self._words = buffer.cast("I")
        self._index = 0

    def ring(self, qp_num: int) -> bool:
        """Host: notes the queue pair; True when the adapter sleeps and must be woken."""
        index = self._index
        stamp = self._index = (index + 1) & _MASK
        _DOORBELL.pack_into(self._buffer, HEADER_BYTES + index % DOORBELLS * DOORBELL_STRIDE, qp_num, stamp)
        return self._head[0] != 0

    def take(self) -> int | None:
        """Adapter: the next queue pair number, -1 for "overrun: look at all", None while there is none."""
        offset = HEADER_BYTES + self._index % DOORBELLS * DOORBELL_STRIDE
        following = (self._index + 1) & _MASK
        stamp = self._words[(offset >> 2) + 1]
        if stamp == following:
            self._index = following
            return self._words[offset >> 2]
        ahead = (stamp - following) & _MASK
        if stamp and 0 < ahead < 1 << 31:  # overwritten by a later round
            self._index = stamp
            return -1
        return None

    def beat(self) -> None:
        """Adapter: shows that it runs."""
        self._head[1] = (self._head[1] + 1) & _MASK

    def beats(self) -> int:
        """Host: a number that changes for as long as the adapter runs."""
        return self._head[1]

    def waiting(self) -> bool:
        """Adapter: whether a doorbell has rung that was not taken."""
        offset = HEADER_BYTES + self._index % DOORBELLS * DOORBELL_STRIDE
        return self._words[(offset >> 2) + 1] == (self._index + 1) & _MASK

    def set_sleeping(self, sleeping: bool) -> None:
        """Adapter: says before it sleeps that it wants to be woken, and looks at the ring once more after that."""
        self._head[0] = int(sleeping)
