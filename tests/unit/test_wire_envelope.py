"""The envelope of RoCEv2: what others built and captured, what is refused and under which name, parse and emit."""

from __future__ import annotations

import random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emul.wire import frame as frames
from emul.wire.address import address_bytes, address_of_gid, address_text, gid_bytes, ipv4_bytes
from emul.wire.frame import (
    ENVELOPE6_BYTES,
    ENVELOPE_BYTES,
    ENVELOPES_MAX,
    FLOW_LENGTHS_MAX,
    Accepted,
    Arp,
    Envelopes,
    icrc_matches,
    internet_checksum,
    make_flow,
)
from emul.wire.icrc import icrc

MAC_A, MAC_B = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
FAMILIES = {4: ("10.77.0.1", "10.77.0.2"), 6: ("fd77::1", "fd77::2")}
BTH = b"\x04\x40\xff\xff\0\0\0\x11\x80\0\0\x07"
each_family = pytest.mark.parametrize("family", [4, 6])

# Captured from a ConnectX-4 Lx: a congestion notification between routed networks (TOS 0xc2). Published in scapy's
# tests, test/contrib/roce.uts.
CONNECTX_CNP = bytes.fromhex(
    "e41d2dab2bc27cfe90643b320800 45c2003c718c400040119161 0a001101 0a001201 000012b700280000"
    "8100ffff 40000118 00000000 00000000000000000000000000000000 82fd002a"
)
# An unreliable-connection SEND with two bytes of padding, TOS 1, from one address to itself: the other example in the
# same file, with the ICRC that it names.
UC_SEND = bytes.fromhex(
    "248a07a8fa22248a07a8fa220800 4501004004784000 4011b4d5 c0a80007 c0a80007 c00012b7002c0000"
    "2460ffff 000000d3 00cf1710 4630818be28935d90e9a95505401be885e500000 78f353f3"
)
# What an IPv6 packet's ICRC is taken over, written out by hand from annex A17.3.3: the header with its variant fields
# as ones, and nothing computed by the code under test but the CRC (zlib's).
IPV6_SEND = (
    "60000000 0024 11 40 fd770000000000000000000000000001 fd770000000000000000000000000002 c00112b70024cafe"
    "0440ffff 00000011 80000007 0102030405060708090a0b0c"
)
IPV6_SEND_MASKED = (
    "ffffffffffffffff 6fffffff 0024 11 ff fd770000000000000000000000000001 fd770000000000000000000000000002"
    "c00112b70024ffff 0440ffff ff000011 80000007 0102030405060708090a0b0c"
)


def built(family: int, payload: bytes = bytes(range(64)), *, traffic_class: int = 0) -> bytes:
    source, target = (address_bytes(text) for text in FAMILIES[family])
    flow = make_flow(
        source_mac=MAC_A, target_mac=MAC_B, source=source, target=target, source_port=0xC001,
        traffic_class=traffic_class, flow_label=0x12345,
    )  # fmt: skip
    return flow.frame(BTH, payload)


def receiver(family: int) -> Envelopes:
    return Envelopes(address_bytes(FAMILIES[family][1]))


def changed(frame: bytes, place: int, *values: int) -> bytes:
    return frame[:place] + bytes(values) + frame[place + len(values) :]


# -- ICRC -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [CONNECTX_CNP, UC_SEND], ids=["ConnectX-4 CNP", "UC SEND"])
def test_the_icrc_of_packets_that_others_published(frame: bytes) -> None:
    assert icrc(frame[14:-4]) == frame[-4:]
    envelope = Envelopes(frame[30:34]).accept(frame)
    assert isinstance(envelope, Accepted)
    assert icrc_matches(frame, envelope)
    assert not icrc_matches(changed(frame, 60, frame[60] ^ 1), envelope)


def test_the_icrc_over_ipv6_is_that_of_the_annexes_masks() -> None:
    from zlib import crc32

    expected = crc32(bytes.fromhex(IPV6_SEND_MASKED)).to_bytes(4, "little")
    assert icrc(bytes.fromhex(IPV6_SEND)) == expected


