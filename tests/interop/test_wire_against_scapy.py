"""Scapy as judge of what emul.wire builds: the same bytes, the same ICRC, and tshark opens it without complaint."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from scapy.contrib.roce import AETH as ScapyAETH  # noqa: N811 - a class in capitals
from scapy.contrib.roce import BTH as ScapyBTH  # noqa: N811
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from emul.wire import frame, headers, mad
from emul.wire.headers import Opcode, Syndrome
from lab.injector import forge as forging
from lab.wire import layers, mads

A, B = "10.77.0.1", "10.77.0.2"
MAC_A, MAC_B = "02:cc:4d:00:00:01", "02:cc:4d:00:00:02"
PORT, QPN, PSN = 0xC123, 0x11, 0xFFFFFE
FLOW = frame.Flow(
    source_mac=bytes.fromhex(MAC_A.replace(":", "")), target_mac=bytes.fromhex(MAC_B.replace(":", "")),
    source=frame.ipv4_bytes(A), target=frame.ipv4_bytes(B), source_port=PORT,
)  # fmt: skip
PAYLOAD = bytes(range(250))


def ours(opcode: Opcode, extended: bytes = b"", payload: bytes = b"", *, ack: bool = False, qpn: int = QPN) -> bytes:
    pad = -len(payload) % 4
    bth = headers.BTH.pack(
        opcode, headers.MIGRATION_REQUEST | pad << headers.PAD_SHIFT, headers.P_KEY_FULL, qpn,
        (headers.ACK_REQUEST if ack else 0) | PSN,
    )  # fmt: skip
    return FLOW.frame(bth, extended + payload + bytes(pad))


def scapys(
    opcode: int, extended: Packet | None = None, payload: bytes = b"", *, ack: bool = False, qpn: int = QPN
) -> bytes:
    pad = -len(payload) % 4
    built = (
        Ether(src=MAC_A, dst=MAC_B)
        / IP(src=A, dst=B, flags="DF", id=0, ttl=64)
        / UDP(sport=PORT, dport=4791, chksum=0)
        / ScapyBTH(opcode=int(opcode), migreq=1, padcount=pad, dqpn=qpn, ackreq=int(ack), psn=PSN)
    )
    if extended is not None:
        built /= extended
    if payload:
        built /= Raw(payload + bytes(pad))
    return bytes(built)


def reth(dlen: int = len(PAYLOAD)) -> tuple[bytes, Packet]:
    return headers.RETH.pack(0x7FFF_0000_1234, 0xABCD, dlen), layers.RETH(va=0x7FFF_0000_1234, rkey=0xABCD, dlen=dlen)


def aeth(syndrome: int = Syndrome.ACK) -> tuple[bytes, Packet]:
    return headers.AETH.pack(int(syndrome) << 24 | 0x123456), ScapyAETH(syndrome=int(syndrome), msn=0x123456)


def immediate() -> tuple[bytes, Packet]:
    return headers.IMM.pack(0xDEADBEEF), layers.ImmDt(immdata=0xDEADBEEF)


def reth_and_immediate() -> tuple[bytes, Packet]:
    (our_reth, their_reth), (our_immediate, their_immediate) = reth(), immediate()
    return our_reth + our_immediate, their_reth / their_immediate


def deth() -> tuple[bytes, Packet]:
    return headers.DETH.pack(mad.CM_Q_KEY, 1), layers.DETH(qkey=mad.CM_Q_KEY, sqpn=1)


def feth() -> tuple[bytes, Packet]:
    ours = headers.IMM.pack(2 | 1 << 4) + headers.RETH.pack(0x1000, 0xABCD, 64)
    return ours, layers.FETH(plt=2, sel=1) / layers.RETH(va=0x1000, rkey=0xABCD, dlen=64)


def ieth() -> tuple[bytes, Packet]:
    return headers.IMM.pack(0xCAFE), layers.IETH(rkey=0xCAFE)


def atomic() -> tuple[bytes, Packet]:
    ours = headers.ATOMIC_ETH.pack(0x7FFF_0000_1230, 0xABCD, 1 << 63, 5)
    return ours, layers.AtomicETH(va=0x7FFF_0000_1230, rkey=0xABCD, swapadd=1 << 63, compare=5)


def atomic_ack() -> tuple[bytes, Packet]:
    (our_aeth, their_aeth) = aeth()
    return our_aeth + headers.ATOMIC_ACK_ETH.pack(1 << 40), their_aeth / layers.AtomicAckETH(origdata=1 << 40)


def atomic_write() -> tuple[bytes, Packet]:
    (our_reth, their_reth) = reth(8)
    return our_reth + PAYLOAD[:8], their_reth / Raw(PAYLOAD[:8])


def nothing() -> tuple[bytes, None]:
    return b"", None


EXTENDED = {
    Opcode.SEND_LAST_WITH_IMMEDIATE: immediate,
    Opcode.SEND_ONLY_WITH_IMMEDIATE: immediate,
    Opcode.RDMA_WRITE_FIRST: reth,
    Opcode.RDMA_WRITE_ONLY: reth,
    Opcode.RDMA_WRITE_LAST_WITH_IMMEDIATE: immediate,
    Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE: reth_and_immediate,
    Opcode.RDMA_READ_REQUEST: reth,
    Opcode.RDMA_READ_RESPONSE_FIRST: aeth,
    Opcode.RDMA_READ_RESPONSE_LAST: aeth,
    Opcode.RDMA_READ_RESPONSE_ONLY: aeth,
    Opcode.ACKNOWLEDGE: aeth,
    Opcode.ATOMIC_ACKNOWLEDGE: atomic_ack,
    Opcode.COMPARE_SWAP: atomic,
    Opcode.FETCH_ADD: atomic,
    Opcode.SEND_LAST_WITH_INVALIDATE: ieth,
    Opcode.SEND_ONLY_WITH_INVALIDATE: ieth,
    Opcode.FLUSH: feth,
    Opcode.ATOMIC_WRITE: atomic_write,
    Opcode.UD_SEND_ONLY: deth,
}
WITHOUT_PAYLOAD = (
    Opcode.RDMA_READ_REQUEST, Opcode.ACKNOWLEDGE, Opcode.UD_SEND_ONLY, Opcode.CNP, Opcode.ATOMIC_ACKNOWLEDGE,
    Opcode.COMPARE_SWAP, Opcode.FETCH_ADD, Opcode.FLUSH, Opcode.ATOMIC_WRITE,
)  # fmt: skip
UNKNOWN_TO_TSHARK = (Opcode.FLUSH, Opcode.ATOMIC_WRITE)
"""Opcodes behind whose BTH tshark 4.0 shows bytes."""
RELIABLE = [opcode for opcode in Opcode if opcode not in (Opcode.CNP, Opcode.UD_SEND_ONLY)]
MESSAGES: list[mad.Message] = [
    mad.Req(
        7, 0xCC4D_0001, 0x12, 99, mad.gid_of(A), mad.gid_of(B), 4,
        private_data=mad.RdmaCmHeader(0x1234, frame.ipv4_bytes(A), frame.ipv4_bytes(B)).emit() + b"hello",
    ),
    mad.Rep(8, 7, 0x13, 100, private_data=b"welcome"),
    mad.Rtu(7, 8),
    mad.Rej(0, 7, 0, mad.RejectReason.INVALID_SERVICE_ID),
    mad.Mra(8, 7, 0, 20),
    mad.Dreq(7, 8, 0x13),
    mad.Drep(8, 7),
]  # fmt: skip


GIDS = {"lgid": f"::ffff:{A}", "rgid": f"::ffff:{B}"}
AS_SCAPY_BUILDS: list[Packet] = [
    mads.CM_REQ(lcommid=7, serviceid=0xCC4D_0001, lqpn=0x12, psn=99, mtu=4, **GIDS)
    / mads.RdmaCm(port=0x1234, src=A, dst=B)
    / b"hello",
    mads.CM_REP(lcommid=8, rcommid=7, lqpn=0x13, psn=100) / b"welcome",
    mads.CM_RTU(lcommid=7, rcommid=8),
    mads.CM_REJ(rcommid=7, message="REQ", reason="invalid service id"),
    mads.CM_MRA(lcommid=8, rcommid=7, message="REQ", timeout=20),
    mads.CM_DREQ(lcommid=7, rcommid=8, rqpn=0x13),
    mads.CM_DREP(lcommid=8, rcommid=7),
]
"""MESSAGES, with scapy's own words."""


