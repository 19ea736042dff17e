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
REPAIRED, UNMET = "a session or a connection was made anew", "nobody does what it would hit"
CORRUPT = "what was committed is not what is stored"
THEN_CUT = "}\n  - {at: 350ms, fault: cable.cut, target: ic0, for: 100ms"
"""Connections are made anew."""
STEPS = {
    "cable.cut": ("at: 300ms, fault: cable.cut, target: ic0, for: 200ms", DOWN),
    "cable.cut_one_end": ("at: 300ms, fault: cable.cut_one_end, target: ic0, end: a, for: 200ms", DOWN),
    "cable.blackhole": ("at: 300ms, fault: cable.blackhole, target: ic0, for: 200ms", DOWN),
    "cable.blackhole_one_way": ("at: 300ms, fault: cable.blackhole_one_way, target: ic0, from: b, for: 200ms", DOWN),
    "cable.drop": ("at: 300ms, fault: cable.drop, target: ic0, count: 3, for: 200ms", RESENT),
    "cable.corrupt": ("at: 300ms, fault: cable.corrupt, target: ic0, count: 3, for: 200ms", RESENT),
    "cable.duplicate": ("at: 300ms, fault: cable.duplicate, target: ic0, count: 50, for: 200ms", QUIET),
    "frame.nak_sequence": ("on: {frame: {opcode: RDMA_WRITE, from: a, nth: 5}}, fault: frame.nak_sequence", RESENT),
    "frame.spoof_source": ("on: {frame: {opcode: RDMA_WRITE, from: a, nth: 5}}, fault: frame.spoof_source", QUIET),
    "frame.rkey_guess": ("on: {frame: {opcode: RDMA_WRITE, from: a, nth: 5}}, fault: frame.rkey_guess", QUIET),
    "frame.psn_jump": ("on: {frame: {opcode: RDMA_WRITE, from: a, nth: 5}}, fault: frame.psn_jump", QUIET),
    "operator.version_skew": ("at: 300ms, fault: operator.version_skew, target: b, version: 7, for: 200ms", DOWN),
    "operator.wrong_key": ("at: 300ms, fault: operator.wrong_key, target: b, for: 200ms", DOWN),
    "cable.mtu": (f"at: 300ms, fault: cable.mtu, target: ic0, size: 1200B, for: 800ms{THEN_CUT}", DOWN),
    "client.close": ("at: 300ms, fault: client.close, target: a, client: echo, for: 200ms", QUIET),
    "client.crash": ("at: 300ms, fault: client.crash, target: a, client: echo, for: 200ms", QUIET),
    "operator.remove_member": ("at: 300ms, fault: operator.remove_member, target: b, for: 200ms", DOWN),
    "host.crash": ("at: 300ms, fault: host.crash, target: b, for: 200ms", DOWN),
    "host.pause": ("at: 300ms, fault: host.pause, target: b, for: 100ms", QUIET),
    "adapter.die": ("at: 300ms, fault: adapter.die, target: b.ic0, for: 200ms", DOWN),
    "adapter.reset": ("at: 300ms, fault: adapter.reset, target: b.ic0", DOWN),
    "adapter.hang": ("at: 300ms, fault: adapter.hang, target: b.ic0, for: 200ms", DOWN),
    "adapter.slow": ("at: 300ms, fault: adapter.slow, target: b.ic0, delay: 200us, for: 200ms", QUIET),
    "adapter.port_down": ("at: 300ms, fault: adapter.port_down, target: b.ic0, for: 200ms", DOWN),
    "adapter.port_up": (
        "at: 300ms, fault: adapter.port_down, target: b.ic0}\n"
        "  - {at: 600ms, fault: adapter.port_up, target: b.ic0",
        DOWN,
    ),
    "adapter.qp_error": ("at: 300ms, fault: adapter.qp_error, target: b.ic0", REPAIRED),
    "adapter.retry_exhausted": ("at: 300ms, fault: adapter.retry_exhausted, target: b.ic0", REPAIRED),
    "adapter.cq_overrun": ("at: 300ms, fault: adapter.cq_overrun, target: b.ic0", DOWN),
    "adapter.cqe_delay": ("at: 300ms, fault: adapter.cqe_delay, target: b.ic0, delay: 5ms, for: 200ms", QUIET),
    "adapter.cqe_reorder": ("at: 300ms, fault: adapter.cqe_reorder, target: b.ic0, count: 20", QUIET),
    "adapter.cqe_lost": ("at: 300ms, fault: adapter.cqe_lost, target: b.ic0, side: send", REPAIRED),
    "adapter.doorbell_lost": ("at: 300ms, fault: adapter.doorbell_lost, target: b.ic0, count: 20", QUIET),
    "adapter.dma_stall": ("at: 300ms, fault: adapter.dma_stall, target: b.ic0, for: 100ms", DOWN),
    "adapter.dma_corrupt": ("at: 300ms, fault: adapter.dma_corrupt, target: b.ic0", CORRUPT),
    "adapter.stale_rkey": ("at: 300ms, fault: adapter.stale_rkey, target: b.ic0, for: 200ms", UNMET),
    "adapter.mr_deregister_in_flight": (
        "at: 300ms, fault: adapter.mr_deregister_in_flight, target: b.ic0", REPAIRED,
    ),
    "adapter.qpn_reuse": (f"at: 300ms, fault: adapter.qpn_reuse, target: b.ic0, for: 800ms{THEN_CUT}", DOWN),
    "adapter.psn_wrap": (f"at: 300ms, fault: adapter.psn_wrap, target: b.ic0, for: 800ms{THEN_CUT}", DOWN),
    "adapter.firmware_old": (f"at: 300ms, fault: adapter.firmware_old, target: b.ic0, for: 800ms{THEN_CUT}", DOWN),
    "adapter.atomic_duplicate": ("at: 300ms, fault: adapter.atomic_duplicate, target: b.ic0", UNMET),
}  # fmt: skip


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
    failed = {check.name: check.detail for check in result.checks if check.ok is False}
    faults = {fault.kind: fault for fault in result.outcome.evidence.faults}
    fault = faults[name]
    assert fault.at is not None
    if effect is UNMET:
        assert (result.verdict, fault.fired) == ("inconclusive", 0)
        return
    assert fault.fired > 0
    assert set(failed) == ({"mirror.no_committed_loss", "steps.hold"} if effect is CORRUPT else set()), failed
    assert result.verdict == ("fail" if effect is CORRUPT else "pass")
    assert (paths_lost(result) > 0) is (effect is DOWN)
    resent = sum(counters.get("retransmitted", 0) for counters in result.outcome.evidence.counters.values())
    if effect is RESENT:
        assert resent > 0
    if effect is REPAIRED:
        assert made_anew(result)


