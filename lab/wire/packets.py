"""Frames taken apart for the analyzer: Ethernet, IPv4 or IPv6, UDP, BTH, extended headers, ICRC.

Layouts: InfiniBand specification vol. 1, 9.2 and 9.3; annexes A17 (RoCEv2, ICRC) and A19 (FLUSH, ATOMIC WRITE). A
parser of its own on purpose: one that it shared with the adapter would misread what the adapter miswrites.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from dataclasses import dataclass
from enum import Enum

ROCE_PORT = 4791
PSN_BITS = 24
PSN_MASK = (1 << PSN_BITS) - 1
BTH_BYTES, ICRC_BYTES = 12, 4
CM_QPN = 1
MTUS = (256, 512, 1024, 2048, 4096)

_ETHERTYPE_IPV4, _ETHERTYPE_IPV6, _ETHERTYPE_VLAN = 0x0800, 0x86DD, (0x8100, 0x88A8)
_VLANS_MAX = 2
_UDP = 17
_IPV4, _IPV6 = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!IHBB16s16s")
_UDP_HEADER = struct.Struct("!HHHH")
_BTH = struct.Struct("!BBHII")
_RETH, _ATOMIC, _AETH = struct.Struct("!QII"), struct.Struct("!QIQQ"), struct.Struct("!I")


class Kind(Enum):
    """What a packet is about."""

    SEND = "SEND"
    WRITE = "RDMA WRITE"
    READ = "RDMA READ"
    ATOMIC = "atomic"
    FLUSH = "FLUSH"
    ATOMIC_WRITE = "ATOMIC WRITE"
    READ_RESPONSE = "READ RESPONSE"
    ACKNOWLEDGE = "ACKNOWLEDGE"
    ATOMIC_ACKNOWLEDGE = "ATOMIC ACKNOWLEDGE"
    NOTIFICATION = "CNP"
    DATAGRAM = "datagram"


class Place(Enum):
    """Where in its message a packet stands."""

    FIRST = "FIRST"
    MIDDLE = "MIDDLE"
    LAST = "LAST"
    ONLY = "ONLY"


@dataclass(frozen=True, slots=True)
class Shape:
    """What an opcode says of its packet."""

    name: str
    kind: Kind
    place: Place
    headers: tuple[str, ...] = ()
    """Extended headers, in order; keys of HEADER_BYTES."""
    payload: bool = True
    """Whether data may follow the headers."""

    @property
    def begins(self) -> bool:
        """Whether a message begins with it."""
        return self.place in (Place.FIRST, Place.ONLY)

    @property
    def ends(self) -> bool:
        """Whether a message ends with it."""
        return self.place in (Place.LAST, Place.ONLY)


HEADER_BYTES = {
    "RETH": 16, "AETH": 4, "AtomicETH": 28, "AtomicAckETH": 8, "ImmDt": 4, "IETH": 4, "DETH": 8, "FETH": 4,
    "reserved": 16,
}  # fmt: skip
_F, _M, _L, _O = Place
SHAPES: dict[int, Shape] = {
    0x00: Shape("SEND FIRST", Kind.SEND, _F),
    0x01: Shape("SEND MIDDLE", Kind.SEND, _M),
    0x02: Shape("SEND LAST", Kind.SEND, _L),
    0x03: Shape("SEND LAST with immediate", Kind.SEND, _L, ("ImmDt",)),
    0x04: Shape("SEND ONLY", Kind.SEND, _O),
    0x05: Shape("SEND ONLY with immediate", Kind.SEND, _O, ("ImmDt",)),
    0x06: Shape("RDMA WRITE FIRST", Kind.WRITE, _F, ("RETH",)),
    0x07: Shape("RDMA WRITE MIDDLE", Kind.WRITE, _M),
    0x08: Shape("RDMA WRITE LAST", Kind.WRITE, _L),
    0x09: Shape("RDMA WRITE LAST with immediate", Kind.WRITE, _L, ("ImmDt",)),
    0x0A: Shape("RDMA WRITE ONLY", Kind.WRITE, _O, ("RETH",)),
    0x0B: Shape("RDMA WRITE ONLY with immediate", Kind.WRITE, _O, ("RETH", "ImmDt")),
    0x0C: Shape("RDMA READ REQUEST", Kind.READ, _O, ("RETH",), payload=False),
    0x0D: Shape("READ RESPONSE FIRST", Kind.READ_RESPONSE, _F, ("AETH",)),
    0x0E: Shape("READ RESPONSE MIDDLE", Kind.READ_RESPONSE, _M),
    0x0F: Shape("READ RESPONSE LAST", Kind.READ_RESPONSE, _L, ("AETH",)),
    0x10: Shape("READ RESPONSE ONLY", Kind.READ_RESPONSE, _O, ("AETH",)),
    0x11: Shape("ACKNOWLEDGE", Kind.ACKNOWLEDGE, _O, ("AETH",), payload=False),
    0x12: Shape("ATOMIC ACKNOWLEDGE", Kind.ATOMIC_ACKNOWLEDGE, _O, ("AETH", "AtomicAckETH"), payload=False),
    0x13: Shape("COMPARE SWAP", Kind.ATOMIC, _O, ("AtomicETH",), payload=False),
    0x14: Shape("FETCH ADD", Kind.ATOMIC, _O, ("AtomicETH",), payload=False),
    0x16: Shape("SEND LAST with invalidate", Kind.SEND, _L, ("IETH",)),
    0x17: Shape("SEND ONLY with invalidate", Kind.SEND, _O, ("IETH",)),
    0x1C: Shape("FLUSH", Kind.FLUSH, _O, ("FETH", "RETH"), payload=False),
    0x1D: Shape("ATOMIC WRITE", Kind.ATOMIC_WRITE, _O, ("RETH",)),
    0x64: Shape("UD SEND ONLY", Kind.DATAGRAM, _O, ("DETH",)),
    0x65: Shape("UD SEND ONLY with immediate", Kind.DATAGRAM, _O, ("DETH", "ImmDt")),
    0x81: Shape("CNP", Kind.NOTIFICATION, _O, ("reserved",), payload=False),
}
REQUESTS = frozenset({Kind.SEND, Kind.WRITE, Kind.READ, Kind.ATOMIC, Kind.FLUSH, Kind.ATOMIC_WRITE})
RESPONSES = frozenset({Kind.READ_RESPONSE, Kind.ACKNOWLEDGE, Kind.ATOMIC_ACKNOWLEDGE})
ANSWERED_BY_THEMSELVES = frozenset({Kind.READ, Kind.ATOMIC, Kind.FLUSH, Kind.ATOMIC_WRITE})
"""Requests that an ACK doesn't complete."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One RoCEv2 packet as captured."""

    number: int
    """Of the frame in its capture, from 1."""
    at: int
    """ns."""
    source: bytes
    target: bytes
    """IP addresses, 4 or 16 bytes."""
    source_port: int
    ecn: int
    """0 not capable, 1 and 2 capable, 3 congestion experienced."""
    opcode: int
    shape: Shape
    pad: int
    version: int
    becn: bool
    qpn: int
    """Destination."""
    ack_requested: bool
    psn: int
    payload: int
    """Bytes behind the headers, padding left out; below 0 where the packet is too short for its headers."""
    icrc_ok: bool | None
    """None where the capture cut the frame short."""
    va: int = 0
    rkey: int = 0
    length: int = 0
    """Of RETH; 8 for an atomic."""
    syndrome: int = 0
    msn: int = 0
    original: int = 0
    headers: bytes = b""
    """All extended headers, as sent."""
    data: bytes = b""
    """Payload of a datagram."""

    @property
    def source_name(self) -> str:
        """The sender's address as text."""
        return address_name(self.source)

    @property
    def target_name(self) -> str:
        """The receiver's address as text."""
        return address_name(self.target)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A frame for RoCE's port that is no packet: too short, or of an unknown opcode."""

    number: int
    at: int
    reason: str
    icrc_ok: bool | None = None


