"""Stories of two and more managers: what happens, and exactly which alerts, fences and replays follow."""

from __future__ import annotations

import random

import pytest

from ccm import actions as ac
from ccm import events as ev
from ccm.exchange import RecordKind, slot_range
from ccm.handshake import Step
from ccm.needs import Needs, client_key
from ccm.path import PathState
from ccm.peerinfo import Capability
from ccm.reasons import Reason
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND
from tests.unit.ccm_world import World, check_alerts

READY_WITHIN = SECOND
SEEDS = range(1, 26)


def started(seed: int = 1, **options) -> World:
    """Two nodes, every session ready, every path up."""
    world = World(seed, **options)
    for node in world.hardware:
        world.boot(node)
    assert world.run(READY_WITHIN, lambda: world.all_ready() and world.paths_up()), f"seed {seed}: not ready"
    world.run(300 * MILLISECOND)  # virtual interfaces are spread over the paths by now
    return world


def since(world: World, mark: int, node: int, *kinds: type) -> list[ac.Action]:
    return [action for _, who, action in world.log[mark:] if who == node and isinstance(action, kinds)]


def converged(world: World) -> bool:
    return world.all_ready() and world.paths_up()


@pytest.mark.parametrize("seed", SEEDS)
def test_two_nodes_become_ready_with_one_alert_for_each_client_and_side(seed):
    world = started(seed)
    for node in (1, 2):
        ready = world.actions(node, ac.AlertReady)
        assert sorted(alert.name for alert in ready) == ["echo", "mirror"]
        assert not world.actions(node, ac.AlertError)
    check_alerts(world)


