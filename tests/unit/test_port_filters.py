"""Which frames a port takes: the classic filter, run by an interpreter of the few instructions that it uses."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emul.port.bpf import INSTRUCTION_BYTES, Assembler, Register
from emul.port.filters import ADDRESSES_MAX, classic_filter, xdp_program
from emul.port.groups import groups_of
from emul.wire.address import address_bytes
from emul.wire.discovery import ALL_NODES, Advertisement, Solicitation, solicited_node
from emul.wire.frame import ARP_REQUEST, Arp, Flow, ipv4_bytes, make_flow

OWN, OTHER = "10.77.0.2", "10.77.0.3"
OWN6, OTHER6, PEER6 = "fd77::2", "fd77::3", "fd77::1"
VLAN_TAG_PRESENT = 0xFFFFF030


def accepts(program: bytes, frame: bytes, *, tagged: bool = False) -> bool:
    """Runs a classic BPF program as the kernel does: a load beyond the frame's end rejects it."""
    steps = list(struct.iter_unpack("=HBBI", program))
    place = value = 0
    while True:
        code, holds, fails, operand = steps[place]
        place += 1
        if code == 0x06:
            return bool(operand)
        if code in (0x15, 0x45):
            place += holds if (value == operand if code == 0x15 else value & operand) else fails
            continue
        if code == 0x54:
            value &= operand
            continue
        if operand == VLAN_TAG_PRESENT:
            value = int(tagged)
            continue
        size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
        if operand + size > len(frame):
            return False
        value = int.from_bytes(frame[operand : operand + size], "big")


def roce(target: str = OWN) -> bytes:
    flow = Flow(
        source_mac=b"\x02" * 6, target_mac=b"\x04" * 6, source=ipv4_bytes("10.77.0.1"), target=ipv4_bytes(target),
        source_port=0xC000,
    )  # fmt: skip
    return flow.frame(bytes(12), b"")


def arp(target: str = OWN) -> bytes:
    return Arp(ARP_REQUEST, b"\x02" * 6, ipv4_bytes("10.77.0.1"), bytes(6), ipv4_bytes(target)).emit()


def roce6(target: str = OWN6) -> bytes:
    flow = make_flow(
        source_mac=b"\x02" * 6, target_mac=b"\x04" * 6, source=address_bytes(PEER6), target=address_bytes(target),
        source_port=0xC000, traffic_class=3, flow_label=0x54321,
    )  # fmt: skip
    return flow.frame(bytes(12), b"")


def asks(target: str = OWN6) -> bytes:
    wanted = address_bytes(target)
    return Solicitation(address_bytes(PEER6), solicited_node(wanted), wanted, b"\x02" * 6).emit()


def tells(destination: bytes) -> bytes:
    peer = address_bytes(PEER6)
    return Advertisement(peer, destination, peer, b"\x02" * 6, solicited=False, override=True).emit(b"\x04" * 6)


def changed(frame: bytes, place: int, value: int) -> bytes:
    return frame[:place] + bytes([value]) + frame[place + 1 :]


def test_own_frames_are_taken_those_of_others_left() -> None:
    program = classic_filter(OWN)
    assert accepts(program, roce())
    assert accepts(program, arp())
    assert not accepts(program, roce(OTHER))
    assert not accepts(program, arp(OTHER))
    assert not accepts(program, roce(), tagged=True)


def test_over_ipv6_too() -> None:
    program = classic_filter(OWN6)
    own = [roce6(), asks(), tells(address_bytes(OWN6)), tells(ALL_NODES)]
    others = [roce6(OTHER6), asks(OTHER6), tells(address_bytes(OTHER6)), roce(), arp()]
    assert [accepts(program, frame) for frame in own] == [True] * 4
    assert [accepts(program, frame) for frame in others] == [False] * 5
    assert not accepts(program, roce6(), tagged=True)
    ipv4_alone = classic_filter(OWN)
    assert not any(accepts(ipv4_alone, frame) for frame in own)
    every = classic_filter(None)
    assert all(accepts(every, frame) for frame in own + others)


