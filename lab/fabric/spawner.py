"""The spawner: forks node processes from a warm image, reaps them, and tells the server.

Forked from the server before that imports pyroute2. It has `emul` and `ccm` imported, and nothing of the lab but this
package, so that an adapter or a host is one fork away and shares those pages with all others. It knows processes by
their key (node/adapter, node/host, injector); what they do is theirs.

Requests (one packet each, answered in order): start, signal. Events: {"event": "exit", ...} for each process that ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lab.fabric import namespaces
from lab.fabric.channel import Channel, ChannelClosedError, Message

PRELOADED = ("emul.process", "ccm.process")
"""What every node process needs: imported once, shared by all."""
_ENTRY = {"adapter": "emul.process", "host": "ccm.process", "injector": "lab.injector.process"}
SMALL_OBJECTS = range(48, 513, 16)
"""Sizes in bytes that Python's allocator for small objects tells apart, from the smallest that bytes can have."""
HOLES_OF_A_SIZE = 50
"""Measured for an adapter: 50 save 0.25 MiB of copied pages, 200 no more."""
EXIT_CRASHED = 70
"""Exit status of a process whose main function raised."""


@dataclass(frozen=True, slots=True)
class _Child:
    key: str
    pid: int
    pidfd: int
    node_memory: str | None
    """Adapters: where to note that the adapter is gone."""
    index: int


class Spawner:
    """The loop of the spawner process, on its end of the server's channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._children: dict[int, _Child] = {}
        self._poller = select.epoll()
        self._poller.register(channel.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serves until the server is gone; the children die with this process (PR_SET_PDEATHSIG)."""
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor != self._channel.fileno():
                    self._reap(descriptor)
                    continue
                try:
                    request, descriptors = self._channel.receive()
                except ChannelClosedError:
                    return
                try:
                    self._channel.send(self._answer(request, descriptors))
                finally:
                    for received in descriptors:
                        os.close(received)

    def _answer(self, request: Message, descriptors: list[int]) -> Message:
        if request["op"] == "start":
            return self._start(request, descriptors[0] if descriptors else None)
        return self._signal(str(request["key"]), int(str(request["signal"])))

    def _start(self, request: Message, network: int | None) -> Message:
        config: Any = request["config"]
        if isinstance(config, str):
            config = _read_config(config)
        key, kind = str(request["key"]), str(request["kind"])
        if any(child.key == key for child in self._children.values()):
            return {"error": f"{key} runs already"}
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            return {"error": f"cannot start {key}: {error.strerror}"}
        if pid == 0:
            _become(key, kind, config, network, parent)
        pidfd = os.pidfd_open(pid)
        node_memory = config.get("node_memory") if kind == "adapter" else None
        self._children[pidfd] = _Child(key, pid, pidfd, node_memory, int(config.get("adapter_index", 0)))
        self._poller.register(pidfd, select.EPOLLIN)
        return {"pid": pid, "at": time.monotonic_ns()}

    def _signal(self, key: str, number: int) -> Message:
        """Signals a process. SIGKILL is answered when it is gone and reaped: nobody holds its mappings then."""
        for child in list(self._children.values()):
            if child.key == key:
                at = time.monotonic_ns()
                signal.pidfd_send_signal(child.pidfd, number)
                if number == signal.SIGKILL:
                    self._reap(child.pidfd)
                return {"at": at, "pid": child.pid}
        return {"error": f"{key} does not run"}

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd, None)
        if child is None:
            return
        _, status = os.waitpid(child.pid, 0)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        if child.node_memory is not None:
            mark_adapter_dead(Path(child.node_memory), child.index)
        code = os.waitstatus_to_exitcode(status)
        event = {"event": "exit", "key": child.key, "pid": child.pid, "status": code, "at": time.monotonic_ns()}
        with suppress(ChannelClosedError):
            self._channel.send(event)


def mark_adapter_dead(path: Path, index: int) -> None:
    """Notes in a node's memory that an adapter's process is gone: siblings needn't wait for it when they fence."""
    from emul.memory import Memory
    from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory

    memory = Memory.open_file(path, NODE_MEMORY_BYTES)
    NodeMemory(memory).set_adapter_alive(index, False)
    memory.close()


def serve(channel: Channel) -> NoReturn:
    """The spawner process: warms up, then serves `channel`; never returns."""
    status = 1
    try:
        namespaces.name_process("lab-spawner")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the server decides when it ends
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name in PRELOADED:
            importlib.import_module(name)
        gc.collect()
        holes = _fill_holes()
        gc.freeze()  # the collector would write to pages that the children share
        channel.send({"event": "warm"})
        Spawner(channel).run()
        holes.clear()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _fill_holes() -> list[list[bytes]]:
    """Objects in the places that garbage left between those that stay, to be kept as long as there are forks: what a
    child makes then lies together, and does not copy a shared page for each hole that it would have filled.
    """
    empty = sys.getsizeof(b"")
    return [[bytes(size - empty) for _ in range(HOLES_OF_A_SIZE)] for size in SMALL_OBJECTS]


def _become(key: str, kind: str, config: dict[str, Any], network: int | None, parent: int) -> NoReturn:
    """The child after the fork: turns into the process that was asked for."""
    status = EXIT_CRASHED
    try:
        namespaces.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(EXIT_CRASHED)  # the parent died before the line above could matter
        namespaces.name_process(key)
        if network is not None:
            namespaces.setns(network, namespaces.CLONE_NEWNET)
        _redirect_output(str(config["log"]))
        os.closerange(3, 1 << 16)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        importlib.import_module(_ENTRY[kind]).main(config)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _redirect_output(log: str) -> None:
    """What a process prints, and its last traceback, go to its log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _read_config(path: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return config
