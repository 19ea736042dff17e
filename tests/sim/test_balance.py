"""Virtual interfaces that carry different loads, balanced by bytes in flight: on real hosts and adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccm.balance import UNEVEN_WINDOWS, Carried, LoadBalance, Relief
from ccm.driver.loads import SAMPLE_NS, SAMPLES
from ccm.history import Entry, Kind
from ccm.journal.replay import replay
from emul.clock import SECOND, Instant
from lab import Scenario, Topology, run
from lab.plan import Plan
from lab.sim.world import SimWorld
from lab.verdict import Result

CODE = Path(__file__).parents[1] / "helpers" / "pusher.py"
PAIR = """
name: heavy-and-light
nodes:
  a: {{adapters: [ic0, ic1], nvram: 64KiB, clients: [pusher]}}
  b: {{adapters: [ic0, ic1], nvram: 64KiB, clients: [pusher]}}
cables:
  ic0: {{ends: [a.ic0, b.ic0], delay: 8ms}}
  ic1: {{ends: [a.ic1, b.ic1], delay: 8ms}}
client_code: {{pusher: {code}:Pusher}}
ccm: {{balance: {balance}}}
"""
SCENARIO = """
scenario: uneven
topology: heavy-and-light
steps: [{steps}]
expect: {{alerts.exactly_once: {{}}}}
"""
LATE = "{at: 9s, fault: cable.cut, target: ic1, for: 20ms}"
EARLY = "{at: 1500ms, fault: cable.cut, target: ic1, for: 300ms}, {at: 12s, fault: cable.cut, target: ic0, for: 20ms}"
SPREAD = {0: 0, 1: 1, 2: 0, 3: 1}
"""By number: both heavy ones over path 0."""


def play(balance: str, steps: str = LATE) -> Result:
    topology = Topology.parse(PAIR.format(code=CODE, balance=balance))
    return run(Scenario.parse(SCENARIO.format(steps=steps), topology), topology=topology, world="sim", seed=1)


def routed(result: Result, node: int, *, until_s: float) -> list[Entry]:
    """Each time that a virtual interface of `node` took a path, until then."""
    entries = [e for e in result.outcome.evidence.entries if e.kind == Kind.ROUTED and e.node == node]
    start = min(e.at for e in result.outcome.evidence.entries)
    return [e for e in entries if e.at - start < until_s * SECOND]


def check(result: Result, name: str) -> tuple[bool | None, int]:
    return next((each.ok, each.exercised) for each in result.checks if each.name == name)


def test_one_heavy_interface_moves_once_and_then_the_shares_are_even() -> None:
    result = play("bytes")
    assert result.verdict == "pass", [each for each in result.checks if each.ok is False]
    assert check(result, "load.shared")[1] > 0 and check(result, "streams.whole")[1] > 0
    for node in (1, 2):
        first, moves = (lambda found: (found[:4], found[4:]))(routed(result, node, until_s=8))
        assert {e.offset: e.extra for e in first} == SPREAD
        assert [(e.offset, e.extra) for e in moves] == [(0, 1)], "one is enough, and it stays there"
        assert moves[0].at - first[-1].at >= (UNEVEN_WINDOWS - 1) * SAMPLES * SAMPLE_NS


def test_after_a_path_was_lost_and_came_back_the_shares_become_even_again() -> None:
    result = play("bytes", EARLY)
    assert result.verdict == "pass", [each for each in result.checks if each.ok is False]
    last: dict[int, int] = {e.offset: e.extra for e in routed(result, 1, until_s=11)}
    assert last[0] != last[2] and last[1] == last[3]
    moved = [e.at for e in routed(result, 1, until_s=11) if e.offset == 0]
    assert len(moved) <= 2 + 4, f"{len(moved)} routes of one virtual interface"


@pytest.mark.parametrize("balance", ["vi", "true"])
def test_by_number_they_stay_where_they_are(balance: str) -> None:
    result = play(balance)
    assert result.verdict == "pass" and check(result, "load.shared")[1] > 0
    assert {e.offset: e.extra for e in routed(result, 1, until_s=8)} == SPREAD
    assert len(routed(result, 1, until_s=8)) == 4


def test_without_a_balance_all_share_a_path_and_nobody_minds() -> None:
    result = play("false")
    assert result.verdict == "pass"
    assert {e.extra for e in routed(result, 1, until_s=8)} == {0}
    assert check(result, "load.shared") == (None, 0)


@pytest.mark.needs_plain
def test_a_manager_that_ignores_the_bytes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(self: LoadBalance, carried: list[Carried], *, now: Instant) -> Relief | None:
        return None

    monkeypatch.setattr(LoadBalance, "on_window", blind)
    assert check(play("bytes"), "load.shared")[0] is False


def test_a_journal_with_loads_gives_the_same_moves_again() -> None:
    text = PAIR.format(code=CODE, balance="bytes") + "journal: true\n"
    world = SimWorld(Plan(Topology.parse(text)), seed=2)
    world.start()
    try:
        world.advance(world.now() + 4 * SECOND)
        lines = list(world.nodes["a"].journal)
    finally:
        world.stop()
    assert sum('"LoadSeen"' in line for line in lines) > UNEVEN_WINDOWS
    assert sum('"Move"' in line for line in lines) == 1
    found = replay(lines)
    assert found.events > 100 and not found.difference


UNLIKE = {
    "a long one": ("delay: 1ms", "delay: 20ms", ""),
    "a thin one": ("rate: 100mbit", "rate: 20mbit", ", limit_floor: 80ms"),
}
"""Cables ic0 and ic1, and settings: over the thin one 128 KiB take 52 ms, which `limit_floor` has to allow."""
HEAVY = (0, 2)


def play_unlike(kind: str, fault: str) -> Result:
    first, second, settings = UNLIKE[kind]
    text = PAIR.format(code=CODE, balance="bytes" + settings)
    text = text.replace("a.ic0, b.ic0], delay: 8ms", f"a.ic0, b.ic0], {first}")
    text = text.replace("a.ic1, b.ic1], delay: 8ms", f"a.ic1, b.ic1], {second}")
    steps = f"{{at: 4s, fault: {fault}, target: ic0, for: 2s}}, {{at: 10s, fault: cable.cut, target: ic1, for: 20ms}}"
    topology = Topology.parse(text)
    return run(Scenario.parse(SCENARIO.format(steps=steps), topology), topology=topology, world="sim", seed=1)


@pytest.mark.parametrize("fault", ["cable.cut", "cable.blackhole"])
@pytest.mark.parametrize("kind", UNLIKE)
def test_unlike_paths_share_the_bytes_and_one_carries_all_while_the_other_is_lost(kind: str, fault: str) -> None:
    result = play_unlike(kind, fault)
    assert result.verdict == "pass", [each for each in result.checks if each.ok is False]
    assert check(result, "load.shared")[1] > 0 and check(result, "streams.whole")[1] > 0
    entries = result.outcome.evidence.entries
    assert not [entry for entry in entries if entry.kind == Kind.ERROR_ALERT], "no session was lost"
    assert sorted(e.extra for e in entries if e.kind == Kind.PATH_DOWN) == [0, 0, 1, 1], "only what was broken"
    for node in (1, 2):
        for until_s, shared in ((3.5, True), (5.5, False), (9.5, True)):
            last = {entry.offset: entry.extra for entry in routed(result, node, until_s=until_s)}
            assert (len({last[vi] for vi in HEAVY}) == 2) is shared, f"node {node} at {until_s} s: {last}"


def test_a_thin_path_with_the_usual_limits_is_lost_again_and_again_and_no_session_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the page on settings warns of: an answer waits behind 64 KiB for longer than silence may last."""
    monkeypatch.setitem(UNLIKE, "a thin one", (*UNLIKE["a thin one"][:2], ""))
    entries = play_unlike("a thin one", "cable.cut").outcome.evidence.entries
    assert sum(entry.kind == Kind.PATH_DOWN for entry in entries) > 4
    assert not [entry for entry in entries if entry.kind == Kind.ERROR_ALERT]
