"""The envelope of a RoCEv2 packet: Ethernet, IPv4 or IPv6, UDP in front, ICRC behind; and ARP beside it.

A flow is the sending half of a conversation: it keeps, for each kind and length of packet, the bytes in front of the
PSN and the ICRC's state after them, as nothing else in them changes. `Envelopes` is the receiving half: it accepts the
IP and UDP header of a packet once by the rules and later by looking it up.

The UDP checksum: zero over IPv4, as everybody sends it. Over IPv6 it is computed, as RFC 8200 asks for, so that every
stack on the way passes the packet; zero is taken too, as that is what Linux soft-RoCE sends (RFC 6935 allows it where
another sum covers the packet, and the ICRC does). A wrong one that is not zero is refused in both.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from emul.wire import icrc
from emul.wire.address import IPV4_ADDRESS_BYTES, ipv4_bytes
from emul.wire.headers import BTH, BTH_BYTES, ICRC_BYTES, P_KEY_FULL
from emul.wire.icrc import envelope_seed, envelope_seed6

__all__ = [
    "ARP_REPLY", "ARP_REQUEST", "BROADCAST", "ENVELOPE6_BYTES", "ENVELOPE_BYTES", "ETHERNET_BYTES", "ETHERTYPE_ARP",
    "ETHERTYPE_IPV4", "ETHERTYPE_IPV6", "FRAME_BYTES_MIN", "HEADERS_PER_PACKET_MAX", "IPV4_BYTES", "IPV6_BYTES",
    "PAYLOAD_OFFSET", "ROCE_UDP_PORT", "TRANSPORT_OFFSET", "UDP_BYTES", "Accepted", "Arp", "Envelopes", "Flow", "Flow6",
    "icrc_matches", "internet_checksum", "ipv4_bytes", "make_flow",
]  # fmt: skip

ROCE_UDP_PORT: Final = 4791
ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
PROTOCOL_UDP: Final = 17
ETHERNET_BYTES: Final = 14
IPV4_BYTES: Final = 20
IPV6_BYTES: Final = 40
UDP_BYTES: Final = 8
ENVELOPE_BYTES: Final = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES
"""Over IPv4; over IPv6 it is ENVELOPE6_BYTES."""
ENVELOPE6_BYTES: Final = ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES
TRANSPORT_OFFSET: Final = ENVELOPE_BYTES
PAYLOAD_OFFSET: Final = ENVELOPE_BYTES + BTH_BYTES
FRAME_BYTES_MIN: Final = ENVELOPE_BYTES + BTH_BYTES + ICRC_BYTES
_FRAME6_BYTES_MIN: Final = ENVELOPE6_BYTES + BTH_BYTES + ICRC_BYTES
_CHECKSUM6: Final = ENVELOPE6_BYTES - 2
_ADDRESSES6: Final = ETHERNET_BYTES + 8
HEADERS_PER_PACKET_MAX = IPV4_BYTES + UDP_BYTES + BTH_BYTES + 16 + 4 + ICRC_BYTES
"""What an IPv4 packet needs besides a full payload: RETH and immediate data are the longest extension that carries
one."""
FLOW_LENGTHS_MAX: Final = 64
"""Envelopes kept for each flow; all are forgotten when another one comes."""
ENVELOPES_MAX: Final = 4096
"""Accepted headers kept by a port for each family; all are forgotten when another one comes."""
BROADCAST = b"\xff" * 6

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_LAST_WORD_BYTES: Final = 4
"""Of a BTH: AckReq and PSN."""
_DONT_FRAGMENT = 0x4000
crc32: Final = icrc.crc32
HOP_LIMIT = 64
"""Of IPv4 (TTL) and IPv6."""
_CONGESTION_BITS = 3
"""Congestion experienced: both ECN bits (RFC 3168), the last two of IPv4's TOS and IPv6's traffic class."""


def internet_checksum(data: bytes) -> int:
    """Ones' complement sum of 16-bit words (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    return 0xFFFF - _sum(int.from_bytes(data, "big"))


def _sum(words: int) -> int:
    # 2^16 leaves 1 when divided by 65535, so the remainder is the ones' complement sum of all words at once; of the
    # two ways to write its zero, 65535 is that of words that are not all zero.
    return (words - 1) % 0xFFFF + 1 if words else 0


