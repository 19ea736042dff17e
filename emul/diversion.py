"""The way that a completion queue's completions take while a fault may lose, delay or reorder them.

Stands between queue pairs and their completion queue, and only while such a fault is armed or something is held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from emul.clock import Instant, after, earliest
from emul.sinks import CompletionSink

if TYPE_CHECKING:
    from emul.hardware_faults import Armed, HardwareFaults

COMPLETIONS_HELD_MAX = 16_384
"""Completions of one queue that wait; beyond, the queue is overrun."""
Completion = tuple[int, int, int, int, int, int, int, bool]
"""As CompletionSink.push takes it: wr_id, byte_len, qp_num, imm, status, opcode, flags, solicited."""
_QP_NUM, _OPCODE = 2, 5


class Diversion(CompletionSink):
    """One completion queue's (CompletionSink)."""

    __slots__ = ("_faults", "_late", "_lose", "_overtaken", "_overtaken_until", "_reorder", "sink")

    def __init__(self, sink: CompletionSink, faults: HardwareFaults, lose: Callable[[int], None]) -> None:
        self.sink = sink
        """The completion queue itself."""
        self._faults = faults
        self._lose = lose
        self._late: deque[tuple[Instant, Completion]] = deque()
        self._overtaken: list[Completion] = []
        """One that is to be overtaken, and what must stay behind it."""
        self._overtaken_until: Instant | None = None
        self._reorder: Armed | None = None

    def push(
        self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int, solicited: bool
    ) -> bool:
        """CompletionSink."""
        faults = self._faults
        lost = faults.hits_completion("cqe_lost", qp_num, opcode)
        if lost is not None:
            faults.fire(lost)
            return True
        completion = (wr_id, byte_len, qp_num, imm, status, opcode, flags, solicited)
        if self._reorder is not None:
            return self._overtake(completion, self._reorder)
        reorder = faults.hits_completion("cqe_reorder", qp_num, opcode)
        if reorder is None:
            return self._write(completion)
        self._reorder = reorder
        self._overtaken = [completion]
        self._overtaken_until = after(faults.now, int(reorder.values["delay_ns"]))
        return True

    def deadline(self) -> Instant | None:
        """When `release` has something to do."""
        return earliest(self._overtaken_until, self._late[0][0] if self._late else None)

    def release(self, until: Instant | None) -> None:
        """Writes what has waited until then; None: all of it."""
        if self._overtaken_until is not None and (until is None or self._overtaken_until <= until):
            self._write_overtaken()  # nothing came that could have overtaken it
        while self._late and (until is None or self._late[0][0] <= until):
            completion = self._late.popleft()[1]
            if not self.sink.push(*completion):
                self._lose(completion[_QP_NUM])

    def forget(self, number: int) -> None:
        """A queue pair is gone."""
        self._late = deque(each for each in self._late if each[1][_QP_NUM] != number)
        self._overtaken = [each for each in self._overtaken if each[_QP_NUM] != number]
        if not self._overtaken:
            self._reorder = self._overtaken_until = None

    def _overtake(self, completion: Completion, reorder: Armed) -> bool:
        same = completion[_QP_NUM] == self._overtaken[0][_QP_NUM]
        if same is not (reorder.values["scope"] == "within"):
            if same:  # across: what comes from the same queue pair stays behind
                self._overtaken.append(completion)
                return True
            return self._write(completion)  # within: others pass by, in their order
        room = self._write(completion)
        self._faults.fire(reorder)
        self._write_overtaken()
        return room

    def _write_overtaken(self) -> None:
        overtaken, self._overtaken = self._overtaken, []
        self._reorder = self._overtaken_until = None
        for completion in overtaken:
            if not self._write(completion):
                self._lose(completion[_QP_NUM])

    def _write(self, completion: Completion) -> bool:
        faults = self._faults
        delay = faults.hits_completion("cqe_delay", completion[_QP_NUM], completion[_OPCODE])
        if delay is None and not self._late:
            return self.sink.push(*completion)
        if len(self._late) >= COMPLETIONS_HELD_MAX:
            return False
        due = faults.now
        if delay is not None:
            due = after(due, int(delay.values["delay_ns"]))
            faults.fire(delay)
        if self._late:
            due = max(due, self._late[-1][0])
        self._late.append((due, completion))
        return True
