"""Random schedules, recorded schedules, and the search for the smallest part that fails."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.campaign.generate import FAULTS_MAX, FLAPS_MAX, LAST_MOMENT_NS, kinds, random_scenario, random_steps
from lab.campaign.record import load_record, parse_record
from lab.campaign.shrink import fewest
from lab.cli import main
from lab.errors import InputError
from lab.faults import FAULTS, Target
from lab.plan import Plan
from lab.scenario import At, OnFrame, OnSession, Scenario, Step, Workload
from lab.sim.streams import Streams
from lab.topology import Topology
from lab.verdict import schedule_json

SEEDS = range(60)
PAIR = Topology.load("ha-pair")


def moment(step: Step) -> int:
    assert isinstance(step.trigger, At)
    return step.trigger.at_ns


def test_a_seed_is_a_schedule() -> None:
    assert random_scenario(PAIR, 3) == random_scenario(PAIR, 3)
    assert random_scenario(PAIR, 3).steps != random_scenario(PAIR, 4).steps


def test_schedules_have_faults_of_every_kind_within_bounds() -> None:
    seen = set()
    for seed in SEEDS:
        steps = random_scenario(PAIR, seed).steps
        assert 1 <= len(steps) <= FAULTS_MAX * FLAPS_MAX
        for step in steps:
            seen.add(step.fault)
            assert 0 < moment(step) <= 2 * LAST_MOMENT_NS
            assert (step.duration_ns is not None) is FAULTS[step.fault].undone
    assert seen == {kind for kind in kinds() if kind in FAULTS and "sim" in FAULTS[kind].worlds}


def test_targets_are_there() -> None:
    quad = Topology.load("quad-switched")
    plan = Plan(quad)
    for seed in SEEDS:
        for step in random_scenario(quad, seed).steps:
            target = FAULTS[step.fault].target
            if target is Target.NODE:
                assert step.target in quad.nodes
            elif target is Target.PORT:
                assert tuple(str(step.target).split(".")) in plan.ports
            else:
                assert step.target in quad.cables


@pytest.mark.parametrize("kind", ["cable.cut", "host.crash", "adapter.die"])
def test_the_same_fault_is_never_on_twice_at_the_same_thing(kind: str) -> None:
    for seed in SEEDS:
        spans = sorted(
            (str(step.target), moment(step), moment(step) + (step.duration_ns or 0))
            for step in random_scenario(PAIR, seed).steps
            if step.fault == kind
        )
        for (target, _, end), (other, begin, _) in pairwise(spans):
            assert target != other or begin > end


@pytest.mark.needs_plain
def test_one_fault_more_leaves_the_others_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneMore(Streams):
        def stream(self, name: str):  # type: ignore[no-untyped-def]
            made = super().stream(name)
            if name == "campaign/shape":
                drawn = made.random()
                made.random = lambda: min(0.999, (drawn**2 + 1 / FAULTS_MAX) ** 0.5)  # type: ignore[method-assign]
            return made

    for seed in SEEDS:
        fewer, more = random_steps(PAIR, Streams(seed)), random_steps(PAIR, OneMore(seed))
        assert all(step in more for step in fewer)


SCENARIO = Scenario(
    "recorded", "ha-pair", {"echo": Workload(512, 4, 100), "nvram-mirror": Workload(4096, 8, None)},
    (
        Step(At(5_000_000), "cable.cut", "ic0", 1_000_000),
        Step(OnFrame("RDMA_WRITE", source="a", nth=3), "cable.drop", None, None, {"count": 2}),
        Step(OnSession("ready", client="echo"), "adapter.reset", "b.ic1"),
    ),
    {"sessions.recovered": {"within_ns": 5}},
)  # fmt: skip


def recorded(**changes: object) -> dict[str, object]:
    assert PAIR.source is not None
    data = schedule_json(SCENARIO, PAIR.source.read_text(encoding="utf-8"), "sim", "memory", 9, "hash")
    return json.loads(json.dumps({**data, **changes}))  # type: ignore[no-any-return]


def test_a_record_is_the_run_again(tmp_path: Path) -> None:
    (tmp_path / "schedule.json").write_text(json.dumps(recorded()), encoding="utf-8")
    for path in (tmp_path, tmp_path / "schedule.json"):
        found = load_record(path)
        assert found.scenario == SCENARIO
        assert (found.topology.name, found.world, found.seed, found.schedule_hash) == ("ha-pair", "sim", 9, "hash")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format 1, found 2"),
        ({"seed": -1}, "seed of 0 or more, found -1"),
        ({"steps": [{"fault": "cable.melt"}]}, "unknown fault 'cable.melt'"),
        ({"steps": [{"fault": "cable.cut"}]}, "duration_ns is missing"),
        ({"expect": {"nothing.happens": {}}}, "unknown expectation"),
        ({"workload": {"echo": {"size": 3}}}, "no whole recorded schedule"),
        ({"topology_text": "name: x"}, "nodes"),
    ],
)
def test_a_broken_record_is_refused_with_what_is_wrong(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_record(recorded(**changes), "schedule.json")
    assert words in str(refused.value.problems[0])


def test_a_record_whose_target_is_not_there_is_refused() -> None:
    data = recorded()
    data["steps"][0]["target"] = "ic7"  # type: ignore[index]
    with pytest.raises(InputError, match="no 'ic7'"):
        parse_record(data)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "schedule.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match="expected"):
        load_record(file)


@given(st.integers(1, 24), st.data())
def test_what_is_left_of_a_schedule_fails_and_nothing_of_it_can_go(count: int, data: st.DataObject) -> None:
    steps = [Step(At(number), "cable.cut", "ic0") for number in range(count)]
    needed = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    found = fewest(steps, lambda some: needed <= set(map(moment, some)))
    assert list(map(moment, found)) == sorted(needed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["campaign", "ha-pair", "--runs", "0"], "--runs"),
        (["campaign", "ha-pair", "--runs", "1", "--jobs", "0"], "--jobs"),
        (["campaign", "ha-pair", "--runs", "1", "--seed", "-1"], "--seed"),
        (["campaign", "ha-pair", "--runs", "1", "--world", "moon"], "moon"),
        (["campaign", "ha-piar", "--runs", "1"], "ha-piar"),
        (["replay", "no-such-run"], "no-such-run"),
        (["shrink", "no-such-run"], "no-such-run"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
