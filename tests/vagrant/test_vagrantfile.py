"""The Vagrantfile holds for every topology that ships, and says clearly what is wrong with one that doesn't."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_vagrant

CHECKOUT = Path(__file__).resolve().parents[2]
TOPOLOGIES = sorted(path.stem for path in (CHECKOUT / "topologies").glob("*.yaml"))
TIMEOUT_S = 120
DESCRIBE = """
require "json"
nodes = LabTopology.new(ARGV[0], ARGV[1]).nodes
puts JSON.generate(nodes.map { |node| node.to_h.merge(ports: node.ports.map(&:to_h)) })
"""


@pytest.fixture
def vagrant(tmp_path):
    """Runs vagrant with its state in a directory of the test; gives status, output and errors."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        private = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LAB_")}
        return subprocess.run(
            ["vagrant", *arguments],
            cwd=CHECKOUT,
            env=inherited | private | environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    return run


def test_the_single_machine_is_valid(vagrant):
    result = vagrant("validate", "--ignore-provider")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_each_shipped_topology_is_valid(vagrant, topology):
    result = vagrant("validate", "--ignore-provider", LAB_TOPOLOGY=topology)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_unknown_topology_is_named_with_those_that_exist(vagrant):
    result = vagrant("validate", "--ignore-provider", LAB_TOPOLOGY="ha-pear")
    assert result.returncode != 0
    assert "ha-pear" in result.stderr
    for topology in TOPOLOGIES:
        assert topology in result.stderr


def test_a_cable_to_a_port_that_is_not_there_is_named(vagrant, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nnodes: {a: {adapters: [ic0]}, b: {adapters: [ic0]}}\ncables: {one: [a.ic0, b.ic7]}\n")
    result = vagrant("validate", "--ignore-provider", LAB_TOPOLOGY=str(broken))
    assert result.returncode != 0
    assert "b.ic7" in result.stderr


def test_a_file_that_is_no_yaml_is_refused_with_its_place(vagrant, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nnodes: {a: [\n")
    result = vagrant("validate", "--ignore-provider", LAB_TOPOLOGY=str(broken))
    assert result.returncode != 0
    assert "broken.yaml" in result.stderr
    assert "line" in result.stderr


def describe(topology: str) -> list[dict]:
    """The machines that the Vagrantfile's own reader makes of a topology."""
    ruby = shutil.which("ruby") or "/opt/vagrant/embedded/bin/ruby"
    if not Path(ruby).exists():
        pytest.skip("no ruby beside vagrant")
    command = [ruby, "-r", str(CHECKOUT / "vagrant" / "topology.rb"), "-e", DESCRIBE, topology, "topologies"]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return json.loads(result.stdout)


def test_a_cable_between_two_nodes_is_a_network_of_its_own():
    a, b = describe("ha-pair")
    assert [port["network"] for port in a["ports"]] == [port["network"] for port in b["ports"]]
    assert len({port["network"] for port in a["ports"]}) == 2


def test_what_meets_at_a_switch_is_one_network():
    nodes = describe("quad-switched")
    assert len(nodes) == 4
    assert len({port["network"] for node in nodes for port in node["ports"]}) == 2
    for node in nodes:
        assert len({port["network"] for port in node["ports"]}) == 2


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_addresses_and_taps_are_unique_and_fit(topology):
    ports = [port for node in describe(topology) for port in node["ports"]]
    assert len({port["address"] for port in ports}) == len(ports)
    assert len({port["tap"] for port in ports}) == len(ports)
    assert all(len(port["tap"]) <= 15 for port in ports)


def test_cabled_switches_are_one_network(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(
        "name: two\nnodes: {a: {adapters: [p]}, b: {adapters: [p]}}\nswitches: [left, right]\n"
        "cables: {one: [a.p, left], two: [b.p, right], trunk: {ends: [left, right], delay: 1ms}}\n"
    )
    a, b = describe(str(file))
    assert a["ports"][0]["network"] == b["ports"][0]["network"]
