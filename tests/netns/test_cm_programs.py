"""Two programs that connect with `emul.cm` over adapter processes, each call waiting for what it brings about."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from errno import EAGAIN, ECONNREFUSED, ETIMEDOUT
from pathlib import Path

import pytest

from emul.cm import CMID, RAI_PASSIVE, AddrInfo, CmEventType, ConnParam
from emul.errors import DeviceGone, RDMAError
from emul.verbs import CQ, MR, PD, Context, QPInitAttr
from emul.vocabulary import SGE, QPCap, RecvWR, SendWR, WCStatus, WROpcode
from tests.helpers.adapters import ALL_ACCESS
from tests.helpers.network import DEADLINE_S, wait_until
from tests.netns.test_adapter_process import A6, B6, RealAdapters

pytestmark = [pytest.mark.netns, pytest.mark.root]
PORT = 7471
WAIT_MS = int(1000 * DEADLINE_S)


@pytest.fixture(params=[("packet", None), ("xdp", None), ("packet", (A6, B6))], ids=["packet", "xdp", "ipv6"])
def adapters(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RealAdapters]:
    wire, addresses = request.param
    real = RealAdapters(tmp_path, wire, **({"addresses": addresses} if addresses else {}))
    yield real
    real.close()


class Program:
    """One host's program: what its queue pairs are made of, and a buffer."""

    def __init__(self, context: Context) -> None:
        self.pd = PD(context)
        self.cq = CQ(context, 16)
        self.mr = MR(self.pd, 1024, ALL_ACCESS)
        cap = QPCap(max_send_wr=4, max_recv_wr=4)
        self.init_attr = QPInitAttr(cap=cap, scq=self.cq, rcq=self.cq)

    def listener(self) -> CMID:
        cmid = CMID(AddrInfo(service=PORT, flags=RAI_PASSIVE), self.init_attr, self.pd, timeout_ms=WAIT_MS)
        cmid.listen()
        return cmid

    def caller(self, peer: str, service: int = PORT) -> CMID:
        return CMID(AddrInfo(dst=peer, service=service), self.init_attr, self.pd, timeout_ms=WAIT_MS)

    def expect(self, cmid: CMID) -> None:
        assert cmid.qp is not None
        cmid.qp.post_recv(RecvWR(2, 1, [SGE(self.mr.buf + 512, 512, self.mr.lkey)]))

    def send(self, cmid: CMID, text: bytes) -> None:
        assert cmid.qp is not None
        self.mr.write(text, len(text))
        cmid.qp.post_send(SendWR(1, WROpcode.SEND, num_sge=1, sg=[SGE(self.mr.buf, len(text), self.mr.lkey)]))

    def received(self) -> bytes:
        found = []

        def came() -> bool:
            found.extend(wc for wc in self.cq.poll(16)[1] if wc.wr_id == 2)
            return bool(found)

        wait_until(came, "a message")
        assert found[0].status is WCStatus.SUCCESS
        return self.mr.read(found[0].byte_len, 512)


def serve(program: Program, listener: CMID) -> str:
    """Accepts one caller, echoes one message, and waits until the caller parts."""
    request = listener.get_request()
    program.expect(request)
    request.accept(ConnParam(resources=2), b"welcome")
    program.send(request, b"echo of " + program.received())
    assert request.get_cm_event(WAIT_MS).event_type is CmEventType.DISCONNECTED
    peer = request.peer_address
    request.close()
    return peer


def test_a_server_and_a_client(adapters: RealAdapters) -> None:
    server, client = Program(adapters.attach(1)), Program(adapters.attach(0))
    listener = server.listener()
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve, server, listener)
        calling = client.caller(adapters.address(1))
        calling.connect(ConnParam(depth=2), b"hello")
        assert calling.private_data.rstrip(b"\0") == b"welcome"
        client.expect(calling)
        client.send(calling, b"this")
        assert client.received() == b"echo of this"
        calling.disconnect()
        assert served.result(DEADLINE_S) == adapters.address(0)
    calling.close()
    listener.close()


def test_refusals_silence_and_death_are_errors_of_their_own(adapters: RealAdapters) -> None:
    server, client = Program(adapters.attach(1)), Program(adapters.attach(0))
    listener = server.listener()
    with pytest.raises(RDMAError, match="INVALID_SERVICE_ID") as caught:
        client.caller(adapters.address(1), PORT + 1).connect()
    assert caught.value.errno == ECONNREFUSED
    listener.timeout_ms = 1
    with pytest.raises(RDMAError) as caught:
        listener.get_request()
    assert caught.value.errno == EAGAIN
    listener.timeout_ms = WAIT_MS
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(lambda: listener.get_request().reject(b"no"))
        with pytest.raises(RDMAError, match="28 \\(CONSUMER\\)"):
            client.caller(adapters.address(1)).connect()
        refused.result(DEADLINE_S)
    os.kill(adapters.pids[1], signal.SIGSTOP)
    with pytest.raises(RDMAError, match="UNREACHABLE") as caught:
        client.caller(adapters.address(1)).connect()
    assert caught.value.errno == ETIMEDOUT
    os.kill(adapters.pids[1], signal.SIGCONT)


def test_a_server_whose_host_dies_parts_when_the_next_incarnation_attaches(adapters: RealAdapters) -> None:
    server, client = Program(adapters.attach(1)), Program(adapters.attach(0))
    listener = server.listener()
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(lambda: listener.get_request().accept())
        calling = client.caller(adapters.address(1))
        calling.connect()
        accepted.result(DEADLINE_S)
    server.pd.context.device.close()  # to the adapter, a closed channel is what a SIGKILL of the host looks like
    adapters.attach(1, incarnation=2)
    while calling.get_cm_event(WAIT_MS).event_type is not CmEventType.DISCONNECTED:
        pass
    with pytest.raises(RDMAError, match="INVALID_SERVICE_ID"):
        client.caller(adapters.address(1)).connect()


def test_whoever_waits_learns_that_the_adapter_died(adapters: RealAdapters) -> None:
    server = Program(adapters.attach(1))
    listener = server.listener()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(listener.get_request)
        os.kill(adapters.pids[1], signal.SIGKILL)
        with pytest.raises(DeviceGone):
            waiting.result(DEADLINE_S)
