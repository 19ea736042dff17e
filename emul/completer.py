"""The completer: what acknowledgements, read responses and timeouts mean for the requests in flight.

Follows InfiniBand specification vol. 1, 9.7.5 (acknowledgements), 9.7.6 (go-back-N) and 11.6.2 (completion status).
Each `on_...` gives a Verdict: requests that are completed, and whether the queue pair is broken by one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from sys import byteorder

from emul.clock import Instant, after
from emul.vocabulary import WCStatus, WROpcode
from emul.window import SendWindow, SendWqe
from emul.wire.headers import Opcode, Syndrome, ack_timeout_ns, rnr_timer_ns
from emul.wire.psn import psn_add, psn_distance

RNR_RETRY_FOREVER = 7
"""The value of rnr_retry that sets no bound (vol. 1, 9.7.5.2.8)."""

_ATOMICS = frozenset({WROpcode.ATOMIC_CMP_AND_SWP, WROpcode.ATOMIC_FETCH_AND_ADD})
_KIND_ACK, _KIND_RNR, _KIND_NAK = 0, 1, 3
"""The upper three bits of a syndrome."""
_NAK_STATUS: dict[int, WCStatus] = {
    Syndrome.NAK_INVALID_REQUEST: WCStatus.REM_INV_REQ_ERR,
    Syndrome.NAK_REMOTE_ACCESS: WCStatus.REM_ACCESS_ERR,
    Syndrome.NAK_REMOTE_OPERATION: WCStatus.REM_OP_ERR,
}


@dataclass(slots=True)
class Verdict:
    """What an answer, or its absence, led to."""

    completed: list[SendWqe] = field(default_factory=list)
    """Ended well, in order."""
    broken: WCStatus | None = None
    """The oldest request ended like this, and the queue pair with it."""


class Completer:
    """The receiving half of the sending side."""

    __slots__ = (
        "_retries_left", "_retry_count", "_rnr_retries_left", "_rnr_retry", "_timeout_ns", "_window", "deadline",
        "naks_seen", "resume_at", "retried", "rnr_naks_seen", "sequence_naks_seen", "timeouts",
    )  # fmt: skip

    def __init__(self, window: SendWindow, *, timeout: int, retry_count: int, rnr_retry: int) -> None:
        self._window = window
        self._timeout_ns = ack_timeout_ns(timeout)
        self._retry_count = self._retries_left = retry_count
        self._rnr_retry = self._rnr_retries_left = rnr_retry
        self.deadline: Instant | None = None
        """When silence counts as loss."""
        self.resume_at: Instant | None = None
        """Until when the receiver asked to wait (RNR NAK); nothing is sent before."""
        self.naks_seen = 0
        """Of all kinds; of which ..."""
        self.sequence_naks_seen = 0
        self.rnr_naks_seen = 0
        self.timeouts = 0
        self.retried = 0
        """How often something was sent again from some PSN on."""

    def adjust(self, *, timeout: int, retry_count: int, rnr_retry: int) -> None:
        """New limits, counted from the next progress on."""
        self._timeout_ns = ack_timeout_ns(timeout)
        self._retry_count, self._rnr_retry = retry_count, rnr_retry

    def on_sent(self, now: Instant) -> None:
        """Packets left: from now on an answer is due."""
        if self.deadline is None and self._timeout_ns is not None:
            self.deadline = after(now, self._timeout_ns)

    def on_acknowledge(self, psn: int, syndrome: int, now: Instant) -> Verdict:
        """An ACK or NAK with `psn`. One that names a PSN never sent, or one settled long ago, changes nothing."""
        window = self._window
        verdict = Verdict()
        if psn_distance(psn, window.highest_psn) > 0 or psn_distance(psn, window.oldest_psn()) < 0:
            return verdict
        kind = syndrome >> 5
        if kind == _KIND_ACK:
            self._acknowledge_up_to(psn, now, verdict)
            return verdict
        if kind not in (_KIND_RNR, _KIND_NAK):
            return verdict
        self.naks_seen += 1
        self._acknowledge_up_to(psn_add(psn, -1), now, verdict)
        if not window.wqes or verdict.broken is not None:
            return verdict
        if window.wqes[0].responded and window.oldest_psn() != psn:
            # A response that was due before this NAK is lost. Asking for it sends again what the NAK is about, too;
            # retrying for both would spend two retries on one disturbance.
            self._ask_again(window.wqes[0], now, verdict)
        elif kind == _KIND_RNR:
            self.rnr_naks_seen += 1
            self._wait_for_receiver(psn, syndrome, now, verdict)
        elif syndrome == Syndrome.NAK_SEQUENCE:
            self.sequence_naks_seen += 1
            if window.sent_end() != psn:  # else this NAK came twice: the cursor stands there already
                self._retry(psn, now, verdict)
        else:
            verdict.broken = _NAK_STATUS.get(syndrome, WCStatus.REM_OP_ERR)
        return verdict

    def on_read_response(self, opcode: int, psn: int, payload: memoryview, now: Instant) -> Verdict:
        """A part of a READ's data, or the answer to a FLUSH or an ATOMIC WRITE. It also acknowledges all that was sent
        before.
        """
        verdict = Verdict()
        wqe = self._answered(psn, now, verdict)
        if wqe is not None:
            if wqe.opcode in _ATOMICS:
                verdict.broken = WCStatus.BAD_RESP_ERR
            else:
                self._take_response(wqe, opcode, payload, now, verdict)
        return verdict

    def on_atomic_acknowledge(self, psn: int, original: int, now: Instant) -> Verdict:
        """The answer to an atomic: `original` is what was there before."""
        verdict = Verdict()
        wqe = self._answered(psn, now, verdict)
        if wqe is None:
            return verdict
        if wqe.opcode not in _ATOMICS:
            verdict.broken = WCStatus.BAD_RESP_ERR
        elif not wqe.is_reachable():
            verdict.broken = WCStatus.LOC_PROT_ERR
        else:
            wqe.scatter(0, memoryview(original.to_bytes(8, byteorder)))
            verdict.completed.append(self._window.pop_oldest())
            self._on_progress(now)
        return verdict

    def _answered(self, psn: int, now: Instant, verdict: Verdict) -> SendWqe | None:
        """The request whose response is due with `psn`; None where the response is old, early or shows a hole."""
        window = self._window
        if psn_distance(psn, window.highest_psn) > 0 or psn_distance(psn, window.oldest_psn()) < 0:
            return None
        self._acknowledge_before_response(psn, now, verdict)
        if not window.wqes or verdict.broken is not None:
            return None
        wqe = window.wqes[0]
        if not wqe.responded:
            return None
        missing = psn_distance(psn, psn_add(wqe.first_psn, wqe.received))
        if missing > 0:
            self._ask_again(wqe, now, verdict)
        return wqe if missing == 0 else None

    def on_time(self, now: Instant) -> Verdict:
        """The deadline or the receiver's wait has passed (a call too early changes nothing)."""
        verdict = Verdict()
        if self.resume_at is not None:
            if now < self.resume_at:
                return verdict
            self.resume_at = None
        if self.deadline is None or now < self.deadline:
            return verdict
        self.deadline = None
        if not self._window.in_flight():
            return verdict
        self.timeouts += 1
        self._retry(self._window.oldest_psn(), now, verdict)
        return verdict

    def _acknowledge_up_to(self, psn: int, now: Instant, verdict: Verdict) -> None:
        window = self._window
        progressed = False
        lost: SendWqe | None = None
        while window.wqes:
            wqe = window.wqes[0]
            settled = psn_distance(psn, wqe.first_psn) + 1
            if settled <= 0:
                break
            if wqe.responded:
                # Acknowledged past its response: that was lost. An acknowledgement within its own PSNs says nothing:
                # repeated requests before it are acknowledged with the latest PSN while the response is on its way.
                lost = wqe if settled > wqe.packets else None
                break
            if settled < wqe.packets:
                progressed |= window.settle(wqe, settled)
                break
            verdict.completed.append(window.pop_oldest())
            progressed = True
        if progressed:
            self._on_progress(now)
        if lost is not None:
            self._ask_again(lost, now, verdict)

    def _acknowledge_before_response(self, psn: int, now: Instant, verdict: Verdict) -> None:
        window = self._window
        while window.wqes and psn_distance(psn, window.wqes[0].last_psn) > 0:
            if window.wqes[0].responded:
                self._ask_again(window.wqes[0], now, verdict)
                return
            verdict.completed.append(window.pop_oldest())
            self._on_progress(now)

    def _ask_again(self, wqe: SendWqe, now: Instant, verdict: Verdict) -> None:
        # Once for each hole: the packets behind it arrive too, and each would spend a retry.
        if wqe.asked_at != wqe.received:
            wqe.asked_at = wqe.received
            self._retry(psn_add(wqe.first_psn, wqe.received), now, verdict)

    def _take_response(self, wqe: SendWqe, opcode: int, payload: memoryview, now: Instant, verdict: Verdict) -> None:
        mtu = self._window.mtu
        last = wqe.received == wqe.packets - 1
        size = wqe.response_bytes() - wqe.received * mtu if last else mtu
        ends = opcode in (Opcode.RDMA_READ_RESPONSE_LAST, Opcode.RDMA_READ_RESPONSE_ONLY)
        if len(payload) != size or ends is not last:
            verdict.broken = WCStatus.BAD_RESP_ERR
            return
        if not wqe.is_reachable():
            verdict.broken = WCStatus.LOC_PROT_ERR
            return
        if size:
            wqe.scatter(wqe.received * mtu, payload)
        wqe.received += 1
        if last:
            verdict.completed.append(self._window.pop_oldest())
        self._on_progress(now)

    def _on_progress(self, now: Instant) -> None:
        self._retries_left = self._retry_count
        self._rnr_retries_left = self._rnr_retry
        in_flight = self._window.in_flight() and self._timeout_ns is not None
        self.deadline = after(now, self._timeout_ns or 0) if in_flight else None

    def _retry(self, psn: int, now: Instant, verdict: Verdict) -> None:
        if self._retries_left == 0:
            verdict.broken = WCStatus.RETRY_EXC_ERR
            return
        self._retries_left -= 1
        self.retried += 1
        self._window.rewind(psn)
        self.deadline = None if self._timeout_ns is None else after(now, self._timeout_ns)

    def _wait_for_receiver(self, psn: int, syndrome: int, now: Instant, verdict: Verdict) -> None:
        if self.resume_at is not None:
            return  # nothing was sent since the first one: a packet or its NAK was repeated on the way
        self._retries_left = self._retry_count  # it answers: what the retries count is silence
        if self._rnr_retry != RNR_RETRY_FOREVER:
            if self._rnr_retries_left == 0:
                verdict.broken = WCStatus.RNR_RETRY_EXC_ERR
                return
            self._rnr_retries_left -= 1
        self._window.rewind(psn)
        self.resume_at = after(now, rnr_timer_ns(syndrome))
        self.deadline = None  # it is known to live: the timer starts again with the next packet
