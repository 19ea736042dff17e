"""The smallest part of a failing schedule that still fails in the same way.

First fewer faults (delta debugging: halves, quarters, ... single ones are left out as long as the run still fails),
then fewer clients, then shorter faults. What is left draws the same random numbers as before, as each fault has its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from lab.campaign.runs import Ran, Task, run_one
from lab.scenario import Scenario, Step
from lab.verdict import FAIL

RUNS_MAX = 200
"""Runs of one search; then the smallest schedule found so far is the result."""
HALVINGS_MAX = 8
"""Of the duration of one fault."""

Fails = Callable[[Scenario], bool]


class OutOfRuns(Exception):
    """The search has used up its runs."""


class Shrinker:
    """One search. `tell` hears of each schedule that is smaller and still fails."""

    def __init__(self, task: Task, *, runs_max: int = RUNS_MAX, tell: Callable[[Scenario], None]) -> None:
        assert task.scenario is not None
        self._task = task
        self._runs_max = runs_max
        self._tell = tell
        self.best = task.scenario
        self.runs = 0
        self.first = self._run(task.scenario)
        """The run of the whole schedule."""
        self._wrong = _names(self.first)

    @property
    def failed(self) -> bool:
        """Whether the whole schedule fails at all."""
        return self.first.verdict == FAIL

    def shrink(self) -> Scenario:
        """The smallest schedule found. Each is a part of the one before."""
        try:
            steps = fewest(list(self.best.steps), lambda some: self._try(replace(self.best, steps=tuple(some))))
            self.best = replace(self.best, steps=tuple(steps))
            for client in list(self.best.workload):
                rest = {name: load for name, load in self.best.workload.items() if name != client}
                self._try(replace(self.best, workload=rest))
            for index in range(len(self.best.steps)):
                self._shorten(index)
        except OutOfRuns:
            pass
        return self.best

    def _shorten(self, index: int) -> None:
        for _ in range(HALVINGS_MAX):
            step = self.best.steps[index]
            if not step.duration_ns:
                return
            shorter = replace(step, duration_ns=step.duration_ns // 2)
            steps = (*self.best.steps[:index], shorter, *self.best.steps[index + 1 :])
            if not self._try(replace(self.best, steps=steps)):
                return

    def _try(self, scenario: Scenario) -> bool:
        """Whether the schedule fails like the first one; then it is the best so far."""
        fails = bool(_names(self._run(scenario)) & self._wrong)
        if fails:
            self.best = scenario
            self._tell(scenario)
        return fails

    def _run(self, scenario: Scenario) -> Ran:
        if self.runs >= self._runs_max:
            raise OutOfRuns
        self.runs += 1
        return run_one(replace(self._task, scenario=scenario, report=None))


def _names(ran: Ran) -> set[str]:
    """Which checks failed."""
    return {problem.partition(":")[0] for problem in ran.problems}


def fewest(steps: list[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """The steps without those that the failure doesn't need: none of what is left can go alone. (Zeller's ddmin.)"""
    parts = 2
    while steps:
        for rest in _without_a_part(steps, parts):
            if fails(rest):
                steps, parts = rest, max(2, parts - 1)
                break
        else:
            if parts >= len(steps):
                break
            parts = min(len(steps), 2 * parts)
    return steps


def _without_a_part(steps: list[Step], parts: int) -> Iterator[list[Step]]:
    parts = min(parts, len(steps))
    edges = [len(steps) * index // parts for index in range(parts + 1)]
    for begin, end in pairwise(edges):
        yield steps[:begin] + steps[end:]
