"""Attempts to connect where everything takes longer than it should: patience, fewer at once, none of them in vain."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from ccm import actions as ac
from ccm.budget import HELD_UP_FOR_NS, HELD_UP_NS, STRAIN_MAX, WAITING_LOOKS_NS, Budget, Rate
from ccm.client import Client, Node, Partner
from ccm.history import Kind
from ccm.needs import Needs
from ccm.path import PATIENCE_MAX, SPREADS, Input, Path, PathState
from ccm.peering import CONNECTING_STRAINED_MAX, LATE_NS, STRAINED_PATIENCE
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


@pytest.mark.parametrize(
    ("late_ns", "strain"),
    [
        (LATE_NS + 1, 0),  # a timer that is a little late is nothing
        (HELD_UP_NS - 1, 0),
        (HELD_UP_NS, 1),
        (2 * HELD_UP_NS, 2),
        (4 * HELD_UP_NS, 3),
        (8 * HELD_UP_NS, 4),
        (32 * HELD_UP_NS, STRAIN_MAX),
        (10 * SECOND, STRAIN_MAX),
    ],
)
def test_the_later_a_timer_the_greater_the_strain_and_it_passes(late_ns, strain):
    budget = Budget()
    assert budget.strain(now=NOW) == 0
    budget.note_late(late_ns, now=NOW)
    assert budget.strain(now=NOW) == strain
    assert budget.strain(now=Instant(NOW + HELD_UP_FOR_NS)) == 0


def test_a_little_lateness_does_not_prolong_a_great_strain():
    budget = Budget()
    budget.note_late(32 * HELD_UP_NS, now=NOW)
    budget.note_late(HELD_UP_NS, now=Instant(NOW + HELD_UP_FOR_NS - 1))
    assert budget.strain(now=Instant(NOW + HELD_UP_FOR_NS - 1)) == STRAIN_MAX
    assert budget.strain(now=Instant(NOW + HELD_UP_FOR_NS)) == 0
    budget.note_late(HELD_UP_NS, now=Instant(NOW + HELD_UP_FOR_NS))
    assert budget.strain(now=Instant(NOW + HELD_UP_FOR_NS)) == 1


def turns(rate: Rate, late_ns: int) -> list[int]:
    """Times between the turns of a node with fifty paths, in ms."""
    budget = Budget()
    budget.paths = 50
    budget.note_late(late_ns, now=NOW)
    given = [budget.turn(rate, now=NOW) for _ in range(4)]
    return [(later - earlier) // MILLISECOND for earlier, later in pairwise(given)]


def test_under_strain_probes_that_nobody_waits_for_come_less_often():
    assert turns(Rate.IDLE, 0) == [10, 10, 10]
    assert turns(Rate.IDLE, HELD_UP_NS) == [20, 20, 20]
    assert turns(Rate.IDLE, 8 * HELD_UP_NS) == [160, 160, 160]
    assert turns(Rate.BUSY, SECOND) == turns(Rate.BUSY, 0), "somebody waits for the path that carries his work"


@pytest.mark.parametrize("late_ns", [0, 30 * MILLISECOND, 50 * MILLISECOND, SECOND])
def test_how_many_attempts_are_under_way_at_once(late_ns):
    world = World(1, nodes=tuple(range(1, 21)))
    world.silent.update((1, partner, path) for partner in range(2, 21) for path in (0, 1))
    world.boot(1)
    manager = world.hardware[1].manager
    manager._budget.note_late(late_ns, now=world.now)
    strain = manager._budget.strain(now=world.now)
    world.run(100 * MILLISECOND)
    paths = [path for peering in manager.peerings.values() for path in peering.paths.paths]
    patience = [path.patience for path in paths if path.state is PathState.CONNECTING]
    assert patience == [STRAINED_PATIENCE[strain]] * CONNECTING_STRAINED_MAX[strain]


def test_attempts_that_wait_for_room_look_in_turn_and_not_all_at_once():
    budget = Budget()
    budget.paths = 3
    looks = [budget.waiting_look(now=NOW) - NOW for _ in range(6)]
    assert looks == [each * WAITING_LOOKS_NS for each in (1, 2, 3, 3, 3, 3)], "no later than all paths in turn"
    assert budget.waiting_look(now=Instant(NOW + SECOND)) == NOW + SECOND + WAITING_LOOKS_NS


def test_a_session_over_one_path_outlives_answers_that_the_machine_holds_up():
    """Sixty-four nodes start on two cores, and an answer takes a second: each path that was given up for that would
    be connected again, and the machine would have still more to do.
    """
    path = Path(0, 0, 1, leads=True, others=False, now=NOW)
    path.state = PathState.HANDSHAKE
    path.asks_now(now=NOW)
    path.on_step(now=Instant(NOW + SECOND))
    path.take(Input.PROVEN, now=Instant(NOW + SECOND))
    path.liveness.on_probe(now=Instant(NOW + SECOND))
    assert path.silent_at() == NOW + SECOND + DEFAULTS.limit_factor * SECOND


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
