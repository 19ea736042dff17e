"""What a responder still has to say: acknowledgements, READ responses, atomic answers, in the order of PSNs.

The sending half of the responder. It cuts a READ's data into packets when their turn comes and reads memory only then;
it checks nothing that the responder has checked, except that a region still has its key.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import Final

from emul.regions import MemoryRegion
from emul.wire.frame import Flow
from emul.wire.headers import ATOMIC_ACK_ETH, PAD_SHIFT, Opcode, Syndrome
from emul.wire.psn import PSN_MASK

ANSWERS_MAX: Final = 256
"""Answers that wait to be sent; at the bound requests with a response and duplicates go unanswered (the requester asks
again), and of the acknowledgements behind them the last one remains."""

_ACKNOWLEDGE: Final = int(Opcode.ACKNOWLEDGE) << 8
_ATOMIC_ACKNOWLEDGE: Final = int(Opcode.ATOMIC_ACKNOWLEDGE) << 8
_FIRST: Final = int(Opcode.RDMA_READ_RESPONSE_FIRST)
_MIDDLE: Final = int(Opcode.RDMA_READ_RESPONSE_MIDDLE)
_LAST: Final = int(Opcode.RDMA_READ_RESPONSE_LAST)
_ONLY: Final = int(Opcode.RDMA_READ_RESPONSE_ONLY)
_ACK: Final = int(Syndrome.ACK)
_ACCESS_NAK: Final = int(Syndrome.NAK_REMOTE_ACCESS)
_ZEROS: Final = (b"", b"\0", b"\0\0", b"\0\0\0")
_WORD: Final = Struct("!I")
_WORD_AND_AETH: Final = Struct("!II")


class ReadJob:
    """A response that is being sent: a READ's data, or none at all for a FLUSH or an ATOMIC WRITE."""

    __slots__ = ("buffer", "first", "holds_slot", "msn", "offset", "psn", "region")

    def __init__(self, region: MemoryRegion | None, buffer: memoryview, psn: int, msn: int, holds_slot: bool) -> None:
        self.region = region
        self.buffer = buffer
        self.offset = 0
        self.psn = psn
        self.msn = msn
        self.first = True
        self.holds_slot = holds_slot


class AtomicAnswer:
    """The value that an atomic found."""

    __slots__ = ("holds_slot", "msn", "original", "psn")

    def __init__(self, psn: int, msn: int, original: int, holds_slot: bool) -> None:
        self.psn = psn
        self.msn = msn
        self.original = original
        self.holds_slot = holds_slot


class Answers:
    """All answers of a queue pair that wait to be sent."""

    __slots__ = ("_mtu", "dead_region", "slots", "waiting")

    def __init__(self, *, mtu: int) -> None:
        self._mtu = mtu
        self.waiting: deque[bytes | ReadJob | AtomicAnswer] = deque()
        """Acknowledgements as what they will consist of: the BTH's last word and the AETH."""
        self.slots = 0
        """READs, atomics, FLUSHes and ATOMIC WRITEs whose answer is not out yet, repeated ones not counted."""
        self.dead_region = False
        """A region lost its key in the middle of a response: refused with a NAK, and the queue pair must go to ERR."""

    def has_room(self) -> bool:
        """Whether one more may wait."""
        return len(self.waiting) < ANSWERS_MAX

    def acknowledge(self, psn: int, syndrome: int, msn: int) -> None:
        """ACK or NAK. Where no more may wait it takes the place of the last one, of which it says all and more."""
        waiting = self.waiting
        if len(waiting) >= ANSWERS_MAX and isinstance(waiting[-1], bytes):
            waiting.pop()
        waiting.append(_WORD_AND_AETH.pack(psn, syndrome << 24 | msn))

    def forget_data(self) -> None:
        """Nothing is read from memory any more; acknowledgements of what was done still go out."""
        self.waiting = deque(answer for answer in self.waiting if isinstance(answer, bytes))

    def respond(
        self, region: MemoryRegion | None, buffer: memoryview, psn: int, msn: int, *, repeated: bool = False
    ) -> None:
        """A READ response of `buffer`, which may be empty."""
        self.slots += not repeated
        self.waiting.append(ReadJob(region, buffer, psn, msn, not repeated))

    def answer_atomic(self, psn: int, msn: int, original: int, *, repeated: bool = False) -> None:
        """An ATOMIC ACKNOWLEDGE with the value that was there before."""
        self.slots += not repeated
        self.waiting.append(AtomicAnswer(psn, msn, original, not repeated))

    def next_frame(self, flow: Flow) -> bytes | None:
        """The oldest answer's next packet; None where none waits."""
        if not self.waiting:
            return None
        answer = self.waiting[0]
        if isinstance(answer, bytes):
            self.waiting.popleft()
            return flow.packet(_ACKNOWLEDGE, answer, b"")
        if isinstance(answer, AtomicAnswer):
            self._done(answer.holds_slot)
            head = _WORD_AND_AETH.pack(answer.psn, _ACK << 24 | answer.msn)
            return flow.packet(_ATOMIC_ACKNOWLEDGE, head + ATOMIC_ACK_ETH.pack(answer.original), b"")
        if answer.region is not None and not answer.region.valid:
            return self._refuse_rest(answer, flow)
        return self._response(answer, flow)

    def _response(self, job: ReadJob, flow: Flow) -> bytes:
        total = len(job.buffer)
        chunk: bytes | memoryview = job.buffer
        if total > self._mtu:
            chunk = job.buffer[job.offset : job.offset + self._mtu]
        job.offset += len(chunk)
        last = job.offset >= total
        opcode = (_ONLY if last else _FIRST) if job.first else (_LAST if last else _MIDDLE)
        pad = -len(chunk) & 3
        if pad:
            chunk = b"".join((chunk, _ZEROS[pad]))
        head = _WORD.pack(job.psn) if opcode == _MIDDLE else _WORD_AND_AETH.pack(job.psn, _ACK << 24 | job.msn)
        job.psn = (job.psn + 1) & PSN_MASK
        job.first = False
        if last:
            self._done(job.holds_slot)
        return flow.packet(opcode << 8 | pad << PAD_SHIFT, head, chunk)

    def _refuse_rest(self, job: ReadJob, flow: Flow) -> bytes:
        self.waiting.clear()  # nothing after a fatal NAK
        self.dead_region = True
        return flow.packet(_ACKNOWLEDGE, _WORD_AND_AETH.pack(job.psn, _ACCESS_NAK << 24 | job.msn), b"")

    def _done(self, holds_slot: bool) -> None:
        self.waiting.popleft()
        self.slots -= holds_slot
