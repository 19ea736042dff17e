"""A path that waits for its fence: what ends that, and how, whatever attempt it is."""

from __future__ import annotations

import pytest

from ccm import actions as ac
from ccm import events as ev
from ccm.path import Path
from ccm.settings import DEFAULTS
from emul.clock import SECOND, Instant
from tests.unit.ccm_world import World

LOST, LIVING = 1, 0


def fencing(*, last: bool) -> tuple[World, Path]:
    """Node 1 has lost path 1, and no answer to its fence request comes over path 0, which lives."""
    world = World(1)
    for node in world.hardware:
        world.boot(node)
    assert world.run(SECOND, lambda: world.all_ready() and world.paths_up())
    world.silent.add((1, 2, LIVING))
    world.give(1, ev.CarrierLost(LOST))
    path = world.hardware[1].manager.peerings[2].paths.paths[LOST]
    assert path.state.name == "FENCING" and path.fence_attempts == 1
    if last:
        path.fence_attempts = DEFAULTS.fence_attempts_max
    return world, path


def answer(world: World, path: Path, number: int) -> None:
    world.give(1, ev.FenceAnswered(2, LOST, path.fence_number + number))


def repetition_is_due(world: World, path: Path) -> None:
    manager = world.hardware[1].manager
    world.now = Instant(max(world.now, path.fence_retry_at))
    world._execute(1, manager.on_time(now=world.now))


INPUTS = {
    "answered": lambda world, path: answer(world, path, 0),
    "a former request answered": lambda world, path: answer(world, path, -1),
    "the time for an answer is over": repetition_is_due,
    "lost once more": lambda world, path: world.give(1, ev.PeerLost(2, LOST)),
    "a carrier again": lambda world, path: world.give(1, ev.CarrierFound(LOST)),
    "the other path lost too": lambda world, path: world.give(1, ev.CarrierLost(LIVING)),
    "the partner fences it": lambda world, path: world.give(1, ev.FencedByPartner(2, LOST, path.fence_epoch + 1)),
    "the partner's host rebooted": lambda world, path: world.give(1, ev.StatusRead(2, LIVING, 2, 2, 0, 0)),
}
TABLE = {
    # first attempt, last attempt: waits -, asks again a, replays r, breaks the sessions b
    "answered": "r r",
    "a former request answered": "- -",
    "the time for an answer is over": "a b",
    "lost once more": "- -",
    "a carrier again": "- -",
    "the other path lost too": "b b",
    "the partner fences it": "- -",
    "the partner's host rebooted": "b b",
}


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("last", [False, True], ids=["first attempt", "last attempt"])
def test_each_cell_of_a_fence(last, what):
    world, path = fencing(last=last)
    mark = len(world.log)
    INPUTS[what](world, path)
    done = [action for _, node, action in world.log[mark:] if node == 1]
    asked = any(isinstance(action, ac.RequestFence) for action in done)
    replayed = any(isinstance(action, ac.Route) for action in done)
    broken = any(isinstance(action, ac.AlertError) for action in done)
    expected = TABLE[what].split()[last]
    assert (asked, replayed, broken) == (expected == "a", expected == "r", expected == "b")
    assert (path.state.name == "FENCING") is (expected in "-a")
