"""A cable that swallows large packets in silence: no path comes up with a path MTU of which packets are lost."""

from __future__ import annotations

from typing import Any

import pytest

from ccm.history import Kind, read_entries
from emul.clock import MILLISECOND, SECOND
from lab.plan import Plan
from lab.scenario import At, OnFrame, Step
from lab.sim.world import SimWorld
from lab.topology import Topology
from lab.world import PlannedFault

PAIR = """
name: pair
nodes:
  a: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}
  b: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}
cables: {ic0: [a.ic0, b.ic0], ic1: [a.ic1, b.ic1]}
"""
PORT_MTU = 2048
HEADERS = 20 + 8 + 12 + 16 + 4
"""IP, UDP, BTH, RETH and ICRC: what a packet of an RDMA WRITE has beside its payload."""
LOAD = {"op": "workload.start", "client": "nvram-mirror", "record": 4096, "depth": 8, "rate": 500}


class Story:
    """A pair whose cable ic0 can be spoilt."""

    def __init__(self, seed: int = 1) -> None:
        self.world = SimWorld(Plan(Topology.parse(PAIR)), seed=seed)
        self._number = 0

    def spoil(self, size: int, source: str | None = None) -> PlannedFault:
        """From now on IP packets above `size` vanish in ic0, of both ends or one."""
        self._number += 1
        parameters: dict[str, int | float | str] = {"size_bytes": size}
        if source is not None:
            parameters["from"] = source
        fault = PlannedFault(self._number, Step(At(0), "cable.mtu", "ic0", None, parameters))
        self.world.apply(fault)
        return fault

    def run(self, ms: int) -> None:
        self.world.advance(self.world.now() + ms * MILLISECOND)

    def path(self, node: str, index: int = 0) -> dict[str, Any]:
        status: Any = self.world.host(node, {"op": "status"})
        (partner,) = status["partners"].values()
        (path,) = [path for path in partner["paths"] if path["index"] == index]
        return dict(path)

    def partner(self, node: str) -> dict[str, Any]:
        status: Any = self.world.host(node, {"op": "status"})
        (partner,) = status["partners"].values()
        return dict(partner)

    def committed(self) -> int:
        entries = read_entries(self.world.history("a"))
        return sum(1 for entry in entries if entry.kind is Kind.COMMITTED)

    def broken(self) -> int:
        histories = (self.world.history(node) for node in self.world.nodes)
        return sum(1 for history in histories for entry in read_entries(history) if entry.kind is Kind.ERROR_ALERT)


def test_a_whole_cable_is_used_with_the_ports_own_mtu() -> None:
    story = Story()
    story.world.start()
    story.run(1000)
    for node in "ab":
        path = story.path(node)
        assert (path["state"], path["mtu"], path["mtu_lost"]) == ("UP", PORT_MTU, 0)


@pytest.mark.parametrize(("passes", "settled"), [(1500, 1024), (1024 + HEADERS, 1024), (600, 512), (400, 256)])
def test_a_path_comes_up_with_the_largest_mtu_that_gets_through(passes: int, settled: int) -> None:
    story = Story()
    story.world.start()
    story.spoil(passes)
    story.run(3000)
    for node in "ab":
        path = story.path(node)
        assert (path["state"], path["mtu"], path["mtu_lost"]) == ("UP", settled, 2 * settled)
        assert story.path(node, 1)["mtu"] == PORT_MTU, "the other cable is whole"
        assert "large_packets_lost: path 0: small packets get through, those of" in story.partner(node)["last_refusal"]
    assert story.world.host("a", LOAD).get("ok")
    story.run(1000)
    assert story.committed() > 400 and story.broken() == 0


@pytest.mark.parametrize("source", ["a", "b"])
def test_large_packets_lost_one_way_make_both_sides_settle_for_less(source: str) -> None:
    story = Story()
    story.world.start()
    story.spoil(1500, source)
    story.run(3000)
    assert [story.path(node)["mtu"] for node in "ab"] == [1024, 1024]
    other = "b" if source == "a" else "a"
    assert (story.path(source)["mtu_lost"], story.path(other)["mtu_lost"]) == (PORT_MTU, 0)
    assert [story.path(node)["state"] for node in "ab"] == ["UP", "UP"]


def test_a_partner_without_a_host_is_probed_too() -> None:
    """Its firmware alone answers: when its host comes, the connection is known to be good."""
    story = Story()
    story.world.start()
    story.spoil(1500)
    story.run(25)
    story.world.nodes["b"].crash()
    story.run(2000)
    assert story.path("a")["mtu_lost"] == PORT_MTU
    assert story.path("a")["state"] == "HANDSHAKE"
    story.world.nodes["b"].boot()
    story.run(2000)
    assert [story.path(node)["mtu"] for node in "ab"] == [1024, 1024]
    assert story.path("a")["state"] == "UP"


def test_a_cable_that_becomes_worse_costs_a_session_once_and_the_path_its_size() -> None:
    story = Story()
    story.world.start()
    story.run(1000)
    assert story.world.host("a", LOAD).get("ok")
    story.run(500)
    fault = story.spoil(1500)
    story.run(4000)
    assert [story.path(node)["mtu"] for node in "ab"] == [1024, 1024]
    assert [story.path(node)["state"] for node in "ab"] == ["UP", "UP"]
    broken = story.broken()
    assert broken <= 4
    before = story.committed()
    story.run(1000)
    assert story.committed() - before > 400 and story.broken() == broken
    story.world.clear(fault)
    story.world.nodes["a"].adapters["ic0"].cable.unplug([0, 1])  # type: ignore[union-attr]
    story.run(500)
    story.world.nodes["a"].adapters["ic0"].cable.plug_in([0, 1])  # type: ignore[union-attr]
    story.run(3000)
    assert [(story.path(node)["mtu"], story.path(node)["mtu_lost"]) for node in "ab"] == [(PORT_MTU, 0)] * 2


def test_a_cable_on_which_nothing_gets_through_is_not_taken_for_a_small_one() -> None:
    story = Story()
    story.world.start()
    story.spoil(40)
    story.run(3000)
    assert story.path("a")["state"] in ("DOWN", "CONNECTING")
    assert story.path("a")["mtu_lost"] == 0
    assert story.path("a", 1)["state"] == "UP"


def test_a_connection_that_fails_before_its_probe_is_no_question_of_size() -> None:
    story = Story()
    story.world.start()
    trigger = OnFrame("RDMA_READ", cable="ic0")
    story.world.apply(PlannedFault(9, Step(trigger, "cable.drop", None, None, {"probability": 1.0})))
    story.run(2000)
    assert (story.path("a")["mtu_lost"], story.path("a")["state"] == "UP") == (0, False)
    assert story.partner("a")["last_refusal"] == "unreachable: the new connection failed: RETRY_EXC_ERR"


def test_the_story_takes_no_longer_than_it_must() -> None:
    """One level down costs the retries of one request, 8 x 34 ms, and the next attempt."""
    story = Story()
    story.world.start()
    story.spoil(1500)
    story.world.advance(SECOND)
    assert [story.path(node)["state"] for node in "ab"] == ["UP", "UP"]
