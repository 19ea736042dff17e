"""The fabric with real namespaces and interfaces: what cables do, whole, cut, silenced, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from lab.errors import InputError, LabError
from lab.fabric import join, registry
from lab.fabric.client import Fabric, FabricGone
from lab.fabric.specification import resolve_wire
from lab.plan import INTERFACE_MTU, Plan
from lab.topology import Topology
from tests.helpers.station import FRAMES_WAITING_MAX, Station, wait_for

pytestmark = pytest.mark.netns
BURST = FRAMES_WAITING_MAX // 3
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pair_plan() -> Plan:
    return Plan(Topology.load("ha-pair"))


@pytest.fixture
def fabric(pair_plan: Plan) -> Iterator[Fabric]:
    """A pair without adapters: nobody but the test sends or takes frames."""
    with Fabric.start(pair_plan, adapters=False) as started:
        yield started


@pytest.fixture
def station(request: pytest.FixtureRequest) -> Iterator[Callable[[Fabric, str], Station]]:
    opened: list[Station] = []

    def opens(fabric: Fabric, port: str) -> Station:
        node, _, interface = port.partition(".")
        opened.append(Station(fabric, node, interface))
        return opened[-1]

    yield opens
    for one in opened:
        one.close()


Opens = Callable[[Fabric, str], Station]


def both_ways(left: Station, right: Station) -> bool:
    left.send(right.mac, b"there")
    right.send(left.mac, b"and back")
    return right.receive(1) == [b"there"] and left.receive(1) == [b"and back"]


def test_interfaces_are_as_the_plan_says(fabric: Fabric, pair_plan: Plan, station: Opens) -> None:
    for (node, adapter), port in pair_plan.ports.items():
        end = station(fabric, f"{node}.{adapter}")
        assert end.mac == port.mac
        assert end.mtu() == INTERFACE_MTU
        assert end.carrier()


def test_a_node_sends_nothing_by_itself(fabric: Fabric) -> None:
    """IPv6 is off, so no router solicitation, and nothing is forwarded."""
    kinds, descriptors = fabric.namespaces("a")

    def look() -> int:
        ipv6 = Path("/proc/sys/net/ipv6/conf/ic0/disable_ipv6")
        forwarding = Path("/proc/sys/net/ipv4/conf/ic0/forwarding").read_text().strip()
        return int((ipv6.exists() and ipv6.read_text().strip() != "1") or forwarding != "0")

    assert join.run_inside(kinds, descriptors, look) == 0
    for descriptor in descriptors:
        os.close(descriptor)


def test_frames_pass_in_order(fabric: Fabric, station: Opens) -> None:
    a, b, other = station(fabric, "a.ic0"), station(fabric, "b.ic0"), station(fabric, "b.ic1")
    for number in range(BURST):
        a.send(b.mac, b"%d" % number)
    assert b.receive(BURST) == [b"%d" % number for number in range(BURST)]
    assert other.waiting() == [], "the other cable carries none of it"


def test_a_cut_takes_the_carrier_of_both_ends_until_it_is_restored(fabric: Fabric, station: Opens) -> None:
    a, b, spare = station(fabric, "a.ic0"), station(fabric, "b.ic0"), station(fabric, "a.ic1")
    first = fabric.cut("ic0")
    assert (a.carrier(), b.carrier(), spare.carrier()) == (False, False, True)
    a.send(b.mac, b"lost")
    second = fabric.restore("ic0")
    assert a.carrier()
    assert b.carrier()
    wait_for(lambda: arrives(a, b, b"again"), "frames pass again")
    assert second > first
    assert b"lost" not in b.waiting()


def arrives(source: Station, target: Station, text: bytes) -> bool:
    """Right after a carrier returns the kernel may still be attaching the interface's queue: frames are lost then."""
    source.send(target.mac, text)
    return text in target.waiting()


