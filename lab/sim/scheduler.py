"""What happens when: one heap of (time, priority, sequence) in virtual integer nanoseconds, and a trace with a hash.

Two events of the same time run by priority, then in the order in which they were planned; nothing depends on the
identity or hash of an object. The trace is a running hash over everything noteworthy that happened: two runs with the
same hash did the same.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections.abc import Callable
from enum import IntEnum

from emul.clock import Instant

EVENTS_MAX = 200_000_000
"""Events of one run; more is a loop that doesn't end, and an assertion."""
TRACED_AT_ONCE_BYTES = 65_536
"""Entries of the trace are hashed in runs of about this size."""
_TRACE = struct.Struct("<QBHI")
_FRAME_TRACE = struct.Struct("<QBH")
"""As _TRACE, with the last four bytes of the frame behind it."""

Action = Callable[[], None]


class Priority(IntEnum):
    """Order among events of the same moment: hardware before the software that looks at it."""

    FAULT = 0
    FRAME = 1
    ADAPTER = 2
    HOST = 3


class What(IntEnum):
    """Kinds of entries in the trace."""

    FRAME = 1
    CARRIER = 2
    HOST = 3
    FAULT = 4


class Scheduler:
    """The heap and the virtual clock."""

    __slots__ = ("_heap", "_sequence", "_trace", "_traced", "events", "now")

    def __init__(self) -> None:
        self.now = Instant(0)
        self.events = 0
        """How many have run."""
        self._heap: list[tuple[int, int, int, Action]] = []
        self._sequence = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self._traced = bytearray()

    def at(self, moment: int, priority: Priority, action: Action) -> None:
        """Plans `action`; a moment that is past means "next"."""
        self._sequence += 1
        heapq.heappush(self._heap, (moment if moment > self.now else self.now, priority, self._sequence, action))

    def after(self, delay_ns: int, priority: Priority, action: Action) -> None:
        """Plans `action` in `delay_ns` from now."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_ns, priority, self._sequence, action))

    def clear(self) -> None:
        """Forgets all that is planned; clock and trace stay."""
        self._heap.clear()

    def run_until(self, moment: int) -> None:
        """Runs all events up to and with `moment`, then sets the clock to it."""
        heap, pop, ran = self._heap, heapq.heappop, 0
        try:
            while heap and heap[0][0] <= moment:
                at, _, _, action = pop(heap)
                self.now = Instant(at)
                ran += 1
                action()
        finally:
            self.events += ran
        assert self.events < EVENTS_MAX, f"{self.events} events: something plans itself for ever"
        self.now = Instant(max(self.now, moment))

    def trace(self, what: What, where: int, detail: int, at: int | None = None) -> None:
        """Adds to the trace: `where` below 65536, `detail` below 2**32; of this moment, or of the moment `at`."""
        traced = self._traced
        traced += _TRACE.pack(self.now if at is None else at, what, where, detail)
        if len(traced) >= TRACED_AT_ONCE_BYTES:
            self._trace.update(traced)
            traced.clear()

    def trace_frame(self, where: int, frame: bytes, at: int) -> None:
        """Adds a frame that arrived at the moment `at`: its last four bytes are a checksum over all of it."""
        traced = self._traced
        traced += _FRAME_TRACE.pack(at, 1, where)
        traced += frame[-4:]
        if len(traced) >= TRACED_AT_ONCE_BYTES:
            self._trace.update(traced)
            traced.clear()

    def trace_hash(self) -> str:
        """Of all that was traced so far."""
        trace = self._trace.copy()
        trace.update(self._traced)
        return trace.hexdigest()
