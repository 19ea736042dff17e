"""What a packet's headers say up to its PSN: whom it is for, what it is, where its body lies.

All packets of one kind and length in one conversation begin with the same bytes, so that a port looks at these once.
"""

from __future__ import annotations

from typing import Final

from emul.wire.frame import ENVELOPE_BYTES, Accepted, crc32
from emul.wire.headers import (
    BTH,
    BTH_BYTES,
    ICRC_BYTES,
    P_KEY_FULL,
    P_KEY_LIMITED,
    PAD_SHIFT,
    SOLICITED_EVENT,
)

HEADING_BYTES: Final = ENVELOPE_BYTES + BTH_BYTES - 4
"""Of a frame over IPv4: everything before the BTH's last word."""
HEADINGS_MAX: Final = 4096
"""Headings that a port remembers; all are forgotten when another one comes."""
_UDP_CHECKSUM: Final = ENVELOPE_BYTES - 2


class Heading:
    """The headers of a packet that passed, the PSN left out."""

    __slots__ = ("accepted", "checksum", "end", "length", "opcode", "qpn", "solicited", "start")

    def __init__(self, accepted: Accepted, opcode: int, flags: int, qpn: int, end: int) -> None:
        self.accepted = accepted
        self.length = accepted.length
        self.opcode = opcode
        self.qpn = qpn
        self.solicited = bool(flags & SOLICITED_EVENT)
        self.start = accepted.transport + BTH_BYTES
        """Where what follows the BTH begins, and ..."""
        self.end = end
        """... where it ends, padding left out."""
        self.checksum = 0
        """The CRC-32 of such a frame as a whole, once it is remembered."""


def parse_heading(frame: bytes, accepted: Accepted) -> Heading | str:
    """The heading of a frame with a whole BTH, or the name of the counter under which it is to be dropped."""
    opcode, flags, p_key, destination, _ = BTH.unpack_from(frame, accepted.transport)
    if flags & 0x0F or p_key not in (P_KEY_FULL, P_KEY_LIMITED):
        return "rx_bad_header"
    end = accepted.length - ICRC_BYTES - (flags >> PAD_SHIFT & 3)
    if end < accepted.transport + BTH_BYTES:
        return "rx_truncated"
    return Heading(accepted, opcode, flags, destination & 0xFFFFFF, end)


class Headings:
    """Headings of good packets over IPv4, by the bytes that they were read from.

    One CRC over a whole frame then says what the ICRC says. Of two frames that begin with the same bytes and are
    equally long, the ICRC's state and that of the CRC-32 after these bytes differ by the same amount; the CRC is
    linear, so that what both become by the end differs by the same amount in both frames. Where the ICRC fits, the
    frame's CRC-32 is therefore the one that it was in the first frame, and where it doesn't it isn't.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Heading] = {}

    def find(self, frame: bytes) -> Heading | None:
        """The heading of a frame like one that was remembered, with the right ICRC; None tells nothing."""
        heading = self._known.get(frame[:HEADING_BYTES])
        if heading is None or len(frame) != heading.length:
            return None
        checksum: int = crc32(frame)
        return heading if checksum == heading.checksum else None

    def remember(self, frame: bytes, heading: Heading) -> None:
        """To be called with frames whose ICRC is right. Those with a UDP checksum are not remembered: it covers what
        the heading doesn't.
        """
        if heading.accepted.transport != ENVELOPE_BYTES or len(frame) != heading.length:
            return
        if frame[_UDP_CHECKSUM] or frame[_UDP_CHECKSUM + 1]:
            return
        if len(self._known) >= HEADINGS_MAX:
            self._known.clear()
        heading.checksum = crc32(frame)
        self._known[frame[:HEADING_BYTES]] = heading
