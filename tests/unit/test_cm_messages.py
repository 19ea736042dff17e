"""Management datagrams: what is built is read again, whatever comes is read or refused, bytes stand where they must."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emul.cm_events import CmEvent, CmEventType, ConnParam
from emul.wire.mad import (
    DREP_PRIVATE_BYTES,
    DREQ_PRIVATE_BYTES,
    MAD_BYTES,
    MRA_PRIVATE_BYTES,
    PS_TCP_SERVICE,
    RDMA_CM_HEADER_BYTES,
    REJ_PRIVATE_BYTES,
    REP_PRIVATE_BYTES,
    REQ_PRIVATE_BYTES,
    RTU_PRIVATE_BYTES,
    Attribute,
    Drep,
    Dreq,
    Message,
    Mra,
    RdmaCmHeader,
    Rej,
    Rep,
    Req,
    Rtu,
    gid_of,
    parse_mad,
    port_of,
)


def bits(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << count) - 1)


def octets(most: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=most, max_size=most)


MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    Req: st.builds(
        Req, bits(32), bits(64), bits(24), bits(24), octets(16), octets(16), bits(4), bits(8), bits(8), bits(5),
        bits(5), bits(3), bits(3), bits(4), bits(5), bits(16), bits(64), octets(REQ_PRIVATE_BYTES), bits(2), bits(1),
        bits(1), bits(20), bits(8), bits(8),
    ),
    Rep: st.builds(
        Rep, bits(32), bits(32), bits(24), bits(24), bits(8), bits(8), bits(5), bits(3), bits(64),
        octets(REP_PRIVATE_BYTES), bits(1), bits(1),
    ),
    Rtu: st.builds(Rtu, bits(32), bits(32), octets(RTU_PRIVATE_BYTES)),
    Rej: st.builds(
        Rej, bits(32), bits(32), bits(2), bits(16), octets(REJ_PRIVATE_BYTES), st.binary(max_size=72)
    ),
    Mra: st.builds(Mra, bits(32), bits(32), bits(2), bits(5), octets(MRA_PRIVATE_BYTES)),
    Dreq: st.builds(Dreq, bits(32), bits(32), bits(24), octets(DREQ_PRIVATE_BYTES)),
    Drep: st.builds(Drep, bits(32), bits(32), octets(DREP_PRIVATE_BYTES)),
}  # fmt: skip
ANY = st.one_of(*MESSAGES.values())


@given(ANY, bits(64))
def test_what_is_emitted_is_parsed_again(message: Message, transaction: int) -> None:
    data = message.emit(transaction)
    assert len(data) == MAD_BYTES
    assert parse_mad(data) == (transaction, message)


@given(st.binary(max_size=MAD_BYTES + 8))
def test_parsing_never_raises(data: bytes) -> None:
    parse_mad(data)


@given(st.integers(0x10, 0x16), octets(MAD_BYTES - 24))
def test_any_body_behind_a_good_header_is_a_message(attribute: int, body: bytes) -> None:
    parsed = parse_mad(struct.pack("!BBBBHHQHHI", 1, 7, 2, 3, 0, 0, 9, attribute, 0, 0) + body)
    assert parsed is not None
    again = parse_mad(parsed[1].emit(9))
    assert again == parsed  # what is reserved is not kept, all else is


@given(ANY, st.integers(0, MAD_BYTES - 1))
def test_a_truncated_datagram_is_none(message: Message, length: int) -> None:
    assert parse_mad(message.emit(1)[:length]) is None


def test_a_datagram_that_is_too_long_is_none() -> None:
    assert parse_mad(Rtu(1, 2).emit(1) + b"\0") is None


@pytest.mark.parametrize(
    ("position", "value"),
    [(0, 2), (1, 6), (2, 1), (3, 1), (3, 0x81), (17, 0x0F), (17, 0x17), (16, 1)],
    ids=["base version", "class", "class version", "Get", "GetResp", "attribute below", "attribute above", "unknown"],
)
def test_another_class_version_method_or_attribute_is_none(position: int, value: int) -> None:
    data = bytearray(Rtu(1, 2).emit(1))
    data[position] = value
    assert parse_mad(bytes(data)) is None


@pytest.mark.parametrize(
    ("message", "most"),
    [
        (Req(1, 2, 3, 4, bytes(16), bytes(16), 3, private_data=bytes(93)), 92),
        (Rep(1, 2, 3, 4, private_data=bytes(197)), 196),
        (Rtu(1, 2, bytes(225)), 224),
        (Rej(1, 2, 0, 28, bytes(149)), 148),
        (Rej(1, 2, 0, 28, b"", bytes(73)), 72),
        (Mra(1, 2, 0, 5, bytes(223)), 222),
        (Dreq(1, 2, 3, bytes(221)), 220),
        (Drep(1, 2, bytes(225)), 224),
    ],
)
def test_too_much_private_data_is_refused(message: Message, most: int) -> None:
    with pytest.raises(ValueError, match=f"{most} bytes of"):
        message.emit(1)


def test_the_bytes_of_a_req_stand_where_the_specification_puts_them() -> None:
    """Vol. 1, table 99: offsets within the 232 bytes after the common header."""
    req = Req(
        local_comm_id=0x01020304, service_id=0x1112131415161718, local_qpn=0x212223, starting_psn=0x313233,
        local_gid=bytes(range(0x40, 0x50)), remote_gid=bytes(range(0x50, 0x60)), path_mtu=5, responder_resources=0x61,
        initiator_depth=0x62, remote_response_timeout=0x13, local_response_timeout=0x12, retry_count=5,
        rnr_retry_count=6, max_cm_retries=0xE, local_ack_timeout=0x11, p_key=0x7172, ca_guid=0x8182838485868788,
        private_data=b"private", transport=1, flow_control=1, srq=1, flow_label=0xABCDE, traffic_class=0x91,
        hop_limit=0x92,
    )  # fmt: skip
    data = req.emit(0xA1A2A3A4A5A6A7A8)
    assert data[:24].hex() == "01070203" + "00000000" + "a1a2a3a4a5a6a7a8" + "0010" + "0000" + "00000000"
    body = data[24:]
    for offset, expected in {
        0: "01020304", 8: "1112131415161718", 16: "8182838485868788", 32: "21222361", 36: "00000062", 40: "0000009b",
        44: "31323395", 48: "7172", 50: "56", 51: "e8", 52: "ffffffff", 56: "404142", 72: "505152", 88: "abcde000",
        92: "9192", 94: "00", 95: "88", 96: "00" * 44, 140: b"private".hex() + "00" * 85,
    }.items():  # fmt: skip
        assert body[offset : offset + len(expected) // 2].hex() == expected, offset


def test_the_bytes_of_a_rep_stand_where_the_specification_puts_them() -> None:
    """Vol. 1, table 103."""
    rep = Rep(
        0x01020304, 0x11121314, 0x212223, 0x313233, 0x41, 0x42, 0x15, 6, 0x5152535455565758, b"private", 1, 1
    )  # fmt: skip
    body = rep.emit(7)[24:]
    assert body[:36].hex() == ("0102030411121314000000002122230000000000313233004142a9d05152535455565758")
    assert body[36:43] == b"private"
    assert rep.emit(7)[16:18] == Attribute.REP.to_bytes(2, "big")


def test_the_bytes_of_a_rej_with_information() -> None:
    body = Rej(1, 2, 1, 0x1234, b"private", b"info").emit(7)[24:]
    assert body[8:12].hex() == "40081234"
    assert body[12:16] == b"info"
    assert body[84:91] == b"private"


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("10.1.2.3", "10.4.5.6", "0040abcd" + "00" * 12 + "0a010203" + "00" * 12 + "0a040506"),
        ("fd00::1", "fd00::2", "0060abcd" + "fd00" + "00" * 13 + "01" + "fd00" + "00" * 13 + "02"),
    ],
)
def test_the_header_of_rdma_cm(source: str, target: str, expected: str) -> None:
    from emul.wire.address import address_bytes

    header = RdmaCmHeader(0xABCD, address_bytes(source), address_bytes(target))
    assert header.emit().hex() == expected
    assert len(header.emit()) == RDMA_CM_HEADER_BYTES
    assert RdmaCmHeader.parse(header.emit() + b"more") == header


@given(st.binary(max_size=64))
def test_a_header_of_rdma_cm_is_parsed_or_refused(data: bytes) -> None:
    header = RdmaCmHeader.parse(data)
    if header is not None:
        assert data[0] == 0
        assert len(header.source) == len(header.target) == (4 if data[1] >> 4 == 4 else 16)


def test_services_of_the_tcp_port_space() -> None:
    assert port_of(PS_TCP_SERVICE | 7471) == 7471
    assert port_of(0x0111_0000 | 7471) is None
    assert port_of(1 << 63 | PS_TCP_SERVICE) is None


def test_the_gid_of_an_address() -> None:
    assert gid_of("10.1.2.3").hex() == "00" * 10 + "ffff" + "0a010203"


@given(
    st.builds(
        CmEvent, st.sampled_from(CmEventType), bits(32), st.binary(max_size=224), bits(16), bits(16), octets(4),
        bits(16), st.builds(ConnParam, bits(8), bits(8), bits(1), bits(3), bits(3), bits(1), bits(24)),
    )
)  # fmt: skip
def test_an_event_crosses_the_control_channel_whole(event: CmEvent) -> None:
    assert CmEvent.from_fields(event.to_fields()) == event
    assert event.event_type is event.kind


@pytest.mark.parametrize("position", range(8))
def test_an_event_that_makes_no_sense_is_a_value_error(position: int) -> None:
    fields = CmEvent(CmEventType.REJECTED, 1).to_fields()
    fields[position] = None
    with pytest.raises(ValueError, match=r"expected|hex|must be"):
        CmEvent.from_fields(fields)
