"""Probes of a whole node: turns, the interval that follows, and the formula for detection against real managers."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ccm import actions as ac
from ccm import events as ev
from ccm.budget import Budget, Rate, detection_ns, interval_ns, probes_per_s
from ccm.needs import Needs
from ccm.settings import DEFAULTS, Settings
from emul.clock import MILLISECOND, SECOND, Instant
from tests.unit.ccm_world import World, check_alerts

START = Instant(SECOND)
LATE_NS = 2 * MILLISECOND
"""What a request of the test world and its answer take at the most, and a timer."""


def test_few_paths_are_probed_in_their_usual_interval():
    budget = Budget()
    budget.paths = 2
    assert budget.turn(Rate.BUSY, now=START) == START + DEFAULTS.probe_interval_ns
    assert budget.turn(Rate.IDLE, now=START) == START + DEFAULTS.idle_probe_interval_ns


@pytest.mark.parametrize(("rate", "per_s"), [(Rate.BUSY, 800), (Rate.IDLE, 100), (Rate.APART, 20)])
def test_many_paths_share_the_node_s_budget_one_after_the_other(rate, per_s):
    budget = Budget()
    budget.paths = paths = 500
    turns = [budget.turn(rate, now=START) for _ in range(paths)]
    assert [later - earlier for earlier, later in pairwise(turns)] == [SECOND // per_s] * (paths - 1)
    again = budget.turn(rate, now=turns[0])
    assert again == turns[-1] + SECOND // per_s
    assert again - turns[0] == interval_ns(DEFAULTS, rate, paths)


def test_turns_of_paths_that_were_lost_delay_the_others_by_one_round_at_the_most():
    budget = Budget()
    budget.paths = 10
    for _ in range(1000):
        budget.turn(Rate.IDLE, now=START)
    round_ns = 10 * SECOND // DEFAULTS.idle_probes_per_s
    assert budget.turn(Rate.IDLE, now=START) == START + DEFAULTS.idle_probe_interval_ns + round_ns


def test_a_wish_for_much_later_holds_nobody_up_for_so_long():
    budget = Budget()
    budget.paths = 2
    budget.turn(Rate.IDLE, now=START, after_ns=2 * SECOND)
    assert budget.turn(Rate.IDLE, now=START) <= START + 2 * DEFAULTS.idle_probe_interval_ns


def test_the_formula_in_figures():
    pair = detection_ns(busy_paths=2)
    assert pair == 5 * MILLISECOND + 8 * MILLISECOND + 10 * MILLISECOND, "interval, alarm, two probes of the other path"
    assert detection_ns(idle_paths=2, rate=Rate.IDLE) == 38 * MILLISECOND
    assert detection_ns(busy_paths=63) > detection_ns(busy_paths=4)
    assert detection_ns(idle_paths=255, rate=Rate.IDLE, alone=True) == 2550 * MILLISECOND + DEFAULTS.alone_limit_ns
    fast = Settings(busy_probes_per_s=8000, probe_interval_ns=MILLISECOND)
    assert detection_ns(fast, busy_paths=2) < pair


def cluster(nodes: int, *, seed: int = 1, needs: dict[str, Needs] | None = None) -> World:
    world = World(seed, nodes=tuple(range(1, nodes + 1)), needs={"echo": Needs()} if needs is None else needs)
    for node in world.hardware:
        world.boot(node)
    assert world.run(30 * SECOND, world.all_ready)
    world.run(2 * SECOND)
    return world


def probes_of(world: World, node: int, for_ns: int) -> int:
    mark = len(world.log)
    world.run(for_ns)
    return sum(who == node and isinstance(action, ac.ReadStatus) for _, who, action in world.log[mark:])


def test_a_node_of_a_large_cluster_sends_no_more_probes_than_its_budget():
    world = cluster(10)
    idle = probes_of(world, 1, SECOND)
    assert 0 < idle <= DEFAULTS.idle_probes_per_s + 1
    for _ in range(100):  # now all of them work
        for partner in range(2, 11):
            world.give(1, ev.LifeSeen(partner, 0, world.now))
        world.run(5 * MILLISECOND)
    mark = len(world.log)
    for _ in range(200):
        for partner in range(2, 11):
            world.give(1, ev.LifeSeen(partner, 0, world.now))
        world.run(5 * MILLISECOND)
    busy = sum(who == 1 and isinstance(action, ac.ReadStatus) for _, who, action in world.log[mark:])
    assert idle < busy <= DEFAULTS.busy_probes_per_s + 1


def test_a_cluster_that_is_half_switched_off_costs_no_more_than_an_idle_one():
    world = cluster(8)
    for node in range(3, 9):
        world.crash(node)
        world.hardware[node].stage = 1
    world.run(2 * SECOND)
    assert probes_of(world, 1, SECOND) <= probes_per_s()


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("nodes", [2, 8])
def test_silence_in_an_idle_cluster_is_noticed_within_what_the_formula_says(nodes, seed):
    world = cluster(nodes, seed=seed)
    paths = 2 * (nodes - 1)
    cut_at, mark = world.now, len(world.log)
    world.silent.add((1, 2, 0))

    def down(node: int) -> bool:
        return any(who == node and isinstance(action, ac.NotePathDown) for _, who, action in world.log[mark:])

    assert world.run(5 * SECOND, lambda: down(1) or down(2))
    bound = detection_ns(idle_paths=paths, rate=Rate.IDLE, round_trip_ns=MILLISECOND) + LATE_NS
    assert world.now - cut_at <= bound, "the one who notices first"
    world.run(2 * SECOND)
    check_alerts(world)


def test_partners_without_a_common_client_are_probed_at_a_low_rate_and_sessions_open_when_both_want():
    world = cluster(2, needs={})
    assert probes_of(world, 1, 4 * SECOND) <= 4 * 2 + 2, "two paths, once a second each"
    world.give(1, ev.ClientOpened(2, "echo", Needs()))
    assert probes_of(world, 1, 4 * SECOND) <= 4 * 2 + 2, "only one side wants"
    world.give(2, ev.ClientOpened(1, "echo", Needs()))
    world.needs = {"echo": Needs()}
    assert world.run(SECOND, world.all_ready)
    world.run(SECOND)
    assert probes_of(world, 1, SECOND) > 50
