"""The work of one virtual interface: a ledger of what is unconfirmed, in order, and the lane that carries it.

Everything a client hands over is in the ledger until its completion says so; a full ledger is back-pressure. When the
path is lost the stream is held: work is taken and not posted. `route` posts all that is unconfirmed on another lane,
in order; `move` does the same between living lanes, without posting anything twice. On the receiving side messages
carry their sequence, so that one which arrived and was replayed all the same is delivered once, and one that overtook
another on the way between two paths waits for it. Posts and confirms; opens nothing, knows no path.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

MESSAGE_HEADER = struct.Struct("<IIQ")
"""Epoch, length, number: before the client's bytes in each message."""
STASH_MAX = 2048
"""Messages that may wait for an earlier one: more than receives are posted on all lanes of a stream."""


Work = tuple[int, int, int, int, bytes | None]
"""One request: sequence, source offset, length, target offset, None; or sequence, 0, length, message number, data.
A bare tuple, as one is made for each write.
"""


class Lane(Protocol):
    """What carries a stream on one path."""

    post_write: Callable[[int, int, int, int, int, int], None]
    """(wr_id, address, length, lkey, remote address, rkey)."""
    source: int
    lkey: int
    target: int
    rkey: int

    def post_message(self, sequence: int, number: int, data: bytes) -> None:
        """Posts a SEND of message `number`."""


class Stream:
    """Sender's side of one virtual interface of a session, over all its paths. Sequences begin with 1 in each epoch."""

    __slots__ = (
        "_on_former",
        "depth",
        "entries",
        "former",
        "lane",
        "messages",
        "next_sequence",
        "source_bytes",
        "target_bytes",
    )

    def __init__(self, depth: int, source_bytes: int, target_bytes: int = 0) -> None:
        self.depth = depth
        self.source_bytes = source_bytes
        self.target_bytes = target_bytes
        self.entries: deque[Work] = deque()
        self.lane: Lane | None = None
        self.former: Lane | None = None
        """While moving: the lane whose work is still under way."""
        self._on_former = 0
        self.next_sequence = 1
        self.messages = 0
        """Messages of this epoch: they have a numbering of their own, as the receiver sees no writes."""

    def write(self, source_offset: int, length: int, target_offset: int) -> int:
        """Mirrors `length` bytes of the source region into the partner's; gives the sequence, 0 when the ledger is
        full.

        Raises ValueError outside either region.
        """
        if (
            source_offset < 0 or target_offset < 0 or length <= 0
            or source_offset + length > self.source_bytes or target_offset + length > self.target_bytes
        ):  # fmt: skip
            raise ValueError(
                f"{length} bytes from {source_offset} of {self.source_bytes} to {target_offset} of {self.target_bytes}"
            )
        entries = self.entries
        if len(entries) >= self.depth:
            return 0
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        entries.append((sequence, source_offset, length, target_offset, None))
        lane = self.lane
        if lane is not None:
            lane.post_write(
                sequence, lane.source + source_offset, length, lane.lkey, lane.target + target_offset, lane.rkey
            )
        return sequence

    def send(self, data: bytes) -> int:
        """Sends a message; gives its sequence, 0 when the ledger is full."""
        if len(self.entries) >= self.depth:
            return 0
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        self.messages += 1
        self.entries.append((sequence, 0, len(data), self.messages, data))
        if self.lane is not None:
            self.lane.post_message(sequence, self.messages, data)
        return sequence

    def confirm(self, lane: Lane, sequence: int) -> Work | None:
        """The request completed on `lane`; None for a lane whose completions no longer count."""
        entries = self.entries
        if lane is self.lane:
            if entries and entries[0][0] == sequence:
                return entries.popleft()
            return None
        if lane is self.former and entries and entries[0][0] == sequence:
            work = entries.popleft()
            self._on_former -= 1
            return work
        return None

    def hold(self) -> None:
        """Its path is lost: nothing is posted any more, nothing that completes there counts."""
        self.lane = self.former = None
        self._on_former = 0

    def route(self, lane: Lane) -> int:
        """Sends over `lane` from now on; posts what is unconfirmed there. Gives how many requests were posted again."""
        if lane is self.lane:
            return 0
        if lane is self.former:
            fresh = list(self.entries)[self._on_former :]
            self.lane, self.former, self._on_former = lane, None, 0
            self._post(lane, fresh)
            return 0
        self.lane, self.former, self._on_former = lane, None, 0
        self._post(lane, list(self.entries))
        return len(self.entries)

    def begin_move(self) -> None:
        """Takes new work without posting it, until what is under way on the present lane is complete."""
        if self.lane is not None:
            self.former, self.lane, self._on_former = self.lane, None, len(self.entries)

    @property
    def drained(self) -> bool:
        """Whether a move may be finished: nothing is under way on the former lane."""
        return self.former is not None and self._on_former == 0

    def finish_move(self, lane: Lane) -> None:
        """Sends over `lane` what has gathered since `begin_move`."""
        self.former, self.lane = None, lane
        self._post(lane, list(self.entries))

    def drop(self) -> int:
        """The epoch is over: gives up what is unconfirmed; how much that was."""
        count = len(self.entries)
        self.entries.clear()
        self.hold()
        return count

    def _post(self, lane: Lane, works: list[Work]) -> None:
        for sequence, source, length, target, data in works:
            if data is None:
                lane.post_write(sequence, lane.source + source, length, lane.lkey, lane.target + target, lane.rkey)
            else:
                lane.post_message(sequence, target, data)


class Arrivals:
    """Receiver's side of one virtual interface: each message of an epoch once, in the order in which it was sent."""

    __slots__ = ("_awaited", "_awaited_since", "_epoch", "_expected", "_stash", "duplicates", "strange")

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._expected = 1
        self._stash: dict[int, bytes] = {}
        self._awaited = 0
        """The message that others waited for when `has_hole` was last asked, ..."""
        self._awaited_since = 0
        """... and when it was first found to be that."""
        self.duplicates = 0
        self.strange = 0
        """Messages that were none of this epoch, or damaged."""

    def has_hole(self, now: int, longest_ns: int) -> bool:
        """Whether messages have waited for an earlier one for longer than that; to be asked now and then."""
        awaited = self._expected if self._stash else 0
        if awaited != self._awaited:
            self._awaited, self._awaited_since = awaited, now
        return bool(awaited) and now - self._awaited_since > longest_ns

    def take(self, message: bytes) -> list[bytes]:
        """A message arrived on any lane; gives the client's bytes of all that are deliverable now."""
        if len(message) < MESSAGE_HEADER.size:
            self.strange += 1
            return []
        epoch, length, sequence = MESSAGE_HEADER.unpack_from(message)
        if epoch != self._epoch or length != len(message) - MESSAGE_HEADER.size:
            self.strange += 1
            return []
        if sequence < self._expected or sequence in self._stash:
            self.duplicates += 1
            return []
        if sequence - self._expected > STASH_MAX:
            self.strange += 1
            return []
        self._stash[sequence] = message[MESSAGE_HEADER.size :]
        deliverable = []
        while self._expected in self._stash:
            deliverable.append(self._stash.pop(self._expected))
            self._expected += 1
        return deliverable
