"""An interface's carrier and facts, read on descriptors that stay open.

Reading the carrier costs about a microsecond and shows a pulled cable at once, where netlink's event is rate-limited to
about one a second by the kernel; so adapters poll this. After one question to the kernel the carrier is told by
counting its changes in sysfs, since the question itself waits for a lock of the whole machine (see emul.port.sysfs);
where there is no sysfs for the interface, the kernel is asked each time. The socket keeps the network namespace that it
was made in.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct

from emul.port.errors import PortDown, PortMissing
from emul.port.sysfs import Attributes, open_attributes

# linux/sockios.h, linux/ethtool.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_SIOCGIFINDEX = 0x8933
_SIOCETHTOOL = 0x8946
_ETHTOOL_GLINK = 0x0A
_ETHTOOL_GCHANNELS = 0x3C
_IFF_UP = 1

INTERFACE_NAME_MAX = 15
"""Characters in an interface's name (IFNAMSIZ without its terminator)."""

_NAME_AND_POINTER = struct.Struct("16sQ16x")
_REQUEST_BYTES = 40
_QUIET_ATTEMPTS_MAX = 100
"""Attempts to ask for the carrier while it does not change; after that the kernel is asked each time."""
_VALUE = struct.Struct("=16si")
_CHANNELS = struct.Struct("=9I")


class Interface:
    """One interface of the network namespace that the caller is in. Raises PortMissing where there is none."""

    __slots__ = (
        "_attributes", "_had_carrier", "_link_request", "_link_value", "_socket", "index", "mac", "mtu", "name",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        if not 0 < len(name.encode()) <= INTERFACE_NAME_MAX:
            raise PortMissing(name, f"interface names have 1 to {INTERFACE_NAME_MAX} characters, got {len(name)}")
        self.name = name
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self.index = self._value(_SIOCGIFINDEX)
            self.mtu = self._value(_SIOCGIFMTU)
            self.mac = self._ask(_SIOCGIFHWADDR)[18:24]
        except OSError as error:
            self._socket.close()
            if error.errno != errno.ENODEV:
                raise
            raise PortMissing(name, "no such interface in this network namespace") from None
        # struct ethtool_value: the command, then its answer
        self._link_value = (ctypes.c_uint32 * 2)(_ETHTOOL_GLINK, 0)
        self._link_request = _NAME_AND_POINTER.pack(name.encode(), ctypes.addressof(self._link_value))
        self._attributes = open_attributes(name, self.index, self.mac)
        self._had_carrier = False
        """After an even number of changes."""
        if self._attributes is not None and not self._count_from_here(self._attributes):
            self._attributes.close()
            self._attributes = None

    def carrier(self) -> bool:
        """Whether the interface is up and its cable has a live other end, now; False where the interface has gone."""
        attributes = self._attributes
        if attributes is None:
            return self.ask_carrier()
        try:
            return attributes.is_up() and self._had_carrier != bool(attributes.carrier_changes() & 1)
        except OSError:
            return False

    def _count_from_here(self, attributes: Attributes) -> bool:
        """Notes the carrier beside the number of changes that it belongs to; False where it does not keep still, or
        can't be told because the interface is down.
        """
        try:
            for _ in range(_QUIET_ATTEMPTS_MAX):
                changes = attributes.carrier_changes()
                carrier = self.ask_carrier()
                if attributes.is_up() and attributes.carrier_changes() == changes:
                    self._had_carrier = carrier != bool(changes & 1)
                    return True
        except OSError:
            pass
        return False

    def ask_carrier(self) -> bool:
        """As `carrier`, by asking the kernel, which may take milliseconds on a busy machine."""
        try:
            fcntl.ioctl(self._socket, _SIOCETHTOOL, self._link_request)
        except OSError:
            return False
        return self._link_value[1] != 0

    def is_up(self) -> bool:
        """Whether the interface is administratively up; False where it has gone."""
        try:
            flags: int = struct.unpack_from("=H", self._ask(_SIOCGIFFLAGS), 16)[0]
        except OSError:
            return False
        return flags & _IFF_UP != 0

    def require_up(self) -> None:
        """Raises PortDown unless the interface is administratively up."""
        if not self.is_up():
            raise PortDown(self.name, "the interface is down, it has to be set up first")

    def receive_queues(self) -> int:
        """How many receive queues the driver uses; 1 where it does not tell."""
        channels = ctypes.create_string_buffer(_CHANNELS.pack(_ETHTOOL_GCHANNELS, *[0] * 8), _CHANNELS.size)
        request = _NAME_AND_POINTER.pack(self.name.encode(), ctypes.addressof(channels))
        try:
            fcntl.ioctl(self._socket, _SIOCETHTOOL, request)
        except OSError:
            return 1
        # command, four maxima (receive, transmit, other, combined), then the four in use
        in_use = _CHANNELS.unpack(channels.raw)[5:]
        return max(1, int(in_use[0]) + int(in_use[3]))

    def close(self) -> None:
        """Closes the descriptors; the interface stays as it is."""
        self._socket.close()
        if self._attributes is not None:
            self._attributes.close()
            self._attributes = None

    def _ask(self, request: int) -> bytes:
        return fcntl.ioctl(self._socket, request, self.name.encode().ljust(_REQUEST_BYTES, b"\0"))

    def _value(self, request: int) -> int:
        value: int = _VALUE.unpack_from(self._ask(request))[1]
        return value
