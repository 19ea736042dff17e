"""Which frames belong to a port, said once for XDP and once for classic BPF.

A port takes ARP, neighbour discovery (solicitations and advertisements) and RoCEv2: UDP destination port 4791 over IPv4
without options, not a fragment, or over IPv6 without extension headers. With addresses it takes only what is for them:
ARP whose target protocol address is one of them (a request for it, or the reply to a request that it sent),
solicitations that ask for one, advertisements to one or to all nodes, UDP whose destination it is. Everything else
stays with the kernel's network stack, whose ARP replies must not be stolen; so does every frame with a VLAN tag.
Without addresses it takes these kinds whomever they are for.

An advertisement to all nodes is for the kernel as well, and XDP can't give it to both: the port has it, and a kernel
with IPv6 on the same interface learns of the change a little later, by asking.

All fields of ARP and IPv4 that are used lie within the first 42 bytes, which both an ARP frame and a UDP datagram have:
one bounds check serves. IPv6 needs 62 bytes for UDP and 78 for neighbour discovery.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence

from emul.port.bpf import Assembler, Helper, Register, Size, XdpAction
from emul.wire.address import IPV4_ADDRESS_BYTES, address_bytes
from emul.wire.discovery import ADVERTISEMENT, ALL_NODES, SOLICITATION

ROCE_UDP_PORT = 4791
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ADDRESSES_MAX = 8
"""Of one port: a classic program jumps over 255 instructions at the most."""
_PROTOCOL_UDP = 17
_PROTOCOL_ICMPV6 = 58
_IPV4_WITHOUT_OPTIONS = 0x45
_FRAGMENT_BITS = 0x3FFF
"""More-fragments flag and fragment offset."""
_VERSION_BITS, _IPV6_VERSION = 0xF0, 0x60

# Offsets from the start of an Ethernet frame.
_ETHERTYPE = 12
_IP_VERSION = 14
_IPV4_FRAGMENT = 20
_IPV4_PROTOCOL = 23
_IPV4_TARGET = 30
_UDP_TARGET_PORT = 36
_ARP_TARGET = 38
_NEEDED_BYTES = 42
_IPV6_NEXT_HEADER = 20
_IPV6_TARGET = 38
_UDP6_TARGET_PORT = 56
_UDP6_NEEDED_BYTES = 62
_ND_TYPE = 54
_ND_TARGET = 62
_ND_NEEDED_BYTES = 78

# Offsets in struct xdp_md.
_XDP_DATA = 0
_XDP_DATA_END = 4
_XDP_RECEIVE_QUEUE = 16

_QUEUE, _START, _END, _LIMIT, _FIELD = Register.R6, Register.R2, Register.R3, Register.R4, Register.R5

Addresses = str | Sequence[str] | None
"""Of a port: one address of either family, several, or None for whatever comes."""


def parse_addresses(addresses: Addresses) -> tuple[bytes, ...] | None:
    """Four or sixteen bytes for each. Raises ValueError for a bad one, for none, and for more than ADDRESSES_MAX."""
    if addresses is None:
        return None
    parsed = tuple(address_bytes(each) for each in ((addresses,) if isinstance(addresses, str) else addresses))
    if not 0 < len(parsed) <= ADDRESSES_MAX:
        raise ValueError(f"a port has 1 to {ADDRESSES_MAX} addresses, got {len(parsed)}")
    return parsed


def xdp_program(map_fd: int, addresses: Addresses) -> bytes:
    """The XDP program: frames of the port go to the AF_XDP socket of their queue in the map, all others pass on.

    Where the map has no socket for the queue, the frame passes on too. Raises ValueError as `parse_addresses`.
    """
    own = parse_addresses(addresses)
    program = Assembler()
    program.load(Size.WORD, _QUEUE, Register.R1, _XDP_RECEIVE_QUEUE)
    program.load(Size.WORD, _START, Register.R1, _XDP_DATA)
    program.load(Size.WORD, _END, Register.R1, _XDP_DATA_END)
    _need(program, _NEEDED_BYTES)
    program.load(Size.HALF, _FIELD, _START, _ETHERTYPE)
    program.jump_if_equal(_FIELD, _network_half(ETHERTYPE_ARP), "arp")
    program.jump_if_equal(_FIELD, _network_half(ETHERTYPE_IPV6), "ipv6")
    program.jump_unless_equal(_FIELD, _network_half(ETHERTYPE_IPV4), "pass")
    _check_ipv4(program)
    _take_if_own(program, "ipv4 target", _of_family(own, ipv6=False), _IPV4_TARGET)
    program.label("arp")
    # At 38 the word is not aligned; XDP loads need not be.
    _take_if_own(program, "arp target", _of_family(own, ipv6=False), _ARP_TARGET)
    program.label("ipv6")
    _check_ipv6(program, _of_family(own, ipv6=True))

    program.label("take")
    program.load_map(Register.R1, map_fd)
    program.copy(Register.R2, _QUEUE)
    program.move(Register.R3, XdpAction.PASS)
    program.call(Helper.REDIRECT_MAP)
    program.exit()
    program.label("pass")
    program.move(Register.R0, XdpAction.PASS)
    program.exit()
    return program.assemble()


def _check_ipv4(program: Assembler) -> None:
    program.load(Size.BYTE, _FIELD, _START, _IP_VERSION)
    program.jump_unless_equal(_FIELD, _IPV4_WITHOUT_OPTIONS, "pass")
    program.load(Size.HALF, _FIELD, _START, _IPV4_FRAGMENT)
    program.mask(_FIELD, _network_half(_FRAGMENT_BITS))
    program.jump_unless_equal(_FIELD, 0, "pass")
    program.load(Size.BYTE, _FIELD, _START, _IPV4_PROTOCOL)
    program.jump_unless_equal(_FIELD, _PROTOCOL_UDP, "pass")
    program.load(Size.HALF, _FIELD, _START, _UDP_TARGET_PORT)
    program.jump_unless_equal(_FIELD, _network_half(ROCE_UDP_PORT), "pass")


def _check_ipv6(program: Assembler, own: tuple[bytes, ...] | None) -> None:
    _need(program, _UDP6_NEEDED_BYTES)
    program.load(Size.BYTE, _FIELD, _START, _IP_VERSION)
    program.mask(_FIELD, _VERSION_BITS)
    program.jump_unless_equal(_FIELD, _IPV6_VERSION, "pass")
    program.load(Size.BYTE, _FIELD, _START, _IPV6_NEXT_HEADER)
    program.jump_if_equal(_FIELD, _PROTOCOL_ICMPV6, "icmpv6")
    program.jump_unless_equal(_FIELD, _PROTOCOL_UDP, "pass")
    program.load(Size.HALF, _FIELD, _START, _UDP6_TARGET_PORT)
    program.jump_unless_equal(_FIELD, _network_half(ROCE_UDP_PORT), "pass")
    _take_if_own(program, "ipv6 target", own, _IPV6_TARGET)
    program.label("icmpv6")
    _need(program, _ND_NEEDED_BYTES)
    program.load(Size.BYTE, _FIELD, _START, _ND_TYPE)
    program.jump_if_equal(_FIELD, SOLICITATION, "asked")
    program.jump_unless_equal(_FIELD, ADVERTISEMENT, "pass")
    _take_if_own(program, "told", _advertised_to(own), _IPV6_TARGET)
    program.label("asked")
    _take_if_own(program, "asked for", own, _ND_TARGET)


def _need(program: Assembler, length: int) -> None:
    """Passes on a frame that has fewer bytes in front."""
    program.copy(_LIMIT, _START)
    program.add(_LIMIT, length)
    program.jump_if_greater(_LIMIT, _END, "pass")


def _take_if_own(program: Assembler, name: str, own: tuple[bytes, ...] | None, place: int) -> None:
    """Takes a frame with one of these addresses at `place` (with any, where they are None), passes on all others."""
    if own is None:
        program.jump("take")
        return
    for number, address in enumerate(own):
        other = f"{name} {number}"
        for offset in range(0, len(address), 4):
            program.load(Size.WORD, _FIELD, _START, place + offset)
            program.jump_unless_equal(_FIELD, int.from_bytes(address[offset : offset + 4], sys.byteorder), other)
        program.jump("take")
        program.label(other)
    program.jump("pass")


def _of_family(own: tuple[bytes, ...] | None, *, ipv6: bool) -> tuple[bytes, ...] | None:
    return None if own is None else tuple(each for each in own if (len(each) != IPV4_ADDRESS_BYTES) is ipv6)


def _advertised_to(own: tuple[bytes, ...] | None) -> tuple[bytes, ...] | None:
    """Where advertisements for the port go."""
    return (*own, ALL_NODES) if own else own


def _network_half(value: int) -> int:
    """What a native 16-bit load gives for `value` in network byte order."""
    return int.from_bytes(struct.pack("!H", value), sys.byteorder)


# Classic BPF (linux/filter.h): loads are from the frame, in network byte order; one beyond its end rejects the frame.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_JUMP_EQUAL, _JUMP_ANY_BIT, _AND, _RETURN = 0x15, 0x45, 0x54, 0x06
_CLASSIC = struct.Struct("=HBBI")
_WHOLE_FRAME = 0xFFFF_FFFF
_VLAN_TAG_PRESENT = 0xFFFF_F000 + 48
"""SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT: a packet socket sees a tagged frame with its tag taken out."""

_Step = tuple[str, int, int, str, str]
"""Own label or "", code, operand, label where it holds, label where not ("" is the next instruction)."""


def classic_filter(addresses: Addresses) -> bytes:
    """The same choice as an array of struct sock_filter, for SO_ATTACH_FILTER on a packet socket."""
    own = parse_addresses(addresses)
    ipv4, ipv6 = _of_family(own, ipv6=False), _of_family(own, ipv6=True)
    steps: list[_Step] = [
        ("", _LOAD_WORD, _VLAN_TAG_PRESENT, "", ""),
        ("", _JUMP_EQUAL, 0, "", "leave"),
        ("", _LOAD_BYTE, _NEEDED_BYTES - 1, "", ""),
        ("", _LOAD_HALF, _ETHERTYPE, "", ""),
        ("", _JUMP_EQUAL, ETHERTYPE_ARP, "arp", ""),
        ("", _JUMP_EQUAL, ETHERTYPE_IPV6, "ipv6", ""),
        ("", _JUMP_EQUAL, ETHERTYPE_IPV4, "", "leave"),
        ("", _LOAD_BYTE, _IP_VERSION, "", ""),
        ("", _JUMP_EQUAL, _IPV4_WITHOUT_OPTIONS, "", "leave"),
        ("", _LOAD_HALF, _IPV4_FRAGMENT, "", ""),
        ("", _JUMP_ANY_BIT, _FRAGMENT_BITS, "leave", ""),
        ("", _LOAD_BYTE, _IPV4_PROTOCOL, "", ""),
        ("", _JUMP_EQUAL, _PROTOCOL_UDP, "", "leave"),
        ("", _LOAD_HALF, _UDP_TARGET_PORT, "", ""),
        ("", _JUMP_EQUAL, ROCE_UDP_PORT, "ipv4 target", ""),
        ("", _RETURN, 0, "", ""),
        *_classic_targets("ipv4 target", ipv4, _IPV4_TARGET),
        *_classic_targets("arp", ipv4, _ARP_TARGET),
        ("ipv6", _LOAD_BYTE, _UDP6_NEEDED_BYTES - 1, "", ""),
        ("", _LOAD_BYTE, _IP_VERSION, "", ""),
        ("", _AND, _VERSION_BITS, "", ""),
        ("", _JUMP_EQUAL, _IPV6_VERSION, "", "leave"),
        ("", _LOAD_BYTE, _IPV6_NEXT_HEADER, "", ""),
        ("", _JUMP_EQUAL, _PROTOCOL_ICMPV6, "icmpv6", ""),
        ("", _JUMP_EQUAL, _PROTOCOL_UDP, "", "leave"),
        ("", _LOAD_HALF, _UDP6_TARGET_PORT, "", ""),
        ("", _JUMP_EQUAL, ROCE_UDP_PORT, "ipv6 target", "leave"),
        ("leave", _RETURN, 0, "", ""),
        ("icmpv6", _LOAD_BYTE, _ND_NEEDED_BYTES - 1, "", ""),
        ("", _LOAD_BYTE, _ND_TYPE, "", ""),
        ("", _JUMP_EQUAL, SOLICITATION, "asked", ""),
        ("", _JUMP_EQUAL, ADVERTISEMENT, "", "leave far"),
        *_classic_targets("told", _advertised_to(ipv6), _IPV6_TARGET),
        ("leave far", _RETURN, 0, "", ""),
        *_classic_targets("ipv6 target", ipv6, _IPV6_TARGET),
        *_classic_targets("asked", ipv6, _ND_TARGET),
    ]
    places = {step[0]: place for place, step in enumerate(steps) if step[0]}
    return b"".join(_encode_classic(place, step, places) for place, step in enumerate(steps))


def _classic_targets(label: str, own: tuple[bytes, ...] | None, place: int) -> list[_Step]:
    """Takes a frame with one of these addresses at `place` (with any, where they are None), leaves all others."""
    if own is None:
        return [(label, _RETURN, _WHOLE_FRAME, "", "")]
    steps: list[_Step] = []
    for number, address in enumerate(own):
        here, other = f"{label} {number}" if number else label, f"{label} {number + 1}"
        for offset in range(0, len(address), 4):
            word = int.from_bytes(address[offset : offset + 4], "big")
            steps.append(("" if offset else here, _LOAD_WORD, place + offset, "", ""))
            steps.append(("", _JUMP_EQUAL, word, "", other))
        steps.append(("", _RETURN, _WHOLE_FRAME, "", ""))
    steps.append((f"{label} {len(own)}" if own else label, _RETURN, 0, "", ""))
    return steps


def _encode_classic(place: int, step: _Step, places: dict[str, int]) -> bytes:
    _, code, operand, holds, fails = step
    offsets = (0 if not label else places[label] - place - 1 for label in (holds, fails))
    return _CLASSIC.pack(code, *offsets, operand)
