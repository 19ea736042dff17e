"""What a requester must do: PSNs, the structure of messages, repetitions, waiting (vol. 1, 9.7.2, 9.7.3, 9.7.6)."""

from __future__ import annotations

from lab.wire.exchange import Exchange, Request
from lab.wire.packets import ANSWERED_BY_THEMSELVES, MTUS, PSN_BITS, Kind, Packet, Place

UNASKED_MAX = 65
"""Packets in a row that ask for no acknowledgement: 63 with us, 65 with Linux rxe (RXE_MAX_PKT_PER_ACK)."""
ACK_TIMEOUT_LEAST_NS = 500_000
"""Nobody's timer is shorter, whatever it is set to (Linux counts in jiffies)."""
FLIGHT_MAX_NS = 10_000_000
"""An answer may be so long under way."""
RNR_RETRY_FOREVER = 7
_ALWAYS = ("message.ack_request", "packet.size")
"""Rules that depend on no other packet."""


class Requests:
    """Judges one requester."""

    def __init__(self, exchange: Exchange) -> None:
        self._x = exchange
        self._unasked = 0
        self._previous: Packet | None = None
        self._left: int | None = None
        """Bytes that the RDMA WRITE in progress lacks; None where its beginning wasn't seen."""
        self._open: Request | None = None
        """The latest request in the order of PSNs, where its message goes on."""
        self._restarted = exchange.restarts

    def on_packet(self, packet: Packet) -> bool:
        """One request packet. True where it shows that the queue pairs were connected anew."""
        x = self._x
        anew = x.is_far(packet.psn)
        if anew:
            x.restart(packet.psn)
        psn = x.unwrap(packet.psn)
        if x.restarts != self._restarted:
            self._restarted, self._open, self._previous = x.restarts, None, None
        if not x.requests:
            x.seen_since = packet.at
        x.packets += 1
        last = psn + x.span(packet) - 1
        known = x.covering(psn)
        self._judge_ack_request(packet, psn)
        if x.view.at_senders:
            self._judge_position(packet, psn, known)
        if known is None:
            x.add(Request(packet, psn, last, number=packet.number, at=packet.at, starts=(psn,)))
        else:
            self._judge_repetition(known, packet, psn)
        if last + 1 > x.top:
            x.wraps += (last >> PSN_BITS) != (x.top - 1 >> PSN_BITS) and x.top != x.base
            x.top = last + 1
        x.cursor = last + 1
        self._previous = packet
        self._advance()
        return anew

    def _judge_ack_request(self, packet: Packet, psn: int) -> None:
        follows = psn == self._x.cursor and self._previous is not None
        self._unasked = 0 if packet.ack_requested else (self._unasked if follows else 0) + 1
        if packet.shape.ends:
            self._judge(
                "message.ack_request", packet.ack_requested, packet,
                "AckReq at a message's end", f"{packet.shape.name} without it",
            )  # fmt: skip
        else:
            self._judge(
                "message.ack_request", self._unasked <= UNASKED_MAX, packet,
                f"AckReq within {UNASKED_MAX} packets", f"{self._unasked} without it",
            )  # fmt: skip

    # -- repetitions --------------------------------------------------------------------------------------------------

    def _judge_position(self, packet: Packet, psn: int, known: Request | None) -> None:
        """Only where each frame was captured as it left: what is missing wasn't sent."""
        x = self._x
        oldest = x.acknowledged + 1 if x.answers_seen else x.top
        self._judge(
            "request.psn", psn == x.cursor or psn <= oldest, packet,
            f"{x.wire(x.cursor)}, or a step back to {x.wire(oldest)} at the latest", x.wire(psn),
        )  # fmt: skip
        if psn > x.cursor:
            x.raise_floor(min(psn, oldest))
        elif psn < x.cursor:
            x.repetitions += 1
            self._judge_step_back(packet, psn, known)

    def _judge_step_back(self, packet: Packet, psn: int, known: Request | None) -> None:
        x = self._x
        if packet.shape.kind not in ANSWERED_BY_THEMSELVES and x.answers_seen:
            self._judge("request.go_back", psn >= x.floor, packet, f"{x.wire(x.floor)} or one after it", x.wire(psn))
        x.raise_floor(psn)
        if known is None or not x.answers_seen:
            return
        silent = x.latest_answer < known.number
        known.silent_repetitions = known.silent_repetitions + 1 if silent else 0
        self._judge(
            "retry.bound", known.silent_repetitions <= x.retry_count, packet,
            f"at most {x.retry_count} repetitions without an answer", f"repetition {known.silent_repetitions}",
        )  # fmt: skip
        waited = packet.at - known.at
        if x.ack_timeout_ns is not None and x.latest_answer < known.packet.number:
            self._judge(
                "retry.timeout", waited >= x.ack_timeout_ns // 2, packet,
                f"a repetition after {x.ack_timeout_ns / 1e6:.3f} ms or more", f"one after {waited / 1e6:.3f} ms",
            )  # fmt: skip
        self._judge_wait(packet, known, psn)

    def _judge_wait(self, packet: Packet, known: Request, psn: int) -> None:
        x = self._x
        # Out of order, an answer to something earlier may have sent the requester back before the RNR NAK reached it.
        if x.view.may_reorder or x.rnr is None or x.rnr[0] != psn:
            return
        (_, told_at, wait), waited = x.rnr, packet.at - known.at
        x.rnr = None
        if x.gap is not None and x.gap[0] == psn and x.gap[1] > known.number:
            return  # told of a gap, too: that one is sent again at once
        if x.latest_own_answer_at > known.packet.at - FLIGHT_MAX_NS:
            return  # may have gone back to a READ, and on when its answer came, the RNR NAK being still under way
        # The NAK may have been lost behind the tap, and the requester's own timer has run out.
        timer = max(ACK_TIMEOUT_LEAST_NS, (x.ack_timeout_ns or 0) // 2)
        if waited < timer or packet.at - told_at >= wait:
            self._judge(
                "rnr.wait", packet.at - told_at >= wait, packet,
                f"{x.wire(psn)} again after {wait / 1e6:.3f} ms", f"after {(packet.at - told_at) / 1e6:.3f} ms",
            )  # fmt: skip

    def _judge_repetition(self, known: Request, packet: Packet, psn: int) -> None:
        x, first = self._x, known.packet
        done = (psn - known.first) * (x.mtu or 0)
        if first.shape.kind is Kind.READ:
            va, length = (first.va + done) & (1 << 64) - 1, max(0, first.length - done)
            same = packet.opcode == first.opcode and (packet.va, packet.rkey, packet.length) == (va, first.rkey, length)
            expected = f"{first.shape.name} of {length} bytes at {va:#x} with key {first.rkey:#x}"
            found = f"{packet.shape.name} of {packet.length} bytes at {packet.va:#x} with key {packet.rkey:#x}"
            known.starts = tuple(sorted({*known.starts, psn}))
        else:
            now, before = (packet.opcode, packet.headers, packet.payload), (first.opcode, first.headers, first.payload)
            same = now == before
            expected = f"{first.shape.name}, headers {first.headers.hex() or 'none'}, {first.payload} bytes"
            found = f"{packet.shape.name}, headers {packet.headers.hex() or 'none'}, {packet.payload} bytes"
        self._judge("request.same", same, packet, f"{expected}, as in frame {first.number}", found)
        rnr_retry = x.view.rnr_retry
        if known.refused and rnr_retry is not None and rnr_retry != RNR_RETRY_FOREVER:
            self._judge(
                "rnr.bound", known.refused <= rnr_retry, packet, f"at most {rnr_retry} repetitions",
                f"repetition {known.refused}",
            )  # fmt: skip
        known.copies += 1
        known.number, known.at = packet.number, packet.at

    # -- messages, in the order of PSNs -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Looks at each packet once when all before it have been seen."""
        x = self._x
        while (request := x.requests.get(x.front)) is not None:
            x.front = request.last + 1
            self._judge_structure(request)
            if request.packet.shape.ends:
                x.ends.append(request.last)

    def _judge_structure(self, request: Request) -> None:
        x, packet, shape = self._x, request.packet, request.packet.shape
        before = self._open
        known_before = before is not None or request.first != x.base or x.begun
        if known_before:
            kind = None if before is None else before.packet.shape.kind
            good = shape.begins if kind is None else (not shape.begins and shape.kind is kind)
            expected = "the beginning of a message" if kind is None else f"MIDDLE or LAST of {kind.value}"
            self._judge("message.order", good, packet, expected, shape.name)
        self._judge_size(packet)
        if shape.kind is Kind.WRITE:
            self._count_write(packet, known_before)
        self._open = None if shape.ends else request

    def _judge_size(self, packet: Packet) -> None:
        shape, mtu = packet.shape, self._x.mtu
        if shape.kind is Kind.ATOMIC_WRITE:
            self._judge("packet.size", packet.payload == 8, packet, "8 bytes", f"{packet.payload} bytes")
        if shape.kind not in (Kind.SEND, Kind.WRITE):
            return
        most = mtu or max(MTUS)
        if shape.place in (Place.FIRST, Place.MIDDLE):
            good, expected = packet.payload == most, f"{most} bytes"
        else:
            least = 1 if shape.place is Place.LAST else 0
            good, expected = least <= packet.payload <= most, f"{least} to {most} bytes"
        self._judge("packet.size", good, packet, expected, f"{packet.payload} bytes in {shape.name}")

    def _count_write(self, packet: Packet, known_before: bool) -> None:
        if packet.shape.begins:
            self._left = packet.length
        elif not known_before:
            self._left = None
        if self._left is None:
            return
        self._left -= packet.payload
        good = self._left == 0 if packet.shape.ends else self._left > 0
        self._judge(
            "message.length", good, packet, "as many bytes as its RETH says",
            f"{abs(self._left)} bytes too {'few' if self._left > 0 else 'many'} at {packet.shape.name}",
        )  # fmt: skip
        if packet.shape.ends:
            self._left = None

    def _judge(self, rule: str, holds: bool, packet: Packet, expected: str, found: str) -> None:
        if not self._x.is_settling(packet.at) or rule in _ALWAYS:
            self._x.findings.judge(rule, holds, packet, self._x.name, expected, found)
