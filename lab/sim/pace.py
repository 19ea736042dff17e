"""How fast the simulated hardware and hosts are: drawn from the seed for each run, over three orders of magnitude.

With short cables nearly every fault finds the cables empty, with long ones many requests are under way: both have to be
survived, and what is under way is what makes a fence and a replay necessary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from emul.clock import MICROSECOND, MILLISECOND

CABLE_SHORTEST_NS = 5 * MICROSECOND
CABLE_LONGEST_NS = 1500 * MICROSECOND
WAKE_SHORTEST_NS = 4 * MICROSECOND
WAKE_LONGEST_NS = 200 * MICROSECOND
LATE_CHANCE = 1 / 2000
LATE_NS = 3 * MILLISECOND
"""Wake-ups of a few ms are common on a machine that is shared."""
BUSY_LATE_CHANCE = 1 / 1000
BUSY_LATE_NS = 250 * MILLISECOND
"""A machine with many more processes than cores lets one wait this long."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Delays of one run, in ns. What is drawn for each frame or wake-up lies between a delay and delay + jitter."""

    cable_ns: int = CABLE_SHORTEST_NS
    """From one end of a cable to the other, without what the topology adds."""
    cable_jitter_ns: int = 3 * MICROSECOND
    wake_ns: int = WAKE_SHORTEST_NS
    """From an event to the host's turn."""
    wake_jitter_ns: int = 12 * MICROSECOND
    late_chance: float = LATE_CHANCE
    """How often the machine lets a host or an adapter wait up to `late_ns` longer."""
    late_ns: int = LATE_NS

    @classmethod
    def drawn(cls, rng: random.Random) -> Pace:
        """Each delay evenly over its orders of magnitude."""
        cable = _between(rng, CABLE_SHORTEST_NS, CABLE_LONGEST_NS)
        wake = _between(rng, WAKE_SHORTEST_NS, WAKE_LONGEST_NS)
        return cls(cable, int(cable * rng.random()), wake, int(2 * wake * rng.random()))

    @classmethod
    def busy(cls, rng: random.Random) -> Pace:
        """As `drawn`, on a machine with too much to do: paths look dead that aren't, and each node sees others."""
        return replace(cls.drawn(rng), late_chance=BUSY_LATE_CHANCE, late_ns=BUSY_LATE_NS)

    def lateness(self, rng: random.Random) -> int:
        """How much longer than usual a process waits for its turn this time."""
        drawn = rng.random()
        return 0 if drawn >= self.late_chance else int(drawn / self.late_chance * self.late_ns)


def _between(rng: random.Random, shortest: int, longest: int) -> int:
    return int(shortest * (longest / shortest) ** rng.random())
