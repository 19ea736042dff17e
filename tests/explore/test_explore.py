"""All that can happen to two managers within bounds: nothing wrong is reached, and from everywhere both become ready.

Small bounds here; `nox -s nightly` (LAB_EXPLORE=deep) takes larger ones. The number of states is printed (`pytest -s`).
"""

from __future__ import annotations

import os

import pytest

from ccm.exchange import RecordKind
from tests.explore.explorer import explore
from tests.explore.model import Bounds, World
from tests.explore.walker import heal, walk_many

DEEP = os.environ.get("LAB_EXPLORE") == "deep"
SMALL = {
    "one side is late by any time": Bounds(grain=1),
    "a host crashes at any step": Bounds(crash=1),
    "a connection breaks at any step": Bounds(break_=1),
    "a timer runs though answers are under way": Bounds(slow=1),
    "a client closes and opens again": Bounds(close=1),
}
LARGE = {
    "a cable is cut at any step": Bounds(cut=1),
    "a connection breaks and its writes land late": Bounds(break_=1, late=1),
    "a crash, answers apart": Bounds(crash=1, grain=1),
    "a broken connection, answers apart": Bounds(break_=1, grain=1),
    "making queue pairs takes time": Bounds(crash=1, chores=True),
    "a close and a crash": Bounds(close=1, crash=1),
    "two crashes": Bounds(crash=2),
}
WORLDS = SMALL | (LARGE if DEEP else {})
STATES_MAX = 3_000_000
WALKS = 20_000 if DEEP else 150
TWO_PATHS = {
    "crashes, broken connections, late writes": Bounds(paths=2, crash=2, break_=2, late=3, grain=2),
    "cut cables": Bounds(paths=2, crash=1, cut=3, late=2, grain=2),
    "slowness": Bounds(paths=2, break_=1, cut=1, slow=3, grain=1, chores=True),
    "clients that come and go": Bounds(paths=2, crash=1, break_=1, close=3, grain=2),
}


@pytest.mark.parametrize("story", WORLDS)
def test_from_every_state_both_sides_become_ready(story):
    found = explore(WORLDS[story], STATES_MAX)
    print(f"\n{story}: {found}")  # noqa: T201 - the figures are asked for
    assert found.finding is None, str(found.finding)
    assert found.complete and found.ready, "the bounds are too large to go through all of it"


@pytest.mark.parametrize("story", TWO_PATHS)
def test_walks_on_two_paths_end_with_both_sides_ready(story):
    found = walk_many(TWO_PATHS[story], range(WALKS))
    print(f"\n{story}: {found}")  # noqa: T201 - the figures are asked for
    assert found.finding is None, str(found.finding)


def take_free_steps(world: World, until, avoid=lambda label: False, steps: int = 3_000) -> None:
    """Goes on without faults, in a fixed order, until a condition holds."""
    for turn in range(steps):
        if until():
            return
        free = [step for step in world.steps() if step[1] < 0 and not avoid(step[0])]
        world.take(*free[turn % len(free)])
    raise AssertionError("that situation does not come up")


def is_write_of_sessions(request) -> bool:
    return request[0] == "write" and request[1].kind is RecordKind.SESSIONS


def test_a_write_of_a_former_incarnation_that_lands_late_is_written_over_again():
    """Node 2 crashes with a write of its session states under way on path 0. Its next incarnation comes back over path
    1 and writes the same slot; node 1 does not look for a while, and the old write lands on top. Both sides waited for
    each other for ever, since nobody knew of writes that a former incarnation had under way.
    """
    world = World(Bounds(paths=2, crash=1, late=3, grain=2))
    first, second = world.nodes
    slot = (RecordKind.SESSIONS, 0)

    def held_up(label) -> bool:
        link = second.links.get(0)
        return label == ("execute", 2, 0) and link is not None and any(map(is_write_of_sessions, link.requests))

    take_free_steps(world, lambda: held_up(("execute", 2, 0)), held_up)
    world.take(("crash", 2, -1), 0)
    world.take(("boot", 2, -1), -1)
    assert any(record.kind is RecordKind.SESSIONS for record in second.adrift[0])

    def path_0(label) -> bool:
        return label == ("execute", 2, 0)

    def ready_is_told() -> bool:
        record = first.inbox.get(slot)
        return slot in first.unread and record.writer_incarnation == 2 and record.body.entries[0].phase == 2

    take_free_steps(world, ready_is_told, path_0)
    link = second.links[1]
    take_free_steps(
        world, lambda: not link.requests and not link.answers,
        lambda label: path_0(label) or label[0] in ("look", "timer"),
    )  # fmt: skip
    while second.adrift.get(0):
        world.take(("late", 2, 0), 3)
    assert first.inbox[slot].writer_incarnation == 1, "the old write is on top, and nobody has read the new one"
    heal(world, 1)
