"""Clients of one's own in a topology: found, checked before anything starts, run by hosts, seen in the verdict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ccm import Client
from ccm.history import Kind
from lab import Lab, Scenario, run
from lab.campaign.record import load_record
from lab.errors import InputError
from lab.own_clients import ENTRY_POINTS
from lab.topology import Topology

CODE = '''
from ccm import Client, Needs

class Quiet(Client):
    """Does nothing, readily."""
    name = "quiet"

    def __init__(self, loud: bool = False, times: int = 1) -> None:
        self.loud = loud
        self.times = times

    def on_boot(self, node, now):
        node.log("hello", {"times": self.times})

class Other(Client):
    name = "other"

class Stubborn(Client):
    name = "quiet"

    def __init__(self):
        raise RuntimeError("not today")

no_class = 5

def function():
    pass
'''
BROKEN = "import struct\n\nimport no_such_module_anywhere\n"
PAIR = """name: own
nodes:
  a: {{adapters: [ic0], nvram: 1MiB, clients: [echo, quiet]}}
  b: {{adapters: [ic0], nvram: 1MiB, clients: [echo, quiet]}}
cables:
  ic0: [a.ic0, b.ic0]
client_code:
  quiet: {reference}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with clients."""
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("x = (\n", encoding="utf-8")
    (tmp_path / "leaves.py").write_text("import os\nos._exit(5)\n", encoding="utf-8")
    (tmp_path / "exits.py").write_text("raise SystemExit('no')\n", encoding="utf-8")
    (tmp_path / "chatty.py").write_text("print('hello')\n" + CODE, encoding="utf-8")
    return tmp_path


def topology(place: Path, reference: str) -> Path:
    file = place / "own.yaml"
    file.write_text(PAIR.format(reference=reference), encoding="utf-8")
    return file


def message(place: Path, reference: str) -> str:
    with pytest.raises(InputError) as caught:
        Topology.load(topology(place, reference))
    text = str(caught.value)
    assert text.startswith(f"{place}/own.yaml:8:")
    return text.split(": ", 1)[1]


def test_the_shipped_example_runs_with_its_sessions_in_the_verdict() -> None:
    result = run("own-client", world="sim", seed=3)
    assert result.verdict == "pass"
    evidence = result.outcome.evidence
    assert evidence.clients[4] == "shared-counter"
    assert {(s.node, s.partner) for s in evidence.sessions if s.client == 4} == {(1, 2), (2, 1)}
    told = [e for e in evidence.entries if e.client == 4 and e.node == 1 and e.kind is Kind.READY_ALERT]
    assert len(told) == 2 and told[0].epoch < told[1].epoch, "before and after the partner's crash"


@pytest.mark.parametrize("reference", ["mine.py:Quiet", "mine:Quiet", "chatty.py:Quiet"])
def test_a_client_is_found_by_file_and_by_module(place: Path, reference: str) -> None:
    with Lab(Topology.load(topology(place, reference)), world="sim", seed=1) as lab:
        lab.wait_ready()
        status: Any = lab.hosts["a"].ask({"op": "status"})
        assert status["clients"]["quiet"] == {
            "state": "running", "exceptions": 0, "last_exception": "", "partners": None
        }  # fmt: skip
        sessions = status["partners"]["b"]["sessions"]
        assert {s["client"]: s["state"] for s in sessions} == {"echo": "READY", "quiet": "READY"}
    for name in ("mine", "chatty"):
        sys.modules.pop(name, None)


def test_options_reach_the_constructor(place: Path) -> None:
    loaded = Topology.load(topology(place, "{code: mine.py:Quiet, options: {loud: true, times: 3}}"))
    assert loaded.own_clients[0].options == {"loud": True, "times": 3}
    with Lab(loaded, world="sim", seed=1) as lab:
        lab.wait_ready()


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("mine", 'client quiet: expected package.module:Class or FILE.py:Class, found "mine"'),
        ("rm -rf /tmp/x; true:Quiet", "client quiet: expected package.module:Class or FILE.py:Class, found"),
        ("mine.py:Quite", "client quiet: {place}/mine.py has no Quite; clients there: Quiet, Other, Stubborn"),
        ("mine.py:no_class", "client quiet: expected a subclass of ccm.Client, found no_class, a int"),
        ("mine.py:function", "client quiet: expected a subclass of ccm.Client, found function, a function"),
        ("pathlib:Path", "client quiet: expected a subclass of ccm.Client, found Path, another class"),
        ("mine.py:Other", 'client quiet: Other calls itself "other", expected name = "quiet"'),
        ("none.py:Quiet", "client quiet: importing {place}/none.py failed: FileNotFoundError"),
        ("no_such_package.clients:Quiet", "importing no_such_package.clients failed: ModuleNotFoundError"),
        ("broken.py:Quiet", "failed at {place}/broken.py:3: ModuleNotFoundError: No module named 'no_such_module"),
        ("wrong.py:Quiet", "failed at {place}/wrong.py:1: SyntaxError: '(' was never closed"),
        ("exits.py:Quiet", "importing {place}/exits.py failed at {place}/exits.py:1: SystemExit: no"),
        ("leaves.py:Quiet", "client quiet: importing it ended the process with status 5"),
        ("{{code: mine.py:Quiet, options: {{soft: 1}}}}", "times: int = 1) -> None can't be made with soft=1"),
        ("{{code: mine.py:Quiet, options: {{times: [1]}}}}", "option times: expected text, a number, true or false"),
        ("{{codes: mine.py:Quiet}}", 'unknown key "codes" (did you mean code?)'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_client_is_told_before_anything_starts(place: Path, reference: str, text: str) -> None:
    assert text.format(place=place) in message(place, reference.replace("{{", "{").replace("}}", "}"))


def test_names_that_are_taken_too_long_or_strange_are_refused(place: Path) -> None:
    def told(name: str) -> str:
        file = topology(place, "mine.py:Quiet")
        file.write_text(file.read_text().replace("  quiet:", f"  {name}:").replace(", quiet", ""), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            Topology.load(file)
        return str(caught.value)

    assert 'own.yaml:8:3: client "echo" comes with the manager: expected another name' in told("echo")
    assert "client name: expected at most 24 letters" in told("a" * 25)
    assert "client name: expected at most 24 letters" in told("'a b'")


def test_a_client_that_nobody_knows_and_one_named_twice(place: Path) -> None:
    text = PAIR.format(reference="mine.py:Quiet")
    with pytest.raises(InputError, match=r'4:53: unknown client "quite" \(did you mean quiet\?\)'):
        Topology.parse(text.replace("b: {adapters: [ic0], nvram: 1MiB, clients: [echo, quiet", "b: {adapters: [ic0], nvram: 1MiB, clients: [echo, quite"), directory=place)  # fmt: skip  # noqa: E501
    with pytest.raises(InputError, match='client "quiet" is there twice'):
        Topology.parse(text.replace("[echo, quiet]", "[echo, quiet, quiet]", 1), directory=place)


def test_an_installed_package_registers_its_clients(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = place / "mine-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", encoding="utf-8")
    (package / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nquiet = mine:Quiet\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(place))
    text = PAIR.format(reference="x:Y").split("client_code:")[0]
    loaded = Topology.parse(text)
    assert [(client.name, client.code) for client in loaded.own_clients] == [("quiet", "mine:Quiet")]
    with Lab(loaded, world="sim", seed=1) as lab:
        lab.wait_ready()


def test_one_that_can_t_be_made_leaves_the_others_alone(place: Path) -> None:
    loaded = Topology.load(topology(place, "mine.py:Stubborn"))
    with Lab(loaded, world="sim", seed=1) as lab:
        assert not lab.wait(lab.ready, 500_000_000)
        status: Any = lab.hosts["a"].ask({"op": "status"})
        assert status["clients"]["quiet"]["state"] == "not made"
        assert "making Stubborn failed at" in status["clients"]["quiet"]["last_exception"]
        assert [s["state"] for s in status["partners"]["b"]["sessions"]] == ["READY"]


def test_a_recorded_run_finds_its_clients_again(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "scenario: s\ntopology: own\nworkload: {echo: {record: 512B}}\nexpect: {alerts.exactly_once: {}}\n"
    loaded = Topology.load(topology(place, "mine.py:Quiet"))
    first = run(Scenario.parse(text, loaded), topology=loaded, world="sim", seed=5, report=tmp_path)
    monkeypatch.chdir("/")
    recorded = load_record(tmp_path)
    again = run(recorded.scenario, topology=recorded.topology, world="sim", seed=recorded.seed)
    assert first.verdict == "pass" and again.schedule_hash == first.schedule_hash


def test_the_front_door_names_what_it_takes() -> None:
    import ccm

    assert all(getattr(ccm, name) is not None for name in ccm.__all__) and ccm.Client is Client
    with pytest.raises(AttributeError, match="no attribute 'Clients'"):
        _ = ccm.Clients
