"""Probes of one partner's paths, and the host's beat, share a turn; and no path is asked later for it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ccm.host import BEAT_NS
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND
from emul.wire.headers import Opcode
from tests.unit.ccm_hosts import TwoHosts
from tests.unit.test_ccm_hosts import BTH_AT, load, running

SLACK_NS = MILLISECOND
"""A timer's turn, and a frame's way."""


def watched(world: TwoHosts, for_ns: int) -> list[list[int]]:
    """When node 0 probed each of its paths, during that time."""
    probes: list[list[int]] = [[] for _ in range(world.paths)]

    def look(path: int, sender: int, frame: bytes) -> bool:
        if sender == 0 and frame[BTH_AT] == Opcode.RDMA_READ_REQUEST:
            probes[path].append(world.now)
        return True

    world.filter = look
    world.run(for_ns)
    return probes


def out_of_step() -> TwoHosts:
    """An idle pair whose second path came up later than the first."""
    world = running()
    world.cut(1)
    world.run(7 * MILLISECOND)
    world.cut(1, connected=True)
    world.run(SECOND + 13 * MILLISECOND)
    return world


@pytest.mark.parametrize("busy", [False, True])
def test_the_probes_of_a_partners_paths_go_out_together_and_none_is_late(busy: bool) -> None:
    world = out_of_step()
    if busy:
        load(world, 0, "echo", 64, 1)
        world.run(20 * MILLISECOND)
    interval_ns = DEFAULTS.probe_interval_ns if busy else DEFAULTS.idle_probe_interval_ns
    first, second = watched(world, SECOND)
    together = sum(any(abs(at - other) < SLACK_NS for other in second) for at in first)
    assert together >= 0.9 * len(first), (first[:9], second[:9])
    for probes in (first, second):
        gaps = [later - earlier for earlier, later in pairwise(probes)]
        assert max(gaps) <= interval_ns + 2 * SLACK_NS, "never later than its own turn"
        assert len(probes) <= 1.2 * SECOND / interval_ns, "and not much oftener"


def test_an_idle_host_beats_when_it_probes_and_needs_no_turn_for_that() -> None:
    world = out_of_step()
    beats, probes = [world.memories[0].status.heartbeat], 0
    for _ in range(10):
        probes += max(map(len, watched(world, 100 * MILLISECOND)))
        beats.append(world.memories[0].status.heartbeat)
    turns = beats[-1] - beats[0]
    assert 0.9 * probes <= turns <= 1.2 * probes, (turns, probes)


def test_a_host_that_probes_nobody_beats_all_the_same() -> None:
    world = running()
    for path in range(world.paths):
        world.cut(path)
    world.run(SECOND)
    before = world.memories[0].status.heartbeat
    for _ in range(20):
        world.run(2 * BEAT_NS)
        assert world.memories[0].status.heartbeat > before
        before = world.memories[0].status.heartbeat


@pytest.mark.parametrize("phase", range(0, 20, 4))
def test_a_path_that_falls_silent_between_two_probes_is_found_in_time(phase: int) -> None:
    world = out_of_step()
    world.run(phase * MILLISECOND)
    begun = world.now
    world.filter = lambda path, sender, frame: path != 0
    path = world.host(0).driver.manager.peerings[2].paths.paths[0]
    assert world.run(SECOND, lambda: not path.usable)
    limit_ns, busy_ns = DEFAULTS.limit_floor_ns, DEFAULTS.probe_interval_ns
    bound = DEFAULTS.idle_probe_interval_ns + max(limit_ns, limit_ns // 2 + 2 * busy_ns) + 2 * SLACK_NS
    assert world.now - begun <= bound
