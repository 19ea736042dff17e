"""A manager's journal: recorded in the simulator, and given to a new manager in a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ccm.journal import FORMAT, JournalError, replay
from ccm.sessions import SessionSet
from emul.clock import MILLISECOND, SECOND
from lab.cli import main
from lab.plan import Plan
from lab.sim.world import SimWorld
from lab.topology import Topology

PAIR = """
name: journalled
journal: true
nodes:
  a: {adapters: [ic0, ic1], nvram: 1MiB, clients: [echo]}
  b: {adapters: [ic0, ic1], nvram: 1MiB, clients: [echo]}
cables:
  ic0: [a.ic0, b.ic0]
  ic1: [a.ic1, b.ic1]
"""
ROOT = Path(__file__).parents[2]
REPLAY_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def journals() -> dict[str, list[str]]:
    """Of both nodes, in whose life a host crashed."""
    world = SimWorld(Plan(Topology.parse(PAIR)), seed=4)
    world.start()
    try:
        world.advance(world.now() + SECOND)
        world.nodes["b"].crash()
        world.advance(world.now() + 100 * MILLISECOND)
        world.nodes["b"].boot()
        world.advance(world.now() + SECOND)
        return {name: list(world.nodes[name].journal) for name in ("a", "b")}
    finally:
        world.stop()


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_fresh_process_comes_to_the_same_actions(journals: dict[str, list[str]], tmp_path: Path, node: str) -> None:
    path = tmp_path / "journal.log"
    path.write_text("\n".join(journals[node]) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "ccm.journal", "replay", "--status", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=REPLAY_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "the same actions" in done.stderr
    [(partner, status)] = json.loads(done.stdout).items()
    assert partner == ({"a", "b"} - {node}).pop()
    assert {session["state"] for session in status["sessions"]} == {"READY"}


def test_both_incarnations_of_the_host_that_crashed_are_replayed(journals: dict[str, list[str]]) -> None:
    found = replay(journals["b"])
    assert found.incarnations == 2 and found.events > 100 and found.actions > 50 and not found.difference


@pytest.mark.needs_plain
def test_another_manager_is_found_out_with_the_line(
    journals: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SessionSet, "_partner_ready", lambda self, session: False)
    found = replay(journals["a"])
    assert found.difference.startswith("line ") and "the replay" in found.difference


def test_a_last_line_that_is_cut_short_is_left_out(journals: dict[str, list[str]]) -> None:
    lines = journals["a"][:50]
    whole = replay(lines)
    torn = replay([*lines, journals["a"][50][:20]])
    assert (torn.events, torn.turns) == (whole.events, whole.turns)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"asked":true}', "no head"),
        ("nonsense\n{}", "line 1: not JSON"),
        ('{"journal":99}', f"format 99, this is a reader of format {FORMAT}"),
        ('{"journal":1}', "format 1, this is a reader of format 2"),
        ('{"journal":2}', "the head is damaged"),
        ("[]", "expected an object"),
        ("", "an empty journal"),
        ('HEAD\n{"now":5}', "line 2: expected a time and actions"),
        ('HEAD\n{"now":5,"actions":[]}', "expected event, time or asked"),
        ('HEAD\n{"now":5,"actions":[],"event":{"is":"Nothing"}}', "unknown kind"),
        ('HEAD\n{"now":5,"actions":[],"event":{"is":"CarrierLost"}}', "CarrierLost has the fields adapter, found"),
        ('HEAD\n{"now":5,"actions":[],"event":{"is":"CarrierLost","adapter":"x"}}', "expected int, found 'x'"),
        ('HEAD\n{"now":5,"actions":[],"event":{"is":"ConnectPeer","partner":2,"path":0}}', "found ConnectPeer"),
        ('HEAD\n{"now":5,"actions":[],"event":{"is":"PeerLost","partner":9,"path":0,"text":""}}', "partner 9"),
    ],
)
def test_what_is_wrong_with_a_journal_is_told(journals: dict[str, list[str]], line: str, text: str) -> None:
    with pytest.raises(JournalError, match=text.replace("(", r"\(")):
        replay(line.replace("HEAD", journals["a"][0]).splitlines())


def test_damaged_journals_are_errors_and_nothing_worse(journals: dict[str, list[str]]) -> None:
    chance = random.Random(7)
    for _ in range(200):
        lines = journals["a"][:40]
        place = chance.randrange(len(lines))
        text = lines[place]
        at = chance.randrange(len(text))
        lines[place] = text[:at] + chance.choice('0x{}[]",:-e') + text[at + chance.randrange(3) :]
        try:
            replay(lines)
        except JournalError as error:
            assert str(error).startswith("line ")


def test_the_command_replays_what_a_run_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "run"
    assert main(["run", "cable-cut", "--world", "sim", "--seed", "4", "--journal", "--report", str(report)]) == 0
    capsys.readouterr()
    assert main(["journal", str(report)]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.endswith(": the same actions") for line in told)
    file = report / "nodes" / "a" / "journal.log"
    lines = file.read_text(encoding="utf-8").splitlines()
    place = next(place for place, line in enumerate(lines) if '"ConnectPeer"' in line)
    lines[place] = lines[place].replace('"path":0', '"path":7', 1)
    file.write_text("\n".join(lines), encoding="utf-8")
    assert main(["journal", str(file)]) == 1
    assert f"line {place + 1}: after" in capsys.readouterr().err


def test_the_command_tells_what_is_no_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        assert main(["journal", *words]) == 2
        return capsys.readouterr().err

    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "nothing").touch()
    assert "noise: no text: 'utf-8' codec can't decode" in told(str(tmp_path / "noise"))
    assert "nothing: an empty journal: expected a line with its format first" in told(str(tmp_path / "nothing"))
    assert "there is no such file (did you mean nothing?)" in told(str(tmp_path / "nothign"))
    (tmp_path / "run").mkdir()
    assert "no journal.log in this directory: its topology has no `journal: true`" in told(str(tmp_path / "run"))