def test_cutting_twice_is_cutting_once(fabric: Fabric, station: Opens) -> None:
    a, b = station(fabric, "a.ic0"), station(fabric, "b.ic0")
    fabric.cut("ic0")
    fabric.cut("ic0")
    fabric.restore("ic0")
    fabric.restore("ic0")
    wait_for(lambda: arrives(a, b, b"x") and arrives(b, a, b"y"), "frames pass again")


def test_one_end_cut_leaves_the_other_its_carrier_and_no_frame_passes(fabric: Fabric, station: Opens) -> None:
    a, b = station(fabric, "a.ic0"), station(fabric, "b.ic0")
    fabric.cut("ic0", "a")
    assert (a.carrier(), b.carrier()) == (False, True)
    b.send(a.mac, b"into nothing")
    fabric.cut("ic0", "b.ic0")
    assert (a.carrier(), b.carrier()) == (False, False)
    fabric.restore("ic0", "a")
    assert (a.carrier(), b.carrier()) == (True, False)
    a.send(b.mac, b"into nothing")
    fabric.restore("ic0")
    wait_for(lambda: arrives(a, b, b"x") and arrives(b, a, b"y"), "frames pass again")
    assert b"into nothing" not in a.waiting() + b.waiting()


def test_a_blackhole_swallows_frames_in_silence(fabric: Fabric, station: Opens) -> None:
    a, b = station(fabric, "a.ic0"), station(fabric, "b.ic0")
    assert both_ways(a, b)
    fabric.blackhole("ic0")
    for number in range(BURST):
        a.send(b.mac, b"%d" % number)
        b.send(a.mac, b"%d" % number)
    assert (a.carrier(), b.carrier()) == (True, True)
    assert fabric.swallowed("ic0") == 2 * BURST
    fabric.unblackhole("ic0")
    assert both_ways(a, b), "and the next frame passes, nothing late before it"
    assert fabric.swallowed("ic0") == 2 * BURST, "counts stay readable"


def test_a_blackhole_can_swallow_one_direction(fabric: Fabric, station: Opens) -> None:
    a, b = station(fabric, "a.ic0"), station(fabric, "b.ic0")
    fabric.blackhole("ic0", "a")
    a.send(b.mac, b"never")
    b.send(a.mac, b"still")
    assert a.receive(1) == [b"still"]
    fabric.unblackhole("ic0", "a")
    a.send(b.mac, b"now")
    assert b.receive(1) == [b"now"]


def test_arming_under_traffic_keeps_every_frame_and_their_order(fabric: Fabric, station: Opens) -> None:
    """Frames pass while rules are armed and disarmed: none is lost, none overtakes another."""
    a, b = station(fabric, "a.ic0"), station(fabric, "b.ic0")
    enough = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        while not enough.wait(0.001):
            a.send(b.mac, b"%d" % sent)
            sent += 1

    sender = threading.Thread(target=send)
    sender.start()
    arrived: list[bytes] = []
    try:
        for _ in range(5):
            arrived += b.receive(5)
            rules = fabric.arm(["ic0"], [{"action": "observe", "opcode": "ARP"}])
            arrived += b.receive(5)
            fabric.disarm(rules)
    finally:
        enough.set()
        sender.join()
    arrived += b.receive(sent - len(arrived))
    assert arrived == [b"%d" % number for number in range(sent)]


def test_an_armed_rule_meets_frames_and_tells(fabric: Fabric, station: Opens) -> None:
    a, b = station(fabric, "a.ic0"), station(fabric, "b.ic0")
    rules = fabric.arm(["ic0"], [{"action": "drop", "source": "a", "nth": 3, "cables": ["ic0"]}])
    for number in range(1, 7):
        a.send(b.mac, b"%d" % number)
    assert b.receive(5) == [b"1", b"2", b"4", b"5", b"6"]
    counts, events = fabric.fired()
    assert counts == {rules[0]: 1}
    assert [event["action"] for event in events] == ["drop"]
    assert fabric.fired(after=int(events[-1]["number"]))[1] == []
    fabric.disarm(rules)
    assert both_ways(a, b)


