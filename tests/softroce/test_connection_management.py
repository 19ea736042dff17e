"""rdma_cm programs in the guest and listeners and callers on the emulated adapter find each other; rping's protocol is
the proof that what was agreed on works.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from emul.cm import CMID, RAI_PASSIVE, AddrInfo
from emul.cm_events import ConnParam
from emul.errors import RDMAError
from emul.verbs import CQ, MR, PD, QPInitAttr
from emul.vocabulary import SGE, AccessFlags, QPCap, QPState, RecvWR, SendWR, WCStatus, WROpcode
from tests.helpers.network import wait_until
from tests.softroce.middle import Seen
from tests.softroce.world import OURS, THEIRS, World

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.needs_softroce]
PORT = 7174
NOBODYS_PORT = 7175
PINGS = 5
SIZE = 64
TIMEOUT_MS = 20_000
PROGRAM_TIMEOUT_S = 60
INFO = struct.Struct("!QII")
"""What rping's ends tell each other: address, key and size of a buffer."""
GENERAL_SERVICES_QP = 1
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


class Rping:
    """What an end of rping has: two buffers of SIZE, a message to send at 256, one to receive at 320."""

    def __init__(self, world: World) -> None:
        self.pd = PD(world.context)
        self.mr = MR(self.pd, 4096, AccessFlags.LOCAL_WRITE | AccessFlags.REMOTE_WRITE | AccessFlags.REMOTE_READ)
        self.cq = CQ(world.context, 64)
        self.cmids: list[CMID] = []
        self._early: list[int] = []

    def cmid(self, info: AddrInfo) -> CMID:
        attr = QPInitAttr(cap=QPCap(max_send_wr=16, max_recv_wr=16), scq=self.cq, rcq=self.cq)
        self.cmids.append(CMID(info, attr, self.pd, timeout_ms=TIMEOUT_MS))
        return self.cmids[-1]

    def expect(self, cmid: CMID) -> None:
        assert cmid.qp is not None
        cmid.qp.post_recv(RecvWR(9, 1, sg=[SGE(self.mr.buf + 320, INFO.size, self.mr.lkey)]))

    def tell(self, cmid: CMID, offset: int) -> None:
        self.mr.write(INFO.pack(self.mr.buf + offset, self.mr.rkey, SIZE), INFO.size, 256)
        self.work(cmid, SendWR(1, WROpcode.SEND, 1, sg=[SGE(self.mr.buf + 256, INFO.size, self.mr.lkey)]))

    def work(self, cmid: CMID, request: SendWR) -> None:
        assert cmid.qp is not None
        cmid.qp.post_send(request)

    def access(self, cmid: CMID, opcode: WROpcode, offset: int, told: tuple[int, int, int]) -> None:
        request = SendWR(2, opcode, 1, sg=[SGE(self.mr.buf + offset, SIZE, self.mr.lkey)])
        request.set_wr_rdma(told[1], told[0])
        self.work(cmid, request)

    def completed(self, *wr_ids: int, parting: bool = False) -> None:
        """Waits for these. What comes earlier than expected is kept: the peer may be faster than its own ACK. One that
        parts may be so, too, and what it has not acknowledged is flushed.
        """
        fine = (WCStatus.SUCCESS, WCStatus.WR_FLUSH_ERR) if parting else (WCStatus.SUCCESS,)

        def all_there() -> bool:
            for completion in self.cq.poll(16)[1]:
                assert completion.status in fine
                self._early.append(completion.wr_id)
            return all(wr_id in self._early for wr_id in wr_ids)

        wait_until(all_there, f"completions {wr_ids}")
        for wr_id in wr_ids:
            self._early.remove(wr_id)

    def told(self) -> tuple[int, int, int]:
        address, key, size = INFO.unpack(self.mr.read(INFO.size, 320))
        return address, key, size

    def close(self) -> None:
        for cmid in reversed(self.cmids):
            cmid.close()
        self.mr.close()
        self.cq.close()
        self.pd.close()


@pytest.fixture
def rping(world: World) -> Iterator[Rping]:
    made = Rping(world)
    yield made
    made.close()


def call(rping: Rping, cmid: CMID) -> None:
    """The side of rping that calls: offers a buffer to be read, then one to be written, and compares."""
    rping.expect(cmid)
    cmid.connect(ConnParam(resources=1, depth=1, retry=7, rnr_retry=7))
    for number in range(PINGS):
        rping.mr.write(f"rdma-ping-{number}: ".encode().ljust(SIZE - 1, b"x") + b"\0", SIZE, 0)  # rping sends a string
        rping.mr.write(bytes(SIZE), SIZE, SIZE)
        rping.tell(cmid, 0)
        rping.completed(1, 9)  # it has read
        rping.expect(cmid)
        rping.tell(cmid, SIZE)
        rping.completed(1, 9)  # it has written
        rping.expect(cmid)
        assert rping.mr.read(SIZE, SIZE) == rping.mr.read(SIZE, 0)


