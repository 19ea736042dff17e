"""The commands for labs that stay, as a user types them; each test has labs that nobody else sees (LAB_STATE_DIR)."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.station import wait_for

pytestmark = pytest.mark.netns
ROOT = Path(__file__).resolve().parents[2]
COMMAND_MAX_S = 60


class Shell:
    """Runs `lab` with a state directory of its own."""

    def __init__(self, state: Path) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "LAB_STATE_DIR": str(state), "PYTHONPATH": ":".join(filter(None, paths))}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lab", *arguments], capture_output=True, text=True, env=self.environment,
            timeout=COMMAND_MAX_S, check=False,
        )  # fmt: skip

    def json(self, *arguments: str) -> dict[str, object]:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer

    def labs(self) -> dict[str, dict[str, object]]:
        """By name, as `lab ps` tells."""
        rows = self.json("ps")["labs"]
        assert isinstance(rows, list)
        return {row["name"]: row for row in rows}


@pytest.fixture
def lab() -> Iterator[Shell]:
    directory = Path(tempfile.mkdtemp(prefix="lab-"))
    shell = Shell(directory)
    yield shell
    assert shell("down", "--all").returncode == 0
    shutil.rmtree(directory)


@pytest.fixture
def up(lab: Shell) -> Shell:
    """A pair called "p" stays up."""
    done = lab("up", "ha-pair", "--name", "p")
    assert done.returncode == 0, done.stderr
    return lab


def test_up_tells_what_there_is_and_stays(up: Shell) -> None:
    row = up.labs()["p"]
    assert (row["state"], row["topology"], row["nodes"]) == ("up", "ha-pair", ["a", "b"])
    assert "p " in up("ps").stdout
    again = up("up", "ha-pair", "--name", "p")
    assert again.returncode == 2
    assert "is up already" in again.stderr
    down = up("down", "p")
    assert (down.returncode, down.stdout) == (0, "p: ended\n")
    assert up.labs() == {}


def test_status_shows_paths_and_sessions_of_both_nodes(up: Shell) -> None:
    state = up.json("status", "p")
    nodes = state["nodes"]
    assert isinstance(nodes, dict)
    for node, partner in (("a", "b"), ("b", "a")):
        assert nodes[node]["adapters"] == {"ic0": "running", "ic1": "running"}
        seen = nodes[node]["host"]["partners"][partner]
        assert {path["state"] for path in seen["paths"]} == {"UP"}
        assert {session["state"] for session in seen["sessions"]} == {"READY"}
    text = up("status", "p").stdout
    assert "a.ic0 -- b.ic0" in text
    assert "nvram-mirror" in text


def test_a_program_runs_inside_the_node_and_gives_its_status(up: Shell) -> None:
    done = up("exec", "p", "a", "--", "sh", "-c", "ls /sys/class/net; echo $LAB $LAB_NODE; exit 7")
    assert done.returncode == 7
    assert done.stdout.split() == ["ic0", "ic1", "lo", "p", "a"]
    assert "ic0-0" in up("exec", "p", "fabric", "--", "ls", "/sys/class/net").stdout
    assert up("exec", "p", "a", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    missing = up("exec", "p", "a", "--", "no-such-program")
    assert (missing.returncode, "not found" in missing.stderr) == (127, True)
    assert up("exec", "p", "a").returncode == 2


def test_a_program_inside_has_the_terminal(up: Shell) -> None:
    here, there = pty.openpty()
    command = [sys.executable, "-m", "lab", "exec", "p", "b", "--", "sh", "-c", "test -t 0 && echo terminal"]
    done = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=up.environment)
    assert done.wait(COMMAND_MAX_S) == 0
    assert b"terminal" in os.read(here, 1000)
    os.close(here)
    os.close(there)


def test_logs_of_a_node_and_of_the_fabric(up: Shell) -> None:
    assert "host.started" in up("logs", "p", "a").stdout
    one = up("logs", "p", "a", "host")
    assert one.returncode == 0
    assert "  host  " not in one.stdout, "a single log needs no names in front"
    lines = [json.loads(line) for line in up("logs", "p", "a", "--json").stdout.splitlines()]
    assert {line["process"] for line in lines} == {"host", "ic0", "ic1"}
    assert [line["at_ns"] for line in lines] == sorted(line["at_ns"] for line in lines)
    assert lines[-1] == json.loads(up("logs", "p", "a", "--json", "-n", "1").stdout)
    assert up("logs", "p", "fabric").returncode == 0
    unknown = up("logs", "p", "a", "ic7")
    assert (unknown.returncode, "host, ic0, ic1" in unknown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("status", "q"), "lab"), (("down", "pp"), "lab"), (("logs", "p", "aa"), "node"),
        (("exec", "p", "fabrik", "--", "true"), "node"),
    ],
)  # fmt: skip
def test_wrong_names_get_a_suggestion(up: Shell, arguments: tuple[str, ...], meant: str) -> None:
    done = up(*arguments)
    assert done.returncode == 2
    assert f"no {meant} " in done.stderr
    assert "there is: " in done.stderr


def test_down_without_a_name_wants_to_know_which(up: Shell) -> None:
    assert up("up", "ha-pair", "--name", "q").returncode == 0
    done = up("down")
    assert (done.returncode, "p, q" in done.stderr) == (2, True)
    assert up("down", "q").returncode == 0
    assert up("down").stdout == "p: ended\n"
    assert up("down").returncode == 2


def test_what_a_killed_lab_left_is_shown_and_removed(up: Shell) -> None:
    row = up.labs()["p"]
    os.kill(int(str(row["pid"])), signal.SIGKILL)
    wait_for(lambda: up.labs()["p"]["state"] == "dead", "the lab is seen to be dead")
    assert Path(str(row["directory"])).exists()
    assert up("status", "p").returncode == 2
    done = up("down", "--all")
    assert (done.returncode, done.stdout) == (0, "p: removed what was left\n")
    assert not Path(str(row["directory"])).exists()


RUN = """
    import signal
    from lab.fabric.client import Fabric
    from lab.plan import Plan
    from lab.topology import Topology
    with Fabric.start(Plan(Topology.load("ha-pair")), adapters=False) as fabric:
        print(fabric.lab_id, flush=True)
        signal.pause()
