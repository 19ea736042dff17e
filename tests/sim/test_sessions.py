"""Sessions between two real hosts, as a user of the lab drives them: late, closed, reopened, crashed, refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccm.history import Entry, Kind, read_entries
from emul.clock import MILLISECOND, SECOND
from lab import Lab
from lab.commands.status import render
from lab.errors import LabError
from lab.topology import Topology

ECHO = 2
CODE = '''
from ccm import Client, Needs


class Picky(Client):
    """Wants another depth on each node."""

    name = "picky"

    def on_boot(self, node, now):
        self.node = node

    def needs(self, partner):
        return Needs(depth=16 * self.node.id, message_bytes=64)
'''
PICKY = """name: picky
nodes:
  a: {adapters: [ic0], nvram: 1MiB, clients: [echo, picky]}
  b: {adapters: [ic0], nvram: 1MiB, clients: [echo, picky]}
cables:
  ic0: [a.ic0, b.ic0]
client_code:
  picky: picky.py:Picky
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("ha-pair", world="sim", seed=6) as running:
        yield running


def ask(lab: Lab, node: str, **request: object) -> dict[str, Any]:
    reply = lab.hosts[node].ask(request)
    assert "error" not in reply, reply
    return reply


def state(lab: Lab, node: str, client: str = "echo") -> dict[str, Any]:
    """The client's session with the other node; before it has one, and while the host is down: its state is "none"."""
    try:
        [partner] = ask(lab, node, op="status")["partners"].values()
    except LabError:
        partner = {"sessions": ()}
    return next((each for each in partner["sessions"] if each["client"] == client), {"state": "none"})


def told(lab: Lab, node: str, client: int = ECHO) -> list[Entry]:
    """What the client was told, in order."""
    kinds = (Kind.READY_ALERT, Kind.ERROR_ALERT, Kind.SESSION_CLOSED)
    return [e for e in read_entries(lab.world.history(node)) if e.client == client and e.kind in kinds]


def until_ready(lab: Lab, client: str = "echo") -> None:
    assert lab.wait(lambda: all(state(lab, node, client)["state"] == "READY" for node in "ab"), 5 * SECOND)


def screen(lab: Lab) -> str:
    """What `lab status` would print."""
    nodes = {
        node: {"adapters": {"ic0": "running", "ic1": "running"}, "host": ask(lab, node, op="status"), "error": None}
        for node in "ab"
    }
    return render({"lab": "x", "topology": "x", "wire": "memory", "cables": [], "nodes": nodes})


LATE = """name: late
nodes:
  a: {adapters: [ic0], nvram: 1MiB}
  b: {adapters: [ic0], nvram: 1MiB, boot: {loader: 3s}}
cables:
  ic0: [a.ic0, b.ic0]
"""


def test_clients_that_come_late_find_their_partners_waiting(tmp_path: Path) -> None:
    """b's manager is there at once, its clients three seconds later: a's wait and say for what, then both are told."""
    with Lab(Topology.parse(LATE), world="sim", seed=3) as lab:
        lab.wait(lambda: False, 2 * SECOND)
        waiting = state(lab, "a")
        assert (waiting["state"], waiting["reason"]) == ("WAITING", "PARTNER_LACKS_CLIENT")
        assert "waiting: partner lacks client" in screen(lab)
        assert not told(lab, "a"), "nobody was told anything"
        until_ready(lab)
        assert [(e.kind, e.epoch) for e in told(lab, "a")] == [(e.kind, e.epoch) for e in told(lab, "b")]
        assert [e.kind for e in told(lab, "a")] == [Kind.READY_ALERT]


def test_one_that_closes_and_comes_back_late_disturbs_nobody(lab: Lab) -> None:
    lab.wait_ready()
    ask(lab, "b", op="client.close", client="echo")
    before = len(told(lab, "a", 1))
    lab.wait(lambda: False, 3 * SECOND)
    assert state(lab, "a")["state"] == "WAITING" and state(lab, "b")["state"] == "CLOSED"
    ask(lab, "b", op="client.open", client="echo")
    until_ready(lab)
    readies = {node: [e for e in told(lab, node) if e.kind is Kind.READY_ALERT] for node in "ab"}
    assert readies["a"][-1].epoch == readies["b"][-1].epoch and len(readies["a"]) == len(readies["b"]) == 2
    assert len(told(lab, "a", 1)) == before, "the mirror was told nothing"


