"""The scenarios that ship, in the simulator: each passes with many seeds, and a seed is the whole run.

LAB_SIM_SEEDS=200 runs as many seeds of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.api import run
from lab.errors import LabError
from lab.scenario import Scenario
from lab.topology import Topology

SHIPPED = (
    "adapter-hang", "adapter-reset", "both-cables-cut", "cable-blackhole", "cable-cut", "cq-overrun", "cqe-delayed",
    "cqe-lost", "dma-stall", "doorbell-lost", "firmware-old", "host-restart", "nak-forged", "port-down", "psn-wrap",
    "path-mtu", "retry-exhausted", "write-dropped",
)  # fmt: skip
SEEDS = int(os.environ.get("LAB_SIM_SEEDS", "4"))
RUN_TIMEOUT_S = 120


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_shipped_scenarios_pass(name: str, seed: int) -> None:
    result = run(name, world="sim", seed=seed)
    wrong = [check for check in result.checks if check.ok is not True and check.name != "fence.before_replay"]
    assert result.verdict == "pass", f"seed {seed}: {wrong}"


@pytest.mark.parametrize("name", ["cable-cut", "host-restart"])
def test_a_cluster_of_four_behind_switches_passes_too(name: str) -> None:
    cluster = Topology.load("quad-switched")
    text = Path(str(Scenario.load(name).source)).read_text(encoding="utf-8")
    text = text.replace("target: ic0", "target: a-left").replace("topology: ha-pair", "topology: quad-switched")
    result = run(Scenario.parse(text, cluster), topology=cluster, world="sim", seed=3)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]


def played(directory: Path, name: str, seed: int, hash_seed: int) -> tuple[dict[str, object], str]:
    """The result and the history of a run in a process of its own."""
    report = directory / f"{name}-{hash_seed}"
    command = [sys.executable, "-m", "lab", "run", name, "--world", "sim", "--seed", str(seed), "--json"]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command += ["--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), (report / "history.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["both-cables-cut", "nak-forged"])
def test_a_seed_is_the_same_run_in_every_process(tmp_path: Path, name: str) -> None:
    first, first_history = played(tmp_path, name, 11, hash_seed=1)
    second, second_history = played(tmp_path, name, 11, hash_seed=4242)
    assert first["schedule_hash"] == second["schedule_hash"]
    assert first_history == second_history
    for key in ("checks", "faults", "recoveries", "workload"):
        assert first[key] == second[key]


def test_a_history_that_is_full_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.sim.node.HISTORY_RECORDS", 500)
    with pytest.raises(LabError, match=r"500 records.* at a lower rate"):
        run("cable-cut", world="sim", seed=1)


def test_another_seed_is_another_run() -> None:
    hashes = {run("write-dropped", world="sim", seed=seed).schedule_hash for seed in (1, 2)}
    assert len(hashes) == 2