@each_family
def test_what_a_router_may_change_leaves_the_icrc_alone_and_all_else_counts(family: int) -> None:
    frame = built(family)
    variant = {14, 15, 16, 17, 21, 60, 61, 66} if family == 6 else {15, 22, 24, 25, 40, 41, 46}
    for place in range(14, len(frame) - 4):
        same = icrc(changed(frame, place, frame[place] ^ 0x0F)[14:-4]) == frame[-4:]
        assert same == (place in variant), place


# -- good frames ------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([4, 6]), st.binary(max_size=1200), st.binary(min_size=12, max_size=12), st.integers(0, 255),
    st.integers(0, 46),
)  # fmt: skip
def test_what_is_sent_is_accepted_to_the_byte(
    family: int, payload: bytes, bth: bytes, traffic_class: int, padding: int
) -> None:
    source, target = (address_bytes(text) for text in FAMILIES[family])
    rest = payload + bytes(-len(payload) % 4)
    flow = make_flow(
        source_mac=MAC_A, target_mac=MAC_B, source=source, target=target, source_port=0xC001,
        traffic_class=traffic_class, flow_label=7,
    )  # fmt: skip
    frame = flow.frame(bth, rest)
    envelopes = Envelopes(target)
    for seen in (frame, frame + bytes(padding), frame):  # the second time it is looked up
        envelope = envelopes.accept(seen)
        assert isinstance(envelope, Accepted)
        start = ENVELOPE6_BYTES if family == 6 else ENVELOPE_BYTES
        assert (envelope.length, envelope.transport) == (len(frame), start)
        assert (envelope.source, envelope.path) == (source, source + target)
        assert envelope.congested == (traffic_class & 3 == 3)
        assert icrc_matches(seen, envelope)
        assert seen[start : start + 12] == bth
        assert seen[start + 12 : envelope.length - 4] == rest


def test_the_checksum_over_ipv6_is_there_and_never_zero() -> None:
    """Among 65,536 PSNs some sum to all ones, which is written so and not as "no checksum"."""
    source, target = (address_bytes(text) for text in FAMILIES[6])
    flow = make_flow(source_mac=MAC_A, target_mac=MAC_B, source=source, target=target, source_port=0xC001)
    envelopes, seen = Envelopes(target), set()
    for psn in range(0, 1 << 17, 7):
        frame = flow.frame(BTH[:8] + psn.to_bytes(4, "big"), b"abcd")
        checksum = int.from_bytes(frame[60:62], "big")
        assert checksum
        seen.add(checksum)
        pseudo = frame[22:54] + (len(frame) - 54).to_bytes(4, "big") + bytes(3) + b"\x11"
        assert internet_checksum(pseudo + frame[54:]) == 0
        assert isinstance(envelopes.accept(frame), Accepted)
    assert len(seen) > 10_000


@each_family
def test_no_checksum_is_accepted_and_a_wrong_one_is_not(family: int) -> None:
    """Soft-RoCE sends none over IPv6 either; a checksum that is there must hold, each time."""
    place = 60 if family == 6 else 40
    frame, envelopes = built(family), receiver(family)
    for _ in range(2):
        assert isinstance(envelopes.accept(changed(frame, place, 0, 0)), Accepted)
        assert envelopes.accept(changed(frame, place, 0x12, 0x34)) == "rx_udp_checksum"


def test_a_right_checksum_over_ipv4_is_accepted_too() -> None:
    frame, envelopes = built(4), receiver(4)
    pseudo = frame[26:34] + b"\0\x11" + (len(frame) - 34).to_bytes(2, "big")
    checksum = internet_checksum(pseudo + frame[34:])
    summed = changed(frame, 40, *checksum.to_bytes(2, "big"))
    assert isinstance(envelopes.accept(summed), Accepted)
    assert envelopes.accept(changed(summed, 60, summed[60] ^ 1)) == "rx_udp_checksum"


