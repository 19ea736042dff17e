"""Blocks of two rings (the ends of a cable) in one file, as they came; and the frames in it, by time.

Layout: entries of a head (number of the end, bytes) and that many bytes of a block; at the end one entry for each end
with its figures instead of a block, marked by FIGURES added to the number, and one marked END with the moment at which
the capture was ended: what is later stands in it for some ends only, and is left out.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lab.capture.ring import Captured, frames_in, frames_of

ENDS = 2
SPOOL_BYTES_MAX = 256 << 20
"""Of a cable; what comes later is counted and not kept."""
FIGURES = 0x100
END = 0x200
_HEAD = struct.Struct("<II")
_COUNTS = struct.Struct("<QQ")
_MOMENT = struct.Struct("<Q")


@dataclass(slots=True)
class Figures:
    """Of one end: frames seen, frames not in the file since the kernel's ring or the file was full."""

    seen: int = 0
    lost: int = 0


@dataclass(slots=True)
class SpoolWriter:
    """Appends blocks until `bytes_max`; `close` adds the figures."""

    file: BinaryIO
    bytes_max: int = SPOOL_BYTES_MAX
    figures: tuple[Figures, Figures] = field(default_factory=lambda: (Figures(), Figures()))
    _written: int = 0

    def add(self, end: int, block: bytes) -> None:
        """Keeps a block, or counts its frames as lost when there is no room."""
        count = frames_in(block)
        self.figures[end].seen += count
        if self._written + len(block) > self.bytes_max:
            self.figures[end].lost += count
            return
        self._written += len(block)
        self.file.write(_HEAD.pack(end, len(block)))
        self.file.write(block)

    def dropped(self, end: int, count: int) -> None:
        """The kernel had no room for so many frames."""
        self.figures[end].seen += count
        self.figures[end].lost += count

    def ended(self, at: int) -> None:
        """The capture was ended at `at`, ns since 1970."""
        self.file.write(_HEAD.pack(END, _MOMENT.size) + _MOMENT.pack(at))

    def close(self) -> None:
        """Writes the figures."""
        for end, figures in enumerate(self.figures):
            self.file.write(_HEAD.pack(FIGURES + end, _COUNTS.size))
            self.file.write(_COUNTS.pack(figures.seen, figures.lost))
        self.file.close()


class Spool:
    """A spool file that is read. One whose writer was killed is read as far as it goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures = (Figures(), Figures())
        self.until: int | None = None
        """When the capture was ended, if that is known."""
        self._blocks: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        size = path.stat().st_size
        with path.open("rb") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                number, length = _HEAD.unpack(head)
                start = file.tell()
                if start + length > size:
                    return
                if number < FIGURES:
                    self._blocks[number].append((start, length))
                    file.seek(length, 1)
                elif number == END:
                    (self.until,) = _MOMENT.unpack(file.read(length))
                else:
                    seen, lost = _COUNTS.unpack(file.read(length))
                    self.figures[number - FIGURES].seen, self.figures[number - FIGURES].lost = seen, lost

    def frames(self) -> Iterator[tuple[int, Captured]]:
        """(end, frame) of both ends, by time."""
        return heapq.merge(*(self._frames(end) for end in range(ENDS)), key=lambda pair: pair[1].at)

    def _frames(self, end: int) -> Iterator[tuple[int, Captured]]:
        with self._path.open("rb") as file:
            for start, length in self._blocks[end]:
                file.seek(start)
                for frame in frames_of(file.read(length)):
                    if self.until is None or frame.at <= self.until:
                        yield end, frame
