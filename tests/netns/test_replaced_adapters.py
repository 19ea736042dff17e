"""An adapter that dies and comes back, again and again: its host keeps nothing of the old ones."""

from __future__ import annotations

import pytest

from lab.fabric.client import Fabric
from lab.fabric.readiness import boot_and_wait
from lab.plan import Plan
from lab.topology import Topology
from tests.helpers.station import wait_for

pytestmark = pytest.mark.netns
ROUNDS = 3


def paths_up(fabric: Fabric) -> bool:
    partners = fabric.host("a", {"op": "status"})["partners"]
    return all(str(path["state"]).lower() == "up" for partner in partners.values() for path in partner["paths"])


def test_a_host_keeps_no_descriptor_of_an_adapter_that_was_replaced() -> None:
    plan = Plan(Topology.load("ha-pair"))
    fabric = Fabric.start(plan)
    try:
        assert boot_and_wait(fabric, plan) == []
        before = fabric.host("a", {"op": "resources"})["fds"]
        for _ in range(ROUNDS):
            fabric.kill_adapter("a", "ic0")
            fabric.start_adapter("a", "ic0")
            wait_for(lambda: not paths_up(fabric), "the loss is noticed")
            wait_for(lambda: paths_up(fabric), "both paths are up again")
        wait_for(lambda: fabric.host("a", {"op": "resources"})["fds"] <= before, "as many descriptors as before")
    finally:
        fabric.stop()
