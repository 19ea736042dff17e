"""Captures of a running lab's cables: started in its fabric, written as pcapng with what happened as comments."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.capture import pcapng
from lab.capture.process import Tapped, capture
from lab.capture.ring import Captured
from lab.capture.spool import Spool
from lab.errors import LabError
from lab.fabric import namespaces
from lab.fabric.client import Fabric
from lab.fabric.join import join
from lab.injector.rules import Sight, describe

READY_MAX_S = 5.0
FRAME_SEARCH_NS = 100_000_000
"""A frame on which the injector acted entered the cable at most this long before."""
TOLD_FROM_NS = 100_000
"""A comment that stands at a later frame says how much later."""
EVENTS_PAGES_MAX = 64
APPLICATION = "ccm-lab"


@dataclass(frozen=True, slots=True)
class Comment:
    """Something that happened at `at` (ns of CLOCK_MONOTONIC), told at the packet that it concerns: the one that
    `frame` describes (lab.injector.rules.describe), or the first one after it."""

    at: int
    text: str
    frame: str | None = None
    action: str | None = None
    """What the injector did."""


class CableCaptures:
    """Captures of some cables of one lab, from `start` to `stop`; then `write`, then `close`."""

    def __init__(self, fabric: Fabric, cables: Sequence[str] | None = None, directory: Path | None = None) -> None:
        """`cables`: default all. `directory`: where the spool files are meanwhile (default: the system's temporary
        one).
        """
        self._fabric = fabric
        wanted = fabric.cables if cables is None else cables
        self._spools = tempfile.TemporaryDirectory(prefix="ccm-lab-capture-", dir=directory)
        described = {str(cable["cable"]): cable for cable in fabric.describe()["cables"]}
        self._ends = {name: tuple(described[name]["ends"]) for name in wanted}
        self._tapped = [
            Tapped(name, tuple(described[name]["interfaces"]), Path(self._spools.name) / f"{number}.spool")
            for number, name in enumerate(wanted)
        ]
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._child: int | None = None

    def start(self) -> None:
        """From now on no frame is missed. Raises LabError."""
        kinds, descriptors = self._fabric.namespaces("fabric")
        told, theirs = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(told)
            self._become(kinds, descriptors, theirs)
        os.close(theirs)
        for descriptor in descriptors:
            os.close(descriptor)
        ready, _, _ = select.select([told], [], [], READY_MAX_S)
        answer = os.read(told, 4096) if ready else b"no answer"
        os.close(told)
        if answer != b"ready":
            self.stop()
            raise LabError(f"capture of {', '.join(self._ends)}: {answer.decode() or 'the process ended'}")

    def _become(self, kinds: Sequence[str], descriptors: Sequence[int], told: int) -> None:
        """The child: joins the fabric's network and captures; never returns."""
        status = 1
        try:
            namespaces.die_with_parent(signal.SIGTERM)
            os.setpgid(0, 0)  # Ctrl-C ends the command; the command ends this
            namespaces.name_process("lab-capture")
            wanted = [pair for pair in zip(kinds, descriptors, strict=True) if pair[0] in ("user", "net")]
            join([kind for kind, _ in wanted], [descriptor for _, descriptor in wanted])
            for descriptor in descriptors:
                os.close(descriptor)
            capture(self._tapped, lambda: os.write(told, b"ready"))
            status = 0
        except OSError as error:
            with suppress(OSError):
                os.write(told, str(error).encode())
        finally:
            os._exit(status)

    def stop(self) -> None:
        """Ends the capture; everything until now is kept. A second call does nothing."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)
            with suppress(ChildProcessError):
                os.waitpid(self._child, 0)
            self._child = None

    def write(self, cable: str, target: Path, comments: Iterable[Comment] = ()) -> tuple[int, int]:
        """Writes one cable's file; gives how many frames it holds, and how many were lost. Raises OSError."""
        (tapped,) = [tapped for tapped in self._tapped if tapped.cable == cable]
        return write_pcapng(tapped.spool, target, cable, self._ends[cable], comments, self._offset_ns)

    def frames(self, cable: str) -> tuple[Iterator[tuple[int, bytes]], int]:
        """One cable's frames with their time (ns since 1970), after `stop`; and how many were lost."""
        (tapped,) = [tapped for tapped in self._tapped if tapped.cable == cable]
        spool = Spool(tapped.spool)
        lost = sum(figures.lost for figures in spool.figures)
        return ((frame.at, frame.frame) for _, frame in spool.frames()), lost

    def close(self) -> None:
        """Stops, and removes the spool files."""
        self.stop()
        self._spools.cleanup()


