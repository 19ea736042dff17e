"""The exchange records: what two managers tell each other through RDMA alone.

Each node keeps, for each partner, an inbox that the partner writes and an outbox that it reads, 16 KiB each, with the
same layout. A record lives in a slot at a fixed offset; writing it again overwrites it, so that the state of a node is
what its slots say, and a repeated or late write does no harm. The dataclasses below are the only definition of the
layout: codec, slot sizes and `describe()` (the table in docs/exchange-records.md) come from their fields.

Another node's memory is hostile input: `parse_record` gives a record, nothing (an empty slot), or a refusal with its
reason. Knows bytes and ranges; what a record means is known by the machines that send and receive it.

Every record begins with the same header, little-endian: magic, version, kind, length, checksum (CRC-32 of the record
with this field zero), writer's incarnation, the partner's incarnation as the writer read it, sequence, writer's node
id, index (path number, where a slot is by path).
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

AREA_BYTES = 16 * 1024
"""Size of an inbox or outbox."""
PATHS_MAX = 8
CLIENTS_MAX = 16
"""Clients in one manifest."""
VIS_MAX = 8
"""Virtual interfaces of one session on one path."""
NAME_BYTES = 24
EPOCH_MAX = 0xFFFF_FFFE
SEQUENCE_MAX = (1 << 63) - 1

MAGIC = 0x43434D58
VERSION = 1
_HEADER = struct.Struct("<IHHIIQQQHHI")
HEADER_BYTES = _HEADER.size
_CHECKSUM_OFFSET = 12
_COUNT = struct.Struct("<H")

T = TypeVar("T")


class RecordKind(IntEnum):
    """What a record tells."""

    SEEN = 1
    INFO = 2
    MANIFEST = 3
    SESSIONS = 4
    PATH = 5


def wire(form: str, doc: str, *, most: int | None = None, least: int = 0) -> Any:  # noqa: ANN401 - as dataclasses.field
    """A field of a record: `form` as in `struct`, allowed range `least` ... `most`."""
    return dataclasses.field(metadata={"form": form, "doc": doc, "most": most, "least": least})


def text(length: int, doc: str) -> Any:  # noqa: ANN401
    """A field of UTF-8 text, `length` bytes, padded with zeros."""
    return dataclasses.field(metadata={"form": f"{length}s", "doc": doc, "text": True})


def repeated(item: type, doc: str, *, most: int) -> Any:  # noqa: ANN401
    """A field of up to `most` items, with their number (u16) before them."""
    return dataclasses.field(metadata={"item": item, "doc": doc, "most": most})


@dataclass(frozen=True, slots=True)
class Seen:
    """Steps 2 and 4 of the handshake on one path; the header's two incarnations are the flag itself."""

    step: int = wire("H", "1: the writer has read the partner's status; 2: and knows that the partner has read its own", most=2, least=1)  # fmt: skip  # noqa: E501


@dataclass(frozen=True, slots=True)
class Info:
    """Peer information (R4)."""

    version_least: int = wire("H", "lowest protocol version that the writer speaks", least=1)
    version_most: int = wire("H", "highest one", least=1)
    capabilities: int = wire("Q", "bit set of `ccm.peerinfo.Capability`")
    paths: int = wire("H", "number of paths that the writer has to the partner", most=PATHS_MAX)
    refusal: int = wire("H", "why the writer refuses the partner (`ccm.reasons.Reason`), 0: it doesn't")
    name: str = text(32, "the writer's name, for people")


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """What one client needs of a session (R5)."""

    name: str = text(NAME_BYTES, "the client's name")
    client: int = wire("I", "its key: CRC-32 of the name")
    version: int = wire("H", "version of the client's own protocol")
    service_class: int = wire("H", "0 bulk, 1 low latency", most=1)
    vis: int = wire("H", "virtual interfaces on each path", most=VIS_MAX)
    depth: int = wire("H", "most unconfirmed requests on each", most=4096)
    message_bytes: int = wire("I", "largest message, 0: sends none", most=1 << 20)
    exposed_bytes: int = wire("Q", "memory that the partner may write")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What all clients of the writer need towards this partner."""

    entries: tuple[ManifestEntry, ...] = repeated(ManifestEntry, "by name", most=CLIENTS_MAX)


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """Where the writer stands with one client's session."""

    client: int = wire("I", "key of the client")
    phase: int = wire("H", "`ccm.session.Phase`: 1 proposed, 2 ready, 3 closed, 4 refused for now", most=4, least=1)
    epoch: int = wire("I", "session epoch that the phase is about", most=EPOCH_MAX, least=1)


@dataclass(frozen=True, slots=True)
class Sessions:
    """Ready and close notices with their epochs (R6, R9)."""

    digest: int = wire("I", "CRC-32 over both manifests as the writer holds them")
    entries: tuple[SessionEntry, ...] = repeated(SessionEntry, "by key", most=CLIENTS_MAX)


