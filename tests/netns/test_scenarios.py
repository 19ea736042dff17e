"""The scenarios that ship, for real: namespaces, processes, frames. Run through the command line, as a user does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lab.fabric import registry
from tests.helpers.attempts import judged_on_a_steady_machine

SHIPPED = (
    "cable-cut", "both-cables-cut", "cable-blackhole", "host-restart", "write-dropped", "nak-forged", "adapter-hang",
    "cq-overrun", "cqe-lost", "firmware-old", "path-mtu", "port-down",
)  # fmt: skip
RUN_TIMEOUT_S = 120
PARALLEL = 3
CLIENTS = {"nvram-mirror", "echo"}

pytestmark = [pytest.mark.netns, pytest.mark.alone]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lab", "run", *arguments]


def play(tmp_path: Path, *arguments: str) -> Mapping[str, object]:
    return judged_on_a_steady_machine(lambda attempt: play_once(tmp_path, *arguments))


def play_once(tmp_path: Path, *arguments: str) -> dict[str, object]:
    shutil.rmtree(tmp_path / "report", ignore_errors=True)
    done = subprocess.run(
        command(*arguments, "--json", "--report", str(tmp_path / "report")),
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == {"pass": 0, "fail": 1, "inconclusive": 4}[str(result["verdict"])]
    return result


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scenarios_pass(tmp_path: Path, name: str) -> None:
    result = play(tmp_path, name)
    assert result["verdict"] == "pass", result["checks"]
    workload = result["workload"]
    assert isinstance(workload, dict)
    assert set(workload) == CLIENTS
    assert all(numbers["committed"] > 100 and numbers["lost"] == 0 for numbers in workload.values())
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "report" / "nodes" / "a" / "host.log").is_file()


def test_a_cut_is_recovered_by_each_client_on_each_side(tmp_path: Path) -> None:
    result = play(tmp_path, "cable-cut", "--wire", "packet")
    assert result["verdict"] == "pass", result["checks"]
    recoveries = result["recoveries"]
    assert isinstance(recoveries, list)
    assert {(row["node"], row["client"]) for row in recoveries} == {(n, c) for n in "ab" for c in CLIENTS}
    assert all(0 < row["detected_ms"] <= row["recovered_ms"] for row in recoveries)


def test_runs_beside_each_other_do_not_disturb_each_other(tmp_path: Path) -> None:
    def play_beside(attempt: int) -> Mapping[str, object]:
        """The worst result of PARALLEL runs at once."""
        runs = [
            subprocess.Popen(
                command("cable-cut", "--json", "--report", str(tmp_path / f"{attempt}-{number}")),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(PARALLEL)
        ]  # fmt: skip
        results: list[Mapping[str, object]] = []
        for process in runs:
            output, errors = process.communicate(timeout=RUN_TIMEOUT_S)
            assert output, errors
            results.append(json.loads(output))
        return min(results, key=lambda result: result["verdict"] == "pass")

    result = judged_on_a_steady_machine(play_beside)
    assert result["verdict"] == "pass", result["checks"]


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory for the labs of one test. Not below `tmp_path`: names of sockets have no room for so long a path."""
    with tempfile.TemporaryDirectory(prefix="labs-") as directory:
        yield Path(directory)


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_everything_down(tmp_path: Path, state: Path, way: signal.Signals) -> None:
    environment = {**os.environ, registry.STATE_VARIABLE: str(state)}
    run = command("cable-cut", "--report", str(tmp_path / "report"))
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        wait_for_load(process)
        [lab] = [path for path in state.iterdir() if path.is_dir()]
        fabric = int(json.loads((lab / "lab.json").read_text(encoding="utf-8"))["pid"])
        process.send_signal(way)
        output, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert not lab.exists()
    assert not Path(f"/proc/{fabric}").exists()


def wait_for_load(process: subprocess.Popen[str]) -> None:
    """Until the run says that its load has begun."""
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        if "  load " in line:
            return
        told.append(line)
    pytest.fail(f"the run ended before its load began:\n{''.join(told)}")


@pytest.mark.root
def test_without_root_it_runs_in_a_user_namespace(tmp_path: Path) -> None:
    """In a namespace in which this process is an ordinary user."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare (util-linux)")
    as_user = [unshare, "--user", "--map-user=1000", "--map-group=1000"]
    run = command("cable-cut", "--json", "--report", str(tmp_path / "report"))
    done = subprocess.run([*as_user, *run], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "pass", result["checks"]
    assert result["wire"] == "packet"
