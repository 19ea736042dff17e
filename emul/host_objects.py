"""The adapter's ends of a host's queues: completion queues and their channels, receives that are shared or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from emul.memory import Memory
from emul.queues import CompletionRing, DoorbellRing, ReceiveEntry, ReceiveRing, SendRing
from emul.sinks import CompletionSink, WorkSource
from emul.vocabulary import WCOpcode, WCStatus
from emul.wqe import SendWqe

_RECV: Final = int(WCOpcode.RECV)


class Tally:
    """Completions of all queues of an adapter, by opcode; those with an error by side and status."""

    __slots__ = ("completed", "failed")

    def __init__(self) -> None:
        self.completed = [0] * 256
        self.failed: Counter[tuple[bool, int]] = Counter()
        """(whether it is a receive's, status)"""

    def counters(self) -> dict[str, int]:
        """Under the names of rxe and mlx5."""
        failed = self.failed
        requests = sum(count for (received, _), count in failed.items() if not received)
        receives = sum(count for (received, _), count in failed.items() if received)
        return {
            "rdma_sends": self.completed[WCOpcode.SEND],
            "rdma_recvs": self.completed[WCOpcode.RECV] + self.completed[WCOpcode.RECV_RDMA_WITH_IMM],
            "req_cqe_error": requests,
            "req_cqe_flush_error": failed[False, WCStatus.WR_FLUSH_ERR],
            "req_remote_access_errors": failed[False, WCStatus.REM_ACCESS_ERR],
            "req_remote_invalid_request": failed[False, WCStatus.REM_INV_REQ_ERR],
            "resp_cqe_error": receives,
            "resp_cqe_flush_error": failed[True, WCStatus.WR_FLUSH_ERR],
            "resp_local_length_error": failed[True, WCStatus.LOC_LEN_ERR],
        }


class CompletionChannel:
    """Where completion queues tell their events: numbers of queues in a ring of its own, and a bell."""

    __slots__ = ("_ring", "_ring_bell", "bell", "memory", "number")

    def __init__(self, number: int, memory: Memory, bell: Memory, ring_bell: Callable[[Memory], None]) -> None:
        self.number = number
        self.memory = memory
        self.bell = bell
        self._ring = DoorbellRing(memory.buffer)
        self._ring_bell = ring_bell

    def tell(self, cq: int) -> None:
        """One event of completion queue `cq`."""
        self._ring.ring(cq)
        self._ring_bell(self.bell)


class CompletionQueue(CompletionSink):
    """A host's completion queue: the sink of its queue pairs. `wake` is called when the host had asked for it."""

    __slots__ = ("_tally", "_wake", "channel", "depth", "lost", "memory", "number", "ring")

    def __init__(
        self,
        number: int,
        memory: Memory,
        depth: int,
        channel: CompletionChannel | None,
        wake: Callable[[], None],
        tally: Tally,
    ) -> None:
        self._tally = tally
        self.number = number
        self.memory = memory
        self.depth = depth
        self.ring = CompletionRing(memory.buffer, depth)
        self.channel = channel
        self._wake = wake
        self.lost = False

    def push(
        self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int, solicited: bool
    ) -> bool:
        """CompletionSink."""
        if not self.ring.push(wr_id, byte_len, qp_num, imm, status, opcode, flags):
            self.lost = True
            return False
        if status:
            self._tally.failed[opcode >= _RECV, status] += 1
        else:
            self._tally.completed[opcode] += 1
        if self.ring.take_armed(solicited):
            if self.channel is None:
                self._wake()
            else:
                self.channel.tell(self.number)
        return True

    def move(self, memory: Memory, depth: int) -> Memory:
        """Goes on in other memory; gives what it leaves. What the host has not polled there stays there for it."""
        left, armed = self.memory, self.ring.armed()
        self.memory, self.depth = memory, depth
        self.ring = CompletionRing(memory.buffer, depth)
        if armed:
            self.ring.arm(solicited_only=armed == 2)
        return left


class HostWork(WorkSource):
    """A host's send and receive rings: the source of a queue pair's work."""

    __slots__ = ("_receives", "_send", "_shared")

    def __init__(self, send: SendRing, receives: ReceiveRing | SharedReceives) -> None:
        self._send = send
        self._receives = receives if isinstance(receives, ReceiveRing) else None
        self._shared = receives if isinstance(receives, SharedReceives) else None

    def take_send(self) -> SendWqe | None:
        """WorkSource."""
        return self._send.take()

    def retire_send(self, count: int) -> None:
        """WorkSource."""
        self._send.retire(count)

    def take_receive(self) -> ReceiveEntry | None:
        """WorkSource."""
        if self._receives is not None:
            return self._receives.take()
        return None if self._shared is None else self._shared.take()

    def shares_receives(self) -> bool:
        """WorkSource."""
        return self._shared is not None


class SharedReceives:
    """A shared receive queue: buffers for whichever of its queue pairs needs one next."""

    __slots__ = ("_low", "depth", "limit", "max_sge", "memory", "number", "ring")

    def __init__(self, number: int, memory: Memory, depth: int, max_sge: int, low: Callable[[int], None]) -> None:
        self.number = number
        self.memory = memory
        self.depth = depth
        self.max_sge = max_sge
        self.ring = ReceiveRing(memory.buffer, depth)
        self.limit = 0
        """Armed: fewer buffers than these are told once."""
        self._low = low

    def take(self) -> ReceiveEntry | None:
        """The oldest buffer, None when none is posted."""
        entry = self.ring.take()
        if self.limit and not self.ring.holds(self.limit):
            self.limit = 0
            self._low(self.number)
        return entry
