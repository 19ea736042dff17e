"""A slow cable's direction: frames leave in order, each after the time that its bits take and the cable's length.

Pure: frames and the time in, frames out. The same in the injector process and in the simulator's cables.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from emul.clock import SECOND

BACKLOG_BYTES_MAX = 1 << 20
"""Waiting for the line before they are on it, as in a port's buffer; a frame beyond it is dropped."""
FRAMES_MAX = 65_536
"""Waiting or under way; a frame beyond it is dropped."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How long a cable is, and how many bits it takes a second (None: any number at once)."""

    delay_ns: int = 0
    rate_bps: int | None = None


class Shaper:
    """Frames that entered one direction of a shaped cable and have not left it."""

    __slots__ = ("_frames", "_free_at", "_shape", "dropped")

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._frames: deque[tuple[int, bytes]] = deque()
        self._free_at = 0
        """When the last bit of what has been accepted is on the line."""
        self.dropped = 0
        """Frames refused because too many waited."""

    def put(self, frame: bytes, *, now: int) -> int | None:
        """Accepts a frame; gives when it leaves at the other end, None where it is dropped."""
        line_ns = self.line_ns(len(frame))
        start = max(now, self._free_at)
        if len(self._frames) >= FRAMES_MAX or start - now > self.line_ns(BACKLOG_BYTES_MAX):
            self.dropped += 1
            return None
        self._free_at = start + line_ns
        due_at = self._free_at + self._shape.delay_ns
        self._frames.append((due_at, frame))
        return due_at

    def due(self, *, now: int) -> list[bytes]:
        """The frames that leave until `now`, in the order in which they entered."""
        frames: list[bytes] = []
        while self._frames and self._frames[0][0] <= now:
            frames.append(self._frames.popleft()[1])
        return frames

    def next_at(self) -> int | None:
        """When the next frame leaves; None while there is none."""
        return self._frames[0][0] if self._frames else None

    def clear(self) -> int:
        """The cable was pulled out: all is lost. How many frames that were."""
        lost = len(self._frames)
        self._frames.clear()
        self._free_at = 0
        return lost

    def line_ns(self, length: int) -> int:
        """How long so many bytes occupy the line."""
        rate = self._shape.rate_bps
        return 0 if rate is None else length * 8 * SECOND // rate