"""


def test_down_all_leaves_a_run_in_progress_alone(lab: Shell) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN)], stdout=subprocess.PIPE, env=lab.environment, text=True
    )
    assert run.stdout is not None
    name = run.stdout.readline().strip()
    assert lab.labs()[name]["state"] == "running"
    assert lab("down", "--all").stdout == "no lab to end\n"
    assert lab.labs()[name]["state"] == "running"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    wait_for(lambda: lab.labs() == {}, "the run's lab ends with it")


def test_up_that_is_interrupted_leaves_nothing(lab: Shell) -> None:
    """Whenever it comes: here as soon as the lab can be seen."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "up", "ha-pair", "--name", "i"], env=lab.environment, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: "i" in lab.labs(), "the lab is there")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=COMMAND_MAX_S)
    if process.returncode == 0:
        pytest.skip("the lab was up before the interrupt came")
    assert (process.returncode, errors) == (130, b"lab: interrupted\n")
    assert lab.labs() == {}


def test_doctor_tells_what_the_machine_can_do(lab: Shell) -> None:
    answer = lab.json("doctor")
    assert answer["lab_runs"] is True
    found = answer["capabilities"]
    assert isinstance(found, list)
    assert {"root", "user namespaces", "AF_XDP", "netem", "docker", "tshark", "vagrant", "KVM"} <= {
        one["name"] for one in found
    }
    assert all(one["needed_for"] and (one["ok"] or (one["detail"] and one["how_to_get"])) for one in found)


def test_an_unknown_benchmark_is_refused(lab: Shell) -> None:
    done = lab("bench", "bring-upp")
    assert (done.returncode, 'did you mean "bring-up"' in done.stderr) == (2, True)
    assert "bring-up" in lab("bench", "--list").stdout
