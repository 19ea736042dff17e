"""Members that leave and join in the simulator, on real hosts and adapters."""

from __future__ import annotations

import pytest

from ccm.history import Kind, new_entries
from emul.clock import MILLISECOND, SECOND
from lab import Lab, Topology, run
from lab.check.evidence import Session

TRIO = """
name: trio
defaults: {adapters: [ic0, ic1], nvram: 64KiB, clients: [echo, failover-monitor]}
nodes: {a: {}, b: {}, c: {}}
switches: [left, right]
cables:
  a0: [a.ic0, left]
  b0: [b.ic0, left]
  c0: [c.ic0, left]
  a1: [a.ic1, right]
  b1: [b.ic1, right]
  c1: [c.ic1, right]
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_the_scenario_that_ships_passes(seed):
    result = run("member-leaves", world="sim", seed=seed)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    # Sessions of the three who stay are ready once each: the leave of the fourth is no business of theirs.
    stay = [e for e in result.outcome.evidence.entries if e.kind == Kind.READY_ALERT and 4 not in (e.node, e.partner)]
    sessions = {Session(e.node, e.partner, e.client) for e in stay}
    assert len(stay) == len(sessions) > 0


def partners(lab: Lab, node: str) -> list[str]:
    status = lab.hosts[node].ask({"op": "status"})["partners"]
    assert isinstance(status, dict)
    return sorted(status)


def alerts(lab: Lab, node: str) -> list[tuple[Kind, int]]:
    entries, _ = new_entries(lab.world.history(node), 0)
    kinds = (Kind.READY_ALERT, Kind.ERROR_ALERT, Kind.SESSION_CLOSED)
    return [(Kind(entry.kind), entry.partner) for entry in entries if entry.kind in kinds]


def test_a_host_that_reboots_meanwhile_does_not_know_the_absent_member_and_learns_of_its_return():
    with Lab(Topology.parse(TRIO), world="sim", seed=3) as lab:
        lab.wait_ready()
        lab.hosts["c"].leave()
        assert partners(lab, "a") == ["b"]
        lab.hosts["b"].crash()
        lab.wait(lambda: False, 100 * MILLISECOND)
        lab.hosts["b"].boot()
        lab.wait(lambda: False, SECOND)
        assert partners(lab, "b") == ["a"]
        lab.hosts["c"].join()
        lab.wait_ready()
        assert partners(lab, "b") == ["a", "c"]
        assert partners(lab, "c") == ["a", "b"]


def test_members_that_leave_one_after_the_other_leave_nothing_and_come_back_in_any_order():
    with Lab(Topology.parse(TRIO), world="sim", seed=4) as lab:
        lab.wait_ready()
        lab.hosts["c"].leave()
        lab.hosts["b"].leave()
        assert partners(lab, "a") == []
        held = lab.hosts["a"].ask({"op": "resources"})["verbs"]
        assert isinstance(held, list)
        assert [(each["qp"], each["mr"]) for each in held] == [(0, 0), (0, 0)]
        assert Kind.ERROR_ALERT not in [kind for kind, _ in alerts(lab, "a")]
        lab.hosts["b"].join()
        lab.hosts["c"].join()
        lab.wait_ready()


def test_a_member_that_is_dead_already_is_removed_all_the_same():
    with Lab(Topology.parse(TRIO), world="sim", seed=5) as lab:
        lab.wait_ready()
        lab.hosts["c"].crash()
        for port in ("c.ic0", "c.ic1"):
            lab.inject("adapter.die", port)
        lab.wait(lambda: False, SECOND)
        lab.hosts["c"].leave()
        assert partners(lab, "a") == ["b"]
        lab.wait(lambda: False, SECOND)
        assert [kind for kind, partner in alerts(lab, "a") if partner == 2] == [Kind.READY_ALERT] * 2
