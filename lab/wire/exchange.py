"""One direction of a connection as the tap has seen it: requests of one side, answers of the other.

Knows PSNs without their wrap, which requests were seen, how far they are without a hole, what was acknowledged; judges
nothing. The rules of the two sides are in `lab.wire.requests` and `lab.wire.answers`.

What may be concluded depends on where the tap is (`View`). All that a receiver got has passed the tap before its answer
does; the reverse isn't true, as a frame may be lost behind the tap. So "nothing is acknowledged that wasn't seen" holds
anywhere, while "the next PSN is the one after the last" only where no frame is lost before the tap.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

from lab.wire.findings import Findings
from lab.wire.packets import ANSWERED_BY_THEMSELVES, PSN_BITS, PSN_MASK, Kind, Packet

_PSNS = 1 << PSN_BITS
_HALF = _PSNS >> 1
JUMP_MAX = 4096
"""A request further away than this from all that is under way belongs to a new connection of the same queue pairs: no
requester has so many packets in flight."""

SETTLING_NS = 1_000_000_000
"""A capture that began in the middle of a conversation may show for so long what belongs to packets before it; until
then nothing is judged that depends on them."""


@dataclass(frozen=True, slots=True)
class View:
    """Where the capture was made, and what is known of the connections."""

    at_senders: bool = False
    """Each frame was captured as it left its sender; else somewhere on its way."""
    may_reorder: bool = False
    """What is behind the tap may change the order of frames or repeat them."""
    may_mark: bool = False
    """What is behind the tap marks congestion also on packets that don't permit it."""
    complete: bool = True
    """The capture missed nothing that passed the tap."""
    mtu: int | None = None
    """Path MTU in bytes, where the capture can't tell."""
    ack_timeout_ns: int | None = None
    """Local ACK timeout of all connections that don't tell theirs by CM."""
    rnr_retry: int | None = None
    """rnr_retry of all connections (7: no bound)."""
    from_start: bool = False
    """The capture begins before the connections do."""


@dataclass(slots=True)
class Request:
    """A request packet that was seen, in its first copy, with its PSNs."""

    packet: Packet
    first: int
    last: int
    """Of a READ the PSN of the last packet of its response."""
    copies: int = 1
    number: int = 0
    """Of the frame with the latest copy."""
    at: int = 0
    """When that was."""
    starts: tuple[int, ...] = ()
    """PSNs from which a READ was asked for."""
    answered: bool = False
    """Its own answer has been seen to the end."""
    original: int | None = None
    """What an atomic was answered."""
    refused: int = 0
    """RNR NAKs that named it."""
    silent_repetitions: int = 0


