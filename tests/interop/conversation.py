"""A conversation of two adapters that has every opcode in it, over IPv4 or IPv6, in virtual time."""

from __future__ import annotations

import functools

from emul.clock import MILLISECOND, SECOND
from emul.cm import CmEventType, CmId
from emul.vocabulary import SGE, QPAttr, SendWR, WROpcode
from emul.wellknown import SERVICE_ID, ConnectReply, ConnectRequest, proof
from emul.wire.frame import internet_checksum
from tests.helpers.adapters import KEY, Party, Seen
from tests.helpers.traffic import Traffic

LENGTHS = (0, 1, 2, 3, 4, 1023, 1024, 1025, 3000)
"""Path MTU is 1024: ONLY, FIRST and LAST, MIDDLE, each padding."""
CHALLENGE = bytes(range(16))
ROCE_SEEN = -1
ECN_CE = 3


@functools.cache
def conversation(ipv6: bool) -> tuple[tuple[int, bytes], ...]:
    """Frames as they left, with their time in ns."""
    traffic = Traffic(1, ipv6=ipv6)
    for opcode in WROpcode:
        for length in LENGTHS:
            traffic.post(opcode, traffic.a, traffic.b, length=length)
            traffic.pair.settle(span_ns=10 * MILLISECOND)
        traffic.a.completions()
        traffic.b.completions()
    _refuse_and_lose(traffic)
    _mark(traffic)
    _call_the_firmware(traffic)
    return tuple((at, frame) for at, frame in traffic.tap.sent if _opcode(frame) != ROCE_SEEN)


def _opcode(frame: bytes) -> int:
    return Seen(0, frame).opcode


def _refuse_and_lose(traffic: Traffic) -> None:
    """An RNR NAK and a NAK for a gap."""
    traffic.post(WROpcode.SEND, traffic.a, traffic.b, length=8, receive=False)
    traffic.pair.settle(span_ns=MILLISECOND)
    traffic.receive(traffic.b)
    traffic.pair.settle(span_ns=20 * MILLISECOND)
    traffic.post(WROpcode.SEND, traffic.b, traffic.a, length=8)
    traffic.post(WROpcode.SEND, traffic.a, traffic.b, length=8)
    traffic.pair.settle(span_ns=20 * MILLISECOND)
    lost: list[Seen] = []
    traffic.tap.cable = lambda seen: [seen.frame] if lost or seen.sender or lost.append(seen) else []  # type: ignore[func-returns-value]
    for _ in range(3):
        traffic.post(WROpcode.RDMA_WRITE, traffic.a, traffic.b, length=3000)
    traffic.pair.settle(span_ns=200 * MILLISECOND)
    traffic.tap.cable = lambda seen: [seen.frame]


def _mark(traffic: Traffic) -> None:
    """A switch marks congestion: the receiver notifies."""

    def mark(seen: Seen) -> list[bytes]:
        frame = bytearray(seen.frame)
        if seen.opcode == ROCE_SEEN:
            return [seen.frame]
        if traffic.pair.ipv6:
            frame[15] |= ECN_CE << 4
        else:
            frame[15] |= ECN_CE
            frame[24:26] = bytes(2)
            frame[24:26] = internet_checksum(bytes(frame[14:34])).to_bytes(2, "big")
        return [bytes(frame)]

    traffic.tap.cable = mark
    traffic.post(WROpcode.RDMA_WRITE, traffic.a, traffic.b, length=8)
    traffic.pair.settle(span_ns=20 * MILLISECOND)
    traffic.tap.cable = lambda seen: [seen.frame]


def _call_the_firmware(traffic: Traffic) -> None:
    """REQ, REP, RTU, work, DREQ, DREP; and a REJ for a service that nobody offers."""
    context, partner = traffic.pair.contexts[0], traffic.pair.address(1)
    for service in (SERVICE_ID, SERVICE_ID + 1):
        caller = Party(context)
        caller.qp.to_init(QPAttr())
        cm = CmId(caller.qp)
        cm.connect(partner, service, ConnectRequest(1, 0, 1, CHALLENGE).emit(), QPAttr(timeout=10, retry_cnt=2))
        traffic.pair.settle(lambda: bool(traffic.pair.adapters[0].cm.events), span_ns=SECOND)
        traffic.pair.settle(span_ns=MILLISECOND)
        for event in context.get_cm_events():
            if event.kind is CmEventType.REPLY:
                reply = ConnectReply.parse(event.private_data)
                assert reply is not None
                cm.establish(proof(KEY, "caller", reply.challenge, 1, 1))
                traffic.pair.settle(span_ns=10 * MILLISECOND)
                request = SendWR(1, WROpcode.RDMA_READ, sg=[SGE(caller.mr.buf, 96, caller.mr.lkey)])
                request.set_wr_rdma(reply.status_rkey, reply.status_addr)
                caller.qp.post_send(request)
                traffic.pair.settle(span_ns=10 * MILLISECOND)
                cm.disconnect()
                traffic.pair.settle(span_ns=100 * MILLISECOND)
