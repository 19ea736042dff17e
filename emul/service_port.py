"""The service port of an adapter's process: where hardware faults are injected and undone.

A socket of its own, beside the one that hosts use, so that no host trips a fault by accident; only processes of the
adapter's own user (and root) are heard. Requests and answers are JSON objects of SOCK_SEQPACKET:

    {"op": "inject", "fault": NAME, "parameters": {...}, "number": N, "seed": S} -> {"report": {...}}
    {"op": "heal", "number": N or null} -> {"reports": [...]}
    {"op": "faults"} -> {"reports": [...], "hung": bool}
    anything that can't be met -> {"errno": E, "message": TEXT}

`reset` and `die`, which the adapter itself can't do, are the process's: they have no report but their moment.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from errno import EACCES, EINVAL, EOPNOTSUPP, ETIMEDOUT
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from emul.clock import Instant
from emul.control import receive_message, send_message
from emul.errors import DeviceGone, RDMAError

if TYPE_CHECKING:
    from emul.adapter import Adapter

CONNECTIONS_MAX = 8
"""Open at once; beyond them the oldest is closed."""
ANSWER_TIMEOUT_S = 5.0
_CREDENTIALS = struct.Struct("3i")
"""pid, uid, gid (unix(7), SO_PEERCRED)."""
Reply = dict[str, Any]


class ServiceServer:
    """The adapter process's side. `own` are faults that the process does itself, by name."""

    def __init__(self, path: str, epoll: select.epoll, own: Mapping[str, Callable[[], None]]) -> None:
        self._epoll = epoll
        self._own = own
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        Path(path).unlink(missing_ok=True)
        self._listener.bind(path)
        Path(path).chmod(0o600)
        self._listener.listen(CONNECTIONS_MAX)
        self._listener.setblocking(False)
        self._connections: dict[int, socket.socket] = {}
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def on_ready(self, fd: int, adapter: Adapter) -> bool:
        """Serves what waits at `fd`; False where that is none of ours."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._connections:
            self._serve(self._connections[fd], adapter)
        else:
            return False
        return True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(credentials)
        if user not in (0, os.geteuid()):
            _send(connection, {"errno": EACCES, "message": f"user {user} may not inject faults here"})
            connection.close()
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            self._close(next(iter(self._connections.values())))
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _serve(self, connection: socket.socket, adapter: Adapter) -> None:
        try:
            received = receive_message(connection)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            received = None
        if received is None or not _send(connection, self._answer(received[0], adapter)):
            self._close(connection)
        for fd in received[1] if received is not None else ():
            os.close(fd)

    def _answer(self, request: dict[str, object], adapter: Adapter) -> dict[str, object]:
        now = Instant(time.monotonic_ns())
        try:
            op, number = request.get("op"), _number(request.get("number"))
            if op == "inject":
                return self._inject(request, number, adapter, now)
            if op == "heal":
                return {"reports": adapter.heal(number, now=now), "at": now}
            if op == "faults":
                return {"reports": adapter.faults.report(), "hung": adapter.faults.hung, "at": now}
            raise RDMAError(EOPNOTSUPP, f"no request {op!r}; there are inject, heal and faults")
        except RDMAError as error:
            return {"errno": error.errno, "message": error.sentence}

    def _inject(
        self, request: dict[str, object], number: int | None, adapter: Adapter, now: Instant
    ) -> dict[str, object]:
        name, parameters = str(request.get("fault")), request.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise RDMAError(EINVAL, f"parameters: expected an object, found {parameters!r}")
        if name in self._own:
            if parameters:
                raise RDMAError(EINVAL, f"{name}: no parameter {next(iter(parameters))!r}; it takes none")
            self._own[name]()
            return {"report": {"fault": name, "at": now, "fired": 1}, "at": now}
        seed = _number(request.get("seed")) or 0
        return {"report": adapter.inject(name, parameters, now=now, number=number, seed=seed), "at": now}

    def _close(self, connection: socket.socket) -> None:
        self._epoll.unregister(connection.fileno())
        del self._connections[connection.fileno()]
        connection.close()


class ServicePort:
    """Whoever injects: `with ServicePort(path) as port: port.inject("cqe_lost", {"nth": 3})`."""

    def __init__(self, path: str | Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Raises DeviceGone where no adapter listens."""
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            raise DeviceGone(error.errno or ETIMEDOUT, f"no adapter listens at {path}") from error

    def inject(
        self, fault: str, parameters: Mapping[str, object] | None = None, *, number: int | None = None, seed: int = 0
    ) -> Reply:
        """Injects a fault of `emul.fault_kinds`, or "reset" or "die"; gives its report. Raises RDMAError."""
        given = dict(parameters or {})
        report: Reply = self._ask(
            {"op": "inject", "fault": fault, "parameters": given, "number": number, "seed": seed}
        )["report"]
        return report

    def heal(self, number: int | None = None) -> list[Reply]:
        """Undoes one fault, or all; gives their reports. Raises RDMAError for one that there never was."""
        reports: list[Reply] = self._ask({"op": "heal", "number": number})["reports"]
        return reports

    def faults(self) -> list[Reply]:
        """The reports of all."""
        reports: list[Reply] = self._ask({"op": "faults"})["reports"]
        return reports

    def close(self) -> None:
        """Faults stay as they are."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, object]) -> Reply:
        try:
            # Who is shown out is told why, and that waits to be read; Linux tells first that the other end has closed.
            with contextlib.suppress(BrokenPipeError):
                send_message(self._socket, request, [])
            try:
                received = receive_message(self._socket)
            except ConnectionResetError:
                received = receive_message(self._socket)
        except (OSError, ValueError) as error:
            raise DeviceGone(ETIMEDOUT, f"the adapter at {self._path} does not answer: {error}") from error
        if received is None:
            raise DeviceGone(ETIMEDOUT, f"the adapter at {self._path} has ended")
        reply: Reply = received[0]
        if "errno" in reply:
            raise RDMAError(int(reply["errno"]), str(reply["message"]))
        return reply


def _send(connection: socket.socket, reply: dict[str, object]) -> bool:
    try:
        send_message(connection, reply, [])
    except OSError:
        return False
    return True


def _number(value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise RDMAError(EINVAL, f"number: expected a whole number, found {value!r}")
    return value
