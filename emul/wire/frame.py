"""The envelope of a RoCEv2 packet: Ethernet, IPv4, UDP in front, ICRC behind; and ARP beside it.

`Flow` is the sending half of a conversation: it keeps, for each packet length, the 42 bytes in front and the ICRC's
state after them, as nothing else in them changes. `Envelopes` is the receiving half: it accepts 28 bytes of IP and UDP
header once by the rules and later by looking them up.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from emul.wire.headers import BTH_BYTES, ICRC_BYTES
from emul.wire.icrc import crc32, envelope_seed

ROCE_UDP_PORT = 4791
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERNET_BYTES = 14
IPV4_BYTES = 20
UDP_BYTES = 8
ENVELOPE_BYTES = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES
TRANSPORT_OFFSET = ENVELOPE_BYTES
PAYLOAD_OFFSET = ENVELOPE_BYTES + BTH_BYTES
FRAME_BYTES_MIN = ENVELOPE_BYTES + BTH_BYTES + ICRC_BYTES
HEADERS_PER_PACKET_MAX = IPV4_BYTES + UDP_BYTES + BTH_BYTES + 16 + 4 + ICRC_BYTES
"""What an IP packet needs besides a full payload: RETH and immediate data are the longest extension that carries
one."""
FLOW_LENGTHS_MAX = 64
"""Envelopes kept for each flow; all are forgotten when another one comes."""
ENVELOPES_MAX = 4096
"""Accepted headers kept by a port; all are forgotten when another one comes."""
BROADCAST = b"\xff" * 6

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_DONT_FRAGMENT = 0x4000
_TTL = 64


def ipv4_bytes(address: str) -> bytes:
    """The four bytes of "10.77.0.1" or of an IPv4-mapped GID "::ffff:10.77.0.1". Raises ValueError."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        if mapped is None:
            raise ValueError(f"{address} is no IPv4-mapped GID")
        parsed = mapped
    return parsed.packed


def internet_checksum(data: bytes) -> int:
    """Ones' complement sum of 16-bit words (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Flow:
    """Builds frames from one local to one remote address with one UDP source port."""

    __slots__ = ("_addresses", "_ethernet", "_known", "_ports")

    def __init__(self, *, source_mac: bytes, target_mac: bytes, source: bytes, target: bytes, source_port: int) -> None:
        self._ethernet = target_mac + source_mac + struct.pack("!H", ETHERTYPE_IPV4)
        self._addresses = (source, target)
        self._ports = source_port
        self._known: dict[int, tuple[bytes, int]] = {}

    def frame(self, bth: bytes, rest: bytes) -> bytes:
        """The whole frame for 12 bytes of `bth` (byte 4 zero) and `rest`: extended headers and padded payload."""
        length = len(rest)
        known = self._known.get(length)
        if known is None:
            known = self._learn(length)
        envelope, seed = known
        crc = crc32(rest, crc32(bth[:4] + b"\xff" + bth[5:], seed))  # masked_bth, without the call
        return b"".join((envelope, bth, rest, crc.to_bytes(4, "little")))

    def _learn(self, rest_length: int) -> tuple[bytes, int]:
        udp_length = UDP_BYTES + BTH_BYTES + rest_length + ICRC_BYTES
        fields = (0x45, 0, IPV4_BYTES + udp_length, 0, _DONT_FRAGMENT, _TTL, 17)
        checksum = internet_checksum(_IPV4.pack(*fields, 0, *self._addresses))
        ip_udp = _IPV4.pack(*fields, checksum, *self._addresses) + _UDP.pack(self._ports, ROCE_UDP_PORT, udp_length, 0)
        if len(self._known) >= FLOW_LENGTHS_MAX:
            self._known.clear()
        known = self._known[rest_length] = (self._ethernet + ip_udp, envelope_seed(ip_udp))
        return known


@dataclass(frozen=True, slots=True)
class Accepted:
    """An envelope that passed: whole frame length (Ethernet padding left out), source address, the ICRC's state."""

    length: int
    source: bytes
    seed: int


