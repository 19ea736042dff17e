"""`emul.open_adapter` and the tools on it, on real cables: two adapters of one program, what it is refused, its end."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from errno import EBUSY, EINVAL, ENETDOWN, ENODEV, ETIMEDOUT
from pathlib import Path

import pytest

import emul
from emul.control import SocketDevice, receive_message, send_message
from emul.errors import DeviceGone, RDMAError
from emul.memory import Memory
from emul.opening import OpenError, OwnedDevice, open_adapter
from emul.verbs import CQ, GID, MR, PD, QP, SGE, AHAttr, CompChannel, Context, GlobalRoute, QPAttr, QPCap, QPInitAttr
from emul.vocabulary import AccessFlags, EventType, RecvWR, SendWR, WCStatus, WROpcode
from tests.helpers.network import DEADLINE_S, Namespace, Pair, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.root]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
ACCESS = AccessFlags.LOCAL_WRITE | AccessFlags.REMOTE_WRITE
TIMEOUT_MS = int(1000 * DEADLINE_S)
ROOT = Path(__file__).resolve().parent.parent.parent
GARBAGE_MESSAGES = 300


@pytest.fixture
def cable() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def opened(namespace: Namespace, interface: str, address: str, wire: str) -> Context:
    with namespace.entered():
        return emul.open_adapter(interface, address, wire)


def pid_of(context: Context) -> int:
    assert isinstance(context.device, OwnedDevice)
    return context.device.pid


class Player:
    """One end of a conversation."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.pd, self.channel = PD(context), CompChannel(context)
        self.mr = MR(self.pd, 4096, ACCESS)
        self.cq = CQ(context, 16, None, self.channel, 0)
        self.qp = QP(self.pd, QPInitAttr(scq=self.cq, rcq=self.cq, cap=QPCap(4, 4)))

    def connect(self, other: Player) -> None:
        gid = other.context.query_gid(1, 1)
        route = AHAttr(gr=GlobalRoute(dgid=GID(gid.gid)), is_global=1)
        self.qp.to_rts(QPAttr(dest_qp_num=other.qp.qp_num, ah_attr=route, qp_access_flags=ACCESS))

    def status(self) -> WCStatus:
        """How the next request ends; waits on the channel."""
        while True:
            count, completions = self.cq.poll()
            if count:
                return completions[0].status
            self.cq.req_notify()
            count, completions = self.cq.poll()
            if count:
                return completions[0].status
            self.channel.get_cq_event(self.cq, TIMEOUT_MS)
            self.cq.ack_events(1)


def talk(a: Player, b: Player) -> None:
    a.connect(b)
    b.connect(a)
    b.qp.post_recv(RecvWR(1, 1, [SGE(b.mr.buf, 4096, b.mr.lkey)]))
    a.mr.write(b"over a real cable", 17)
    a.qp.post_send(SendWR(1, WROpcode.SEND, 1, 0, [SGE(a.mr.buf, 17, a.mr.lkey)]))
    assert (a.status(), b.status()) == (WCStatus.SUCCESS, WCStatus.SUCCESS)
    assert b.mr.read(17, 0) == b"over a real cable"


