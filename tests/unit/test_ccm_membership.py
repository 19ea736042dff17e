"""Members that join and leave a running cluster, with real managers; what stays of them; that others never notice."""

from __future__ import annotations

import pytest

from ccm import actions as ac
from ccm import events as ev
from ccm.needs import Needs
from ccm.path import PathState
from ccm.reasons import Reason
from emul.clock import MILLISECOND, SECOND
from tests.unit.ccm_world import World, check_alerts

SEEDS = range(1, 9)
ALERTS = (ac.AlertReady, ac.AlertError, ac.AlertClosed)


def cluster(seed: int = 1, nodes: tuple[int, ...] = (1, 2, 3)) -> World:
    world = World(seed, nodes=nodes)
    for node in nodes:
        world.boot(node)
    assert world.run(5 * SECOND, lambda: world.all_ready() and world.paths_up())
    return world


def since(world: World, mark: int, node: int, *kinds: type) -> list[ac.Action]:
    return [action for _, who, action in world.log[mark:] if who == node and isinstance(action, kinds)]


def forgotten(world: World, node: int, other: int) -> bool:
    manager = world.hardware[node].manager
    return manager is not None and other not in manager.peerings


def apart(world: World, one: int, other: int) -> bool:
    return forgotten(world, one, other) and forgotten(world, other, one)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_member_leaves_in_order_and_the_others_sessions_never_notice(seed):
    world = cluster(seed)
    mark = len(world.log)
    for node in (1, 2):
        world.remove(node, 3)
    assert world.run(2 * SECOND, lambda: forgotten(world, 1, 3) and forgotten(world, 2, 3))
    for node in (1, 2):
        closed = since(world, mark, node, *ALERTS)
        assert {type(action) for action in closed} == {ac.AlertClosed}
        assert {action.partner for action in closed} == {3}
        me = world.hardware[node]
        assert not [key for key in (*me.lanes, *me.connections) if key[0] == 3], "nothing is held for it"
        down = since(world, mark, node, ac.NotePathDown)
        assert {(action.partner, action.reason) for action in down} == {(3, Reason.PARTNER_REMOVED)}
    assert {type(action) for action in since(world, mark, 3, *ALERTS)} == {ac.AlertClosed}, "closed, not broken"
    check_alerts(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_member_that_returns_gets_its_sessions_with_new_epochs(seed):
    world = cluster(seed)
    former = {name: world.session(1, 3, name).epoch for name in world.needs}
    for node, other in ((1, 3), (2, 3), (3, 1), (3, 2)):
        world.remove(node, other)
    assert world.run(2 * SECOND, lambda: apart(world, 1, 3) and apart(world, 2, 3))
    mark = len(world.log)
    for node, other in ((3, 1), (1, 3), (3, 2), (2, 3)):
        world.add(node, other)
        world.run(seed * MILLISECOND)
    assert world.run(5 * SECOND, lambda: world.all_ready() and world.paths_up())
    assert all(world.session(1, 3, name).epoch > epoch for name, epoch in former.items())
    assert not [a for a in since(world, mark, 1, *ALERTS) if a.partner == 2], "1 and 2 never noticed"
    check_alerts(world)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gone_for_ms", [0, 3, 700])
def test_one_side_alone_removes_and_adds_its_partner_which_was_never_told(seed, gone_for_ms):
    world = cluster(seed, (1, 2))
    world.remove(1, 2)
    assert world.run(2 * SECOND, lambda: forgotten(world, 1, 2))
    world.run(gone_for_ms * MILLISECOND)
    world.add(1, 2)
    assert world.run(10 * SECOND, lambda: world.all_ready() and world.paths_up()), world.describe()
    check_alerts(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_new_node_joins_a_running_cluster(seed):
    world = World(seed, nodes=(1, 2, 3))
    for node in (1, 2):
        world.remove(node, 3)
        world.boot(node)
    assert world.run(5 * SECOND, lambda: all(len(world.actions(node, ac.AlertReady)) == 2 for node in (1, 2)))
    mark = len(world.log)
    world.boot(3)
    world.run(300 * MILLISECOND)
    assert not since(world, mark, 3, ac.AlertReady), "nobody has it as a partner yet"
    for node in (1, 2):
        world.add(node, 3)
    assert world.run(5 * SECOND, lambda: world.all_ready() and world.paths_up())
    assert not [a for a in since(world, mark, 1, *ALERTS) if a.partner == 2]
    check_alerts(world)


def test_a_member_that_has_gone_silent_is_removed_without_waiting():
    world = cluster()
    world.silent |= {(1, 3, path) for path in range(2)} | {(2, 3, path) for path in range(2)}
    assert world.run(3 * SECOND, lambda: len(world.actions(1, ac.AlertError)) == len(world.needs))
    world.run(SECOND)
    world.remove(1, 3)
    assert forgotten(world, 1, 3), "nobody is there who could be told"
    mark = len(world.log)
    world.run(3 * SECOND)
    assert not [a for a in since(world, mark, 1, ac.ConnectPeer, ac.ReadStatus) if a.partner == 3]
    check_alerts(world)


def test_a_member_that_falls_silent_while_it_is_removed_is_waited_for_no_longer_than_a_close():
    world = cluster()
    world.silent |= {(1, 3, path) for path in range(2)}
    world.remove(1, 3)
    assert not forgotten(world, 1, 3), "it might answer"
    assert world.run(600 * MILLISECOND, lambda: forgotten(world, 1, 3))
    check_alerts(world)


def test_clients_open_nothing_with_a_partner_that_is_leaving_and_late_news_of_it_means_nothing():
    world = cluster(nodes=(1, 2))
    world.remove(1, 2)
    world.give(1, ev.ClientOpened(2, "echo", Needs(message_bytes=512)))
    assert world.run(2 * SECOND, lambda: forgotten(world, 1, 2))
    mark = len(world.log)
    world.give(1, ev.ClientOpened(2, "echo", Needs(message_bytes=512)))
    world.give(1, ev.PeerLost(2, 0, "late"))
    assert not since(world, mark, 1, object)
    with pytest.raises(KeyError):
        world.give(1, ev.PeerLost(77, 0, "of a node that never was a partner"))


def test_a_partner_added_while_a_cable_is_dark_uses_the_other_one():
    world = World(nodes=(1, 2))
    world.remove(1, 2)
    for node in (1, 2):
        world.boot(node)
    world.cut_cable(1, 2, 0)
    world.add(1, 2)
    assert world.run(3 * SECOND, world.all_ready)
    manager = world.hardware[1].manager
    assert [path.state for path in manager.peerings[2].paths.paths] == [PathState.DOWN, PathState.UP]
