"""Private network namespaces and veth pairs for tests: nothing has a name outside, all goes with its descriptors."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lab.fabric import namespaces, netlink

DEADLINE_S = 10.0
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_REQUEST = struct.Struct("16sH22x")
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_GROUP = 7


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Polls until the condition holds; fails the test after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {DEADLINE_S} s")
        time.sleep(0.001)


class Namespace:
    """A network namespace that nobody else can name."""

    def __init__(self) -> None:
        home = namespaces.open_namespace("net", "thread-self")
        try:
            namespaces.unshare(namespaces.CLONE_NEWNET)
            namespaces.prepare_network()
            self.fd = namespaces.open_namespace("net", "thread-self")
        finally:
            namespaces.setns(home, namespaces.CLONE_NEWNET)
            os.close(home)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in the namespace."""
        home = namespaces.open_namespace("net", "thread-self")
        namespaces.setns(self.fd, namespaces.CLONE_NEWNET)
        try:
            yield
        finally:
            namespaces.setns(home, namespaces.CLONE_NEWNET)
            os.close(home)

    def set_up(self, interface: str, up: bool) -> None:
        """Sets an interface administratively up or down."""
        with self.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as request:
            asked = fcntl.ioctl(request, _SIOCGIFFLAGS, _REQUEST.pack(interface.encode(), 0))
            flags = struct.unpack_from("=H", asked, 16)[0]
            flags = flags | _IFF_UP if up else flags & ~_IFF_UP
            fcntl.ioctl(request, _SIOCSIFFLAGS, _REQUEST.pack(interface.encode(), flags))

    def delete(self, interface: str) -> None:
        """Removes an interface, and a veth's other end with it."""
        with self.entered():
            connection = netlink.Netlink()
            connection.apply([netlink.delete_link(socket.if_nametoindex(interface))])
            connection.close()

    def raw_socket(self, interface: str) -> socket.socket:
        """A packet socket on an interface that sends any frame and receives none."""
        with self.entered():
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            # An interface that just came up has a queueing discipline that drops all, until a kernel worker changes it.
            opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            opened.bind((interface, 0))
        return opened

    def close(self) -> None:
        os.close(self.fd)


class Pair:
    """Two namespaces joined by a veth: `left` with "left0", `right` with "right0", both up."""

    LEFT_MAC, RIGHT_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"

    def __init__(self, mtu: int = 2200) -> None:
        self.left, self.right = Namespace(), Namespace()
        with self.right.entered():
            connection = netlink.Netlink()
            veth = netlink.node_veth(
                index=10, name="left0", mac=self.LEFT_MAC, mtu=mtu, namespace=self.left.fd,
                peer_index=11, peer_name="right0", group=_GROUP,
            )  # fmt: skip
            connection.apply([veth, netlink.group_up(_GROUP)])
            connection.close()
        self.left.set_up("left0", True)

    def close(self) -> None:
        self.left.close()
        self.right.close()