@pytest.mark.parametrize("number", range(len(MESSAGES)), ids=lambda number: type(MESSAGES[number]).__name__)
def test_messages_of_connection_management_are_scapys_to_the_byte_and_dissected(number: int) -> None:
    mine, judged = MESSAGES[number].emit(42), bytes(mads.MAD(tid=42) / AS_SCAPY_BUILDS[number])
    assert mine == judged
    seen = Ether(ours(Opcode.UD_SEND_ONLY, deth()[0], mine, qpn=1))
    assert type(AS_SCAPY_BUILDS[number]) in seen
    assert seen[mads.MAD].tid == 42
    message = seen[type(AS_SCAPY_BUILDS[number])]
    for field in AS_SCAPY_BUILDS[number].fields:
        assert message.getfieldval(field) == AS_SCAPY_BUILDS[number].getfieldval(field)
    assert seen.summary()
    seen[ScapyBTH].icrc = None
    assert bytes(seen) == ours(Opcode.UD_SEND_ONLY, deth()[0], mine, qpn=1)


def test_answers_of_connection_management_are_told_from_strangers() -> None:
    req, rep, rtu, rej, mra, dreq, drep = (mads.MAD(tid=42) / message for message in AS_SCAPY_BUILDS)
    good = [(rep, req), (rej, req), (mra, req), (rtu, rep)]
    assert all(answer.answers(question) for answer, question in good)
    assert len({message.hashret() for message in (req, rep, drep)}) == 1
    assert not req.answers(rep)
    assert not drep.answers(req)
    assert not (mads.MAD(tid=43) / AS_SCAPY_BUILDS[1]).answers(req)
    assert not rep.answers(AS_SCAPY_BUILDS[0])
    assert (mads.MAD() / mads.CM_DREP(rcommid=7)).answers(mads.MAD() / mads.CM_DREQ(lcommid=7))


