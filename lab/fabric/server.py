"""The fabric process: pid 1 of a lab's private namespaces, owner of all that the kernel holds for the lab.

Started by the client as a program of its own (`main`), since a process that makes namespaces must have one thread. It
forks the spawner, then imports pyroute2, builds what the specification says, and serves requests until it is told to
stop, gets SIGTERM, or, in a lab that is not kept, the client's end of the first connection closes. Whatever ends it,
the kernel ends every process of its pid namespace with it, and then removes namespaces and interfaces.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import shutil
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lab.errors import LabError, MachineError
from lab.fabric import namespaces
from lab.fabric.channel import Channel, ChannelClosedError, Message, listen
from lab.fabric.running import RunningLab
from lab.fabric.spawner_link import WARM_UP_MAX_S, SpawnerLink


class Loop:
    """Waits for requests, signals, and the end of the client's connection."""

    def __init__(self, lab: RunningLab, link: SpawnerLink, first: Channel) -> None:
        self._lab = lab
        self._selector = selectors.DefaultSelector()
        self._first = first
        self._kept = False
        self._ending = False
        self._listener = listen(lab.directory / "fabric.sock")
        self._signals, wake = socket.socketpair()
        self._wake = wake
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._signals, selectors.EVENT_READ, self._take_signals)
        self._selector.register(link.channel, selectors.EVENT_READ, self._spawner_event)
        self._register(first)

    def run(self) -> None:
        """Serves until the lab's end."""
        while not self._ending:
            for key, _ in self._selector.select():
                key.data()

    def _register(self, channel: Channel) -> None:
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._serve(channel))

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(True)
            self._register(Channel(connection))

    def _take_signals(self) -> None:
        numbers = self._signals.recv(4096)
        if signal.SIGCHLD in numbers:
            self._reap_orphans()
        if any(number != signal.SIGCHLD for number in numbers):
            self._ending = True

    def _reap_orphans(self) -> None:
        """As pid 1: whoever lost its parent (a program started by `lab exec`) is ours to bury."""
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass

    def _spawner_event(self) -> None:
        try:
            self._lab.take_exits()
        except ChannelClosedError:
            self._ending = True  # its children have died with it: there is no lab any more

    def _serve(self, channel: Channel) -> None:
        try:
            request, received = channel.receive()
            for descriptor in received:
                os.close(descriptor)
            self._answer(channel, request)
        except (ChannelClosedError, ValueError, OSError):
            self._selector.unregister(channel)
            channel.close()
            if channel is self._first and not self._kept:
                self._ending = True

    def _answer(self, channel: Channel, request: Message) -> None:
        descriptors: list[int] = []
        opened = 0
        try:
            if request.get("op") == "keep":
                self._kept = True
                answer: Message = {}
            elif request.get("op") == "stop":
                self._ending = True
                answer = {}
            else:
                answer, descriptors = self._lab.handle(request)
                opened = int(str(answer.pop("opened", 0)))
        except LabError as error:
            answer = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"defect in the fabric process: {type(error).__name__}: {error} (see fabric.log)"}
        try:
            channel.send(answer, descriptors)
        finally:
            for descriptor in descriptors[:opened]:
                os.close(descriptor)


def main() -> None:
    """The program: argument 1 is the descriptor of the client's connection, 2 that of the lab's lock."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        request, descriptors = channel.receive(WARM_UP_MAX_S)
        spec = json.loads(Path(str(request["spec"])).read_text(encoding="utf-8"))
        names: Any = request["given"]
        _enter(spec["user_namespace"])
    except LabError as error:
        channel.send(_refusal(error))
        return
    except ChannelClosedError:
        return
    # A node takes a few descriptors here, and one for each of its processes in the spawner.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pid = os.fork()
    if pid != 0:
        _wait_for(pid, channel)
    status = 1
    try:
        _run(channel, spec, dict(zip(names, descriptors, strict=True)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait_for(pid: int, channel: Channel) -> NoReturn:
    """The launcher's rest: tells the client the pid as the client numbers it, then buries the fabric process."""
    with suppress(ChannelClosedError):
        channel.send({"pid": pid})
    namespaces.name_process("lab-launcher")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # else the client would not see a connection close
    os.waitpid(pid, 0)
    os._exit(0)


def _enter(user_namespace: bool) -> None:
    if user_namespace:
        namespaces.enter_user_namespace()
    os.chdir("/")
    os.setsid()
    namespaces.make_private()


def _run(channel: Channel, spec: dict[str, Any], given: dict[str, int]) -> None:
    """As pid 1 of the lab."""
    namespaces.name_process("lab-fabric")
    namespaces.mount_proc()
    namespaces.prepare_network()
    link = SpawnerLink()
    lab = RunningLab(spec, given, link)
    try:
        lab.build()
        loop = Loop(lab, link, channel)
        channel.send({"ready": True, "timings_ms": lab.timings_ms})
        loop.run()
    except LabError as error:
        channel.send(_refusal(error))
    finally:
        _end_processes()
        shutil.rmtree(lab.directory, ignore_errors=True)


def _refusal(error: LabError) -> Message:
    machine = [error.missing, error.how_to_get] if isinstance(error, MachineError) else None
    return {"error": str(error), "machine": machine}


def _end_processes() -> None:
    """Ends all processes of the lab's pid namespace and waits for them, so that nobody writes to its files any more."""
    assert os.getpid() == 1, "only as the first process of a pid namespace of its own"
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()
