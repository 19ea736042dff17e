"""Neighbours: asked for, answered, believed or not, over ARP and over neighbour discovery."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emul import neighbours as module
from emul.clock import MILLISECOND, SECOND, Instant
from emul.neighbours import ASK_INTERVAL_MAX_NS, Neighbours
from emul.wire.address import address_bytes
from emul.wire.discovery import (
    ALL_NODES,
    UNSPECIFIED,
    Advertisement,
    Solicitation,
    group_mac,
    parse_discovery,
    solicited_node,
)
from emul.wire.frame import ARP_REPLY, ARP_REQUEST, Arp, internet_checksum

A, B, C = (address_bytes(f"fd77::{number}") for number in (1, 2, 3))
A4, B4 = address_bytes("10.77.0.1"), address_bytes("10.77.0.2")
LOCAL_A, LOCAL_B = address_bytes("fe80::a"), address_bytes("fe80::b")
MAC_A, MAC_B, MAC_C = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
START = Instant(SECOND)
ASKED = Solicitation(A, solicited_node(B), B, MAC_A)
TOLD = Advertisement(B, A, B, MAC_B, solicited=True, override=True)

macs = st.binary(min_size=6, max_size=6).map(lambda mac: bytes([mac[0] & 0xFE]) + mac[1:])
addresses = st.binary(min_size=16, max_size=16).filter(lambda address: address[0] != 0xFF and any(address))


def neighbours(*own: bytes, mac: bytes = MAC_A) -> Neighbours:
    return Neighbours(mac=mac, addresses=own)


def said(party: Neighbours) -> list[Solicitation | Advertisement | Arp | None]:
    """What a party put on the cable, read; nothing is left."""
    frames, party.out[:] = list(party.out), []
    return [Arp.parse(each) if each[12:14] == b"\x08\x06" else parse_discovery(each) for each in frames]


def summed(frame: bytes) -> bytes:
    """The same message with its checksum made right."""
    body = frame[54:56] + bytes(2) + frame[58:]
    checksum = internet_checksum(frame[22:54] + len(body).to_bytes(4, "big") + b"\0\0\0\x3a" + body)
    return frame[:54] + body[:2] + checksum.to_bytes(2, "big") + body[4:]


# -- the messages -----------------------------------------------------------------------------------------------------


@given(addresses, addresses, macs, st.booleans(), st.booleans(), st.integers(0, 20))
def test_messages_are_read_as_they_were_written(
    source: bytes, target: bytes, mac: bytes, solicited: bool, override: bool, padding: int
) -> None:
    asked = Solicitation(source, solicited_node(target), target, mac)
    assert parse_discovery(asked.emit() + bytes(padding)) == asked
    assert asked.emit()[:6] == group_mac(solicited_node(target)) == b"\x33\x33\xff" + target[-3:]
    alone = Solicitation(UNSPECIFIED, solicited_node(target), target, mac)
    seen = parse_discovery(alone.emit())
    assert isinstance(seen, Solicitation)
    assert seen.mac is None, "an asker without an address does not say where he is"
    told = Advertisement(target, source if solicited else ALL_NODES, target, mac, solicited, override)
    assert parse_discovery(told.emit(MAC_B) + bytes(padding)) == told
    for length in range(len(told.emit())):
        assert parse_discovery(told.emit()[:length]) is None


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    assert parse_discovery(MAC_B + MAC_A + b"\x86\xdd" + noise) is None


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("a router passed it on", summed(ASKED.emit()[:21] + b"\xfe" + ASKED.emit()[22:])),
        ("checksum", ASKED.emit()[:-1] + b"\xff"),
        ("code", summed(ASKED.emit()[:55] + b"\x01" + ASKED.emit()[56:])),
        ("asks for a group", Solicitation(A, solicited_node(B), ALL_NODES, MAC_A).emit()),
        ("sent by a group", Solicitation(ALL_NODES, solicited_node(B), B, MAC_A).emit()),
        ("an option of no length", summed(ASKED.emit()[:79] + b"\x00" + ASKED.emit()[80:])),
        ("an option beyond the end", summed(ASKED.emit()[:79] + b"\x02" + ASKED.emit()[80:])),
        ("half an option", summed(ASKED.emit()[:18] + b"\x00\x19" + ASKED.emit()[20:79])),
        ("unnamed asker at one node", Solicitation(UNSPECIFIED, B, B, MAC_A).emit(MAC_B)),
        ("an answer to all", Advertisement(B, ALL_NODES, B, MAC_B, solicited=True, override=True).emit()),
        ("an answer from nobody", Advertisement(UNSPECIFIED, A, B, MAC_B, solicited=True, override=True).emit()),
        ("another message", summed(ASKED.emit()[:54] + b"\x80" + ASKED.emit()[55:])),
        ("IP version", b"".join((ASKED.emit()[:14], b"\x50", ASKED.emit()[15:]))),
        ("length beyond the frame", ASKED.emit()[:18] + b"\x01\x00" + ASKED.emit()[20:]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_that_breaks_a_rule_is_none(what: str, frame: bytes) -> None:
    assert parse_discovery(frame) is None, what


def test_options_that_are_not_known_are_passed_over() -> None:
    nonce = b"\x0e\x01" + bytes(6)
    frame = ASKED.emit()
    longer = summed(frame[:18] + b"\x00\x28" + frame[20:78] + nonce + frame[78:])
    assert parse_discovery(longer) == ASKED
    endless = summed(frame[:18] + (24 + 8 * 40).to_bytes(2, "big") + frame[20:78] + nonce * 40)
    assert parse_discovery(endless) is None


# -- asking -----------------------------------------------------------------------------------------------------------


def test_whoever_is_wanted_is_asked_for_at_his_group_until_he_answers() -> None:
    a = neighbours(A)
    route = a.route(B, now=START)
    assert said(a) == [ASKED]
    a.on_time(now=Instant(START + 19 * MILLISECOND))
    assert said(a) == []
    gaps, now = [], START
    for _ in range(12):
        at = a.deadline()
        assert at is not None
        gaps.append(at - now)
        now = at
        a.on_time(now=now)
        assert said(a) == [ASKED]
    assert gaps[:4] == [20 * MILLISECOND, 40 * MILLISECOND, 80 * MILLISECOND, 160 * MILLISECOND]
    assert gaps[-1] == ASK_INTERVAL_MAX_NS
    assert a.on_discovery(TOLD, MAC_B) is route
    assert (route.mac, a.deadline()) == (MAC_B, None)
    assert a.route(B, now=now) is route
    assert said(a) == []


def test_two_parties_find_each_other_over_either_family() -> None:
    for one, other in ((A, B), (A4, B4)):
        a, b = neighbours(one), neighbours(other, mac=MAC_B)
        route_a, route_b = a.route(other, now=START), b.route(one, now=START)
        for sender, receiver in ((a, b), (b, a), (a, b)):
            frames, sender.out[:] = list(sender.out), []
            for frame in frames:
                message = parse_discovery(frame) if len(one) == 16 else Arp.parse(frame)
                assert message is not None
                if isinstance(message, Arp):
                    receiver.on_arp(message)
                else:
                    receiver.on_discovery(message, frame[6:12])
        assert (route_a.mac, route_b.mac) == (MAC_B, MAC_A)
        assert (route_a.path, route_b.path) == (other + one, one + other)


def test_the_own_address_that_is_most_like_the_peers_is_used() -> None:
    a = neighbours(A4, LOCAL_A, A)
    assert [a.source_for(each) for each in (B4, LOCAL_B, B)] == [A4, LOCAL_A, A]
    assert neighbours(A).source_for(B4) is None
    with pytest.raises(ValueError, match=r"10\.77\.0\.2 is of another family than this adapter's fd77::1"):
        neighbours(A).route(B4, now=START)


def test_the_table_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTES_MAX", 2)
    a = neighbours(A)
    a.route(B, now=START)
    a.route(C, now=START)
    with pytest.raises(ValueError, match="2 neighbours at the most"):
        a.route(LOCAL_B, now=START)
    assert a.route(B, now=START)


# -- hearing ----------------------------------------------------------------------------------------------------------


def test_who_was_heard_asking_is_not_asked_for() -> None:
    c4 = address_bytes("10.77.0.9")
    b = neighbours(B4, B, mac=MAC_B)
    assert b.on_arp(Arp(ARP_REQUEST, MAC_A, A4, bytes(6), c4)) is None, "nobody waits for it yet"
    b.on_discovery(Solicitation(C, solicited_node(A), A, MAC_C), MAC_C)
    assert said(b) == []
    assert (b.route(A4, now=START).mac, b.route(C, now=START).mac) == (MAC_A, MAC_C)
    assert (said(b), b.asking) == ([], False)
    b.on_arp(Arp(ARP_REQUEST, MAC_C, A4, bytes(6), B4))
    assert b.route(A4, now=START).mac == MAC_C, "its card was replaced"


@pytest.mark.parametrize("mac", [MAC_B, group_mac(ALL_NODES)])
def test_what_can_be_nobodys_address_is_not_heard(mac: bytes) -> None:
    b = neighbours(B4, mac=MAC_B)
    b.on_arp(Arp(ARP_REQUEST, mac, A4, bytes(6), B4))
    b.on_arp(Arp(ARP_REQUEST, MAC_A, bytes(4), bytes(6), B4))
    assert (b.route(A4, now=START).mac, b.route(bytes(4), now=START).mac) == (None, None)


def test_more_than_can_be_kept_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARD_MAX", 1)
    b = neighbours(B4, mac=MAC_B)
    for last, mac in ((1, MAC_A), (9, MAC_C)):
        b.on_arp(Arp(ARP_REQUEST, mac, address_bytes(f"10.77.0.{last}"), bytes(6), address_bytes("10.77.0.77")))
    assert b.route(address_bytes("10.77.0.9"), now=START).mac is None
    assert b.route(address_bytes("10.77.0.1"), now=START).mac == MAC_A


# -- answering --------------------------------------------------------------------------------------------------------


def test_a_question_is_answered_to_the_asker_alone() -> None:
    b = neighbours(B, mac=MAC_B)
    assert b.on_discovery(ASKED, MAC_A) is None
    frame = b.out[0]
    assert frame[:6] == MAC_A
    assert said(b) == [Advertisement(B, A, B, MAC_B, solicited=True, override=True)]


def test_a_probe_without_an_ethernet_address_is_answered_to_its_sender() -> None:
    b = neighbours(B, mac=MAC_B)
    b.on_discovery(Solicitation(A, B, B, None), MAC_C)
    assert b.out[0][:6] == MAC_C
    assert said(b) == [Advertisement(B, A, B, MAC_B, solicited=True, override=True)]


def test_who_wants_our_address_is_told_before_all_that_it_is_taken() -> None:
    b = neighbours(B, mac=MAC_B)
    b.on_discovery(Solicitation(UNSPECIFIED, solicited_node(B), B, None), MAC_C)
    assert b.out[0][:6] == group_mac(ALL_NODES) == b"\x33\x33\x00\x00\x00\x01"
    assert said(b) == [Advertisement(B, ALL_NODES, B, MAC_B, solicited=False, override=True)]


def test_questions_for_others_are_not_answered() -> None:
    b = neighbours(B, B4, mac=MAC_B)
    b.on_discovery(Solicitation(A, solicited_node(C), C, MAC_A), MAC_A)
    b.on_arp(Arp(ARP_REQUEST, MAC_A, A4, bytes(6), address_bytes("10.77.0.9")))
    assert said(b) == []
    b.on_arp(Arp(ARP_REQUEST, MAC_A, A4, bytes(6), B4))
    assert said(b) == [Arp(ARP_REPLY, MAC_B, B4, MAC_A, A4)]


# -- believing --------------------------------------------------------------------------------------------------------


def test_news_of_a_known_neighbour_change_its_route_and_confirmations_do_not() -> None:
    a = neighbours(A)
    route = a.route(B, now=START)
    a.on_discovery(TOLD, MAC_B)
    news = Advertisement(B, ALL_NODES, B, MAC_C, solicited=False, override=True)
    assert a.on_discovery(news, MAC_C) is route
    assert route.mac == MAC_C
    weak = Advertisement(B, A, B, MAC_B, solicited=True, override=False)
    assert a.on_discovery(weak, MAC_B) is None
    assert route.mac == MAC_C
    question = Solicitation(B, solicited_node(A), A, MAC_B)
    assert a.on_discovery(question, MAC_B) is route, "who asks us says where he is now"
    assert route.mac == MAC_B


def test_an_answer_without_override_is_believed_by_who_knows_nothing() -> None:
    a = neighbours(A)
    route = a.route(B, now=START)
    assert a.on_discovery(Advertisement(B, A, B, MAC_B, solicited=True, override=False), MAC_B) is route


def test_strangers_groups_and_echoes_teach_nothing() -> None:
    a = neighbours(A)
    route = a.route(B, now=START)
    for mac in (None, b"\x33\x33\0\0\0\x01", MAC_A):
        assert a.on_discovery(Advertisement(B, A, B, mac, solicited=True, override=True), MAC_B) is None
    assert a.on_discovery(Advertisement(C, A, C, MAC_C, solicited=True, override=True), MAC_C) is None
    assert a.on_discovery(Solicitation(C, solicited_node(A), A, MAC_C), MAC_C) is None
    assert route.mac is None


def test_an_adapter_announces_its_ipv6_addresses() -> None:
    a = neighbours(A4, A, LOCAL_A)
    a.announce()
    assert said(a) == [
        Advertisement(each, ALL_NODES, each, MAC_A, solicited=False, override=True) for each in (A, LOCAL_A)
    ]
