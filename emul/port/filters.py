"""Which frames belong to a port, said once for XDP and once for classic BPF.

A port takes ARP and RoCEv2 (UDP destination port 4791 over IPv4 without options, not a fragment). With an address it
takes only what is for that address: ARP whose target protocol address it is (a request for it, or the reply to a
request that it sent), UDP whose destination it is; everything else stays with the kernel's network stack, whose ARP
replies must not be stolen. Without an address it takes these kinds whomever they are for.

All fields used lie within the first 42 bytes, which both an ARP frame and a UDP datagram have: one bounds check serves.
IPv6 (neighbour discovery and UDP) would be one more branch beside "arp".
"""

from __future__ import annotations

import ipaddress
import struct
import sys

from emul.port.bpf import Assembler, Helper, Register, Size, XdpAction

ROCE_UDP_PORT = 4791
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
_PROTOCOL_UDP = 17
_IPV4_WITHOUT_OPTIONS = 0x45
_FRAGMENT_BITS = 0x3FFF
"""More-fragments flag and fragment offset."""

# Offsets from the start of an Ethernet frame.
_ETHERTYPE = 12
_IPV4_VERSION = 14
_IPV4_FRAGMENT = 20
_IPV4_PROTOCOL = 23
_IPV4_TARGET = 30
_UDP_TARGET_PORT = 36
_ARP_TARGET = 38
_NEEDED_BYTES = 42

# Offsets in struct xdp_md.
_XDP_DATA = 0
_XDP_DATA_END = 4
_XDP_RECEIVE_QUEUE = 16


def xdp_program(map_fd: int, address: str | None) -> bytes:
    """The XDP program: frames of the port go to the AF_XDP socket of their queue in the map, all others pass on.

    Where the map has no socket for the queue, the frame passes on too. Raises ValueError for a bad IPv4 address.
    """
    queue, data, end, limit, field = Register.R6, Register.R2, Register.R3, Register.R4, Register.R5
    program = Assembler()
    program.load(Size.WORD, queue, Register.R1, _XDP_RECEIVE_QUEUE)
    program.load(Size.WORD, data, Register.R1, _XDP_DATA)
    program.load(Size.WORD, end, Register.R1, _XDP_DATA_END)
    program.copy(limit, data)
    program.add(limit, _NEEDED_BYTES)
    program.jump_if_greater(limit, end, "pass")

    program.load(Size.HALF, field, data, _ETHERTYPE)
    program.jump_if_equal(field, _network_half(ETHERTYPE_ARP), "arp")
    program.jump_unless_equal(field, _network_half(ETHERTYPE_IPV4), "pass")
    program.load(Size.BYTE, field, data, _IPV4_VERSION)
    program.jump_unless_equal(field, _IPV4_WITHOUT_OPTIONS, "pass")
    program.load(Size.HALF, field, data, _IPV4_FRAGMENT)
    program.mask(field, _network_half(_FRAGMENT_BITS))
    program.jump_unless_equal(field, 0, "pass")
    program.load(Size.BYTE, field, data, _IPV4_PROTOCOL)
    program.jump_unless_equal(field, _PROTOCOL_UDP, "pass")
    program.load(Size.HALF, field, data, _UDP_TARGET_PORT)
    program.jump_unless_equal(field, _network_half(ROCE_UDP_PORT), "pass")
    if address is not None:
        program.load(Size.WORD, field, data, _IPV4_TARGET)
        program.jump_unless_equal(field, _network_word(address), "pass")
    program.jump("take")

    program.label("arp")
    if address is not None:
        # At 38 the word is not aligned; XDP loads need not be.
        program.load(Size.WORD, field, data, _ARP_TARGET)
        program.jump_unless_equal(field, _network_word(address), "pass")

    program.label("take")
    program.load_map(Register.R1, map_fd)
    program.copy(Register.R2, queue)
    program.move(Register.R3, XdpAction.PASS)
    program.call(Helper.REDIRECT_MAP)
    program.exit()

    program.label("pass")
    program.move(Register.R0, XdpAction.PASS)
    program.exit()
    return program.assemble()


def _network_half(value: int) -> int:
    """What a native 16-bit load gives for `value` in network byte order."""
    return int.from_bytes(struct.pack("!H", value), sys.byteorder)


def _network_word(address: str) -> int:
    """What a native 32-bit load gives for an IPv4 address in a frame."""
    return int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder)


# Classic BPF (linux/filter.h): loads are from the frame, in network byte order; one beyond its end rejects the frame.
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x15, 0x45, 0x06
_CLASSIC = struct.Struct("=HBBI")
_WHOLE_FRAME = 0xFFFF_FFFF
_VLAN_TAG_PRESENT = 0xFFFF_F000 + 48
"""SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT: a packet socket sees a tagged frame with its tag taken out."""

_Step = tuple[int, int, str, str]
"""Code, operand, label where it holds, label where not ("" is the next instruction)."""


def classic_filter(address: str | None) -> bytes:
    """The same choice as an array of struct sock_filter, for SO_ATTACH_FILTER on a packet socket."""
    target = None if address is None else int(ipaddress.IPv4Address(address))
    steps: list[tuple[str, _Step]] = [
        ("", (_LOAD_WORD, _VLAN_TAG_PRESENT, "", "")),
        ("", (_JUMP_EQUAL, 0, "", "leave")),
        ("", (_LOAD_BYTE, _NEEDED_BYTES - 1, "", "")),
        ("", (_LOAD_HALF, _ETHERTYPE, "", "")),
        ("", (_JUMP_EQUAL, ETHERTYPE_ARP, "arp", "")),
        ("", (_JUMP_EQUAL, ETHERTYPE_IPV4, "", "leave")),
        ("", (_LOAD_BYTE, _IPV4_VERSION, "", "")),
        ("", (_JUMP_EQUAL, _IPV4_WITHOUT_OPTIONS, "", "leave")),
        ("", (_LOAD_HALF, _IPV4_FRAGMENT, "", "")),
        ("", (_JUMP_ANY_BIT, _FRAGMENT_BITS, "leave", "")),
        ("", (_LOAD_BYTE, _IPV4_PROTOCOL, "", "")),
        ("", (_JUMP_EQUAL, _PROTOCOL_UDP, "", "leave")),
        ("", (_LOAD_HALF, _UDP_TARGET_PORT, "", "")),
        ("", (_JUMP_EQUAL, ROCE_UDP_PORT, "", "leave")),
        ("", (_LOAD_WORD, _IPV4_TARGET, "", "")),
        ("", (_JUMP_EQUAL, target or 0, "take", "take" if target is None else "leave")),
        ("arp", (_LOAD_WORD, _ARP_TARGET, "", "")),
        ("", (_JUMP_EQUAL, target or 0, "take", "take" if target is None else "leave")),
        ("take", (_RETURN, _WHOLE_FRAME, "", "")),
        ("leave", (_RETURN, 0, "", "")),
    ]
    places = {label: place for place, (label, _) in enumerate(steps) if label}
    return b"".join(_encode_classic(place, step, places) for place, (_, step) in enumerate(steps))


def _encode_classic(place: int, step: _Step, places: dict[str, int]) -> bytes:
    code, operand, holds, fails = step
    offsets = (0 if not label else places[label] - place - 1 for label in (holds, fails))
    return _CLASSIC.pack(code, *offsets, operand)