def test_private_data_that_is_no_rdma_cm_header_stays_as_it_is() -> None:
    other, six = bytes([1, 0x40]) + bytes(90), bytes([0, 0x60]) + bytes(90)
    for private, layer in ((b"short", Raw), (other, Raw), (six, mads.RdmaCm6)):
        seen = mads.MAD(bytes(mads.MAD() / mads.CM_REQ() / Raw(private.ljust(92, b"."))))
        assert layer in seen


@pytest.mark.parametrize("opcode", list(EXTENDED), ids=lambda opcode: opcode.name)
def test_each_packet_has_a_summary(opcode: Opcode) -> None:
    _, built = EXTENDED[opcode]()
    summary = Ether(scapys(opcode, built)).summary()
    assert "Raw" not in summary or opcode is Opcode.ATOMIC_WRITE


def test_immediate_data_is_found_in_datagrams_too() -> None:
    seen = Ether(scapys(0x65, layers.DETH(sqpn=5) / layers.ImmDt(immdata=77), b"data"))
    assert seen[layers.ImmDt].immdata == 77
    plain = Ether(scapys(0x64, layers.DETH(sqpn=5), b"data"))
    assert bytes(plain[Raw].load) == b"data"


def test_names_of_opcodes_stand_in_what_scapy_shows() -> None:
    assert "RC_FLUSH" in Ether(scapys(Opcode.FLUSH, feth()[1])).show(dump=True)
    assert ScapyBTH(opcode="RC_ATOMIC_WRITE").opcode == Opcode.ATOMIC_WRITE
    assert (ScapyBTH() / ScapyAETH()).opcode == 0x51, "scapy's own default, that of RD, stays"


def built_both_ways(opcode: Opcode, payload: bytes) -> tuple[bytes, bytes]:
    our_extended, their_extended = EXTENDED.get(opcode, nothing)()
    return ours(opcode, our_extended, payload, ack=True), scapys(opcode, their_extended, payload, ack=True)


@pytest.mark.parametrize("opcode", RELIABLE, ids=lambda opcode: opcode.name)
def test_reliable_packets_are_scapys_to_the_byte(opcode: Opcode) -> None:
    for length in (0,) if opcode in WITHOUT_PAYLOAD else (0, 1, 2, 3, 4, 250):
        mine, judged = built_both_ways(opcode, PAYLOAD[:length])
        assert mine == judged, f"{length} bytes of payload"


@pytest.mark.parametrize("syndrome", list(Syndrome), ids=lambda syndrome: syndrome.name)
def test_acknowledgements_of_each_kind_are_scapys_to_the_byte(syndrome: Syndrome) -> None:
    mine, judged = aeth(syndrome)
    assert ours(Opcode.ACKNOWLEDGE, mine) == scapys(Opcode.ACKNOWLEDGE, judged)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_management_datagrams_are_scapys_to_the_byte(message: mad.Message) -> None:
    mine, judged = deth()
    data = message.emit(42)
    assert ours(Opcode.UD_SEND_ONLY, mine, data, qpn=1) == scapys(Opcode.UD_SEND_ONLY, judged, data, qpn=1)


