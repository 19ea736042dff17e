"""The adapter's ends of a host's queues: completion queues and their channels, receives that are shared or not."""

from __future__ import annotations

from collections.abc import Callable

from emul.memory import Memory
from emul.queues import CompletionRing, DoorbellRing, ReceiveEntry, ReceiveRing, SendEntry, SendRing


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


class CompletionQueue:
    """A host's completion queue: the sink of its queue pairs. `wake` is called when the host had asked for it."""

    __slots__ = ("_wake", "channel", "depth", "lost", "memory", "number", "ring")

    def __init__(
        self, number: int, memory: Memory, depth: int, channel: CompletionChannel | None, wake: Callable[[], None]
    ) -> None:
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


class HostWork:
    """A host's send and receive rings: the source of a queue pair's work."""

    __slots__ = ("retire_send", "shares_receives", "take_receive", "take_send")

    def __init__(self, send: SendRing, receives: ReceiveRing | SharedReceives) -> None:
        self.shares_receives = isinstance(receives, SharedReceives)
        self.take_send: Callable[[], SendEntry | None] = send.take
        self.retire_send: Callable[[int], None] = send.retire
        self.take_receive: Callable[[], ReceiveEntry | None] = receives.take


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
        if self.limit and self.ring.waiting(self.limit) < self.limit:
            self.limit = 0
            self._low(self.number)
        return entry