@dataclass(frozen=True, slots=True)
class ViAddress:
    """One end of a virtual interface."""

    qp_num: int = wire("I", "queue pair number", most=0xFFFFFF, least=2)
    psn: int = wire("I", "first PSN that this end sends", most=0xFFFFFF)


@dataclass(frozen=True, slots=True)
class LaneEntry:
    """One session's virtual interfaces and memory on one path."""

    client: int = wire("I", "key of the client")
    epoch: int = wire("I", "session epoch that they were made for", most=EPOCH_MAX, least=1)
    connected: int = wire("H", "1: the writer's ends are ready to send and receive", most=1)
    rkey: int = wire("I", "key of the memory that the reader may write")
    address: int = wire("Q", "its address")
    length: int = wire("Q", "its length, 0: none")
    vis: tuple[ViAddress, ...] = repeated(ViAddress, "in the order of the session's VIs", most=VIS_MAX)


@dataclass(frozen=True, slots=True)
class PathInfo:
    """One path as the writer has it."""

    generation: int = wire("I", "rises whenever the writer begins the path anew", least=1)
    paired_with: int = wire("I", "the reader's generation that it belongs with, 0: none yet")
    fence_epoch: int = wire("Q", "the writer's queue pairs on this path carry it; the reader fences with one more", most=SEQUENCE_MAX)  # fmt: skip  # noqa: E501
    mtu: int = wire("H", "path MTU of which the writer's packets get through, encoded as in verbs", most=5, least=1)
    lanes: tuple[LaneEntry, ...] = repeated(LaneEntry, "by key of the client", most=CLIENTS_MAX)


Body = Seen | Info | Manifest | Sessions | PathInfo


@dataclass(frozen=True, slots=True)
class Record:
    """A record with its header."""

    kind: RecordKind
    index: int
    node: int
    writer_incarnation: int
    partner_incarnation: int
    sequence: int
    body: Body


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why bytes are no record."""

    reason: str


@dataclass(frozen=True, slots=True)
class Slot:
    """Where records of a kind are: `count` of them, `stride` bytes apart, from `offset` on."""

    body: type[Body]
    offset: int
    stride: int
    count: int


class _Bad(Exception):
    """Inside parsing only: the reason of a refusal."""


def _largest(body: type) -> int:
    """Most bytes that `body` takes."""
    total = 0
    for field in dataclasses.fields(body):
        meta = field.metadata
        if "item" in meta:
            total += _COUNT.size + meta["most"] * _largest(meta["item"])
        else:
            total += struct.calcsize("<" + meta["form"])
    return total


def _lay_out() -> dict[RecordKind, Slot]:
    slots: dict[RecordKind, Slot] = {}
    offset = 0
    kinds: tuple[tuple[RecordKind, type[Body], int], ...] = (
        (RecordKind.SEEN, Seen, PATHS_MAX),
        (RecordKind.INFO, Info, 1),
        (RecordKind.MANIFEST, Manifest, 1),
        (RecordKind.SESSIONS, Sessions, 1),
        (RecordKind.PATH, PathInfo, PATHS_MAX),
    )
    for kind, body, count in kinds:
        stride = (HEADER_BYTES + _largest(body) + 63) & ~63
        slots[kind] = Slot(body, offset, stride, count)
        offset += stride * count
    assert offset <= AREA_BYTES, offset
    return slots


SLOTS = _lay_out()


def slot_range(kind: RecordKind, index: int = 0) -> tuple[int, int]:
    """Offset and size of a slot in an inbox or outbox. Raises ValueError for an index that the kind doesn't have."""
    slot = SLOTS[kind]
    if not 0 <= index < slot.count:
        raise ValueError(f"{kind.name} has slots 0 ... {slot.count - 1}, got {index}")
    return slot.offset + index * slot.stride, slot.stride


def _emit(value: object) -> bytes:
    parts: list[bytes] = []
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        meta, held = field.metadata, getattr(value, field.name)
        if "item" in meta:
            if len(held) > meta["most"]:
                raise ValueError(f"{field.name}: {len(held)} items, at most {meta['most']}")
            parts.append(_COUNT.pack(len(held)))
            parts.extend(_emit(item) for item in held)
        elif "text" in meta:
            parts.append(struct.pack("<" + meta["form"], held.encode()))
        else:
            _check(field.name, held, meta["least"], meta["most"], ValueError)
            parts.append(struct.pack("<" + meta["form"], held))
    return b"".join(parts)


def _check(name: str, got: int, least: int, most: int | None, error: Callable[[str], Exception]) -> None:
    if got < least or (most is not None and got > most):
        raise error(f"{name} is {got}, expected {least} ... {most if most is not None else 'the width of the field'}")