def serve(rping: Rping, cmid: CMID) -> None:
    """The side of rping that is called: reads from the caller's buffer and writes the same into its other one."""
    for number in range(PINGS):
        rping.completed(9)
        rping.access(cmid, WROpcode.RDMA_READ, 0, rping.told())
        rping.completed(2)
        rping.expect(cmid)
        rping.tell(cmid, 0)
        rping.completed(1, 9)
        rping.access(cmid, WROpcode.RDMA_WRITE, 0, rping.told())
        rping.completed(2)
        last = number == PINGS - 1
        if not last:
            rping.expect(cmid)
        rping.tell(cmid, 0)
        rping.completed(1, parting=last)


def start(world: World, *options: str) -> None:
    world.guest.ask("start", name="rping", command=["rping", "-v", "-V", "-C", str(PINGS), "-S", str(SIZE), *options])


def finish(world: World) -> str:
    """Waits for the guest's rping; gives what it has printed."""
    done = world.guest.ask("finish", name="rping", timeout=PROGRAM_TIMEOUT_S)
    assert done["status"] == 0, done["out"]
    return str(done["out"])


def started_server(world: World, family: int = 4) -> None:
    start(world, "-s", "-a", THEIRS[family], "-p", str(PORT))
    listening = ["sh", "-c", f"rdma resource show cm_id | grep -q 'state LISTEN.*:{PORT}'"]
    wait_until(lambda: world.guest.ask("run", command=listening)["status"] == 0, "rping listens")


@FAMILIES
def test_we_call_an_rdma_cm_program(world: World, rping: Rping, family: int) -> None:
    started_server(world, family)
    cmid = rping.cmid(AddrInfo(dst=THEIRS[family], service=PORT))
    call(rping, cmid)
    cmid.disconnect()
    assert f"server ping data: rdma-ping-{PINGS - 1}: xxx" in finish(world)
    assert cmid.qp is not None
    assert cmid.qp.query().qp_state is QPState.ERR


@FAMILIES
def test_an_rdma_cm_program_calls_us(world: World, rping: Rping, family: int) -> None:
    listener = rping.cmid(AddrInfo(service=PORT, flags=RAI_PASSIVE))
    listener.listen()
    start(world, "-c", "-a", OURS[family], "-p", str(PORT))
    request = listener.get_request()
    rping.cmids.append(request)
    assert request.peer_address == THEIRS[family]
    rping.expect(request)
    request.accept(ConnParam(resources=1, depth=1))
    serve(rping, request)
    assert f"ping data: rdma-ping-{PINGS - 1}: " in finish(world)


@pytest.mark.parametrize("lost", [0x0010, 0x0013, 0x0014], ids=["REQ", "REP", "RTU"])
@pytest.mark.parametrize("we_call", [True, False], ids=["we-call", "peer-calls"])
def test_each_message_of_the_handshake_is_lost_once(world: World, rping: Rping, lost: int, we_call: bool) -> None:
    dropped: list[Seen] = []

    def lose(seen: Seen) -> list[bytes]:
        attribute = int.from_bytes(seen.frame[seen.start + 12 + 8 + 16 :][:2], "big")
        if seen.qpn == GENERAL_SERVICES_QP and attribute == lost and not dropped:
            dropped.append(seen)
            return []
        return [seen.frame]

    world.middle.filter = lose
    if we_call:
        started_server(world)
        cmid = rping.cmid(AddrInfo(dst=THEIRS[4], service=PORT))
        call(rping, cmid)
        cmid.disconnect()
    else:
        listener = rping.cmid(AddrInfo(service=PORT, flags=RAI_PASSIVE))
        listener.listen()
        start(world, "-c", "-a", OURS[4], "-p", str(PORT))
        request = listener.get_request()
        rping.cmids.append(request)
        rping.expect(request)
        request.accept(ConnParam(resources=1, depth=1))
        serve(rping, request)
    finish(world)
    assert len(dropped) == 1


def test_where_nobody_listens_the_peer_rejects_us(world: World, rping: Rping) -> None:
    cmid = rping.cmid(AddrInfo(dst=THEIRS[4], service=NOBODYS_PORT))
    with pytest.raises(RDMAError, match="INVALID_SERVICE_ID"):
        cmid.connect(ConnParam(resources=1, depth=1))


def test_where_nobody_listens_we_reject_the_peer(world: World) -> None:
    start(world, "-c", "-a", OURS[4], "-p", str(NOBODYS_PORT))
    done = world.guest.ask("finish", name="rping", timeout=PROGRAM_TIMEOUT_S)
    assert "RDMA_CM_EVENT_REJECTED" in done["out"]
    assert done["status"] != 0


def test_we_reject_a_request_with_words(world: World, rping: Rping) -> None:
    listener = rping.cmid(AddrInfo(service=PORT, flags=RAI_PASSIVE))
    listener.listen()
    start(world, "-c", "-a", OURS[4], "-p", str(PORT))
    request = listener.get_request()
    rping.cmids.append(request)
    request.reject(b"not today")
    done = world.guest.ask("finish", name="rping", timeout=PROGRAM_TIMEOUT_S)
    assert "RDMA_CM_EVENT_REJECTED" in done["out"]
