"""The command line: help, errors and exit statuses, as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
import pytest
import yaml

from lab.cli import command_names, help_line, main
from lab.errors import InputError, MachineError
from lab.resources import shipped, topologies_directory

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = ("scapy", "pyroute2", "pydantic", "docker", "rich", "yaml", "asyncio", "emul", "ccm")


def lab(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs the command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_command_with_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in command_names():
        assert help_line(name), f"{name} has no HELP"
        assert f"  {name} " in shown


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: lab COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["vlaidate"]])
def test_the_overview_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom lab.cli import main\nmain(sys.argv[1:])\n"
        f"print(sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", command_names())
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: lab {name}" in capsys.readouterr().out


def test_a_misspelt_command_suggests_the_nearest() -> None:
    result = lab("vlaidate")
    assert result.returncode == 2
    assert (
        result.stderr == 'lab: unknown command "vlaidate" (did you mean validate?); `lab --help` lists the commands\n'
    )


def test_validate_says_what_it_found() -> None:
    result = lab("validate", "ha-pair", "cable-cut", str(topologies_directory() / "quad-switched.yaml"))
    assert result.returncode == 0
    assert result.stdout.splitlines()[:2] == [
        "ha-pair: topology ha-pair, 2 nodes, 2 cables, 0 switches",
        "cable-cut: scenario cable-cut on ha-pair, 1 step, 5 expectations",
    ]
    assert result.stderr == ""


@pytest.mark.parametrize("kind", ["topology", "scenario"])
def test_everything_that_ships_is_valid(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *shipped(kind)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(shipped(kind))


def test_mistakes_are_shown_with_the_line_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\nnodes:\n  a: {adapters: [ic0], nvarm: 16MiB}\n  b: {nvram: 3 B}\n")
    (tmp_path / "worse.yaml").write_text("name: worse\nnodes: [\n")
    result = lab("validate", "bad.yaml", "ha-pair", "worse.yaml", "none.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == "ha-pair: topology ha-pair, 2 nodes, 2 cables, 0 switches\n"
    assert result.stderr == (
        'lab: bad.yaml:3:24: unknown key "nvarm" (did you mean nvram?)\n'
        "      a: {adapters: [ic0], nvarm: 16MiB}\n"
        "                           ^\n"
        "lab: worse.yaml:3:1: not valid YAML: did not find expected node content (while parsing a flow node)\n"
        "lab: none.yaml: no such file\n"
    )


def test_an_unknown_scenario_or_topology_suggests_the_nearest() -> None:
    result = lab("validate", "cable-ctu")
    assert result.returncode == 2
    assert result.stderr == 'lab: no scenario "cable-ctu" ships, and there is no such file (did you mean cable-cut?)\n'


@pytest.mark.parametrize("kind", ["topology", "scenario"])
def test_the_schema_accepts_what_ships_and_refuses_what_is_misspelt(kind: str) -> None:
    schema = json.loads(lab("schema", kind).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for file in shipped(kind).values():
        # The lab reads YAML 1.2, where `on` is a word.
        document = yaml.load(file.read_text(), Loader=yaml.BaseLoader)
        document = _numbers(document)
        validator.validate(document)
        assert list(validator.iter_errors({**document, "cabels": {}}))


def test_the_schema_of_a_step_knows_its_keys() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(lab("schema", "scenario").stdout))
    step = {"at": "1s", "fault": "cable.cut", "target": "ic0", "for": "500ms"}
    scenario = {"scenario": "x", "topology": "ha-pair", "steps": [step], "expect": {"nothing.leaked": {}}}
    validator.validate(scenario)
    for wrong in ({"targte": "ic0"}, {"fault": "cable.snip"}, {"at": 1}, {"on": {"session": "ready"}}):
        assert list(validator.iter_errors({**scenario, "steps": [{**step, **wrong}]})), wrong


def _numbers(value: object) -> object:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return int(value) if isinstance(value, str) and value.isdigit() else value


@pytest.mark.parametrize("name", sorted(shipped("topology")))
def test_graph_draws_every_node_switch_adapter_and_cable(name: str, tmp_path: Path) -> None:
    from lab.topology import Topology

    file = tmp_path / "drawing.svg"
    assert main(["graph", name, "-o", str(file)]) == 0
    drawing = ElementTree.fromstring(file.read_text())
    words = ["".join(element.itertext()) for element in drawing.iter() if element.tag.endswith("}text")]
    titles = ["".join(element.itertext()) for element in drawing.iter() if element.tag.endswith("}title")]
    topology = Topology.load(name)
    assert {*topology.nodes, *topology.switches} <= set(words)
    assert {adapter for node in topology.nodes.values() for adapter in node.adapters} <= set(words)
    assert set(topology.cables) <= set(titles)


def test_graph_to_a_place_that_is_not_there(tmp_path: Path) -> None:
    result = lab("graph", "ha-pair", "-o", str(tmp_path / "none" / "x.svg"))
    assert result.returncode == 2
    assert "can't be written: No such file or directory" in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "lab: interrupted\n"),
        (MachineError("no user namespaces", "run as root"), 3, "lab: no user namespaces\n  to get it: run as root\n"),
        (InputError("f.yaml", 1, 2, "expected this"), 2, "lab: f.yaml:1:2: expected this\n"),
    ],
)
def test_errors_become_exit_statuses(
    error: BaseException, status: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("lab.cli._dispatch", fail)
    assert main(["validate"]) == status
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_an_interrupt(number: int, tmp_path: Path) -> None:
    # The command waits to open a pipe that nobody writes to, when the signal comes.
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    code = "import lab.yaml_tree, os\nfrom lab.cli import main\nprint('ready', flush=True)\nraise SystemExit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "validate", str(pipe)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if _handles(process.pid, number) and _sleeps(process.pid):
                process.send_signal(number)
            time.sleep(0.01)
        assert process.wait(timeout=5) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "lab: interrupted\n"


def _handles(pid: int, number: int) -> bool:
    caught = next(line for line in _status(pid) if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _sleeps(pid: int) -> bool:
    return any(line.startswith("State:\tS") for line in _status(pid))


def _status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


def test_whoever_stops_reading_is_not_told_of_it() -> None:
    command = f"{sys.executable} -m lab schema scenario | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "{\n"
    assert result.stderr == ""
