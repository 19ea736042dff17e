"""Is a path alive: one-sided reads of the partner's status page, and limits that adapt to what was seen.

A probe is an RDMA READ, so the partner's adapter answers it whether its host runs or not. One probe is under way at a
time, as often as the node's budget allows (`ccm.budget`, which also has the formula for the time that detection takes):
about every `probe_interval_ns`, and less often between partners that have no work. A path is silent when a probe
has been under way and nothing at all has come back on the path for its limit: the larger of a floor and several times
the worst round trip seen lately, since on a loaded machine any wake-up may take milliseconds. The time during which our
own process was not run is credited: our late timer is not the partner's silence. A path is given up only for one that
is provably better, that has answered two probes posted since the silent one was last asked: when the machine stalls,
all paths are silent together, and two sides that gave up different ones would lose both. For the same reason an answer
that took longer by the floor than the path's shortest lately proves nothing: it was held up. Without a better path a
longer limit holds, since nothing would be won.

A card that the machine does not run is silent too, and comes back. Each adapter counts on its node's status page how
often it looked at its port; the page is read over the other paths as well, so that a silent path whose card, at either
end, stood still between two looks at the page is excused, for as long as that lasts and its limit once more, but
never beyond `limit_most_ns`: a card that hangs looks just like that. One that is dead counts nothing, and excuses
nothing.
"""

from __future__ import annotations

from ccm.budget import ALARM_DIVISOR, ALONE_GROWTH_MAX, Budget, Rate
from emul.clock import MILLISECOND, Instant

ALONG_SLACK_NS = MILLISECOND
"""Two paths in their usual interval are given turns half an interval apart, and a timer runs a little late."""
LOOKS_APART_NS = 5 * MILLISECOND
"""Between two observations of a card's looks that are compared; an idle card looks every 4 ms."""
PROBE_MOST_NS = 300 * MILLISECOND
"""A probe that a card has not completed by then, well or not, has lost its completion: retries end after 268 ms."""


