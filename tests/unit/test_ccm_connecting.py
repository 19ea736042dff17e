"""Attempts to connect where everything takes longer than it should: patience, fewer at once, none of them in vain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ccm import actions as ac
from ccm.budget import HELD_UP_FOR_NS, HELD_UP_NS, Budget
from ccm.client import Client, Node, Partner
from ccm.history import Kind
from ccm.needs import Needs
from ccm.path import PATIENCE_MAX, SPREADS, Input, Path, PathState
from ccm.peering import CONNECTING_HELD_UP_MAX, CONNECTING_MAX, HELD_UP_PATIENCE, LATE_NS
from ccm.reasons import Reason
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND, Instant
from tests.unit.ccm_hosts import TwoHosts
from tests.unit.ccm_world import World

NOW = Instant(SECOND)


def attempts(path: Path, state: PathState, reason: Reason, count: int) -> list[int]:
    """What each of `count` attempts that end in `state` for `reason` may take, in ms."""
    took = []
    for _ in range(count):
        path.state = PathState.DOWN
        path.take(Input.DUE, now=NOW)
        took.append((path.connect_by - NOW) // MILLISECOND)
        path.state = state
        path.take(Input.REFUSED if state is PathState.CONNECTING else Input.LOST_ALONE, now=NOW, reason=reason)
    return took


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (PathState.CONNECTING, Reason.UNREACHABLE, [250, 500, 1000, 2000, 4000, 4000]),
        (PathState.HANDSHAKE, Reason.COMPLETION_ERROR, [250, 500, 1000, 2000, 4000, 4000]),
        (PathState.EXCHANGE, Reason.SILENT, [250, 500, 1000, 2000, 4000, 4000]),
        (PathState.UP, Reason.SILENT, [250, 250, 250, 250]),  # it had answered before
        (PathState.HANDSHAKE, Reason.CARRIER_LOST, [250, 250, 250, 250]),
        (PathState.CONNECTING, Reason.WRONG_PROOF, [250, 250, 250, 250]),  # that was an answer
        (PathState.CONNECTING, Reason.LARGE_PACKETS_LOST, [250, 250, 250, 250]),
    ],
)
def test_an_attempt_after_one_without_answer_may_take_twice_as_long(state, reason, expected):
    assert attempts(Path(0, 0, 1, leads=True, now=NOW), state, reason, len(expected)) == expected


def test_a_path_that_came_up_begins_with_the_first_value_again():
    path = Path(0, 0, 1, leads=True, now=NOW)
    attempts(path, PathState.CONNECTING, Reason.UNREACHABLE, 5)
    assert path.patience == PATIENCE_MAX
    path.state = PathState.EXCHANGE
    path.take(Input.PAIRED, now=NOW)
    assert attempts(path, PathState.UP, Reason.CARRIER_LOST, 1) == [250]


def test_paths_differ_in_when_they_try_again_but_not_the_first_time():
    waits = []
    for spread in range(SPREADS):
        path = Path(0, 0, 1, leads=True, spread=spread, now=NOW)
        path.budget.paths = 1
        mine = []
        for _ in range(2):
            path.state = PathState.CONNECTING
            path.take(Input.REFUSED, now=NOW, reason=Reason.UNREACHABLE)
            mine.append(path.retry_at - NOW)
        waits.append(mine)
    assert {first for first, _ in waits} == {DEFAULTS.retry_first_ns}
    again = [second for _, second in waits]
    assert again == sorted(set(again)) and again[-1] < 1.5 * 2 * DEFAULTS.retry_first_ns


def test_the_driver_learns_how_patient_an_attempt_is():
    world = World(2)
    world.silent.add((1, 2, 0))
    world.silent.add((1, 2, 1))
    for node in (1, 2):
        world.boot(node)
    world.run(5 * SECOND)
    told = [action.patience for action in world.actions(1, ac.ConnectPeer) if action.path == 0]
    assert told[:3] == [0, 1, 2]


def test_a_node_that_is_held_up_makes_fewer_connections_at_once():
    budget = Budget()
    assert not budget.held_up(now=NOW)
    budget.note_late(LATE_NS + 1, now=NOW)
    assert not budget.held_up(now=NOW), "a timer that is a little late is nothing"
    budget.note_late(HELD_UP_NS, now=NOW)
    assert budget.held_up(now=NOW) and not budget.held_up(now=Instant(NOW + HELD_UP_FOR_NS))


@pytest.mark.parametrize(("late_ns", "expected"), [(0, CONNECTING_MAX), (30 * MILLISECOND, CONNECTING_HELD_UP_MAX)])
def test_how_many_attempts_are_under_way_at_once(late_ns, expected):
    world = World(1, nodes=tuple(range(1, 21)))
    world.silent.update((1, partner, path) for partner in range(2, 21) for path in (0, 1))
    world.boot(1)
    manager = world.hardware[1].manager
    manager._budget.note_late(late_ns, now=world.now)
    world.run(100 * MILLISECOND)
    paths = [path for peering in manager.peerings.values() for path in peering.paths.paths]
    patience = [path.patience for path in paths if path.state is PathState.CONNECTING]
    assert patience == [HELD_UP_PATIENCE if late_ns else 0] * expected


@pytest.mark.parametrize("turns", range(1, 9))
def test_an_attempt_that_was_given_up_before_its_turn_is_not_made(turns):
    """A slow verb holds the attempt up until its time is over, another one keeps it from being closed, and its answer
    comes when the next one is due. It would be taken for the answer to that one, and the handshake would wait for ever
    for a connection that is closed.
    """

    class Slow(Client):
        name = "slow"

        def on_boot(self, node: Node, now: Instant) -> None:
            hold_up(DEFAULTS.connect_timeout_ns, 1)

        def needs(self, partner: Partner) -> Needs | None:
            return None

    def verbs(took_ns: int, count: int) -> Iterator[None]:
        for _ in range(count):
            hosts.now = Instant(hosts.now + took_ns)
            yield

    def hold_up(took_ns: int, count: int) -> None:
        hosts.host(0).driver._wiring.chores.add(verbs(took_ns, count), now=hosts.now)

    hosts = TwoHosts(((Slow(),), ()), paths=1, named=("echo",))
    hosts.boot()
    hold_up(2 * DEFAULTS.retry_first_ns, turns)
    assert hosts.run(5 * SECOND, lambda: len(hosts.history(0, Kind.READY_ALERT)) > 0)
