"""The whole adapter over IPv6: by hand, by connection management, with faults; and several addresses at one port."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emul.adapter import Adapter
from emul.clock import MILLISECOND, SECOND, Instant
from emul.cm import CmEventType, CmId
from emul.errors import RDMAError
from emul.firmware import Identity
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.port_facts import PortFacts, path_mtu_for
from emul.vocabulary import GID, MTU, AHAttr, GlobalRoute, QPAttr, QPState, WCStatus
from emul.wellknown import SERVICE_ID, ConnectReply, ConnectRequest, proof
from emul.wire.address import address_bytes
from emul.wire.discovery import ALL_NODES, UNSPECIFIED, Advertisement, Solicitation, parse_discovery, solicited_node
from emul.wire.frame import ARP_REQUEST, Arp
from emul.wire.headers import Opcode
from emul.wire.mad import CM_Q_KEY, RdmaCmHeader, Req, gid_of, parse_mad
from tests.helpers.adapters import ALL_ACCESS, KEY, AdapterPair, Party, Seen, connect_by_hand

A, B = address_bytes("fd77::1"), address_bytes("fd77::2")
A4, B4 = address_bytes("10.77.0.1"), address_bytes("10.77.0.2")
NOW = Instant(SECOND)


def connected(pair: AdapterPair, **attributes: int) -> tuple[Party, Party]:
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), **attributes)
    return a, b


def written(pair: AdapterPair, a: Party, b: Party, data: bytes) -> list[WCStatus]:
    a.mr.write(data, len(data))
    a.qp.post_write(1, a.mr.buf, len(data), a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.settle(span_ns=SECOND)
    return a.statuses()


@pytest.mark.parametrize("interface_mtu", [340, 600, 1500, 2200, 4200])
def test_messages_cross_in_packets_of_each_path_mtu(interface_mtu: int) -> None:
    pair = AdapterPair(mtu=interface_mtu, ipv6=True)
    size = path_mtu_for(interface_mtu, ipv6=True)
    a, b = connected(pair, path_mtu=size)
    data = random.Random(1).randbytes(20_001)
    assert written(pair, a, b, data) == [WCStatus.SUCCESS]
    assert b.mr.read(len(data), 0) == data
    assert max(len(seen.frame) for seen in pair.seen) <= interface_mtu + 14
    packets = [seen for seen in pair.seen if seen.opcode in range(0x06, 0x0C)]
    assert len(packets) == -(-len(data) // size.size)


def test_no_arp_is_sent_and_the_peer_is_found_by_its_group() -> None:
    pair = AdapterPair(ipv6=True)
    a, b = connected(pair)
    assert written(pair, a, b, b"found") == [WCStatus.SUCCESS]
    kinds = Counter(seen.frame[12:14] for seen in pair.seen)
    assert set(kinds) == {b"\x86\xdd"}
    asked = [parse_discovery(seen.frame) for seen in pair.seen if seen.opcode < 0]
    assert Solicitation(A, solicited_node(B), B, bytes([2, 0, 0, 0, 0, 0])) in asked


def test_a_peer_that_is_silent_at_first_is_asked_again() -> None:
    pair = AdapterPair(ipv6=True)
    asked: list[int] = []

    def deaf(seen: Seen) -> list[bytes]:
        if seen.opcode < 0 and len(asked) < 6:
            asked.append(pair.now)
            return []
        return [seen.frame]

    pair.filter = deaf
    a, b = connected(pair, timeout=14, retry_cnt=7)
    assert written(pair, a, b, b"late") == [WCStatus.SUCCESS]
    assert len(asked) == 6


def test_loss_is_repaired_as_over_ipv4() -> None:
    pair = AdapterPair(ipv6=True)
    a, b = connected(pair, timeout=8, retry_cnt=7)
    chance = random.Random(3)
    pair.filter = lambda seen: [] if chance.random() < 0.1 else [seen.frame]
    for number in range(20):
        data = chance.randbytes(5000)
        assert written(pair, a, b, data) == [WCStatus.SUCCESS], number
        assert b.mr.read(len(data), 0) == data


def test_a_flow_keeps_its_port_and_label_and_another_has_others() -> None:
    pair = AdapterPair(ipv6=True)
    parties = connected(pair)
    others = connected(pair)
    for a, b in (parties, others):
        assert written(pair, a, b, bytes(5000)) == [WCStatus.SUCCESS]
    seen = {(each.sender, each.frame[67:70]): set() for each in pair.seen if each.opcode >= 0}
    for each in pair.seen:
        if each.opcode >= 0:
            seen[each.sender, each.frame[67:70]].add((each.frame[54:56], each.frame[14:18]))
    assert len(seen) == 4
    assert all(len(ways) == 1 for ways in seen.values())
    assert len(set().union(*seen.values())) > 2


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_what_an_application_asks_of_its_packets_stands_in_them(ipv6: bool) -> None:
    pair = AdapterPair(ipv6=ipv6)
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    label = 0xABCDE
    route = {"traffic_class": 0x6A, "hop_limit": 7, "flow_label": label, "sgid_index": 3}
    for index, party in enumerate((a, b)):
        given = GlobalRoute(dgid=GID(pair.address(1 - index)), **route)
        other = (b, a)[index]
        party.qp.to_rts(QPAttr(dest_qp_num=other.qp.qp_num, ah_attr=AHAttr(gr=given), qp_access_flags=ALL_ACCESS))
    assert written(pair, a, b, b"marked") == [WCStatus.SUCCESS]
    frame = next(seen.frame for seen in pair.seen if seen.sender == 0 and seen.opcode == Opcode.RDMA_WRITE_ONLY)
    port = (0xC000 | (label ^ label >> 14) & 0x3FFF).to_bytes(2, "big")
    if ipv6:
        assert (frame[14:18], frame[21], frame[54:56]) == (bytes.fromhex("66aabcde"), 7, port)
    else:
        assert (frame[15], frame[22], frame[34:36]) == (0x6A, 7, port)
    queried = a.qp.query().ah_attr.gr
    assert queried is not None
    assert {name: getattr(queried, name) for name in route} == route


@pytest.mark.parametrize(("field", "value"), [("traffic_class", 256), ("hop_limit", -1), ("flow_label", 1 << 20)])
def test_a_route_with_a_field_that_does_not_fit_is_refused(field: str, value: object) -> None:
    pair = AdapterPair(ipv6=True)
    party = Party(pair.contexts[0])
    party.qp.to_init(QPAttr())
    route = GlobalRoute(dgid=GID(pair.address(1)))
    setattr(route, field, value)
    with pytest.raises(RDMAError, match=field):
        party.qp.to_rtr(QPAttr(dest_qp_num=5, ah_attr=AHAttr(gr=route)))
    assert party.qp.query().qp_state is QPState.INIT


def test_the_firmware_is_called_by_connection_management() -> None:
    pair = AdapterPair(ipv6=True)
    party = Party(pair.contexts[0])
    party.qp.to_init(QPAttr())
    cm = CmId(party.qp)
    request = ConnectRequest(1, 0, 1, b"sixteen bytes it").emit()
    cm.connect(pair.address(1), SERVICE_ID, request, QPAttr(timeout=10, retry_cnt=2))
    pair.settle(lambda: bool(pair.adapters[0].cm.events), span_ns=SECOND)
    (event,) = pair.contexts[0].get_cm_events()
    assert event.kind is CmEventType.REPLY
    reply = ConnectReply.parse(event.private_data)
    assert reply is not None
    cm.establish(proof(KEY, "caller", reply.challenge, 1, 1))
    pair.settle(span_ns=100 * MILLISECOND)
    assert party.qp.query().qp_state is QPState.RTS
    req = next(seen.frame for seen in pair.seen if seen.opcode == Opcode.UD_SEND_ONLY)
    assert int.from_bytes(req[74:78], "big") == CM_Q_KEY
    parsed = parse_mad(req[82:-4])
    assert parsed is not None
    assert isinstance(parsed[1], Req)
    assert (parsed[1].local_gid, parsed[1].remote_gid) == (A, B)


def test_a_host_cannot_call_an_address_of_the_other_family() -> None:
    pair = AdapterPair(ipv6=True)
    party = Party(pair.contexts[0])
    party.qp.to_init(QPAttr())
    with pytest.raises(RDMAError, match=r"10\.77\.0\.2"):
        CmId(party.qp).connect("10.77.0.2", SERVICE_ID, b"", QPAttr())
    gr = GlobalRoute(dgid=GID("10.77.0.2"))
    with pytest.raises(RDMAError, match=r"10\.77\.0\.2 is of another family than this adapter's fd77::1"):
        party.qp.to_rtr(QPAttr(dest_qp_num=5, ah_attr=AHAttr(gr=gr)))
    assert party.qp.query().qp_state is QPState.INIT


def test_the_header_of_rdma_cm_carries_either_family() -> None:
    for source, target in ((A, B), (A4, B4)):
        header = RdmaCmHeader(7, source, target)
        assert RdmaCmHeader.parse(header.emit()) == header
    assert RdmaCmHeader.parse(b"\0\x50" + bytes(34)) is None
    assert gid_of("fd77::1") == A


# -- a port with several addresses ------------------------------------------------------------------------------------


def alone(*addresses: bytes, mtu: int = 1500) -> Adapter:
    """An adapter that nobody answers."""
    node = NodeMemory(Memory.plain(NODE_MEMORY_BYTES))
    node.power_on()
    return Adapter(
        port=PortFacts(bytes([2, 0, 0, 0, 0, 7]), addresses[0], mtu, addresses[1:]),
        identity=Identity(1, 0, KEY), node_memory=node, rng=random.Random(1), wake_host=lambda: None,
    )  # fmt: skip


def test_an_adapter_answers_for_all_its_addresses() -> None:
    adapter = alone(A4, A, address_bytes("fe80::1"))
    adapter.on_frame(Arp(ARP_REQUEST, b"\x02" * 6, B4, bytes(6), A4).emit(), now=NOW)
    adapter.on_frame(Solicitation(B, solicited_node(A), A, b"\x02" * 6).emit(), now=NOW)
    link_local = address_bytes("fe80::1")
    asker = address_bytes("fe80::2")
    adapter.on_frame(Solicitation(asker, solicited_node(link_local), link_local, b"\x02" * 6).emit(), now=NOW)
    frames = adapter.poll_transmit(now=NOW)
    assert Arp.parse(frames[0]) is not None
    answers = [parse_discovery(frame) for frame in frames[1:]]
    assert [each.source for each in answers if isinstance(each, Advertisement)] == [A, link_local]


def test_a_packet_that_comes_to_another_address_than_the_queue_pairs_is_not_its() -> None:
    """As soft-RoCE: both addresses of a connection count."""
    pair = AdapterPair(ipv6=True)
    second = address_bytes("fd77::99")
    port = PortFacts(bytes([2, 0, 0, 0, 0, 1]), B, 1500, (second,))
    pair.adapters[1]._envelopes = alone(B, second)._envelopes
    assert port.addresses == (B, second)
    a, b = connected(pair, timeout=8, retry_cnt=0)

    def elsewhere(seen: Seen) -> list[bytes]:
        if seen.sender == 0 and seen.opcode >= 0:
            return [readdressed(seen.frame, second)]
        return [seen.frame]

    pair.filter = elsewhere
    assert written(pair, a, b, b"elsewhere") == [WCStatus.RETRY_EXC_ERR]
    assert pair.adapters[1].counters()["rx_wrong_source"] == 1


def readdressed(frame: bytes, target: bytes) -> bytes:
    """The packet to another address, without a UDP checksum and with the right ICRC."""
    from emul.wire.icrc import icrc

    packet = frame[:38] + target + frame[54:60] + b"\0\0" + frame[62:-4]
    return packet + icrc(packet[14:])


def test_news_go_out_when_the_cable_is_back() -> None:
    adapter = alone(A4, A)
    adapter.on_carrier(False)
    assert adapter.poll_transmit(now=NOW) == []
    adapter.on_carrier(True)
    (frame,) = adapter.poll_transmit(now=NOW)
    assert parse_discovery(frame) == Advertisement(A, ALL_NODES, A, bytes([2, 0, 0, 0, 0, 7]), False, True)


@pytest.mark.parametrize(
    ("what", "frame", "counter"),
    [
        ("broken", Solicitation(B, solicited_node(A), A, b"\x02" * 6).emit()[:-1] + b"\xff", "rx_bad_nd"),
        ("from a group", Solicitation(B, solicited_node(A), A, b"\x03" * 6).emit(), "rx_bad_nd"),
        (
            "an echo",
            Solicitation(B, solicited_node(A), A, b"\x02" * 6).emit()[:54] + b"\x80" + bytes(60),
            "rx_not_roce",
        ),
        ("too short", b"\x02" * 12 + b"\x86\xdd" + bytes(40), "rx_truncated"),
    ],
)
def test_what_is_no_neighbour_discovery_is_counted(what: str, frame: bytes, counter: str) -> None:
    adapter = alone(A)
    adapter.on_frame(frame, now=NOW)
    assert adapter.counters()[counter] == 1, what
    assert adapter.poll_transmit(now=NOW) == []


def test_an_unnamed_asker_teaches_nothing_and_is_answered() -> None:
    adapter = alone(A)
    adapter.on_frame(Solicitation(UNSPECIFIED, solicited_node(A), A, b"\x02" * 6).emit(), now=NOW)
    assert len(adapter.poll_transmit(now=NOW)) == 1


@given(st.binary(max_size=300), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b""]))
def test_noise_is_counted_and_never_raises(noise: bytes, ethertype: bytes) -> None:
    adapter = alone(A, A4)
    frame = b"\x02" * 12 + ethertype + noise
    adapter.on_frame(frame, now=NOW)
    assert sum(adapter.counters().values()) == sum(alone(A, A4).counters().values()) + 1
    adapter.poll_transmit(now=NOW)


def test_mutants_with_a_right_icrc_harm_nobody_and_traffic_goes_on() -> None:
    """The UDP checksum is left out and the ICRC made right, so that everything behind them is reached."""
    from emul.wire.icrc import icrc

    pair = AdapterPair(ipv6=True)
    a, b = connected(pair, retry_cnt=7, timeout=10)
    assert written(pair, a, b, bytes(3000)) == [WCStatus.SUCCESS]
    frames = [seen.frame for seen in pair.seen]
    chance = random.Random(6)
    for _ in range(3_000):
        mutant = bytearray(chance.choice(frames))
        for _ in range(chance.randrange(1, 4)):
            mutant[chance.randrange(14, len(mutant))] = chance.randrange(256)
        if chance.random() < 0.5 and mutant[20] == 17 and len(mutant) > 80:
            mutant[60:62] = bytes(2)
            mutant[-4:] = icrc(bytes(mutant[14:-4]))
        for adapter in pair.adapters:
            adapter.on_frame(bytes(mutant), now=pair.now)
            adapter.poll_transmit(now=pair.now)
            adapter.on_time(now=pair.now)
    c, d = connected(pair, retry_cnt=7, timeout=10)
    assert written(pair, c, d, b"still here") == [WCStatus.SUCCESS]


# -- path MTU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interface_mtu", "ipv6", "size"),
    [
        (320, False, 256), (340, True, 256), (575, False, 256), (576, False, 512), (595, True, 256), (596, True, 512),
        (1500, False, 1024), (1500, True, 1024), (2200, True, 2048), (4159, False, 2048), (4160, False, 4096),
        (4179, True, 2048), (4180, True, 4096), (4200, True, 4096), (9000, False, 4096),
    ],
)  # fmt: skip
def test_the_path_mtu_is_the_largest_whose_packets_fit(interface_mtu: int, ipv6: bool, size: int) -> None:
    assert path_mtu_for(interface_mtu, ipv6=ipv6).size == size


@pytest.mark.parametrize(("interface_mtu", "ipv6", "needed"), [(319, False, 320), (339, True, 340), (68, False, 320)])
def test_an_mtu_too_small_for_any_is_refused_with_what_it_takes(interface_mtu: int, ipv6: bool, needed: int) -> None:
    with pytest.raises(RDMAError, match=f"interface MTU {interface_mtu} is too small.* 256, need {needed}"):
        path_mtu_for(interface_mtu, ipv6=ipv6)
    with pytest.raises(RDMAError, match="too small"):
        alone(A if ipv6 else A4, mtu=interface_mtu)


def test_a_path_mtu_above_the_ports_is_refused() -> None:
    pair = AdapterPair(mtu=1500, ipv6=True)
    party = Party(pair.contexts[0])
    party.qp.to_init(QPAttr(qp_access_flags=ALL_ACCESS))
    gr = GlobalRoute(dgid=GID(pair.address(1)))
    with pytest.raises(RDMAError, match="path MTU 2048 does not fit the port's 1024"):
        party.qp.to_rtr(QPAttr(dest_qp_num=5, path_mtu=MTU.MTU_2048, ah_attr=AHAttr(gr=gr)))