@pytest.mark.parametrize("wire", ["xdp", "packet"])
def test_two_adapters_in_two_threads_and_namespaces_of_one_program(cable: Pair, wire: str) -> None:
    contexts: dict[int, Context] = {}

    def open_one(index: int) -> None:
        namespace, interface = ((cable.left, "left0"), (cable.right, "right0"))[index]
        contexts[index] = opened(namespace, interface, ADDRESSES[index], wire)

    threads = [threading.Thread(target=open_one, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contexts[0] as left, contexts[1] as right:
        pids = [pid_of(each) for each in (left, right)]
        talk(Player(left), Player(right))
        cable.right.set_up("right0", False)
        ready = select.poll()
        ready.register(left.async_fd, select.POLLIN)
        assert ready.poll(TIMEOUT_MS)
        assert left.get_async_event(TIMEOUT_MS).event_type is EventType.PORT_ERR
        assert not ready.poll(0)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_is_wrong_with_an_interface_is_told(cable: Pair) -> None:
    with cable.left.entered():
        for arguments, code, words in (
            (("nosuch0", ADDRESSES[0], "packet"), ENODEV, "no such interface"),
            (("left0", "here", "packet"), EINVAL, "here"),
            (("left0", ADDRESSES[0], "tin"), EINVAL, "wire is one of auto, xdp, packet"),
        ):
            with pytest.raises(OpenError, match=words) as caught:
                emul.open_adapter(*arguments)
            assert caught.value.errno == code
        with emul.open_adapter("left0", ADDRESSES[0], "packet"):
            with pytest.raises(OpenError, match="another port") as caught:
                emul.open_adapter("left0", ADDRESSES[1], "packet")
            assert caught.value.errno == EBUSY
    cable.left.set_up("left0", False)
    with cable.left.entered(), pytest.raises(OpenError, match="is down") as caught:
        emul.open_adapter("left0", ADDRESSES[0], "packet")
    assert caught.value.errno == ENETDOWN
    with pytest.raises(OpenError, match="needs an address"):
        Context(name="left0")


def test_an_mtu_that_is_too_small_is_told() -> None:
    pair = Pair(mtu=300)
    with pair.left.entered(), pytest.raises(OpenError, match="MTU 300 is too small"):
        emul.open_adapter("left0", ADDRESSES[0], "packet")
    pair.close()


def test_a_context_by_its_name_owns_its_adapter(cable: Pair) -> None:
    with cable.left.entered():
        context = Context(name=f"left0@{ADDRESSES[0]}")
    pid = pid_of(context)
    pd = PD(context)
    context.close()
    assert pd.closed
    assert not Path(f"/proc/{pid}").exists()


def test_an_adapter_that_dies_is_told_to_who_waits(cable: Pair) -> None:
    with opened(cable.left, "left0", ADDRESSES[0], "packet") as context:
        player = Player(context)
        os.kill(pid_of(context), signal.SIGKILL)
        with pytest.raises(DeviceGone):
            player.channel.get_cq_event(player.cq, TIMEOUT_MS)
        assert context.get_async_event(TIMEOUT_MS).event_type is EventType.DEVICE_FATAL
        with pytest.raises(DeviceGone):
            player.mr.close()


def test_the_adapter_ends_with_its_program_however_that_ends(cable: Pair, tmp_path: Path) -> None:
    program = (
        "import emul, sys, time\n"
        f"context = emul.open_adapter('left0', '{ADDRESSES[0]}', 'packet')\n"
        "print(context.device.pid, context.device._directory, flush=True)\n"
        "time.sleep(60)\n"
    )
    with cable.left.entered():
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    assert process.stdout is not None
    pid, directory = process.stdout.readline().split()
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the adapter's end")
    assert not Path(directory).exists()


def test_any_bytes_on_the_control_channel_leave_the_adapter_alive(cable: Pair) -> None:
    rng = random.Random(7)
    with (
        opened(cable.left, "left0", ADDRESSES[0], "packet") as context,
        opened(cable.right, "right0", ADDRESSES[1], "packet") as other,
    ):
        assert isinstance(context.device, OwnedDevice)
        path = str(context.device._directory / "control")
        odd: list[bytes] = [
            b"[" * 60_000, b"{}", b"[]", b"\xff\xfe", b'{"op": "attach"}', b'{"op": "attach", "incarnation": -1}',
            b'{"op": "attach", "incarnation": 1e400}', b'{"op": ["attach"], "id": {"a": [1]}}', b'{"op": "inspect"}',
            b"9" * 5000, b'{"op": "reg_mr", "pd": 1, "access": 1, "offset": 0, "length": 1}',
        ]  # fmt: skip
        odd += [rng.randbytes(rng.randrange(1, 200)) for _ in range(GARBAGE_MESSAGES)]
        for message in odd:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
                channel.connect(path)
                fds = [os.open(each, os.O_RDONLY) for each in ("/dev/zero", "/proc/self/status", "/", "/dev/null")]
                socket.send_fds(channel, [message], fds)
                for fd in fds:
                    os.close(fd)
        flood = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        flood.connect(path)
        flood.setblocking(False)
        for _ in range(5000):  # and never reads an answer
            try:
                flood.send(b'{"op": "inspect"}')
            except BlockingIOError:
                time.sleep(0)
            except OSError:
                break
        flood.close()
        talk(Player(context), Player(other))


def test_memory_that_its_owner_could_take_away_is_not_registered(cable: Pair) -> None:
    with opened(cable.left, "left0", ADDRESSES[0], "packet") as context:
        pd = PD(context)
        memory = Memory.allocate(8192)
        region = MR(pd, 8192, ACCESS, memory=memory)
        assert memory.fd is not None
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, 0)
        fd = os.memfd_create("mine")
        os.ftruncate(fd, 4096)
        with pytest.raises(RDMAError, match="reg_mr"):
            MR(pd, 4096, ACCESS, memory=Memory.map(fd))
        region.close()


def test_a_host_that_opens_too_much_is_refused_and_the_adapter_goes_on(cable: Pair) -> None:
    with opened(cable.left, "left0", ADDRESSES[0], "packet") as context:
        assert isinstance(context.device, OwnedDevice)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.settimeout(DEADLINE_S)
        channel.connect(str(context.device._directory / "control"))
        send_message(channel, {"op": "attach", "incarnation": 5}, [])
        reply: dict[str, object] = {}
        for _ in range(5000):
            send_message(channel, {"op": "create_cq", "cqe": 1}, [])
            received = receive_message(channel)
            assert received is not None
            reply, fds = received
            for fd in fds:
                os.close(fd)
            if "errno" in reply:
                break
        assert "errno" in reply, json.dumps(reply)
        channel.close()
        again = SocketDevice(str(context.device._directory / "control"))
        again.attach(6)
        assert "pd" in again.call({"op": "alloc_pd"}, [])[0]
        again.close()


@pytest.mark.parametrize("test", ["send_lat", "write_lat", "read_lat", "atomic_lat", "send_bw", "write_bw", "read_bw"])
def test_perftest_measures_both_ends_on_a_cable_of_its_own(test: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "emul.perftest", test, "--self-test", "--wire", "xdp,packet", "-n", "20"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[1] for row in rows] == ["20", "20"]
    assert "Transport type : packet" in done.stdout


def test_perftest_in_both_directions_for_a_time_and_pingpong_print_their_figures() -> None:
    for module, arguments, words in (
        ("emul.perftest", ["send_bw", "-b", "-n", "20", "-s", "3000", "--wire", "packet"], " 40 "),
        ("emul.perftest", ["write_bw", "-D", "1", "--wire", "packet", "--report_gbits"], "Gb/sec"),
        ("emul.perftest", ["send_lat", "-D", "1", "--wire", "packet", "-e"], "tps average"),
        ("emul.perftest", ["read_bw", "-R", "-n", "20", "--wire", "packet"], "rdma_cm QPs\t : ON"),
        ("emul.perftest", ["send_lat", "-R", "-n", "20", "--wire", "packet"], "rdma_cm QPs\t : ON"),
        ("emul.pingpong", ["-n", "20", "-c", "--wire", "packet"], "usec/iter"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--self-test"],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_an_adapter_that_stands_still_is_ended_all_the_same(cable: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emul.opening.STOP_TIMEOUT_S", 0.1)
    context = opened(cable.left, "left0", ADDRESSES[0], "packet")
    pid = pid_of(context)
    os.kill(pid, signal.SIGSTOP)
    context.close()
    assert not Path(f"/proc/{pid}").exists()
    opened(cable.left, "left0", ADDRESSES[0], "packet").close()


def test_an_adapter_that_is_not_ready_in_time_leaves_nothing(cable: Pair) -> None:
    with cable.left.entered(), pytest.raises(OpenError, match="not ready: it said nothing") as refused:
        open_adapter("left0", ADDRESSES[0], "packet", ready_timeout_s=0.0)
    assert refused.value.error_code == ETIMEDOUT
    opened(cable.left, "left0", ADDRESSES[0], "packet").close()
