"""The pcapng file format, as much of it as captures of cables need: one section, interfaces, packets with comments.

Source: IETF draft-ietf-opsawg-pcapng, sections 4.1 (section header), 4.2 (interface description), 4.3 (enhanced
packet), 4.6 (interface statistics). Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

LINKTYPE_ETHERNET = 1
COMMENT_BYTES_MAX = 4096
"""Of one comment; longer ones are cut."""
_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_COMMENT, _END = 1, 0
_SECTION_APPLICATION = 4
_INTERFACE_NAME, _INTERFACE_DESCRIPTION, _INTERFACE_RESOLUTION = 2, 3, 9
_STATISTICS_RECEIVED, _STATISTICS_DROPPED = 4, 5
_NANOSECONDS = b"\x09"
_OPTION = struct.Struct("<HH")
_BLOCK = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_SECTION_BODY = struct.Struct("<IHHq")
_INTERFACE_BODY = struct.Struct("<HHI")
_PACKET_BODY = struct.Struct("<IIIII")
_STATISTICS_BODY = struct.Struct("<III")
_U64 = struct.Struct("<Q")

Option = tuple[int, bytes]


def section(application: str, comments: Iterable[str] = ()) -> bytes:
    """The head of a file."""
    options = [_comment(text) for text in comments]
    options.append((_SECTION_APPLICATION, application.encode()))
    return _block(_SECTION, _SECTION_BODY.pack(_BYTE_ORDER, 1, 0, -1), options)


def interface(name: str, description: str) -> bytes:
    """An Ethernet interface with time in ns; interfaces are numbered from 0 in the order of their blocks."""
    options = [
        (_INTERFACE_NAME, name.encode()),
        (_INTERFACE_DESCRIPTION, description.encode()),
        (_INTERFACE_RESOLUTION, _NANOSECONDS),
    ]
    return _block(_INTERFACE, _INTERFACE_BODY.pack(LINKTYPE_ETHERNET, 0, 0), options)


def packet(number: int, at_ns: int, frame: bytes, length: int, comments: Sequence[str] = ()) -> bytes:
    """A frame seen at interface `number`, `at_ns` after 1970; `length` is that on the wire."""
    body = _PACKET_BODY.pack(number, at_ns >> 32, at_ns & 0xFFFF_FFFF, len(frame), length)
    return _block(_PACKET, body + frame + bytes(-len(frame) % 4), [_comment(text) for text in comments])


def statistics(number: int, at_ns: int, received: int, dropped: int, comments: Iterable[str] = ()) -> bytes:
    """How many frames interface `number` saw, and how many of them are not in the file."""
    options = [_comment(text) for text in comments]
    options += [(_STATISTICS_RECEIVED, _U64.pack(received)), (_STATISTICS_DROPPED, _U64.pack(dropped))]
    return _block(_STATISTICS, _STATISTICS_BODY.pack(number, at_ns >> 32, at_ns & 0xFFFF_FFFF), options)


def _comment(text: str) -> Option:
    return _COMMENT, text.encode()[:COMMENT_BYTES_MAX].decode(errors="ignore").encode()


def _block(kind: int, body: bytes, options: Sequence[Option]) -> bytes:
    parts = [body]
    for code, value in options:
        parts += [_OPTION.pack(code, len(value)), value, bytes(-len(value) % 4)]
    if options:
        parts.append(_OPTION.pack(_END, 0))
    inside = b"".join(parts)
    length = _BLOCK.size + len(inside) + _LENGTH.size
    return _BLOCK.pack(kind, length) + inside + _LENGTH.pack(length)
