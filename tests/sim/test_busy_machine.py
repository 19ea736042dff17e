"""On a machine with too much to do, paths look dead that aren't, and the two nodes don't agree on which.

How long anything takes is not judged then. What must hold at any speed is: nothing committed is lost, nothing is posted
again before its fence, each alert comes once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from ccm.history import Kind, read_entries
from ccm.reasons import Reason
from emul.clock import MILLISECOND, SECOND
from emul.node_memory import NodeMemory
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


OVERLOADED = """
name: overloaded
nodes:
  a: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror]}
  b: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror]}
cables: {ic0: [a.ic0, b.ic0], ic1: [a.ic1, b.ic1]}
ccm: {limit_most: 500ms, alone_limit: 800ms}
"""
"""Limits above the longest time that this machine lets a process wait, which is 250 ms."""


def losses(seed: int, fault: Callable[[SimWorld], None] | None = None) -> list[str]:
    """Why paths went down in eight seconds of load on an overloaded machine."""
    world = SimWorld(Plan(Topology.parse(OVERLOADED)), seed=seed, busy=True)
    world.start()
    load = {"op": "workload.start", "client": "nvram-mirror", "record": 512, "depth": 8, "rate": 500}
    for _ in range(100):  # until the sessions are ready
        world.advance(world.now() + 100 * MILLISECOND)
        if all(path["state"] == "UP" for path in paths(world)) and world.nodes["a"].control(load).get("ok"):
            break
    begun = world.now()
    world.advance(begun + 2 * SECOND)
    if fault is not None:
        fault(world)
    world.advance(begun + 8 * SECOND)
    entries = [entry for node in world.nodes.values() for entry in read_entries(node.history.buffer)]
    found = [Reason(entry.length).name for entry in entries if entry.kind is Kind.PATH_DOWN and entry.at >= begun]
    world.stop()
    return found


def paths(world: SimWorld) -> list[dict[str, Any]]:
    status = [node.control({"op": "status"}) for node in world.nodes.values() if node.host is not None]
    found = [path for host in status for partner in host["partners"].values() for path in partner["paths"]]
    return found if len(status) == len(world.nodes) else [{"state": "DOWN"}]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_card_that_the_machine_does_not_run_brings_no_path_down(seed: int) -> None:
    assert losses(seed) == []


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_silent_cable_is_found_on_an_overloaded_machine_too(seed: int) -> None:
    found = losses(seed, lambda world: world.cables["ic0"].set_blackhole([0, 1], on=True))
    assert found, f"seed {seed}"


@pytest.mark.needs_plain
def test_without_the_cards_own_sign_there_are_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeMemory, "set_looks", lambda self, adapter, looks: None)
    assert sum(len(losses(seed)) for seed in range(4)) > 4
