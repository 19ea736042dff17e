"""Namespaces by system call: what makes a lab private, and what lets it run without root.

Knows the kernel's namespaces and their few settings; nothing of labs. unshare and setns act on the calling thread, so
the processes that use this have one thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from lab.errors import MachineError

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_NETWORK_SETTINGS = (
    ("net/ipv6/conf/default/disable_ipv6", b"1"),
    ("net/ipv4/ip_forward", b"0"),
)
"""Written to each new network namespace before it has interfaces. IPv4 settings are otherwise inherited from the first
namespace of the machine, where a container engine has usually switched forwarding on."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Moves the calling thread into new namespaces (a new pid namespace: its next child). Raises OSError."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    """Moves the calling thread into the namespace behind `descriptor`. Raises OSError."""
    _check(_libc.setns(descriptor, kind), f"setns({kind:#x})")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mounts `source` on `target`, as the system call does. Raises OSError."""
    name = None if kind is None else kind.encode()
    _check(_libc.mount(source.encode(), target.encode(), name, flags, None), f"mount {kind or 'flags'} on {target}")


def die_with_parent(signal_number: int) -> None:
    """The kernel sends `signal_number` to this process when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def name_process(name: str) -> None:
    """What `ps -o comm` and top call this process; cut to 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def may_make_namespaces() -> bool:
    """Whether this process has CAP_SYS_ADMIN and CAP_NET_ADMIN: root in a container often has neither."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            needed = 1 << _CAP_NET_ADMIN | 1 << _CAP_SYS_ADMIN
            return int(line.split()[1], 16) & needed == needed
    return False


def enter_user_namespace(*, mapped: bool = True) -> None:
    """Moves this process into a new user namespace in which it is root: only its own user and group are mapped.

    Not `mapped` it is nobody there, with all privileges all the same. Raises MachineError where the machine does not
    let users make such namespaces.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(CLONE_NEWUSER)
        if not mapped:
            return
        # A group map of one's own is only allowed once setgroups is denied for good.
        _write("/proc/self/setgroups", b"deny")
        _write("/proc/self/uid_map", f"0 {uid} 1\n".encode())
        _write("/proc/self/gid_map", f"0 {gid} 1\n".encode())
    except OSError as error:
        raise MachineError(
            f"namespaces: this process is not root, and a user namespace was refused ({error.strerror})",
            "run as root, or allow user namespaces: sysctl user.max_user_namespaces above 0; on some distributions "
            "also kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0",
        ) from error


def make_private(pid_namespace: bool = True) -> None:
    """New mount and network namespaces, and a new pid namespace for the next child. Raises MachineError."""
    try:
        unshare(CLONE_NEWNS | CLONE_NEWNET | (CLONE_NEWPID if pid_namespace else 0))
        make_mounts_private()
    except OSError as error:
        raise MachineError(
            f"namespaces: the kernel refused new ones ({error})",
            "run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN; in a container, give it --privileged",
        ) from error


def make_mounts_private() -> None:
    """What is mounted from now on in this mount namespace stays in it. Raises OSError."""
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def mount_proc() -> bool:
    """Mounts the pid namespace's own /proc; False where a container's masks forbid it (`ps` shows the outer one)."""
    try:
        mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError:
        return False
    return True


def mount_sys() -> bool:
    """Mounts a /sys that shows the current network namespace's interfaces; False where that is forbidden."""
    try:
        mount("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError:
        return False
    return True


def open_namespace(kind: str, process: int | str = "self") -> int:
    """A descriptor of a process's namespace `kind` ("net", "mnt", "pid", "user"): keeps it alive. Raises OSError."""
    return os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def new_network_namespace() -> int:
    """Makes a network namespace, prepared as `prepare_network` does, enters it, and gives its descriptor."""
    unshare(CLONE_NEWNET)
    prepare_network()
    return open_namespace("net")


def prepare_network() -> None:
    """IPv6 and forwarding off, loopback up, in the network namespace of the calling thread.

    An interface that appears later sends nothing by itself then: no router solicitation, no duplicate address
    detection.
    """
    for name, value in _NETWORK_SETTINGS:
        with suppress(FileNotFoundError):  # a kernel without IPv6
            _write(f"/proc/sys/{name}", value)
    bring_up("lo")


def bring_up(interface: str) -> None:
    """Sets one interface of the calling thread's network namespace up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as request:
        fcntl.ioctl(request, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), _IFF_UP))


def _write(path: str, value: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value)
    except OSError as error:
        if error.errno != errno.EROFS:  # a container's read-only /proc/sys: its own settings have to do
            raise
    finally:
        os.close(descriptor)
