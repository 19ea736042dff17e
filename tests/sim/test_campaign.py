"""Campaigns: random faults in the simulator, failures recorded, replayed and shrunk.

LAB_SIM_SCHEDULES makes as many runs here; the nightly session makes 10,000 with `lab campaign`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ccm.failover import Failover
from ccm.history import Kind
from lab.api import run
from lab.campaign.generate import random_scenario
from lab.campaign.runs import run_all, run_one, tasks_of
from lab.cli import main
from lab.errors import LabError
from lab.scenario import Scenario
from lab.topology import Topology

PAIR = Topology.load("ha-pair")
SCHEDULES = int(os.environ.get("LAB_SIM_SCHEDULES", "100"))
AT_ONCE = 20
"""Schedules of one test: a failure tells its seed, and pytest-xdist spreads them."""


@pytest.mark.parametrize("first", range(0, SCHEDULES, AT_ONCE))
def test_random_faults_break_nothing(first: int, tmp_path: Path) -> None:
    report = Path(os.environ.get("LAB_SIM_REPORT", str(tmp_path)))
    tasks = tasks_of(PAIR, None, world="sim", seed=first, runs=min(AT_ONCE, SCHEDULES - first), report=report)
    wrong = [ran for ran in run_all(list(tasks), 1, lambda ran: None) if ran.verdict != "pass"]
    assert not wrong, "\n".join(f"seed {ran.seed}: {ran.problems}; lab replay {ran.report}" for ran in wrong)


def test_a_cluster_behind_switches_survives_random_faults() -> None:
    tasks = tasks_of(Topology.load("quad-switched"), None, world="sim", seed=1, runs=2, report=None)
    assert [ran.problems for ran in run_all(list(tasks), 1, lambda ran: None)] == [(), ()]


def test_several_processes_find_the_same() -> None:
    tasks = list(tasks_of(PAIR, None, world="sim", seed=40, runs=3, report=None))
    alone, together = (run_all(tasks, jobs, lambda ran: None) for jobs in (1, 2))
    assert [(ran.seed, ran.schedule_hash) for ran in alone] == [(ran.seed, ran.schedule_hash) for ran in together]


def test_one_fault_more_leaves_everything_before_it_as_it_was() -> None:
    text = """
scenario: earlier
topology: ha-pair
workload: {{echo: {{record: 512B, depth: 2, rate: 50/s}}}}
steps:
  - {{at: 100ms, fault: cable.drop, target: ic1, probability: 0.3, for: 300ms}}
  - {{at: 500ms, fault: cable.cut, target: ic0, for: 50ms}}
{more}
expect: {{alerts.exactly_once: {{}}}}
"""
    more = "  - {at: 700ms, fault: cable.duplicate, target: ic1, probability: 0.5, for: 50ms}"
    runs = [run(Scenario.parse(text.format(more=extra)), world="sim", seed=6) for extra in ("", more)]
    without, with_it = ([each for each in one.outcome.evidence.entries if each.at < _at(runs[1], 2)] for one in runs)
    assert len(without) > 100
    assert without == with_it
    assert _at(runs[0], 1) == _at(runs[1], 1)


def _at(result: object, fault: int) -> int:
    at = result.outcome.evidence.faults[fault].at  # type: ignore[attr-defined]
    assert isinstance(at, int)
    return at


@pytest.mark.needs_plain
def test_a_failure_is_recorded_replayed_and_shrunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A replay that does not wait for its fence: found by random faults, and two or three of them are enough."""
    monkeypatch.setattr(Failover, "_start_fence", lambda self, path, *, now: self._leave_fencing(path, now=now))
    tasks = tasks_of(PAIR, None, world="sim", seed=0, runs=20, report=tmp_path)
    failed = next(ran for ran in map(run_one, tasks) if ran.verdict == "fail" and ran.faults > 1)
    assert failed.report is not None
    assert main(["replay", failed.report, "--report", str(tmp_path / "again")]) == 1
    assert "the same run, to the bit" in capsys.readouterr().out
    assert main(["shrink", failed.report]) == 0
    shrunk = json.loads((Path(failed.report) / "schedule.shrunk.json").read_text(encoding="utf-8"))
    assert 1 <= len(shrunk["steps"]) <= min(3, failed.faults)
    monkeypatch.undo()
    assert main(["shrink", failed.report]) == 1
    assert "does not fail" in capsys.readouterr().out


@pytest.mark.needs_plain
def test_an_error_in_a_run_is_a_failure_that_can_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, path: object, *, now: int) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(Failover, "_start_fence", broken)
    tasks = tasks_of(PAIR, None, world="sim", seed=0, runs=20, report=tmp_path)
    ran = next(ran for ran in map(run_one, tasks) if ran.problems)
    assert ran.problems == ("AssertionError: a defect",)
    assert ran.report is not None
    assert (Path(ran.report) / "error.txt").read_text(encoding="utf-8").startswith("Traceback")
    with pytest.raises(AssertionError, match="a defect"):
        main(["replay", ran.report, "--report", str(tmp_path / "again")])


def test_random_faults_are_noticed() -> None:
    """Schedules that nobody notices would prove nothing."""
    noticed = 0
    for seed in range(5):
        result = run(random_scenario(PAIR, seed), topology=PAIR, world="sim", seed=seed)
        noticed += any(entry.kind == Kind.PATH_DOWN for entry in result.outcome.evidence.entries)
    assert noticed >= 3


def test_a_run_that_ends_its_process_ends_the_campaign_with_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compiled code may, when it fails badly."""
    monkeypatch.setattr("lab.campaign.runs.run_one", lambda task: os._exit(9))
    tasks = list(tasks_of(PAIR, None, world="sim", seed=40, runs=3, report=None))
    with pytest.raises(LabError, match=r"a run ended its process; it is among the seeds \[40, 41, 42\]"):
        run_all(tasks, 2, lambda ran: None)
