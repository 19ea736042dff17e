"""Scenario files: those that ship, and every way of getting one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import InputError
from lab.expectations import EXPECTATIONS
from lab.faults import FAULTS, Target
from lab.resources import shipped
from lab.scenario import At, OnFrame, OnSession, Scenario, Step, Workload
from lab.topology import Topology

GOOD = """\
scenario: story
topology: ha-pair
workload: {nvram-mirror: {record: 4KiB, depth: 8, rate: 500/s}}
steps:
  - {at: 1s, fault: cable.cut, target: ic0, for: 500ms}
  - {on: {frame: {opcode: RDMA_WRITE_LAST, from: a, nth: 3}}, fault: cable.drop}
  - {on: {session: ready, client: nvram-mirror, node: b}, fault: adapter.reset, target: b.ic1}
expect:
  sessions.recovered: {within: 5s}
  mirror.no_committed_loss: {}
"""


def message(text: str) -> str:
    """What a user is told about `text`."""
    with pytest.raises(InputError) as error:
        Scenario.parse(text, file="f.yaml")
    return str(error.value)


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} is there {GOOD.count(old)} times"
    return GOOD.replace(old, new)


@pytest.mark.parametrize("rest", ["", "expect: {}\n"])
def test_what_always_must_hold_needs_no_expectation(rest: str) -> None:
    scenario = Scenario.parse(GOOD[: GOOD.index("expect:")] + rest)
    assert scenario.expect == {}


def test_a_good_file_becomes_values() -> None:
    scenario = Scenario.parse(GOOD)
    assert scenario.workload == {"nvram-mirror": Workload(4096, 8, 500)}
    assert scenario.steps == (
        Step(At(1_000_000_000), "cable.cut", "ic0", 500_000_000),
        Step(OnFrame("RDMA_WRITE_LAST", source="a", nth=3), "cable.drop", None),
        Step(OnSession("ready", "nvram-mirror", "b"), "adapter.reset", "b.ic1"),
    )
    assert scenario.expect == {"sessions.recovered": {"within_ns": 5_000_000_000}, "mirror.no_committed_loss": {}}
    assert scenario.load_topology().name == "ha-pair"


def test_parameters_of_a_fault_stand_beside_it() -> None:
    step = changed("target: ic0, for: 500ms", "target: ic0, end: b, for: 500ms").replace(
        "cable.cut,", "cable.cut_one_end,"
    )
    assert Scenario.parse(step).steps[0].parameters == {"end": "b"}
    step = changed("fault: cable.cut, target: ic0", "fault: cable.drop, target: ic0, from: a, probability: 0.25")
    assert Scenario.parse(step).steps[0].parameters == {"from": "a", "probability": 0.25}


@pytest.mark.parametrize("name", sorted(shipped("scenario")))
def test_shipped_scenarios_are_good_and_named_as_their_file(name: str) -> None:
    scenario = Scenario.load(name)
    assert scenario.name == name
    assert scenario.description
    assert scenario.workload
    assert {"sessions.recovered", "mirror.no_committed_loss", "alerts.exactly_once", "nothing.leaked"} <= set(
        scenario.expect
    )


def test_the_scenarios_of_the_mission_ship() -> None:
    names = {"cable-cut", "both-cables-cut", "cable-blackhole", "host-restart", "write-dropped", "nak-forged"}
    names |= {"adapter-reset", "adapter-hang", "cqe-lost", "dma-stall", "doorbell-lost", "firmware-old"}
    assert names <= set(shipped("scenario"))


def test_tables_are_consistent() -> None:
    assert all(name == fault.name and "." in name and fault.help for name, fault in FAULTS.items())
    assert all(name == expectation.name and expectation.help for name, expectation in EXPECTATIONS.items())
    own_keys = {"at", "on", "fault", "target", "for"}
    assert not own_keys & {parameter.name for fault in FAULTS.values() for parameter in fault.parameters}


WRONG = {
    "unknown topology": (
        changed("topology: ha-pair", "topology: ha-piar"),
        'f.yaml:2:11: no topology "ha-piar" (did you mean ha-pair?)',
    ),
    "topology file that is not there": (
        changed("topology: ha-pair", "topology: ./x.yaml"),
        'f.yaml:2:11: no topology file "x.yaml"',
    ),
    "unknown fault": (
        changed("cable.cut", "cable.cutt"),
        'f.yaml:5:21: unknown fault "cable.cutt" (did you mean cable.cut?)',
    ),
    "unknown cable": (
        changed("target: ic0", "target: ic7"),
        'f.yaml:5:40: unknown cable "ic7" (did you mean ic1?)',
    ),
    "node where a cable is meant": (
        changed("target: ic0", "target: a"),
        'f.yaml:5:40: unknown cable "a" (known: ic0, ic1)',
    ),
    "no target": (changed(", target: ic0", ""), "f.yaml:5:21: cable.cut needs a target: a cable"),
    "no target by time": (
        changed("fault: cable.cut, target: ic0", "fault: cable.drop"),
        "f.yaml:5:21: cable.drop needs a target: a cable, or a trigger `on: {frame: ...}`",
    ),
    "unknown adapter": (
        changed("target: b.ic1", "target: b.ic9"),
        'f.yaml:7:89: unknown adapter "b.ic9" (did you mean b.ic1?)',
    ),
    "adapter without its node": (
        changed("target: b.ic1", "target: ic1"),
        'f.yaml:7:89: unknown adapter "ic1" (did you mean b.ic1?)',
    ),
    "unknown node of a host fault": (
        changed("fault: cable.cut, target: ic0", "fault: host.crash, target: c"),
        'f.yaml:5:41: unknown node "c" (known: a, b)',
    ),
    "for on what can't be undone": (
        changed("target: b.ic1", "target: b.ic1, for: 1s"),
        "f.yaml:7:96: adapter.reset can't be undone, so it takes no `for`",
    ),
    "for nothing": (changed("for: 500ms", "for: 0"), "f.yaml:5:50: for: expected a duration above 0, found 0"),
    "negative duration": (
        changed("for: 500ms", "for: -500ms"),
        'f.yaml:5:50: for: expected a duration such as 500ms (ns, us, ms, s, min), found "-500ms", which is negative',
    ),
    "duration without unit": (
        changed("at: 1s", "at: 1"),
        "f.yaml:5:10: at: expected a duration such as 500ms (ns, us, ms, s, min), found 1 without a unit",
    ),
    "two triggers": (
        changed("at: 1s", "at: 1s, on: {session: ready}"),
        "f.yaml:5:5: expected either `at` or `on`, found both",
    ),
    "no trigger": (changed("at: 1s, ", ""), "f.yaml:5:5: expected either `at` or `on`, found neither"),
    "two events": (
        changed("session: ready, client", "session: ready, frame: {opcode: SEND}, client"),
        "f.yaml:7:10: on: expected either `frame` or `session`, found both",
    ),
    "no event": (
        changed("{session: ready, client: nvram-mirror, node: b}", "{}"),
        "f.yaml:7:10: on: expected either `frame` or `session`, found neither",
    ),
    "client of a frame": (
        changed("nth: 3}}", "nth: 3}, client: echo}"),
        "f.yaml:6:62: `client` goes with `session`, not with `frame`",
    ),
    "unknown opcode": (
        changed("RDMA_WRITE_LAST", "RDMA_WRIET_LAST"),
        'f.yaml:6:27: unknown opcode "RDMA_WRIET_LAST" (did you mean RDMA_WRITE_LAST?)',
    ),
    "unknown sender": (changed("from: a", "from: z"), 'f.yaml:6:50: unknown node "z" (known: a, b)'),
    "frame to its sender": (
        changed("from: a", "from: a, to: a"),
        "f.yaml:6:57: to: expected another node than a, found the same",
    ),
    "unknown cable of a frame": (
        changed("from: a", "cable: ic8"),
        'f.yaml:6:51: unknown cable "ic8" (did you mean ic1?)',
    ),
    "nth of none": (changed("nth: 3", "nth: 0"), "f.yaml:6:58: nth: expected at least 1, found 0"),
    "true for a count": (changed("nth: 3", "nth: true"), "f.yaml:6:58: nth: expected a whole number, found true"),
    "unknown session state": (
        changed("session: ready", "session: redy"),
        'f.yaml:7:20: unknown session state "redy" (did you mean ready?)',
    ),
    "unknown parameter": (
        changed("fault: cable.cut, target: ic0", "fault: cable.cut, targte: ic0"),
        'f.yaml:5:32: unknown key "targte" (did you mean target?)',
    ),
    "parameter of another fault": (
        changed("target: ic0", "target: ic0, probability: 0.5"),
        'f.yaml:5:45: unknown key "probability"; cable.cut takes no parameters',
    ),
    "missing parameter": (
        changed("cable.cut,", "cable.cut_one_end,"),
        'f.yaml:5:5: cable.cut_one_end: the key "end" is missing (the end that loses its carrier)',
    ),
    "end that the cable doesn't have": (
        changed("cable.cut, target: ic0", "cable.cut_one_end, target: ic0, end: c"),
        'f.yaml:5:58: end: cable ic0 ends at a and b, found "c"',
    ),
    "probability above one": (
        changed("fault: cable.cut, target: ic0", "fault: cable.drop, target: ic0, probability: 1.5"),
        "f.yaml:5:59: probability: expected a probability above 0, at most 1, found 1.5",
    ),
    "unknown client of the load": (
        changed("workload: {nvram-mirror", "workload: {nvram-miror"),
        'f.yaml:3:12: unknown client "nvram-miror" (did you mean nvram-mirror?)',
    ),
    "client that no node runs": (
        changed("workload: {nvram-mirror", "workload: {failover-monitor"),
        "f.yaml:3:12: no node of ha-pair runs the client failover-monitor",
    ),
    "record that is too small": (
        changed("record: 4KiB", "record: 1B"),
        "f.yaml:3:35: record: expected 64B to 1MiB, found 1B",
    ),
    "records that don't fit": (
        changed("record: 4KiB, depth: 8", "record: 1MiB, depth: 9"),
        "f.yaml:3:35: record: 9 records of 1MiB don't fit into half of the smallest NVRAM (8MiB)",
    ),
    "depth of nothing": (changed("depth: 8", "depth: 0"), "f.yaml:3:48: depth: expected at least 1, found 0"),
    "rate without unit": (
        changed("rate: 500/s", "rate: 500"),
        "f.yaml:3:57: rate: expected records a second such as 500/s (1 to 1000000), found 500",
    ),
    "unknown expectation": (
        changed("sessions.recovered", "session.recovered"),
        'f.yaml:9:3: unknown expectation "session.recovered" (did you mean sessions.recovered?)',
    ),
    "unknown bound": (
        changed("within: 5s", "whithin: 5s"),
        'f.yaml:9:24: unknown key "whithin" (did you mean within?)',
    ),
    "bound of what has none": (
        changed("mirror.no_committed_loss: {}", "mirror.no_committed_loss: {within: 1s}"),
        'f.yaml:10:30: unknown key "within"; mirror.no_committed_loss takes no parameters',
    ),
    "steps as a mapping": (
        "scenario: x\ntopology: ha-pair\nsteps: {}\nexpect: {nothing.leaked: {}}\n",
        "f.yaml:3:8: steps: expected a list, found a mapping",
    ),
    "name that is no file name": (
        changed("scenario: story", "scenario: ../story"),
        "f.yaml:1:11: scenario: expected letters, digits",
    ),
    "topology file instead": ("name: x\nnodes: {}\n", 'f.yaml:1:1: the key "scenario" is missing'),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_told_with_its_place(text: str, expected: str) -> None:
    assert any(line.startswith(expected) for line in message(text).splitlines())


def test_all_mistakes_are_told_at_once() -> None:
    text = changed("cable.cut", "cable.snip").replace("from: a", "from: q").replace("within: 5s", "within: 5")
    assert [line.split(": ")[0] for line in message(text).splitlines()] == ["f.yaml:5:21", "f.yaml:6:50", "f.yaml:9:32"]


def test_targets_are_checked_against_the_topology_that_is_given() -> None:
    quad = Topology.load("quad-switched")
    with pytest.raises(InputError, match='unknown cable "ic0"'):
        Scenario.parse(GOOD, quad)
    assert Scenario.parse(GOOD.replace("target: ic0", "target: a-left"), quad)


def test_a_topology_beside_the_scenario_comes_first(tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    file = tmp_path / "scenarios" / "mine.yaml"
    file.write_text(GOOD.replace("topology: ha-pair", "topology: own").replace("target: ic0", "target: c0"))
    shipped_text = shipped("topology")["ha-pair"].read_text()
    (tmp_path / "own.yaml").write_text(
        shipped_text.replace("  ic0: [", "  c0: [").replace("name: ha-pair", "name: own")
    )
    assert Scenario.load(file).load_topology().name == "own"


def test_a_bad_topology_is_told_in_its_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace("topology: ha-pair", "topology: bad.yaml"))
    (tmp_path / "bad.yaml").write_text("name: bad\nnodes: {a: {nvram: 1}}\n")
    with pytest.raises(InputError) as error:
        Scenario.load(file)
    assert str(error.value).startswith(f"{tmp_path / 'bad.yaml'}:2:20: nvram: expected a size")


def test_every_target_kind_has_a_fault() -> None:
    assert {fault.target for fault in FAULTS.values()} == set(Target)