def address_name(address: bytes) -> str:
    """As text."""
    return str(ipaddress.ip_address(address))


@dataclass(frozen=True, slots=True)
class _Envelope:
    source: bytes
    target: bytes
    ecn: int
    udp: int
    """Offset of the UDP header."""
    end: int
    """Offset of the end of the IP packet, also where the capture cut it."""
    masked: bytes
    """The IP header as the ICRC sees it."""


def parse(number: int, at: int, frame: bytes) -> Packet | Unreadable | None:
    """The packet in an Ethernet frame; None for anything that isn't RoCEv2."""
    envelope = _envelope(frame)
    if envelope is None or len(frame) < envelope.udp + _UDP_HEADER.size:
        return None
    source_port, port, _, _ = _UDP_HEADER.unpack_from(frame, envelope.udp)
    if port != ROCE_PORT:
        return None
    start = envelope.udp + _UDP_HEADER.size
    if envelope.end < start + BTH_BYTES + ICRC_BYTES or len(frame) < start + BTH_BYTES:
        return Unreadable(number, at, f"{max(0, envelope.end - start)} bytes behind UDP are no packet")
    opcode, flags, _, becn_qpn, ack_psn = _BTH.unpack_from(frame, start)
    shape = SHAPES.get(opcode)
    end = envelope.end - ICRC_BYTES
    icrc_ok = _icrc_ok(frame, envelope, start, end)
    if shape is None:
        return Unreadable(number, at, f"opcode {opcode:#04x} is none of reliable connections", icrc_ok)
    extended = sum(HEADER_BYTES[name] for name in shape.headers)
    body = start + BTH_BYTES
    pad = flags >> 4 & 3
    headers = frame[body : body + extended] if len(frame) >= body + extended else bytes(extended)
    return Packet(
        number, at, envelope.source, envelope.target, source_port, envelope.ecn, opcode, shape, pad, flags & 0xF,
        bool(becn_qpn >> 30 & 1), becn_qpn & 0xFF_FFFF, bool(ack_psn >> 31), ack_psn & PSN_MASK,
        end - body - extended - pad, icrc_ok,
        **_fields(shape, headers), headers=headers,
        data=frame[body + extended : end] if shape.kind is Kind.DATAGRAM else b"",
    )  # fmt: skip


