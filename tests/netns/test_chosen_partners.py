"""Two pairs that mirror to each other, and echo with all, as real processes: sessions exactly those, faults apart."""

from __future__ import annotations

import pytest

from ccm.history import Kind
from lab import Scenario, run
from tests.sim.test_chosen_partners import ECHO, MIRROR, SCENARIO, A, B, C, D, four

pytestmark = pytest.mark.netns


def test_a_crash_in_one_pair_is_nothing_to_the_other() -> None:
    topology = four()
    result = run(Scenario.parse(SCENARIO, topology), topology=topology, world="netns", seed=1)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    entries = result.outcome.evidence.entries
    ready = {(e.node, e.partner) for e in entries if (e.kind, e.client) == (Kind.READY_ALERT, MIRROR)}
    assert ready == {(A, B), (B, A), (C, D), (D, C)}
    echoes = {(e.node, e.partner) for e in entries if (e.kind, e.client) == (Kind.READY_ALERT, ECHO)}
    assert len(echoes) == 12
    broken = {(e.node, e.partner) for e in entries if (e.kind, e.client) == (Kind.ERROR_ALERT, MIRROR)}
    assert broken == {(A, B)}
