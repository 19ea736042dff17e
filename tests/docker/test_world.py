"""Scenarios with hosts in containers, and what a container's crash does not touch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.api import Lab, run
from lab.docker.engine import Engine
from lab.docker.fabric import ContainerFabric, start_fabric
from lab.docker.nodes import remove_leftovers
from lab.docker.world import nodes_in_containers
from lab.plan import Plan
from lab.topology import Topology
from lab.world import HostUnreachable
from tests.helpers.attempts import judged_on_a_steady_machine

pytestmark = [pytest.mark.alone, pytest.mark.needs_docker, pytest.mark.root, pytest.mark.netns]

CHECKOUT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30


def wait_for(what, condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def lab():
    with Lab("ha-pair", world="docker") as lab:
        lab.wait_ready()
        yield lab


def containers(engine, lab):
    """{(node, role): container}."""
    found = engine.find(f"ccm-lab={lab.world.fabric.lab_id}")
    return {(one.labels["ccm-lab.node"], one.labels["ccm-lab.role"]): one for one in found}


def clients(lab, node) -> dict:
    """What a host says of its clients; nothing while it boots."""
    try:
        return dict(lab.world.host(node, {"op": "status"})["clients"])
    except HostUnreachable:
        return {}


def process_of(container) -> int:
    container.reload()
    return container.attrs["State"]["Pid"]


def carrier(container, interface: str) -> str:
    """As the container's own /sys tells it."""
    path = Path(f"/proc/{process_of(container)}/root/sys/class/net/{interface}/carrier")
    return path.read_text().strip()


