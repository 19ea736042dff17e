"""Settings of the connection managers: from a topology file down to what paths and sessions do with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ccm.history import Kind, read_entries
from ccm.settings import DEFAULTS, Settings, SettingsError
from emul.clock import MILLISECOND, SECOND
from lab.errors import InputError
from lab.plan import Plan
from lab.schema import topology_schema
from lab.settings_file import RANGES, SettingsModel, key_of, shown
from lab.sim.world import SimWorld
from lab.topology import Topology
from tests.unit.test_docs import ROOT

PAIR = """name: pair
nodes:
  a: {adapters: [ic0, ic1], nvram: 1MiB, clients: [echo, nvram-mirror]}
  b: {adapters: [ic0, ic1], nvram: 1MiB, clients: [echo, nvram-mirror]}
cables:
  ic0: [a.ic0, b.ic0]
  ic1: [a.ic1, b.ic1]
"""


@contextmanager
def pair(block: str = "") -> Iterator[SimWorld]:
    """A pair with these settings, one second old."""
    text = PAIR + (f"ccm:\n{block}" if block else "")
    world = SimWorld(Plan(Topology.parse(text)), seed=3)
    world.start()
    world.advance(world.now() + SECOND)
    try:
        yield world
    finally:
        world.stop()


def partner(world: SimWorld) -> dict[str, Any]:
    """What a's host says of b."""
    status: Any = world.host("a", {"op": "status"})
    found: dict[str, Any] = status["partners"]["b"]
    return found


def routes(world: SimWorld) -> dict[str, list[int]]:
    return {session["client"]: session["routes"] for session in partner(world)["sessions"]}


def flat(found: dict[str, list[int]]) -> list[int]:
    return [path for paths in found.values() for path in paths]


def test_without_a_block_everything_is_as_it_is_by_default() -> None:
    assert Topology.parse(PAIR).settings == DEFAULTS


def test_a_block_reaches_the_managers() -> None:
    topology = Topology.parse(PAIR + "ccm: {probe_interval: 10ms, failback: false, limit_factor: 5}\n")
    assert topology.settings == Settings(probe_interval_ns=10 * MILLISECOND, failback=False, limit_factor=5)
    with pair("  {limit_floor: 60ms}") as world:
        assert {path["limit_ns"] for path in partner(world)["paths"]} == {60 * MILLISECOND}


def test_a_longer_limit_finds_a_silent_path_later() -> None:
    def silence(block: str) -> int:
        with pair(block) as world:
            lost_at = world.now()
            world.cables["ic0"].set_blackhole([0, 1], on=True)
            world.advance(world.now() + SECOND)
            records = read_entries(world.history("a"))
            downs = [record.at for record in records if record.kind is Kind.PATH_DOWN and record.at > lost_at]
            return downs[0] - lost_at

    assert silence("") < 120 * MILLISECOND < silence("  {limit_floor: 200ms, limit_most: 200ms}") < 400 * MILLISECOND


def test_sessions_move_back_only_where_that_is_wanted() -> None:
    def after_a_cut(block: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        with pair(block) as world:
            before = routes(world)
            world.cables["ic0"].unplug([0, 1])
            world.advance(world.now() + 300 * MILLISECOND)
            world.cables["ic0"].plug_in([0, 1])
            world.advance(world.now() + SECOND)
            assert {path["state"] for path in partner(world)["paths"]} == {"UP"}
            return before, routes(world)

    before, after = after_a_cut("")
    assert before == after and sorted(flat(before)) == [0, 1], "spread, and back again"
    before, after = after_a_cut("  {failback: false}")
    assert sorted(flat(before)) == [0, 1] and flat(after) == [1, 1]


def test_sessions_can_be_kept_together() -> None:
    with pair("  {balance: false}") as world:
        assert flat(routes(world)) == [0, 0]


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ("ccm: {probe_intervall: 5ms}", '8:7: unknown key "probe_intervall" (did you mean probe_interval?)'),
        ("ccm: {probe_interval: 5}", "8:23: probe_interval: expected a duration such as 500ms"),
        ("ccm: {probe_interval: 0}", "8:23: probe_interval: expected 1ms to 10s, found 0s"),
        ("ccm: {limit_factor: 2.5}", "8:21: limit_factor: expected a whole number, found 2.5"),
        ("ccm: {fence_attempts_max: 0}", "8:27: fence_attempts_max: expected 1 to 10000, found 0"),
        ("ccm: {failback: perhaps}", '8:17: failback: expected true or false, found "perhaps"'),
        ("ccm: {balance: byte}", '8:16: balance: expected vi, bytes, true (vi) or false, found "byte" (did you mean'),
        ("ccm: {balance: 2}", "8:16: balance: expected vi, bytes, true (vi) or false, found 2"),
        ("ccm: {balance: bytes, failback: false}", "8:33: failback: expected true, found false: balance: bytes moves"),
        ("ccm: {limit_floor: 300ms}", "8:20: limit_floor is 300ms, more than limit_most, 250ms"),
        ("ccm: {retry_most: 5ms}", "8:19: retry_first is 20ms, more than retry_most, 5ms"),
        ("ccm: fast", "8:6: ccm: expected a mapping of keys and values"),
    ],
)
def test_what_is_wrong_with_a_block_is_told_with_line_and_column(block: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        Topology.parse(PAIR + block + "\n", "file")
    assert str(caught.value).startswith(f"file:{text}")


@pytest.mark.parametrize("wrong", [
        {"limit_factor": 0}, {"limit_factor": True}, {"failback": 1}, {"poll_ns": 1.5}, {"balance": 1},
        {"balance": "byte"}, {"balance": "bytes", "failback": False},
    ],
)  # fmt: skip
def test_a_program_can_make_no_settings_that_a_file_could_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**wrong)
    assert caught.value.name in wrong


def test_the_file_has_each_setting_with_its_default() -> None:
    model = SettingsModel()
    assert set(SettingsModel.model_fields) == {key_of(field) for field in Settings.__dataclass_fields__}
    assert all(getattr(model, key_of(field)) == getattr(DEFAULTS, field) for field in Settings.__dataclass_fields__)
    schema: Any = topology_schema()
    properties = schema["$defs"]["SettingsModel"]["properties"]
    assert all(entry["description"] for entry in properties.values())


def test_the_page_on_settings_has_each_with_default_and_range() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert set(rows) == set(SettingsModel.model_fields)
    for field in Settings.__dataclass_fields__:
        least, most = RANGES.get(field, (False, True))
        default = shown(field, getattr(DEFAULTS, field))
        description = SettingsModel.model_fields[key_of(field)].description
        span = "true, false" if isinstance(least, bool) else f"{shown(field, least)} ... {shown(field, most)}"
        span = "vi, bytes, false" if field == "balance" else span
        assert rows[key_of(field)] == f"| `{key_of(field)}` | {default} | {span} | {description} |"
