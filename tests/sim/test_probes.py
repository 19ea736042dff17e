"""The page on probes says what the formula says, and the simulator keeps to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ccm.budget import Rate, detection_ns, interval_ns, probes_per_s
from ccm.history import Kind, read_entries
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND
from emul.node_memory import STATUS_READ_BYTES
from lab.plan import Plan
from lab.sim.world import SimWorld
from lab.topology import Topology

PAGE = Path(__file__).parents[2] / "docs" / "probes.md"
ROW = re.compile(r"\| [^|]+ \| (\d+) \| (busy|idle) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|")
LONG_ROW = re.compile(r"\| (\d+) ms \| (\d+) \| (\d+) \| (\d+) \|")
WAKE_NS = 4 * MILLISECOND
"""A host's or card's turn that the simulated machine lets wait (lab.sim.pace.LATE_NS), and its usual delays."""


def test_the_table_is_what_the_formula_gives() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) == 7
    for paths, word, *figures in rows:
        rate, count = Rate[word.upper()], int(paths)
        given = {"busy_paths" if rate is Rate.BUSY else "idle_paths": count}
        expected = [
            interval_ns(DEFAULTS, rate, count), detection_ns(rate=rate, **given),
            detection_ns(rate=rate, alone=True, **given),
        ]  # fmt: skip
        assert [float(figure) for figure in figures] == [ns / MILLISECOND for ns in expected], f"{paths} {word}"


def test_the_figures_in_the_text_are_those_of_the_settings() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    s = DEFAULTS
    assert f"`limit_factor` ({s.limit_factor})" in text
    for name in ("limit_floor", "limit_most", "alone_limit"):
        assert f"`{name}` ({getattr(s, name + '_ns') // MILLISECOND} ms)" in text
    assert f"{s.busy_probes_per_s} + {s.idle_probes_per_s} + {s.apart_probes_per_s}" in text
    assert probes_per_s() == s.busy_probes_per_s + s.idle_probes_per_s + s.apart_probes_per_s
    intervals = (s.probe_interval_ns // MILLISECOND, s.idle_probe_interval_ns // MILLISECOND)
    assert intervals == (5, 20) and s.apart_probe_interval_ns == SECOND and STATUS_READ_BYTES == 256


def test_the_table_of_long_cables_is_what_the_formula_gives() -> None:
    rows = LONG_ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) == 4
    for round_trip, *figures in rows:
        round_trip_ns = int(round_trip) * MILLISECOND
        limit_ns = max(DEFAULTS.limit_floor_ns, min(DEFAULTS.limit_most_ns, DEFAULTS.limit_factor * round_trip_ns))
        expected = [
            limit_ns, detection_ns(busy_paths=2, round_trip_ns=round_trip_ns), detection_ns(busy_paths=2, alone=True),
        ]  # fmt: skip
        assert [int(figure) for figure in figures] == [ns // MILLISECOND for ns in expected]


LONG = """
name: long-pair
nodes:
  a: {{adapters: [ic0, ic1], nvram: 64KiB, clients: [nvram-mirror]}}
  b: {{adapters: [ic0, ic1], nvram: 64KiB, clients: [nvram-mirror]}}
cables:
  ic0: {{ends: [a.ic0, b.ic0], delay: {}ms}}
  ic1: {{ends: [a.ic1, b.ic1], delay: {}ms}}
"""
CABLES = {
    "short": Topology.load("ha-pair"),
    "long": Topology.parse(LONG.format(10, 10)),
    "longer": Topology.parse(LONG.format(40, 40)),
    "long and short": Topology.parse(LONG.format(10, 1)),
    "short and long": Topology.parse(LONG.format(1, 10)),
}

SEEDS = {name: 6 if name == "short" else 2 for name in CABLES}


@pytest.mark.parametrize("rate", [Rate.BUSY, Rate.IDLE])
@pytest.mark.parametrize(("cables", "seed"), [(name, seed) for name in CABLES for seed in range(SEEDS[name])])
def test_a_silent_cable_is_given_up_within_what_the_formula_says(cables: str, rate: Rate, seed: int) -> None:
    world = SimWorld(Plan(CABLES[cables]), seed=seed)
    world.start()
    world.advance(SECOND)
    if rate is Rate.BUSY:
        load = {"op": "workload.start", "client": "nvram-mirror", "record": 512, "depth": 8, "rate": 1000}
        assert world.host("a", load).get("ok")
    world.advance(9 * SECOND + seed * 7_777_777)
    status: list[Any] = [world.host(node, {"op": "status"}) for node in world.nodes]
    paths = [path for host in status for partner in host["partners"].values() for path in partner["paths"]]
    limit_ns = max(int(path["limit_ns"]) for path in paths)
    at = world.now()
    world.cables["ic0"].set_blackhole([0, 1], on=True)
    world.advance(at + 2 * SECOND)
    down = [
        entry.at - at
        for node in world.nodes
        for entry in read_entries(world.history(node))
        if entry.kind is Kind.PATH_DOWN and entry.at > at
    ]
    count = {"busy_paths": 2} if rate is Rate.BUSY else {"idle_paths": 2}
    round_trip_ns = -(-limit_ns // DEFAULTS.limit_factor)
    bound = detection_ns(rate=rate, round_trip_ns=round_trip_ns, **count) + round_trip_ns // 2 + WAKE_NS
    assert len(down) == len(world.nodes) and min(down) <= bound
    before = [e for node in world.nodes for e in read_entries(world.history(node)) if e.kind is Kind.PATH_DOWN]
    assert len(before) == len(down), "and no other path was given up"
