"""What a queue pair is connected with inside its adapter: where its work comes from, and where its completions go.

Classes to be derived from, not protocols: both are called for each request, and a call through a protocol costs several
times as much where the adapter is compiled.
"""

from __future__ import annotations

from emul.queues import ReceiveEntry
from emul.wqe import SendWqe


class CompletionSink:
    """Where a queue pair's completions go."""

    __slots__ = ()

    def push(
        self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int, solicited: bool
    ) -> bool:
        """Takes one completion; False when there is no room."""
        raise NotImplementedError


class WorkSource:
    """Where a queue pair's work requests come from."""

    __slots__ = ()

    def take_send(self) -> SendWqe | None:
        """The next send work request, None while there is none."""
        raise NotImplementedError

    def retire_send(self, count: int) -> None:
        """The oldest `count` are completed."""
        raise NotImplementedError

    def take_receive(self) -> ReceiveEntry | None:
        """The oldest posted receive, None where none is posted."""
        raise NotImplementedError

    def shares_receives(self) -> bool:
        """Whether other queue pairs take from the same receives, so that one's end doesn't flush them."""
        raise NotImplementedError
