"""`lab inject` and `lab heal` on a lab that stays: each family of faults, what is on, and wrong words."""

from __future__ import annotations

import pytest

from tests.helpers.station import wait_for
from tests.netns.test_fabric_commands import Shell, lab

__all__ = ["lab"]
pytestmark = pytest.mark.netns


@pytest.fixture
def up(lab: Shell) -> Shell:
    done = lab("up", "ha-pair", "--name", "p")
    assert done.returncode == 0, done.stderr
    return lab


def paths(shell: Shell) -> list[str]:
    """States of node a's paths to b; empty while a's host does not answer."""
    nodes = shell.json("status", "p")["nodes"]
    assert isinstance(nodes, list | dict)
    entries = nodes if isinstance(nodes, list) else [{"node": name, **entry} for name, entry in nodes.items()]
    [host] = [entry["host"] for entry in entries if entry.get("node", entry.get("name")) == "a"]
    return [str(path["state"]).lower() for path in host["partners"]["b"]["paths"]] if host else []


def test_an_adapter_fault_stays_until_it_is_healed(up: Shell) -> None:
    done = up("inject", "p", "adapter.hang", "b.ic0")
    assert (done.returncode, done.stdout) == (0, "1 adapter.hang b.ic0: injected\n")
    wait_for(lambda: "up" in paths(up) and paths(up) != ["up", "up"], "one path is down")
    assert up("heal", "p", "--list").stdout == "1 adapter.hang b.ic0\n"
    done = up("heal", "p")
    assert done.returncode == 0
    assert done.stdout.startswith("1 adapter.hang b.ic0: undone; it has met something ")
    wait_for(lambda: paths(up) == ["up", "up"], "both paths are up")
    assert up("heal", "p").stdout == "no fault is on\n"


def test_faults_of_all_families_are_undone_together_and_one_by_one(up: Shell) -> None:
    for words in (
        ("cable.blackhole", "ic0"), ("cable.drop", "ic1", "count=3", "from=a"), ("host.pause", "a"),
        ("adapter.die", "b.ic0"), ("adapter.cqe_delay", "b.ic1", "delay=100us"),
    ):  # fmt: skip
        done = up("inject", "p", *words)
        assert done.returncode == 0, done.stderr
    assert len(up("heal", "p", "--list").stdout.splitlines()) == 5
    assert up("heal", "p", "2").stdout.startswith("2 cable.drop ic1: undone")
    healed = up("heal", "p").stdout.splitlines()
    assert [line.split()[0] for line in healed] == ["5", "4", "3", "1"]
    wait_for(lambda: paths(up) == ["up", "up"], "both paths are up")
    assert up("inject", "p", "adapter.cqe_lost", "b.ic0").stdout.startswith("6 ")  # numbers don't come again


def test_a_fault_may_have_its_end_with_it(up: Shell) -> None:
    done = up("inject", "p", "cable.cut", "ic1", "for=50ms")
    assert done.stdout.splitlines() == ["1 cable.cut ic1: injected", "1 cable.cut ic1: undone"]
    assert up("heal", "p", "--list").stdout == "no fault is on\n"


WRONG = [
    (("adapter.hnag", "b.ic0"), 'unknown fault "adapter.hnag" (did you mean adapter.hang?)'),
    (("adapter.hang",), "adapter.hang needs a target: an adapter (NODE.ADAPTER)"),
    (("adapter.hang", "b.ic7"), 'unknown adapter "b.ic7" (did you mean b.ic'),
    (("adapter.cqe_delay", "b.ic0"), 'the key "delay" is missing'),
    (("adapter.cqe_delay", "b.ic0", "delay=5"), "expected a duration such as 500ms"),
    (("adapter.cqe_delay", "b.ic0", "delay=5ms", "dealy=5ms"), 'unknown key "dealy" (did you mean delay?)'),
    (("adapter.cqe_lost", "b.ic0", "qp=clinet"), "(did you mean client?)"),
    (("adapter.qp_error", "b.ic0", "for=5ms"), "can't be undone"),
    (("cable.cut", "ic0", "at=5s"), '"at" belongs into a scenario'),
    (("cable.cut", "ic0", "now"), 'expected key=value, found "now"'),
]


def test_wrong_words_change_nothing_and_tell_what_was_expected(up: Shell) -> None:
    for words, message in WRONG:
        done = up("inject", "p", *words)
        assert done.returncode == 2, words
        assert message in done.stderr, done.stderr
    assert up("heal", "p", "9").returncode == 2
    assert "fault 9 is not on" in up("heal", "p", "9").stderr
    assert up("heal", "p", "--list").stdout == "no fault is on\n"
    assert up("inject", "nolab", "cable.cut", "ic0").returncode == 2
    assert up("inject", "p").returncode == 2
    up("inject", "p", "cable.cut", "ic0")
    again = up("inject", "p", "cable.cut", "ic0")
    assert again.returncode == 2
    assert "is on already" in again.stderr


def test_the_catalogue_can_be_asked_for() -> None:
    from lab.commands.inject import catalogue
    from lab.faults import FAULTS

    text = catalogue()
    assert all(f"{name} TARGET=" in text for name in FAULTS)
    assert "delay=duration (needed)" in catalogue("cqe_delay")
