"""The runner and the verdict, on a world that plays from a script."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from ccm.history import Kind
from lab.plan import Plan
from lab.report import new_directory, write_report
from lab.runner import Outcome, Progress, Runner
from lab.scenario import Scenario
from lab.topology import Topology
from lab.verdict import Result, judge
from tests.helpers.scripted_world import ScriptedWorld

Run = Callable[..., tuple[ScriptedWorld, Result]]


@pytest.fixture
def play() -> Run:
    """Runs a scenario that ships on the scripted world."""

    def run(name: str, misbehave: str = "", told: list[Progress] | None = None) -> tuple[ScriptedWorld, Result]:
        scenario, topology = Scenario.load(name), Topology.load("ha-pair")
        world = ScriptedWorld(Plan(topology), misbehave)
        outcome = Runner(scenario, topology, world.plan, world, (told if told is not None else []).append).run()
        return world, judge(scenario, topology.name, world.name, 7, outcome)

    return run


def failed(result: Result) -> list[str]:
    return [check.name for check in result.checks if check.ok is False]


def test_a_cable_cut_that_is_survived_passes(play: Run) -> None:
    told: list[Progress] = []
    world, result = play("cable-cut", told=told)
    assert result.verdict == "pass", result.checks
    assert world.faults == ["cable.cut", "cable.cut undone"]
    assert world.stopped == 1
    [fault] = result.to_json()["faults"]  # type: ignore[misc]
    assert fault["at_ms"] == pytest.approx(1000, abs=2)
    assert fault["cleared_ms"] == pytest.approx(1500, abs=4)
    assert [progress.phase for progress in told if progress.phase not in ("path", "alert")] == [
        "up", "ready", "load", "fault", "heal", "quiet", "stop", "close",
    ]  # fmt: skip


def test_recoveries_count_from_the_fault(play: Run) -> None:
    result = play("cable-cut")[1]
    assert len(result.recoveries) == 4
    for recovery in result.to_json()["recoveries"]:  # type: ignore[attr-defined]
        assert recovery["detected_ms"] == pytest.approx(1, abs=1)
        assert recovery["recovered_ms"] == pytest.approx(2, abs=2)


def test_a_host_that_boots_again_is_told_to_work_again(play: Run) -> None:
    world, result = play("host-restart")
    assert result.verdict == "pass", result.checks
    starts = result.outcome.evidence.of(world.ids["b"], Kind.HOST_STARTED)
    assert len(starts) == 2
    after = [e for e in result.outcome.evidence.of(world.ids["b"], Kind.COMMITTED) if e.at > starts[1].at]
    assert after


@pytest.mark.parametrize(
    ("misbehave", "check"),
    [
        ("never ready", "run.orderly"),
        ("never drains", "run.orderly"),
        ("never closes", "run.orderly"),
        ("loses a record", "mirror.no_committed_loss"),
        ("no fence", "fence.before_replay"),
        ("fence does not stand", "fence.before_replay"),
        ("leaks", "nothing.leaked"),
    ],
)
def test_what_goes_wrong_fails_the_run(play: Run, misbehave: str, check: str) -> None:
    world, result = play("cable-cut", misbehave)
    assert check in failed(result), result.checks
    assert result.verdict == "fail"
    assert result.exit_status == 1
    assert world.stopped == 1


def test_a_frame_that_never_came_makes_the_verdict_inconclusive(play: Run) -> None:
    _, result = play("write-dropped", "never fires")
    assert result.verdict == "inconclusive"
    assert result.exit_status == 4
    assert any(check.name == "faults.fired" and check.ok is None for check in result.checks)


def test_a_frame_that_came_is_the_fault(play: Run) -> None:
    _, result = play("write-dropped")
    assert result.verdict == "pass", result.checks
    [fault] = result.outcome.evidence.faults
    assert fault.fired == 1


@pytest.mark.parametrize(("misbehave", "error"), [("interrupted", KeyboardInterrupt), ("start fails", RuntimeError)])
def test_the_world_is_taken_down_in_every_way_of_ending(misbehave: str, error: type[BaseException]) -> None:
    scenario, topology = Scenario.load("cable-cut"), Topology.load("ha-pair")
    world = ScriptedWorld(Plan(topology), misbehave)
    kept = []
    with pytest.raises(error):
        Runner(scenario, topology, world.plan, world, before_stop=lambda: kept.append(world.stopped)).run()
    assert kept == [0]
    assert world.stopped == 1


def test_the_json_object_has_the_keys_of_the_contract(play: Run) -> None:
    result = json.loads(json.dumps(play("cable-cut")[1].to_json()))
    assert list(result) == [
        "scenario", "topology", "world", "wire", "seed", "verdict", "checks", "faults", "recoveries", "workload",
        "timings_ms", "schedule_hash", "report",
    ]  # fmt: skip
    assert set(result["checks"][0]) == {"name", "ok", "exercised", "detail"}
    assert set(result["faults"][0]) == {"id", "kind", "target", "at_ms", "cleared_ms", "fired"}
    assert set(result["recoveries"][0]) == {
        "fault", "node", "partner", "client", "detected_ms", "recovered_ms", "epoch",
    }  # fmt: skip
    assert set(result["workload"]) == {"nvram-mirror", "echo"}
    assert set(result["workload"]["echo"]) == {"committed", "lost", "p50_us", "p99_us", "longest_gap_ms"}
    assert set(result["timings_ms"]) == {"bring_up", "ready", "run", "teardown"}


def test_an_overloaded_machine_is_named_where_time_matters(play: Run) -> None:
    result = play("cable-cut")[1]
    outcome: Outcome = result.outcome
    outcome.evidence.suspensions = ("host a was not run for 700 ms",)
    judged = judge(result.scenario, "ha-pair", "scripted", 7, outcome)
    details = {check.name: check.detail for check in judged.checks}
    assert "overloaded" in details["sessions.recovered"]
    assert "overloaded" not in details["mirror.no_committed_loss"]


def test_a_run_directory_has_everything(play: Run, tmp_path: Path) -> None:
    result = play("both-cables-cut")[1]
    write_report(result, Topology.load("ha-pair"), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["report"] == str(tmp_path)
    schedule = json.loads((tmp_path / "schedule.json").read_text())
    assert [step["fault"] for step in schedule["steps"]] == ["cable.cut", "cable.cut"]
    assert "nodes:" in schedule["topology_text"]
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert {"kind": "host_started", "node": "a", "incarnation": 1}.items() <= lines[0].items()
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert int(suite.attrib["tests"]) == len(result.checks)
    assert json.loads((tmp_path / "versions.json").read_text())["python"]
    page = (tmp_path / "report.html").read_text()
    for outside in ("http://", "https://", "<script", "@import"):
        assert outside not in page.replace("http://www.w3.org/2000/svg", "")
    assert "cable.cut ic1" in page


def test_directories_of_runs_in_the_same_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {new_directory("cable-cut", 7, None) for _ in range(5)}
    assert len(made) == 5
    assert new_directory("cable-cut", 7, str(tmp_path / "x")) == tmp_path / "x"
    several = {new_directory("cable-cut", 7, str(tmp_path / "y"), several=True) for _ in range(2)}
    assert len(several) == 2


def test_lab_run_refuses_a_world_that_there_is_not(tmp_path: Path) -> None:
    import sys

    command = [sys.executable, "-m", "lab", "run", "cable-cut", "--world", "mars"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "expected one of sim, netns, docker" in done.stderr
