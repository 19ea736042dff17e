"""A node's two containers: what they are made of, what a host's end leaves standing, and that nothing stays."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from lab.docker import image
from lab.docker.engine import Engine
from lab.docker.nodes import DockerNodes, remove_leftovers
from lab.errors import MachineError
from lab.plan import Plan
from lab.topology import Topology

pytestmark = [pytest.mark.needs_docker, pytest.mark.root]

CHECKOUT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20
TEXT = """
name: pair
nodes:
  a: {adapters: [ic0], nvram: 1MiB, clients: [echo], memory: 256MiB, cpus: 0.5}
  b: {adapters: [ic0], nvram: 1MiB, clients: [echo]}
cables:
  ic0: [a.ic0, b.ic0]
"""
# In the place of ccm.process: it shows what it is given, and stays.
STAND_IN = """
import json, os, sys, time
config = json.load(open(sys.argv[1]))
with open(os.path.dirname(config["history"]) + "/seen", "a") as seen:
    print(config["node"], sorted(os.listdir("/sys/class/net")), file=seen)
time.sleep(600)
"""


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
def lab_id():
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def plan():
    return Plan(Topology.parse(TEXT))


@pytest.fixture
def nodes(engine, plan, lab_id):
    nodes = DockerNodes(engine, plan, lab_id)
    yield nodes
    nodes.close()
    assert engine.find(f"ccm-lab={lab_id}") == []


@pytest.fixture
def state(plan, lab_id):
    """In memory where the lab keeps it, too: below a directory that a container has of its own (/dev/shm)."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix=lab_id, dir=base) as directory:
        for node in plan.topology.nodes:
            (Path(directory) / "nodes" / node).mkdir(parents=True)
        yield Path(directory)


@pytest.fixture
def hosts(nodes, state, monkeypatch):
    """Hardware and host containers, in which a stand-in runs in the place of the manager's process."""
    program = state / "stand_in.py"
    program.write_text(STAND_IN)
    nodes.start_hardware()
    for node in ("a", "b"):
        (state / "nodes" / node / "stand_in.py").write_text(STAND_IN)

    def command(config: Path) -> list[str]:
        return [sys.executable, str(config.parent / "stand_in.py"), str(config)]

    monkeypatch.setattr("lab.docker.nodes.host_command", command)
    nodes.create_hosts(state, seed=7)
    return nodes


def interfaces_of(namespace: int) -> list[str]:
    """Names of the interfaces in a network namespace, asked by a process that enters it."""
    program = "import ctypes, os, socket, sys; ctypes.CDLL(None).setns(int(sys.argv[1]), 0x40000000) and sys.exit(1)\n"
    program += "print(*(name for _, name in socket.if_nameindex()))"
    command = [sys.executable, "-c", program, str(namespace)]
    return subprocess.run(command, pass_fds=[namespace], capture_output=True, text=True, check=True).stdout.split()


def test_the_image_is_made_of_nothing_and_made_once(engine):
    name = image.ensure_image(engine)
    assert image.ensure_image(engine) == name
    assert name.startswith("ccm-lab-node:")


def test_mounts_are_read_only_and_none_is_below_another():
    paths = [bind.path for bind in image.binds()]
    assert not any(bind.writable for bind in image.binds())
    assert not any(one != other and one.startswith(other + "/") for one in paths for other in paths)
    assert any(sys.executable.startswith(path + "/") for path in paths)


def test_each_node_has_a_network_namespace_of_its_own_without_interfaces(nodes):
    namespaces = nodes.start_hardware()
    assert set(namespaces) == {"a", "b"}
    inodes = {os.fstat(descriptor).st_ino for descriptor in namespaces.values()}
    assert len(inodes) == 2
    assert Path("/proc/self/ns/net").stat().st_ino not in inodes
    assert interfaces_of(namespaces["a"]) == ["lo"]


def test_containers_carry_lab_node_and_role(engine, hosts, lab_id):
    labels = [container.labels for container in engine.find(f"ccm-lab={lab_id}")]
    seen = sorted((label["ccm-lab.node"], label["ccm-lab.role"]) for label in labels)
    assert seen == [("a", "hardware"), ("a", "host"), ("b", "hardware"), ("b", "host")]


def test_limits_of_the_topology_hold_for_the_host_alone(engine, hosts, lab_id):
    limits = {}
    for container in engine.find(f"ccm-lab={lab_id}"):
        container.reload()
        labels, config = container.labels, container.attrs["HostConfig"]
        limits[labels["ccm-lab.node"], labels["ccm-lab.role"]] = config["Memory"], config["NanoCpus"]
    assert limits["a", "host"] == (256 << 20, 500_000_000)
    assert limits["a", "hardware"] == limits["b", "host"] == limits["b", "hardware"] == (0, 0)


def test_a_host_runs_in_its_nodes_network_namespace_with_its_state_directory(hosts, state):
    hosts.start_host("b")
    seen = state / "nodes" / "b" / "seen"
    wait_for("the host wrote into its state directory", lambda: seen.exists() and seen.read_text())
    assert seen.read_text() == "b ['lo']\n"


