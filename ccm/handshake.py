"""The peer handshake of one path (R3): four RDMA steps, each gated by the success of the one before.

    read 1    the partner's status page: is there a host, and of which incarnation
    write 1   SEEN into the partner's inbox: "I, incarnation A, have read your incarnation B"
    read 2    the partner's own SEEN record: does it say "I, incarnation B, have read your incarnation A"
    write 2   SEEN again: "I know that you have read mine"

The flag is the pair of incarnations in the record's header, and the gate of read 2 compares both: a flag left by an
older incarnation of either side opens nothing. Both sides run the same steps; a step may be repeated at any time,
since each writes the same bytes to the same place. The machine decides what to do next; reading, writing and polling
are its user's.
"""

from __future__ import annotations

from enum import Enum, auto

from ccm.exchange import Record, Seen


class Step(Enum):
    """The step that comes next."""

    READ_STATUS = auto()
    """Read 1, repeated until the page shows a host."""
    WRITE_SEEN = auto()
    """Write 1."""
    READ_SEEN = auto()
    """Read 2, repeated until the partner's flag names both incarnations."""
    WRITE_KNOWN = auto()
    """Write 2."""
    DONE = auto()
    """All four succeeded for this pair of incarnations."""


STAGE_LOADER = 2
"""Lowest boot stage (emul.node_memory.Stage) at which the partner has a host, and a manager in it."""

STEP_NUMBERS = {Step.READ_STATUS: 1, Step.WRITE_SEEN: 2, Step.READ_SEEN: 3, Step.WRITE_KNOWN: 4}

WRITES = {1: Step.WRITE_SEEN, 2: Step.WRITE_KNOWN}
"""`Seen.step` -> the step that writes it."""

SUCCESSORS = {
    Step.READ_STATUS: Step.WRITE_SEEN,
    Step.WRITE_SEEN: Step.READ_SEEN,
    Step.READ_SEEN: Step.WRITE_KNOWN,
    Step.WRITE_KNOWN: Step.DONE,
}


class Handshake:
    """The steps of one path from one side. `partner_incarnation` is 0 until read 1 has succeeded."""

    __slots__ = ("_index", "incarnation", "partner_incarnation", "step", "steps_taken")

    def __init__(self, incarnation: int, index: int) -> None:
        self.incarnation = incarnation
        self._index = index
        self.partner_incarnation = 0
        self.step = Step.READ_STATUS
        self.steps_taken = 0

    def on_status(self, stage: int, incarnation: int) -> bool:
        """Read 1 brought a status page; whether the step succeeded.

        At a later step only another incarnation than the one read counts, and begins the steps anew.
        """
        if self.step is not Step.READ_STATUS and incarnation == self.partner_incarnation:
            return False
        self.step = Step.READ_STATUS
        self.partner_incarnation = 0
        if stage < STAGE_LOADER or incarnation == 0:
            return False
        self.partner_incarnation = incarnation
        return self._succeed(Step.READ_STATUS)

    def on_written(self, step_written: int) -> bool:
        """The partner's adapter acknowledged SEEN with step 1 or 2; whether that was the step under way.

        Raises ValueError for another number.
        """
        if step_written not in WRITES:
            raise ValueError(f"SEEN has step 1 or 2, got {step_written}")
        return WRITES[step_written] is self.step and self._succeed(self.step)

    def on_seen(self, record: Record | None) -> bool:
        """Read 2 brought the partner's record; whether it opens the gate.

        A record of a later incarnation of the partner tells that read 1 is out of date: back to it.
        """
        if self.step is not Step.READ_SEEN or record is None or not isinstance(record.body, Seen):
            return False
        if record.writer_incarnation > self.partner_incarnation:
            self.step, self.partner_incarnation = Step.READ_STATUS, 0
            return False
        expected = (self._index, self.partner_incarnation, self.incarnation)
        if (record.index, record.writer_incarnation, record.partner_incarnation) != expected:
            return False
        return self._succeed(Step.READ_SEEN)

    def restart(self) -> None:
        """Back to read 1: the connection was lost, or the partner has another incarnation."""
        self.step, self.partner_incarnation = Step.READ_STATUS, 0

    def _succeed(self, step: Step) -> bool:
        self.step = SUCCESSORS[step]
        self.steps_taken += 1
        return True
