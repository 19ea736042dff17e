"""Cables with a delay or a rate, on real interfaces: order, time, and what a cut does to frames under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emul.clock import MILLISECOND, SECOND
from lab.api import run
from lab.fabric.client import Fabric
from lab.plan import Plan
from lab.scenario import Scenario
from lab.topology import Topology
from tests.helpers.station import FRAMES_WAITING_MAX, Station, wait_for

pytestmark = pytest.mark.netns
DELAY_NS = 80 * MILLISECOND
RATE_BPS = 1_000_000
FRAME_BITS = 64 * 8
BURST = FRAMES_WAITING_MAX // 4
TOPOLOGY = """
name: shaped
nodes:
  a: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}
  b: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}
cables:
  ic0: {ends: [a.ic0, b.ic0], delay: 80ms}
  ic1: {ends: [a.ic1, b.ic1], rate: 1mbit}
"""
SCENARIO = """
scenario: far-cut
topology: far.yaml
workload: {nvram-mirror: {record: 4KiB, depth: 8}}
steps:
  - {at: 300ms, fault: cable.cut, target: ic0, for: 200ms}
expect:
  sessions.recovered: {within: 5s}
  mirror.no_committed_loss: {}
"""
Ends = tuple[Station, Station]


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    file = tmp_path_factory.mktemp("shaped") / "shaped.yaml"
    file.write_text(TOPOLOGY, encoding="utf-8")
    with Fabric.start(Plan(Topology.load(file)), adapters=False) as started:
        yield started


@pytest.fixture
def ends(fabric: Fabric) -> Iterator[Callable[[str], Ends]]:
    opened: list[Station] = []

    def opens(cable: str) -> Ends:
        opened.extend(Station(fabric, node, cable) for node in "ab")
        return opened[-2], opened[-1]

    yield opens
    for one in opened:
        one.close()


def test_a_long_cable_keeps_the_order_and_is_never_too_fast(ends: Callable[[str], Ends]) -> None:
    for source, target in (ends("ic0"), ends("ic0")[::-1]):
        begun = time.monotonic_ns()
        for number in range(BURST):
            source.send(target.mac, b"%d" % number)
        assert target.receive(1) == [b"0"]
        assert time.monotonic_ns() - begun >= DELAY_NS
        assert target.receive(BURST - 1) == [b"%d" % number for number in range(1, BURST)]


def test_a_slow_cable_takes_its_time_for_each_frame(ends: Callable[[str], Ends]) -> None:
    a, b = ends("ic1")
    begun = time.monotonic_ns()
    for number in range(BURST):
        a.send(b.mac, b"%d" % number)
    assert b.receive(BURST) == [b"%d" % number for number in range(BURST)]
    assert time.monotonic_ns() - begun >= BURST * FRAME_BITS * SECOND // RATE_BPS


def test_rules_act_on_a_shaped_cable_and_leave_its_shape(fabric: Fabric, ends: Callable[[str], Ends]) -> None:
    a, b = ends("ic0")
    rules = fabric.arm(["ic0"], [{"action": "drop", "source": "a", "nth": 2}])
    for text in (b"1", b"2", b"3"):
        a.send(b.mac, text)
    assert b.receive(2) == [b"1", b"3"]
    fabric.disarm(rules)
    begun = time.monotonic_ns()
    a.send(b.mac, b"4")
    assert b.receive(1) == [b"4"]
    assert time.monotonic_ns() - begun >= DELAY_NS


@pytest.mark.parametrize("end", [None, "b"])
def test_what_was_under_way_when_the_cable_was_cut_never_arrives(
    fabric: Fabric, ends: Callable[[str], Ends], end: str | None
) -> None:
    a, b = ends("ic0")
    for number in range(BURST):
        a.send(b.mac, b"lost %d" % number)
    fabric.cut("ic0", end)
    fabric.restore("ic0")
    texts: list[bytes] = []

    def passes_again() -> bool:
        a.send(b.mac, b"again")
        texts.extend(b.waiting())
        return b"again" in texts

    wait_for(passes_again, "frames pass again")
    assert {text for text in texts if text != b"again"} == set(), "older frames would have come first"


def test_sessions_live_on_shaped_cables_and_survive_a_cut(tmp_path: Path) -> None:
    file = tmp_path / "far.yaml"
    text = TOPOLOGY.replace("delay: 80ms", "delay: 2ms").replace("rate: 1mbit", "delay: 2ms, rate: 1gbit")
    file.write_text(text, encoding="utf-8")
    (tmp_path / "cut.yaml").write_text(SCENARIO, encoding="utf-8")
    result = run(Scenario.load(tmp_path / "cut.yaml"))
    assert result.verdict == "pass", result.to_json()
