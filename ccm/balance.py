"""Balancing by bytes in flight: which virtual interface moves to which path, and when. Decides; moves nothing.

A path's share is what its virtual interfaces have in flight. One of them moves where the path that carries most would
be better off, by more than a tolerance and in several windows one after the other; then there is a pause, and the one
that has moved rests. Each move makes the largest share smaller, so a steady load comes to rest, and a load that goes up
and down moves no virtual interface more often than the rest allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emul.clock import SECOND, Instant

TOLERANCE_PERCENT = 125
"""The path that carries most carries at most so much of what the better arrangement would have there."""
LEAST_BYTES = 16 * 1024
"""In flight on the path that carries most; what is less is no load."""
UNEVEN_WINDOWS = 3
"""So many windows, one after the other, must show the same path as too full before anything moves."""
WINDOW_GAP_MAX_NS = SECOND
"""Windows that are further apart are not one after the other."""
PAUSE_NS = SECOND
"""Between two moves towards the same partner: the next windows show what the former one brought."""
REST_NS = 5 * SECOND
"""For so long after it a virtual interface is not moved for its load again, whatever happens to the paths."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A virtual interface, the path that it sends over, its bytes in flight, and the paths that it may go over."""

    client: int
    vi: int
    path: int
    in_flight: int
    able: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Relief:
    """A virtual interface that is to leave the path that carries most."""

    client: int
    vi: int
    source: int
    target: int


class LoadBalance:
    """What was seen of the shares towards one partner, from window to window."""

    __slots__ = ("_full", "_moved", "_paths", "_pause_until", "_uneven", "_window_at")

    def __init__(self) -> None:
        self._paths: tuple[int, ...] = ()
        self._full = 0
        """The path that was too full in the last window, and ..."""
        self._uneven = 0
        """... in how many before that."""
        self._window_at = Instant(0)
        self._pause_until = Instant(0)
        self._moved: dict[tuple[int, int], Instant] = {}
        """(client, VI) -> when it was moved, as long as it rests."""

    def on_window(self, carried: Sequence[Carried], *, now: Instant) -> Relief | None:
        """Takes the loads of one window; gives what is to move now, if anything."""
        paths = tuple(sorted({path for each in carried for path in each.able}))
        if paths != self._paths:  # a path came or went: what was seen before says nothing of these
            self._paths, self._uneven = paths, 0
        if now - self._window_at > WINDOW_GAP_MAX_NS:
            self._uneven = 0
        self._window_at = now
        self._moved = {vi: at for vi, at in self._moved.items() if now - at < REST_NS}
        relief = find_relief([each for each in carried if each.able], frozenset(self._moved))
        if relief is None:
            self._uneven = 0
            return None
        self._uneven = self._uneven + 1 if self._uneven and relief.source == self._full else 1
        self._full = relief.source
        if self._uneven < UNEVEN_WINDOWS or now < self._pause_until:
            return None
        self._uneven = 0
        self._pause_until = Instant(now + PAUSE_NS)
        self._moved[relief.client, relief.vi] = now
        return relief

    def skip(self) -> None:
        """A window in which virtual interfaces were on their way shows nothing."""
        self._uneven = 0


def find_relief(carried: Sequence[Carried], resting: frozenset[tuple[int, int]] = frozenset()) -> Relief | None:
    """The move that takes most from the path that carries most; None where the shares are even enough."""
    total = {path: 0 for each in carried for path in (*each.able, each.path)}
    for each in carried:
        total[each.path] += each.in_flight
    if not total:
        return None
    full = max(sorted(total), key=lambda path: total[path])
    if total[full] < LEAST_BYTES:
        return None
    best, found = total[full], None
    for each in carried:
        if each.path != full or (each.client, each.vi) in resting:
            continue
        for path in each.able:
            if path == full:
                continue
            larger = max(total[full] - each.in_flight, total[path] + each.in_flight)
            if larger < best:
                best, found = larger, Relief(each.client, each.vi, full, path)
    return found if total[full] * 100 > TOLERANCE_PERCENT * best else None
