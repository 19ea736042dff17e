"""Chores: one step at a time, in their order, and in no hurry where there is none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ccm.driver.chores import PUT_OFF_NS, Chores
from emul.clock import SECOND, Instant

NOW = Instant(SECOND)


def chore(name: str, steps: int, done: list[str]) -> Iterator[None]:
    for step in range(steps):
        done.append(f"{name}{step}")
        yield


def test_one_step_is_done_at_a_time_and_nothing_is_overtaken():
    chores, done = Chores(), []
    chores.add(chore("a", 2, done), now=NOW)
    chores.add(chore("b", 1, done), now=NOW)
    seen = []
    while chores:
        chores.step(now=NOW)
        seen.append(list(done))
    assert done == ["a0", "a1", "b0"] and all(len(b) - len(a) <= 1 for a, b in itertools.pairwise(seen))


def test_giving_back_waits_a_little_unless_something_comes_behind_it():
    chores, done = Chores(), []
    chores.add(chore("back", 1, done), now=NOW, put_off=True)
    assert chores.deadline(now=NOW) == NOW + PUT_OFF_NS
    chores.step(now=NOW)
    assert done == []
    chores.add(chore("open", 1, done), now=NOW)
    assert chores.deadline(now=NOW) == NOW
    chores.step(now=NOW)
    assert done == ["back0"]


def test_what_waits_its_turn_is_not_late():
    chores, done = Chores(), []
    chores.add(chore("a", 9, done), now=NOW)
    assert chores.deadline(now=Instant(NOW + SECOND)) == NOW + SECOND
    chores.finish()
    assert len(done) == 9 and chores.deadline(now=NOW) is None
