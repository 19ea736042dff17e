"""How two ends of a test find each other, over TCP or a Unix socket: one line of JSON each way at a time, or the bytes
that another program expects.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from errno import EINVAL, EPROTO, ETIMEDOUT
from pathlib import Path

from emul.errors import RDMAError

CONNECT_TIMEOUT_S = 5.0
LINE_BYTES_MAX = 16_384
UNIX = "unix:"


class Exchange:
    """The connection between the ends. Raises RDMAError with a sentence where it can't be had or says nonsense."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        connection.settimeout(timeout_s)
        self._connection = connection
        self._waiting = b""

    @classmethod
    def serve(cls, place: str, port: int, timeout_s: float) -> Exchange:
        """Waits for one client at `place`: HOST, HOST:PORT, unix:PATH, or "" for all addresses."""
        path = place.removeprefix(UNIX) if place.startswith(UNIX) else None
        try:
            if path is not None:
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(path)
            else:
                host, number = _host_port(place, port)
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = socket.create_server((host, number), family=family)
        except OSError as error:
            raise RDMAError(error.errno or EINVAL, f"the exchange cannot listen at {place or 'any'}:{port}") from error
        with listener:
            listener.listen(1)
            connection, _ = listener.accept()
        if path is not None:
            Path(path).unlink(missing_ok=True)
        return cls(connection, timeout_s)

    @classmethod
    def connect(cls, place: str, port: int, timeout_s: float) -> Exchange:
        """Reaches a server; waits a little for one that is still starting."""
        until = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                if place.startswith(UNIX):
                    connection = socket.socket(socket.AF_UNIX)
                    try:
                        connection.connect(place.removeprefix(UNIX))
                    except OSError:
                        connection.close()
                        raise
                else:
                    connection = socket.create_connection(_host_port(place, port), CONNECT_TIMEOUT_S)
                return cls(connection, timeout_s)
            except OSError as error:
                if time.monotonic() > until:
                    raise RDMAError(error.errno or EINVAL, f"no server answers at {place}, port {port}") from error
                time.sleep(0.05)

    def swap(self, facts: Mapping[str, object]) -> dict[str, object]:
        """Tells the other end `facts` and gives what it told."""
        self._connection.sendall(json.dumps(facts).encode() + b"\n")
        return self.take()

    def take(self) -> dict[str, object]:
        """What the other end told."""
        while b"\n" not in self._waiting:
            self._receive()
        line, _, self._waiting = self._waiting.partition(b"\n")
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise RDMAError(EPROTO, f"the other end is no perftest of this kind: {line[:80]!r}")
        return told

    def _receive(self) -> None:
        try:
            more = self._connection.recv(LINE_BYTES_MAX)
        except TimeoutError:
            raise RDMAError(ETIMEDOUT, "the other end says nothing") from None
        except ConnectionError:
            more = b""
        if not more or len(self._waiting) > LINE_BYTES_MAX:
            raise RDMAError(EPROTO, "the other end has ended")
        self._waiting += more

    def tell_bytes(self, told: bytes) -> None:
        """Tells the other end just these bytes. Raises RDMAError (EPROTO) when it has gone."""
        try:
            self._connection.sendall(told)
        except OSError as error:
            raise RDMAError(EPROTO, f"the other end has ended: {error}") from None

    def take_bytes(self, count: int) -> bytes:
        """The next `count` bytes, at most LINE_BYTES_MAX, that the other end tells."""
        while len(self._waiting) < count:
            self._receive()
        told, self._waiting = self._waiting[:count], self._waiting[count:]
        return told

    def part(self) -> None:
        """Says that there is no more, and waits until the other end has said so, or is gone."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            while self._connection.recv(LINE_BYTES_MAX):
                pass

    def close(self) -> None:
        """Ends it."""
        self._connection.close()


def _host_port(place: str, port: int) -> tuple[str, int]:
    host, colon, number = place.rpartition(":")
    if colon and number.isdigit() and ":" not in host.strip("[]").replace("::", ""):
        return host.strip("[]"), int(number)
    return place.strip("[]"), port