@pytest.mark.parametrize(
    ("place", "value"),
    [(14, 0x50), (20, 0), (20, 6), (20, 43), (20, 44), (20, 58), (56, 0), (57, 0)],
    ids=["version", "hop-by-hop", "TCP", "routing", "fragment", "ICMPv6", "port", "port"],
)
def test_each_field_of_ipv6_is_looked_at(place: int, value: int) -> None:
    assert not accepts(classic_filter(OWN6), changed(roce6() + bytes(20), place, value))


@pytest.mark.parametrize("place", [20, 54, *range(62, 78)])
def test_each_byte_of_a_question_is_looked_at(place: int) -> None:
    frame = asks()
    assert not accepts(classic_filter(OWN6), changed(frame, place, frame[place] ^ 0x40))


@given(st.integers(0, 85))
def test_a_cut_frame_of_ipv6_is_taken_from_its_last_header_byte_on(length: int) -> None:
    assert accepts(classic_filter(OWN6), roce6()[:length]) == (length >= 62)
    assert accepts(classic_filter(OWN6), asks()[:length]) == (length >= 78)


def test_a_port_may_have_several_addresses_of_both_families() -> None:
    own = [f"10.77.1.{number}" for number in range(4)] + [f"fd77::1:{number}" for number in range(4)]
    program = classic_filter(own)
    for address in own:
        ipv6 = ":" in address
        assert accepts(program, roce6(address) if ipv6 else roce(address))
        assert accepts(program, asks(address) if ipv6 else arp(address))
    assert not accepts(program, roce6(OTHER6))
    assert not accepts(program, roce())
    largest = [f"fd77::2:{number}" for number in range(ADDRESSES_MAX)]
    assert accepts(classic_filter(largest), asks(largest[-1]))
    assert xdp_program(3, largest)
    with pytest.raises(ValueError, match="1 to 8 addresses, got 9"):
        classic_filter([*largest, OWN6])
    with pytest.raises(ValueError, match="1 to 8 addresses, got 0"):
        xdp_program(3, [])


def test_the_groups_of_a_port_are_those_of_its_ipv6_addresses() -> None:
    assert groups_of(OWN) == groups_of(None) == []
    assert groups_of([OWN, "fd77::1:2:3", "fe80::1:2:3"]) == [
        bytes.fromhex("333300000001"), bytes.fromhex("3333ff020003")
    ]  # fmt: skip


def test_without_an_address_the_kind_decides() -> None:
    program = classic_filter(None)
    assert accepts(program, roce(OTHER))
    assert accepts(program, arp(OTHER))
    assert not accepts(program, changed(roce(), 37, 0))


@pytest.mark.parametrize(
    ("place", "value"),
    [(12, 0x86), (14, 0x46), (20, 0x20), (21, 0x01), (23, 6), (36, 0), (37, 0)],
    ids=["ethertype", "options", "more fragments", "fragment", "TCP", "port", "port"],
)
def test_each_field_is_looked_at(place: int, value: int) -> None:
    assert not accepts(classic_filter(OWN), changed(roce(), place, value))


@given(st.binary(max_size=41))
def test_nothing_shorter_than_its_headers_is_taken(frame: bytes) -> None:
    assert not accepts(classic_filter(None), frame)


@given(st.integers(0, 61))
def test_a_cut_frame_is_taken_from_its_last_header_byte_on(length: int) -> None:
    assert accepts(classic_filter(OWN), roce()[:length]) == (length >= 42)


def test_a_bad_address_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"10\.77"):
        classic_filter("10.77.0")
    with pytest.raises(ValueError, match=r"10\.77"):
        xdp_program(3, "10.77.0")


def test_jumps_are_counted_from_the_next_instruction() -> None:
    program = Assembler()
    program.jump_if_equal(Register.R1, 0xFFFF_FFFF, "end")
    program.load_map(Register.R1, 5)
    program.label("end")
    program.exit()
    code = program.assemble()
    assert len(code) == 4 * INSTRUCTION_BYTES
    assert struct.unpack_from("=BBhi", code) == (0x16, Register.R1, 2, -1)


def test_labels_are_checked() -> None:
    program = Assembler()
    program.label("here")
    with pytest.raises(ValueError, match="'here' is defined twice"):
        program.label("here")
    program.jump("there")
    with pytest.raises(ValueError, match="unknown label 'there'"):
        program.assemble()