def test_many_flows_and_lengths_are_forgotten_and_learnt_again() -> None:
    envelopes = receiver(6)
    first = built(6)
    for port in range(ENVELOPES_MAX + 2):
        frame = changed(first, 54, port >> 8, port & 0xFF)
        assert isinstance(envelopes.accept(changed(frame, 60, 0, 0)), Accepted)
    envelopes4, first4 = receiver(4), built(4)
    for port in range(ENVELOPES_MAX + 2):
        assert isinstance(envelopes4.accept(changed(first4, 34, port >> 8, port & 0xFF)), Accepted)
    for family in FAMILIES:
        source, target = (address_bytes(text) for text in FAMILIES[family])
        flow = make_flow(source_mac=MAC_A, target_mac=MAC_B, source=source, target=target, source_port=0xC001)
        before = flow.frame(BTH, bytes(4))
        for words in range(FLOW_LENGTHS_MAX + 2):
            flow.frame(BTH, bytes(4 * words))
        assert flow.frame(BTH, bytes(4)) == before


# -- bad ones ---------------------------------------------------------------------------------------------------------

BAD4 = [
    ("too short for its headers", lambda f: f[:57], "rx_truncated"),
    ("cut in its payload", lambda f: f[:-1], "rx_truncated"),
    ("IP length beyond the frame", lambda f: changed(f, 16, 0x05, 0xDC), "rx_truncated"),
    ("UDP length is another", lambda f: changed(f, 39, f[39] ^ 4), "rx_truncated"),
    ("not whole words", lambda f: changed(changed(f, 17, f[17] - 1), 39, f[39] - 1), "rx_truncated"),
    ("IP version 5", lambda f: changed(f, 14, 0x55), "rx_not_roce"),
    ("IP options", lambda f: changed(f, 14, 0x46), "rx_not_roce"),
    ("more fragments", lambda f: changed(f, 20, 0x20), "rx_not_roce"),
    ("a later fragment", lambda f: changed(f, 21, 1), "rx_not_roce"),
    ("TCP", lambda f: changed(f, 23, 6), "rx_not_roce"),
    ("another port", lambda f: changed(f, 37, 0xB8), "rx_not_roce"),
    ("another address", lambda f: changed(f, 33, 9), "rx_other_address"),
    ("header checksum", lambda f: changed(f, 24, f[24] ^ 1), "rx_ip_checksum"),
]
BAD6 = [
    ("too short for its headers", lambda f: f[:77], "rx_truncated"),
    ("cut in its payload", lambda f: f[:-1], "rx_truncated"),
    ("payload length beyond the frame", lambda f: changed(changed(f, 18, 0x05), 58, 0x05), "rx_truncated"),
    ("UDP length is another", lambda f: changed(f, 59, f[59] ^ 4), "rx_truncated"),
    ("not whole words", lambda f: changed(changed(f, 19, f[19] - 1), 59, f[59] - 1), "rx_truncated"),
    ("too short for a BTH", lambda f: changed(changed(f, 18, 0, 20), 58, 0, 20), "rx_truncated"),
    ("IP version 4", lambda f: changed(f, 14, 0x40), "rx_not_roce"),
    ("hop-by-hop options", lambda f: changed(f, 20, 0), "rx_not_roce"),
    ("a fragment", lambda f: changed(f, 20, 44), "rx_not_roce"),
    ("another port", lambda f: changed(f, 57, 0xB8), "rx_not_roce"),
    ("another address", lambda f: changed(f, 53, 9), "rx_other_address"),
    ("payload", lambda f: changed(f, 80, f[80] ^ 1), "rx_udp_checksum"),
]