def _take(body: type[T], data: memoryview, offset: int) -> tuple[T, int]:
    """One value of type `body` at `offset`, and where it ends. Raises _Bad."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(body):  # type: ignore[arg-type]
        meta = field.metadata
        form = struct.Struct("<H" if "item" in meta else "<" + meta["form"])
        if offset + form.size > len(data):
            raise _Bad(f"{field.name} ends after the record's {len(data)} bytes")
        (got,) = form.unpack_from(data, offset)
        offset += form.size
        if "item" in meta:
            _check(field.name, got, 0, meta["most"], _Bad)
            items = []
            for _ in range(got):
                item, offset = _take(meta["item"], data, offset)
                items.append(item)
            values[field.name] = tuple(items)
        elif "text" in meta:
            try:
                values[field.name] = got.rstrip(b"\0").decode()
            except UnicodeDecodeError:
                raise _Bad(f"{field.name} is no UTF-8") from None
        else:
            _check(field.name, got, meta["least"], meta["most"], _Bad)
            values[field.name] = got
    return body(**values), offset


def emit_record(record: Record) -> bytes:
    """The record's bytes. Raises ValueError where a field is out of range or there are too many items."""
    slot_range(record.kind, record.index)
    payload = _emit(record.body)
    head = _HEADER.pack(
        MAGIC, VERSION, record.kind, HEADER_BYTES + len(payload), 0, record.writer_incarnation,
        record.partner_incarnation, record.sequence, record.node, record.index, 0,
    )  # fmt: skip
    checksum = zlib.crc32(payload, zlib.crc32(head))
    return head[:_CHECKSUM_OFFSET] + checksum.to_bytes(4, "little") + head[_CHECKSUM_OFFSET + 4 :] + payload


def parse_record(data: bytes | memoryview, kind: RecordKind, index: int = 0) -> Record | Refusal | None:
    """What the bytes of slot (`kind`, `index`) hold; None for an empty slot.

    A record that is just being written fails its checksum: a refusal that goes away with the next look.
    """
    view = memoryview(data)
    if len(view) < HEADER_BYTES:
        return Refusal(f"{len(view)} bytes, a header alone has {HEADER_BYTES}")
    magic, version, got_kind, length, checksum, writer, partner, sequence, node, got_index, zero = _HEADER.unpack_from(
        view
    )
    if not magic and not length:
        return None
    if magic != MAGIC:
        return Refusal(f"magic is {magic:#x}, expected {MAGIC:#x}")
    if version != VERSION:
        return Refusal(f"record version {version}, expected {VERSION}")
    if got_kind != kind or got_index != index or zero:
        return Refusal(f"kind {got_kind} index {got_index} in the slot of {kind.name} {index}")
    if not HEADER_BYTES <= length <= min(len(view), SLOTS[kind].stride):
        return Refusal(f"length {length}, expected {HEADER_BYTES} ... {min(len(view), SLOTS[kind].stride)}")
    payload = view[HEADER_BYTES:length]
    head = bytes(view[:_CHECKSUM_OFFSET]) + bytes(4) + bytes(view[_CHECKSUM_OFFSET + 4 : HEADER_BYTES])
    if zlib.crc32(payload, zlib.crc32(head)) != checksum:
        return Refusal("checksum does not match")
    if sequence > SEQUENCE_MAX:
        return Refusal(f"sequence {sequence} is beyond {SEQUENCE_MAX}")
    try:
        body, end = _take(SLOTS[kind].body, payload, 0)
    except _Bad as bad:
        return Refusal(str(bad))
    if end != len(payload):
        return Refusal(f"{len(payload) - end} bytes after the last field")
    return Record(kind, index, node, writer, partner, sequence, body)


def describe() -> str:
    """The layout as Markdown tables, from the definition above."""
    lines = [f"Header: {HEADER_BYTES} bytes in each record. Numbers are little-endian.", ""]
    for kind, slot in SLOTS.items():
        lines += [f"## {kind.name} (kind {int(kind)})", "", _summary(slot.body), ""]
        lines += [f"Slots: {slot.count} of {slot.stride} bytes from offset {slot.offset}.", ""]
        lines += _describe_fields(slot.body)
    return "\n".join(lines)


def _summary(body: type) -> str:
    return (body.__doc__ or "").strip().splitlines()[0]


def _describe_fields(body: type) -> list[str]:
    lines = ["| field | form | range | meaning |", "|---|---|---|---|"]
    nested: list[type] = []
    for field in dataclasses.fields(body):
        meta = field.metadata
        if "item" in meta:
            nested.append(meta["item"])
            lines.append(
                f"| {field.name} | u16 + items | 0 ... {meta['most']} | {meta['item'].__name__}, {meta['doc']} |"
            )
            continue
        width = struct.calcsize("<" + meta["form"])
        form = f"text {width}" if "text" in meta else f"u{8 * width}"
        bounds = "" if meta.get("most") is None else f"{meta['least']} ... {meta['most']}"
        lines.append(f"| {field.name} | {form} | {bounds} | {meta['doc']} |")
    lines.append("")
    for item in nested:
        lines += [f"{item.__name__}: {_summary(item)}", "", *_describe_fields(item)]
    return lines
