"""The client of docs/writing-a-client.md, topologies/clients/shared_counter.py, works as the page says."""

from __future__ import annotations

from pathlib import Path

from ccm.client_code import ClientCode
from ccm.history import Kind
from emul.clock import MILLISECOND, SECOND
from tests.unit.ccm_hosts import TwoHosts

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "topologies" / "clients" / "shared_counter.py"
BY_HAND = 1_000_000
"""Counts by itself only every so many ms: not in these stories."""


def counters():
    code = ClientCode("shared-counter", f"{FILE}:SharedCounter", {"every_ms": BY_HAND})
    return code.make(), code.make()


def pair():
    ours, theirs = counters()
    world = TwoHosts(((ours,), (theirs,)))
    world.boot()
    assert world.run(SECOND, lambda: bool(ours.sessions and theirs.sessions))
    return ours, theirs, world


def test_the_page_shows_the_file():
    page = (ROOT / "docs" / "writing-a-client.md").read_text(encoding="utf-8")
    assert f"```python\n{FILE.read_text(encoding='utf-8')}```" in page


def test_a_value_reaches_the_partner_and_a_word_follows_it():
    ours, theirs, world = pair()
    assert ours.set(42)
    assert world.run(SECOND, lambda: ours.confirmed == 2)
    assert theirs.partners_value == 42
    world.run(MILLISECOND)
    assert theirs.heard == [b"counter is 42"]


def test_a_cut_cable_is_none_of_its_business():
    ours, theirs, world = pair()
    [session] = ours.sessions.values()
    for value in range(1, 5):
        assert ours.set(value)
    world.cut(0)
    assert world.run(SECOND, lambda: ours.confirmed == 8)
    assert theirs.partners_value == 4
    world.run(5 * MILLISECOND)
    assert theirs.heard == [f"counter is {value}".encode() for value in range(1, 5)], "each once, in order"
    assert list(ours.sessions.values()) == [session] and session.alive
    assert not world.history(0, Kind.ERROR_ALERT)


def test_a_full_ledger_is_back_pressure():
    ours, _, world = pair()
    taken = sum(ours.set(value) for value in range(20))
    assert taken == 8, "16 requests are unconfirmed: 8 writes and 8 messages"
    assert world.run(SECOND, lambda: ours.confirmed == 16)
    assert ours.set(99)
