"""A port over AF_XDP: frames move through four rings shared with the kernel, past its network stack.

One memory (UMEM) is cut into chunks: the first `receive_frames` travel fill ring -> kernel -> receive ring -> us ->
fill ring, the others free list -> transmit ring -> kernel -> completion ring -> free list. An XDP program, attached by
a link that goes away with the process, redirects the port's frames (`filters`) to the socket and leaves the rest to the
kernel.

Copy mode, one queue. A frame fits one chunk, unless the interface's MTU is above SINGLE_BUFFER_MTU_MAX: then it may lie
in several, each with a place of its own in the ring and all but the last marked as to be continued (Linux 6.6), and the
program is one that can do with packets in pieces.

Rings of 32-bit indices that only grow; each index is written by one side. Python has no memory barriers: on x86-64 the
hardware orders these loads and stores as the rings need it, elsewhere the system call before each sleep and after each
send is what we have. Numbers are those of linux/if_xdp.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import socket
import struct
import time
from collections.abc import Sequence

from emul.port import FRAMES_PER_TURN_MAX, bpf, filters, groups
from emul.port.carrier import Interface
from emul.port.errors import PortBusy, PortError, PortUnsupported
from emul.port.filters import Addresses
from emul.port.lease import Lease

_AF_XDP = 44
_SOL_XDP = 283
_XDP_MMAP_OFFSETS, _XDP_RX_RING, _XDP_TX_RING, _XDP_UMEM_REG = 1, 2, 3, 4
_XDP_UMEM_FILL_RING, _XDP_UMEM_COMPLETION_RING, _XDP_STATISTICS = 5, 6, 7
_PGOFF_RX, _PGOFF_TX, _PGOFF_FILL, _PGOFF_COMPLETION = 0, 0x8000_0000, 0x1_0000_0000, 0x1_8000_0000
_XDP_COPY, _XDP_USE_NEED_WAKEUP, _XDP_USE_SG = 1 << 1, 1 << 3, 1 << 4
_CONTINUED = 1 << 32
"""XDP_PKT_CONTD, in the descriptor's word that has the length in its low half."""
_LENGTH = 0xFFFF_FFFF
_DONT_WAIT = int(socket.MSG_DONTWAIT)

_UMEM_REG = struct.Struct("=QQIIII")  # address, bytes, chunk bytes, headroom, flags, padding
_SOCKADDR_XDP = struct.Struct("=HHIII")  # family, flags, interface index, queue, shared umem descriptor
_STATISTICS = struct.Struct("=6Q")
_OFFSETS = struct.Struct("=16Q")  # for each ring: producer, consumer, entries, flags

CHUNK_BYTES = 4096
_KERNEL_HEADROOM = 256
ETHERNET_BYTES = 14
FRAME_BYTES_MAX = CHUNK_BYTES - _KERNEL_HEADROOM
"""In one chunk, as the kernel fills it."""
SINGLE_BUFFER_MTU_MAX = 3498
"""Largest MTU that native XDP on a veth takes in one buffer."""
MTU_MAX = 9216
"""Frames of 9,230 bytes: three chunks. Loopback and the like have more, and no use for it."""
RECEIVE_FRAMES = 512
"""Frames that may wait for us; more are dropped by the kernel and counted."""
TRANSMIT_FRAMES = 128
"""Twice what an adapter hands over at a time. Both memories are pinned: half a megabyte for each 128 frames."""
_UNREAPED_MAX = 16
"""Chunks that the kernel may have done with before they are looked for: few, so that those in use stay in the cache."""
_BIND_ATTEMPTS_MAX = 1000
_BIND_PAUSE_S = 0.002
"""The kernel frees a closed socket's queue from a work queue: a port that was just closed leaves it a little later, and
on a machine with too much to do more than half a second later.
"""
_KICKS_MAX = 2 * TRANSMIT_FRAMES // 32 + 2
"""System calls for one `send`: the kernel transmits up to 32 frames a call."""

_libc = ctypes.CDLL(None, use_errno=True)
_Offsets = tuple[int, int, int, int]


