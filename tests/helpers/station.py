"""Sockets inside a node of a lab: frames in and out of its interfaces, and their carrier, as seen from the node."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import time

import pytest

from lab.fabric import join
from lab.fabric.client import Fabric

DEADLINE_S = 5.0
ETHERTYPE = 0x88B5
"""For local experiments: no adapter and no kernel reacts to it."""
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A
_SIOCGIFMTU = 0x8921
FRAMES_WAITING_MAX = 200
"""How many small frames the default receive buffer surely holds until the test takes them."""


class Station:
    """A packet socket on interface `interface` of `node`."""

    def __init__(self, fabric: Fabric, node: str, interface: str) -> None:
        self.name = f"{node}.{interface}"
        self._interface = interface.encode()
        self._sequence = 0
        kinds, descriptors = fabric.namespaces(node)
        mine, theirs = socket.socketpair()

        def open_inside() -> int:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            opened.bind((interface, ETHERTYPE))
            socket.send_fds(theirs, [opened.getsockname()[4]], [opened.fileno()])
            return 0

        try:
            assert join.run_inside(kinds, descriptors, open_inside) == 0, f"no packet socket at {self.name}"
            self.mac, received, _, _ = socket.recv_fds(mine, 64, 1)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            mine.close()
            theirs.close()
        self._socket = socket.socket(fileno=received[0])

    def send(self, target: bytes, text: bytes) -> None:
        """One frame to `target`; lost without a word where the carrier is off."""
        frame = target + self.mac + ETHERTYPE.to_bytes(2, "big") + text.ljust(50, b"\0")
        try:
            self._socket.send(frame)
        except OSError as error:
            if error.errno not in (errno.ENETDOWN, errno.ENXIO):
                raise

    def receive(self, count: int) -> list[bytes]:
        """Waits for `count` frames; their texts in the order of arrival."""
        texts: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(texts) < count:
            left = deadline - time.monotonic()
            ready = select.select([self._socket], [], [], max(0.0, left))[0]
            assert ready, f"{self.name}: {len(texts)} of {count} frames came: {texts}"
            texts.append(self._socket.recv(4096)[14:].rstrip(b"\0"))
        return texts

    def waiting(self) -> list[bytes]:
        """The frames that are there now."""
        texts: list[bytes] = []
        while select.select([self._socket], [], [], 0)[0]:
            texts.append(self._socket.recv(4096)[14:].rstrip(b"\0"))
        return texts

    def carrier(self) -> bool:
        """As the node's side of the cable reads it now."""
        value = array.array("I", [_ETHTOOL_GLINK, 0])
        request = struct.pack("16sP16x", self._interface, value.buffer_info()[0])
        fcntl.ioctl(self._socket, _SIOCETHTOOL, request)
        return bool(value[1])

    def mtu(self) -> int:
        """Of the interface."""
        answer = fcntl.ioctl(self._socket, _SIOCGIFMTU, struct.pack("16si20x", self._interface, 0))
        return int(struct.unpack_from("i", answer, 16)[0])

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


def wait_for(condition: object, what: str) -> None:
    """Polls a callable until it holds; fails the test after DEADLINE_S."""
    assert callable(condition)
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {DEADLINE_S} s")
        time.sleep(0.002)