@pytest.mark.parametrize("operation", [frame.ARP_REQUEST, frame.ARP_REPLY])
def test_arp_is_scapys_to_the_byte(operation: int) -> None:
    mine = frame.Arp(
        operation, bytes.fromhex(MAC_A.replace(":", "")), frame.ipv4_bytes(A),
        bytes(6) if operation == frame.ARP_REQUEST else bytes.fromhex(MAC_B.replace(":", "")), frame.ipv4_bytes(B),
    ).emit()  # fmt: skip
    asked = operation == frame.ARP_REQUEST
    judged = Ether(src=MAC_A, dst="ff:ff:ff:ff:ff:ff" if asked else MAC_B) / ARP(
        op=operation, hwsrc=MAC_A, psrc=A, hwdst="00:00:00:00:00:00" if asked else MAC_B, pdst=B
    )
    assert mine == bytes(judged)


@pytest.mark.parametrize("opcode", RELIABLE, ids=lambda opcode: opcode.name)
def test_scapy_dissects_what_it_is_given_and_recomputes_the_same_icrc(opcode: Opcode) -> None:
    mine, _ = built_both_ways(opcode, b"" if opcode in WITHOUT_PAYLOAD else PAYLOAD[:8])
    seen = Ether(mine)
    _, built = EXTENDED.get(opcode, nothing)()
    expected = [] if built is None else [layer for layer in built.layers() if layer is not Raw]
    assert [layer for layer in seen.layers() if layer not in (Ether, IP, UDP, ScapyBTH, Raw)] == expected
    seen[ScapyBTH].icrc = None
    assert bytes(seen) == mine


def test_a_wrong_bit_is_a_wrong_icrc_for_both() -> None:
    mine, _ = built_both_ways(Opcode.RDMA_WRITE_ONLY, PAYLOAD)
    broken = bytearray(mine)
    broken[100] ^= 1
    envelope = frame.Envelopes(frame.ipv4_bytes(B)).accept(bytes(broken))
    assert isinstance(envelope, frame.Accepted)
    assert not frame.icrc_matches(bytes(broken), envelope)
    seen = Ether(bytes(broken))
    seen[ScapyBTH].icrc = None
    assert bytes(seen) != bytes(broken)


def test_the_forged_nak_is_a_good_frame_for_the_sender() -> None:
    request, _ = built_both_ways(Opcode.RDMA_WRITE_LAST, PAYLOAD)
    forged = forging.forge("forge_nak_sequence", request, 0x99, 5)
    envelope = frame.Envelopes(frame.ipv4_bytes(A)).accept(forged)
    assert isinstance(envelope, frame.Accepted)
    assert envelope.source == frame.ipv4_bytes(B)
    assert frame.icrc_matches(forged, envelope)
    opcode, _, p_key, qpn, psn = headers.BTH.unpack_from(forged, frame.TRANSPORT_OFFSET)
    assert (opcode, p_key, qpn, psn & 0xFFFFFF) == (Opcode.ACKNOWLEDGE, headers.P_KEY_FULL, 0x99, PSN)
    assert headers.AETH.unpack_from(forged, frame.PAYLOAD_OFFSET)[0] == int(Syndrome.NAK_SEQUENCE) << 24 | 5
    assert forged[:12] == request[6:12] + request[:6]


@pytest.mark.needs_tshark
def test_tshark_opens_all_of_it_without_a_malformed_frame(tmp_path: Path) -> None:
    payloads = {opcode: b"" if opcode in WITHOUT_PAYLOAD else PAYLOAD[:8] for opcode in RELIABLE}
    frames = [built_both_ways(opcode, payload)[0] for opcode, payload in payloads.items()]
    frames += [ours(Opcode.UD_SEND_ONLY, deth()[0], message.emit(42), qpn=1) for message in MESSAGES]
    frames.append(forging.forge("forge_nak_sequence", frames[0], 0x99, 5))
    file = tmp_path / "all.pcap"
    wrpcap(str(file), [Ether(data) for data in frames])
    command = ["tshark", "-r", str(file), "--disable-protocol", "rpcordma", "-T", "fields"]
    printed = subprocess.run(
        [*command, "-e", "infiniband.bth.opcode", "-e", "infiniband.invariant.crc", "-e", "_ws.malformed"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    rows = [line.split("\t") for line in printed.stdout.splitlines()]
    assert [int(row[0], 0) for row in rows] == [data[frame.TRANSPORT_OFFSET] for data in frames]
    assert [row[2:] for row in rows if any(row[2:])] == []
    known = [
        (int(row[1], 16), int.from_bytes(data[-4:], "big"))
        for row, data in zip(rows, frames, strict=True)
        if data[frame.TRANSPORT_OFFSET] not in UNKNOWN_TO_TSHARK
    ]
    assert [printed for printed, _ in known] == [sent for _, sent in known]