class Exchange:
    """Requests from one queue pair to another, and what comes back."""

    def __init__(self, name: str, view: View, findings: Findings, mtu: int | None, *, answers_seen: bool) -> None:
        self.name = name
        self.view = view
        self.findings = findings
        self.mtu = mtu
        self.answers_seen = answers_seen
        """The capture has the other direction too."""
        self.ack_timeout_ns = view.ack_timeout_ns
        self.retry_count = 7
        self.begun = view.from_start and view.at_senders
        """Its first request is in the capture."""
        self.seen_since = 0
        """ns of the first request."""
        self.packets = self.repetitions = self.wraps = 0
        self.restarts = 0
        """How often what was known of the past became void."""
        self.restart(None)

    def restart(self, psn: int | None) -> None:
        """Forgets everything: the queue pairs were connected anew; `psn` is that of the first request, if known."""
        self.restarts += 1
        self.requests: dict[int, Request] = {}
        self.asked: list[int] = []
        """First PSNs of requests that have answers of their own, sorted."""
        self.base: int | None = None
        """The first PSN seen: what is older was before the capture."""
        self.front = 0
        """The first PSN that wasn't seen."""
        self.top = 0
        """The PSN after the furthest request."""
        self.highest = -1
        """The furthest PSN at which a request begins."""
        self.cursor = 0
        """The PSN after the latest request."""
        self.floor = 0
        """The requester knows that all before it is acknowledged."""
        self.nak_psns: set[int] = set()
        """PSNs that a NAK named."""
        self.acknowledged = -1
        """The furthest PSN that an answer has acknowledged."""
        self.ends: list[int] = []
        """Last PSNs of the messages before `front`."""
        self.unanswered = 0
        """Position in `asked` of the oldest request whose answer hasn't been seen."""
        self.latest_own_answer_at = -(1 << 62)
        """ns of the latest READ response or atomic acknowledgement."""
        self.latest_answer = -1
        """Number of the frame with the latest answer."""
        self.rnr: tuple[int, int, int] | None = None
        """(PSN, ns, wait in ns) of the first RNR NAK since that PSN was sent last."""
        self.gap: tuple[int, int] | None = None
        """(PSN, frame) of the latest NAK for a gap."""
        if psn is not None:
            self._begin(psn)

    def _begin(self, psn: int) -> None:
        # One round above 0, so that what is older than the beginning isn't negative.
        self.base = self.front = self.top = self.cursor = psn + _PSNS
        self.floor = self.base if self.begun else 0
        self.acknowledged = self.base - 1

    def unwrap(self, psn: int) -> int:
        """The PSN without its wrap, as near to the furthest request as can be."""
        if self.base is None:
            self._begin(psn)
        return self.top + (psn - self.top + _HALF) % _PSNS - _HALF

    def span(self, packet: Packet) -> int:
        """PSNs that the request takes."""
        if packet.shape.kind is not Kind.READ or self.mtu is None:
            return 1
        return max(1, -(-packet.length // self.mtu))

    def covering(self, psn: int) -> Request | None:
        """The request that this PSN belongs to."""
        known = self.requests.get(psn)
        return known if known is not None else self.own_answer(psn)

    def own_answer(self, psn: int) -> Request | None:
        """The request with an answer of its own that this PSN belongs to."""
        position = bisect_right(self.asked, psn) - 1
        if position < 0:
            return None
        request = self.requests[self.asked[position]]
        return request if psn <= request.last else None

    def add(self, request: Request) -> None:
        """A request that wasn't seen before."""
        self.requests[request.first] = request
        if request.packet.shape.kind in ANSWERED_BY_THEMSELVES:
            insort(self.asked, request.first)
        self.highest = max(self.highest, request.first)

    def messages_until(self, psn: int) -> int:
        """Messages that end at or before this PSN, since the capture began."""
        return bisect_right(self.ends, psn)

    def is_far(self, psn: int) -> bool:
        """Whether this PSN, as in a request, is far from all that is under way."""
        if self.base is None:
            return False
        unwrapped = self.unwrap(psn)
        oldest = min(self.acknowledged + 1, self.cursor)
        return unwrapped > self.top + JUMP_MAX or (unwrapped < oldest - JUMP_MAX and self.covering(unwrapped) is None)

    def raise_floor(self, psn: int) -> None:
        """The requester went to this PSN: all before it is acknowledged. But not where a NAK sent it there over a READ
        or atomic, whose answer it may still lack: what is behind that one isn't settled either.
        """
        if psn > self.floor:
            position = bisect_left(self.asked, self.floor)
            if psn not in self.nak_psns or position == len(self.asked) or self.asked[position] >= psn:
                self.floor = psn

    def is_settling(self, at: int) -> bool:
        """Whether what was before the capture may still show."""
        return not self.begun and not self.view.from_start and at - self.seen_since <= SETTLING_NS

    def is_older(self, settled: int, at: int) -> bool:
        """Whether an answer to more than was seen may be to what was sent before the capture; then that counts as
        seen from now on.
        """
        if not self.is_settling(at) or not 0 <= settled - self.front <= JUMP_MAX:
            return False
        self.base = self.front = settled + 1
        self.top = max(self.top, self.front)
        self.ends.clear()
        self.restarts += 1
        return True

    @staticmethod
    def wire(psn: int) -> str:
        """A PSN as it stands in the packet, for messages."""
        return f"PSN {psn & PSN_MASK}"