class _Ring:
    """A ring's mapping: `words[producer]` and `words[consumer]` are its indices."""

    __slots__ = ("_mapping", "consumer", "entries", "producer", "words")

    def __init__(self, fd: int, page_offset: int, offsets: _Offsets, size: int, words_per_entry: int) -> None:
        start, end = offsets[2], offsets[2] + 8 * words_per_entry * size
        self._mapping = mmap.mmap(fd, end, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=page_offset)
        view = memoryview(self._mapping)
        self.words = view[: start & ~3].cast("I")
        self.entries = view[start:end].cast("Q")
        self.producer, self.consumer = offsets[0] // 4, offsets[1] // 4

    def close(self) -> None:
        self.words.release()
        self.entries.release()
        self._mapping.close()  # as long as it is there, the kernel keeps the socket and its queue


class XdpPort:
    """An interface driven over AF_XDP. See `emul.port.Port` for what the methods promise.

    `addresses` are the port's, IPv4 and IPv6: only their frames are taken (None takes all, see `filters`). The memory
    is CHUNK_BYTES x (receive_frames + transmit_frames), both powers of two, pinned. Raises PortMissing, PortDown,
    PortBusy, PortUnsupported; afterwards nothing raises for the network's sake.
    """

    _fd: int
    _received: int
    _filled: int
    _placed: int
    _completed: int
    _rx_frames: int
    _tx_frames: int
    _tx_dropped: int
    _continuations: int
    """Places on the transmit ring that the kernel has not yet looked at and that are not a frame's last."""
    _groups: socket.socket | None

    def __init__(
        self, interface: str, addresses: Addresses = None, *,
        receive_frames: int = RECEIVE_FRAMES, transmit_frames: int = TRANSMIT_FRAMES,
    ) -> None:  # fmt: skip
        if receive_frames & (receive_frames - 1) or transmit_frames & (transmit_frames - 1):
            raise ValueError(f"ring sizes are powers of two, got {receive_frames} and {transmit_frames}")
        self._interface = Interface(interface)
        self._lease: Lease | None = None
        self._groups = None
        self._rings: list[_Ring] = []
        self._closers: list[int] = []
        self.fallback_reason: str | None = None
        try:
            self._check(interface)
            self._lease = Lease(self._interface)
            self._open(receive_frames, transmit_frames, addresses)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The AF_XDP socket."""
        return self._fd

    can_watch: bool = True

    def waiting(self) -> bool:
        """Whether the kernel has put a frame on the receive ring."""
        return self._receive_words[self._receive_producer] != self._received

    def receive(self, frames_max: int = FRAMES_PER_TURN_MAX) -> list[bytes]:
        """Takes waiting frames from the receive ring and gives their chunks back to the kernel."""
        words, taken = self._receive_words, self._received
        count = (words[self._receive_producer] - taken) & 0xFFFF_FFFF
        if not count:
            return []
        waiting = count
        if count > frames_max:
            count = frames_max
        umem, entries, mask = self._umem, self._receive_entries, self._receive_mask
        chunks, filled = self._fill_entries, self._filled
        frames = []
        for index in range(count):
            place = ((taken + index) & mask) * 2
            start, length = entries[place], entries[place + 1]
            if length >= _CONTINUED:
                if not index:
                    return self._receive_scattered(waiting, frames_max)
                count = index  # it is taken next time
                break
            frames.append(umem[start : start + length])
            chunks[(filled + index) & mask] = start
        self._received = words[self._receive_consumer] = (taken + count) & 0xFFFF_FFFF
        # In copy mode the kernel looks at the fill ring with each frame and never asks to be woken for it.
        self._filled = self._fill_words[self._fill_producer] = (filled + count) & 0xFFFF_FFFF
        self._rx_frames += count
        return frames

    def _receive_scattered(self, count: int, frames_max: int) -> list[bytes]:
        """The same where a frame may lie in several chunks; one whose end is not there yet waits."""
        taken, filled = self._received, self._filled
        umem, entries, mask = self._umem, self._receive_entries, self._receive_mask
        frames: list[bytes] = []
        pieces: list[bytes] = []
        whole = 0
        for index in range(count):
            if len(frames) == frames_max:
                break
            place = ((taken + index) & mask) * 2
            start, described = entries[place], entries[place + 1]
            self._fill_entries[(filled + index) & mask] = start
            pieces.append(umem[start : start + (described & _LENGTH)])
            if not described & _CONTINUED:
                frames.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                pieces.clear()
                whole = index + 1
        self._received = self._receive_words[self._receive_consumer] = (taken + whole) & 0xFFFF_FFFF
        self._filled = self._fill_words[self._fill_producer] = (filled + whole) & 0xFFFF_FFFF
        self._rx_frames += len(frames)
        return frames

    def send(self, frames: Sequence[bytes]) -> int:
        """Puts frames on the transmit ring and has the kernel send them before it returns."""
        free, umem = self._free, self._umem
        if len(free) < self._free_low:
            self._reap()
        entries, mask, frame_max = self._transmit_entries, self._transmit_mask, self._frame_bytes_max
        placed = self._placed
        taken = 0
        for frame in frames:
            length = len(frame)
            if length > frame_max or length < ETHERNET_BYTES:
                self._tx_dropped += 1
                taken += 1
                continue
            if not free or length > CHUNK_BYTES:
                has_room = self._make_room(length, placed)
                placed = self._placed
                if not has_room:
                    break
                if length > CHUNK_BYTES:
                    placed = self._place_scattered(frame, placed)
                    taken += 1
                    continue
            start = free.pop()
            umem[start : start + length] = frame
            place = (placed & mask) * 2
            entries[place] = start
            entries[place + 1] = length
            placed = (placed + 1) & 0xFFFF_FFFF
            taken += 1
        self._transmit(placed)
        return taken

    def _make_room(self, length: int, placed: int) -> bool:
        """Whether there are chunks for so many bytes, after sending what stands before `placed` where need be. The next
        place is `_placed` afterwards: an earlier one than `placed` where the interface is down.
        """
        self._placed = placed
        if len(self._free) * CHUNK_BYTES < length:
            self._transmit(placed)
            self._reap()
        return len(self._free) * CHUNK_BYTES >= length

    def _place_scattered(self, frame: bytes, placed: int) -> int:
        """Puts a frame that needs several chunks on the ring from `placed` on; gives the place after it."""
        entries, umem = self._transmit_entries, self._umem
        for offset in range(0, len(frame), CHUNK_BYTES):
            piece = frame[offset : offset + CHUNK_BYTES]
            start = self._free.pop()
            umem[start : start + len(piece)] = piece
            place = (placed & self._transmit_mask) * 2
            last = offset + CHUNK_BYTES >= len(frame)
            entries[place] = start
            entries[place + 1] = len(piece) if last else len(piece) | _CONTINUED
            placed = (placed + 1) & 0xFFFF_FFFF
            self._continuations += not last
        return placed

    def carrier(self) -> bool:
        """Whether the cable is alive, read now."""
        return self._interface.carrier()

    def counters(self) -> dict[str, int]:
        """Frames moved, and what the kernel counted: "rx_dropped" are all frames lost for our slowness or as too long
        for a chunk, "rx_ring_full" and "rx_fill_ring_empty" tell why; "tx_dropped" those refused without carrier or
        too long.
        """
        counted = {"rx_frames": self._rx_frames, "tx_frames": self._tx_frames, "tx_dropped": self._tx_dropped}
        raw = self._socket.getsockopt(_SOL_XDP, _XDP_STATISTICS, _STATISTICS.size)
        names = ("rx_dropped", "rx_invalid", "tx_invalid", "rx_ring_full", "rx_fill_ring_empty", "tx_ring_empty")
        return counted | dict(zip(names, _STATISTICS.unpack(raw), strict=True))

    def close(self) -> None:
        """Detaches the program, then closes the socket; what waited is lost. A second call does nothing."""
        for fd in reversed(self._closers):
            os.close(fd)
        self._closers = []
        for ring in self._rings:
            ring.close()
        self._rings = []
        opened: socket.socket | None = getattr(self, "_socket", None)
        if opened is not None:
            opened.close()
        if self._groups is not None:
            self._groups.close()
        if self._lease is not None:
            self._lease.release()
        self._interface.close()

    def _check(self, interface: str) -> None:
        self.mac, self.mtu = self._interface.mac, self._interface.mtu
        self._interface.require_up()
        self._scattered = self.mtu > SINGLE_BUFFER_MTU_MAX
        if self.mtu > MTU_MAX:
            raise PortUnsupported(interface, f"MTU {self.mtu} is too large for AF_XDP here, at most {MTU_MAX}")
        queues = self._interface.receive_queues()
        if queues != 1:
            raise PortUnsupported(interface, f"{queues} receive queues, AF_XDP is driven here on interfaces with one")

    def _open(self, receive_frames: int, transmit_frames: int, addresses: Addresses) -> None:
        name = self._interface.name
        try:
            self._make_socket(receive_frames, transmit_frames)
            self._fd, self._kick = self._socket.fileno(), self._socket.send
            self._map_rings(receive_frames, transmit_frames)
            self._start_counting(receive_frames, transmit_frames)
            self._bind()
            if groups.groups_of(addresses):
                self._groups = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
                groups.join(self._groups, self._interface.index, addresses)
            self.wire = self._attach(addresses)
        except PortError:
            raise
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise PortBusy(name, f"another program holds the interface ({error})") from error
            raise PortUnsupported(name, f"AF_XDP is not to be had: {error}") from error

    def _make_socket(self, receive_frames: int, transmit_frames: int) -> None:
        _raise_memory_lock()
        self._socket = socket.socket(_AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        length = (receive_frames + transmit_frames) * CHUNK_BYTES
        self._umem = mmap.mmap(-1, length)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._umem))
        option = self._socket.setsockopt
        option(_SOL_XDP, _XDP_UMEM_REG, _UMEM_REG.pack(address, length, CHUNK_BYTES, 0, 0, 0))
        option(_SOL_XDP, _XDP_UMEM_FILL_RING, receive_frames)
        option(_SOL_XDP, _XDP_UMEM_COMPLETION_RING, transmit_frames)
        option(_SOL_XDP, _XDP_RX_RING, receive_frames)
        option(_SOL_XDP, _XDP_TX_RING, transmit_frames)

    def _map_rings(self, receive_frames: int, transmit_frames: int) -> None:
        numbers = _OFFSETS.unpack(self._socket.getsockopt(_SOL_XDP, _XDP_MMAP_OFFSETS, _OFFSETS.size))
        offsets = [numbers[start : start + 4] for start in (0, 4, 8, 12)]
        receive = _Ring(self._fd, _PGOFF_RX, offsets[0], receive_frames, 2)
        self._rings.append(receive)
        transmit = _Ring(self._fd, _PGOFF_TX, offsets[1], transmit_frames, 2)
        self._rings.append(transmit)
        fill = _Ring(self._fd, _PGOFF_FILL, offsets[2], receive_frames, 1)
        self._rings.append(fill)
        self._completion_ring = _Ring(self._fd, _PGOFF_COMPLETION, offsets[3], transmit_frames, 1)
        self._rings.append(self._completion_ring)
        # What each frame needs is found without a detour.
        self._receive_words, self._receive_entries = receive.words, receive.entries
        self._receive_producer, self._receive_consumer = receive.producer, receive.consumer
        self._transmit_words, self._transmit_entries = transmit.words, transmit.entries
        self._transmit_producer, self._transmit_consumer = transmit.producer, transmit.consumer
        self._fill_words, self._fill_entries, self._fill_producer = fill.words, fill.entries, fill.producer

    def _start_counting(self, receive_frames: int, transmit_frames: int) -> None:
        self._receive_mask, self._transmit_mask = receive_frames - 1, transmit_frames - 1
        self._frame_bytes_max = self.mtu + ETHERNET_BYTES
        self._continuations = 0
        chunks = [place * CHUNK_BYTES for place in range(receive_frames + transmit_frames)]
        self._free = chunks[receive_frames:]
        self._free_low = transmit_frames - _UNREAPED_MAX
        self._received = self._placed = self._completed = 0
        self._rx_frames = self._tx_frames = self._tx_dropped = 0
        for place, start in enumerate(chunks[:receive_frames]):
            self._fill_entries[place] = start
        self._filled = self._fill_words[self._fill_producer] = receive_frames

    def _bind(self) -> None:
        flags = _XDP_COPY | _XDP_USE_NEED_WAKEUP | (_XDP_USE_SG if self._scattered else 0)
        address = _SOCKADDR_XDP.pack(_AF_XDP, flags, self._interface.index, 0, 0)
        for attempt in range(_BIND_ATTEMPTS_MAX):
            if _libc.bind(self._fd, address, len(address)) == 0:
                return
            code = ctypes.get_errno()
            if code == errno.EINVAL and self._scattered:
                raise PortUnsupported(
                    self._interface.name,
                    f"MTU {self.mtu} needs frames in several buffers, which this kernel's AF_XDP doesn't offer "
                    f"(Linux 6.6 does); up to MTU {SINGLE_BUFFER_MTU_MAX} one is enough",
                )
            if code != errno.EBUSY or attempt == _BIND_ATTEMPTS_MAX - 1:
                raise OSError(code, f"bind to queue 0: {os.strerror(code)}")
            time.sleep(_BIND_PAUSE_S)

    def _attach(self, addresses: Addresses) -> str:
        """Loads and attaches the program; gives the wire's name. What it opened is closed by `close`."""
        queues = bpf.create_xsk_map(1)
        self._closers.append(queues)
        bpf.update_map(queues, 0, self._fd)
        program = bpf.load_program(filters.xdp_program(queues, addresses), "ccm_port", in_pieces=self._scattered)
        self._closers.append(program)
        try:
            link, wire = bpf.attach(program, self._interface.index, bpf.XdpMode.NATIVE), "xdp-native"
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise
            link, wire = bpf.attach(program, self._interface.index, bpf.XdpMode.GENERIC), "xdp-generic"
            self.fallback_reason = f"no native XDP on {self._interface.name}: {error}"
        self._closers.append(link)
        return wire

    def _transmit(self, placed: int) -> None:
        """Shows the kernel the transmit ring up to `placed`, and has it send what is there.

        Bounded: what the kernel still refuses after _KICKS_MAX calls stays on the ring for the next call. In copy mode
        nothing is sent without a call, so need-wakeup is not looked at: it is always set.
        """
        self._placed = placed
        words, consumer = self._transmit_words, self._transmit_consumer
        before = words[consumer]
        if before == placed:
            return
        words[self._transmit_producer] = placed
        for _ in range(_KICKS_MAX):
            try:
                self._kick(b"", _DONT_WAIT)
            except OSError as error:
                if error.errno in (errno.ENETDOWN, errno.ENXIO):
                    self._take_back(before)
                    return
                if error.errno == errno.EBUSY:
                    # The frame before the consumer was refused by the device: no carrier, or the other end is full.
                    self._tx_dropped += 1
                    self._tx_frames -= 1
                self._reap()  # it may want room on the completion ring
            if words[consumer] == placed:
                break
        self._tx_frames += (words[consumer] - before) & 0xFFFF_FFFF
        if self._continuations and words[consumer] == placed:
            self._tx_frames -= self._continuations
            self._continuations = 0

    def _take_back(self, before: int) -> None:
        """The interface is down and the kernel looked at nothing: the frames are lost, rather than sent much later."""
        words, entries = self._transmit_words, self._transmit_entries
        if words[self._transmit_consumer] != before:
            return
        for index in range((self._placed - before) & 0xFFFF_FFFF):
            place = ((before + index) & self._transmit_mask) * 2
            self._free.append(entries[place])
            self._tx_dropped += not entries[place + 1] & _CONTINUED
        self._continuations = 0
        self._placed = words[self._transmit_producer] = before

    def _reap(self) -> None:
        """Takes finished transmit chunks from the completion ring."""
        ring = self._completion_ring
        done = self._completed
        count = (ring.words[ring.producer] - done) & 0xFFFF_FFFF
        if not count:
            return
        mask, entries, free = self._transmit_mask, ring.entries, self._free
        for index in range(count):
            free.append(entries[(done + index) & mask])
        self._completed = done = (done + count) & 0xFFFF_FFFF
        ring.words[ring.consumer] = done


def _raise_memory_lock() -> None:
    """UMEM is pinned: lifts the limit on locked memory where we may; where not, registration says ENOBUFS."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
