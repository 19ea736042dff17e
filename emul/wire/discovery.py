"""Neighbour discovery over IPv6 (RFC 4861): solicitations and advertisements, what ARP is for IPv4.

Values with parse and emit: ICMPv6 types 135 and 136 with the option that carries a link-layer address; all other
options are passed over. A frame that breaks one of the rules of sections 7.1.1 and 7.1.2 is no message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emul.wire.frame import ETHERNET_BYTES, ETHERTYPE_IPV6, IPV6_BYTES, internet_checksum

SOLICITATION = 135
ADVERTISEMENT = 136
UNSPECIFIED = bytes(16)
ALL_NODES = b"\xff\x02" + bytes(13) + b"\x01"
_SOLICITED_NODE = b"\xff\x02" + bytes(9) + b"\x01\xff"
_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 1, 2
_SOLICITED, _OVERRIDE = 0x40, 0x20
_ICMPV6 = 58
_HOP_LIMIT = 255
"""What has passed a router has less: neighbours alone are believed."""
_GROUP = 0xFF
_NEXT_HEADER, _TYPE = ETHERNET_BYTES + 6, ETHERNET_BYTES + IPV6_BYTES
_IP = struct.Struct("!IHBB16s16s")
_MESSAGE = struct.Struct("!BBHB3x16s")
_OPTION_BYTES = 8
_OPTIONS_MAX = 32
"""Options that are looked through in one message; more are no neighbour's."""


def solicited_node(address: bytes) -> bytes:
    """The group at which whoever has `address` is asked for it."""
    return _SOLICITED_NODE + address[-3:]


def group_mac(group: bytes) -> bytes:
    """The Ethernet address of an IPv6 group (RFC 2464)."""
    return b"\x33\x33" + group[-4:]


@dataclass(frozen=True, slots=True)
class Solicitation:
    """Who has `target`? `source` is unspecified when somebody wants to take that address himself; `mac` is the asker's,
    None where he doesn't say.
    """

    source: bytes
    destination: bytes
    target: bytes
    mac: bytes | None

    def emit(self, target_mac: bytes | None = None) -> bytes:
        """The whole frame, to `target_mac` or to the Ethernet group of the destination. The asker says his `mac`."""
        assert self.mac is not None
        body = _MESSAGE.pack(SOLICITATION, 0, 0, 0, self.target)
        if self.source != UNSPECIFIED:
            body += _option(_SOURCE_LINK_ADDRESS, self.mac)
        return _frame(target_mac or group_mac(self.destination), self.mac, self.source, self.destination, body)


@dataclass(frozen=True, slots=True)
class Advertisement:
    """`target` is at `mac`. `solicited`: as an answer; `override`: also where another Ethernet address was known."""

    source: bytes
    destination: bytes
    target: bytes
    mac: bytes | None
    solicited: bool
    override: bool

    def emit(self, target_mac: bytes | None = None) -> bytes:
        """The whole frame, to `target_mac` or to the Ethernet group of the destination."""
        assert self.mac is not None
        flags = (_SOLICITED if self.solicited else 0) | (_OVERRIDE if self.override else 0)
        body = _MESSAGE.pack(ADVERTISEMENT, 0, 0, flags, self.target) + _option(_TARGET_LINK_ADDRESS, self.mac)
        return _frame(target_mac or group_mac(self.destination), self.mac, self.source, self.destination, body)


def is_discovery(frame: bytes) -> bool:
    """Whether a frame of at least 55 bytes with the ethertype of IPv6 claims to be one of both messages."""
    return frame[_NEXT_HEADER] == _ICMPV6 and frame[_TYPE] in (SOLICITATION, ADVERTISEMENT)


def parse_discovery(frame: bytes) -> Solicitation | Advertisement | None:
    """The message in a frame whose ethertype is that of IPv6; None for anything but a whole and valid one."""
    if len(frame) < ETHERNET_BYTES + IPV6_BYTES + _MESSAGE.size:
        return None
    first, length, following, hops, source, destination = _IP.unpack_from(frame, ETHERNET_BYTES)
    start = ETHERNET_BYTES + IPV6_BYTES
    end = start + length
    if first >> 28 != 6 or following != _ICMPV6 or hops != _HOP_LIMIT or source[0] == _GROUP:
        return None
    if length < _MESSAGE.size or end > len(frame):
        return None
    body = frame[start:end]
    if internet_checksum(_pseudo(source, destination, length) + body):
        return None
    kind, code, _, flags, target = _MESSAGE.unpack_from(body)
    if code or target[0] == _GROUP:
        return None
    if kind == SOLICITATION:
        mac = _link_address(body, _SOURCE_LINK_ADDRESS)
        if source == UNSPECIFIED and (mac or destination != solicited_node(target)):
            return None
        return None if mac == b"" else Solicitation(source, destination, target, mac)
    if kind == ADVERTISEMENT:
        mac = _link_address(body, _TARGET_LINK_ADDRESS)
        solicited, override = bool(flags & _SOLICITED), bool(flags & _OVERRIDE)
        if mac == b"" or source == UNSPECIFIED or (solicited and destination[0] == _GROUP):
            return None
        return Advertisement(source, destination, target, mac, solicited, override)
    return None


def _link_address(body: bytes, wanted: int) -> bytes | None:
    """The Ethernet address in the option `wanted`; None where there is none, b"" where the options are broken."""
    place, found = _MESSAGE.size, None
    for _ in range(_OPTIONS_MAX):
        if place == len(body):
            return found
        if place + 2 > len(body):
            break
        kind, length = body[place], body[place + 1] * _OPTION_BYTES
        if not length or place + length > len(body):
            break
        if kind == wanted and length == _OPTION_BYTES:
            found = body[place + 2 : place + _OPTION_BYTES]
        place += length
    return b""


def _option(kind: int, mac: bytes) -> bytes:
    return bytes((kind, 1)) + mac


def _pseudo(source: bytes, destination: bytes, length: int) -> bytes:
    return source + destination + struct.pack("!II", length, _ICMPV6)


def _frame(target_mac: bytes, mac: bytes, source: bytes, destination: bytes, body: bytes) -> bytes:
    checksum = internet_checksum(_pseudo(source, destination, len(body)) + body)
    ip = _IP.pack(6 << 28, len(body), _ICMPV6, _HOP_LIMIT, source, destination)
    ethernet = target_mac + mac + struct.pack("!H", ETHERTYPE_IPV6)
    return b"".join((ethernet, ip, body[:2], checksum.to_bytes(2, "big"), body[4:]))
