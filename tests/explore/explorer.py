"""Breadth-first search through all that can happen to a small world of two managers.

Every state is checked as it is reached. Afterwards it is asked of every state whether, with no more faults, a state can
be reached in which both sides are ready, and in how many steps; as the number of states is finite and no step is put
off for ever, that one will be reached. And a ready world stays ready.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field

from tests.explore.bounds import FREE, Bounds
from tests.explore.model import MUTED, STRIDE, Label, Model, State

_BITS = 32


@dataclass
class Finding:
    """What was found wrong, and the shortest way there."""

    what: str
    way: list[Label]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {number:3} {describe(step)}" for number, step in enumerate(self.way, 1))])


def describe(step: Label) -> str:
    """A step in words."""
    what, node, place = step
    if not node:
        return f"{what}, path {place % MUTED}"
    number, path = divmod(place, STRIDE) if place >= 0 else (0, place)
    words = f"{what}, node {node}" + (f", path {path}" if path >= 0 else "")
    if not number:
        return words
    if what == "vi":
        return words + ", new queue pairs may do better"
    return words + (f", write {number}" if what == "replay" else f", after {number} more requests were executed")


@dataclass
class Explored:
    """How much there was."""

    states: int = 0
    transitions: int = 0
    settled: int = 0
    longest: int = 0
    longest_cure: int = 0
    """Most steps without a fault that any state is away from one in which both sides are ready."""
    complete: bool = False
    work: str = ""
    finding: Finding | None = None
    parents: array[int] = field(default_factory=lambda: array("q"))
    labels: list[Label] = field(default_factory=list)

    def __str__(self) -> str:
        whole = "all" if self.complete else "the first"
        return (
            f"{whole} {self.states} states, {self.transitions} transitions, {self.settled} states with both sides "
            f"settled, longest way {self.longest} steps, longest cure {self.longest_cure} steps; {self.work}"
        )


class _Edges:
    """Steps without a fault, by the state that they lead to."""

    def __init__(self) -> None:
        self._last = array("q")
        self._former = array("q")
        self._source = array("I")

    def add_state(self) -> None:
        self._last.append(-1)

    def add(self, source: int, target: int) -> None:
        self._former.append(self._last[target])
        self._last[target] = len(self._source)
        self._source.append(source)

    def distances(self, goals: list[int]) -> array[int]:
        """Of each state from the nearest goal; -1 where there is no way."""
        found = array("i", [-1]) * len(self._last)
        for goal in goals:
            found[goal] = 0
        waiting = deque(goals)
        while waiting:
            state = waiting.popleft()
            edge, distance = self._last[state], found[state] + 1
            while edge >= 0:
                source = self._source[edge]
                if found[source] < 0:
                    found[source] = distance
                    waiting.append(source)
                edge = self._former[edge]
        return found


def explore(bounds: Bounds, states_max: int = 1_000_000) -> Explored:
    """Goes through all states within `bounds`, at most `states_max`; ends at the first violation."""
    found, model, edges = Explored(), Model(bounds), _Edges()
    known = {_pack(model.first): 0}
    states: deque[State] = deque([model.first])
    depth, settled = array("i", [0]), bytearray([model.is_settled(model.first)])
    edges.add_state()
    found.parents.append(-1)
    found.labels.append(("start", 0, -1))
    labels: dict[Label, Label] = {}
    number = -1
    while states and len(known) <= states_max and found.finding is None:
        state = states.popleft()
        number += 1
        for label, cost in model.steps(state):
            found.transitions += 1
            try:
                following = model.take(state, label, cost)
            except (AssertionError, KeyError) as error:
                found.finding = Finding(f"{type(error).__name__}: {error}", [*way(found, number), label])
                break
            target = known.setdefault(_pack(following), len(known))
            if target == len(depth):
                found.parents.append(number)
                found.labels.append(labels.setdefault(label, label))
                depth.append(depth[number] + 1)
                settled.append(model.is_settled(following))
                edges.add_state()
                states.append(following)
            if cost == FREE:
                edges.add(number, target)
                if settled[number] and not settled[target] and label[0] != "open":
                    found.finding = Finding("a ready world does not stay ready", [*way(found, number), label])
                    break
    found.states, found.settled, found.longest = len(known), sum(settled), max(depth)
    found.complete, found.work = not states, str(model.sides)
    if found.complete and found.finding is None:
        _look_for_stuck(found, edges.distances([place for place, done in enumerate(settled) if done]))
    return found


def _pack(state: State) -> int:
    budget, cables, first, second = state
    return ((budget << 16 | cables) << _BITS | first) << _BITS | second


def way(found: Explored, state: int) -> list[Label]:
    """The steps by which a state was first reached: there is no shorter way."""
    steps = []
    while found.parents[state] >= 0:
        steps.append(found.labels[state])
        state = found.parents[state]
    return steps[::-1]


def _look_for_stuck(found: Explored, distances: array[int]) -> None:
    """A state from which, with no more faults, no ready one is reached."""
    found.longest_cure = max(distances)
    stuck = next((state for state, distance in enumerate(distances) if distance < 0), None)
    if stuck is not None:
        found.finding = Finding("from here the two sides never become ready", way(found, stuck))