def made_anew(result: Result) -> bool:
    """Whether virtual interfaces were made anew, under a session that went on."""
    evidence = result.outcome.evidence
    assert not [entry for node in evidence.nodes for entry in evidence.of(node, Kind.ERROR_ALERT)]
    return any(evidence.of(node, Kind.VIS_FAILED) for node in evidence.nodes)


def path_came_back(result: Result) -> bool:
    """Whether each path that went down under load came up again under load."""
    evidence = result.outcome.evidence
    close_at = evidence.close_at or evidence.stopped_at
    for node in evidence.nodes:
        for lost in evidence.of(node, Kind.PATH_DOWN):
            ups = [entry.at for entry in evidence.of(node, Kind.PATH_UP) if entry.extra == lost.extra]
            if lost.at < close_at and not any(lost.at < up < close_at for up in ups):
                return False
    return True


def test_a_lost_completion_queue_costs_its_path_for_a_moment_only() -> None:
    # The manager kept the dead queue: every connection that was made on it afterwards heard nothing either.
    step = "at: 300ms, fault: adapter.cq_overrun, target: b.ic0"
    result = run(Scenario.parse(SCENARIO.format(step=step)), world="sim", seed=5)
    assert paths_lost(result) > 0
    assert path_came_back(result)


def test_a_lost_completion_that_no_other_follows_is_found_out() -> None:
    # With one request at a time nothing comes after the lost completion that could show the hole.
    text = SCENARIO.format(step="at: 300ms, fault: adapter.cqe_lost, target: b.ic0, side: send")
    text = text.replace("depth: 8", "depth: 1").replace("depth: 4", "depth: 1")
    result = run(Scenario.parse(text), world="sim", seed=5)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    assert made_anew(result)


def test_a_message_whose_completion_was_lost_does_not_hold_up_those_behind_it_for_good() -> None:
    # The receiver kept all later messages back for one that it would never see.
    step = "at: 300ms, fault: adapter.cqe_lost, target: b.ic1, side: receive, for: 1s"
    result = run(Scenario.parse(SCENARIO.format(step=step)), world="sim", seed=5)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    assert result.outcome.evidence.faults[0].fired == 1
    assert not made_anew(result), "the message is in its buffer, and the next completion shows that it came"


@pytest.mark.parametrize("seed", [1, 5])
def test_completions_of_one_queue_pair_in_the_wrong_order_are_not_believed(seed: int) -> None:
    step = "at: 300ms, fault: adapter.cqe_reorder, target: b.ic0, scope: within, delay: 20ms, count: 3, for: 1s"
    text = SCENARIO.format(step=step).replace("record: 4KiB", "record: 1KiB")
    result = run(Scenario.parse(text), world="sim", seed=seed)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    assert made_anew(result)


def test_a_path_does_not_return_to_old_firmware_and_does_when_it_is_new() -> None:
    step = f"at: 300ms, fault: adapter.firmware_old, target: b.ic0, for: 800ms{THEN_CUT}"
    result = run(Scenario.parse(SCENARIO.format(step=step)), world="sim", seed=5)
    evidence = result.outcome.evidence
    cleared = next(fault.cleared for fault in evidence.faults if fault.kind == "adapter.firmware_old")
    assert cleared is not None
    lost = min(entry.at for entry in evidence.of(1, Kind.PATH_DOWN))
    assert [entry.at > cleared for entry in evidence.of(1, Kind.PATH_UP) if entry.at > lost] == [True]
    assert path_came_back(result)


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
