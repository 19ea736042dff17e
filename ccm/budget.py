"""How often a node asks its partners: one budget of probes for all its paths, and what follows for detection.

A probe costs the node that sends it a request and the partner an answer, and a node has as many paths as its cluster
is large; so each node has so many probes a second in all, apart for the paths of busy partners, of idle ones, and of
those that it shares no client with. While there are few paths each is probed in its usual interval; beyond, the
interval stretches in proportion (`interval_ns`) and the load stays. Turns are given out one after the other, so that
the probes of a large cluster don't come in bursts.

Handshakes that wait for a partner's host poll in idle partners' turns: a cluster that is half switched off costs no
more than one that is idle.
"""

from __future__ import annotations

from enum import IntEnum

from ccm.settings import DEFAULTS, Settings
from emul.clock import MILLISECOND, SECOND, Instant

HELD_UP_NS = 20 * MILLISECOND
"""A timer that comes so late was held up (strain 1); each time that is twice as late is a strain of one more."""
HELD_UP_FOR_NS = SECOND // 2
"""For so long after the node counts as strained."""
STRAIN_MAX = 6
WAITING_LOOKS_NS = 4 * MILLISECOND
"""Between two looks whether an attempt to connect that waits may begin, whichever path waits. (If each of a hundred
paths looked for itself, a node that starts would do little else.)"""


class Rate(IntEnum):
    """How eagerly a path is probed."""

    BUSY = 0
    """Work goes on between the partners, or one of their paths doesn't answer as it used to."""
    IDLE = 1
    APART = 2
    """The partners share no client: nobody waits for this path."""


class Budget:
    """The probes of one node. Knows turns and nothing of paths but their number."""

    __slots__ = ("_last", "_last_look", "_strain", "_strained_until", "connecting", "paths", "settings")

    def __init__(self, settings: Settings = DEFAULTS) -> None:
        self.settings = settings
        self.paths = 0
        """All paths to all partners."""
        self.connecting = 0
        """Those whose connection is being made."""
        self._strain = 0
        self._strained_until = Instant(0)
        self._last_look = Instant(0)
        self._last = [Instant(0), Instant(0), Instant(0)]
        """By rate: the latest turn given out."""

    def note_late(self, late_ns: int, *, now: Instant) -> None:
        """A timer of this node came late by so much."""
        level = min(STRAIN_MAX, (late_ns // HELD_UP_NS).bit_length())
        if level and (level >= self._strain or now >= self._strained_until):
            self._strain, self._strained_until = level, Instant(now + HELD_UP_FOR_NS)

    def strain(self, *, now: Instant) -> int:
        """How much this node was held up lately, 0 ... STRAIN_MAX: the machine has more to do than it can."""
        return self._strain if now < self._strained_until else 0

    def waiting_look(self, *, now: Instant) -> Instant:
        """When a path whose attempt to connect found no room is to look again; each gets a time of its own."""
        free = min(self._last_look + WAITING_LOOKS_NS, now + self.paths * WAITING_LOOKS_NS)
        self._last_look = Instant(max(now + WAITING_LOOKS_NS, free))
        return self._last_look

    def turn(self, rate: Rate, *, now: Instant, after_ns: int | None = None) -> Instant:
        """When the next probe may be sent that is wanted `after_ns` from now (otherwise the rate's own interval).

        Probes for which nobody waits come half as often for each level of strain: they would only add to it.
        """
        interval_ns, per_s = _usual(self.settings, rate)
        wanted = now + (interval_ns if after_ns is None else after_ns)
        gap = SECOND // per_s
        if rate is not Rate.BUSY:
            gap <<= self.strain(now=now)
        # Turns of paths that were lost meanwhile are not given back; no more are ahead than there are paths.
        free = min(self._last[rate] + gap, wanted + self.paths * gap)
        at = Instant(max(wanted, free))
        self._last[rate] = at
        return at


def _usual(settings: Settings, rate: Rate) -> tuple[int, int]:
    """The interval of a rate where there are few paths, and its probes a second where there are many."""
    if rate is Rate.BUSY:
        return settings.probe_interval_ns, settings.busy_probes_per_s
    if rate is Rate.IDLE:
        return settings.idle_probe_interval_ns, settings.idle_probes_per_s
    return settings.apart_probe_interval_ns, settings.apart_probes_per_s


def interval_ns(settings: Settings, rate: Rate, paths: int) -> int:
    """Time between two probes of a path where `paths` paths of this node have the rate."""
    usual_ns, per_s = _usual(settings, rate)
    return max(usual_ns, paths * (SECOND // per_s))


def probes_per_s(settings: Settings = DEFAULTS) -> int:
    """Most probes that a node sends in a second, handshakes that wait included."""
    return settings.busy_probes_per_s + settings.idle_probes_per_s + settings.apart_probes_per_s


def detection_ns(
    settings: Settings = DEFAULTS, *, busy_paths: int = 0, idle_paths: int = 0, apart_paths: int = 0,
    rate: Rate = Rate.BUSY, round_trip_ns: int = 0, alone: bool = False,
) -> int:  # fmt: skip
    """The longest time from when a path falls silent until it is given up, where no carrier tells.

    `busy_paths`, `idle_paths`, `apart_paths`: how many paths of this node have each rate, the one in question (its
    rate: `rate`) among them. `round_trip_ns`: the worst of a probe lately. `alone`: there is no other path.

        interval  the longest wait for the next probe of the path
        + limit   silence that is allowed, between limit_floor and limit_most: limit_factor x round trip
          or      alarm (half the limit) + two probes of another path, which then count as busy, and their answers;
                  whichever is longer: a path is given up only for one that is provably better
        alone:    interval + alone_limit, or limit_factor x round trip, or the limit, whichever is the longest
    """
    counts = {Rate.BUSY: busy_paths, Rate.IDLE: idle_paths, Rate.APART: apart_paths}
    first = interval_ns(settings, rate, counts[rate])
    limit = max(settings.limit_floor_ns, min(settings.limit_most_ns, settings.limit_factor * round_trip_ns))
    if alone:
        slow_ns = min(ALONE_GROWTH_MAX * settings.alone_limit_ns, settings.limit_factor * round_trip_ns)
        return first + max(settings.alone_limit_ns, limit, slow_ns)
    alarmed = busy_paths if rate is Rate.BUSY else busy_paths + 1
    evidence = limit // ALARM_DIVISOR + 2 * (interval_ns(settings, Rate.BUSY, alarmed) + round_trip_ns)
    return first + max(limit, evidence)


ALONE_GROWTH_MAX = 10
"""The limit of a path without a better one follows the worst round trip up to so many times `alone_limit_ns`: a
session that is broken because the machine is slow has to be made anew, which makes it slower."""
ALARM_DIVISOR = 2
"""A probe that is unanswered for this part of the limit makes all paths to the partner count as busy: should the path
be lost, another one has to be proven better."""
