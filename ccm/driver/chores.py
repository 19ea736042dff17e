"""Slow work in small steps: verbs that may wait, so that one of them at most comes between two looks at completions.

A chore is a generator that yields after each slow verb. Chores are done in their order, one step at a time; what must
not be overtaken (telling the partner that something is gone, or is there) queues up behind them. Knows no verbs and no
clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from emul.clock import MILLISECOND, Instant

PUT_OFF_NS = 5 * MILLISECOND
"""How long giving something back waits where nothing waits for it: a replay comes first."""

Chore = Iterator[None]


class Chores:
    """The queue. Its length is bounded by what the manager may ask for: a few chores for each session on each path."""

    __slots__ = ("_not_before", "_queue")

    def __init__(self) -> None:
        self._queue: deque[Chore] = deque()
        self._not_before = Instant(0)

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, chore: Chore, *, now: Instant, put_off: bool = False) -> None:
        """Queues a chore; one that is `put_off` has time, with all before it, until another comes or PUT_OFF_NS
        passed.
        """
        if not put_off:
            self._not_before = now
        elif not self._queue:
            self._not_before = Instant(now + PUT_OFF_NS)
        self._queue.append(chore)

    def deadline(self, *, now: Instant) -> Instant | None:
        """When the next step is due: never before `now`, since a chore that waits its turn is not late."""
        return max(self._not_before, now) if self._queue else None

    def step(self, *, now: Instant) -> None:
        """Does one step, if one is due."""
        if self._queue and now >= self._not_before:
            self._advance()

    def finish(self) -> None:
        """Does everything that is queued."""
        while self._queue:
            self._advance()

    def _advance(self) -> None:
        try:
            next(self._queue[0])
        except StopIteration:
            self._queue.popleft()