def make_flow(
    *, source_mac: bytes, target_mac: bytes, source: bytes, target: bytes, source_port: int,
    traffic_class: int = 0, flow_label: int = 0, hop_limit: int = HOP_LIMIT, destination_qpn: int = 0,
) -> Flow:  # fmt: skip
    """A flow of the family that `target` is of, four or sixteen bytes as `source`; `flow_label` is IPv6's alone."""
    if len(target) == IPV4_ADDRESS_BYTES:
        return Flow(
            source_mac=source_mac, target_mac=target_mac, source=source, target=target, source_port=source_port,
            traffic_class=traffic_class, hop_limit=hop_limit, destination_qpn=destination_qpn,
        )  # fmt: skip
    return Flow6(
        source_mac=source_mac, target_mac=target_mac, source=source, target=target, source_port=source_port,
        traffic_class=traffic_class, flow_label=flow_label, hop_limit=hop_limit, destination_qpn=destination_qpn,
    )  # fmt: skip


class Flow:
    """Builds frames from one local to one remote IPv4 address with one UDP source port."""

    __slots__ = ("_addresses", "_destination", "_ethernet", "_hop_limit", "_kinds", "_known", "_port", "_traffic_class")

    def __init__(
        self, *, source_mac: bytes, target_mac: bytes, source: bytes, target: bytes, source_port: int,
        traffic_class: int = 0, hop_limit: int = HOP_LIMIT, destination_qpn: int = 0,
    ) -> None:  # fmt: skip
        self._ethernet = target_mac + source_mac + struct.pack("!H", ETHERTYPE_IPV4)
        self._destination = destination_qpn
        self._addresses = (source, target)
        self._port = source_port
        self._traffic_class = traffic_class
        self._hop_limit = hop_limit
        self._known: dict[int, tuple[bytes, int]] = {}
        self._kinds: dict[int, tuple[bytes, int]] = {}
        """By length and kind: what stands before the PSN, and the ICRC's state after it."""

    def packet(self, kind: int, head: bytes, payload: bytes | memoryview) -> bytes:
        """The whole frame of a packet for the flow's queue pair.

        `kind` is the first half of a BTH's first word (opcode << 8 | SE, pad count); `head` is the BTH's last word
        (AckReq, PSN) and the extended headers; `payload` is padded. It is read once: what is sent is what was summed,
        even where another process writes to that memory meanwhile.
        """
        size = len(payload)
        key = (len(head) + size) << 16 | kind
        known = self._kinds.get(key)
        if known is None:
            known = self._learn_kind(key)
        front, seed = known
        crc: int = crc32(head, seed)
        if size:
            payload = bytes(payload)
            crc = crc32(payload, crc)
        return b"".join((front, head, payload, crc.to_bytes(4, "little")))

    def _learn_kind(self, key: int) -> tuple[bytes, int]:
        envelope, seed = self._envelope((key >> 16) - _LAST_WORD_BYTES)
        bth = BTH.pack(key >> 8 & 0xFF, key & 0xFF, P_KEY_FULL, self._destination, 0)[:-_LAST_WORD_BYTES]
        if len(self._kinds) >= FLOW_LENGTHS_MAX:
            self._kinds.clear()
        known = self._kinds[key] = (envelope + bth, crc32(bth[:4] + b"\xff" + bth[5:], seed))
        return known

    def frame(self, bth: bytes, rest: bytes) -> bytes:
        """The whole frame for 12 bytes of `bth` (byte 4 as the ICRC may have it: any) and `rest`: extended headers and
        padded payload.
        """
        length = len(rest)
        known = self._known.get(length)
        if known is None:
            if len(self._known) >= FLOW_LENGTHS_MAX:
                self._known.clear()
            known = self._known[length] = self._envelope(length)
        envelope, seed = known
        crc = crc32(rest, crc32(bth[:4] + b"\xff" + bth[5:], seed))  # masked_bth, without the call
        return b"".join((envelope, bth, rest, crc.to_bytes(4, "little")))

    def _envelope(self, rest_length: int) -> tuple[bytes, int]:
        """Everything in front of the BTH, where `rest_length` bytes follow that, and the ICRC's state after it."""
        udp_length = UDP_BYTES + BTH_BYTES + rest_length + ICRC_BYTES
        fields = (0x45, self._traffic_class, IPV4_BYTES + udp_length, 0, _DONT_FRAGMENT, self._hop_limit, PROTOCOL_UDP)
        checksum = internet_checksum(_IPV4.pack(*fields, 0, *self._addresses))
        ip_udp = _IPV4.pack(*fields, checksum, *self._addresses) + _UDP.pack(self._port, ROCE_UDP_PORT, udp_length, 0)
        return self._ethernet + ip_udp, envelope_seed(ip_udp)


