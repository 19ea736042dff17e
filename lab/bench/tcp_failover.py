"""A reference for recovery: a busy TCP connection with TCP_USER_TIMEOUT that connects anew over the second path.

Two processes in the nodes of a lab without adapters, on the same kind of cables as the lab's own frames: the left one
sends a record and waits for its confirmation, again and again; where its connection fails it connects over the other
cable and sends the record again. What a program without a connection manager can have.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any, NoReturn

from lab.bench.rig import set_address
from lab.errors import LabError
from lab.fabric import namespaces
from lab.fabric.client import Fabric
from lab.fabric.join import join
from lab.plan import Plan
from lab.topology import Topology

USER_TIMEOUT_MS = 100
RECORD_BYTES = 512
PAUSE_S = 0.0005
"""Between two records."""
CONNECT_MAX_S = 0.25
ANSWER_MAX_S = 10.0
CABLES = ("ic0", "ic1")
_SUBNETS = ("192.0.2", "198.51.100")
_PORT = 4792
_SEQUENCE = struct.Struct("!Q")
_MESSAGE_BYTES_MAX = 4096


class TcpFailover:
    """The lab and its two processes. Raises MachineError, LabError."""

    def __init__(self) -> None:
        self.fabric = Fabric.start(Plan(Topology.load("ha-pair")), wire="packet", adapters=False)
        self._children: list[int] = []
        try:
            ready, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._start("b", lambda: _serve(theirs))
            self._expect(ready)
            ready.close()
            theirs.close()
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._start("a", lambda: _write(theirs))
            theirs.close()
            self._expect(self._control)
        except BaseException:
            self.close()
            raise

    def longest_gap_ns(
        self, inject: Callable[[Fabric], int], heal: Callable[[Fabric], int], before_s: float, after_s: float
    ) -> int:
        """Longest gap between confirmations after a fault of the first cable (`inject`); healed in the end."""
        self._ask({"op": "run", "path": 0})
        time.sleep(before_s)
        at = inject(self.fabric)
        time.sleep(after_s)
        gap = self._ask({"op": "stop", "at": at})["gap_ns"]
        heal(self.fabric)
        return int(gap)

    def close(self) -> None:
        """Ends processes and lab."""
        for child in self._children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._children.clear()
        self.fabric.stop()

    def _start(self, node: str, work: Callable[[], None]) -> None:
        kinds, descriptors = self.fabric.namespaces(node)
        child = os.fork()
        if child == 0:
            try:
                namespaces.die_with_parent(signal.SIGKILL)
                wanted = [pair for pair in zip(kinds, descriptors, strict=True) if pair[0] in ("user", "net")]
                join([kind for kind, _ in wanted], [descriptor for _, descriptor in wanted])
                host = 1 if node == "a" else 2
                for cable, subnet in zip(CABLES, _SUBNETS, strict=True):
                    set_address(cable, f"{subnet}.{host}")
                work()
            finally:
                os._exit(1)
        self._children.append(child)
        for descriptor in descriptors:
            os.close(descriptor)

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        self._control.send(json.dumps(request).encode())
        return self._expect(self._control)

    @staticmethod
    def _expect(control: socket.socket) -> dict[str, Any]:
        control.settimeout(ANSWER_MAX_S)
        try:
            data = control.recv(_MESSAGE_BYTES_MAX)
        except TimeoutError:
            data = b""
        if not data:
            raise LabError("the TCP reference does not answer")
        answer: dict[str, Any] = json.loads(data)
        return answer


def _serve(ready: socket.socket) -> NoReturn:
    """Confirms each record on each connection, at both addresses."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("0.0.0.0", _PORT), backlog=16)
    selector.register(listener, selectors.EVENT_READ)
    pending: dict[socket.socket, bytes] = {}
    ready.send(b"{}")
    while True:
        for key, _ in selector.select():
            source = key.fileobj
            assert isinstance(source, socket.socket)
            if source is listener:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(accepted, selectors.EVENT_READ)
                pending[accepted] = b""
                continue
            data = b""
            with suppress(OSError):
                data = source.recv(1 << 16)
            if not data:
                selector.unregister(source)
                del pending[source]
                source.close()
                continue
            pending[source] += data
            while len(pending[source]) >= RECORD_BYTES:
                record, pending[source] = pending[source][:RECORD_BYTES], pending[source][RECORD_BYTES:]
                with suppress(OSError):
                    source.send(record[: _SEQUENCE.size])


class _Writer:
    """The left process: its connection, and when records were confirmed."""

    def __init__(self) -> None:
        self.path = 0
        self.confirmed_at: list[int] = []
        self._connection: socket.socket | None = None
        self._sequence = 0

    def write_one(self) -> None:
        """Gets one record confirmed, or fails and is on the other path for the next attempt."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.sendall(_SEQUENCE.pack(self._sequence).ljust(RECORD_BYTES, b"x"))
            answer = self._connection.recv(_SEQUENCE.size, socket.MSG_WAITALL)
            if len(answer) < _SEQUENCE.size:
                raise ConnectionResetError
        except OSError:
            self.disconnect()
            self.path = 1 - self.path
            return
        self._sequence += 1
        self.confirmed_at.append(time.monotonic_ns())

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> socket.socket:
        connection = socket.create_connection((f"{_SUBNETS[self.path]}.2", _PORT), timeout=CONNECT_MAX_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        connection.settimeout(None)
        return connection


def _write(control: socket.socket) -> None:
    """Writes between "run" and "stop"."""
    writer = _Writer()
    control.send(b"{}")
    while data := control.recv(_MESSAGE_BYTES_MAX):
        writer.path = int(json.loads(data)["path"])
        writer.confirmed_at.clear()
        control.send(b"{}")
        control.setblocking(False)
        stop = None
        while stop is None:
            writer.write_one()
            time.sleep(PAUSE_S)
            with suppress(BlockingIOError):
                stop = json.loads(control.recv(_MESSAGE_BYTES_MAX))
        control.setblocking(True)
        writer.disconnect()
        control.send(json.dumps({"gap_ns": _gap_after(writer.confirmed_at, int(stop["at"]))}).encode())


def _gap_after(stamps: list[int], at: int) -> int:
    """The longest time between two stamps of which the later one is after `at`; until now, where there is none."""
    ends = [*stamps, time.monotonic_ns()] if not stamps or stamps[-1] <= at else stamps
    return max((later - earlier for earlier, later in pairwise(ends) if later > at), default=0)