@pytest.mark.parametrize(
    ("family", "what", "damage", "counter"),
    [(4, *each) for each in BAD4] + [(6, *each) for each in BAD6],
    ids=[f"IPv4 {each[0]}" for each in BAD4] + [f"IPv6 {each[0]}" for each in BAD6],
)
def test_a_bad_envelope_has_a_name(family: int, what: str, damage: object, counter: str) -> None:
    assert callable(damage)
    fresh, knowing = receiver(family), receiver(family)
    assert isinstance(knowing.accept(built(family)), Accepted)
    assert fresh.accept(damage(built(family))) == counter, what
    assert knowing.accept(damage(built(family))) == counter, f"{what}, after a good one like it"


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"]))
def test_noise_is_refused_and_never_raises(noise: bytes, ethertype: bytes) -> None:
    frame = MAC_B + MAC_A + ethertype + noise
    for envelopes in (receiver(4), receiver(6), Envelopes(*(address_bytes(text) for text in ("10.77.0.2", "fd77::2")))):
        assert isinstance(envelopes.accept(frame), str)
        assert isinstance(envelopes.accept6(frame), str)
    Arp.parse(frame)


@each_family
def test_mutants_of_good_frames_are_refused_or_whole(family: int) -> None:
    chance = random.Random(family)
    good, envelopes = built(family), receiver(family)
    for _ in range(5_000):
        mutant = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            mutant[chance.randrange(14, len(mutant))] = chance.randrange(256)
        if chance.random() < 0.3:
            del mutant[chance.randrange(len(mutant)) :]
        envelope = envelopes.accept(bytes(mutant))
        if isinstance(envelope, Accepted):
            assert envelope.length <= len(mutant)
            if icrc_matches(bytes(mutant), envelope):
                # nothing that the ICRC covers has changed
                assert mutant[envelope.transport + 12 :] == good[envelope.transport + 12 :]


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.77.0.1", bytes([10, 77, 0, 1])),
        ("::ffff:10.77.0.1", bytes([10, 77, 0, 1])),
        ("fd77::1", bytes.fromhex("fd77" + "00" * 13 + "01")),
        ("fe80::1", bytes.fromhex("fe80" + "00" * 13 + "01")),
    ],
)
def test_an_address_and_its_gid_say_the_same(text: str, expected: bytes) -> None:
    assert address_bytes(text) == expected
    assert len(gid_bytes(expected)) == 16
    assert address_of_gid(gid_bytes(expected)) == expected
    assert address_bytes(address_text(expected)) == expected


@pytest.mark.parametrize("text", ["", "10.77.0", "10.77.0.256", "::", "0.0.0.0", "ff02::1", "224.0.0.1", "fd77::g"])
def test_what_no_port_can_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|no address"):
        address_bytes(text)


def test_an_ipv6_gid_is_no_ipv4_address() -> None:
    assert ipv4_bytes("::ffff:10.77.0.1") == bytes([10, 77, 0, 1])
    with pytest.raises(ValueError, match="no IPv4-mapped GID"):
        ipv4_bytes("fd77::1")


@given(
    st.sampled_from([1, 2]), st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4),
    st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4), st.integers(0, 18),
)  # fmt: skip
def test_arp_is_read_as_it_was_written(
    operation: int, mac: bytes, address: bytes, other_mac: bytes, other: bytes, padding: int
) -> None:
    arp = Arp(operation, mac, address, other_mac, other)
    assert Arp.parse(arp.emit() + bytes(padding)) == arp
    for length in range(len(arp.emit())):
        assert Arp.parse(arp.emit()[:length]) is None


@each_family
@pytest.mark.needs_plain
def test_a_payload_that_changes_while_it_is_sent_goes_out_as_it_was_summed(
    family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host writes its status page while the adapter answers a READ of it."""
    page = bytearray(64)

    def interrupted(data: bytes | memoryview, seed: int) -> int:
        summed = crc32(data, seed)
        page[:8] = (int.from_bytes(page[:8], "little") + 1).to_bytes(8, "little")
        return summed

    monkeypatch.setattr(frames, "crc32", interrupted)
    source, target = (address_bytes(text) for text in FAMILIES[family])
    flow = make_flow(source_mac=MAC_A, target_mac=MAC_B, source=source, target=target, source_port=0xC001)
    frame = flow.packet(0x1000, BTH[8:] + bytes(4), memoryview(page))
    monkeypatch.undo()
    envelope = receiver(family).accept(frame) if family == 4 else receiver(family).accept6(frame)
    assert isinstance(envelope, Accepted)
    assert page[0] > 0
    assert icrc_matches(frame, envelope)
