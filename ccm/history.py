"""The history: what outsiders of a node saw, in the order in which it happened.

A host process writes here before it tells a client, into a file that the lab owns and that the host has mapped; what
was written stays when the host is killed between two instructions. Knows the layout of a record and nothing of who
checks it.

Layout: 64 bytes of header, then records of 64 bytes, all little-endian. A record counts once its `stamp` (the last
field, written last) is its index + 1, so that a record cut short by SIGKILL is not there at all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from emul.clock import Instant
from emul.memory import Memory

MAGIC = b"ccmhist1"
HEADER_BYTES: Final = 64
RECORD_BYTES: Final = 64
RECORDS_MAX: Final = 4_000_000
"""Size of a history (256 MB of sparse file); `HistoryFull` at the bound."""
_RECORD = struct.Struct("<QHHHHIIQQIIQQ")
# at, kind, node, partner, client, incarnation, epoch, sequence, offset, length, digest, extra, stamp
assert _RECORD.size == RECORD_BYTES
_STAMP = struct.Struct("<Q")
_STAMP_AT: Final = RECORD_BYTES - _STAMP.size
_KIND = struct.Struct("<H")
_KIND_AT: Final = 8


class HistoryFull(Exception):
    """The history reached its bound; the run is inconclusive."""


class Kind(IntEnum):
    """What happened."""

    HOST_STARTED = 1
    """A host process began (boot stage loader); `incarnation` is its own."""
    STAGE = 2
    """The host entered boot stage `extra` (emul.node_memory.Stage)."""
    READY_ALERT = 3
    """`client` was told that `partner` is ready, in `epoch`."""
    ERROR_ALERT = 4
    """`client` was told that the session of `epoch` with `partner` is broken; `extra` is a reason code."""
    SUBMITTED = 5
    """A write (or message) `sequence` of `client` was handed over: `offset`, `length`, CRC-32 `digest` of its bytes."""
    COMMITTED = 6
    """It was acknowledged to its client. From here on it must survive."""
    PATH_UP = 7
    """Path `extra` to `partner` carries sessions again."""
    PATH_DOWN = 8
    """Path `extra` to `partner` was taken out of use; `length` is a reason code (ccm.path.Reason)."""
    PATH_FENCED = 9
    """The partner acknowledged the fence of path `extra`, at fence epoch `sequence`."""
    REPLAYED = 10
    """`length` unconfirmed requests of `client` were posted again on path `extra`."""
    PARTNER_STATUS = 11
    """This node read its partner's boot status by RDMA and found stage `extra`, incarnation `sequence` (on change
    only).
    """
    SESSION_CLOSED = 12
    """`client` was told that its session with `partner` is closed, orderly."""
    DELIVERED = 13
    """`client` received message `sequence` of `partner` (digest of its bytes)."""
    HANDSHAKE_STEP = 14
    """Step `extra` (1 read 1, 2 write 1, 3 read 2, 4 write 2) towards `partner` succeeded on path `offset`."""
    SUSPENDED = 15
    """The host's own loop was not run for `extra` ns (an overloaded machine makes timing verdicts doubtful)."""
    REFUSED = 16
    """Something of `partner` was refused on path `offset`, or by it; `extra` is a reason code (ccm.reasons.Reason)."""
    ROUTED = 17
    """Virtual interface `offset` of `client` sends over path `extra` from here on, in `epoch`."""
    VIS_FAILED = 18
    """The virtual interfaces of `client` on path `extra`, which lives, failed in `epoch`, or the partner gave back its
    ends of them: they are made anew.
    """


_KINDS = {kind.value: kind for kind in Kind}
_BUSY = frozenset({int(kind) for kind in (Kind.SUBMITTED, Kind.COMMITTED, Kind.DELIVERED)})


class Entry(NamedTuple):
    """One record; `client` is an index into the client names of the run (0 = none)."""

    at: Instant
    kind: Kind
    node: int
    partner: int = 0
    client: int = 0
    incarnation: int = 0
    epoch: int = 0
    sequence: int = 0
    offset: int = 0
    length: int = 0
    digest: int = 0
    extra: int = 0


