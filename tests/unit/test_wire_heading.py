"""A port looks once at what all packets of a kind begin with; afterwards one CRC-32 must say what their ICRC says."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from emul.wire.address import address_bytes
from emul.wire.frame import Accepted, Envelopes, Flow, icrc_matches, make_flow
from emul.wire.headers import BTH, P_KEY_FULL, Opcode
from emul.wire.heading import HEADING_BYTES, HEADINGS_MAX, Heading, Headings, parse_heading

A, B = "10.77.0.1", "10.77.0.2"
A6, B6 = "fd77::1", "fd77::2"
KIND = Opcode.SEND_ONLY << 8


def flow(source: str = A, target: str = B, qpn: int = 0x123) -> Flow:
    return make_flow(
        source_mac=bytes(6), target_mac=b"\2" * 6, source=address_bytes(source), target=address_bytes(target),
        source_port=0xC000, destination_qpn=qpn,
    )  # fmt: skip


def packet(psn: int, payload: bytes, *, kind: int = KIND, qpn: int = 0x123) -> bytes:
    return flow(qpn=qpn).packet(kind, psn.to_bytes(4, "big"), payload)


def heading_of(frame: bytes, target: str = B) -> Heading | str:
    accepted = Envelopes(address_bytes(target)).accept(frame)
    assert isinstance(accepted, Accepted)
    return parse_heading(frame, accepted)


def remembered(frame: bytes) -> Headings:
    headings, heading = Headings(), heading_of(frame)
    assert isinstance(heading, Heading)
    headings.remember(frame, heading)
    return headings


def test_a_packet_of_a_flow_is_what_its_parts_make() -> None:
    bth = BTH.pack(Opcode.SEND_ONLY, 0x20, P_KEY_FULL, 0x123, 0x8000_0007)
    for source, target in ((A, B), (A6, B6)):
        whole = flow(source, target).frame(bth, b"head" + b"payload!")
        assert flow(source, target).packet(KIND | 0x20, bth[8:] + b"head", memoryview(b"payload!")) == whole


def test_what_begins_alike_is_known() -> None:
    headings = remembered(packet(1, b"some"))
    for psn in (0, 2, 0x80FF_FFFF):
        found = headings.find(packet(psn, b"more"))
        assert found is not None
        assert (found.opcode, found.qpn, found.solicited) == (Opcode.SEND_ONLY, 0x123, False)
    assert headings.find(packet(2, b"longer..")) is None
    assert headings.find(packet(2, b"else", kind=Opcode.RDMA_READ_RESPONSE_MIDDLE << 8)) is None
    assert headings.find(packet(2, b"else", qpn=0x124)) is None
    assert headings.find(b"") is None


@given(
    st.binary(min_size=64, max_size=64), st.binary(min_size=64, max_size=64), st.binary(min_size=4, max_size=4),
    st.booleans(),
)  # fmt: skip
def test_the_frames_crc_says_what_the_icrc_says(first: bytes, second: bytes, trailer: bytes, honest: bool) -> None:
    frame = packet(5, first)
    headings, accepted = remembered(frame), Envelopes(address_bytes(B)).accept(frame)
    assert isinstance(accepted, Accepted)
    other = packet(6, second)
    if not honest:
        other = other[:-4] + trailer
    assert (headings.find(other) is not None) is icrc_matches(other, accepted)


def test_no_single_changed_bit_gets_through() -> None:
    frame = packet(5, bytes(range(64)))
    headings = remembered(frame)
    for bit in range(8 * HEADING_BYTES, 8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        assert headings.find(bytes(damaged)) is None, f"bit {bit}"
    assert headings.find(frame) is not None


def test_changes_of_many_bits_do_not_either() -> None:
    rng = random.Random(7)
    frame = packet(5, bytes(200))
    headings = remembered(frame)
    for _ in range(2000):
        damaged = bytearray(frame)
        for _ in range(rng.randrange(1, 9)):
            damaged[rng.randrange(HEADING_BYTES, len(frame))] = rng.randrange(256)
        assert (headings.find(bytes(damaged)) is None) is (bytes(damaged) != frame)


def test_what_a_udp_checksum_covers_and_what_is_padded_is_looked_at_each_time() -> None:
    frame = packet(5, bytes(8))
    heading = heading_of(frame)
    assert isinstance(heading, Heading)
    headings = Headings()
    headings.remember(frame + bytes(2), heading)
    summed = frame[:40] + b"\1\1" + frame[42:]
    headings.remember(summed, heading)
    six = flow(A6, B6).packet(KIND, bytes(4), b"data")
    over_ipv6 = heading_of(six, B6)
    assert isinstance(over_ipv6, Heading)
    headings.remember(six, over_ipv6)
    for each in (frame, frame + bytes(2), summed, six):
        assert headings.find(each) is None


def test_headings_that_are_remembered_are_bounded() -> None:
    headings = Headings()
    first = packet(1, b"some", qpn=0)
    for qpn in range(HEADINGS_MAX + 1):
        frame = first[:47] + qpn.to_bytes(3, "big") + first[50:]
        heading = heading_of(frame)
        assert isinstance(heading, Heading)
        assert headings.find(first) is not None or qpn == 0
        headings.remember(frame, heading)
    assert headings.find(first) is None


def test_a_heading_that_no_packet_has_is_named_by_its_counter() -> None:
    frame = packet(1, b"")
    assert heading_of(frame[:43] + b"\x01" + frame[44:]) == "rx_bad_header", "transport version 1"
    assert heading_of(frame[:44] + b"\0\0" + frame[46:]) == "rx_bad_header", "P_Key"
    assert heading_of(frame[:43] + b"\x30" + frame[44:]) == "rx_truncated", "more padding than body"
