"""The completer: what acknowledgements, read responses and timeouts mean for the requests in flight.

Follows InfiniBand specification vol. 1, 9.7.5 (acknowledgements), 9.7.6 (go-back-N) and 11.6.2 (completion status).
After each `on_...`, `completed` has the requests that it completed, and `broken` says whether the queue pair is broken
by one of them; who asks takes them away.
"""

from __future__ import annotations

from sys import byteorder
from typing import Final

from emul.clock import Instant, after
from emul.vocabulary import WCStatus, WROpcode
from emul.window import SendWindow
from emul.wire.headers import Opcode, Syndrome, ack_timeout_ns, rnr_timer_ns
from emul.wire.psn import PSN_MASK, psn_add, psn_distance
from emul.wqe import SendWqe

RNR_RETRY_FOREVER: Final = 7
"""The value of rnr_retry that sets no bound (vol. 1, 9.7.5.2.8)."""

_ATOMICS: Final = frozenset({int(WROpcode.ATOMIC_CMP_AND_SWP), int(WROpcode.ATOMIC_FETCH_AND_ADD)})
_KIND_ACK: Final = 0
_KIND_RNR: Final = 1
_KIND_NAK: Final = 3
"""The upper three bits of a syndrome."""
_SEQUENCE: Final = int(Syndrome.NAK_SEQUENCE)
_LAST_RESPONSE: Final = int(Opcode.RDMA_READ_RESPONSE_LAST)
_ONLY_RESPONSE: Final = int(Opcode.RDMA_READ_RESPONSE_ONLY)
_NAK_STATUS: Final[dict[int, WCStatus]] = {
    int(Syndrome.NAK_INVALID_REQUEST): WCStatus.REM_INV_REQ_ERR,
    int(Syndrome.NAK_REMOTE_ACCESS): WCStatus.REM_ACCESS_ERR,
    int(Syndrome.NAK_REMOTE_OPERATION): WCStatus.REM_OP_ERR,
}


