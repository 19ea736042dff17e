"""A host as a process of its own: one epoll loop around `ccm.host.Host`, its adapters' wake-ups and a control socket.

Sleeps at most SLEEP_MAX_NS, so that a lost wake-up is a counted delay and never a hang. SIGTERM is an orderly exit:
sessions are closed, partners told. Started by the lab's spawner with `main`, or as `python -m ccm.process
CONFIG.json`.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from errno import ETIMEDOUT
from pathlib import Path
from typing import Any

from ccm.history import HEADER_BYTES, RECORD_BYTES, RECORDS_MAX, HistoryWriter
from ccm.host import Host
from emul.clock import MILLISECOND, SECOND, Instant
from emul.control import SocketDevice
from emul.errors import DeviceGone
from emul.local import EmptySlot
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.verbs import Context

SLEEP_MAX_NS = 25 * MILLISECOND
ADAPTERS_WITHIN_NS = 5 * SECOND
"""How long a starting host waits for its adapters' control sockets."""
RETRY_S = 0.002
CONTROLS_MAX = 16
"""Control connections open at once; beyond them the oldest is closed."""
REQUEST_BYTES_MAX = 65_536
LOG_BYTES_MAX = 64 << 20
"""A log grows no larger; what comes later is counted and dropped."""
JOURNAL_BYTES_MAX = 256 << 20
_GC_THRESHOLD = 50_000


