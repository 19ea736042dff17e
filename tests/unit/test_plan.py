"""What follows from a topology: numbers, addresses, paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emul.node_memory import PATHS_MAX
from lab.plan import Plan
from lab.topology import Topology


def star(nodes: int, adapters: int) -> Topology:
    """`nodes` nodes, all adapters of all of them in one switch."""
    names = [f"n{number}" for number in range(1, nodes + 1)]
    ports = [f"p{number}" for number in range(adapters)]
    lines = ["name: star", f"defaults: {{adapters: [{', '.join(ports)}]}}", "switches: [s]", "nodes:"]
    lines += [f"  {name}: {{}}" for name in names]
    lines += ["cables:"]
    lines += [f"  c-{name}-{port}: [{name}.{port}, s]" for name in names for port in ports]
    return Topology.parse("\n".join(lines))


def test_the_pair_has_two_paths_one_for_each_cable() -> None:
    plan = Plan(Topology.load("ha-pair"))
    assert plan.node_ids == {"a": 1, "b": 2}
    assert plan.partners("a") == ["b"]
    assert [(p.index, p.local.adapter, p.remote.adapter, p.cables) for p in plan.paths("a", "b")] == [
        (0, "ic0", "ic0", ("ic0",)),
        (1, "ic1", "ic1", ("ic1",)),
    ]
    assert plan.paths("a", "a") == ()
    assert plan.ports["a", "ic0"].address == "10.77.0.1"
    assert plan.ports["b", "ic1"].address == "10.77.10.2"


def test_through_switches_every_node_is_every_others_partner() -> None:
    plan = Plan(Topology.load("quad-switched"))
    assert plan.partners("c") == ["a", "b", "d"]
    assert [path.cables for path in plan.paths("c", "b")] == [("c-left", "b-left"), ("c-right", "b-right")]


def test_switches_in_a_row_are_one_network() -> None:
    topology = Topology.parse(
        "name: row\ndefaults: {adapters: [p]}\nnodes: {a: , b: }\nswitches: [s, t, u]\n"
        "cables: {ca: [a.p, s], st: [s, t], tu: [t, u], cb: [u, b.p]}\n"
    )
    assert [path.cables for path in Plan(topology).paths("b", "a")] == [("cb", "tu", "st", "ca")]


def test_more_port_pairs_than_paths_are_cut_to_those_that_use_most_ports() -> None:
    paths = Plan(star(2, 4)).paths("n1", "n2")
    assert len(paths) == PATHS_MAX
    assert [(path.local.index, path.remote.index) for path in paths[:4]] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert len({path.local.address for path in paths}) == 4


@settings(max_examples=25, deadline=None)
@given(nodes=st.integers(2, 12), adapters=st.integers(1, 5))
def test_both_ends_number_their_paths_alike_and_nothing_is_there_twice(nodes: int, adapters: int) -> None:
    plan = Plan(star(nodes, adapters))
    for node in plan.topology.nodes:
        for partner in plan.partners(node):
            there, back = plan.paths(node, partner), plan.paths(partner, node)
            assert [path.index for path in there] == list(range(len(there)))
            assert [(p.local, p.remote, p.cables) for p in there] == [(p.remote, p.local, p.cables[::-1]) for p in back]
    assert len({port.address for port in plan.ports.values()}) == len(plan.ports)
    assert len({port.mac for port in plan.ports.values()}) == len(plan.ports)
    assert all(port.mac[0] & 3 == 2 for port in plan.ports.values())


@pytest.mark.parametrize("index", [0, 15])
def test_the_largest_cluster_has_addresses_of_its_own(index: int) -> None:
    plan = Plan(star(511, 1)) if index == 0 else Plan(star(3, 16))
    octets = [tuple(map(int, port.address.split("."))) for port in plan.ports.values()]
    assert len(set(octets)) == len(octets)
    assert all(octet[:2] == (10, 77) and octet[2] < 256 and 0 < octet[3] < 255 for octet in octets)


def test_processes_are_told_what_they_need_in_plain_values() -> None:
    plan = Plan(Topology.load("ha-pair"))
    host = plan.host_config("b", Path("/state"), seed=7)
    assert host["node_id"] == 2
    assert host["seed"] == 7
    assert host["history"] == "/state/nodes/b/history.bin"
    assert host["partners"] == [
        {
            "name": "a",
            "id": 1,
            "paths": [
                {"index": 0, "adapter": 0, "local": "10.77.0.2", "remote": "10.77.0.1"},
                {"index": 1, "adapter": 1, "local": "10.77.10.2", "remote": "10.77.10.1"},
            ],
        }
    ]
    adapter = plan.adapter_config("b", "ic1", Path("/state"), wire="packet")
    assert (adapter["interface"], adapter["address"], adapter["wire"]) == ("ic1", "10.77.10.2", "packet")
    assert adapter["control"] == "/state/nodes/b/ic1.sock"
    assert json.loads(json.dumps([host, adapter])) == [host, adapter]
