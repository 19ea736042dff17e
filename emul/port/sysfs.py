"""An interface's attributes in sysfs, kept open: read without waiting for anybody.

Asking the kernel for the carrier (ETHTOOL_GLINK, sysfs's own `carrier`, netlink) takes the lock that all changes of
network configuration on the machine share. Whoever makes or removes interfaces or namespaces holds it for milliseconds,
measured up to 46 ms, and meanwhile an adapter that polls its carrier stands still. `carrier_changes` and `flags` need
no lock: 0.7 us, 16 us at the worst on the same machine at the same time.

A sysfs shows the network namespace in which it was mounted. Where /sys is another one's, a mount of our own is made,
which has no place in the file system and lasts as long as the descriptors.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_IFF_UP = 1
# The same numbers on all architectures; include/uapi/linux/mount.h
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CONFIG_CREATE = 1, 6
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXECUTION = 1, 2, 4, 8
_ATTRIBUTE_BYTES_MAX = 32
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Attributes:
    """`carrier_changes` and `flags` of one interface."""

    __slots__ = ("_changes", "_flags")

    def __init__(self, changes: int, flags: int) -> None:
        self._changes, self._flags = changes, flags

    def carrier_changes(self) -> int:
        """How often the carrier came or went since the interface was made. Raises OSError where that has gone."""
        return int(os.pread(self._changes, _ATTRIBUTE_BYTES_MAX, 0))

    def is_up(self) -> bool:
        """Whether the interface is administratively up. Raises OSError where it has gone."""
        return int(os.pread(self._flags, _ATTRIBUTE_BYTES_MAX, 0), 16) & _IFF_UP != 0

    def close(self) -> None:
        """Closes the descriptors."""
        os.close(self._changes)
        os.close(self._flags)


def open_attributes(name: str, index: int, mac: bytes) -> Attributes | None:
    """Those of the interface of the calling thread's network namespace, told by `index` and `mac` from another one of
    the same name; None where no sysfs shows it.
    """
    found = _open_below("/sys", None, name, index, mac)
    if found is not None:
        return found
    try:
        mounted = _mount()
    except OSError:
        return None  # not allowed: an ordinary user, or a container's masks over /sys
    try:
        return _open_below(".", mounted, name, index, mac)
    finally:
        os.close(mounted)


def _open_below(root: str, directory: int | None, name: str, index: int, mac: bytes) -> Attributes | None:
    opened: list[int] = []
    try:
        place = os.open(f"{root}/class/net/{name}", os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
        try:
            for attribute in ("ifindex", "address", "carrier_changes", "flags"):
                opened.append(os.open(attribute, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place))
        finally:
            os.close(place)
        facts = [os.read(fd, _ATTRIBUTE_BYTES_MAX).strip() for fd in opened[:2]]
        if facts == [str(index).encode(), mac.hex(":").encode()]:
            flags, changes = opened.pop(), opened.pop()  # these two stay open
            return Attributes(changes, flags)
    except OSError:
        pass  # no such interface there
    finally:
        for fd in opened:
            with suppress(OSError):
                os.close(fd)
    return None


def _mount() -> int:
    """The root of a sysfs of the calling thread's network namespace that is attached nowhere. Raises OSError."""
    context = _checked(_libc.syscall(_FSOPEN, b"sysfs", _CLOEXEC))
    try:
        _checked(_libc.syscall(_FSCONFIG, context, _CONFIG_CREATE, None, None, 0))
        return _checked(_libc.syscall(_FSMOUNT, context, _CLOEXEC, _READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_EXECUTION))
    finally:
        os.close(context)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