def test_wrong_names_are_told_and_change_nothing(fabric: Fabric, station: Opens) -> None:
    with pytest.raises(LabError, match="there is: ic0, ic1"):
        fabric.cut("ic7")
    with pytest.raises(LabError, match=r"its ends: a\.ic0, b\.ic0"):
        fabric.cut("ic0", "c")
    with pytest.raises(LabError, match=r"its ends: a\.ic0, b\.ic0"):
        fabric.blackhole("ic0", "a.ic1")
    with pytest.raises(LabError, match='no node "x"'):
        fabric.start_host("x")
    with pytest.raises(LabError, match="does not run"):
        fabric.kill_adapter("a", "ic0")
    assert both_ways(station(fabric, "a.ic0"), station(fabric, "b.ic0"))


def test_switches_carry_frames_between_all_their_ports(station: Opens) -> None:
    with Fabric.start(Plan(Topology.load("quad-switched")), adapters=False) as quad:
        left = {node: station(quad, f"{node}.ic0") for node in "abcd"}
        right = {node: station(quad, f"{node}.ic1") for node in "abcd"}
        left["a"].send(b"\xff" * 6, b"to all")
        for node in "bcd":
            assert left[node].receive(1) == [b"to all"]
        assert both_ways(left["b"], left["d"])
        left["a"].waiting()
        left["c"].waiting()
        assert both_ways(left["b"], left["d"])
        assert left["a"].waiting() == left["c"].waiting() == [], "a switch learns who is where"
        quad.cut("a-left")
        assert [left[node].carrier() for node in "abcd"] == [False, True, True, True]
        assert both_ways(right["a"], right["b"])
        assert both_ways(left["c"], left["d"])


def test_two_labs_of_one_topology_do_not_meet(pair_plan: Plan, station: Opens) -> None:
    with Fabric.start(pair_plan, adapters=False) as one, Fabric.start(pair_plan, adapters=False) as two:
        assert one.lab_id != two.lab_id
        a, b, strange = station(one, "a.ic0"), station(one, "b.ic0"), station(two, "b.ic0")
        a.send(b"\xff" * 6, b"hello")
        assert b.receive(1) == [b"hello"]
        assert strange.waiting() == []
        one.cut("ic0")
        assert strange.carrier()


def test_adapters_run_die_and_return(pair_plan: Plan) -> None:
    with Fabric.start(pair_plan) as fabric:
        memory = Memory.open_file(fabric.node_memory_path("a"), NODE_MEMORY_BYTES)
        node = NodeMemory(memory)
        assert {(one["key"], one["running"]) for one in fabric.processes()} == {
            ("a/ic0", True), ("a/ic1", True), ("b/ic0", True), ("b/ic1", True),
        }  # fmt: skip
        assert (node.adapter_alive(0), node.adapter_alive(1)) == (True, True)
        fabric.kill_adapter("a", "ic1")
        assert (node.adapter_alive(0), node.adapter_alive(1)) == (True, False)
        assert [(end["key"], end["status"]) for end in fabric.exits()] == [("a/ic1", -signal.SIGKILL)]
        fabric.start_adapter("a", "ic1")
        wait_for(lambda: node.adapter_alive(1), "the adapter returns")
        with pytest.raises(LabError, match="runs already"):
            fabric.start_adapter("a", "ic1")
        memory.close()


