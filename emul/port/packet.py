"""A port over AF_PACKET: where AF_XDP is not to be had (no privilege, a large MTU, several queues).

A raw packet socket with a classic BPF filter for the port's frames (`filters`), blind to what it sends itself, sending
past the queueing discipline. The kernel's network stack sees the same frames; its namespace has no address for them.

A frame that a local peer sent with its UDP checksum still to be filled in by hardware arrives so; nobody here reads
that checksum, the ICRC covers the frame. Numbers are those of linux/if_packet.h and asm-generic/socket.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from emul.port import FRAMES_PER_TURN_MAX, filters, groups
from emul.port.bpf import attach_filter
from emul.port.carrier import Interface
from emul.port.errors import PortError, PortUnsupported
from emul.port.filters import Addresses
from emul.port.lease import Lease

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 6, 20, 23
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_STATISTICS = struct.Struct("=II")  # packets, drops

ETHERNET_BYTES = 14
RECEIVE_BUFFER_BYTES = 8 << 20
"""What the kernel may keep for us; where it may not be forced, net.core.rmem_max limits it."""
SEND_BUFFER_BYTES = 4 << 20


class PacketPort:
    """An interface driven over AF_PACKET. See `emul.port.Port` for what the methods promise.

    `addresses` are the port's, IPv4 and IPv6: only their frames are taken (None takes all, see `filters`). Raises
    PortMissing, PortDown, PortBusy, PortUnsupported; afterwards nothing raises for the network's sake.
    """

    wire = "packet"

    def __init__(self, interface: str, addresses: Addresses = None) -> None:
        self._interface = Interface(interface)
        self._lease: Lease | None = None
        self._socket: socket.socket | None = None
        self.fallback_reason: str | None = None
        self.mac, self.mtu = self._interface.mac, self._interface.mtu
        self._frame_bytes_max = self.mtu + ETHERNET_BYTES
        self._counters = dict.fromkeys(("rx_frames", "rx_oversized", "rx_dropped", "tx_frames", "tx_dropped"), 0)
        try:
            self._interface.require_up()
            self._lease = Lease(self._interface)
            self._socket = self._open(addresses)
        except BaseException:
            self.close()
            raise
        self._fd = self._socket.fileno()
        self._receive_one, self._send_one = self._socket.recv, self._socket.send

    can_watch: bool = False

    def waiting(self) -> bool:
        """Port; only the descriptor tells."""
        return False

    def fileno(self) -> int:
        """The packet socket."""
        return self._fd

    def receive(self, frames_max: int = FRAMES_PER_TURN_MAX) -> list[bytes]:
        """Takes waiting frames, one system call each, until none waits or `frames_max` are taken."""
        frames: list[bytes] = []
        receive_one, limit = self._receive_one, self._frame_bytes_max
        try:
            for _ in range(frames_max):
                frame = receive_one(limit + 1)
                if len(frame) > limit:
                    self._counters["rx_oversized"] += 1
                else:
                    frames.append(frame)
        except OSError:
            pass  # nothing waits (EAGAIN), or the interface went down or away (ENETDOWN): then nothing will
        self._counters["rx_frames"] += len(frames)
        return frames

    def send(self, frames: Sequence[bytes]) -> int:
        """Sends frames, one system call each. What the interface refuses is lost and counted as on a cut cable."""
        send_one, counters = self._send_one, self._counters
        for taken, frame in enumerate(frames):
            try:
                send_one(frame)
                counters["tx_frames"] += 1
            except BlockingIOError:
                return taken
            except OSError:
                # ENOBUFS without carrier, ENETDOWN when set down, ENXIO when gone, EMSGSIZE above the MTU
                counters["tx_dropped"] += 1
        return len(frames)

    def carrier(self) -> bool:
        """Whether the cable is alive, read now."""
        return self._interface.carrier()

    def counters(self) -> dict[str, int]:
        """Frames moved; "rx_dropped" are those lost because too many waited, "rx_oversized" those above the MTU,
        "tx_dropped" those refused without carrier or too long.
        """
        if self._socket is not None:
            # The kernel's figures start again with each reading.
            raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
            self._counters["rx_dropped"] += _STATISTICS.unpack(raw)[1]
        return dict(self._counters)

    def close(self) -> None:
        """Closes the socket; what waited is lost. A second call does nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._lease is not None:
            self._lease.release()
        self._interface.close()

    def _open(self, addresses: Addresses) -> socket.socket:
        name = self._interface.name
        try:
            # Protocol 0 receives nothing until bind, so that no frame slips past the filter.
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise PortUnsupported(name, f"AF_PACKET is not to be had: {error}") from error
        try:
            attach_filter(opened, filters.classic_filter(addresses))
            opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            groups.join(opened, self._interface.index, addresses)
            enlarge_buffers(opened, RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES)
            opened.bind((name, _ETH_P_ALL))
            opened.setblocking(False)
        except OSError as error:
            opened.close()
            raise PortError(name, f"the packet socket could not be set up: {error}") from error
        return opened


def enlarge_buffers(opened: socket.socket, receive_bytes: int, send_bytes: int) -> None:
    """Gives a socket large buffers, beyond the system's limit where that is permitted."""
    for force, usual, size in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_bytes),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF, send_bytes),
    ):
        try:
            opened.setsockopt(socket.SOL_SOCKET, force, size)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            opened.setsockopt(socket.SOL_SOCKET, usual, size)
