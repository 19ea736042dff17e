"""Adapters as processes on a real cable: what they owe to a host that works, is stopped, dies and comes back."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from errno import ETIMEDOUT
from pathlib import Path

import pytest

from emul import process
from emul.cm import CmEventType, CmId
from emul.cm_machine import CmEvent
from emul.control import STILL_MAX_MS, SocketDevice, receive_message, send_message
from emul.errors import DeviceGone, RDMAError
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.verbs import Context
from emul.vocabulary import (
    GID,
    MTU,
    SGE,
    AHAttr,
    AsyncEvent,
    EventType,
    GlobalRoute,
    QPAttr,
    QPState,
    RecvWR,
    SendWR,
    WCStatus,
    WROpcode,
)
from emul.wellknown import SERVICE_ID, ConnectReply, ConnectRequest, proof
from emul.wire.address import address_bytes
from tests.helpers.adapters import ALL_ACCESS, Party
from tests.helpers.network import DEADLINE_S, Pair, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.root]
GARBAGE_FRAMES = 500
A4, B4 = "10.77.0.1", "10.77.0.2"
A6, B6 = "fd77::1", "fd77::2"


class RealAdapters:
    """Two adapter processes, 0 at the left end of a cable and 1 at its right end."""

    def __init__(
        self, directory: Path, wire: str, *, mtu: int = 2200, addresses: tuple[object, object] = (A4, B4)
    ) -> None:
        self.cable = Pair(mtu=mtu)
        self.addresses = addresses
        self.directory = directory
        self.wire = wire
        self.nodes = [NodeMemory(Memory.open_file(directory / f"{i}.mem", NODE_MEMORY_BYTES)) for i in range(2)]
        self.pids = [self._start(index) for index in range(2)]

    def _start(self, index: int) -> int:
        self.nodes[index].power_on()
        config = {
            "node_id": index + 1,
            "adapter_index": 0,
            "interface": ("left0", "right0")[index],
            "address": self.addresses[index],
            "wire": self.wire,
            "control": str(self.directory / f"{index}.sock"),
            "service": str(self.directory / f"{index}.svc"),
            "node_memory": str(self.directory / f"{index}.mem"),
            "cluster_key": "k",
            "log": str(self.directory / f"{index}.log"),
        }
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException), (self.cable.left, self.cable.right)[index].entered():
                process.main(config)
            os._exit(0)
        return pid

    def address(self, index: int, number: int = 0) -> str:
        """Address `number` of adapter `index`."""
        given = self.addresses[index]
        return str(given[number]) if isinstance(given, list) else str(given)

    def attach(self, index: int, incarnation: int = 1) -> Context:
        """Becomes the host of an adapter."""
        path = str(self.directory / f"{index}.sock")
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                context = Context(SocketDevice(path))
                break
            except DeviceGone:
                assert time.monotonic() < until, (self.directory / f"{index}.log").read_text()
                select.select([], [], [], 0.002)
        context.attach(incarnation)
        return context

    def parties(
        self, number: int = 0, contexts: tuple[Context, Context] | None = None, path_mtu: MTU = MTU.MTU_1024
    ) -> tuple[Party, Party]:
        """A connected pair of queue pairs over address `number` of each, both hosts in this process."""
        left, right = contexts or (self.attach(0), self.attach(1))
        parties = Party(left), Party(right)
        for index, party in enumerate(parties):
            party.qp.to_rts(
                QPAttr(
                    dest_qp_num=parties[1 - index].qp.qp_num,
                    qp_access_flags=ALL_ACCESS,
                    ah_attr=AHAttr(gr=GlobalRoute(dgid=GID(self.address(1 - index, number)))),
                    timeout=12,
                    path_mtu=path_mtu,
                )
            )
        return parties

    def close(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.cable.close()


@pytest.fixture(params=["xdp", "packet"])
def adapters(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealAdapters]:
    real = RealAdapters(tmp_path, request.param)
    yield real
    real.close()


def completed(party: Party) -> list[WCStatus]:
    """Waits, as a host does, on the descriptor of the armed completion queue."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        party.context.clear_event()
        party.cq.req_notify()
        statuses = party.statuses()
        if statuses:
            return statuses
        select.select([party.context.event_fd], [], [], 0.1)
    pytest.fail(f"no completion within {DEADLINE_S} s: {party.qp.query()}, {party.context.counters()}")