class Envelopes:
    """Accepts or refuses the headers in front of packets for one address, and remembers those it accepted."""

    __slots__ = ("_address", "_known")

    def __init__(self, address: bytes) -> None:
        self._address = address
        self._known: dict[bytes, Accepted] = {}

    def accept(self, frame: bytes) -> Accepted | str:
        """The envelope of `frame`, or the name of the counter under which it is to be dropped."""
        known = self._known.get(frame[ETHERNET_BYTES:ENVELOPE_BYTES])
        if known is not None and len(frame) >= known.length:
            return known
        return self._inspect(frame)

    def _inspect(self, frame: bytes) -> Accepted | str:
        if len(frame) < FRAME_BYTES_MIN:
            return "rx_truncated"
        ip_udp = frame[ETHERNET_BYTES:ENVELOPE_BYTES]
        version, _, total, _, fragment, _, protocol, _, source, target = _IPV4.unpack_from(ip_udp)
        if version != 0x45 or protocol != 17 or fragment & 0x3FFF:
            return "rx_not_roce"
        _, port, udp_length, udp_checksum = _UDP.unpack_from(ip_udp, IPV4_BYTES)
        if port != ROCE_UDP_PORT:
            return "rx_not_roce"
        if target != self._address:
            return "rx_other_address"
        if udp_length != total - IPV4_BYTES or total + ETHERNET_BYTES > len(frame):
            return "rx_truncated"
        if total < FRAME_BYTES_MIN - ETHERNET_BYTES or total % 4:
            return "rx_truncated"  # headers and padded payload are whole words
        if internet_checksum(ip_udp[:IPV4_BYTES]):
            return "rx_ip_checksum"
        accepted = Accepted(ETHERNET_BYTES + total, source, envelope_seed(ip_udp))
        if udp_checksum:
            datagram = frame[ETHERNET_BYTES + IPV4_BYTES : accepted.length]
            pseudo = source + target + struct.pack("!HH", 17, udp_length)
            return "rx_udp_checksum" if internet_checksum(pseudo + datagram) else accepted
        if len(self._known) >= ENVELOPES_MAX:
            self._known.clear()
        self._known[ip_udp] = accepted
        return accepted


def icrc_matches(frame: bytes, envelope: Accepted) -> bool:
    """Whether the four bytes at the end of the packet are its ICRC."""
    end = envelope.length - ICRC_BYTES
    masked = frame[TRANSPORT_OFFSET : TRANSPORT_OFFSET + 4] + b"\xff" + frame[TRANSPORT_OFFSET + 5 : PAYLOAD_OFFSET]
    seed = crc32(masked, envelope.seed)
    return crc32(frame[PAYLOAD_OFFSET:end], seed) == int.from_bytes(frame[end : envelope.length], "little")


ARP_REQUEST = 1
ARP_REPLY = 2


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet for IPv4 over Ethernet (RFC 826)."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes

    def emit(self) -> bytes:
        """The whole frame: a request is broadcast, a reply goes to its target."""
        destination = BROADCAST if self.operation == ARP_REQUEST else self.target_mac
        body = _ARP.pack(
            1, ETHERTYPE_IPV4, 6, 4, self.operation, self.sender_mac, self.sender, self.target_mac, self.target
        )
        return destination + self.sender_mac + struct.pack("!H", ETHERTYPE_ARP) + body

    @classmethod
    def parse(cls, frame: bytes) -> Arp | None:
        """None for anything but a whole ARP request or reply."""
        if len(frame) < ETHERNET_BYTES + _ARP.size:
            return None
        hardware, protocol, hardware_size, size, operation, *addresses = _ARP.unpack_from(frame, ETHERNET_BYTES)
        if (hardware, protocol, hardware_size, size) != (1, ETHERTYPE_IPV4, 6, 4) or operation not in (1, 2):
            return None
        return cls(operation, *addresses)
