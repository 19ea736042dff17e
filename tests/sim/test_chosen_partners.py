"""Four nodes in two pairs that mirror to each other, and echo with all: on real hosts and adapters in the simulator."""

from __future__ import annotations

from typing import Any

import pytest

from ccm.budget import Rate
from ccm.history import Kind
from emul.clock import SECOND
from lab import Lab, Scenario, Topology, run
from lab.check.evidence import Session
from lab.resources import topologies_directory

FOUR = """
name: two-pairs
defaults: {{adapters: [ic0, ic1], nvram: 256KiB, clients: {clients}}}
nodes:
  a: {{partners: {{{client}: [b]}}}}
  b: {{partners: {{{client}: [a]}}}}
  c: {{partners: {{{client}: [d]}}}}
  d: {{partners: {{{client}: [c]}}}}
switches: [left, right]
cables:
  a0: [a.ic0, left]
  b0: [b.ic0, left]
  c0: [c.ic0, left]
  d0: [d.ic0, left]
  a1: [a.ic1, right]
  b1: [b.ic1, right]
  c1: [c.ic1, right]
  d1: [d.ic1, right]
"""
SCENARIO = """
scenario: one-pair
topology: two-pairs
workload: {nvram-mirror: {record: 2KiB, depth: 4}, echo: {record: 256B, depth: 2}}
steps: [{at: 200ms, fault: host.crash, target: b, for: 100ms}]
expect:
  sessions.recovered: {within: 5s}
  mirror.no_committed_loss: {}
  alerts.exactly_once: {}
"""
A, B, C, D = 1, 2, 3, 4
MIRROR, ECHO = 1, 2


def four(client: str = "nvram-mirror", clients: str = "[nvram-mirror, echo]") -> Topology:
    return Topology.parse(FOUR.format(client=client, clients=clients))


def opened(lab: Lab, client: str, nodes: str = "abcd") -> set[str]:
    """Whatever a host says of sessions of `client`, open or not, as "ab READY"."""
    found = set()
    for node in nodes:
        partners: Any = lab.hosts[node].ask({"op": "status"})["partners"]
        found |= {
            f"{node}{name} {session['state']}"
            for name, seen in partners.items()
            for session in seen["sessions"]
            if session["client"] == client
        }
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crash_in_one_pair_is_nothing_to_the_other(seed: int) -> None:
    topology = four()
    result = run(Scenario.parse(SCENARIO, topology), topology=topology, world="sim", seed=seed)
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    entries = result.outcome.evidence.entries
    ready = {Session(e.node, e.partner, e.client) for e in entries if e.kind == Kind.READY_ALERT}
    pairs = {(A, B), (B, A), (C, D), (D, C)}
    assert {(s.node, s.partner) for s in ready if s.client == MIRROR} == pairs
    assert {(s.node, s.partner) for s in ready if s.client == ECHO} == {
        (one, other) for one in (A, B, C, D) for other in (A, B, C, D) if one != other
    }
    broken = {(e.node, e.partner, e.client) for e in entries if e.kind == Kind.ERROR_ALERT}
    assert broken == {(A, B, MIRROR), (A, B, ECHO), (C, B, ECHO), (D, B, ECHO)}
    committed = {(e.node, e.partner) for e in entries if e.kind == Kind.COMMITTED and e.client == MIRROR}
    assert committed == pairs, "each mirrors to the other one of its pair"


def test_hosts_open_no_other_session_and_say_with_whom() -> None:
    with Lab(four(), world="sim", seed=3) as lab:
        lab.wait_ready()
        assert opened(lab, "nvram-mirror") == {"ab READY", "ba READY", "cd READY", "dc READY"}
        status: Any = lab.hosts["c"].ask({"op": "status"})["clients"]
        assert status["nvram-mirror"]["partners"] == ["d"] and status["echo"]["partners"] is None
        assert "ok" in lab.hosts["c"].ask({"op": "client.close", "client": "nvram-mirror"})
        assert "ok" in lab.hosts["c"].ask({"op": "client.open", "client": "nvram-mirror"})
        lab.wait_ready()
        assert len(opened(lab, "nvram-mirror")) == 4, "nor when a client is opened again"


def test_a_member_that_leaves_and_joins_comes_back_to_its_own_partner() -> None:
    with Lab(four(), world="sim", seed=4) as lab:
        lab.wait_ready()
        lab.hosts["d"].leave()
        lab.wait(lambda: False, SECOND)
        assert opened(lab, "nvram-mirror", "abc") == {"ab READY", "ba READY"}
        lab.hosts["d"].join()
        lab.wait_ready()
        assert opened(lab, "nvram-mirror") == {"ab READY", "ba READY", "cd READY", "dc READY"}


def test_partners_that_share_no_client_then_are_probed_as_such() -> None:
    with Lab(four(clients="[nvram-mirror]"), world="sim", seed=5) as lab:
        lab.wait_ready()
        lab.wait(lambda: False, 2 * SECOND)
        host = lab.world.nodes["a"].host
        rates = {
            number: {path.liveness._rate for path in peering.paths.paths}
            for number, peering in host.driver.manager.peerings.items()
        }
        assert rates == {B: {Rate.IDLE}, C: {Rate.APART}, D: {Rate.APART}}
        assert not host.driver.manager.peerings[C].sessions.sessions


def test_a_client_of_ones_own_has_its_chosen_partner() -> None:
    file = topologies_directory() / "clients" / "shared_counter.py"
    code = f"client_code: {{shared-counter: {file}:SharedCounter}}\n"
    text = FOUR.format(client="shared-counter", clients="[echo, shared-counter]") + code
    with Lab(Topology.parse(text), world="sim", seed=6) as lab:
        lab.wait_ready()
        assert opened(lab, "shared-counter") == {"ab READY", "ba READY", "cd READY", "dc READY"}
        assert len(opened(lab, "echo")) == 12