class Flow6(Flow):
    """The same over IPv6, where the UDP checksum is computed for each packet and is never zero."""

    __slots__ = ("_flow_label", "_known6")

    def __init__(
        self, *, source_mac: bytes, target_mac: bytes, source: bytes, target: bytes, source_port: int,
        traffic_class: int = 0, flow_label: int = 0, hop_limit: int = HOP_LIMIT, destination_qpn: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            source_mac=source_mac, target_mac=target_mac, source=source, target=target, source_port=source_port,
            traffic_class=traffic_class, hop_limit=hop_limit, destination_qpn=destination_qpn,
        )  # fmt: skip
        self._ethernet = target_mac + source_mac + struct.pack("!H", ETHERTYPE_IPV6)
        self._flow_label = flow_label
        self._known6: dict[int, tuple[bytes, int, int]] = {}

    def packet(self, kind: int, head: bytes, payload: bytes | memoryview) -> bytes:
        """As the flow over IPv4."""
        first = BTH.pack(kind >> 8, kind & 0xFF, P_KEY_FULL, self._destination, 0)[:-_LAST_WORD_BYTES]
        return self.frame(first + head[:_LAST_WORD_BYTES], b"".join((head[_LAST_WORD_BYTES:], payload)))

    def frame(self, bth: bytes, rest: bytes) -> bytes:
        """As the flow over IPv4."""
        known = self._known6.get(len(rest))
        if known is None:
            known = self._learn6(len(rest))
        envelope, seed, sum_before = known
        crc = crc32(rest, crc32(bth[:4] + b"\xff" + bth[5:], seed))
        packet = b"".join((bth, rest, crc.to_bytes(4, "little")))
        # 1 ... 65535: the sum is never all ones and zero at once (see _sum), and zero would say that there is none
        half = len(packet) // 4 * 2  # one half laid on the other: adding is much cheaper than dividing
        words = int.from_bytes(packet[:half], "big") + int.from_bytes(packet[half:], "big")
        checksum = 0xFFFF - (sum_before + words) % 0xFFFF
        return b"".join((envelope, checksum.to_bytes(2, "big"), packet))

    def _learn6(self, rest_length: int) -> tuple[bytes, int, int]:
        """Everything in front of the UDP checksum, the ICRC's state, the sum of pseudo header and UDP header."""
        udp_length = UDP_BYTES + BTH_BYTES + rest_length + ICRC_BYTES
        first = 6 << 28 | self._traffic_class << 20 | self._flow_label
        ip = _IPV6.pack(first, udp_length, PROTOCOL_UDP, self._hop_limit, *self._addresses)
        ip_udp = ip + _UDP.pack(self._port, ROCE_UDP_PORT, udp_length, 0)
        sum_before = _sum(int.from_bytes(ip_udp[8:], "big")) + udp_length + PROTOCOL_UDP
        if len(self._known6) >= FLOW_LENGTHS_MAX:
            self._known6.clear()
        known = self._known6[rest_length] = (self._ethernet + ip_udp[:-2], envelope_seed6(ip_udp), sum_before)
        return known


@dataclass(frozen=True, slots=True)
class Accepted:
    """An envelope that passed."""

    length: int
    """Of the whole frame, Ethernet padding left out."""
    transport: int
    """Where the BTH begins."""
    source: bytes
    """Address of the sender."""
    path: bytes
    """Address of the sender, then the one of ours that it sent to."""
    seed: int
    """The ICRC's state after the envelope."""
    congested: bool
    """A switch on the way marked it: congestion experienced."""


