"""Requests and answers between the lab's processes: one JSON object for each packet of a SOCK_SEQPACKET unix socket.

Knows packets and descriptors, not what is asked. Every packet is bounded by MESSAGE_BYTES_MAX; descriptors travel
beside it. All descriptors received here are close-on-exec.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MESSAGE_BYTES_MAX = 192 * 1024
"""A longer packet doesn't fit the kernel's default socket buffer; what is longer goes through a file."""
DESCRIPTORS_MAX = 250
"""The kernel passes at most 253 with one packet."""

Message = dict[str, object]


class ChannelClosedError(Exception):
    """The other side is gone."""


class ChannelTimeoutError(Exception):
    """The other side did not answer in time."""


class Channel:
    """One end of a connection; blocking, used by one thread at a time."""

    __slots__ = ("_socket",)

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(left), cls(right)

    @classmethod
    def connect(cls, path: Path) -> Channel:
        """Connects to the listening socket at `path`. Raises OSError (nobody there, not allowed)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            raise
        return cls(connection)

    def fileno(self) -> int:
        """The socket's descriptor, for waiting."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Sends one packet. Raises ChannelClosedError; ValueError when it is longer than MESSAGE_BYTES_MAX."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MESSAGE_BYTES_MAX or len(descriptors) > DESCRIPTORS_MAX:
            raise ValueError(
                f"packet of {len(data)} bytes, at most {MESSAGE_BYTES_MAX}; {len(descriptors)} descriptors"
            )
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], list(descriptors), socket.MSG_NOSIGNAL)
            else:
                self._socket.send(data, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosedError(str(error)) from error

    def receive(self, timeout: float | None = None) -> tuple[Message, list[int]]:
        """Waits for one packet, `timeout` seconds at most.

        Raises ChannelClosedError, ChannelTimeoutError, ValueError (a packet that is no JSON object).
        """
        if timeout is not None and not self.readable(timeout):
            raise ChannelTimeoutError(f"no answer within {timeout:g} s")
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._socket, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError as error:
            raise ChannelClosedError(str(error)) from error
        if not data:
            raise ChannelClosedError("closed by the other side")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError(f"a packet holds one JSON object, got {type(message).__name__}")
        return message, list(descriptors)

    def readable(self, timeout: float) -> bool:
        """Whether a packet (or the end) waits within `timeout` seconds."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        deadline = time.monotonic() + timeout
        while True:
            left_ms = max(0.0, (deadline - time.monotonic()) * 1000)
            if poller.poll(left_ms):
                return True
            if left_ms == 0.0:
                return False

    def peer_pid(self) -> int:
        """The pid of the process at the other end, as this process's pid namespace numbers it."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")

    def detach(self) -> int:
        """Gives the descriptor away; the channel is of no use any more."""
        return self._socket.detach()

    def close(self) -> None:
        """Closes this end; doing it twice does no harm."""
        self._socket.close()


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, for the owner alone (the directory is private, too)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(64)
    listener.setblocking(False)
    return listener