class JsonLog:
    """Structured log lines: a JSON object each, with the time in ns since boot."""

    def __init__(self, path: str, node: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._node = node
        self._written = 0

    def __call__(self, word: str, fields: dict[str, object]) -> None:
        """Writes one line."""
        line = json.dumps({"at_ns": time.monotonic_ns(), "node": self._node, "event": word, **fields}, default=str)
        data = line.encode() + b"\n"
        self._written += len(data)
        if self._written <= LOG_BYTES_MAX:
            os.write(self._fd, data)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


class JournalFile:
    """The manager's journal as a file; of one that reaches JOURNAL_BYTES_MAX the beginning is kept."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._written = 0

    def __call__(self, line: str) -> None:
        """Writes one line."""
        self._written += len(line) + 1
        if self._written <= JOURNAL_BYTES_MAX:
            os.write(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


class HostProcess:
    """The loop and what it waits on."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._log = JsonLog(str(config["log"]), str(config["node"]))
        self._journal = JournalFile(str(config["journal"])) if config.get("journal") else None
        self._node_memory = Memory.open_file(Path(config["node_memory"]), NODE_MEMORY_BYTES)
        self._nvram = Memory.open_file(Path(config["nvram"]), int(config["nvram_bytes"]))
        size = HEADER_BYTES + RECORDS_MAX * RECORD_BYTES
        self._history = Memory.open_file(Path(config["history"]), size)
        self._listener = _listen(str(config["control"]))
        self._controls: list[socket.socket] = []
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._completions: dict[int, int] = {}
        """Event descriptor -> adapter."""
        self._watched: dict[int, tuple[Context, list[int]]] = {}
        self._opening: dict[int, SocketDevice] = {}
        """Adapters that were asked whether they are there and have not answered yet."""
        self._terminate = False
        contexts = self._open_all(len(config["adapters"]))
        self.host = Host(
            config, contexts, NodeMemory(self._node_memory), self._nvram, HistoryWriter(self._history),
            int(config.get("seed", 0)), log=self._log, reopen=self._reopen,
            clock=time.monotonic_ns, journal=self._journal,
        )  # fmt: skip

    def run(self) -> None:
        """Turns until the host has stopped."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.host.start(Instant(time.monotonic_ns()))
        self._watch_adapters()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 50)
        while not self.host.stopped:
            self._turn()

    def close(self) -> None:
        """Closes what the process opened; queue pairs are gone already, or stay for the next incarnation."""
        for control in self._controls:
            control.close()
        self._listener.close()
        with suppress(OSError):
            Path(self._config["control"]).unlink()
        self._epoll.close()
        if self._journal is not None:
            self._journal.close()
        self._log.close()

    def _turn(self) -> None:
        host = self.host
        deadline = host.next_deadline()
        now = time.monotonic_ns()
        wait = SLEEP_MAX_NS if deadline is None else min(SLEEP_MAX_NS, max(0, deadline - now))
        ready = self._epoll.poll(wait / SECOND)
        now = time.monotonic_ns()
        if len(ready) == 1 and ready[0][0] in self._completions:
            host.on_completions((self._completions[ready[0][0]],), Instant(now))
        else:
            self._look_around(ready, now)
        if self._terminate:
            host.begin_shutdown(Instant(now))

    def _look_around(self, ready: list[tuple[int, int]], now: int) -> None:
        self.host.on_wake(Instant(now))
        for fd, _ in ready:
            if fd == self._listener.fileno():
                self._accept()
            else:
                control = next((c for c in self._controls if c.fileno() == fd), None)
                if control is not None:
                    self._answer(control)
        self._watch_adapters()

    def _on_signal(self, number: int, frame: object) -> None:
        self._terminate = True

    # adapters

    def _open_all(self, count: int) -> list[Context]:
        """All adapters; one that doesn't answer in time is an empty slot, which the driver looks at again and again.
        Raises DeviceGone when none answers.
        """
        until = time.monotonic_ns() + ADAPTERS_WITHIN_NS
        contexts: list[Context] = []
        missing = None
        for index in range(count):
            try:
                contexts.append(self._open(index, until=until))
            except DeviceGone as error:
                missing = error
                contexts.append(Context(EmptySlot()))
        if missing is not None and all(isinstance(context.device, EmptySlot) for context in contexts):
            raise missing
        return contexts

    def _open(self, index: int, *, until: int = 0) -> Context:
        """Raises DeviceGone when the adapter does not answer until then."""
        path = str(self._config["adapters"][index]["control"])
        while True:
            try:
                return Context(SocketDevice(path))
            except DeviceGone:
                if time.monotonic_ns() >= until:
                    raise
                time.sleep(RETRY_S)

    def _reopen(self, index: int) -> Context:
        """A new way to an adapter that was replaced, or that hung. Raises DeviceGone while it doesn't answer; nothing
        else waits for it meanwhile.
        """
        device = self._opening.pop(index, None)
        if device is None:
            device = SocketDevice(str(self._config["adapters"][index]["control"]))
        try:
            answers = device.answers()
        except DeviceGone:
            device.close()
            raise
        if not answers:
            self._opening[index] = device
            raise DeviceGone(ETIMEDOUT, f"adapter {index} does not answer yet")
        return Context(device)

    def _watch_adapters(self) -> None:
        """Waits on the adapters that are there now, and no longer on those that died (theirs would always be
        readable).
        """
        for index, port in enumerate(self.host.driver.ports):
            watched = self._watched.get(index)
            alive = None if port is None or port.let_go else port.context
            if watched is not None and watched[0] is not alive:
                self._unwatch(index)
                watched = None
            if watched is None and alive is not None:
                fds = alive.descriptors()
                self._watched[index] = (alive, fds)
                self._completions[alive.event_fd] = index
                for fd in fds:
                    self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, index: int) -> None:
        context, fds = self._watched.pop(index)
        for fd in fds:
            self._completions.pop(fd, None)
            with suppress(OSError):
                self._epoll.unregister(fd)
        context.close()

    # control socket

    def _accept(self) -> None:
        control, _ = self._listener.accept()
        control.setblocking(False)
        if len(self._controls) >= CONTROLS_MAX:
            self._forget(self._controls[0])
        self._controls.append(control)
        self._epoll.register(control.fileno(), select.EPOLLIN)

    def _answer(self, control: socket.socket) -> None:
        try:
            data = control.recv(REQUEST_BYTES_MAX)
            if not data:
                self._forget(control)
                return
            control.send(json.dumps(self._reply(data)).encode())
        except BlockingIOError:
            return
        except OSError:
            self._forget(control)

    def _reply(self, data: bytes) -> dict[str, Any]:
        try:
            request = json.loads(data)
        except ValueError as error:
            return {"error": f"not JSON: {error}"}
        if not isinstance(request, dict):
            return {"error": "a request is a JSON object"}
        reply = self.host.control(request, Instant(time.monotonic_ns()))
        if request.get("op") == "resources":
            reply |= {"fds": sum(1 for _ in Path("/proc/self/fd").iterdir()), "threads": threading.active_count()}
        return reply

    def _forget(self, control: socket.socket) -> None:
        self._controls.remove(control)
        self._epoll.unregister(control.fileno())
        control.close()


def _listen(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        Path(path).unlink()  # left by a host that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen(CONTROLS_MAX)
    listener.setblocking(False)
    return listener


def main(config: dict[str, Any]) -> int:
    """Runs a host until it is told to stop. Gives its exit status: 1 when an adapter never answered."""
    try:
        process = HostProcess(config)
    except DeviceGone as error:
        sys.stderr.write(f"host {config.get('node')}: {error}\n")
        return 1
    try:
        process.run()
    finally:
        process.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
