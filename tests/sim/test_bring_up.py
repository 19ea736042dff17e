"""Sessions become ready on a machine that is so busy that paths come and go meanwhile."""

from __future__ import annotations

import os

import pytest

from emul.clock import MILLISECOND, SECOND
from lab.plan import Plan
from lab.sessions import expected_sessions
from lab.sim.world import SimWorld
from lab.topology import Topology
from lab.watcher import Watcher

READY_WITHIN_NS = 10 * SECOND
SEEDS = int(os.environ.get("LAB_SIM_SEEDS", "4")) * 10
LATE_WRITES = (92, 127, 152, 306)
"""A record of the exchange was written over one path, then a newer one over another path while the first was held up;
it landed late, on top of the newer one, and both sides waited for each other for ever."""


def becomes_ready(seed: int) -> bool:
    topology = Topology.load("ha-pair")
    plan = Plan(topology)
    world = SimWorld(plan, seed=seed, busy=True)
    watcher = Watcher(plan.node_ids, expected_sessions(plan))
    world.start()
    try:
        while world.now() < READY_WITHIN_NS:
            world.advance(world.now() + 20 * MILLISECOND)
            watcher.poll({node: world.history(node) for node in topology.nodes})
            if watcher.all_ready():
                return True
        return False
    finally:
        world.stop()


@pytest.mark.parametrize("seed", sorted({*range(SEEDS), *LATE_WRITES}))
def test_sessions_become_ready_though_everything_comes_late(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("lab.sim.pace.BUSY_LATE_CHANCE", 1 / 50)
    monkeypatch.setattr("lab.sim.pace.BUSY_LATE_NS", 60 * MILLISECOND)
    assert becomes_ready(seed), f"seed {seed}"
