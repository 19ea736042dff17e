"""The send window: work requests that were taken from the send queue and are not completed yet, in PSN order.

Requester and completer meet here: the requester moves the cursor forward as it sends, the completer removes what was
acknowledged and moves the cursor back where something was lost. Knows PSNs, nothing of frames.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from emul.wire.psn import PSN_MASK, psn_add, psn_distance
from emul.wqe import SendWqe


class SendWindow:
    """Requests in flight, and the cursor at what is to be sent next."""

    __slots__ = ("highest_psn", "index", "mtu", "next_psn", "packet", "responses_due", "wqes")

    def __init__(self, mtu: int, first_psn: int) -> None:
        self.mtu = mtu
        self.wqes: deque[SendWqe] = deque()
        self.next_psn = first_psn
        """PSN of the first packet of the next request to be added."""
        self.highest_psn = (first_psn - 1) & PSN_MASK
        """The furthest PSN that an answer may name."""
        self.index = 0
        """Cursor: position in `wqes` ..."""
        self.packet = 0
        """... and packet within that request."""
        self.responses_due = 0
        """Requests before the cursor whose own response is not complete: the slots of max_rd_atomic in use."""

    def add(self, wqe: SendWqe) -> None:
        """Gives the request its PSNs: one for each packet, of a READ one for each packet of its response."""
        packets = 1 if wqe.length <= self.mtu else -(-wqe.length // self.mtu)
        wqe.packets = packets
        wqe.first_psn = self.next_psn
        wqe.last_psn = (self.next_psn + packets - 1) & PSN_MASK
        self.next_psn = (self.next_psn + packets) & PSN_MASK
        self.wqes.append(wqe)

    def oldest_psn(self) -> int:
        """The oldest PSN that is not acknowledged; the next one to be used when all are."""
        if not self.wqes:
            return self.next_psn
        first = self.wqes[0]
        return (first.first_psn + first.received) & PSN_MASK

    def sent_end(self) -> int:
        """The PSN after the last one sent since the cursor was last moved back."""
        if self.index < len(self.wqes):
            return psn_add(self.wqes[self.index].first_psn, self.packet)
        return self.next_psn

    def in_flight(self) -> bool:
        """Whether anything before the cursor waits for an answer."""
        return self.index > 0 or self.packet > (self.wqes[0].received if self.wqes else 0)

    def pass_request(self, wqe: SendWqe) -> None:
        """The cursor moves past the request that it stands at."""
        self.index += 1
        self.packet = 0
        if wqe.responded:
            self.responses_due += 1

    def has_begun(self, wqe: SendWqe) -> bool:
        """Whether any packet of it was ever sent."""
        return psn_distance(wqe.first_psn, self.highest_psn) <= 0

    def is_drained(self) -> bool:
        """Whether nothing that was begun is still to be completed."""
        return not self.wqes or not self.has_begun(self.wqes[0])

    def pop_oldest(self) -> SendWqe:
        """Removes the oldest request, wherever the cursor stands."""
        wqe = self.wqes.popleft()
        if self.index:
            self.index -= 1
            if wqe.responded:
                self.responses_due -= 1
        else:
            self.packet = 0
        return wqe

    def settle(self, wqe: SendWqe, packets: int) -> bool:
        """The first `packets` of the oldest request, which has no response, are acknowledged; False when that is no
        news.
        """
        if packets <= wqe.received:
            return False
        wqe.received = packets
        if self.index == 0 and self.packet < packets:
            self.packet = packets
        return True

    def rewind(self, psn: int) -> None:
        """Moves the cursor to the packet `psn`, as far as that is a step back; a READ is asked for from what it
        lacks.
        """
        for position, wqe in enumerate(self.wqes):
            if psn_distance(psn, wqe.last_psn) > 0:
                continue
            packet = 0 if wqe.responded else max(0, psn_distance(psn, wqe.first_psn))
            if (position, packet) < (self.index, self.packet):
                self.index, self.packet = position, packet
                self.responses_due = sum(1 for before in islice(self.wqes, position) if before.responded)
            return
