"""Is a path alive: one-sided reads of the partner's status page, and limits that adapt to what was seen.

A probe is an RDMA READ, so the partner's adapter answers it whether its host runs or not. One probe is under way at a
time, about every PROBE_INTERVAL_NS, and less often between partners that have no work. A path is silent when a probe
has been under way and nothing at all has come back on the path for its limit: the larger of a floor and several times
the worst round trip seen lately, since on a loaded machine any wake-up may take milliseconds. The time during which our
own process was not run is credited: our late timer is not the partner's silence. A path is given up only for one that
is provably better, that has answered two probes posted since the silent one was last asked: when the machine stalls,
all paths are silent together, and two sides that gave up different ones would lose both. Without a better one a longer
limit holds, since nothing would be won.
"""

from __future__ import annotations

from emul.clock import MILLISECOND, SECOND, Instant

PROBE_INTERVAL_NS = 5 * MILLISECOND
IDLE_PROBE_INTERVAL_NS = 20 * MILLISECOND
"""Between partners that have no work under way: nobody waits there, and probes are most of what an idle node costs."""
BUSY_FOR_NS = 200 * MILLISECOND
"""Partners count as busy for so long after something completed between them, on whatever path."""
LIMIT_FLOOR_NS = 16 * MILLISECOND
"""Wake-ups of 2-4 ms are common on a loaded machine, so a lower limit would raise false alarms."""
LIMIT_MOST_NS = 250 * MILLISECOND
"""On a machine so loaded that answers take a quarter of that, a false alarm costs more than a late one."""
LIMIT_FACTOR = 3
SHAKEN_NS = 20 * MILLISECOND
"""A path that itself was silent for longer than LIMIT_FLOOR_NS is no evidence against another one for so long after its
return: when everything stalled, lost requests are repeated within a retransmission timeout of the well-known connection
(17 ms), not all at once.
"""
ALONE_LIMIT_NS = 400 * MILLISECOND
"""Limit of a path without a better one."""
WINDOW_NS = 3 * SECOND
"""The worst round trip of this window and the one before counts."""


class Liveness:
    """When one path was last heard of, and until when it may stay silent."""

    __slots__ = (
        "_answered", "_base_at", "_busy_until", "_shaken_until", "_window_at", "_worst_before_ns", "_worst_ns",
        "last_life_at", "next_probe_at", "probe_at", "rtt_ns",
    )  # fmt: skip

    def __init__(self, *, now: Instant) -> None:
        self.probe_at: Instant | None = None
        """When the probe under way was posted; None when there is none."""
        self.last_life_at = now
        self.next_probe_at = now
        self.rtt_ns = 0
        self._answered = (Instant(0), Instant(0))
        """When the last two answered probes were posted."""
        self._shaken_until = Instant(0)
        self._base_at = now
        self._busy_until = Instant(now + BUSY_FOR_NS)
        self._window_at = now
        self._worst_ns = 0
        self._worst_before_ns = 0

    def probe_due(self, *, now: Instant) -> bool:
        """Whether it is time for a probe and none is under way."""
        return self.probe_at is None and now >= self.next_probe_at

    def on_probe(self, *, now: Instant) -> None:
        """A probe was posted."""
        self.probe_at = now
        self.next_probe_at = Instant(now + (PROBE_INTERVAL_NS if now < self._busy_until else IDLE_PROBE_INTERVAL_NS))
        self._base_at = max(self.last_life_at, Instant(now - PROBE_INTERVAL_NS))

    def on_answer(self, late_ns: int = 0, *, now: Instant) -> None:
        """The probe under way was answered; the answer may have waited for us for `late_ns`."""
        if self.probe_at is not None:
            self.rtt_ns = max(0, now - self.probe_at - late_ns)
            if self.rtt_ns > LIMIT_FLOOR_NS:
                self._shaken_until = Instant(now + SHAKEN_NS)
            if self.probe_at >= self._shaken_until:
                self._answered = (self._answered[1], self.probe_at)
            self._note_worst(self.rtt_ns, now=now)
        self.probe_at = None
        self.on_life(now=now)

    def on_work(self, *, now: Instant) -> None:
        """Something completed between the partners, on this path or another: probes come at the busy rate."""
        self._busy_until = Instant(now + BUSY_FOR_NS)
        self.next_probe_at = min(self.next_probe_at, Instant(now + PROBE_INTERVAL_NS))

    def on_life(self, *, now: Instant) -> None:
        """Something completed successfully on the path."""
        if now > self.last_life_at:
            self.last_life_at = now
            self._base_at = max(self._base_at, now)

    def proven_since(self, moment: Instant) -> bool:
        """Whether two probes that were posted at `moment` or later, and not just after a silence, were answered."""
        return self._answered[0] >= moment

    def credit(self, late_ns: int, *, now: Instant) -> None:
        """Our own process was not run for `late_ns`: that time doesn't count as silence."""
        self._base_at = min(now, Instant(self._base_at + late_ns))

    @property
    def limit_ns(self) -> int:
        """Silence after which a path is given up for another one."""
        worst = max(self._worst_ns, self._worst_before_ns)
        return max(LIMIT_FLOOR_NS, min(LIMIT_MOST_NS, LIMIT_FACTOR * worst))

    @property
    def alone_limit_ns(self) -> int:
        """Silence after which a path without a better one is given up."""
        return max(ALONE_LIMIT_NS, self.limit_ns)

    def silent_at(self) -> Instant | None:
        """When the path will be silent; None while no probe is under way (who did not ask can't miss an answer)."""
        return None if self.probe_at is None else Instant(self._base_at + self.limit_ns)

    def silent_alone_at(self) -> Instant | None:
        """The same with the limit of a path without a better one."""
        return None if self.probe_at is None else Instant(self._base_at + self.alone_limit_ns)

    def _note_worst(self, rtt_ns: int, *, now: Instant) -> None:
        if now - self._window_at > WINDOW_NS:
            self._worst_before_ns = self._worst_ns if now - self._window_at <= 2 * WINDOW_NS else 0
            self._worst_ns, self._window_at = 0, now
        self._worst_ns = max(self._worst_ns, rtt_ns)