SCENARIOS = ["cable-cut", "both-cables-cut", "host-restart", "adapter-hang", "own-client", "member-leaves"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_passes_with_hosts_in_containers(scenario):
    result = judged_on_a_steady_machine(lambda attempt: run(scenario, world="docker").to_json())
    assert result["verdict"] == "pass", result


OWN_CODE = """
from helper import SIZE
from ccm.client import Client
from ccm.needs import Needs

class Mine(Client):
    name = "mine"

    def needs(self, partner):
        return Needs(depth=4, message_bytes=SIZE)
"""
OWN_PAIR = """
name: own-pair
nodes:
  a: {adapters: [ic0], nvram: 64KiB, clients: [mine, echo]}
  b: {adapters: [ic0], nvram: 64KiB, clients: [mine, echo]}
cables: {ic0: [a.ic0, b.ic0]}
client_code: {mine: "my clients/mine.py:Mine"}
"""


def test_a_client_of_one_s_own_comes_along_into_the_container_with_what_lies_beside_it(tmp_path):
    """Its code is where a user keeps it: in a directory that no container has by itself."""
    beside = tmp_path / "my clients"
    beside.mkdir()
    (beside / "mine.py").write_text(OWN_CODE)
    (beside / "helper.py").write_text("SIZE = 64\n")
    (tmp_path / "pair.yaml").write_text(OWN_PAIR)
    with Lab(Topology.load(str(tmp_path / "pair.yaml")), world="docker") as lab:
        lab.wait_ready()
        lab.hosts["b"].crash()
        lab.hosts["b"].boot()
        wait_for("b is there again", lambda: clients(lab, "b"))
        lab.wait_ready()
        for node in ("a", "b"):
            assert clients(lab, node)["mine"]["state"] == "running"


def test_a_client_whose_code_is_gone_is_told_and_harms_no_other(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_CODE)
    (tmp_path / "helper.py").write_text("SIZE = 64\n")
    (tmp_path / "pair.yaml").write_text(OWN_PAIR.replace("my clients/mine.py", "mine.py"))
    topology = Topology.load(str(tmp_path / "pair.yaml"))
    (tmp_path / "helper.py").unlink()
    with Lab(topology, world="docker") as lab:
        wait_for("hosts answer", lambda: "echo" in clients(lab, "a"))
        assert clients(lab, "a")["mine"]["state"] == "not made"
        assert "No module named 'helper'" in clients(lab, "a")["mine"]["last_exception"]
        assert clients(lab, "a")["echo"]["state"] == "running"


def test_adapters_are_in_the_hardware_containers_namespace_and_hosts_share_it(engine, lab):
    parts = containers(engine, lab)
    processes = {process["key"]: process["pid"] for process in lab.world.fabric.processes()}
    for node in ("a", "b"):
        network = Path(f"/proc/{process_of(parts[node, 'hardware'])}/ns/net").readlink()
        for name in ("host", "ic0", "ic1"):
            assert Path(f"/proc/{processes[f'{node}/{name}']}/ns/net").readlink() == network
        assert carrier(parts[node, "hardware"], "ic0") == "1"


def test_a_crashed_host_container_leaves_adapters_and_cables_and_its_partner_reads_on(engine, lab):
    parts = containers(engine, lab)
    before = {process["key"]: process["pid"] for process in lab.world.fabric.processes()}

    lab.hosts["b"].crash()

    after = {process["key"]: process["pid"] for process in lab.world.fabric.processes()}
    assert after["b/host"] is None
    assert [after[f"b/{name}"] for name in ("ic0", "ic1")] == [before[f"b/{name}"] for name in ("ic0", "ic1")]
    parts["b", "host"].reload()
    assert parts["b", "host"].status == "exited"
    for interface in ("ic0", "ic1"):
        assert carrier(parts["b", "hardware"], interface) == "1"
        assert carrier(parts["a", "hardware"], interface) == "1"

    lab.hosts["b"].boot()
    lab.wait_ready()


def test_a_killed_lab_leaves_nothing_that_runs_and_down_knows_the_rest(engine):
    program = (
        "import signal\nfrom lab.api import Lab\n"
        "with Lab('ha-pair', world='docker') as lab:\n"
        "    lab.wait_ready()\n"
        "    print(lab.world.fabric.lab_id, flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=CHECKOUT, text=True) as process:
        lab_id = process.stdout.readline().strip()
        assert lab_id
        process.kill()

    def running():
        return [one.name for one in engine.find(f"ccm-lab={lab_id}") if one.status in ("running", "paused")]

    wait_for("no container of the killed lab runs", lambda: running() == [])
    remove_leftovers()
    assert engine.find(f"ccm-lab={lab_id}") == []


def test_a_fabric_that_cannot_start_leaves_no_container(engine, monkeypatch):
    names = []

    def refuse(*arguments, **options):
        names.append(arguments[1])
        raise OSError("no fabric today")

    monkeypatch.setattr("lab.fabric.client.Fabric.start", refuse)
    with pytest.raises(OSError, match="no fabric today"):
        ContainerFabric.start(Plan(Topology.load("ha-pair")))
    assert engine.find(f"ccm-lab={names[0]}") == []


MIXED = """
name: mixed
nodes:
  a: {adapters: [ic0], nvram: 1MiB, clients: [echo], kind: docker, memory: 512MiB}
  b: {adapters: [ic0], nvram: 1MiB, clients: [echo]}
cables: {ic0: [a.ic0, b.ic0]}
"""


def test_only_nodes_of_that_kind_are_in_containers_where_a_topology_has_some():
    assert nodes_in_containers(Plan(Topology.parse(MIXED))) == ["a"]
    assert nodes_in_containers(Plan(Topology.load("ha-pair"))) == ["a", "b"]


def test_a_node_in_a_container_talks_to_one_without(engine):
    with Lab(Topology.parse(MIXED), world="docker") as lab:
        lab.wait_ready()
        assert set(containers(engine, lab)) == {("a", "hardware"), ("a", "host")}
        for node in ("a", "b"):
            lab.hosts[node].crash()
            lab.hosts[node].boot()
            lab.wait_ready()


def test_the_kind_of_a_node_decides_where_no_world_was_asked_for(engine):
    fabric = start_fabric(Plan(Topology.parse(MIXED)))
    with fabric:
        assert len(engine.find(f"ccm-lab={fabric.lab_id}")) == 2
    assert engine.find(f"ccm-lab={fabric.lab_id}") == []
    with start_fabric(Plan(Topology.load("ha-pair"))) as plain:
        assert engine.find(f"ccm-lab={plain.lab_id}") == []
