"""The client of docs/writing-a-client.md works as the page says."""

from __future__ import annotations

import re
from pathlib import Path

from ccm.client import Client
from ccm.history import Kind
from emul.clock import MILLISECOND, SECOND
from emul.memory import Memory
from tests.unit.ccm_hosts import TwoHosts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "writing-a-client.md"


def example() -> type[Client]:
    """The class on the page."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, type[Client]] = {}
    exec(compile(code.group(1), str(PAGE), "exec"), names)  # noqa: S102 - our own page
    return names["SharedCounter"]


def counters():
    kind = example()
    return kind(Memory.plain(4096)), kind(Memory.plain(4096))


def test_a_value_reaches_the_partner_and_a_word_follows_it():
    ours, theirs = counters()
    world = TwoHosts(((ours,), (theirs,)))
    world.boot()
    assert world.run(SECOND, lambda: ours.session is not None and theirs.session is not None)
    assert ours.set(42)
    assert world.run(SECOND, lambda: ours.confirmed == 2)
    assert theirs.partners_value == 42
    world.run(MILLISECOND)
    assert theirs.heard == [b"counter is 42"]


def test_a_cut_cable_is_none_of_its_business():
    ours, theirs = counters()
    world = TwoHosts(((ours,), (theirs,)))
    world.boot()
    world.run(SECOND, lambda: ours.session is not None and theirs.session is not None)
    session = ours.session
    for value in range(1, 5):
        assert ours.set(value)
    world.cut(0)
    assert world.run(SECOND, lambda: ours.confirmed == 8)
    assert theirs.partners_value == 4
    world.run(5 * MILLISECOND)
    assert theirs.heard == [f"counter is {value}".encode() for value in range(1, 5)], "each once, in order"
    assert ours.session is session and session.alive
    assert not world.history(0, Kind.ERROR_ALERT)


def test_a_full_ledger_is_back_pressure():
    ours, theirs = counters()
    world = TwoHosts(((ours,), (theirs,)))
    world.boot()
    world.run(SECOND, lambda: ours.session is not None)
    taken = sum(ours.set(value) for value in range(20))
    assert taken == 8, "16 requests are unconfirmed: 8 writes and 8 messages"
    assert world.run(SECOND, lambda: ours.confirmed == 16)
    assert ours.set(99)
