"""Cables and switches in virtual time: delay with jitter, carrier, silent loss, and the injector in the middle.

Frames of one direction of a cable never overtake each other. A cable that is cut loses what is on its way. What an
armed cable does to a frame is decided by the same injector core as on real frames.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from emul.clock import SECOND
from lab.injector.shaper import BACKLOG_BYTES_MAX
from lab.sim.pace import Pace
from lab.sim.scheduler import Priority, Scheduler, What

CARRIER_NOTICE_NS = 50_000
"""A port sees a change of the carrier this long after it, and up to CARRIER_JITTER_NS later."""
CARRIER_JITTER_NS = 450_000
SWITCH_NS = 2_000
BROADCAST = b"\xff" * 6

Injector = Callable[[str, str, bytes, int], list[tuple[str, bytes, int]]]
"""(cable, source end, frame, now) to what leaves it: (end that it goes to, frame, when)."""


class CableEnd(Protocol):
    """What a cable is plugged into: an adapter's port or a switch."""

    name: str
    """Node or switch."""

    def expect(self, cable: Cable, at: int) -> None:
        """Frames arrive at `at`, not before what was announced earlier: `Cable.take` gives them then."""

    def on_carrier(self, up: bool) -> None:
        """The carrier of this end changed."""


class Cable:
    """One cable; directions are named by the index of the end that sends."""

    def __init__(
        self,
        name: str,
        number: int,
        scheduler: Scheduler,
        rng: random.Random,
        *,
        pace: Pace,
        delay_ns: int = 0,
        rate_bps: int | None = None,
    ) -> None:
        self.name = name
        self.number = number
        self.ends: list[CableEnd] = []
        self.injector: Injector | None = None
        """Set while the cable is armed."""
        self.unplugged = [False, False]
        """By end: no carrier there, and nothing in or out."""
        self.blackholed = [False, False]
        """By the end that sends: frames vanish, the carrier stays."""
        self.lost = 0
        self._scheduler = scheduler
        self._rng = rng
        self._delay_ns = pace.cable_ns + delay_ns
        self._jitter_ns = pace.cable_jitter_ns
        self._rate_bps = rate_bps
        self._arrival = [0, 0]
        self._under_way: tuple[deque[tuple[int, Sequence[bytes]]], ...] = (deque(), deque())
        """By the end that they go to: (arrival, frames), in order."""
        self._free_at = [0, 0]
        """When the line has carried what each end sent so far."""

    def plug(self, end: CableEnd) -> None:
        """Connects the next end (two in all)."""
        assert len(self.ends) < 2
        self.ends.append(end)

    def end_of(self, name: str) -> int:
        """The index of the end at node or switch `name`. Raises KeyError."""
        for index, end in enumerate(self.ends):
            if end.name == name:
                return index
        raise KeyError(f"cable {self.name} has no end at {name}")

    def send(self, source: CableEnd, frames: Sequence[bytes]) -> None:
        """Puts frames on the cable at the end `source`; they arrive later, in order, or are lost."""
        index = 0 if self.ends[0] is source else 1
        if self.unplugged[index]:
            self.lost += len(frames)
            return
        if self.injector is None:
            self._carry(index, frames, self._scheduler.now)
            return
        for frame in frames:
            for towards, changed, at in self.injector(self.name, source.name, frame, self._scheduler.now):
                self._carry(1 - self.end_of(towards), [changed], at)

    def _carry(self, index: int, frames: Sequence[bytes], start: int) -> None:
        if self.blackholed[index] or self.unplugged[1 - index]:
            self.lost += len(frames)
            return
        if self._rate_bps is None:
            self._fly(index, frames, start)
            return
        for frame in frames:
            # The line carries one frame after the other, also those of different moments.
            begin = max(start, self._free_at[index])
            if begin - start > BACKLOG_BYTES_MAX * 8 * SECOND // self._rate_bps:
                self.lost += 1
                continue
            self._free_at[index] = begin + len(frame) * 8 * SECOND // self._rate_bps
            self._fly(index, [frame], self._free_at[index])

    def _fly(self, index: int, frames: Sequence[bytes], start: int) -> None:
        delay = self._delay_ns + int(self._rng.random() * self._jitter_ns)
        arrival = self._arrival[index] = max(self._arrival[index] + 1, start + delay)
        self._under_way[1 - index].append((arrival, frames))
        self.ends[1 - index].expect(self, arrival)

    def take(self, end: CableEnd) -> list[bytes]:
        """What has arrived at `end` until now, in order."""
        index = 0 if self.ends[0] is end else 1
        waiting, scheduler = self._under_way[index], self._scheduler
        if not waiting or waiting[0][0] > scheduler.now:
            return []
        now, where = scheduler.now, self.number * 2 + index
        taken: list[bytes] = []
        while waiting and waiting[0][0] <= now:
            at, frames = waiting.popleft()
            for frame in frames:
                scheduler.trace_frame(where, frame, at)
            taken += frames
        return taken

    def next_arrival(self, end: CableEnd) -> int | None:
        """When the next frames arrive at `end` that are not taken yet."""
        waiting = self._under_way[0 if self.ends[0] is end else 1]
        return waiting[0][0] if waiting else None

    def unplug(self, ends: Sequence[int]) -> None:
        """These ends lose their carrier; what is on its way is lost."""
        for waiting in self._under_way:
            while waiting and waiting[-1][0] > self._scheduler.now:
                self.lost += len(waiting.pop()[1])
        self._free_at = [0, 0]
        self._set_carrier(ends, up=False)

    def plug_in(self, ends: Sequence[int]) -> None:
        """These ends get their carrier back."""
        self._set_carrier(ends, up=True)

    def set_blackhole(self, ends: Sequence[int], *, on: bool) -> None:
        """Frames that these ends send vanish, or pass again."""
        for index in ends:
            self.blackholed[index] = on

    def _set_carrier(self, ends: Sequence[int], *, up: bool) -> None:
        for index in ends:
            if self.unplugged[index] != up:
                continue  # already so
            self.unplugged[index] = not up
            self._scheduler.trace(What.CARRIER, self.number * 2 + index, int(up))
            notice = CARRIER_NOTICE_NS + int(self._rng.random() * CARRIER_JITTER_NS)
            end = self.ends[index]
            self._scheduler.after(notice, Priority.ADAPTER, partial(self._notice, end, index))

    def _notice(self, end: CableEnd, index: int) -> None:
        end.on_carrier(not self.unplugged[index])  # as it is now: a short flap may go unseen, as with a real port


class Switch:
    """Forwards by destination address; the way to each address is known from the start, as the topology is."""

    def __init__(self, name: str, scheduler: Scheduler) -> None:
        self.name = name
        self._scheduler = scheduler
        self._towards: dict[bytes, Cable] = {}
        self._cables: list[Cable] = []

    def attach(self, cable: Cable) -> None:
        """Plugs a cable in."""
        self._cables.append(cable)
        cable.plug(self)

    def learn(self, mac: bytes, cable: Cable) -> None:
        """Frames for `mac` leave over `cable`."""
        self._towards.setdefault(mac, cable)

    def expect(self, cable: Cable, at: int) -> None:
        """CableEnd: forwards each frame a little later; an unknown or broadcast address goes everywhere else."""
        self._scheduler.at(at + SWITCH_NS, Priority.FRAME, partial(self._forward, cable))

    def _forward(self, came_from: Cable) -> None:
        for frame in came_from.take(self):
            known = self._towards.get(frame[:6])
            targets = [known] if known is not None else self._cables
            for cable in targets:
                if cable is not came_from:
                    cable.send(self, [frame])

    def on_carrier(self, up: bool) -> None:
        """A switch just has one port less."""
