"""Completion queues and the channels that tell of them (pyverbs' `cq`)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL

from emul.errors import PyverbsUserError, RDMAError
from emul.memory import Memory
from emul.queues import CompletionRing, DoorbellRing
from emul.verbs.base import Resource, answered_int, as_int, expect
from emul.verbs.device import NUM_COMP_VECTORS, Context
from emul.vocabulary import WC


class CompChannel(Resource):
    """A completion channel: a descriptor of its own that is readable while completion events wait."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = expect(context, Context, "a completion channel's context")
        reply, (self._memory, self._bell) = self.context.call({"op": "create_comp_channel"})
        self.number = answered_int(reply, "channel")
        self._ring: DoorbellRing | None = DoorbellRing(self._memory.buffer)
        self._by_number: dict[int, CQ] = {}
        self._waiting: list[CQ] = []
        self._belongs_to(self.context)

    @property
    def fd(self) -> int:
        """For select, poll and epoll; -1 in the simulator."""
        return -1 if self._bell.fd is None else self._bell.fd

    def fileno(self) -> int:
        """`fd`, so that the channel itself can be registered with a selector."""
        return self.fd

    def get_cq_event(self, expected_cq: CQ | None = None, timeout_ms: int | None = None) -> CQ:
        """Takes the next completion event; waits for it, at most `timeout_ms`. Gives the queue that it is about.

        Each event is to be acknowledged (`CQ.ack_events`) before its queue is closed. Raises RDMAError: EAGAIN where
        none comes in time, EINVAL where it is about another queue than `expected_cq` (it waits for the next call then).
        """
        self._check_open()
        if expected_cq is not None:
            expect(expected_cq, CQ, "expected_cq")
        while not self._waiting:
            if not self._take() and not self.context.device.wait(self._bell, timeout_ms):
                raise RDMAError(EAGAIN, "no completion event waits")
        if expected_cq is not None and self._waiting[0] is not expected_cq:
            raise RDMAError(EINVAL, f"an event of CQ {self._waiting[0].number} came, not of CQ {expected_cq.number}")
        cq = self._waiting.pop(0)
        cq._unacknowledged += 1
        return cq

    def _take(self) -> bool:
        """Moves what has come into `_waiting`; False where nothing had."""
        number = None if self._ring is None else self._ring.take()
        if number is None:
            return False
        if number == -1:  # more events than the ring holds: each queue may have had one
            self._waiting.extend(self._by_number.values())
        elif number in self._by_number:
            self._waiting.append(self._by_number[number])
        return True

    def _destroy(self) -> None:
        self.context.call({"op": "destroy_comp_channel", "channel": self.number})

    def _release(self) -> None:
        self._ring = None
        self._memory.close()
        self._bell.close()


class CQ(Resource):
    """A completion queue of at least `cqe` entries; closing it closes its queue pairs.

    Without a `channel`, an armed queue wakes the context's `event_fd`.
    """

    def __init__(
        self,
        context: Context,
        cqe: int,
        cq_context: object = None,
        channel: CompChannel | None = None,
        comp_vector: int = 0,
    ) -> None:
        super().__init__()
        self.context = expect(context, Context, "a CQ's context")
        if not 0 <= as_int(comp_vector, "comp_vector") < NUM_COMP_VECTORS:
            raise PyverbsUserError(f"comp_vector must be below {NUM_COMP_VECTORS}, got {comp_vector}")
        if channel is not None:
            expect(channel, CompChannel, "channel")._check_open()
            if channel.context is not context:
                raise PyverbsUserError("the completion channel belongs to another context")
        self.channel = channel
        self.cq_context = cq_context
        request: dict[str, object] = {"op": "create_cq", "cqe": as_int(cqe, "cqe")}
        if channel is not None:
            request["channel"] = channel.number
        reply, memories = context.call(request)
        self.number = answered_int(reply, "cq")
        self._left: list[WC] = []
        self._use(memories[0], cqe)
        self._belongs_to(context)
        if channel is not None:
            self._belongs_to(channel)
            channel._by_number[self.number] = self
        context._by_number["cq", self.number] = self

    def poll(self, num_entries: int = 1) -> tuple[int, list[WC]]:
        """Up to `num_entries` completions, oldest first, and how many they are."""
        ring = self._ring
        if ring is None:
            raise self._closed_error()
        if not self._left:
            completions = ring.poll(num_entries)
            return len(completions), completions
        completions, self._left = self._left[:num_entries], self._left[num_entries:]
        completions += ring.poll(num_entries - len(completions))
        return len(completions), completions

    def req_notify(self, solicited_only: bool = False) -> None:
        """Asks for an event with the next completion, or with the next solicited or failed one; poll once more
        afterwards.
        """
        if self._ring is None:
            raise self._closed_error()
        self._ring.arm(solicited_only)

    def ack_events(self, num_events: int) -> None:
        """Acknowledges so many events that `CompChannel.get_cq_event` has given for this queue."""
        self._check_open()
        if not 0 <= as_int(num_events, "num_events") <= self._unacknowledged:
            raise PyverbsUserError(
                f"{num_events} events are acknowledged, CQ {self.number} has given {self._unacknowledged}"
            )
        self._unacknowledged -= num_events

    def resize(self, cqe: int) -> None:
        """Makes room for `cqe` entries; completions that wait are kept. Raises RDMAError (EINVAL) where more wait than
        will fit.
        """
        self._check_open()
        _, memories = self.context.call({"op": "resize_cq", "cq": self.number, "cqe": as_int(cqe, "cqe")})
        # The adapter pushes into the new ring already: what is in the old one comes first.
        count, self._left = self.poll(self.cqe + len(self._left))
        self._memory.close()
        self._use(memories[0], cqe)

    def _use(self, memory: Memory, cqe: int) -> None:
        self._memory = memory
        self.cqe = cqe
        self._ring: CompletionRing | None = CompletionRing(memory.buffer, cqe)

    def _destroy(self) -> None:
        self.context.call({"op": "destroy_cq", "cq": self.number})

    def _release(self) -> None:
        self._left = []
        self._ring = None
        self._memory.close()
        self.context._by_number.pop(("cq", self.number), None)
        if self.channel is not None:
            self.channel._by_number.pop(self.number, None)
            self.channel._waiting = [cq for cq in self.channel._waiting if cq is not self]
