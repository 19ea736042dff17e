"""How much each virtual interface has in flight: looked up in its ledger now and then; a write costs nothing more."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ccm import events as ev
from ccm.client import Session
from ccm.stream import Stream
from emul.clock import MILLISECOND, Instant, after

SAMPLE_NS = 20 * MILLISECOND
"""Time between two looks at the ledgers."""
SAMPLES = 10
"""Looks of which the mean is told."""
SUMMED_MAX = 64
"""Requests of a ledger whose lengths are summed; of the rest the same mean is taken to hold."""


class LoadMeter:
    """The looks of the present window."""

    def __init__(self) -> None:
        self._look_at = Instant(0)
        self._looks = 0
        self._sums: dict[int, dict[tuple[int, int, int], int]] = {}
        """By partner: (client, epoch, VI) -> bytes in flight, summed over the looks."""
        self._told: set[int] = set()
        """Partners towards which the window before had a load."""

    def look(self, sessions: Iterable[Session], *, now: Instant) -> list[ev.LoadSeen]:
        """Looks if it is time; gives what a complete window showed: for partners with a load, and once without."""
        if now < self._look_at:
            return []
        self._look_at = after(now, SAMPLE_NS)
        for session in sessions:
            if not session.alive:
                continue
            for vi, stream in enumerate(session.streams):
                if stream.entries:
                    sums = self._sums.setdefault(session.partner.id, {})
                    key = (session.client_key, session.epoch, vi)
                    sums[key] = sums.get(key, 0) + in_flight(stream)
        self._looks += 1
        if self._looks < SAMPLES:
            return []
        seen = [
            ev.LoadSeen(
                partner,
                tuple(ev.ViLoad(*key, total // SAMPLES) for key, total in sorted(self._sums.get(partner, {}).items())),
            )
            for partner in sorted(self._told | self._sums.keys())
        ]
        self._told = set(self._sums)
        self._sums = {}
        self._looks = 0
        return seen


def in_flight(stream: Stream) -> int:
    """Bytes of a stream's unconfirmed requests."""
    entries = stream.entries
    some = sum(entry[2] for entry in islice(entries, SUMMED_MAX))
    return some if len(entries) <= SUMMED_MAX else some * len(entries) // SUMMED_MAX