class HistoryWriter:
    """Appends to a mapped history. One writer at a time; a later incarnation of the same host goes on where it ended.
    """

    __slots__ = ("_buffer", "_capacity", "_count")

    def __init__(self, memory: Memory) -> None:
        self._buffer = memory.buffer
        self._capacity = (memory.length - HEADER_BYTES) // RECORD_BYTES
        self._buffer[: len(MAGIC)] = MAGIC
        self._count = count_entries(self._buffer)

    def note(
        self,
        at: Instant,
        kind: Kind,
        node: int,
        partner: int = 0,
        client: int = 0,
        incarnation: int = 0,
        epoch: int = 0,
        sequence: int = 0,
        offset: int = 0,
        length: int = 0,
        digest: int = 0,
        extra: int = 0,
    ) -> None:
        """Adds one record; it is in the lab's hands when this returns. Raises HistoryFull at the bound."""
        index = self._count
        if index >= self._capacity:
            raise HistoryFull(f"history holds {self._capacity} records at the most")
        _RECORD.pack_into(
            self._buffer, HEADER_BYTES + index * RECORD_BYTES, at, kind, node, partner, client, incarnation, epoch,
            sequence, offset, length, digest, extra, index + 1,
        )  # fmt: skip
        self._count = index + 1


def count_entries(buffer: memoryview, known: int = 0) -> int:
    """Number of whole records, of which `known` are certain: their stamps are without holes up to the end.

    Found in steps that double from `known` on, then by bisection: who asks often asks for little news.
    """
    low, step = known, 1
    high = (len(buffer) - HEADER_BYTES) // RECORD_BYTES
    while low + step <= high and is_whole(buffer, low + step - 1):
        low, step = low + step, 2 * step
    high = min(high, low + step - 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if is_whole(buffer, middle) else (low, middle)
    return low


def is_whole(buffer: memoryview, index: int) -> bool:
    """Whether there is a record at `index` that has its stamp."""
    at = HEADER_BYTES + index * RECORD_BYTES + _STAMP_AT
    if at >= len(buffer):
        return False
    stamp: int = _STAMP.unpack_from(buffer, at)[0]
    return stamp == index + 1


def kind_at(buffer: memoryview, index: int) -> int:
    """What kind the record at `index` is of, which must be whole."""
    kind: int = _KIND.unpack_from(buffer, HEADER_BYTES + index * RECORD_BYTES + _KIND_AT)[0]
    return kind


def entry_at(buffer: memoryview, index: int) -> Entry:
    """The record at `index`, which must be whole. Raises ValueError for a kind that there is not."""
    at, kind, node, partner, client, incarnation, epoch, sequence, offset, length, digest, extra, _ = (
        _RECORD.unpack_from(buffer, HEADER_BYTES + index * RECORD_BYTES)
    )
    known = _KINDS.get(kind)
    if known is None:
        raise ValueError(f"record {index} is of kind {kind}, expected 1 ... {len(_KINDS)}")
    # As Entry(...), in half the time.
    fields = (at, known, node, partner, client, incarnation, epoch, sequence, offset, length, digest, extra)
    return tuple.__new__(Entry, fields)


def new_entries(buffer: memoryview, start: int) -> tuple[list[Entry], int]:
    """What was written from index `start` on without the writes of a workload, and the next index to look from."""
    found: list[Entry] = []
    index = start
    while is_whole(buffer, index):
        if kind_at(buffer, index) not in _BUSY:
            found.append(entry_at(buffer, index))
        index += 1
    return found, index


def read_entries(buffer: memoryview, start: int = 0) -> Iterator[Entry]:
    """The records from index `start` on, as far as they are whole now."""
    index = start
    # The stamp first: read last, it could vouch for fields that were read before they were written.
    while is_whole(buffer, index):
        yield entry_at(buffer, index)
        index += 1