def gone(pid: int) -> bool:
    """Whether a process has ended; one that its parent, not the lab, still has to bury counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pids_of(fabric: Fabric) -> list[int]:
    return [fabric.fabric_pid, *(int(process["pid"]) for process in fabric.processes())]


def test_nothing_is_left_after_stop(pair_plan: Plan) -> None:
    fabric = Fabric.start(pair_plan)
    pids = pids_of(fabric)
    assert len(pids) == 5
    fabric.stop()
    assert all(gone(pid) for pid in pids)
    assert not fabric.directory.exists()
    fabric.stop()


def test_nothing_is_left_after_an_exception(pair_plan: Plan) -> None:
    with pytest.raises(ZeroDivisionError), Fabric.start(pair_plan, adapters=False) as fabric:
        _ = 1 // 0
    assert gone(fabric.fabric_pid)
    assert not fabric.directory.exists()


def test_a_kernel_that_kills_the_fabric_process_kills_all_of_its_lab_and_no_other(pair_plan: Plan) -> None:
    with Fabric.start(pair_plan, adapters=False) as neighbour:
        fabric = Fabric.start(pair_plan)
        pids = pids_of(fabric)
        os.kill(fabric.fabric_pid, signal.SIGKILL)
        wait_for(lambda: all(gone(pid) for pid in pids), "all processes end")
        with pytest.raises(FabricGone):
            fabric.cut("ic0")
        wait_for(lambda: not record(fabric.lab_id).alive, "the registry sees it")
        assert record(neighbour.lab_id).alive
        assert not registry.remove_dead(record(neighbour.lab_id)), "a living lab is never removed"
        assert registry.remove_dead(record(fabric.lab_id))
        assert not fabric.directory.exists()
        fabric.stop()
        neighbour.cut("ic0")


def record(lab_id: str) -> registry.LabRecord:
    return next(found for found in registry.labs() if found.lab_id == lab_id)


CLIENT = """
    import signal, sys
    sys.path.insert(0, {root!r})
    from lab.fabric.client import Fabric
    from lab.plan import Plan
    from lab.topology import Topology
    fabric = Fabric.start(Plan(Topology.load("ha-pair")))
    print(fabric.lab_id, fabric.fabric_pid, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_client_is_killed(number: signal.Signals) -> None:
    program = textwrap.dedent(CLIENT).format(root=str(ROOT))
    client = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert client.stdout is not None
    with client.stdout:
        lab_id, pid = client.stdout.readline().split()
    directory = record(lab_id).directory
    client.send_signal(number)
    client.wait(timeout=30)
    wait_for(lambda: gone(int(pid)) and not directory.exists(), "the lab ends with its client")


def test_a_kept_lab_outlives_its_client_and_is_found_by_name(pair_plan: Plan) -> None:
    name = f"kept-{os.getpid()}"
    started = Fabric.start(pair_plan, name=name, keep=True, adapters=False)
    started.detach()
    again = Fabric.attach(name)
    try:
        assert again.describe()["topology"] == "ha-pair"
        with pytest.raises(InputError, match="is up already"):
            Fabric.start(pair_plan, name=name, adapters=False)
        with pytest.raises(InputError, match=f'did you mean "{name}"'):
            Fabric.attach(name[:-1] + "x")
    finally:
        again.stop()
    assert not again.directory.exists()


@pytest.mark.parametrize("name", ["", ".", "../x", "a b", "x" * 33, "-x"])
def test_lab_names_that_are_no_names(pair_plan: Plan, name: str) -> None:
    before = {found.lab_id for found in registry.labs()}
    with pytest.raises(InputError, match="lab name"):
        Fabric.start(pair_plan, name=name)
    assert {found.lab_id for found in registry.labs()} <= before


LONG = "longer-than-the-kernel-takes"


def test_long_cable_names_are_second_names(tmp_path: Path, station: Opens) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(
        f"name: long\nnodes:\n  a: {{adapters: [p0]}}\n  b: {{adapters: [p0]}}\ncables:\n  {LONG}: [a.p0, b.p0]\n"
    )
    with Fabric.start(Plan(Topology.load(str(file))), adapters=False) as fabric:
        assert both_ways(station(fabric, "a.p0"), station(fabric, "b.p0"))
        fabric.cut(LONG)


def test_several_threads_start_labs_at_once(pair_plan: Plan) -> None:
    started: list[Fabric] = []
    workers = [
        threading.Thread(target=lambda: started.append(Fabric.start(pair_plan, adapters=False))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({fabric.lab_id for fabric in started}) == 4
    for fabric in started:
        fabric.stop()
    assert not any(fabric.directory.exists() for fabric in started)


def test_the_wire_that_is_chosen_can_be_had() -> None:
    assert resolve_wire("packet") == "packet"
    assert resolve_wire("auto") in ("xdp", "packet")
