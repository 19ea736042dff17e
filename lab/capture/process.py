"""Copies the rings of cables to their spool files until told to stop. Runs in the fabric's network namespace."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.capture.ring import RETIRE_MS, Ring
from lab.capture.spool import SPOOL_BYTES_MAX, SpoolWriter

DRAIN_S = 2 * RETIRE_MS / 1000
"""After this the kernel has handed over every block that is not empty."""


@dataclass(frozen=True, slots=True)
class Tapped:
    """A cable: its two interfaces in the fabric's namespace, and its spool file."""

    cable: str
    interfaces: tuple[str, str]
    spool: Path


class CaptureProcess:
    """The loop. Opens rings and files at once: from then on no frame is missed. Raises OSError."""

    def __init__(self, cables: Sequence[Tapped], bytes_max: int = SPOOL_BYTES_MAX) -> None:
        self._taps: list[tuple[Ring, SpoolWriter, int]] = []
        self._poller = select.poll()
        for cable in cables:
            writer = SpoolWriter(cable.spool.open("wb", buffering=1 << 20), bytes_max)
            for end, interface in enumerate(cable.interfaces):
                self._taps.append((Ring(interface), writer, end))
                self._poller.register(self._taps[-1][0], select.POLLIN)

    def run(self, until: float | None = None) -> None:
        """Copies until SIGTERM, SIGINT or the moment `until` (of time.monotonic), then writes what is left."""
        stop_read, stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(stop_write, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, _nothing) for number in (signal.SIGTERM, signal.SIGINT)}
        self._poller.register(stop_read, select.POLLIN)
        try:
            while until is None or time.monotonic() < until:
                left = None if until is None else max(0.0, (until - time.monotonic()) * 1000)
                ready = self._poller.poll(left)
                if any(fd == stop_read for fd, _ in ready):
                    break
                self._copy()
            ended_at = time.time_ns()
            time.sleep(DRAIN_S)
            self._copy()
            for writer in {id(writer): writer for _, writer, _ in self._taps}.values():
                writer.ended(ended_at)
        finally:
            self._close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(stop_read)
            os.close(stop_write)

    def _copy(self) -> None:
        for ring, writer, end in self._taps:
            while (block := ring.take()) is not None:
                writer.add(end, block)

    def _close(self) -> None:
        for ring, writer, end in self._taps:
            writer.dropped(end, ring.drops())
            ring.close()
        for writer in {id(writer): writer for _, writer, _ in self._taps}.values():
            with suppress(OSError):  # the disk is full: what is there can be read
                writer.close()


def _nothing(number: int, frame: object) -> None:
    """The signal's arrival is told through the wake-up descriptor."""


def capture(cables: Sequence[Tapped], ready: Callable[[], object], until: float | None = None) -> None:
    """Captures; `ready` is called once no frame will be missed any more. Raises OSError."""
    process = CaptureProcess(cables)
    ready()
    process.run(until)
