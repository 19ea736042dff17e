"""What random schedules found: the schedule that showed it, cut down, and its story."""

from __future__ import annotations

from ccm.history import Kind
from lab.api import run
from lab.scenario import Scenario
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
