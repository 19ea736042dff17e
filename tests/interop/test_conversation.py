"""What two adapters say to each other, judged by scapy, by tshark and by the analyzer: every opcode, IPv4 and IPv6."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from scapy.contrib.roce import AETH, BTH, CNPPadding
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from emul.wire.headers import Opcode
from lab.capture import pcapng
from lab.wire import layers, mads
from lab.wire.analyzer import analyze
from lab.wire.capture_file import read_capture
from lab.wire.exchange import View
from lab.wire.packets import Kind, parse
from lab.wire.packets import Packet as Parsed
from tests.interop.conversation import conversation

each_family = pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
UNKNOWN_TO_TSHARK = {Opcode.FLUSH, Opcode.ATOMIC_WRITE, Opcode.CNP}
"""Opcodes of which tshark 4.0 shows the BTH alone."""
TSHARK_MAX_S = 120
MESSAGES = {"REQ", "REP", "RTU", "REJ", "DREQ", "DREP"}


def parsed(number: int, at: int, frame: bytes) -> Parsed:
    packet = parse(number, at, frame)
    assert isinstance(packet, Parsed)
    return packet


def headers_of(packet: Parsed) -> list[Packet]:
    """Scapy's layers with the values that the independent parser has found."""
    built, offset = [], 0
    for name in packet.shape.headers:
        raw = packet.headers[offset:]
        if name == "RETH":
            built.append(layers.RETH(va=packet.va, rkey=packet.rkey, dlen=packet.length))
        elif name == "AETH":
            built.append(AETH(syndrome=packet.syndrome, msn=packet.msn))
        elif name == "AtomicETH":
            va, rkey, swapadd, compare = struct.unpack("!QIQQ", raw[:28])
            built.append(layers.AtomicETH(va=va, rkey=rkey, swapadd=swapadd, compare=compare))
        elif name == "AtomicAckETH":
            built.append(layers.AtomicAckETH(origdata=packet.original))
        elif name == "FETH":
            (word,) = struct.unpack("!I", raw[:4])
            built.append(layers.FETH(plt=word & 15, sel=word >> 4 & 3))
        elif name == "DETH":
            key, source = struct.unpack("!II", raw[:8])
            built.append(layers.DETH(qkey=key, sqpn=source))
        elif name == "reserved":
            built.append(CNPPadding())
        else:
            (word,) = struct.unpack("!I", raw[:4])
            built.append(layers.ImmDt(immdata=word) if name == "ImmDt" else layers.IETH(rkey=word))
        offset += {"RETH": 16, "AETH": 4, "AtomicETH": 28, "AtomicAckETH": 8, "DETH": 8, "reserved": 16}.get(name, 4)
    return built


def rebuilt(packet: Parsed, frame: bytes) -> bytes:
    """The frame as scapy builds it from its fields, lengths, checksums and ICRC computed by scapy."""
    ether = Ether(frame)
    if IPv6 in ether:
        network: Packet = IPv6(src=packet.source_name, dst=packet.target_name, tc=ether[IPv6].tc, fl=ether[IPv6].fl)
        network.hlim = ether[IPv6].hlim
    else:
        network = IP(src=packet.source_name, dst=packet.target_name, flags="DF", id=0, ttl=64, tos=ether[IP].tos)
    bth = ether[BTH]
    built = (
        Ether(src=ether.src, dst=ether.dst)
        / network
        / UDP(sport=packet.source_port, dport=4791, chksum=ether[UDP].chksum)
        / BTH(
            opcode=packet.opcode, solicited=bth.solicited, migreq=bth.migreq, padcount=packet.pad, dqpn=packet.qpn,
            becn=int(packet.becn), ackreq=int(packet.ack_requested), psn=packet.psn,
        )
    )  # fmt: skip
    for header in headers_of(packet):
        built /= header
    size = packet.payload + packet.pad
    if size:
        built /= Raw(frame[-4 - size : -4])
    return bytes(built)


@each_family
def test_the_conversation_has_every_opcode_of_the_adapter(ipv6: bool) -> None:
    said = {parsed(1, at, frame).opcode for at, frame in conversation(ipv6)}
    assert said == {int(opcode) for opcode in Opcode}


@each_family
def test_each_frame_is_what_scapy_builds_from_its_fields_to_the_byte(ipv6: bool) -> None:
    for number, (at, frame) in enumerate(conversation(ipv6), 1):
        packet = parsed(number, at, frame)
        assert rebuilt(packet, frame) == frame, f"{packet.shape.name}\n{Ether(frame).show(dump=True)}"


@each_family
def test_scapy_dissects_each_frame_and_computes_the_same_icrc(ipv6: bool) -> None:
    for number, (at, frame) in enumerate(conversation(ipv6), 1):
        packet = parsed(number, at, frame)
        seen = Ether(frame)
        expected = [type(header) for header in headers_of(packet)]
        ground = (Ether, IP, IPv6, UDP, BTH, Raw, mads.RdmaCm, mads.RdmaCm6, mads.MAD, *mads.CM_MESSAGES.values())
        assert [layer for layer in seen.layers() if layer not in ground] == expected, packet.shape.name
        seen[BTH].icrc = None
        assert bytes(seen) == frame