def _fields(shape: Shape, headers: bytes) -> dict[str, int]:
    fields: dict[str, int] = {}
    offset = 0
    for name in shape.headers:
        if name == "RETH":
            fields["va"], fields["rkey"], fields["length"] = _RETH.unpack_from(headers, offset)
        elif name == "AtomicETH":
            fields["va"], fields["rkey"], _, _ = _ATOMIC.unpack_from(headers, offset)
            fields["length"] = 8
        elif name == "AETH":
            (word,) = _AETH.unpack_from(headers, offset)
            fields["syndrome"], fields["msn"] = word >> 24, word & PSN_MASK
        elif name == "AtomicAckETH":
            fields["original"] = int.from_bytes(headers[offset : offset + 8], "big")
        offset += HEADER_BYTES[name]
    return fields


def _envelope(frame: bytes) -> _Envelope | None:
    offset = 12
    for _ in range(_VLANS_MAX + 1):
        kind = int.from_bytes(frame[offset : offset + 2], "big")
        offset += 2
        if kind not in _ETHERTYPE_VLAN:
            break
        offset += 2
    if kind == _ETHERTYPE_IPV4 and len(frame) >= offset + _IPV4.size:
        version, tos, total, identity, fragment, _, protocol, _, source, target = _IPV4.unpack_from(frame, offset)
        words = version & 0xF
        if version >> 4 != 4 or words < 5 or protocol != _UDP or fragment & 0x3FFF:
            return None
        options = frame[offset + _IPV4.size : offset + 4 * words]
        masked = _IPV4.pack(version, 0xFF, total, identity, fragment, 0xFF, protocol, 0xFFFF, source, target)
        return _Envelope(source, target, tos & 3, offset + 4 * words, offset + total, masked + options)
    if kind == _ETHERTYPE_IPV6 and len(frame) >= offset + _IPV6.size:
        word, length, following, _, source, target = _IPV6.unpack_from(frame, offset)
        if word >> 28 != 6 or following != _UDP:
            return None
        masked = _IPV6.pack(word | 0x0FFF_FFFF, length, following, 0xFF, source, target)
        end = offset + _IPV6.size + length
        return _Envelope(source, target, word >> 20 & 3, offset + _IPV6.size, end, masked)
    return None


def _icrc_ok(frame: bytes, envelope: _Envelope, start: int, end: int) -> bool | None:
    """Annex A17.3.3: CRC-32 over ones in place of the LRH, and the packet with its variable fields taken as ones."""
    if len(frame) < envelope.end:
        return None
    udp = frame[envelope.udp : envelope.udp + 6] + b"\xff\xff"
    bth = frame[start : start + 4] + b"\xff" + frame[start + 5 : start + BTH_BYTES]
    crc = zlib.crc32(b"\xff" * 8 + envelope.masked + udp + bth)
    crc = zlib.crc32(frame[start + BTH_BYTES : end], crc)
    return crc.to_bytes(4, "little") == frame[end : end + ICRC_BYTES]
