"""Latency: one message in flight, as ib_send_lat, ib_write_lat, ib_read_lat and ib_atomic_lat measure it."""

from __future__ import annotations

import os
import time
from errno import ETIMEDOUT
from itertools import count

from emul.errors import RDMAError
from emul.perftest import report
from emul.perftest.ends import End
from emul.perftest.requests import request_for
from emul.vocabulary import RecvWR, SendWR, WCOpcode

LOOKS_BETWEEN_YIELDS = 20
"""How often memory is looked at before the processor is offered to others."""
LOOKS_BETWEEN_CLOCKS = 1 << 14


def measure(end: End, size: int) -> str:
    """One row."""
    options = end.options
    first = options.server is not None
    exchange = _EXCHANGES[options.verb](end, size)
    ways = 1 if options.verb in ("read", "atomic") else 2
    end.barrier()
    if not first and ways == 1:
        end.barrier()  # the other end reads here; nothing is to be done
        return ""
    samples: list[int] = []
    clock = time.perf_counter_ns
    begun = clock()
    until = begun + options.duration_s * 1_000_000_000 if options.duration_s else None
    for number in count(1):
        if until is None and number > options.iters:
            break
        stop = first and until is not None and clock() > until
        at = clock()
        goes_on = exchange.one(number, first, stop)
        samples.append((clock() - at) // ways)
        if stop or not goes_on:
            break
    elapsed = clock() - begun
    exchange.finish()
    end.barrier()
    if options.duration_s:
        return report.latency_of_duration(size, len(samples), elapsed, ways)
    return report.latency(size, samples)


class SendExchange:
    """A message there and one back. A message with immediate data 1 is the last."""

    def __init__(self, end: End, size: int) -> None:
        self._end, self._size = end, size
        self._sends, self._left = 0, 0
        self._request, self._last = (request_for(end, size, last=last) for last in (False, True))
        self._piece = [end.target_piece(size)]
        end.post_receives(end.options.rx_depth // 2, size)

    def one(self, number: int, first: bool, stop: bool) -> bool:
        """The exchange of one end; whether another one follows."""
        if first:
            self._send(stop)
            self._await()
            return not stop
        stop = self._await()
        self._send(stop)
        return not stop

    def _send(self, stop: bool) -> None:
        self._end.qp.post_send(self._last if stop else self._request)
        self._sends += 1

    def _await(self) -> bool:
        while not self._left:
            for completion in self._end.completions():
                if completion.opcode & WCOpcode.RECV:
                    self._left += 1
                    self._is_last = completion.imm_data == 1
                    self._end.qp.post_recv(RecvWR(0, 1, self._piece))
                else:
                    self._sends -= 1
        self._left -= 1
        return self._is_last

    def finish(self) -> None:
        """All sends are completed."""
        while self._sends > 0:
            self._sends -= sum(1 for each in self._end.completions() if not each.opcode & WCOpcode.RECV)


class WriteExchange:
    """A WRITE there and one back: each end looks at the last byte of its own memory until it has changed."""

    def __init__(self, end: End, size: int) -> None:
        self._end, self._size = end, size
        self._buffer = end.mr.memory.buffer
        self._at = end.target + size - 1
        self._mark = end.source + size - 1
        self._buffer[self._at] = 0
        self._inline = size <= end.options.inline
        self._request = request_for(end, size)
        self._open = 0

    def one(self, number: int, first: bool, stop: bool) -> bool:
        """The exchange of one end."""
        value = number % 255 + 1
        if not first:
            self._watch(value)
        self._buffer[self._mark] = value
        if self._open >= self._end.options.tx_depth:
            self._open -= len(self._end.completions())
        self._end.qp.post_send(self._request)
        self._open += 1
        if first:
            self._watch(value)
        return True

    def _watch(self, value: int) -> None:
        buffer, at = self._buffer, self._at
        looks = 0
        until = time.monotonic() + self._end.options.max_seconds
        while buffer[at] != value:
            looks += 1
            if looks % LOOKS_BETWEEN_YIELDS == 0:
                os.sched_yield()
                if looks % LOOKS_BETWEEN_CLOCKS == 0 and time.monotonic() > until:
                    raise RDMAError(ETIMEDOUT, "nothing is written here")

    def finish(self) -> None:
        """All WRITEs are completed."""
        while self._open > 0:
            self._open -= len(self._end.completions())


class FetchExchange:
    """A READ or an atomic: the other end's host has no part in it."""

    def __init__(self, end: End, size: int) -> None:
        self._end = end
        self._request: SendWR = request_for(end, size)

    def one(self, number: int, first: bool, stop: bool) -> bool:
        """One request and its answer."""
        self._end.qp.post_send(self._request)
        self._end.completions()
        return True

    def finish(self) -> None:
        """Nothing is left."""


_EXCHANGES: dict[str, type[SendExchange] | type[WriteExchange] | type[FetchExchange]] = {
    "send": SendExchange, "write": WriteExchange, "read": FetchExchange, "atomic": FetchExchange,
}  # fmt: skip