def test_a_killed_host_leaves_its_hardware_and_starts_again(engine, nodes, hosts, lab_id, state):
    before = time.monotonic_ns()
    hosts.start_host("a")
    seen = state / "nodes" / "a" / "seen"
    wait_for("first start", lambda: seen.exists() and len(seen.read_text().splitlines()) == 1)

    killed = hosts.kill_host("a", signal.SIGKILL)
    assert before < killed < time.monotonic_ns()
    wait_for("the host is gone", lambda: not hosts.host_running("a"))
    hardware = [c for c in engine.find(f"ccm-lab={lab_id}") if c.labels["ccm-lab.role"] == "hardware"]
    assert [container.status for container in hardware] == ["running", "running"]

    hosts.start_host("a")
    wait_for("second start", lambda: len(seen.read_text().splitlines()) == 2)


def test_a_paused_host_is_frozen_and_can_be_killed(hosts):
    hosts.start_host("a")
    hosts.stop_host("a")
    process = hosts.host_process("a")
    assert process
    hosts.kill_host("a")
    wait_for("the frozen host is gone", lambda: not hosts.host_running("a"))
    hosts.continue_host("a")  # nothing to thaw: no error


def test_an_adapter_reaches_across_by_a_descriptor(hosts, state):
    """Memory travels by descriptor over a unix socket in the state directory, from outside into the container."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(state / "nodes" / "a" / "ic0.sock"))
    listener.listen()
    listener.settimeout(DEADLINE_S)
    (state / "nodes" / "a" / "stand_in.py").write_text(
        textwrap.dedent(
            """
            import mmap, os, socket, sys
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(os.path.dirname(sys.argv[1]) + "/ic0.sock")
            _, fds, _, _ = socket.recv_fds(sock, 16, 2)
            mmap.mmap(fds[0], 4096)[:5] = b"hello"
            os.write(fds[1], (1).to_bytes(8, "little"))
            """
        )
    )
    memory, event = os.memfd_create("region"), os.eventfd(0)
    os.ftruncate(memory, 4096)
    hosts.start_host("a")
    with listener, listener.accept()[0] as connection:
        socket.send_fds(connection, [b"region"], [memory, event])
        assert struct.unpack("<Q", os.read(event, 8)) == (1,)
    assert os.pread(memory, 5, 0) == b"hello"
    os.close(memory)
    os.close(event)


def test_nothing_runs_on_when_the_lab_is_killed(engine, nodes, lab_id, state):
    """SIGKILL: the hardware sees its input's end and goes, its host ends with it, and what is left is known as dead."""
    killed_id = f"{lab_id}-killed"
    program = textwrap.dedent(
        f"""
        import signal, sys
        from pathlib import Path
        import lab.docker.nodes
        from lab.docker.engine import Engine
        from lab.plan import Plan
        from lab.topology import Topology
        lab.docker.nodes.host_command = lambda config: ["/bin/sleep", "600"]
        nodes = lab.docker.nodes.DockerNodes(Engine(), Plan(Topology.parse({TEXT!r})), {killed_id!r})
        nodes.start_hardware()
        nodes.create_hosts(Path({str(state)!r}), seed=1)
        nodes.start_host("a")
        print("ready", flush=True)
        signal.pause()
        """
    )

    def statuses():
        return sorted(container.status for container in engine.find(f"ccm-lab={killed_id}"))

    nodes.start_hardware()  # another lab, which lives
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=CHECKOUT) as lab:
        assert lab.stdout.readline() == b"ready\n"
        assert statuses() == ["created", "running", "running", "running"]
        lab.kill()
    wait_for("no container of the lab runs", lambda: statuses() == ["created", "exited"])
    removed = sorted(name for name in remove_leftovers() if killed_id in name)
    assert removed == [f"ccm-lab-{killed_id}-{node}-host" for node in ("a", "b")]
    assert statuses() == []
    assert len(engine.find(f"ccm-lab={lab_id}")) == 2


def test_containers_of_a_kept_lab_stay_until_it_is_said_to_be_dead(engine, plan, lab_id):
    kept = DockerNodes(engine, plan, lab_id, nodes=["a"], keep=True)
    kept.start_hardware()
    kept.detach()
    remove_leftovers()
    assert [container.status for container in engine.find(f"ccm-lab={lab_id}")] == ["running"]
    assert remove_leftovers([lab_id]) == [f"ccm-lab-{lab_id}-a-hardware"]


def test_leftovers_of_one_lab_are_removed_and_another_lab_is_left_alone(engine, nodes, plan, lab_id):
    nodes.start_hardware()
    other = DockerNodes(engine, plan, lab_id + "-other")
    try:
        other.start_hardware()
        removed = remove_leftovers([lab_id])
        assert sorted(removed) == [f"ccm-lab-{lab_id}-a-hardware", f"ccm-lab-{lab_id}-b-hardware"]
        assert len(engine.find(f"ccm-lab={lab_id}-other")) == 2
    finally:
        other.close()


def test_without_an_engine_the_message_says_how_to_get_one(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(MachineError, match="Docker engine") as caught:
        Engine()
    assert "install Docker" in str(caught.value)
    assert caught.value.exit_status == 3


def test_without_the_sdk_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MachineError, match="Docker SDK") as caught:
        Engine()
    assert "pip install docker" in str(caught.value)
    assert remove_leftovers(["any"]) == []


def test_without_root_the_message_says_what_needs_it(engine, plan, lab_id, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(MachineError, match="need root") as caught:
        DockerNodes(engine, plan, lab_id)
    assert "--world netns" in str(caught.value)