@each_family
def test_scapy_reads_the_fields_of_connection_management(ipv6: bool) -> None:
    said: dict[str, Packet] = {}
    for _, frame in conversation(ipv6):
        seen = Ether(frame)
        if mads.MAD in seen:
            said[mads.CM_ATTRIBUTES[seen[mads.MAD].attrid]] = seen[mads.MAD]
    assert set(said) == MESSAGES
    req, rep, rtu = said["REQ"], said["REP"], said["RTU"]
    assert rep[mads.CM_REP].rcommid == rtu[mads.CM_RTU].lcommid
    assert rep[mads.CM_REP].lcommid == rtu[mads.CM_RTU].rcommid
    assert req[mads.CM_REQ].mtu == 3
    assert rtu.answers(rep) and not rep.answers(rtu)
    assert said["DREP"].answers(said["DREQ"])
    assert said["REJ"][mads.CM_REJ].reason == 8


@each_family
def test_the_analyzer_finds_nothing_wrong(ipv6: bool) -> None:
    report = analyze(conversation(ipv6), View(at_senders=True, from_start=True, may_mark=True))
    assert report.findings == ()
    assert all(connection.judged for connection in report.connections)
    assert len(report.connections) == 2


def captured(tmp_path: Path, ipv6: bool) -> Path:
    """The conversation in a file as `lab capture` writes it."""
    file = tmp_path / "conversation.pcapng"
    blocks = [pcapng.section("ccm-lab"), pcapng.interface("ic0-0", "sent by a"), pcapng.interface("ic0-1", "sent by b")]
    for at, frame in conversation(ipv6):
        blocks.append(pcapng.packet(frame[11], at, frame, len(frame)))
    file.write_bytes(b"".join(blocks))
    return file


@each_family
def test_the_file_is_read_back_as_it_was_written(tmp_path: Path, ipv6: bool) -> None:
    capture = read_capture(captured(tmp_path, ipv6).read_bytes())
    assert capture.at_senders
    assert tuple((frame.at, frame.frame) for frame in capture.frames) == conversation(ipv6)


FIELDS = {
    "opcode": "infiniband.bth.opcode", "psn": "infiniband.bth.psn", "qpn": "infiniband.bth.destqp",
    "ack": "infiniband.bth.a", "pad": "infiniband.bth.padcnt", "syndrome": "infiniband.aeth.syndrome",
    "msn": "infiniband.aeth.msn", "va": "infiniband.reth.va", "rkey": "infiniband.reth.r_key",
    "length": "infiniband.reth.dmalen", "immediate": "infiniband.immdt", "ieth": "infiniband.ieth",
    "swap": "infiniband.atomiceth.swapdt", "compare": "infiniband.atomiceth.cmpdt",
    "original": "infiniband.atomicacketh.origremdt", "q_key": "infiniband.deth.q_key",
    "source_qp": "infiniband.deth.srcqp", "attribute": "infiniband.mad.attributeid",
    "transaction": "infiniband.mad.transactionid", "crc": "infiniband.invariant.crc", "malformed": "_ws.malformed",
    "expert": "_ws.expert.severity",
}  # fmt: skip


def tshark(file: Path) -> list[dict[str, str]]:
    """What tshark prints of each frame."""
    command = ["tshark", "-r", str(file), "--disable-protocol", "rpcordma", "--disable-protocol", "infiniband.sdp"]
    command += ["-T", "fields", *(part for name in FIELDS.values() for part in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TSHARK_MAX_S)
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


def as_number(text: str) -> int:
    """tshark prints numbers in either way, and bytes as plain hexadecimal."""
    if text in ("True", "False"):
        return int(text == "True")
    first = text.split(",")[0]  # once in the header, once in its summary
    return int(first, 16) if not first.isdecimal() else int(first)


@pytest.mark.needs_tshark
@each_family
def test_tshark_reads_the_same_fields_and_complains_of_nothing(tmp_path: Path, ipv6: bool) -> None:
    rows = tshark(captured(tmp_path, ipv6))
    assert len(rows) == len(conversation(ipv6))
    for number, ((at, frame), row) in enumerate(zip(conversation(ipv6), rows, strict=True), 1):
        packet = parsed(number, at, frame)
        told = f"frame {number}, {packet.shape.name}: {row}"
        assert (row["malformed"], row["expert"]) == ("", ""), told
        common = {"opcode": packet.opcode, "psn": packet.psn, "qpn": packet.qpn, "pad": packet.pad}
        assert {name: as_number(row[name]) for name in common} == common, told
        assert as_number(row["ack"]) == packet.ack_requested, told
        if packet.opcode in UNKNOWN_TO_TSHARK:
            continue
        assert int(row["crc"], 16) == int.from_bytes(frame[-4:], "big"), told
        for name, value in expected_of(packet, Ether(frame)).items():
            assert as_number(row[name]) == value, f"{name} of {told}"


def expected_of(packet: Parsed, seen: Packet) -> dict[str, int]:
    """What tshark has to print of the extended headers, by FIELDS."""
    values: dict[str, int] = {}
    if "RETH" in packet.shape.headers:
        values |= {"va": packet.va, "rkey": packet.rkey, "length": packet.length}
    if "AETH" in packet.shape.headers:
        values |= {"syndrome": packet.syndrome, "msn": packet.msn}
    if "AtomicETH" in packet.shape.headers:
        atomic = seen[layers.AtomicETH]
        values |= {"swap": atomic.swapadd, "compare": atomic.compare}
    if "AtomicAckETH" in packet.shape.headers:
        values |= {"original": packet.original}
    if packet.shape.kind is Kind.DATAGRAM:
        values |= {"q_key": mads.CM_QKEY, "source_qp": 1, "attribute": seen[mads.MAD].attrid}
        values |= {"transaction": seen[mads.MAD].tid}
    if "ImmDt" in packet.shape.headers:
        values["immediate"] = seen[layers.ImmDt].immdata
    if "IETH" in packet.shape.headers:
        values["ieth"] = seen[layers.IETH].rkey
    return values
