"""What a responder must do: acknowledgements, NAKs, READ responses, atomics (vol. 1, 9.7.5, 9.7.7)."""

from __future__ import annotations

from bisect import bisect_left

from lab.wire.exchange import Exchange, Request
from lab.wire.packets import Kind, Packet, Place

_ACK, _RNR, _NAK = 0, 1, 3
NAK_SEQUENCE, NAK_LAST = 0, 4
_CREDITS_UNLIMITED = 0x1F
SCAN_MAX = 4096
"""PSNs behind a gap that are searched for the packet that showed it."""
RNR_TIMER_US = (
    655360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920, 2560, 3840, 5120, 7680, 10240, 15360,
    20480, 30720, 40960, 61440, 81920, 122880, 163840, 245760, 327680, 491520,
)  # fmt: skip
"""Vol. 1, table 45."""
_MSNS = 1 << 24


class Answers:
    """Judges one responder."""

    def __init__(self, exchange: Exchange) -> None:
        self._x = exchange
        self._restarted = -1
        self._forget()

    def _forget(self) -> None:
        self._offset: tuple[int, int] | None = (0, 0) if self._x.begun else None
        """Between which two lies the MSN at the beginning of the capture."""
        self._msn: int | None = None
        """Of the latest ACKNOWLEDGE."""
        self._unlimited = False
        self._told: tuple[int, int, int] | None = None
        """The gap told last: its PSN, the frame that told it, the first frame from behind it."""
        self._refused: Request | None = None
        """What the latest RNR NAK refused."""
        self._response: int | None = None
        """PSN of the latest READ response."""
        self.failed: Packet | None = None
        """The NAK after which the queue pair is in ERR."""

    def on_packet(self, packet: Packet) -> None:
        """One answer."""
        x = self._x
        if self._restarted != x.restarts:
            self._restarted = x.restarts
            self._forget()
        if x.base is None:
            return
        psn = x.unwrap(packet.psn)
        x.latest_answer = packet.number
        if x.is_settling(packet.at):
            self._offset = None
        if psn < x.base - 1 or (psn == x.base - 1 and not x.begun):
            return  # of what was before the capture
        kind = packet.shape.kind
        if kind is not Kind.ACKNOWLEDGE:
            x.latest_own_answer_at = packet.at
        if kind is Kind.ACKNOWLEDGE:
            self._on_acknowledge(packet, psn)
        elif kind is Kind.READ_RESPONSE:
            self._on_read_response(packet, psn)
        else:
            self._on_atomic(packet, psn)

    # -- ACK and NAK --------------------------------------------------------------------------------------------------

    def _on_acknowledge(self, packet: Packet, psn: int) -> None:
        x, kind, value = self._x, packet.syndrome >> 5, packet.syndrome & 0x1F
        exists = kind in (_ACK, _RNR) or (kind == _NAK and value <= NAK_LAST)
        if not self._judge("ack.syndrome", exists, packet, "an ACK, RNR NAK or NAK", f"{packet.syndrome:#04x}"):
            return
        settled = psn if kind == _ACK else psn - 1
        x.is_older(settled, packet.at)
        if not self._judge(
            "ack.seen", settled < x.front, packet,
            f"at most {x.wire(x.front - 1)}, before the first one that wasn't sent", x.wire(settled),
        ):  # fmt: skip
            return
        self._judge_order_of_answers(packet, settled)
        if kind != _ACK:
            x.nak_psns.add(psn)
        if kind == _ACK:
            self._judge_credits(packet, value)
            self._judge_progress(packet, psn)
        elif kind == _RNR:
            self._on_rnr(packet, psn, value)
        elif value == NAK_SEQUENCE:
            self._on_gap(packet, psn)
        else:
            known = x.covering(psn)
            self._judge("nak.cause", known is not None, packet, f"{x.wire(psn)} sent before", "nothing of it")
            self._judge_progress(packet, psn)
            self.failed = packet
        self._judge_msn(packet, settled)
        if x.view.at_senders:
            if self._msn is not None:
                step = (packet.msn - self._msn + _MSNS // 2) % _MSNS - _MSNS // 2
                self._judge("ack.msn_order", step >= 0, packet, f"MSN {self._msn} or later", f"MSN {packet.msn}")
            self._msn = packet.msn
        x.acknowledged = max(x.acknowledged, settled)

    def _judge_credits(self, packet: Packet, credits_left: int) -> None:
        unlimited = credits_left == _CREDITS_UNLIMITED
        if self._x.view.at_senders:
            self._judge(
                "ack.syndrome", unlimited or not self._unlimited, packet, "no credits, as before",
                f"credit count {credits_left}",
            )  # fmt: skip
        self._unlimited |= unlimited

    def _on_rnr(self, packet: Packet, psn: int, timer: int) -> None:
        x = self._x
        request = x.requests.get(psn)
        if not self._judge("nak.cause", request is not None, packet, f"{x.wire(psn)} sent before", "nothing of it"):
            return
        assert request is not None
        self._judge_progress(packet, psn - 1)
        request.refused += 1
        if x.is_settling(packet.at):
            request.copies = max(request.copies, request.refused)
        if not x.view.may_reorder:
            self._judge(
                "rnr.cause", request.refused <= request.copies, packet,
                f"at most {request.copies} RNR NAKs for as many copies of {x.wire(psn)}", f"number {request.refused}",
            )  # fmt: skip
        self._refused = request
        if x.rnr is None or x.rnr[0] != psn:
            x.rnr = (psn, packet.at, RNR_TIMER_US[timer] * 1_000)

    def _on_gap(self, packet: Packet, psn: int) -> None:
        x = self._x
        self._judge(
            "nak.cause", x.highest > psn, packet, f"a request after {x.wire(psn)} sent before",
            f"none after {x.wire(x.highest)}",
        )  # fmt: skip
        self._judge_progress(packet, psn - 1)
        x.gap = (psn, packet.number)
        known = x.requests.get(psn)
        if self._told is not None and self._told[0] == psn and x.view.at_senders:
            again = known is not None and known.number > self._told[1]
            self._judge(
                "nak.once", again, packet, f"one NAK for {x.wire(psn)} until it is sent again",
                f"a second one, after frame {self._told[1]}",
            )  # fmt: skip
        else:
            x.findings.looked("nak.once")
        behind = self._first_behind(psn)
        if self._told is None or self._told[0] != psn:
            self._told = (psn, packet.number, behind if behind is not None else packet.number)

    def _first_behind(self, psn: int) -> int | None:
        """The first frame with a request after this PSN: what may have shown the gap."""
        x = self._x
        numbers = [
            request.packet.number
            for each in range(psn + 1, min(x.highest, psn + SCAN_MAX) + 1)
            if (request := x.requests.get(each)) is not None
        ]
        return min(numbers, default=None)

    def _judge_progress(self, packet: Packet, psn: int) -> None:
        """The responder says that it has got `psn`: after a NAK that needs another copy of what the NAK named."""
        x = self._x
        if x.view.may_reorder:
            return
        if self._told is not None and psn >= self._told[0]:
            gap, told, behind = self._told
            known = x.requests.get(gap)
            self._judge(
                "nak.silence", known is not None and known.number > behind, packet,
                f"no answer from {x.wire(gap)} on before it is sent again (NAK in frame {told})", x.wire(psn),
            )  # fmt: skip
            self._told = None
        if self._refused is not None and psn >= self._refused.first:
            request, self._refused = self._refused, None
            self._judge(
                "rnr.cause", request.copies > request.refused, packet,
                f"{x.wire(request.first)} sent again after RNR NAK {request.refused}", x.wire(psn),
            )  # fmt: skip
            x.rnr = None

    def _judge_msn(self, packet: Packet, settled: int) -> None:
        """Messages until `settled` are completed; those until `front` may be."""
        x = self._x
        least, most = x.messages_until(settled), x.messages_until(x.front - 1)
        if self._offset is None:
            self._offset = (packet.msn - most, packet.msn - least)
            return
        low, high = self._offset
        near = low + least
        msn = near + (packet.msn - near + _MSNS // 2) % _MSNS - _MSNS // 2
        good = low + least <= msn <= high + most
        expected = f"MSN {(low + least) % _MSNS}"
        if low + least != high + most:
            expected += f" to {(high + most) % _MSNS}"
        self._judge("ack.msn", good, packet, expected, f"MSN {packet.msn}")
        if good:
            self._offset = (max(low, msn - most), min(high, msn - least))

    def _judge_order_of_answers(self, packet: Packet, settled: int) -> None:
        x = self._x
        if not x.view.at_senders:
            return
        while x.unanswered < len(x.asked):
            request = x.requests[x.asked[x.unanswered]]
            if not request.answered and request.last > settled:
                return
            request.answered |= x.is_settling(request.packet.at)  # maybe before the capture
            self._judge(
                "read.answered", request.answered, packet,
                f"the answer to the {request.packet.shape.name} at {x.wire(request.first)} first",
                f"{x.wire(settled)} acknowledged",
            )  # fmt: skip
            x.unanswered += 1

    # -- READ responses, atomics --------------------------------------------------------------------------------------

    def _on_read_response(self, packet: Packet, psn: int) -> None:
        x = self._x
        request = x.own_answer(psn)
        if request is None and x.is_older(psn, packet.at):
            return
        wanted = request is not None and request.packet.shape.kind is not Kind.ATOMIC
        if not self._judge(
            "read.response", wanted, packet, "the PSN of a READ, FLUSH or ATOMIC WRITE that was sent", x.wire(psn)
        ):
            return
        assert request is not None
        if not self._judge("ack.seen", request.first < x.front, packet, f"before {x.wire(x.front)}", x.wire(psn)):
            return
        self._judge_progress(packet, psn)
        self._judge_order_of_answers(packet, request.first - 1)
        self._judge_response(request, packet, psn)
        if packet.shape.place is not Place.MIDDLE:
            self._judge_acknowledging(packet)
            self._judge_msn(packet, request.last)
        if x.view.at_senders and not packet.shape.begins:
            self._judge(
                "read.order", self._response == psn - 1, packet, f"the response at {x.wire(psn - 1)} before it",
                "none" if self._response is None else x.wire(self._response),
            )  # fmt: skip
        self._response = psn
        request.answered |= psn == request.last
        x.acknowledged = max(x.acknowledged, psn)

    def _judge_response(self, request: Request, packet: Packet, psn: int) -> None:
        """Opcode and length by the PSN's place between one of the starts and the last packet."""
        mtu = self._x.mtu
        total = request.packet.length if request.packet.shape.kind is Kind.READ else 0
        if request.packet.shape.kind is Kind.READ and mtu is None and request.first == request.last:
            allowed, size = {Place.ONLY}, total
        else:
            starts, is_last = request.starts, psn == request.last
            allowed = set()
            if psn in starts:
                allowed.add(Place.ONLY if is_last else Place.FIRST)
            if bisect_left(starts, psn) > 0:
                allowed.add(Place.LAST if is_last else Place.MIDDLE)
            size = total - (psn - request.first) * (mtu or 0) if is_last else (mtu or 0)
        names = " or ".join(sorted(place.value for place in allowed)) or "none"
        self._judge(
            "read.response", packet.shape.place in allowed and packet.payload == size, packet,
            f"{names} with {size} bytes", f"{packet.shape.place.value} with {packet.payload} bytes",
        )  # fmt: skip

    def _judge_acknowledging(self, packet: Packet) -> None:
        self._judge("ack.syndrome", packet.syndrome >> 5 == _ACK, packet, "an ACK", f"{packet.syndrome:#04x}")

    def _on_atomic(self, packet: Packet, psn: int) -> None:
        x = self._x
        request = x.requests.get(psn)
        if request is None and x.is_older(psn, packet.at):
            return
        wanted = request is not None and request.packet.shape.kind is Kind.ATOMIC
        if not self._judge("atomic.response", wanted, packet, "the PSN of an atomic that was sent", x.wire(psn)):
            return
        assert request is not None
        if not self._judge("ack.seen", psn < x.front, packet, f"before {x.wire(x.front)}", x.wire(psn)):
            return
        self._judge_progress(packet, psn)
        self._judge_acknowledging(packet)
        self._judge_order_of_answers(packet, psn - 1)
        self._judge_msn(packet, psn)
        if request.original is None:
            request.original = packet.original
        else:
            self._judge(
                "atomic.replay", packet.original == request.original, packet,
                f"the original value {request.original:#x} again", f"{packet.original:#x}",
            )  # fmt: skip
        request.answered = True
        x.acknowledged = max(x.acknowledged, psn)

    def _judge(self, rule: str, holds: bool, packet: Packet, expected: str, found: str) -> bool:
        if not self._x.is_settling(packet.at):
            self._x.findings.judge(rule, holds, packet, self._x.name, expected, found)
        return holds

