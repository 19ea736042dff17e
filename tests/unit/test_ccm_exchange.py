"""Exchange records: what is emitted is parsed, and nothing else is; another node's memory is hostile input."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccm.exchange import (
    AREA_BYTES,
    CLIENTS_MAX,
    HEADER_BYTES,
    SLOTS,
    VIS_MAX,
    Info,
    LaneEntry,
    Manifest,
    ManifestEntry,
    PathInfo,
    Record,
    RecordKind,
    Refusal,
    Seen,
    SessionEntry,
    Sessions,
    ViAddress,
    describe,
    emit_record,
    parse_record,
    slot_range,
)

u16, u32, u64 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 63) - 1)
vis = st.builds(ViAddress, st.integers(2, 0xFFFFFF), st.integers(0, 0xFFFFFF))
lanes = st.builds(
    LaneEntry, u32, st.integers(1, 0xFFFFFFFE), st.integers(0, 1), u32, u64, u64,
    st.lists(vis, max_size=VIS_MAX).map(tuple),
)  # fmt: skip
names = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=24)
bodies = {
    RecordKind.SEEN: st.builds(Seen, st.integers(1, 2)),
    RecordKind.INFO: st.builds(Info, st.integers(1, 9), st.integers(1, 9), u64, st.integers(0, 8), u16, names),
    RecordKind.MANIFEST: st.lists(
        st.builds(
            ManifestEntry, names, u32, u16, st.integers(0, 1), st.integers(0, 8), st.integers(0, 4096),
            st.integers(0, 1 << 20), u64,
        ),
        max_size=CLIENTS_MAX,
    ).map(lambda entries: Manifest(tuple(entries))),
    RecordKind.SESSIONS: st.builds(
        Sessions,
        u32,
        st.lists(st.builds(SessionEntry, u32, st.integers(1, 3), st.integers(1, 0xFFFFFFFE)), max_size=CLIENTS_MAX).map(
            tuple
        ),
    ),
    RecordKind.PATH: st.builds(
        PathInfo, st.integers(1, 0xFFFFFFFF), u32, u64, st.integers(1, 5),
        st.lists(lanes, max_size=CLIENTS_MAX).map(tuple),
    ),
}  # fmt: skip


@st.composite
def records(draw):
    kind = draw(st.sampled_from(list(RecordKind)))
    index = draw(st.integers(0, SLOTS[kind].count - 1))
    return Record(kind, index, draw(st.integers(1, 511)), draw(u64), draw(u64), draw(u64), draw(bodies[kind]))


def path_record() -> Record:
    lane = LaneEntry(77, 3, 1, 5, 4096, 8192, (ViAddress(17, 1), ViAddress(18, 2)))
    return Record(RecordKind.PATH, 1, 2, 10, 20, 30, PathInfo(4, 5, 6, 3, (lane,)))


def sealed(data: bytes) -> bytes:
    """`data` with its checksum made right again: a writer that knows the rules and breaks others."""
    blank = data[:12] + bytes(4) + data[16:]
    return data[:12] + struct.pack("<I", zlib.crc32(blank)) + data[16:]


@given(records())
def test_what_is_emitted_is_parsed(record):
    data = emit_record(record)
    assert parse_record(data, record.kind, record.index) == record
    _, size = slot_range(record.kind, record.index)
    padded = data + b"\xaa" * (size - len(data))
    assert parse_record(padded, record.kind, record.index) == record, "what follows in the slot is not looked at"


@settings(max_examples=300)
@given(st.sampled_from(list(RecordKind)), st.binary(max_size=400))
def test_no_bytes_at_all_raise(kind, data):
    assert not isinstance(parse_record(data, kind), Record)


@settings(max_examples=200)
@given(st.data())
def test_no_body_at_all_raises_even_under_a_right_checksum(data):
    record = path_record()
    raw = bytearray(emit_record(record))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(HEADER_BYTES, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = parse_record(sealed(bytes(raw)), RecordKind.PATH, 1)
    assert isinstance(found, Record | Refusal)


@pytest.mark.parametrize("bit", range(0, HEADER_BYTES * 8, 3))
def test_each_flipped_bit_is_refused(bit):
    raw = bytearray(emit_record(path_record()))
    raw[bit // 8] ^= 1 << bit % 8
    assert isinstance(parse_record(bytes(raw), RecordKind.PATH, 1), Refusal)


def test_an_empty_slot_holds_nothing():
    for kind in RecordKind:
        assert parse_record(bytes(slot_range(kind)[1]), kind) is None


def test_reasons_carry_what_was_got_and_expected():
    data = emit_record(path_record())
    cases = {
        "bytes, a header alone has": data[:20],
        "checksum does not match": data[:-1] + b"\xff",
        "in the slot of PATH 1": sealed(data[:6] + b"\x02\x00" + data[8:]),
        "record version 9, expected 1": sealed(data[:4] + b"\x09\x00" + data[6:]),
        "length 4096, expected": sealed(data[:8] + struct.pack("<I", 4096) + data[12:]),
        "ends after the record's": sealed(data[:8] + struct.pack("<I", len(data) - 4) + data[12:-4]),
        "bytes after the last field": sealed(data[:8] + struct.pack("<I", len(data) + 4) + data[12:] + bytes(4)),
        "generation is 0, expected 1": sealed(data[:HEADER_BYTES] + bytes(4) + data[HEADER_BYTES + 4 :]),
        "lanes is 9999, expected 0 ... 16": sealed(
            data[: HEADER_BYTES + 18] + struct.pack("<H", 9999) + data[HEADER_BYTES + 20 :]
        ),
        "sequence": sealed(data[:32] + struct.pack("<Q", 1 << 63) + data[40:]),
    }  # fmt: skip
    for reason, raw in cases.items():
        found = parse_record(raw, RecordKind.PATH, 1)
        assert isinstance(found, Refusal) and reason in found.reason, (reason, found)


def test_what_no_reader_would_take_is_not_emitted():
    record = path_record()
    with pytest.raises(ValueError, match="17 items, at most 16"):
        emit_record(replace(record, body=replace(record.body, lanes=record.body.lanes * 17)))
    with pytest.raises(ValueError, match="mtu is 9"):
        emit_record(replace(record, body=replace(record.body, mtu=9)))
    with pytest.raises(ValueError, match="slots 0"):
        emit_record(replace(record, index=8))


def test_slots_lie_side_by_side_within_the_area():
    ranges = sorted(slot_range(kind, index) for kind in RecordKind for index in range(SLOTS[kind].count))
    end = 0
    for offset, size in ranges:
        assert offset >= end and offset % 8 == 0
        end = offset + size
    assert end <= AREA_BYTES


@pytest.mark.needs_plain
def test_the_page_of_the_documentation_is_what_the_definition_says():
    page = Path(__file__).resolve().parents[2] / "docs" / "exchange-records.md"
    assert describe() in page.read_text(encoding="utf-8"), "write ccm.exchange.describe() into docs/exchange-records.md"
