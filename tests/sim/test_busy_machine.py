"""On a machine with too much to do, paths look dead that aren't, and the two nodes don't agree on which.

How long anything takes is not judged then. What must hold at any speed is: nothing committed is lost, nothing is posted
again before its fence, each alert comes once.
"""

from __future__ import annotations

import os

import pytest

from lab.plan import Plan
from lab.runner import Runner
from lab.scenario import Scenario
from lab.sim.world import SimWorld
from lab.topology import Topology
from lab.verdict import judge

SAFETY = {
    "alerts.exactly_once",
    "fence.before_replay",
    "handshake.ordered",
    "messages.delivered",
    "mirror.no_committed_loss",
    "nothing.leaked",
}
SEEDS = int(os.environ.get("LAB_SIM_SEEDS", "4"))


@pytest.mark.parametrize("name", ["cable-cut", "cable-blackhole", "host-restart"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_must_hold_at_any_speed_holds(name: str, seed: int) -> None:
    scenario, topology = Scenario.load(name), Topology.load("ha-pair")
    plan = Plan(topology)
    world = SimWorld(plan, seed=seed, busy=True)
    result = judge(scenario, topology.name, "sim", seed, Runner(scenario, topology, plan, world).run())
    broken = [check for check in result.checks if check.ok is False and check.name in SAFETY]
    assert not broken, f"seed {seed}"
