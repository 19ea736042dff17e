"""Size of a small world: paths, grain of its steps, and how often each fault may happen."""

from __future__ import annotations

from dataclasses import dataclass

FAULTS = ("crash", "break_", "cut", "late", "slow", "close", "again", "replay", "vi", "mute")
CRASH, BREAK, CUT, LATE, SLOW, CLOSE, AGAIN, REPLAY, VI, MUTE = range(len(FAULTS))
FREE = -1
"""Cost of a step that is no fault."""

Versions = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Size of a world.

    `grain`: 2, each request, each answer and each look at the inbox is a step of its own; 1, all requests under way on
    a connection are executed and looked at together, and their answers taken together in another step; 0, in the same
    step. In all of them a connection that breaks does so after any of the requests, and their answers are lost.

    Faults: `crash` of a host; `break_` of a connection; `cut` of a cable, which each side notices in a step of its own;
    `mute` of a cable, which nobody is told of (its connections break by and by, whether or not requests got through);
    `late`, a write that was under way on a connection that ended lands; `replay`, one that was executed lands once more
    (both until the firmware has accepted a new connection of that path); `again`, a request is executed twice; `slow`,
    a timer runs though something is under way for its node; `close`, a client closes; `vi`, a virtual interface fails.

    `ready`: it begins with both sides ready, not before the first boot. `chores`: making queue pairs takes a step.
    `moves`: work that moves to another path takes any time to get there. `versions`: protocol versions that the
    incarnations of each node speak (the last one goes on). `movable`: whether node 2 says that it takes messages which
    change their path.
    """

    paths: int = 1
    crash: int = 0
    break_: int = 0
    cut: int = 0
    late: int = 0
    slow: int = 0
    close: int = 0
    again: int = 0
    replay: int = 0
    vi: int = 0
    mute: int = 0
    grain: int = 0
    ready: bool = False
    chores: bool = False
    moves: bool = False
    versions: tuple[tuple[Versions, ...], tuple[Versions, ...]] = (((1, 1),), ((1, 1),))
    movable: bool = True

    def budget(self) -> tuple[int, ...]:
        """As a world keeps it."""
        return tuple(getattr(self, fault) for fault in FAULTS)

    def meet(self, first: int, second: int) -> bool:
        """Whether the versions of these incarnations of nodes 1 and 2 overlap."""
        (a, b), (c, d) = self.version_of(1, first), self.version_of(2, second)
        return max(a, c) <= min(b, d)

    def version_of(self, node: int, incarnation: int) -> Versions:
        """What an incarnation of a node speaks."""
        spoken = self.versions[node - 1]
        return spoken[min(incarnation, len(spoken)) - 1]

    def __str__(self) -> str:
        said = [f"{name.rstrip('_')}={getattr(self, name)}" for name in FAULTS if getattr(self, name)]
        said += [name for name in ("ready", "chores", "moves") if getattr(self, name)]
        said += [f"grain={self.grain}"] if self.grain else []
        if self.versions != (((1, 1),), ((1, 1),)):
            said.append(f"versions={self.versions}")
        if not self.movable:
            said.append("node 2 takes no moves")
        return f"{self.paths} path{'s' if self.paths > 1 else ''}" + (", " + ", ".join(said) if said else ", no faults")
