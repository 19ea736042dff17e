"""Captures as files: pcap and pcapng, bytes in, frames out.

Formats: IETF draft-ietf-opsawg-pcap (magic, time in us or ns, either byte order) and draft-ietf-opsawg-pcapng (section
header, interface description, enhanced and simple packet, interface statistics). Ethernet only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

FRAMES_MAX = 4_000_000
"""Of one file."""
APPLICATION = b"ccm-lab"
"""Who writes its name into a capture of ours, in which each frame stands as it left its sender."""
_LINK_ETHERNET = 1
_PCAP_MAGICS = {0xA1B2C3D4: 1_000, 0xA1B23C4D: 1}
_SECTION, _INTERFACE, _SIMPLE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 3, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_OPTION_APPLICATION, _OPTION_RESOLUTION, _OPTION_DROPPED, _OPTION_COMMENT = 4, 9, 5, 1
_RESOLUTION_US = 6


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """One frame of a capture, `at` in ns."""

    at: int
    frame: bytes
    comments: tuple[str, ...] = ()


@dataclass(slots=True)
class Capture:
    """What a file holds."""

    frames: list[CapturedFrame] = field(default_factory=list)
    lost: int = 0
    """Frames that the capture says it missed."""
    at_senders: bool = False
    """Each frame stands in it as it left its sender: a capture of this lab's cables."""


def read_capture(data: bytes) -> Capture:
    """The frames of a pcap or pcapng file. Raises ValueError saying what was expected and found."""
    magic = data[:4]
    if int.from_bytes(magic, "big") == _SECTION:
        return _read_pcapng(data)
    for order in ("<", ">"):
        if len(data) >= 24 and struct.unpack(f"{order}I", magic)[0] in _PCAP_MAGICS:
            return _read_pcap(data, order)
    raise ValueError(f"expected a pcap or pcapng file, found {magic.hex() or 'nothing'} at its beginning")


def _read_pcap(data: bytes, order: str) -> Capture:
    magic, _, _, _, _, _, link = struct.unpack_from(f"{order}IHHiIII", data)
    if link & 0xFFFF != _LINK_ETHERNET:
        raise ValueError(f"expected Ethernet frames (link type 1), found link type {link & 0xFFFF}")
    unit = _PCAP_MAGICS[magic]
    record = struct.Struct(f"{order}IIII")
    capture, offset = Capture(), 24
    while offset + record.size <= len(data):
        seconds, fraction, kept, _ = record.unpack_from(data, offset)
        offset += record.size
        if offset + kept > len(data):
            break  # the writer was interrupted
        _add(capture, CapturedFrame(seconds * 1_000_000_000 + fraction * unit, data[offset : offset + kept]))
        offset += kept
    return capture


def _read_pcapng(data: bytes) -> Capture:
    capture, order, offset = Capture(), "<", 0
    units: list[int] = []
    while offset + 12 <= len(data):
        if int.from_bytes(data[offset : offset + 4], "big") == _SECTION:
            order = "<" if struct.unpack_from("<I", data, offset + 8)[0] == _BYTE_ORDER else ">"
        kind, length = struct.unpack_from(f"{order}II", data, offset)
        if length < 12 or offset + length > len(data):
            break  # the writer was interrupted
        _block(capture, units, kind, data[offset + 8 : offset + length - 4], order)
        offset += length
    return capture


def _block(capture: Capture, units: list[int], kind: int, body: bytes, order: str) -> None:
    if kind == _SECTION:
        units.clear()
        capture.at_senders = (_OPTION_APPLICATION, APPLICATION) in _options(body[16:], order)
    elif kind == _INTERFACE:
        (link,) = struct.unpack_from(f"{order}H", body)
        if link != _LINK_ETHERNET:
            raise ValueError(f"expected Ethernet frames (link type 1), found link type {link}")
        units.append(_resolution(_options(body[8:], order)))
    elif kind == _PACKET:
        number, high, low, kept, _ = struct.unpack_from(f"{order}IIIII", body)
        if number >= len(units):
            raise ValueError(f"a packet names interface {number}, the file describes {len(units)}")
        options = _options(body[20 + kept + -kept % 4 :], order)
        comments = tuple(text.decode(errors="replace") for code, text in options if code == _OPTION_COMMENT)
        at = (high << 32 | low) * 1_000_000_000 // units[number]
        _add(capture, CapturedFrame(at, body[20 : 20 + kept], comments))
    elif kind == _SIMPLE:
        (length,) = struct.unpack_from(f"{order}I", body)
        _add(capture, CapturedFrame(0, body[4 : 4 + length]))
    elif kind == _STATISTICS:
        dropped = [text for code, text in _options(body[12:], order) if code == _OPTION_DROPPED and len(text) == 8]
        capture.lost += sum(struct.unpack(f"{order}Q", text)[0] for text in dropped)


def _resolution(options: list[tuple[int, bytes]]) -> int:
    """Units of time in a second."""
    value = next((text[0] for code, text in options if code == _OPTION_RESOLUTION and text), _RESOLUTION_US)
    return int(2 ** (value & 0x7F)) if value & 0x80 else int(10**value)


def _options(data: bytes, order: str) -> list[tuple[int, bytes]]:
    found, offset = [], 0
    while offset + 4 <= len(data):
        code, length = struct.unpack_from(f"{order}HH", data, offset)
        if code == 0:
            break
        found.append((code, data[offset + 4 : offset + 4 + length]))
        offset += 4 + length + -length % 4
    return found


def _add(capture: Capture, frame: CapturedFrame) -> None:
    if len(capture.frames) >= FRAMES_MAX:
        raise ValueError(f"expected at most {FRAMES_MAX} frames: cut the file (editcap -c)")
    capture.frames.append(frame)
