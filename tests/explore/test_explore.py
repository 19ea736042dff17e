"""All that can happen to two managers within bounds: nothing wrong is reached, and from everywhere both become ready.

CI takes the worlds of QUICK, `nox -s nightly` (LAB_EXPLORE=deep) those of NIGHTLY too. The number of states is printed
(`pytest -s`).
"""

from __future__ import annotations

import os

import pytest

from ccm.exchange import RecordKind
from ccm.session import Phase
from tests.explore.bounds import CRASH, FREE, LATE, Bounds
from tests.explore.explorer import explore
from tests.explore.model import MUTED, Model, State
from tests.explore.walker import heal, walk_many
from tests.explore.worlds import NIGHTLY, QUICK, STATES_MAX, WALKS

DEEP = os.environ.get("LAB_EXPLORE") == "deep"
WORLDS = QUICK | (NIGHTLY if DEEP else {})
WALKS_EACH = 5_000 if DEEP else 25


@pytest.mark.parametrize("story", WORLDS)
def test_nothing_wrong_is_reached_and_from_every_state_both_sides_become_ready(story):
    found = explore(WORLDS[story], STATES_MAX)
    print(f"\n{story} ({WORLDS[story]}): {found}")  # noqa: T201 - the figures are asked for
    assert found.finding is None, str(found.finding)
    assert found.complete and found.settled, "the bounds are too large to go through all of it"


@pytest.mark.parametrize("story", WALKS)
def test_walks_through_worlds_too_large_for_that_end_with_both_sides_ready(story):
    found = walk_many(WALKS[story], range(WALKS_EACH))
    print(f"\n{story} ({WALKS[story]}): {found}")  # noqa: T201 - the figures are asked for
    assert found.finding is None, str(found.finding)


def take_free_steps(model: Model, state: State, until, avoid=lambda label: False, steps: int = 3_000) -> State:
    """Goes on without faults, in a fixed order, until a condition holds."""
    for turn in range(steps):
        if until(state):
            return state
        free = [step for step in model.steps(state) if step[1] < 0 and not avoid(step[0])]
        state = model.take(state, *free[turn % len(free)])
    raise AssertionError("that situation does not come up")


SESSIONS = (int(RecordKind.SESSIONS), 0)


def test_a_write_of_a_former_incarnation_that_lands_late_is_written_over_again():
    """Node 2 crashes with a write of its session states under way on path 0. Its next incarnation comes back over path
    1 and writes the same slot; node 1 does not look for a while, and the old write lands on top. Both sides waited for
    each other for ever, since nobody knew of writes that a former incarnation had under way.
    """
    model = Model(Bounds(paths=2, crash=1, late=3, grain=2))

    def held_up(state, label) -> bool:
        link = model.side(state, 2).links[0]
        return label == ("execute", 2, 0) and any(request[1:3] == SESSIONS for request in link.requests)

    state = model.first
    for turn in range(3_000):
        if any(held_up(state, label) for label, _ in model.steps(state)):
            break
        free = [step for step in model.steps(state) if step[1] < 0]
        state = model.take(state, *free[turn % len(free)])
    state = model.take(state, ("crash", 2, -1), CRASH)
    state = model.take(state, ("boot", 2, -1), FREE)
    assert any(write[:2] == SESSIONS for write in model.side(state, 2).adrift[0])

    def path_0(label) -> bool:
        return label == ("execute", 2, 0)

    def told_in_inbox(state):
        """The partner's incarnation that wrote last what node 1 has in its inbox of session states, and its phase."""
        for write in model.side(state, 1).inbox:
            if write[:2] == SESSIONS:
                record = model.sides.catalogue.whole(write)
                return record.writer_incarnation, [entry.phase for entry in record.body.entries]
        return 0, []

    def ready_is_told(state) -> bool:
        return SESSIONS in model.side(state, 1).unread and told_in_inbox(state) == (2, [Phase.READY])

    state = take_free_steps(model, state, ready_is_told, path_0)

    def all_taken(state) -> bool:
        link = model.side(state, 2).links[1]
        return not link.requests and not link.answers

    state = take_free_steps(
        model, state, all_taken, lambda label: path_0(label) or label[0] in ("look", "timer"),
    )  # fmt: skip
    while model.side(state, 2).adrift[0]:
        state = model.take(state, ("late", 2, 0), LATE)
    assert told_in_inbox(state)[0] == 1, "the old write is on top, and nobody has read the new one"
    heal(model, state, 1)


@pytest.mark.parametrize("refused", [False, True], ids=["after", "before"])
def test_a_connection_made_anew_that_fails_about_when_the_partner_reboots_is_tried_again(refused):
    """Path 0 falls silent, and node 2 makes its connection anew; node 1 reboots, of which node 2 reads over path 1, and
    begins the handshakes anew. Just before or after that the attempt on path 0 fails. The handshake there waited for
    ever for the answer of a connection that there was not: until node 1 rebooted again.
    """
    model = Model(Bounds(paths=2, crash=1, mute=1, ready=True))
    state = model.first
    reboot = [("crash", 1, -1), ("boot", 1, -1), ("timer", 2, 1), ("execute", 2, 1)]
    failure = [("break", 2, 0)]
    for label in (
        ("mute", 0, MUTED), ("timer", 2, 0), ("break", 2, 0),
        *((*failure, *reboot) if refused else (*reboot, *failure)), ("speak", 0, MUTED),
    ):  # fmt: skip
        cost = dict(model.steps(state)).get(label)
        if cost is not None:  # nothing is made anew any more
            state = model.take(state, label, cost)
    heal(model, state, 1)