class Liveness:
    """When one path was last heard of, and until when it may stay silent."""

    __slots__ = (
        "_answered", "_base_at", "_best_before_ns", "_best_ns", "_budget", "_busy_until", "_excused_until", "_looks",
        "_looks_at", "_measured", "_rate", "_settings", "_shaken_until", "_stood_still", "_window_at",
        "_worst_before_ns", "_worst_ns", "last_life_at", "next_probe_at", "probe_at", "rtt_ns",
    )  # fmt: skip

    def __init__(
        self, budget: Budget | None = None, *, measured: bool = True, slowest_ns: int = 0, now: Instant
    ) -> None:
        """`slowest_ns`: how long an answer took on this path before the first probe, at the most."""
        self._budget = budget if budget is not None else Budget()
        self._settings = self._budget.settings
        self._rate = Rate.IDLE
        """Whose turn `next_probe_at` is."""
        self.probe_at: Instant | None = None
        """When the probe under way was posted; None when there is none."""
        self.last_life_at = now
        self.next_probe_at = now
        self.rtt_ns = 0
        self._answered = (Instant(0), Instant(0))
        """When the last two answered probes were posted."""
        self._shaken_until = Instant(0)
        self._looks: tuple[int, int] | None = None
        """What was last known of the looks of the path's two cards, own and remote, since the probe under way was
        posted, and ..."""
        self._looks_at = now
        """... when the probe of another path was posted that brought it."""
        self._stood_still = False
        self._excused_until = Instant(0)
        self._base_at = now
        self._busy_until = now
        self._window_at = now
        self._worst_ns = slowest_ns
        self._worst_before_ns = 0
        self._best_ns: int | None = None
        self._best_before_ns: int | None = None
        """The shortest round trip of this window and of the one before."""
        self._measured = measured
        """Whether it is known how long an answer takes: one has come."""

    def probe_due(self, *, now: Instant) -> bool:
        """Whether it is time for a probe and none is under way."""
        return self.probe_at is None and now >= self.next_probe_at

    def may_go_along(self, *, now: Instant) -> bool:
        """Whether none is under way, and it is time for one within half an interval: with that of another path it costs
        no turn of its own, and from then on they are due together.
        """
        settings, busy = self._settings, self._rate is Rate.BUSY
        interval_ns = settings.probe_interval_ns if busy else settings.idle_probe_interval_ns
        return self.probe_at is None and 2 * (self.next_probe_at - now - ALONG_SLACK_NS) <= interval_ns

    def on_probe(self, *, now: Instant, apart: bool = False) -> None:
        """A probe was posted; `apart`: the partners share no client."""
        self.probe_at = now
        self._rate = Rate.BUSY if now < self._busy_until else Rate.APART if apart else Rate.IDLE
        self.next_probe_at = self._budget.turn(self._rate, now=now)
        self._base_at = max(self.last_life_at, Instant(now - self._settings.probe_interval_ns))
        self._looks, self._stood_still, self._excused_until = None, False, Instant(0)

    def on_answer(self, late_ns: int = 0, *, now: Instant) -> None:
        """The probe under way was answered; the answer may have waited for us for `late_ns`."""
        if self.probe_at is not None:
            self.rtt_ns = max(0, now - self.probe_at - late_ns)
            if self.rtt_ns > self._best_lately_ns + self._settings.limit_floor_ns:
                self._shaken_until = Instant(now + self._settings.shaken_ns)
            self._note_round_trip(self.rtt_ns, now=now)
            if self.probe_at >= self._shaken_until:
                self._answered = (self._answered[1], self.probe_at)
            self._measured = True
            # Over a long cable the next probe was not due before this answer could come. What it took beyond that
            # makes us late with the next: a machine that holds one path up holds up the others, too.
            self.next_probe_at = max(self.next_probe_at, Instant(self.probe_at + self._best_lately_ns))
        self.probe_at = None
        self.on_life(now=now)

    def on_work(self, *, now: Instant) -> None:
        """Something completed between the partners, on this path or another: probes come at the busy rate."""
        self._busy_until = Instant(now + self._settings.busy_for_ns)
        if self._rate is not Rate.BUSY:
            self._rate = Rate.BUSY
            self.next_probe_at = min(self.next_probe_at, self._budget.turn(Rate.BUSY, now=now))

    def on_shared(self, *, now: Instant) -> None:
        """The partners have a client in common now: probes come at the usual rate."""
        if self._rate is Rate.APART:
            self._rate = Rate.IDLE
            self.next_probe_at = min(self.next_probe_at, self._budget.turn(Rate.IDLE, now=now))

    def on_life(self, *, now: Instant) -> None:
        """Something completed successfully on the path."""
        if now > self.last_life_at:
            self.last_life_at = now
            self._base_at = max(self._base_at, now)

    def forget_lost_probe(self) -> None:
        """The path lives, and the probe under way should long have been answered: it may be asked again. Without that
        a path on which work goes on, and so never falls silent, would be asked no more.
        """
        if self.probe_at is not None and self.last_life_at - self.probe_at > PROBE_MOST_NS:
            self.probe_at = None
            self.next_probe_at = max(self.next_probe_at, self.last_life_at)

    def proven_since(self, moment: Instant) -> bool:
        """Whether two probes that were posted at `moment` or later, and not just after a silence, were answered."""
        return self._answered[0] >= moment

    def on_looks(self, own: int, remote: int, asked_at: Instant, *, now: Instant) -> None:
        """Another path, whose probe was posted at `asked_at`, brought how often the two cards of this one had looked at
        their ports (0: unknown).
        """
        if self.probe_at is None or asked_at < self.probe_at:
            return
        former = self._looks
        if former is not None and asked_at - self._looks_at < LOOKS_APART_NS:
            return
        self._looks, self._looks_at = (own, remote), asked_at
        if former is None:
            return
        most_at = self._base_at + max(self.limit_ns, self._settings.limit_most_ns)
        if own == former[0] != 0 or remote == former[1] != 0:
            self._excused_until = Instant(most_at)
            self._stood_still = True
        elif self._stood_still:  # it runs again, and may have much to catch up with
            self._stood_still = False
            self._excused_until = Instant(min(most_at, now + self.limit_ns))

    def excused(self, *, now: Instant) -> bool:
        """Whether the silence is that of a card which the machine does not run."""
        return now < self._excused_until

    def credit(self, late_ns: int, *, now: Instant) -> None:
        """Our own process was not run for `late_ns`: that time doesn't count as silence."""
        self._base_at = min(now, Instant(self._base_at + late_ns))

    def alarm_at(self) -> Instant | None:
        """When the probe under way will be so late that the partner's other paths had better be looked at; None while
        the path counts as busy, and they with it.
        """
        if self.probe_at is None or self._rate is Rate.BUSY:
            return None
        return Instant(self._base_at + self.limit_ns // ALARM_DIVISOR)

    @property
    def limit_ns(self) -> int:
        """Silence after which a path is given up for another one."""
        settings = self._settings
        if not self._measured:
            # A cable through half a continent answers after 50 ms: with the floor it would be lost before its first
            # answer, each time that it comes up.
            return max(settings.limit_floor_ns, settings.limit_most_ns)
        return max(settings.limit_floor_ns, min(settings.limit_most_ns, settings.limit_factor * self._worst()))

    @property
    def alone_limit_ns(self) -> int:
        """Silence after which a path without a better one is given up."""
        settings = self._settings
        slow_ns = min(ALONE_GROWTH_MAX * settings.alone_limit_ns, settings.limit_factor * self._worst())
        return max(settings.alone_limit_ns, self.limit_ns, slow_ns)

    def silent_at(self) -> Instant | None:
        """When the path will be silent; None while no probe is under way (who did not ask can't miss an answer)."""
        return None if self.probe_at is None else Instant(self._base_at + self.limit_ns)

    def silent_alone_at(self) -> Instant | None:
        """The same with the limit of a path without a better one."""
        return None if self.probe_at is None else Instant(self._base_at + self.alone_limit_ns)

    def _worst(self) -> int:
        return max(self._worst_ns, self._worst_before_ns)

    @property
    def _best_lately_ns(self) -> int:
        """What the cable itself takes, as far as that is known: an answer that comes much later was held up."""
        return min((each for each in (self._best_ns, self._best_before_ns) if each is not None), default=0)

    def _note_round_trip(self, rtt_ns: int, *, now: Instant) -> None:
        window_ns = self._settings.window_ns
        if now - self._window_at > window_ns:
            recent = now - self._window_at <= 2 * window_ns
            self._worst_before_ns = self._worst_ns if recent else 0
            self._best_before_ns = self._best_ns if recent else None
            self._worst_ns, self._best_ns, self._window_at = 0, None, now
        self._worst_ns = max(self._worst_ns, rtt_ns)
        self._best_ns = rtt_ns if self._best_ns is None else min(self._best_ns, rtt_ns)
