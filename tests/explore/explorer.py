"""Breadth-first search through all that can happen to a small world of two managers.

Every state is checked as it is reached. Afterwards it is asked of every state whether, with no more faults, a state can
be reached in which both sides are ready; as the number of states is finite and no step is put off for ever, that one
will be reached. And a ready world stays ready.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field

from tests.explore.canonical import key
from tests.explore.model import BREAK_AFTER, Bounds, Label, Violation, World

NODES = ("both", "1", "2")


@dataclass
class Finding:
    """What was found wrong, and the shortest way there."""

    what: str
    way: list[Label]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {number:3} {describe(step)}" for number, step in enumerate(self.way, 1))])


def describe(step: Label) -> str:
    """A step in words."""
    what, node, path = step
    after, path = divmod(path, BREAK_AFTER) if path >= 0 else (0, path)
    words = f"{what}, node {NODES[node]}" + (f", path {path}" if path >= 0 else "")
    return words + (f", after {after} more requests were executed" if after else "")


@dataclass
class Explored:
    """How much there was."""

    states: int = 0
    transitions: int = 0
    ready: int = 0
    longest: int = 0
    complete: bool = False
    finding: Finding | None = None
    parents: array[int] = field(default_factory=lambda: array("q"))
    labels: list[Label] = field(default_factory=list)

    def __str__(self) -> str:
        whole = "all" if self.complete else "the first"
        return (
            f"{whole} {self.states} states, {self.transitions} transitions, {self.ready} states with both sides ready, "
            f"longest way {self.longest} steps"
        )


def explore(bounds: Bounds, states_max: int = 1_000_000) -> Explored:
    """Goes through all states within `bounds`, at most `states_max`; ends at the first violation."""
    found = Explored()
    first = World(bounds)
    known = {key(first): 0}
    found.parents.append(-1)
    found.labels.append(("start", 0, -1))
    waiting: deque[tuple[int, bytes]] = deque([(0, first.frozen())])
    healing: list[array[int]] = [array("q")]
    """By state: those from which it is reached without a fault."""
    ready: set[int] = set()
    depth = array("q", [0])
    while waiting:
        state, data = waiting.popleft()
        for label, cost in list(World.thawed(data).steps()):
            world = World.thawed(data)
            found.transitions += 1
            try:
                world.take(label, cost)
            except (Violation, AssertionError, KeyError) as error:
                found.finding = Finding(f"{type(error).__name__}: {error}", [*way(found, state), label])
                found.states = len(known)
                return found
            number = known.setdefault(key(world), len(known))
            if number == len(healing):
                found.parents.append(state)
                found.labels.append(label)
                healing.append(array("q"))
                depth.append(depth[state] + 1)
                if world.is_ready():
                    ready.add(number)
                if len(known) <= states_max:
                    waiting.append((number, world.frozen()))
            if cost < 0:
                healing[number].append(state)
                if state in ready and number not in ready and label[0] != "open":
                    found.finding = Finding("a ready world does not stay ready", way(found, number))
    found.states, found.ready, found.longest = len(known), len(ready), max(depth)
    found.complete = len(known) <= states_max
    if found.complete and found.finding is None:
        found.finding = _stuck(found, healing, ready)
    return found


def way(found: Explored, state: int) -> list[Label]:
    """The steps by which a state was first reached: there is no shorter way."""
    steps = []
    while found.parents[state] >= 0:
        steps.append(found.labels[state])
        state = found.parents[state]
    return steps[::-1]


def _stuck(found: Explored, healing: list[array[int]], ready: set[int]) -> Finding | None:
    """A state from which, with no more faults, no ready one is reached."""
    good, waiting = set(ready), list(ready)
    while waiting:
        for former in healing[waiting.pop()]:
            if former not in good:
                good.add(former)
                waiting.append(former)
    bad = next((state for state in range(len(healing)) if state not in good), None)
    return None if bad is None else Finding("from here the two sides never become ready", way(found, bad))