@pytest.mark.parametrize("late_ms", [0, 1, 3, 40, 700])
def test_one_side_may_start_late_by_any_time(late_ms):
    world = World(5)
    world.boot(1)
    world.run(late_ms * MILLISECOND)
    world.boot(2)
    assert world.run(READY_WITHIN, lambda: converged(world))
    check_alerts(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_come_in_order_and_before_any_virtual_interface(seed):
    world = started(seed)
    for node in (1, 2):
        reached: dict[int, int] = {}
        proven: set[int] = set()
        for _, who, action in world.log:
            if who != node:
                continue
            if isinstance(action, ac.NoteStep):
                assert action.step == reached.get(action.path, 0) % 4 + 1
                reached[action.path] = action.step
                if action.step == 4:
                    proven.add(action.path)
            elif isinstance(action, ac.OpenLanes):
                assert action.path in proven, "a virtual interface before the four steps of its path"


def test_nothing_opens_while_the_partner_shows_no_host():
    world = World(3)
    world.boot(1)
    world.run(500 * MILLISECOND)
    assert not world.actions(1, ac.NoteStep), "read 1 does not succeed at boot stage FIRMWARE"
    world.hardware[2].stage, world.hardware[2].incarnation = 5, 7  # a dead host: its page still says SERVING
    world.run(500 * MILLISECOND)
    assert {action.step for action in world.actions(1, ac.NoteStep)} == {1, 2}, "nobody has seen us: read 2 waits"
    assert not world.actions(1, ac.OpenLanes)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_path_is_fenced_before_its_work_is_replayed(seed):
    world = started(seed)
    mark = len(world.log)
    world.cut_cable(1, 2, 0)
    world.run(50 * MILLISECOND)
    for node in (1, 2):
        steps = since(world, mark, node, ac.HoldPath, ac.RequestFence, ac.NotePathFenced, ac.Route)
        kinds = [type(action).__name__ for action in steps if not (isinstance(action, ac.Route) and action.path == 0)]
        assert kinds[:3] == ["HoldPath", "RequestFence", "NotePathFenced"]
        assert set(kinds[3:]) == {"Route"}, "one interface or more moves over, after the fence"
        assert all(action.path == 1 for action in steps if isinstance(action, ac.Route))
        assert not since(world, mark, node, ac.AlertError, ac.AlertReady), "clients don't notice"
    world.restore_cable(1, 2, 0)
    assert world.run(SECOND, lambda: converged(world)), "the path rejoins"
    check_alerts(world)


def test_a_second_notice_of_the_same_loss_changes_nothing():
    world = started()
    world.cut_cable(1, 2, 0)
    mark = len(world.log)
    for notice in (ev.CarrierLost(0), ev.PeerLost(2, 0), ev.ViFailed(2, 0, client_key("echo"), 1, True, "RETRY_EXC")):
        world.give(1, notice)
    assert not since(world, mark, 1, ac.HoldPath, ac.RequestFence, ac.NotePathDown, ac.Route, ac.AlertError)


def test_the_fence_by_the_partner_takes_the_path_down_here_too():
    world = started()
    mark = len(world.log)
    world.give(1, ev.CarrierLost(0))  # only node 1 sees it
    world.run(20 * MILLISECOND)
    down = since(world, mark, 2, ac.NotePathDown)
    assert [(action.path, action.reason) for action in down] == [(0, Reason.FENCED_BY_PARTNER)]
    assert since(world, mark, 2, ac.RequestFence), "and is fenced in the other direction"


@pytest.mark.parametrize("seed", SEEDS)
def test_silence_is_noticed_within_the_limit_and_another_path_carries_on(seed):
    world = started(seed)
    for node in (1, 2):
        for path in world.hardware[node].manager.peerings[3 - node].paths.paths:
            path.liveness.on_work(now=world.now)
    world.run(DEFAULTS.idle_probe_interval_ns)
    cut_at, mark = world.now, len(world.log)
    world.silent.add((1, 2, 0))
    assert world.run(SECOND, lambda: all(since(world, mark, node, ac.NotePathDown) for node in (1, 2)))
    assert world.now - cut_at < 25 * MILLISECOND
    world.run(100 * MILLISECOND)
    assert not since(world, mark, 1, ac.AlertError)
    world.silent.clear()
    assert world.run(2 * SECOND, lambda: converged(world))


@pytest.mark.parametrize("seed", SEEDS)
def test_silence_between_idle_partners_is_noticed_a_few_slower_probes_later(seed):
    world = started(seed)
    world.run(DEFAULTS.busy_for_ns)
    cut_at, mark = world.now, len(world.log)
    world.silent.add((1, 2, 0))
    assert world.run(SECOND, lambda: all(since(world, mark, node, ac.NotePathDown) for node in (1, 2)))
    assert world.now - cut_at < 25 * MILLISECOND + 2 * DEFAULTS.idle_probe_interval_ns


def test_the_last_path_gets_a_longer_limit():
    world = started()
    world.cut_cable(1, 2, 0)
    world.run(50 * MILLISECOND)
    mark = len(world.log)
    world.silent.add((1, 2, 1))
    world.run(100 * MILLISECOND)
    assert not since(world, mark, 1, ac.NotePathDown, ac.AlertError), "nothing to fail over to: it may come back"
    world.silent.clear()
    assert world.run(SECOND, lambda: world.hardware[1].manager.peerings[2].paths.paths[1].state.name == "UP")
    assert not since(world, mark, 1, ac.AlertError)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stall_of_everything_takes_no_path_down(seed):
    """Both sides lose both paths for a while: if each gave up the one that it found silent first, both would be gone.
    """
    world = started(seed)
    mark = len(world.log)
    world.silent |= {(1, 2, 0), (1, 2, 1)}
    world.run(100 * MILLISECOND)
    world.silent.clear()
    assert world.run(200 * MILLISECOND, lambda: converged(world))
    for node in (1, 2):
        assert not since(world, mark, node, ac.NotePathDown, ac.AlertError)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_any_path_the_epoch_breaks_once_and_a_higher_one_follows(seed):
    world = started(seed)
    before = {(n, s): world.session(n, 3 - n, s).epoch for n in (1, 2) for s in world.needs}
    mark = len(world.log)
    world.cut_cable(1, 2, 0)
    world.cut_cable(1, 2, 1)
    world.run(300 * MILLISECOND)
    for node in (1, 2):
        errors = since(world, mark, node, ac.AlertError)
        assert sorted((e.name, e.epoch, e.reason) for e in errors) == [
            (name, before[node, name], Reason.NO_PATH) for name in sorted(world.needs)
        ]
        assert not since(world, mark, node, ac.Route), "no fence, so no replay"
    for path in (0, 1):
        world.restore_cable(1, 2, path)
    assert world.run(SECOND, lambda: converged(world))
    assert all(world.session(n, 3 - n, s).epoch > before[n, s] for n in (1, 2) for s in world.needs)
    check_alerts(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_work_waits_for_a_path_that_has_just_come_up_when_the_last_ready_one_is_lost(seed):
    """The path is up before its queue pairs are connected: a session that is rerouted then has nowhere to go for a
    moment, and still must not break.
    """
    world = started(seed)
    world.cut_cable(1, 2, 0)
    assert world.run(SECOND, lambda: since(world, 0, 1, ac.NotePathDown))
    world.restore_cable(1, 2, 0)

    def up() -> bool:
        return all(world.hardware[n].manager.peerings[3 - n].paths.paths[0].state.name == "UP" for n in (1, 2))

    assert world.run(2 * SECOND, up)
    mark = len(world.log)
    world.cut_cable(1, 2, 1)
    world.run(SECOND)
    for node in (1, 2):
        assert not since(world, mark, node, ac.AlertError)
        peering = world.hardware[node].manager.peerings[3 - node]
        assert all(set(session.routes.values()) == {0} for session in peering.sessions.sessions.values())
        assert not any(session.stranded for session in peering.sessions.sessions.values())
    world.restore_cable(1, 2, 1)
    assert world.run(2 * SECOND, lambda: converged(world))
    check_alerts(world)


def test_losing_the_fence_s_own_path_breaks_the_sessions_instead_of_replaying():
    world = started()
    mark = len(world.log)
    world.silent.add((1, 2, 1))  # the fence request will not get through
    world.cut_cable(1, 2, 0)
    world.run(DEFAULTS.alone_limit_ns + 2 * DEFAULTS.idle_probe_interval_ns)
    assert since(world, mark, 1, ac.RequestFence)
    assert not since(world, mark, 1, ac.Route, ac.NotePathFenced)
    assert {alert.name for alert in since(world, mark, 1, ac.AlertError)} == {"echo", "mirror"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rebooted_partner_breaks_each_session_once_and_gets_new_ones(seed):
    world = started(seed)
    epochs = {s: world.session(1, 2, s).epoch for s in world.needs}
    mark = len(world.log)
    world.crash(2)
    world.run(400 * MILLISECOND)
    assert not since(world, mark, 1, ac.AlertError), "its adapters answer: one-sided work goes on"
    world.boot(2)
    assert world.run(SECOND, lambda: converged(world))
    errors = since(world, mark, 1, ac.AlertError)
    assert {(e.name, e.epoch, e.reason) for e in errors} == {
        (name, epoch, Reason.PARTNER_REBOOTED) for name, epoch in epochs.items()
    }
    assert all(world.session(1, 2, s).epoch > epochs[s] for s in world.needs)
    check_alerts(world)


def test_epochs_grow_across_reboots_of_both_sides():
    world = started()
    highest = max(world.session(1, 2, s).epoch for s in world.needs)
    for _ in range(3):
        world.crash(1)
        world.crash(2)
        world.boot(1)
        world.boot(2)
        assert world.run(SECOND, lambda: converged(world))
        epochs = [world.session(1, 2, s).epoch for s in world.needs]
        assert min(epochs) > highest
        highest = max(epochs)
    check_alerts(world)


def test_a_move_called_off_does_not_go_back_to_a_path_that_is_lost_too():
    """Found on an overloaded machine: the path that the work was on fell silent in mid-move, then the target of the
    move was fenced by the partner; the work was posted again on the first one, before its fence.
    """
    world = started()
    session = world.session(1, 2, "mirror")
    former = session.routes[0]
    target = 1 - former
    session.moving[0] = target
    mark = len(world.log)
    world.give(1, ev.CarrierLost(former))  # paths and adapters are numbered alike here
    world.give(1, ev.FencedByPartner(2, target, 1_000_000))
    assert not [action for action in since(world, mark, 1, ac.Route) if action.path == former]
    world.give(1, ev.CarrierFound(former))
    assert world.run(2 * SECOND, lambda: converged(world))
    check_alerts(world)


def test_a_virtual_interface_that_fails_alone_breaks_its_session_alone():
    world = started()
    epoch, mark = world.session(1, 2, "echo").epoch, len(world.log)
    path = world.session(1, 2, "echo").routes[0]
    world.give(1, ev.ViFailed(2, path, client_key("echo"), epoch, False, "RNR_RETRY_EXC_ERR"))
    assert world.run(SECOND, lambda: world.all_ready() and world.session(1, 2, "echo").epoch > epoch)
    for node in (1, 2):
        assert [a.name for a in since(world, mark, node, ac.AlertError)] == ["echo"]
        assert [a.name for a in since(world, mark, node, ac.AlertReady)] == ["echo"]
        assert not since(world, mark, node, ac.NotePathDown)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("nodes", [(1,), (1, 2)])
def test_a_virtual_interface_that_new_queue_pairs_mend_breaks_nothing(seed, paths, nodes):
    world = started(seed, paths=paths)
    session, mark = world.session(1, 2, "echo"), len(world.log)
    path, epoch = session.routes[0], session.epoch
    for node in nodes:
        world.give(node, ev.ViFailed(3 - node, path, client_key("echo"), epoch, False, "WR_FLUSH_ERR", True))
    world.run(SECOND // 5)
    assert converged(world) and session.epoch == epoch
    assert not session.mending and not session.stranded and session.routes
    for node in (1, 2):
        assert not since(world, mark, node, ac.AlertError, ac.AlertReady, ac.NotePathDown)
        mine = [a for a in since(world, mark, node, ac.HoldPath, ac.CloseLanes, ac.OpenLanes, ac.Route)
                if getattr(a, "client", 0) == client_key("echo")]  # fmt: skip
        kinds = [type(action).__name__ for action in mine]
        assert kinds[:2] == ["HoldPath", "CloseLanes"]
        assert "Route" in kinds[2:] or world.session(node, 3 - node, "echo").routes[0] != path
        assert [a.path for a in mine if isinstance(a, ac.OpenLanes)] == [path]
    held_at = next(at for at, who, a in world.log[mark:] if who == 1 and isinstance(a, ac.HoldPath))
    gone_at = next(at for at, who, a in world.log[mark:] if who == 2 and isinstance(a, ac.CloseLanes))
    routed_at = [at for at, who, a in world.log[mark:] if who == 1 and isinstance(a, ac.Route)]
    assert all(at > max(held_at, gone_at) for at in routed_at), "not before the partner has parted with its ends"
    check_alerts(world)


def test_a_session_that_can_not_be_provided_for_waits_longer_each_time_and_harms_no_other():
    world = World(seed=3)
    refusing = [True]
    make = world._do_OpenLanes

    def refuse(me, action):
        make(me, action)
        if refusing[0] and me.node == 1 and action.name == "echo":
            which = (action.partner, action.path, action.client, action.epoch)
            world._soon(me, ev.LanesFailed(*which, "no room"))

    world._do_OpenLanes = refuse
    world.boot(1)
    world.boot(2)
    world.run(5 * SECOND)
    assert world.session(1, 2, "mirror").alerted and world.session(2, 1, "mirror").alerted
    assert not world.actions(1, ac.AlertError, ac.NotePathDown) and not world.actions(2, ac.AlertError, ac.NotePathDown)
    tries = sorted({a.epoch for a in world.actions(1, ac.OpenLanes) if a.name == "echo"})
    assert 3 <= len(tries) <= 4, "at once, after a second, after two more"
    assert world.session(1, 2, "echo").reason is Reason.VERBS_FAILED
    assert world.session(2, 1, "echo").reason is Reason.PARTNER_REFUSED
    refusals = {a.reason for a in world.actions(2, ac.NoteRefused)}
    assert refusals == {Reason.PARTNER_REFUSED}
    refusing[0] = False
    assert world.run(10 * SECOND, lambda: converged(world))
    check_alerts(world)


def test_a_refused_session_may_be_closed_and_opened_again_at_once():
    world = World(seed=3)
    make, refusing = world._do_OpenLanes, [True]

    def refuse(me, action):
        make(me, action)
        if refusing[0] and me.node == 1 and action.name == "echo":
            world._soon(me, ev.LanesFailed(action.partner, action.path, action.client, action.epoch, "no room"))

    world._do_OpenLanes = refuse
    world.boot(1)
    world.boot(2)
    assert world.run(SECOND, lambda: world.session(1, 2, "echo").refused_until is not None)
    refusing[0] = False
    world.give(1, ev.ClientClosed(2, "echo"))
    world.give(1, ev.ClientOpened(2, "echo", world.needs["echo"]))
    assert world.run(SECOND // 2, lambda: converged(world))


def test_a_close_is_orderly_on_both_sides_and_leaves_nothing():
    world = started()
    mark = len(world.log)
    for name in world.needs:
        world.give(1, ev.ClientClosed(2, name))
    assert world.run(SECOND, lambda: all(len(since(world, mark, node, ac.AlertClosed)) == 2 for node in (1, 2)))
    assert {a.reason for a in since(world, mark, 1, ac.AlertClosed)} == {Reason.CLOSED}
    assert {a.reason for a in since(world, mark, 2, ac.AlertClosed)} == {Reason.CLOSED_BY_PARTNER}
    assert not since(world, mark, 1, ac.AlertError) and not since(world, mark, 2, ac.AlertError)
    world.run(100 * MILLISECOND)
    assert not world.hardware[1].lanes and not world.hardware[2].lanes
    assert world.paths_up(), "the well-known connections stay"
    for name, needs in world.needs.items():
        world.give(1, ev.ClientOpened(2, name, needs))
    assert world.run(SECOND, lambda: converged(world)), "and sessions may be opened again"
    check_alerts(world)


def test_a_close_with_a_silent_partner_ends_within_its_bound():
    world = started()
    world.silent |= {(1, 2, 0), (1, 2, 1)}
    mark = len(world.log)
    for name in world.needs:
        world.give(1, ev.ClientClosed(2, name))
    assert world.run(600 * MILLISECOND, lambda: len(since(world, mark, 1, ac.AlertClosed)) == 2)
    assert not world.hardware[1].lanes


def test_needs_that_differ_are_refused_with_the_reason_and_the_rest_opens():
    world = World(4)
    world.boot(1)
    world.needs = {"mirror": Needs(), "echo": Needs(message_bytes=1024)}
    world.boot(2)
    world.run(SECOND)
    for node in (1, 2):
        assert [alert.name for alert in world.actions(node, ac.AlertReady)] == ["mirror"]
        assert world.session(node, 3 - node, "echo").reason is Reason.NEEDS_DIFFER
        assert not [a for a in world.actions(node, ac.OpenLanes) if a.name == "echo"]


def test_a_client_that_registers_late_gets_its_session_and_disturbs_no_other():
    world = World(6, needs={"mirror": Needs()})
    world.boot(1)
    world.boot(2)
    assert world.run(SECOND, lambda: converged(world))
    for node in (1, 2):
        world.give(node, ev.ClientOpened(3 - node, "late", Needs(vis=3)))
        world.run(30 * MILLISECOND)
    assert [a.name for a in world.actions(1, ac.AlertReady)] == ["mirror", "late"]
    assert not world.actions(1, ac.AlertError)


def test_no_common_version_is_refused_with_the_reason_on_both_sides():
    world = World(2)
    world.versions = {1: (1, 1), 2: (2, 3)}
    world.boot(1)
    world.boot(2)
    world.run(SECOND)
    for node, ranges in ((1, ("1-1", "2-3")), (2, ("2-3", "1-1"))):
        agreement = world.hardware[node].manager.peerings[3 - node].settling.agreement
        assert agreement.refusal is Reason.NO_COMMON_VERSION
        assert all(each in agreement.text for each in ranges)
        assert not world.actions(node, ac.OpenLanes, ac.AlertReady), "no virtual interface before the agreement"


@pytest.mark.parametrize("raised", [1, 2])
def test_two_versions_that_do_not_meet_talk_after_one_side_was_renewed(raised):
    world = World(2)
    world.versions = {1: (1, 1), 2: (2, 3)}
    world.boot(1)
    world.boot(2)
    world.run(300 * MILLISECOND)
    for node in (1, 2):
        assert world.hardware[node].manager.peerings[3 - node].settling.agreement.refusal is Reason.NO_COMMON_VERSION
    world.versions[raised] = {1: (1, 2), 2: (1, 3)}[raised]
    world.crash(raised)
    world.boot(raised)
    assert world.run(SECOND, lambda: converged(world)), world.describe()
    check_alerts(world)


def test_interfaces_stay_where_they_are_with_a_partner_that_can_not_take_a_move(monkeypatch):
    monkeypatch.setattr("ccm.peerinfo.OWN_CAPABILITIES", Capability.FIRMWARE_FENCE)
    world = World(1, needs={"one": Needs(vis=4)})
    for node in world.hardware:
        world.boot(node)
    assert world.run(SECOND, lambda: converged(world))
    world.cut_cable(1, 2, 0)
    world.run(50 * MILLISECOND)
    world.restore_cable(1, 2, 0)
    world.run(SECOND)
    assert converged(world) and not world.actions(1, ac.Move) and not world.actions(2, ac.Move)
    assert set(world.session(1, 2, "one").routes.values()) == {1}, "failing over needs no capability"


def test_the_highest_common_version_is_agreed():
    world = World(2)
    world.versions = {1: (1, 2), 2: (1, 3)}
    world.boot(1)
    world.boot(2)
    assert world.run(SECOND, lambda: converged(world))
    assert [world.hardware[node].manager.peerings[3 - node].settling.agreement.version for node in (1, 2)] == [2, 2]


def test_a_reboot_in_the_middle_of_a_handshake_begins_it_anew():
    """Path 1 waits for its write 2 towards incarnation 1 when path 0 reads incarnation 2."""
    world = started()
    world.cut_cable(1, 2, 1)
    world.run(100 * MILLISECOND)
    world.restore_cable(1, 2, 1)
    path = world.hardware[1].manager.peerings[2].paths.paths[1]
    assert world.run(SECOND, lambda: path.handshake.step is Step.WRITE_KNOWN)
    mark, sequence = len(world.log), path.seen_sequence
    world.give(1, ev.StatusRead(2, 0, 2, 2, 0, 0))
    world.give(1, ev.RecordWritten(2, 1, RecordKind.SEEN, 1, sequence))
    assert path.state is PathState.HANDSHAKE and path.handshake.step is Step.READ_STATUS
    assert not [a for a in since(world, mark, 1, ac.NoteStep) if a.path == 1]


def test_a_wrong_proof_is_retried_without_haste():
    world = World(2)
    world.boot(1)
    world.run(1000, lambda: bool(world.actions(1, ac.ConnectPeer)))
    world.give(1, ev.PeerRefused(2, 0, Reason.WRONG_PROOF, "no cluster key"))
    mark = len(world.log)
    world.run(900 * MILLISECOND)
    assert not [a for a in since(world, mark, 1, ac.ConnectPeer) if a.path == 0]
    world.run(200 * MILLISECOND)
    assert [a for a in since(world, mark, 1, ac.ConnectPeer) if a.path == 0]


def test_garbage_in_the_inbox_is_counted_and_opens_nothing():
    world = started()
    inbox = world.hardware[1].inboxes[2]
    generator, mark = random.Random(1), len(world.log)
    for kind in RecordKind:
        offset, size = slot_range(kind)
        inbox[offset : offset + size] = generator.randbytes(size)
        world._scan(world.hardware[1], 2, kind, 0, world.hardware[1].life)
    assert world.hardware[1].manager.peerings[2].settling.refused >= len(RecordKind)
    assert not since(world, mark, 1, ac.AlertError, ac.OpenLanes, ac.NotePathDown)


def test_an_old_record_that_comes_late_is_not_looked_at():
    world = started()
    offset, size = slot_range(RecordKind.SESSIONS)
    old = bytes(world.hardware[1].inboxes[2][offset : offset + size])
    for name in world.needs:
        world.give(2, ev.ClientClosed(1, name))
    world.run(100 * MILLISECOND)
    mark = len(world.log)
    world.hardware[1].inboxes[2][offset : offset + size] = old  # "ready", as it was
    world._scan(world.hardware[1], 2, RecordKind.SESSIONS, 0, world.hardware[1].life)
    world.run(100 * MILLISECOND)
    assert not since(world, mark, 1, ac.AlertReady, ac.OpenLanes)


def test_a_late_fence_of_a_former_life_of_the_path_does_no_harm():
    world = started()
    world.cut_cable(1, 2, 0)
    world.run(50 * MILLISECOND)
    world.restore_cable(1, 2, 0)
    assert world.run(SECOND, lambda: converged(world))
    mark = len(world.log)
    world.give(1, ev.FencedByPartner(2, 0, world.hardware[1].fences[2, 0]))
    assert not since(world, mark, 1, ac.NotePathDown)


def test_a_fence_that_comes_while_the_path_connects_is_not_forgotten():
    world = started()
    world.cut_cable(1, 2, 0)
    world.run(50 * MILLISECOND)
    world.restore_cable(1, 2, 0)
    path = world.hardware[1].manager.peerings[2].paths.get(0)
    assert world.run(SECOND, lambda: path.state is PathState.CONNECTING)
    before = path.fence_epoch
    world.give(1, ev.FencedByPartner(2, 0, before + 1))
    world.give(1, ev.PeerConnected(2, 0, before, 3))  # what stood when the firmware's answer was read
    assert path.fence_epoch == before + 1


def test_what_a_silent_path_was_asked_before_records_left_it_does_not_show_that_they_have_landed():
    world = started()
    peering = world.hardware[1].manager.peerings[2]
    path, adrift = peering.paths.get(0), peering.publisher._adrift
    assert world.run(SECOND, lambda: path.liveness.probe_at is not None)
    asked_at = path.liveness.probe_at
    adrift[0] = {(RecordKind.SESSIONS, 0)}
    path.left_at = world.now
    assert world.run(SECOND, lambda: path.liveness.probe_at != asked_at)
    assert adrift[0]
    assert world.run(SECOND, lambda: 0 not in adrift), "the next answer does"
    assert path.left_at is None


def test_a_late_timer_of_ours_is_not_the_partner_s_silence():
    world = started()
    mark = len(world.log)
    manager = world.hardware[1].manager
    deadline = manager.next_deadline()
    late = deadline + 120 * MILLISECOND  # the process was not run; answers are about to be seen
    actions = manager.on_time(now=late)
    assert not [a for a in actions if isinstance(a, ac.NotePathDown)]
    assert not since(world, mark, 1, ac.NotePathDown)


def test_interfaces_are_spread_and_return_to_a_path_that_comes_back():
    world = started(needs={"one": Needs(vis=4)})
    assert sorted(world.session(1, 2, "one").routes.values()) == [0, 0, 1, 1]
    world.cut_cable(1, 2, 0)
    world.run(50 * MILLISECOND)
    assert set(world.session(1, 2, "one").routes.values()) == {1}
    world.restore_cable(1, 2, 0)
    assert world.run(SECOND, lambda: sorted(world.session(1, 2, "one").routes.values()) == [0, 0, 1, 1])


def test_four_nodes_are_all_ready_with_each_other():
    world = World(9, nodes=(1, 2, 3, 4))
    for node in world.hardware:
        world.boot(node)
    assert world.run(READY_WITHIN, lambda: converged(world))
    world.crash(3)
    world.boot(3)
    assert world.run(READY_WITHIN, lambda: converged(world))
    for node in (1, 2, 4):
        assert {a.partner for a in world.actions(node, ac.AlertError)} == {3}
    check_alerts(world)


@pytest.mark.parametrize("seed", range(1, 61))
def test_any_schedule_of_cuts_silences_and_reboots_converges_when_it_ends(seed):
    world = World(seed)
    chance = random.Random(seed * 7919)
    for node in world.hardware:
        world.boot(node)
    for _ in range(chance.randint(2, 9)):
        world.run(chance.randint(0, 120) * MILLISECOND + chance.randint(0, 2_000_000))
        path, node = chance.randrange(2), chance.choice((1, 2))
        fault = chance.choice(("cut", "restore", "silence", "unsilence", "crash", "boot", "carrier", "vi"))
        if fault == "cut" and not world.is_cut(1, 2, path):
            world.cut_cable(1, 2, path)
        elif fault == "restore" and world.is_cut(1, 2, path):
            world.restore_cable(1, 2, path)
        elif fault == "silence":
            world.silent.add((1, 2, path))
        elif fault == "unsilence":
            world.silent.discard((1, 2, path))
        elif fault == "crash":
            world.crash(node)
        elif fault == "boot":
            world.crash(node)
            world.boot(node)
        elif fault == "carrier" and world.hardware[node].manager and not world.is_cut(1, 2, path):
            world.give(node, ev.CarrierLost(path))  # seen by one side alone, and back at once
            world.give(node, ev.CarrierFound(path))
        elif fault == "vi" and world.hardware[node].manager:
            session = world.session(node, 3 - node, "echo")
            world.give(node, ev.ViFailed(3 - node, path, session.client, session.epoch, False, "REM_OP_ERR"))
    world.silent.clear()
    for path in (0, 1):
        if world.is_cut(1, 2, path):
            world.restore_cable(1, 2, path)
    for node in (1, 2):
        if world.hardware[node].manager is None:
            world.boot(node)
    assert world.run(6 * SECOND, lambda: converged(world)), f"seed {seed} does not converge: {world.describe()}"
    check_alerts(world)
    lanes = {node: {key[1:] for key in world.hardware[node].lanes} for node in (1, 2)}
    assert lanes[1] == lanes[2], "both sides hold queue pairs for the same sessions on the same paths"
