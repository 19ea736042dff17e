"""Fences: asked for over each path that lives, again and again, with the partner's host dead too; and given up."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ccm import actions as ac
from ccm import events as ev
from ccm.history import Kind
from ccm.path import PathState
from ccm.reasons import Reason
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND
from tests.unit.ccm_hosts import TwoHosts
from tests.unit.ccm_world import World, check_alerts
from tests.unit.test_ccm_hosts import all_ready, load, running, sessions
from tests.unit.test_ccm_world import converged, since, started


def deaf_to_fences(world: World, over: set[int]) -> None:
    """Fence requests of node 1 over these paths are lost."""
    ask = world._do_RequestFence

    def lose(me, action):
        if me.node != 1 or action.over not in over:
            ask(me, action)

    world._do_RequestFence = lose


def route(world: World, name: str = "echo") -> int:
    return world.session(1, 2, name).routes[0]


@pytest.mark.parametrize("seed", range(10))
def test_a_fence_that_one_path_does_not_carry_is_asked_for_over_the_next(seed):
    world = started(seed, paths=3)
    lost = route(world)
    first, second = (path for path in range(3) if path != lost)
    deaf_to_fences(world, {first})
    mark = len(world.log)
    world.cut_cable(1, 2, lost)
    assert world.run(SECOND, lambda: bool(since(world, mark, 1, ac.NotePathFenced)))
    asked = [action.over for action in since(world, mark, 1, ac.RequestFence)]
    assert asked in ([first, second], [second]), "the next one carries it"
    assert not since(world, mark, 1, ac.AlertError)
    assert route(world) != lost


@pytest.mark.parametrize("seed", range(10))
def test_without_any_answer_nothing_is_replayed_and_what_was_on_the_path_breaks(seed):
    world = started(seed, paths=3)
    lost = route(world)
    deaf_to_fences(world, {0, 1, 2})
    mark = len(world.log)
    # Only this side notices, or the partner's own fence would take its sessions over.
    world.give(1, ev.CarrierLost(lost))
    bound = (DEFAULTS.fence_attempts_max + 2) * DEFAULTS.fence_timeout_ns
    assert world.run(bound, lambda: bool(since(world, mark, 1, ac.AlertError)))
    asked = [action.over for action in since(world, mark, 1, ac.RequestFence)]
    assert len(asked) == DEFAULTS.fence_attempts_max
    assert set(asked) == {path for path in range(3) if path != lost}, "each living path was tried"
    broken = since(world, mark, 1, ac.AlertError)
    assert {action.reason for action in broken} == {Reason.FENCE_UNANSWERED}
    assert "echo" in {action.name for action in broken}
    assert not [a for a in since(world, mark, 1, ac.Route) if a.path == lost]
    world.give(1, ev.CarrierFound(lost))
    assert world.run(3 * SECOND, lambda: converged(world)), "and the sessions are re-established"
    check_alerts(world)


def test_answers_to_other_questions_than_the_last_change_nothing():
    world = started(paths=3)
    lost = route(world)
    deaf_to_fences(world, {0, 1, 2})
    world.give(1, ev.CarrierLost(lost))
    path = world.hardware[1].manager.peerings[2].paths.get(lost)
    assert path.state is PathState.FENCING
    mark = len(world.log)
    for answer in (ev.FenceAnswered(2, lost, path.fence_number - 1), ev.FenceAnswered(2, 7, path.fence_number)):
        world.give(1, answer)
    other = next(each for each in (0, 1, 2) if each != lost)
    world.give(1, ev.FenceAnswered(2, other, path.fence_number))
    assert path.state is PathState.FENCING and not since(world, mark, 1, ac.NotePathFenced, ac.Route)
    world.give(1, ev.FenceAnswered(2, lost, path.fence_number))
    assert since(world, mark, 1, ac.NotePathFenced) and path.state is PathState.DOWN


def test_a_second_notice_while_the_fence_is_under_way_changes_nothing():
    world = started(paths=3)
    lost = route(world)
    deaf_to_fences(world, {0, 1, 2})
    world.give(1, ev.CarrierLost(lost))
    mark = len(world.log)
    world.give(1, ev.PeerLost(2, lost, "retries exhausted"))
    world.give(1, ev.CarrierLost(lost))
    assert not since(world, mark, 1, ac.HoldPath, ac.RequestFence, ac.NotePathDown, ac.DisconnectPeer)


@pytest.mark.parametrize("again", [0, 1])
def test_the_last_paths_lost_while_a_fence_is_under_way_break_the_sessions_once(again):
    world = started(paths=3)
    lost = route(world)
    deaf_to_fences(world, {0, 1, 2})
    mark = len(world.log)
    world.give(1, ev.CarrierLost(lost))
    others = [path for path in range(3) if path != lost]
    for path in others[:: -1 if again else 1]:
        world.give(1, ev.CarrierLost(path))
    broken = since(world, mark, 1, ac.AlertError)
    assert sorted(action.name for action in broken) == ["echo", "mirror"]
    assert {action.reason for action in broken} == {Reason.NO_PATH}
    assert {path.state for path in world.hardware[1].manager.peerings[2].paths.paths} == {PathState.DOWN}
    assert not since(world, mark, 1, ac.NotePathFenced)
    for path in range(3):
        world.give(1, ev.CarrierFound(path))
    assert world.run(3 * SECOND, lambda: converged(world))
    check_alerts(world)


def test_a_partner_that_reboots_while_a_fence_is_under_way_ends_it():
    world = started(paths=3)
    lost = route(world)
    deaf_to_fences(world, {0, 1, 2})
    world.give(1, ev.CarrierLost(lost))
    world.crash(2)
    world.boot(2)
    assert world.run(SECOND, lambda: bool(world.actions(1, ac.AlertError)))
    world.give(1, ev.CarrierFound(lost))
    assert world.run(3 * SECOND, lambda: converged(world))
    reasons = {action.reason for action in world.actions(1, ac.AlertError)}
    assert reasons <= {Reason.PARTNER_REBOOTED, Reason.PARTNER_BROKE_SESSION}
    check_alerts(world)


@pytest.mark.parametrize("mute", [0, 1])
def test_with_the_partners_host_dead_any_of_its_living_cards_raises_the_fence(mute):
    """The path that the first request goes over is silent just then: the next one goes over another card."""
    world = running(paths=3)
    load(world, 0, "nvram-mirror", 4096, 4)
    world.run(200 * MILLISECOND)
    world.hosts[1] = None
    lost = sessions(world, 0)["nvram-mirror"]["routes"][0]
    silent = [path for path in range(3) if path != lost][mute]
    until = world.now + 60 * MILLISECOND
    world.filter = lambda path, sender, frame: path != silent or world.now > until
    world.cut(lost)
    world.run(300 * MILLISECOND)
    fenced = world.history(0, Kind.PATH_FENCED)
    assert lost in [entry.extra for entry in fenced]
    assert not world.history(0, Kind.ERROR_ALERT)
    assert world.history(0, Kind.COMMITTED)[-1].at > world.now - 10 * MILLISECOND


def test_a_path_that_flaps_is_held_down_longer_each_time_and_is_trusted_again_when_it_was_steady():
    world = TwoHosts(named=("nvram-mirror", "echo"))
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.PATH_UP)) == 2)
    waits = []
    for _ in range(5):
        world.cut(1)
        world.run(5 * MILLISECOND)
        world.cut(1, connected=True)
        ups = len(world.history(0, Kind.PATH_UP))
        down_at = world.now
        assert world.run(4 * SECOND, lambda ups=ups: len(world.history(0, Kind.PATH_UP)) > ups)
        waits.append(world.now - down_at)
    doublings = [later / earlier for earlier, later in pairwise(waits)]
    assert all(1.5 < doubling < 2.5 for doubling in doublings), waits
    world.run(DEFAULTS.steady_ns + 100 * MILLISECOND)
    world.cut(1)
    world.run(5 * MILLISECOND)
    world.cut(1, connected=True)
    ups, down_at = len(world.history(0, Kind.PATH_UP)), world.now
    assert world.run(4 * SECOND, lambda: len(world.history(0, Kind.PATH_UP)) > ups)
    assert world.now - down_at < 2 * DEFAULTS.hold_down_first_ns


def test_what_a_lost_adapter_held_is_left_alone_until_its_path_is_fenced():
    """Its context is closed as soon as the manager knows that it is gone; the fence may take longer than the next look
    for messages that were never told.
    """
    world = running(paths=2)
    load(world, 0, "echo", 512, 2)
    world.run(20 * MILLISECOND)
    port = world.host(0).driver.ports[0]
    port.gone = True  # a verb of it was not answered
    assert not port.let_go
    world.filter = lambda path, sender, frame: False  # no fence is answered
    world.host(0).on_wake(world.now)
    assert port.let_go
    port.context.close()
    world.run(300 * MILLISECOND)
    world.filter = lambda path, sender, frame: path == 1
    assert world.run(3 * SECOND, lambda: all_ready(world))
    assert not world.host(0).driver.client_errors