class Envelopes:
    """Accepts or refuses the headers in front of packets for a port's addresses, and remembers those it accepted."""

    __slots__ = ("_addresses", "_known", "_known6")

    def __init__(self, *addresses: bytes) -> None:
        self._addresses = frozenset(addresses)
        self._known: dict[bytes, Accepted] = {}
        self._known6: dict[bytes, Accepted] = {}

    def accept(self, frame: bytes) -> Accepted | str:
        """The envelope of `frame`, or the name of the counter under which it is to be dropped."""
        known = self._known.get(frame[ETHERNET_BYTES:ENVELOPE_BYTES])
        if known is not None and len(frame) >= known.length:
            return known
        if frame[12:14] == b"\x86\xdd":
            return self.accept6(frame)
        return self._inspect(frame)

    def accept6(self, frame: bytes) -> Accepted | str:
        """The same for a frame whose ethertype is that of IPv6."""
        envelope = self._known6.get(frame[ETHERNET_BYTES:_CHECKSUM6])
        if envelope is None or len(frame) < envelope.length:
            inspected = self._inspect6(frame)
            if isinstance(inspected, str):
                return inspected
            envelope = inspected
        if frame[_CHECKSUM6] or frame[_CHECKSUM6 + 1]:
            # Both addresses, the UDP header and what it carries lie together; the other half of the pseudo header is
            # the UDP length and the protocol.
            end = envelope.length
            half = _ADDRESSES6 + (end - _ADDRESSES6) // 4 * 2
            words = int.from_bytes(frame[_ADDRESSES6:half], "big") + int.from_bytes(frame[half:end], "big")
            if (words + end - ETHERNET_BYTES - IPV6_BYTES + PROTOCOL_UDP) % 0xFFFF:
                return "rx_udp_checksum"
        return envelope

    def _inspect(self, frame: bytes) -> Accepted | str:
        if len(frame) < FRAME_BYTES_MIN:
            return "rx_truncated"
        ip_udp = frame[ETHERNET_BYTES:ENVELOPE_BYTES]
        version, tos, total, _, fragment, _, protocol, _, source, target = _IPV4.unpack_from(ip_udp)
        if version != 0x45 or protocol != PROTOCOL_UDP or fragment & 0x3FFF:
            return "rx_not_roce"
        _, port, udp_length, udp_checksum = _UDP.unpack_from(ip_udp, IPV4_BYTES)
        if port != ROCE_UDP_PORT:
            return "rx_not_roce"
        if target not in self._addresses:
            return "rx_other_address"
        if udp_length != total - IPV4_BYTES or total + ETHERNET_BYTES > len(frame):
            return "rx_truncated"
        if total < FRAME_BYTES_MIN - ETHERNET_BYTES or total % 4:
            return "rx_truncated"  # headers and padded payload are whole words
        if internet_checksum(ip_udp[:IPV4_BYTES]):
            return "rx_ip_checksum"
        congested = tos & _CONGESTION_BITS == _CONGESTION_BITS
        accepted = Accepted(
            ETHERNET_BYTES + total, ENVELOPE_BYTES, source, source + target, envelope_seed(ip_udp), congested
        )
        if udp_checksum:
            datagram = frame[ETHERNET_BYTES + IPV4_BYTES : accepted.length]
            pseudo = source + target + struct.pack("!HH", PROTOCOL_UDP, udp_length)
            return "rx_udp_checksum" if internet_checksum(pseudo + datagram) else accepted
        if len(self._known) >= ENVELOPES_MAX:
            self._known.clear()
        self._known[ip_udp] = accepted
        return accepted

    def _inspect6(self, frame: bytes) -> Accepted | str:
        """All but the UDP checksum."""
        if len(frame) < _FRAME6_BYTES_MIN:
            return "rx_truncated"
        first, udp_length, following, _, source, target = _IPV6.unpack_from(frame, ETHERNET_BYTES)
        _, port, length, _ = _UDP.unpack_from(frame, ETHERNET_BYTES + IPV6_BYTES)
        if first >> 28 != 6 or following != PROTOCOL_UDP or port != ROCE_UDP_PORT:
            return "rx_not_roce"  # extension headers, fragments too: nobody puts them before RoCE
        if target not in self._addresses:
            return "rx_other_address"
        end = ETHERNET_BYTES + IPV6_BYTES + udp_length
        if length != udp_length or not _FRAME6_BYTES_MIN <= end <= len(frame) or udp_length % 4:
            return "rx_truncated"
        congested = first >> 20 & _CONGESTION_BITS == _CONGESTION_BITS
        headers = frame[ETHERNET_BYTES:_CHECKSUM6]
        accepted = Accepted(end, ENVELOPE6_BYTES, source, source + target, envelope_seed6(headers), congested)
        if len(self._known6) >= ENVELOPES_MAX:
            self._known6.clear()
        self._known6[headers] = accepted
        return accepted


def icrc_matches(frame: bytes, envelope: Accepted) -> bool:
    """Whether the four bytes at the end of the packet are its ICRC."""
    start, length = envelope.transport, envelope.length
    end = length - ICRC_BYTES
    before: int = crc32(frame[start : start + 4] + b"\xff", envelope.seed)  # as masked_bth, up to the masked byte
    found: int = crc32(frame[start + 5 : end], before)
    return found == int.from_bytes(frame[end:length], "little")


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
