"""Bandwidth: up to -t messages in flight, as ib_send_bw, ib_write_bw, ib_read_bw and ib_atomic_bw measure it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from emul.perftest import report
from emul.perftest.ends import End
from emul.perftest.requests import request_for
from emul.vocabulary import RecvWR, WCOpcode

NANOSECONDS = 1_000_000_000


def measure(end: End, size: int) -> str:
    """One row; on the server of a one-way test the client's own figures."""
    options = end.options
    sends = options.server is not None or options.bidirectional
    receives = options.verb == "send" and (options.server is None or options.bidirectional)
    run = Run(end, size, sends=sends, receives=receives)
    end.barrier()
    run.go()
    mine = {"count": run.sent, "peak": run.peak(), "average": run.average()}
    theirs = end.exchange.swap(mine)
    figures = [each for each in (mine, theirs) if each.get("count")]
    total = sum(int(str(each["count"])) for each in figures)
    peak, average = (sum(float(str(each[name])) for each in figures) for name in ("peak", "average"))
    return report.bandwidth(options, size, total, peak, average)


class Run:
    """The messages of one end: those that it sends, and those that it receives."""

    def __init__(self, end: End, size: int, *, sends: bool, receives: bool) -> None:
        self._end, self._size = end, size
        self._sends = sends
        self.sent = 0
        self._completed = 0
        self._posted_at: list[int] = []
        self._completed_at: list[int] = []
        self._got_last = not receives
        self._piece = [end.target_piece(size)]
        if receives:
            end.post_receives(end.options.rx_depth // 2, size)
        self._request, self._last = (
            request_for(end, size, last=last and end.options.verb == "send") for last in (False, True)
        )

    def go(self) -> None:
        """Sends all, receives all."""
        options, qp = self._end.options, self._end.qp
        clock = time.perf_counter_ns
        until = clock() + options.duration_s * NANOSECONDS if options.duration_s else None
        goal = options.iters if self._sends else 0
        ended = not self._sends
        while not ended or self._completed < self.sent or not self._got_last:
            while not ended and self.sent - self._completed < options.tx_depth:
                now = clock()
                ended = self.sent + 1 >= goal if until is None else now > until
                qp.post_send(self._last if ended else self._request)
                self._posted_at.append(now)
                self.sent += 1
            self._take()

    def _take(self) -> None:
        for completion in self._end.completions():
            if completion.opcode & WCOpcode.RECV:
                self._got_last = self._got_last or completion.imm_data == 1
                self._end.qp.post_recv(RecvWR(0, 1, self._piece))
            else:
                self._completed += 1
                self._completed_at.append(time.perf_counter_ns())

    def average(self) -> float:
        """Messages a second from the first that was posted to the last that was completed."""
        if not self.sent:
            return 0.0
        return self.sent * NANOSECONDS / max(1, self._completed_at[-1] - self._posted_at[0])

    def peak(self) -> float:
        """The most messages a second over any -t in a row, or over all (perftest tries all spans, which takes as long
        as the test).
        """
        if not self.sent or self._end.options.duration_s:
            return 0.0
        span = min(self.sent, self._end.options.tx_depth)
        return max(self.average(), *_rates(self._posted_at, self._completed_at, span))


def _rates(posted: Sequence[int], completed: Sequence[int], span: int) -> list[float]:
    return [
        span * NANOSECONDS / max(1, completed[first + span - 1] - posted[first])
        for first in range(len(posted) - span + 1)
    ]
