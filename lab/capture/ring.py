"""AF_PACKET's memory-mapped ring (TPACKET_V3): the kernel fills blocks with frames and hands over whole blocks.

A block is given as bytes in the kernel's layout (linux/if_packet.h), which `frames_of` reads. Nothing is lost while the
reader is away for as long as BLOCKS blocks last; beyond that the kernel drops and counts.
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_BYTES = 512 * 1024
BLOCKS = 16
RETIRE_MS = 50
"""A block that is not full is handed over after this time."""
_FRAME_BYTES = 2048
_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
_TPACKET_V3 = 2
_REQUEST = struct.Struct("=7I")  # block size, blocks, frame size, frames, retire time, private bytes, features
_STATISTICS = struct.Struct("=3I")  # frames, drops, times that the ring was full
_STATUS_OFFSET = 8
_STATUS = struct.Struct("=I")
_BLOCK_HEAD = struct.Struct("=IIII")  # status, frames, offset of the first, bytes used
_FRAME_HEAD = struct.Struct("=IIIIIIH")  # next, seconds, ns, captured, length, status, offset of the frame
_KERNEL, _USER = 0, 1


@dataclass(frozen=True, slots=True)
class Captured:
    """A frame as it entered a cable: when (ns since 1970), its first bytes (mostly all), its length on the wire."""

    at: int
    frame: bytes
    length: int


class Ring:
    """All frames that arrive at one interface of the caller's network namespace. Raises OSError."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            frames = BLOCK_BYTES * BLOCKS // _FRAME_BYTES
            request = _REQUEST.pack(BLOCK_BYTES, BLOCKS, _FRAME_BYTES, frames, RETIRE_MS, 0, 0)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            self._map = mmap.mmap(self._socket.fileno(), BLOCK_BYTES * BLOCKS)
            self._socket.bind((interface, _ETH_P_ALL))
        except OSError:
            self._socket.close()
            raise
        self._next = 0

    def fileno(self) -> int:
        """Readable when a block waits."""
        return self._socket.fileno()

    def take(self) -> bytes | None:
        """The next whole block, which the kernel then gets back; None while it fills."""
        start = self._next * BLOCK_BYTES
        status, _, _, used = _BLOCK_HEAD.unpack_from(self._map, start + _STATUS_OFFSET)
        if not status & _USER:
            return None
        block = self._map[start : start + used]
        _STATUS.pack_into(self._map, start + _STATUS_OFFSET, _KERNEL)
        self._next = (self._next + 1) % BLOCKS
        return block

    def drops(self) -> int:
        """Frames that the kernel dropped since the last call, because the ring was full."""
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        return int(_STATISTICS.unpack(raw)[1])

    def close(self) -> None:
        """Closes; what waits is lost."""
        self._map.close()
        self._socket.close()


def frames_in(block: bytes) -> int:
    """How many frames a block holds."""
    return int(_BLOCK_HEAD.unpack_from(block, _STATUS_OFFSET)[1])


def frames_of(block: bytes) -> Iterator[Captured]:
    """The frames of a block, in the order of their arrival."""
    _, count, offset, _ = _BLOCK_HEAD.unpack_from(block, _STATUS_OFFSET)
    for _ in range(count):
        following, seconds, ns, captured, length, _, start = _FRAME_HEAD.unpack_from(block, offset)
        yield Captured(seconds * 1_000_000_000 + ns, block[offset + start : offset + start + captured], length)
        offset += following
