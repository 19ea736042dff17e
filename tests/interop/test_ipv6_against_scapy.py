"""Scapy and tshark as judges of what is sent over IPv6: packets, their UDP checksum and ICRC, neighbour discovery."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from scapy.contrib.roce import BTH as ScapyBTH  # noqa: N811 - a class in capitals
from scapy.contrib.roce import CNPPadding
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from emul.congestion import CNP_RESERVED, CNP_TRAFFIC_CLASS, cnp_bth
from emul.wire.address import address_bytes
from emul.wire.discovery import ALL_NODES, UNSPECIFIED, Advertisement, Solicitation, parse_discovery, solicited_node
from emul.wire.frame import Accepted, Envelopes, icrc_matches, make_flow
from emul.wire.headers import BTH, P_KEY_FULL, Opcode

A, B = "fd77::1", "fe80::2:3:4"
MAC_A, MAC_B = "02:cc:4d:00:00:01", "02:cc:4d:00:00:02"
RAW_A, RAW_B = (bytes.fromhex(mac.replace(":", "")) for mac in (MAC_A, MAC_B))
PORT, QPN, PSN, LABEL = 0xC123, 0x11, 0xFFFFFE, 0xABCDE
LENGTHS = (0, 4, 8, 248, 1024, 4096)


def ours(payload: bytes, *, traffic_class: int = 0) -> bytes:
    flow = make_flow(
        source_mac=RAW_A, target_mac=RAW_B, source=address_bytes(A), target=address_bytes(B), source_port=PORT,
        traffic_class=traffic_class, flow_label=LABEL,
    )  # fmt: skip
    return flow.frame(BTH.pack(Opcode.SEND_ONLY, 0, P_KEY_FULL, QPN, PSN), payload)


def scapys(payload: bytes, *, traffic_class: int = 0) -> bytes:
    built = Ether(src=MAC_A, dst=MAC_B) / IPv6(src=A, dst=B, fl=LABEL, hlim=64, tc=traffic_class)
    built /= UDP(sport=PORT, dport=4791) / ScapyBTH(opcode=int(Opcode.SEND_ONLY), dqpn=QPN, psn=PSN)
    return bytes(built / Raw(payload) if payload else built)


def notification() -> bytes:
    flow = make_flow(
        source_mac=RAW_A, target_mac=RAW_B, source=address_bytes(A), target=address_bytes(B), source_port=PORT,
        traffic_class=CNP_TRAFFIC_CLASS,
    )  # fmt: skip
    return flow.frame(cnp_bth(QPN), CNP_RESERVED)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("traffic_class", [0, 0x6B])
def test_packets_over_ipv6_are_scapys_to_the_byte(length: int, traffic_class: int) -> None:
    payload = bytes(number * 7 & 0xFF for number in range(length))
    assert ours(payload, traffic_class=traffic_class) == scapys(payload, traffic_class=traffic_class)


@pytest.mark.parametrize("length", LENGTHS)
def test_what_scapy_builds_is_accepted_also_without_a_udp_checksum(length: int) -> None:
    frame = scapys(bytes(length))
    for seen in (frame, frame[:60] + b"\0\0" + frame[62:]):
        envelope = Envelopes(address_bytes(B)).accept(seen)
        assert isinstance(envelope, Accepted)
        assert icrc_matches(seen, envelope)


def test_a_notification_is_scapys_to_the_byte() -> None:
    built = Ether(src=MAC_A, dst=MAC_B) / IPv6(src=A, dst=B, hlim=64, tc=CNP_TRAFFIC_CLASS)
    built /= UDP(sport=PORT, dport=4791) / ScapyBTH(opcode=0x81, becn=1, dqpn=QPN, psn=0) / CNPPadding()
    assert notification() == bytes(built)


def messages() -> list[tuple[bytes, Packet]]:
    """Each kind of message, from here and from scapy."""
    a, b = address_bytes(A), address_bytes(B)
    group = "ff02::1:ff03:4"
    group_mac = "33:33:ff:03:00:04"
    return [
        (
            Solicitation(a, solicited_node(b), b, RAW_A).emit(),
            Ether(src=MAC_A, dst=group_mac) / IPv6(src=A, dst=group, hlim=255)
            / ICMPv6ND_NS(tgt=B) / ICMPv6NDOptSrcLLAddr(lladdr=MAC_A),
        ),
        (
            Solicitation(UNSPECIFIED, solicited_node(b), b, RAW_A).emit(),
            Ether(src=MAC_A, dst=group_mac) / IPv6(src="::", dst=group, hlim=255) / ICMPv6ND_NS(tgt=B),
        ),
        (
            Advertisement(b, a, b, RAW_B, solicited=True, override=True).emit(RAW_A),
            Ether(src=MAC_B, dst=MAC_A) / IPv6(src=B, dst=A, hlim=255)
            / ICMPv6ND_NA(tgt=B, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_B),
        ),
        (
            Advertisement(b, ALL_NODES, b, RAW_B, solicited=False, override=True).emit(),
            Ether(src=MAC_B, dst="33:33:00:00:00:01") / IPv6(src=B, dst="ff02::1", hlim=255)
            / ICMPv6ND_NA(tgt=B, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_B),
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(4))
def test_neighbour_discovery_is_scapys_to_the_byte(number: int) -> None:
    mine, judged = messages()[number]
    assert mine == bytes(judged)
    assert parse_discovery(bytes(judged)) is not None


@pytest.mark.needs_tshark
def test_tshark_finds_nothing_wrong_over_ipv6(tmp_path: Path) -> None:
    frames = [ours(bytes(length)) for length in LENGTHS[1:]] + [notification()] + [mine for mine, _ in messages()]
    file = tmp_path / "ipv6.pcap"
    wrpcap(str(file), [Ether(data) for data in frames])
    command = ["tshark", "-r", str(file), "--disable-protocol", "rpcordma", "-o", "udp.check_checksum:TRUE"]
    fields = ["infiniband.bth.opcode", "udp.checksum.status", "icmpv6.checksum.status", "_ws.malformed"]
    printed = subprocess.run(
        [*command, "-T", "fields", *(word for field in fields for word in ("-e", field))],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    rows = [line.split("\t") for line in printed.stdout.rstrip("\n").split("\n")]
    assert [int(row[0], 0) for row in rows[:6]] == [Opcode.SEND_ONLY] * 5 + [Opcode.CNP]
    assert [row[1] for row in rows[:6]] == ["1"] * 6, "the UDP checksum is good"
    assert [row[2] for row in rows[6:]] == ["1"] * 4, "the ICMPv6 checksum is good"
    assert [row for row in rows if len(row) > 3 and row[3]] == []