def test_close_is_orderly_on_both_sides_and_open_brings_a_higher_epoch(lab: Lab) -> None:
    lab.wait_ready()
    first = state(lab, "a")["epoch"]
    held = ask(lab, "a", op="resources")["verbs"]
    ask(lab, "a", op="client.close", client="echo")
    assert lab.wait(lambda: state(lab, "a")["state"] == "CLOSED" and state(lab, "b")["state"] == "WAITING", SECOND)
    assert [e.kind for e in told(lab, "b")][-1] is Kind.SESSION_CLOSED
    assert "waiting: closed by the partner" in screen(lab)
    assert sum(sum(each.values()) for each in ask(lab, "a", op="resources")["verbs"]) < sum(
        sum(each.values()) for each in held
    )
    ask(lab, "a", op="client.open", client="echo", partner="b")
    until_ready(lab)
    assert state(lab, "a")["epoch"] == state(lab, "b")["epoch"] > first
    assert ask(lab, "a", op="resources")["verbs"] == held


def test_a_client_that_crashed_is_made_anew_and_its_load_goes_on(lab: Lab) -> None:
    lab.wait_ready()
    ask(lab, "a", op="workload.start", client="echo", record=512, depth=4, rate=500)
    lab.wait(lambda: False, 200 * MILLISECOND)
    ask(lab, "a", op="client.crash", client="echo")
    assert lab.wait(lambda: state(lab, "a")["state"] == "CLOSED", SECOND)
    committed = ask(lab, "a", op="workload.state")["clients"]["echo"]["b"]["committed"]
    assert ask(lab, "a", op="status")["clients"]["echo"]["state"] == "crashed" and "crashed" in screen(lab)
    lab.wait(lambda: False, 200 * MILLISECOND)
    ask(lab, "a", op="client.open", client="echo")
    until_ready(lab)
    assert ask(lab, "a", op="status")["clients"]["echo"]["state"] == "running"
    lab.wait(lambda: False, 200 * MILLISECOND)
    assert committed > 50 and ask(lab, "a", op="workload.state")["clients"]["echo"]["b"]["committed"] > committed + 50


def test_epochs_outlive_reboots_of_either_side_and_each_is_told_once(lab: Lab) -> None:
    lab.wait_ready()
    for node in ("a", "b", "a"):
        lab.hosts[node].crash()
        lab.wait(lambda: False, 100 * MILLISECOND)
        lab.hosts[node].boot()
        until_ready(lab)
    for node in "ab":
        epochs = [e.epoch for e in told(lab, node) if e.kind is Kind.READY_ALERT]
        assert len(epochs) == 4 and epochs == sorted(set(epochs)), "higher each time, none twice"


def test_needs_that_differ_between_the_sides_are_refused_and_shown_with_both_figures(tmp_path: Path) -> None:
    (tmp_path / "picky.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "picky.yaml").write_text(PICKY, encoding="utf-8")
    with Lab(Topology.load(tmp_path / "picky.yaml"), world="sim", seed=2) as running:
        assert not running.wait(running.ready, SECOND)
        assert state(running, "a", "echo")["state"] == "READY"
        mine = state(running, "a", "picky")
        assert (mine["state"], mine["reason"]) == ("WAITING", "NEEDS_DIFFER")
        assert "waiting: depth 16 here, 32 there" in screen(running)
        assert not told(running, "a", 4) and not told(running, "b", 4)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"op": "client.close", "client": "ecco"}, "unknown client 'ecco', a runs: nvram-mirror, echo"),
        ({"op": "client.open", "client": "echo", "partner": "c"}, "unknown partner 'c', expected one of b"),
        ({"op": "client.crash"}, "unknown client None"),
        ({"op": "client.hang", "client": "echo"}, "unknown op 'client.hang', expected one of client.close"),
    ],
)
def test_wrong_requests_are_told_what_was_expected(lab: Lab, request_: dict[str, object], text: str) -> None:
    lab.wait_ready()
    assert text in str(lab.hosts["a"].ask(request_)["error"])
    assert lab.ready()
