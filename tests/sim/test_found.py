"""What random schedules found: the schedule that showed it, cut down, and its story."""

from __future__ import annotations

import pytest

from ccm.history import Kind
from lab.api import run
from lab.scenario import Scenario
from lab.topology import Topology
from lab.verdict import Result


def play(steps: str, seed: int) -> Result:
    """A pair under load with these faults."""
    text = f"""
scenario: found
topology: ha-pair
workload:
  nvram-mirror: {{record: 4KiB, depth: 8, rate: 400/s}}
  echo: {{record: 512B, depth: 4, rate: 100/s}}
steps:
{steps}
expect: {{alerts.exactly_once: {{}}}}
"""
    return run(Scenario.parse(text), world="sim", seed=seed)


def wrong(result: Result) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in result.checks if check.ok is False]


def test_a_host_boots_while_one_of_its_adapters_is_dead() -> None:
    """Seed 1017: the host crashed after its adapter had died, and came back before a new adapter was in. It has to
    come up with the other one, and to take the new one into use when it is there.
    """
    result = play(
        """
  - {at: 100ms, fault: adapter.die, target: b.ic0, for: 900ms}
  - {at: 200ms, fault: host.crash, target: b, for: 100ms}
""",
        seed=1017,
    )
    assert not wrong(result)
    evidence = result.outcome.evidence
    replaced_at = evidence.faults[0].cleared
    assert replaced_at is not None
    assert any(entry.extra == 0 and entry.at > replaced_at for entry in evidence.of(2, Kind.PATH_UP))


def test_a_path_over_a_long_cable_stays_up() -> None:
    """Beside a short one it was given up before its first probe could be answered, each time that it came up: a limit
    of 16 ms stood where nothing was measured yet, and its answers take 50.
    """
    topology = Topology.parse(LONG_AND_SHORT)
    scenario = Scenario.parse(
        "scenario: long\ntopology: long-and-short\nworkload: {echo: {record: 512B, depth: 2, rate: 50/s}}\n"
        "steps: [{at: 2s, fault: cable.drop, target: ic1, count: 1, for: 10ms}]\nexpect: {alerts.exactly_once: {}}\n",
        topology,
    )
    result = run(scenario, topology=topology, world="sim", seed=1)
    assert not wrong(result)
    evidence = result.outcome.evidence
    assert evidence.close_at is not None
    for node in evidence.nodes:
        assert {entry.extra for entry in evidence.of(node, Kind.PATH_UP)} == {0, 1}
        assert not [entry for entry in evidence.of(node, Kind.PATH_DOWN) if entry.at < evidence.close_at]


def test_a_record_whose_completion_was_lost_does_not_hold_up_those_that_follow() -> None:
    """Seed 52101: the write of one record completed without telling so, and what was published after it in its slot
    (virtual interfaces made anew after a fault) waited for that completion for ever. The next request shows it.
    """
    for seed in (0, 4):
        assert not wrong(
            play(
                """
  - {at: 500ms, fault: adapter.qp_error, target: b.ic1, qp: client, count: 4}
  - {at: 500500us, fault: adapter.cqe_lost, target: a.ic0, qp: path, side: send, count: 1, for: 400ms}
""",
                seed,
            )
        )


@pytest.mark.parametrize("lost", [2, 3])
def test_a_path_whose_probe_lost_its_completion_is_asked_again(lost: int) -> None:
    """Seed 52110: while work went on the path never fell silent, so the probe under way was waited for without end; no
    other one showed that the record behind it was written.
    """
    result = play(
        f"""
  - {{at: 300ms, fault: adapter.cqe_lost, target: a.ic0, qp: path, side: send, count: {lost}, for: 400ms}}
  - {{at: 500ms, fault: adapter.qp_error, target: b.ic1, qp: client, count: 4}}
""",
        seed=52110,
    )
    assert not wrong(result)
    assert not result.outcome.evidence.of(1, Kind.PATH_DOWN), "nor was the path at fault"


@pytest.mark.parametrize("seed", [4, 5, 18])
def test_a_path_that_is_fenced_while_it_is_being_made_anew_is_made_with_that_fence(seed: int) -> None:
    """Seed 441: one side had lost the path and was connecting it again, the first large packets of which were lost,
    when the other, whose host had been held up, fenced it late. The path came up with the fence epoch from before
    that: the card refused all that arrived on it, and the next fence asked for an epoch that stood already.
    """
    result = play(
        """
  - {at: 1s, fault: host.pause, target: b, for: 300ms}
  - {at: 1010ms, fault: cable.corrupt, target: ic1, probability: 0.4, for: 400ms}
""",
        seed,
    )
    assert not wrong(result)


@pytest.mark.parametrize("silent_at", [90, 95, 100])
def test_a_path_that_falls_silent_does_not_hold_up_the_records_of_the_next(silent_at: int) -> None:
    """Seed 415: one path had come back, and what was to be told of its virtual interfaces was under way on the other
    when that fell silent. Both waited: for the silent one until it was given up, with all sessions.
    """
    result = play(
        f"""
  - {{at: 1s, fault: adapter.reset, target: b.ic1}}
  - {{at: {1000 + silent_at}ms, fault: cable.blackhole, target: ic0, for: 1s}}
""",
        seed=1,
    )
    assert not wrong(result)
    assert not result.outcome.evidence.of(1, Kind.ERROR_ALERT), "the path that had come back takes the sessions over"


@pytest.mark.parametrize("seed", [1248, 0, 5])
def test_a_fence_that_a_lost_card_raised_is_known_when_the_card_is_back(seed: int) -> None:
    """Seed 1248: a fence was acknowledged by a card that had hung and that its host had given up. Nobody told the host;
    it made the fenced path anew below the fence, so that all that arrived there was refused.
    """
    result = play(
        """
  - {at: 21ms, fault: adapter.hang, target: b.ic1, for: 379ms}
  - {at: 252ms, fault: adapter.reset, target: b.ic0}
""",
        seed,
    )
    assert not wrong(result)


@pytest.mark.parametrize("seed", [4904, 0])
def test_what_is_opened_on_a_path_that_is_silent_waits_for_its_end(seed: int) -> None:
    """Seeds 3999 and 4904: virtual interfaces were made on the one path that was up. It was silent, so nothing could
    be published, until it was given up after 400 ms: the check took them for lost after 250.
    """
    result = play(
        """
  - {at: 20559us, fault: adapter.hang, target: b.ic0, for: 988ms}
  - {at: 50223us, fault: cable.cut, target: ic1, for: 8135us}
""",
        seed,
    )
    assert not wrong(result)


LONG_AND_SHORT = """
name: long-and-short
nodes:
  a: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}
  b: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}
cables:
  ic0: {ends: [a.ic0, b.ic0], delay: 25ms}
  ic1: [a.ic1, b.ic1]
"""