def write(a: Party, b: Party, data: bytes) -> list[WCStatus]:
    a.mr.write(data, len(data))
    a.qp.post_write(1, a.mr.buf, len(data), a.mr.lkey, b.mr.buf, b.mr.rkey)
    return completed(a)


def test_bytes_cross_the_cable_and_wake_the_host(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    data = random.Random(1).randbytes(20_000)
    assert write(a, b, data) == [WCStatus.SUCCESS]
    assert b.mr.read(20_000, 0) == data


def test_a_dead_hosts_memory_stays_readable_until_its_next_incarnation_attaches(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    b.mr.write(b"what the dead host left", 23)
    b.context.close()  # to the adapter, a closed channel is what a SIGKILL of the host looks like
    request = SendWR(2, WROpcode.RDMA_READ, sg=[SGE(a.mr.buf, 23, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    assert completed(a) == [WCStatus.SUCCESS]
    assert a.mr.read(23, 0) == b"what the dead host left"
    again = adapters.attach(1, incarnation=2)
    assert not any(again.resources().values())
    assert write(a, b, b"too late") == [WCStatus.RETRY_EXC_ERR]


def test_a_send_to_a_dead_host_ends_with_its_bounded_rnr_retries(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    a.qp.modify(QPAttr(qp_state=QPState.RESET))
    b.qp.modify(QPAttr(qp_state=QPState.RESET))
    for index, (party, other) in enumerate(((a, b), (b, a))):
        route = AHAttr(gr=GlobalRoute(dgid=GID(adapters.address(1 - index))))
        party.qp.to_rts(QPAttr(dest_qp_num=other.qp.qp_num, rnr_retry=2, ah_attr=route, qp_access_flags=ALL_ACCESS))
    b.context.close()
    a.qp.post_send(SendWR(3, WROpcode.SEND, sg=[SGE(a.mr.buf, 100, a.mr.lkey)]))
    assert completed(a) == [WCStatus.RNR_RETRY_EXC_ERR]


def test_messages_arrive_in_posted_buffers(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    b.qp.post_recv(RecvWR(9, 1, [SGE(b.mr.buf, 1000, b.mr.lkey)]))
    a.mr.write(b"hello", 5)
    a.qp.post_send(SendWR(4, WROpcode.SEND, sg=[SGE(a.mr.buf, 5, a.mr.lkey)]))
    assert completed(b) == [WCStatus.SUCCESS]
    assert b.mr.read(5, 0) == b"hello"


def test_a_cut_cable_is_an_event_on_both_sides_and_so_is_its_return(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    seen: list[AsyncEvent] = []

    def both() -> bool:
        seen.extend(b.context.get_async_events())
        return {event.event_type for event in seen} >= {EventType.PORT_ERR, EventType.PORT_ACTIVE}

    adapters.cable.left.set_up("left0", False)
    wait_until(lambda: b.context.query_port().state.name == "DOWN", "carrier lost")
    adapters.cable.left.set_up("left0", True)
    wait_until(both, "carrier lost and back")
    assert write(a, b, b"after the cut") == [WCStatus.SUCCESS]


def test_garbage_of_any_length_is_counted_and_traffic_goes_on(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    chance = random.Random(5)
    hose = adapters.cable.left.raw_socket("left0")
    header = Pair.RIGHT_MAC + Pair.LEFT_MAC + b"\x08\x00"
    before = b.context.counters()
    for _ in range(GARBAGE_FRAMES):
        hose.send(header + b"\x45" + chance.randbytes(chance.randrange(1, 1200)))
        ip = bytearray(header + b"\x45" + chance.randbytes(chance.randrange(60, 1200)))
        ip[23], ip[36:38] = 17, b"\x12\xb7"  # UDP to port 4791: past the filter, into the adapter
        ip[20:22], ip[30:34] = b"\x40\x00", bytes([10, 77, 0, 2])
        hose.send(ip)
    hose.close()
    assert write(a, b, b"still here") == [WCStatus.SUCCESS]
    after = b.context.counters()
    assert sum(after.values()) > sum(before.values()) + GARBAGE_FRAMES // 2


def test_a_stopped_adapter_is_waited_for_and_a_killed_one_is_an_event(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    os.kill(adapters.pids[1], signal.SIGSTOP)
    a.qp.post_write(1, a.mr.buf, 100, a.mr.lkey, b.mr.buf, b.mr.rkey)
    wait_until(lambda: a.context.counters()["timeouts"] > 0, "the requester's timer")
    os.kill(adapters.pids[1], signal.SIGCONT)
    assert completed(a) == [WCStatus.SUCCESS]
    os.kill(adapters.pids[1], signal.SIGKILL)
    seen: list[AsyncEvent] = []

    def gone() -> bool:
        seen.extend(b.context.get_async_events())
        return bool(seen)

    wait_until(gone, "the host sees that its adapter died")
    assert seen == [AsyncEvent(EventType.DEVICE_FATAL, 0)]
    with pytest.raises(RDMAError):
        b.context.query_port()
    os.waitpid(adapters.pids[1], 0)
    adapters.pids[1] = adapters._start(1)
    fresh = adapters.attach(1, incarnation=1)
    assert fresh.resources()["qp"] == 0  # a card that was replaced knows nothing


class Starved:
    """An adapter's process that wants to run and isn't: the lowest of priorities on a processor that is never idle."""

    def __init__(self, adapter: int) -> None:
        self._adapter, self._before = adapter, os.sched_getaffinity(adapter)
        processor = {min(self._before)}
        self._greedy = os.fork()
        if self._greedy == 0:
            with contextlib.suppress(BaseException):
                os.sched_setaffinity(0, processor)
                os.setpriority(os.PRIO_PROCESS, 0, -20)
                until = time.monotonic() + DEADLINE_S  # also without whoever should end it
                while time.monotonic() < until:
                    pass
            os._exit(0)
        os.sched_setaffinity(adapter, processor)
        os.sched_setscheduler(adapter, os.SCHED_IDLE, os.sched_param(0))
        self._ended = False

    def end(self) -> None:
        """The processor is free."""
        if not self._ended:
            self._ended = True
            os.kill(self._greedy, signal.SIGKILL)
            os.waitpid(self._greedy, 0)
            os.sched_setaffinity(self._adapter, self._before)
            os.sched_setscheduler(self._adapter, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.alone
@pytest.mark.parametrize("adapters", ["packet"], indirect=True)
def test_an_adapter_that_the_machine_does_not_run_is_waited_for_and_one_that_stands_still_is_not(
    adapters: RealAdapters,
) -> None:
    a = adapters.attach(0)
    starved = Starved(adapters.pids[0])
    later = threading.Timer(2 * STILL_MAX_MS / 1000, starved.end)
    later.start()
    try:
        a.query_port()
    finally:
        later.join()
    os.kill(adapters.pids[0], signal.SIGSTOP)
    with pytest.raises(DeviceGone, match="does not answer") as found:
        a.query_port()
    assert found.value.errno == ETIMEDOUT


@pytest.fixture(params=[pytest.param("xdp", marks=pytest.mark.needs_large_frames), "packet"])
def over_ipv6(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealAdapters]:
    real = RealAdapters(tmp_path, request.param, mtu=4200, addresses=([A6, A4], [B6, B4, "fe80::2"]))
    yield real
    real.close()


def test_over_ipv6_bytes_cross_in_packets_of_4096_and_are_read_back(over_ipv6: RealAdapters) -> None:
    a, b = over_ipv6.parties(path_mtu=MTU.MTU_4096)
    data = random.Random(1).randbytes(60_000)
    assert write(a, b, data) == [WCStatus.SUCCESS]
    assert b.mr.read(len(data), 0) == data
    b.mr.write(data[::-1], len(data))
    request = SendWR(2, WROpcode.RDMA_READ, sg=[SGE(a.mr.buf, len(data), a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    assert completed(a) == [WCStatus.SUCCESS]
    assert a.mr.read(len(data), 0) == data[::-1]
    facts = inspected(over_ipv6, 1)
    assert facts["wire"] in ("xdp-native", "packet"), "4,176-byte packets need two buffers over AF_XDP"
    assert a.context.query_port().active_mtu == MTU.MTU_4096


def test_both_families_are_served_at_once(over_ipv6: RealAdapters) -> None:
    contexts = over_ipv6.attach(0), over_ipv6.attach(1)
    for number in (0, 1, 0):
        a, b = over_ipv6.parties(number, contexts, MTU.MTU_2048)
        assert write(a, b, f"address {number}".encode()) == [WCStatus.SUCCESS]
        assert b.mr.read(9, 0) == f"address {number}".encode()


def test_the_firmware_answers_a_call_over_ipv6(over_ipv6: RealAdapters) -> None:
    context = over_ipv6.attach(0)
    party = Party(context)
    party.qp.to_init(QPAttr())
    cm = CmId(party.qp)
    request = ConnectRequest(1, 0, 1, b"sixteen bytes it").emit()
    cm.connect(B6, SERVICE_ID, request, QPAttr(timeout=12, retry_cnt=2))
    events: list[CmEvent] = []

    def told() -> bool:
        events.extend(context.get_cm_events())
        return bool(events)

    wait_until(told, "the firmware's reply")
    assert events[0].kind is CmEventType.REPLY
    reply = ConnectReply.parse(events[0].private_data)
    assert reply is not None
    cm.establish(proof(b"k", "caller", reply.challenge, 1, 1))
    wait_until(lambda: party.qp.query().qp_state is QPState.RTS, "the queue pair is ready")


def test_garbage_over_ipv6_is_counted_and_traffic_goes_on(over_ipv6: RealAdapters) -> None:
    a, b = over_ipv6.parties()
    chance = random.Random(6)
    hose = over_ipv6.cable.left.raw_socket("left0")
    header = Pair.RIGHT_MAC + Pair.LEFT_MAC + b"\x86\xdd"
    before = b.context.counters()
    for number in range(GARBAGE_FRAMES):
        if number % 100 == 0:  # no more at once than a receive ring holds
            wait_until(lambda sent=number: b.context.counters().get("rx_bad_nd", 0) == sent, "the adapter keeps up")
        packet = bytearray(header + chance.randbytes(chance.randrange(80, 1200)))
        packet[14], packet[20], packet[56:58] = 0x60, 17, b"\x12\xb7"
        packet[38:54] = address_bytes(B6)
        hose.send(packet)
        packet[20], packet[54] = 58, 135 + chance.randrange(2)
        packet[62:78] = address_bytes(B6)
        hose.send(packet)
    hose.close()
    assert write(a, b, b"still here") == [WCStatus.SUCCESS]
    after = b.context.counters()
    assert after["rx_bad_nd"] == GARBAGE_FRAMES
    assert sum(after.values()) >= sum(before.values()) + 2 * GARBAGE_FRAMES


def inspected(adapters: RealAdapters, index: int) -> dict[str, object]:
    """What an adapter tells anybody who looks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(DEADLINE_S)
        channel.connect(str(adapters.directory / f"{index}.sock"))
        send_message(channel, {"op": "inspect", "id": 1}, [])
        received = receive_message(channel)
    assert received is not None
    return received[0]
