"""Random walks through worlds that are too large to go through all of them, and the shortest part of one that fails."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.explore.bounds import Bounds
from tests.explore.explorer import Finding
from tests.explore.model import HEALING_STEPS_MAX, Label, Model, State
from tests.explore.node import Violation

FAULT_CHANCES = (0.02, 0.05, 0.2)
EAGERNESS = (0.01, 0.2, 1, 1)
SIDES_KEPT_MAX = 100_000
"""What walks have met is forgotten at this number: memory (some 5 kB each)."""


@dataclass
class Walked:
    """How far the walks went."""

    walks: int = 0
    steps: int = 0
    finding: Finding | None = None

    def __str__(self) -> str:
        return f"{self.walks} walks, {self.steps} steps"


def walk_many(bounds: Bounds, seeds: range, length: int = 400) -> Walked:
    """One walk for each seed; ends at the first that fails, and shortens it."""
    found, model = Walked(), Model(bounds)
    for seed in seeds:
        taken: list[Label] = []
        found.walks += 1
        if len(model.sides.sides) > SIDES_KEPT_MAX:
            model = Model(bounds)
        try:
            _walk(model, random.Random(seed), length, taken)
        except (AssertionError, KeyError):
            found.finding = shorten(model, taken)
            return found
        finally:
            found.steps += len(taken)
    return found


def _walk(model: Model, chance: random.Random, length: int, taken: list[Label]) -> None:
    state = model.first
    fault_chance = chance.choice(FAULT_CHANCES)
    eagerness: dict[Label, float] = {}
    """Some kinds of steps are put off for long in one walk, others in another."""
    for _ in range(chance.randrange(length)):
        steps = list(model.steps(state))
        faults = [step for step in steps if step[1] >= 0]
        free = [step for step in steps if step[1] < 0]
        if faults and (not free or chance.random() < fault_chance):
            kind = chance.choice(sorted({cost for _, cost in faults}))
            label, cost = chance.choice([step for step in faults if step[1] == kind])
        else:
            weights = [eagerness.setdefault(label, chance.choice(EAGERNESS)) for label, _ in free]
            [(label, cost)] = chance.choices(free, weights)
        taken.append(label)
        state = model.take(state, label, cost)
    heal(model, state, chance.randrange(1 << 30))


def heal(model: Model, state: State, seed: int) -> None:
    """Takes steps that are no faults until both sides are ready. Raises Violation when that never comes."""
    chance = random.Random(seed)
    for _ in range(HEALING_STEPS_MAX):
        if model.is_settled(state):
            return
        state = model.take(state, *chance.choice([step for step in model.steps(state) if step[1] < 0]))
    raise Violation("from here the two sides never become ready")


def failure(model: Model, way: list[Label]) -> str | None:
    """What goes wrong on this way, or after it; None when nothing does. Steps that can't be taken are left out."""
    state = model.first
    try:
        for label in way:
            cost = dict(model.steps(state)).get(label)
            if cost is not None:
                state = model.take(state, label, cost)
        for seed in range(2):
            heal(model, state, seed)
    except (AssertionError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def shorten(model: Model, way: list[Label]) -> Finding:
    """Leaves out steps as long as it still fails in the same manner (delta debugging)."""
    what = failure(model, way)
    size = max(1, len(way) // 2)
    while what is not None and size:
        start = 0
        while start < len(way):
            less = way[:start] + way[start + size :]
            if failure(model, less) is not None:
                way = less
            else:
                start += size
        size //= 2
    return Finding(failure(model, way) or "fails on its way and not when that is repeated", way)