class Completer:
    """The receiving half of the sending side."""

    __slots__ = (
        "_retries_left", "_retry_count", "_rnr_retries_left", "_rnr_retry", "_timeout_ns", "_window", "broken",
        "completed", "deadline", "naks_seen", "resume_at", "retried", "rnr_naks_seen", "sequence_naks_seen", "timeouts",
    )  # fmt: skip

    def __init__(self, window: SendWindow, *, timeout: int, retry_count: int, rnr_retry: int) -> None:
        self._window = window
        self._timeout_ns = ack_timeout_ns(timeout)
        self._retry_count = self._retries_left = retry_count
        self._rnr_retry = self._rnr_retries_left = rnr_retry
        self.completed: list[SendWqe] = []
        """Ended well, in order."""
        self.broken: WCStatus | None = None
        """The oldest request ended like this, and the queue pair with it."""
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

    def on_acknowledge(self, psn: int, syndrome: int, now: Instant) -> None:
        """An ACK or NAK with `psn`. One that names a PSN never sent, or one settled long ago, changes nothing."""
        window = self._window
        if psn_distance(psn, window.highest_psn) > 0 or psn_distance(psn, window.oldest_psn()) < 0:
            return
        kind = syndrome >> 5
        if kind == _KIND_ACK:
            self._acknowledge_up_to(psn, now)
        elif kind in (_KIND_RNR, _KIND_NAK):
            self._on_nak(psn, syndrome, now)

    def _on_nak(self, psn: int, syndrome: int, now: Instant) -> None:
        window = self._window
        self.naks_seen += 1
        self._acknowledge_up_to(psn_add(psn, -1), now)
        if not window.wqes or self.broken is not None:
            return
        if window.wqes[0].responded and window.oldest_psn() != psn:
            # A response that was due before this NAK is lost. Asking for it sends again what the NAK is about, too;
            # retrying for both would spend two retries on one disturbance.
            self._ask_again(window.wqes[0], now)
        elif syndrome >> 5 == _KIND_RNR:
            self.rnr_naks_seen += 1
            self._wait_for_receiver(psn, syndrome, now)
        elif syndrome == _SEQUENCE:
            self.sequence_naks_seen += 1
            if window.sent_end() != psn:  # else this NAK came twice: the cursor stands there already
                self._retry(psn, now)
        else:
            self.broken = _NAK_STATUS.get(syndrome, WCStatus.REM_OP_ERR)

    def on_read_response(self, opcode: int, psn: int, payload: bytes, now: Instant) -> None:
        """A part of a READ's data, or the answer to a FLUSH or an ATOMIC WRITE. It also acknowledges all that was sent
        before.
        """
        wqe = self._answered(psn, now)
        if wqe is not None:
            if wqe.opcode in _ATOMICS:
                self.broken = WCStatus.BAD_RESP_ERR
            else:
                self._take_response(wqe, opcode, payload, now)

    def on_atomic_acknowledge(self, psn: int, original: int, now: Instant) -> None:
        """The answer to an atomic: `original` is what was there before."""
        wqe = self._answered(psn, now)
        if wqe is None:
            return
        if wqe.opcode not in _ATOMICS:
            self.broken = WCStatus.BAD_RESP_ERR
        elif not wqe.is_reachable():
            self.broken = WCStatus.LOC_PROT_ERR
        else:
            wqe.scatter(0, original.to_bytes(8, byteorder))
            self.completed.append(self._window.pop_oldest())
            self._on_progress(now)

    def _answered(self, psn: int, now: Instant) -> SendWqe | None:
        """The request whose response is due with `psn`; None where the response is old, early or shows a hole."""
        window = self._window
        if psn_distance(psn, window.highest_psn) > 0 or psn_distance(psn, window.oldest_psn()) < 0:
            return None
        self._acknowledge_before_response(psn, now)
        if not window.wqes or self.broken is not None:
            return None
        wqe = window.wqes[0]
        if not wqe.responded:
            return None
        missing = psn_distance(psn, wqe.first_psn + wqe.received)
        if missing > 0:
            self._ask_again(wqe, now)
        return wqe if missing == 0 else None

    def on_time(self, now: Instant) -> None:
        """The deadline or the receiver's wait has passed (a call too early changes nothing)."""
        if self.resume_at is not None:
            if now < self.resume_at:
                return
            self.resume_at = None
        if self.deadline is None or now < self.deadline:
            return
        self.deadline = None
        if not self._window.in_flight():
            return
        self.timeouts += 1
        self._retry(self._window.oldest_psn(), now)

    def _acknowledge_up_to(self, psn: int, now: Instant) -> None:
        window = self._window
        wqes = window.wqes
        progressed = False
        lost: SendWqe | None = None
        while wqes:
            wqe = wqes[0]
            settled = psn_distance(psn, wqe.first_psn) + 1
            if settled <= 0:
                break
            if wqe.responded:
                # Acknowledged past its response: that was lost. An acknowledgement within its own PSNs says nothing:
                # repeated requests before it are acknowledged with the latest PSN while the response is on its way.
                lost = wqe if settled > wqe.packets else None
                break
            if settled < wqe.packets:
                if window.settle(wqe, settled):
                    progressed = True
                break
            self.completed.append(window.pop_oldest())
            progressed = True
        if progressed:
            self._on_progress(now)
        if lost is not None:
            self._ask_again(lost, now)

    def _acknowledge_before_response(self, psn: int, now: Instant) -> None:
        window = self._window
        while window.wqes and psn_distance(psn, window.wqes[0].last_psn) > 0:
            if window.wqes[0].responded:
                self._ask_again(window.wqes[0], now)
                return
            self.completed.append(window.pop_oldest())
            self._on_progress(now)

    def _ask_again(self, wqe: SendWqe, now: Instant) -> None:
        # Once for each hole: the packets behind it arrive too, and each would spend a retry.
        if wqe.asked_at != wqe.received:
            wqe.asked_at = wqe.received
            self._retry((wqe.first_psn + wqe.received) & PSN_MASK, now)

    def _take_response(self, wqe: SendWqe, opcode: int, payload: bytes, now: Instant) -> None:
        mtu = self._window.mtu
        last = wqe.received == wqe.packets - 1
        size = wqe.response_bytes() - wqe.received * mtu if last else mtu
        ends = opcode in (_LAST_RESPONSE, _ONLY_RESPONSE)
        if len(payload) != size or ends is not last:
            self.broken = WCStatus.BAD_RESP_ERR
            return
        if not wqe.is_reachable():
            self.broken = WCStatus.LOC_PROT_ERR
            return
        if size:
            wqe.scatter(wqe.received * mtu, payload)
        wqe.received += 1
        if last:
            self.completed.append(self._window.pop_oldest())
        self._on_progress(now)

    def _on_progress(self, now: Instant) -> None:
        self._retries_left = self._retry_count
        self._rnr_retries_left = self._rnr_retry
        if self._timeout_ns is not None and self._window.in_flight():
            self.deadline = after(now, self._timeout_ns)
        else:
            self.deadline = None

    def _retry(self, psn: int, now: Instant) -> None:
        if self._retries_left == 0:
            self.broken = WCStatus.RETRY_EXC_ERR
            return
        self._retries_left -= 1
        self.retried += 1
        self._window.rewind(psn)
        self.deadline = None if self._timeout_ns is None else after(now, self._timeout_ns)

    def _wait_for_receiver(self, psn: int, syndrome: int, now: Instant) -> None:
        if self.resume_at is not None:
            return  # nothing was sent since the first one: a packet or its NAK was repeated on the way
        self._retries_left = self._retry_count  # it answers: what the retries count is silence
        if self._rnr_retry != RNR_RETRY_FOREVER:
            if self._rnr_retries_left == 0:
                self.broken = WCStatus.RNR_RETRY_EXC_ERR
                return
            self._rnr_retries_left -= 1
        self._window.rewind(psn)
        self.resume_at = after(now, rnr_timer_ns(syndrome))
        self.deadline = None  # it is known to live: the timer starts again with the next packet
