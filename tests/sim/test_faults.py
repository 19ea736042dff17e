"""Each fault of the catalogue in the simulator: it happens, it is seen by whom it should be, and it is survived."""

from __future__ import annotations

import pytest

from ccm.history import Kind
from lab.api import run
from lab.faults import FAULTS
from lab.scenario import Scenario
from lab.verdict import Result

SCENARIO = """
scenario: one-fault
topology: ha-pair
workload:
  nvram-mirror: {{record: 4KiB, depth: 8}}
  echo: {{record: 512B, depth: 4}}
steps:
  - {{{step}}}
expect:
  sessions.recovered: {{within: 5s}}
"""
DOWN, RESENT, QUIET = "a path went down", "something was sent again", "nobody noticed"
STEPS = {
    "cable.cut": ("at: 300ms, fault: cable.cut, target: ic0, for: 200ms", DOWN),
    "cable.cut_one_end": ("at: 300ms, fault: cable.cut_one_end, target: ic0, end: a, for: 200ms", DOWN),
    "cable.blackhole": ("at: 300ms, fault: cable.blackhole, target: ic0, for: 200ms", DOWN),
    "cable.blackhole_one_way": ("at: 300ms, fault: cable.blackhole_one_way, target: ic0, from: b, for: 200ms", DOWN),
    "cable.drop": ("at: 300ms, fault: cable.drop, target: ic0, count: 3, for: 200ms", RESENT),
    "cable.corrupt": ("at: 300ms, fault: cable.corrupt, target: ic0, count: 3, for: 200ms", RESENT),
    "cable.duplicate": ("at: 300ms, fault: cable.duplicate, target: ic0, count: 50, for: 200ms", QUIET),
    "frame.nak_sequence": ("on: {frame: {opcode: RDMA_WRITE, from: a, nth: 5}}, fault: frame.nak_sequence", RESENT),
    "host.crash": ("at: 300ms, fault: host.crash, target: b, for: 200ms", DOWN),
    "host.pause": ("at: 300ms, fault: host.pause, target: b, for: 100ms", QUIET),
    "adapter.die": ("at: 300ms, fault: adapter.die, target: b.ic0, for: 200ms", DOWN),
    "adapter.reset": ("at: 300ms, fault: adapter.reset, target: b.ic0", DOWN),
}


def paths_lost(result: Result) -> int:
    evidence = result.outcome.evidence
    close_at = evidence.close_at or evidence.stopped_at
    return sum(entry.at < close_at for node in evidence.nodes for entry in evidence.of(node, Kind.PATH_DOWN))


def test_each_fault_of_the_catalogue_is_here() -> None:
    assert set(STEPS) == {name for name, fault in FAULTS.items() if "sim" in fault.worlds}


@pytest.mark.parametrize("name", STEPS)
def test_a_fault_happens_is_seen_and_is_survived(name: str) -> None:
    step, effect = STEPS[name]
    result = run(Scenario.parse(SCENARIO.format(step=step)), world="sim", seed=5)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    [fault] = result.outcome.evidence.faults
    assert fault.at is not None
    assert fault.fired > 0
    assert (paths_lost(result) > 0) is (effect is DOWN)
    resent = sum(counters.get("retransmitted", 0) for counters in result.outcome.evidence.counters.values())
    if effect is RESENT:
        assert resent > 0


@pytest.mark.parametrize(
    ("trigger", "target"),
    [
        ("on: {session: ready, client: echo, node: b}", "ic1"),
        ("on: {frame: {opcode: RDMA_WRITE, from: a, nth: 20}}", "ic1"),
    ],
)
def test_a_cable_may_be_cut_by_an_event(trigger: str, target: str) -> None:
    step = f"{trigger}, fault: cable.cut, target: {target}, for: 200ms"
    result = run(Scenario.parse(SCENARIO.format(step=step)), world="sim", seed=5)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    assert paths_lost(result) > 0
