"""Adapters that die and come back: their host keeps nothing of the old ones, and boots beside one that is dead."""

from __future__ import annotations

import time

import pytest

from lab.errors import LabError
from lab.fabric.client import Fabric
from lab.fabric.readiness import boot_and_wait
from lab.plan import Plan
from lab.topology import Topology
from lab.world import HostUnreachable
from tests.helpers.station import wait_for

pytestmark = pytest.mark.netns
ROUNDS = 3
BOOT_DEADLINE_S = 20.0
"""A starting host waits for its adapters for up to five seconds."""


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


def test_a_host_boots_beside_a_dead_adapter_and_takes_its_successor_into_use() -> None:
    """It waits a few seconds for the slot, comes up with the other one, and looks into the slot again and again."""
    plan = Plan(Topology.load("ha-pair"))
    fabric = Fabric.start(plan)
    try:
        assert boot_and_wait(fabric, plan) == []
        fabric.kill_host("b")
        fabric.kill_adapter("b", "ic0")
        fabric.start_host("b")
        deadline = time.monotonic() + BOOT_DEADLINE_S
        while states(fabric) != {"ic0": False, "ic1": True}:
            assert time.monotonic() < deadline, "the host is up with one adapter"
            time.sleep(0.01)
        wait_for(lambda: ready(fabric), "its sessions go over the other")
        fabric.start_adapter("b", "ic0")
        wait_for(lambda: states(fabric) == {"ic0": True, "ic1": True}, "the new adapter is in use")
        wait_for(lambda: paths_up(fabric), "both paths are up")
    finally:
        fabric.stop()


def states(fabric: Fabric) -> dict[str, bool]:
    """Which adapters host b uses; nothing while it doesn't answer."""
    try:
        adapters = fabric.host("b", {"op": "status"})["adapters"]
    except (OSError, LabError, HostUnreachable):
        return {}
    return {f"ic{adapter['index']}": not adapter["gone"] for adapter in adapters}


def ready(fabric: Fabric) -> bool:
    partners = fabric.host("b", {"op": "status"})["partners"]
    return all(each["state"] == "READY" for partner in partners.values() for each in partner["sessions"])