def injector_comments(fabric: Fabric) -> dict[str, list[Comment]]:
    """What the injector did to frames so far, by cable."""
    comments: dict[str, list[Comment]] = {}
    after = 0
    for _ in range(EVENTS_PAGES_MAX):
        _, events = fabric.fired(after)
        if not events:
            break
        for event in events:
            after = max(after, int(event["number"]))
            text = f"{event['note'] or 'injector'}: {event['action']} (match {event['match']} from {event['source']})"
            comments.setdefault(str(event["cable"]), []).append(
                Comment(int(event["at"]), text, str(event["frame"]), str(event["action"]))
            )
    return comments


def write_pcapng(
    spool_file: Path,
    target: Path,
    cable: str,
    ends: Sequence[str],
    comments: Iterable[Comment],
    offset_ns: int,
) -> tuple[int, int]:
    """Turns a spool file into pcapng; gives the frames in it and those lost. `offset_ns`: from CLOCK_MONOTONIC to the
    time since 1970. Interface 0 is what enters at the first of `ends`, 1 at the second.
    """
    spool = Spool(spool_file)
    lost = sum(figures.lost for figures in spool.figures)
    waiting = deque(sorted(comments, key=lambda comment: comment.at))
    written, last_at = 0, time.time_ns()
    held: tuple[int, Captured, list[str]] | None = None
    with target.open("wb", buffering=1 << 20) as file:
        file.write(pcapng.section(APPLICATION, [f"cable {cable}: each frame as it enters the cable"]))
        for number, end in enumerate(ends):
            file.write(pcapng.interface(f"{cable}-{number}", f"sent by {end}"))
        for end_number, frame in spool.frames():
            if held is not None:
                file.write(_packet(*held))
            held = (end_number, frame, _due(waiting, frame, offset_ns) if waiting else [])
            written += 1
        left = [comment.text for comment in waiting]
        if held is not None:  # nothing came after the last of them
            file.write(_packet(held[0], held[1], [*held[2], *(f"after this frame: {text}" for text in left)]))
            last_at, left = held[1].at, []
        for number, figures in enumerate(spool.figures):
            file.write(pcapng.statistics(number, last_at, figures.seen, figures.lost, left if number == 0 else ()))
    return written, lost


def _packet(end: int, frame: Captured, texts: Sequence[str]) -> bytes:
    return pcapng.packet(end, frame.at, frame.frame, frame.length, texts)


def _due(waiting: deque[Comment], frame: Captured, offset_ns: int) -> list[str]:
    """The comments that belong to this frame, taken out of those that wait."""
    texts: list[str] = []
    for comment in list(waiting):
        at = comment.at + offset_ns
        if at > frame.at + FRAME_SEARCH_NS:
            break
        named = comment.frame is not None and describe(Sight.of(frame.frame), frame.length) == comment.frame
        if named or frame.at >= at:
            late_ns = frame.at - at
            texts.append(f"{comment.text} ({late_ns / 1e6:.1f} ms ago)" if late_ns >= TOLD_FROM_NS else comment.text)
            waiting.remove(comment)
    return texts


def fault_comments(faults: Iterable[Mapping[str, object]], cables: Iterable[str]) -> dict[str, list[Comment]]:
    """Comments for faults {"text", "target", "at", "cleared"} (ns or None): those of a cable at that cable, others at
    all.
    """
    names = list(cables)
    comments: dict[str, list[Comment]] = {name: [] for name in names}
    for fault in faults:
        target, text = str(fault["target"]), str(fault["text"])
        for name in [target] if target in comments else names:
            for moment, word in ((fault["at"], ""), (fault["cleared"], ", undone")):
                if isinstance(moment, int):
                    comments[name].append(Comment(moment, f"{text}{word}"))
    return comments
