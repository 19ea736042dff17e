"""Time as the pure parts know it: integer nanoseconds on one monotonic scale.

Nothing here reads a clock. Drivers do, and hand `now` in; the simulator hands in virtual time.
"""

from __future__ import annotations

from typing import Final, NewType

Instant = NewType("Instant", int)
"""A moment in ns. Real worlds use CLOCK_MONOTONIC, which all processes of a machine share."""

MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000


def after(now: Instant, delay_ns: int) -> Instant:
    """The moment `delay_ns` later than `now`."""
    return Instant(now + delay_ns)


def earliest(*deadlines: Instant | None) -> Instant | None:
    """The first of several deadlines; None where there is none at all."""
    first: Instant | None = None
    for deadline in deadlines:
        if deadline is not None and (first is None or deadline < first):
            first = deadline
    return first
