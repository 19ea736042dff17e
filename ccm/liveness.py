"""Is a path alive: one-sided reads of the partner's status page, and limits that adapt to what was seen.

A probe is an RDMA READ, so the partner's adapter answers it whether its host runs or not. One probe is under way at a
time, about every `probe_interval_ns`, and less often between partners that have no work. A path is silent when a probe
has been under way and nothing at all has come back on the path for its limit: the larger of a floor and several times
the worst round trip seen lately, since on a loaded machine any wake-up may take milliseconds. The time during which our
own process was not run is credited: our late timer is not the partner's silence. A path is given up only for one that
is provably better, that has answered two probes posted since the silent one was last asked: when the machine stalls,
all paths are silent together, and two sides that gave up different ones would lose both. Without a better one a longer
limit holds, since nothing would be won.
"""

from __future__ import annotations

from ccm.settings import DEFAULTS, Settings
from emul.clock import Instant


class Liveness:
    """When one path was last heard of, and until when it may stay silent."""

    __slots__ = (
        "_answered", "_base_at", "_busy_until", "_settings", "_shaken_until", "_window_at", "_worst_before_ns",
        "_worst_ns", "last_life_at", "next_probe_at", "probe_at", "rtt_ns",
    )  # fmt: skip

    def __init__(self, settings: Settings = DEFAULTS, *, now: Instant) -> None:
        self._settings = settings
        self.probe_at: Instant | None = None
        """When the probe under way was posted; None when there is none."""
        self.last_life_at = now
        self.next_probe_at = now
        self.rtt_ns = 0
        self._answered = (Instant(0), Instant(0))
        """When the last two answered probes were posted."""
        self._shaken_until = Instant(0)
        self._base_at = now
        self._busy_until = Instant(now + settings.busy_for_ns)
        self._window_at = now
        self._worst_ns = 0
        self._worst_before_ns = 0

    def probe_due(self, *, now: Instant) -> bool:
        """Whether it is time for a probe and none is under way."""
        return self.probe_at is None and now >= self.next_probe_at

    def on_probe(self, *, now: Instant) -> None:
        """A probe was posted."""
        self.probe_at = now
        settings = self._settings
        busy = now < self._busy_until
        self.next_probe_at = Instant(now + (settings.probe_interval_ns if busy else settings.idle_probe_interval_ns))
        self._base_at = max(self.last_life_at, Instant(now - settings.probe_interval_ns))

    def on_answer(self, late_ns: int = 0, *, now: Instant) -> None:
        """The probe under way was answered; the answer may have waited for us for `late_ns`."""
        if self.probe_at is not None:
            self.rtt_ns = max(0, now - self.probe_at - late_ns)
            if self.rtt_ns > self._settings.limit_floor_ns:
                self._shaken_until = Instant(now + self._settings.shaken_ns)
            if self.probe_at >= self._shaken_until:
                self._answered = (self._answered[1], self.probe_at)
            self._note_worst(self.rtt_ns, now=now)
        self.probe_at = None
        self.on_life(now=now)

    def on_work(self, *, now: Instant) -> None:
        """Something completed between the partners, on this path or another: probes come at the busy rate."""
        self._busy_until = Instant(now + self._settings.busy_for_ns)
        self.next_probe_at = min(self.next_probe_at, Instant(now + self._settings.probe_interval_ns))

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
        settings = self._settings
        return max(settings.limit_floor_ns, min(settings.limit_most_ns, settings.limit_factor * worst))

    @property
    def alone_limit_ns(self) -> int:
        """Silence after which a path without a better one is given up."""
        return max(self._settings.alone_limit_ns, self.limit_ns)

    def silent_at(self) -> Instant | None:
        """When the path will be silent; None while no probe is under way (who did not ask can't miss an answer)."""
        return None if self.probe_at is None else Instant(self._base_at + self.limit_ns)

    def silent_alone_at(self) -> Instant | None:
        """The same with the limit of a path without a better one."""
        return None if self.probe_at is None else Instant(self._base_at + self.alone_limit_ns)

    def _note_worst(self, rtt_ns: int, *, now: Instant) -> None:
        window_ns = self._settings.window_ns
        if now - self._window_at > window_ns:
            self._worst_before_ns = self._worst_ns if now - self._window_at <= 2 * window_ns else 0
            self._worst_ns, self._window_at = 0, now
        self._worst_ns = max(self._worst_ns, rtt_ns)
