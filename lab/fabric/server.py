"""The fabric process: pid 1 of a lab's private namespaces, owner of all that the kernel holds for the lab.

Started by the client as a program of its own (`main`), since a process that makes namespaces must have one thread. It
forks the spawner, then imports pyroute2, builds what the specification says, and serves requests until it is told to
stop, gets SIGTERM, or, in a lab that is not kept, the client's end of the first connection closes. Whatever ends it, the
kernel ends every process of its pid namespace with it, and then removes namespaces and interfaces.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError, MachineError
from lab.fabric import namespaces, spawner
from lab.fabric.channel import Channel, ChannelClosedError, ChannelTimeoutError, Message, listen

if TYPE_CHECKING:
    from lab.fabric.cables import Cabling
    from lab.fabric.netlink import Netlink

WARM_UP_MAX_S = 30.0
ADAPTERS_READY_MAX_S = 30.0
"""How long adapters may take to answer at their control sockets."""
START_WINDOW = 32
"""Starts asked of the spawner before its answers are taken: both socket buffers hold that many packets."""
SPAWNER_ANSWER_MAX_S = 10.0
EVENTS_MAX = 4096
"""Exits of processes remembered; the oldest go first."""
INJECTOR_READY_MAX_S = 10.0
DRAIN_IDLE_NS = 1_000_000
"""An injector that has seen nothing for so long holds nothing."""
DRAIN_MAX_S = 0.25
"""Under steady load a direction never idles; then a frame may overtake another at the moment of disarming."""
_POLL_S = 0.001


class RequestError(LabError):
    """A request that can't be served, told to the one who asked."""


class SpawnerLink:
    """The server's side of the spawner: requests with answers, and exits as they come."""

    def __init__(self) -> None:
        mine, theirs = Channel.pair()
        if os.fork() == 0:
            mine.close()
            namespaces.die_with_parent(signal.SIGKILL)
            spawner.serve(theirs)
        theirs.close()
        self.channel = mine
        self.exits: deque[Message] = deque(maxlen=EVENTS_MAX)

    def wait_warm(self) -> None:
        """Returns when the spawner has imported everything. Raises LabError when it could not."""
        try:
            message, _ = self.channel.receive(WARM_UP_MAX_S)
        except (ChannelClosedError, ChannelTimeoutError) as error:
            raise LabError(f"the spawner did not start: {error} (its words are in fabric.log)") from error
        assert message == {"event": "warm"}

    def ask(self, request: Message, descriptors: list[int] | None = None) -> Message:
        """One request and its answer. Raises RequestError."""
        self.channel.send(request, descriptors or [])
        return self._answer()

    def ask_many(self, requests: list[tuple[Message, list[int]]]) -> list[Message]:
        """Several requests, the answers in the same order. Raises RequestError for the first refused one."""
        answers: list[Message] = []
        for start in range(0, len(requests), START_WINDOW):
            window = requests[start : start + START_WINDOW]
            for request, descriptors in window:
                self.channel.send(request, descriptors)
            answers += [self._answer() for _ in window]
        return answers

    def take_exits(self) -> list[Message]:
        """Exits that wait, also earlier ones that came between answers."""
        while self.channel.readable(0):
            message, _ = self.channel.receive()
            self.exits.append(message)
        taken = list(self.exits)
        self.exits.clear()
        return taken

    def _answer(self) -> Message:
        while True:
            message, _ = self.channel.receive(SPAWNER_ANSWER_MAX_S)
            if message.get("event") == "exit":
                self.exits.append(message)
                continue
            if "error" in message:
                raise RequestError(str(message["error"]))
            return message


class Server:
    """One lab. `spec` is what client.py writes; `given` are descriptors of nodes' namespaces that exist already."""

    def __init__(self, spec: dict[str, Any], given: dict[str, int], link: SpawnerLink) -> None:
        self.directory = Path(spec["directory"])
        self._spec = spec
        self._link = link
        self._namespaces = dict(given)
        self._given = frozenset(given)
        self._processes: dict[str, dict[str, Any]] = {}
        self.timings_ms: dict[str, float] = {}
        self._exits: deque[Message] = deque(maxlen=EVENTS_MAX)
        self._nodes = {node["name"]: node for node in spec["nodes"]}
        self._cabling: Cabling | None = None
        self._own_namespace = namespaces.open_namespace("net")
        self._injector: Channel | None = None
        self._tapped: set[str] = set()
        self._armed: set[tuple[str, str]] = set()

    # Building

    def build(self) -> None:
        """Namespaces, cables, power, adapters. Raises LabError; what was built goes with the process."""
        started = time.perf_counter()
        self._make_namespaces()
        self._lap("namespaces", started)
        started = time.perf_counter()
        self._make_cables()
        self._lap("cables", started)
        started = time.perf_counter()
        self._link.wait_warm()
        self._lap("warm_up_left", started)
        started = time.perf_counter()
        self._power_on()
        self._start_adapters()
        self._lap("adapters", started)

    def _lap(self, name: str, started: float) -> None:
        self.timings_ms[name] = (time.perf_counter() - started) * 1000

    def _make_namespaces(self) -> None:
        for name in self._nodes:
            if name not in self._namespaces:
                self._namespaces[name] = namespaces.new_network_namespace()
        namespaces.setns(self._own_namespace, namespaces.CLONE_NEWNET)
        for name in self._given:
            namespaces.setns(self._namespaces[name], namespaces.CLONE_NEWNET)
            namespaces.prepare_network()
        namespaces.setns(self._own_namespace, namespaces.CLONE_NEWNET)

    def _make_cables(self) -> None:
        from lab.fabric.cables import Cabling
        from lab.fabric.netlink import Netlink, NetlinkError

        link: Netlink = Netlink()
        self._cabling = Cabling(link, self._namespaces, self._spec["mtu"])
        try:
            self._cabling.build(self._spec["switches"], self._spec["cables"])
        except NetlinkError as error:
            raise MachineError(
                f"the kernel refused to build the cables: {error}",
                "a kernel with veth, bridge, the clsact queueing discipline, cls_u32 and act_mirred",
            ) from error

    def _power_on(self) -> None:
        from emul.memory import Memory
        from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory

        for node in self._nodes.values():
            memory = Memory.open_file(Path(node["memory"]), NODE_MEMORY_BYTES)
            NodeMemory(memory).power_on()
            memory.close()

    def _start_adapters(self) -> None:
        wanted = [
            (name, adapter["name"]) for name, node in self._nodes.items() if node["start"] for adapter in node["adapters"]
        ]
        starts = [self._adapter_start(node, adapter) for node, adapter in wanted]
        for (request, _), answer in zip(starts, self._link.ask_many(starts), strict=True):
            self._note_start(request, answer)
        self._wait_adapters(wanted)

    def _adapter_start(self, node: str, adapter: str) -> tuple[Message, list[int]]:
        config = next(entry["config"] for entry in self._nodes[node]["adapters"] if entry["name"] == adapter)
        with suppress(FileNotFoundError):
            os.unlink(config["control"])  # noqa: PTH108 - of the adapter before; its presence tells that this one is up
        request: Message = {"op": "start", "key": f"{node}/{adapter}", "kind": "adapter", "config": config}
        return request, [self._namespaces[node]]

    def _note_start(self, request: Message, answer: Message) -> None:
        key = str(request["key"])
        node, _, name = key.partition("/")
        self._processes[key] = {
            "key": key, "node": node, "name": name, "kind": request["kind"], "pid": answer["pid"], "running": True,
        }  # fmt: skip

    def _wait_adapters(self, wanted: list[tuple[str, str]]) -> None:
        """Until each listens at its control socket. Raises RequestError when one ends or takes too long."""
        deadline = time.monotonic() + ADAPTERS_READY_MAX_S
        waiting = {f"{node}/{adapter}": self._control_path(node, adapter) for node, adapter in wanted}
        while waiting:
            waiting = {key: path for key, path in waiting.items() if not path.exists()}
            self._take_exits()
            for key in waiting:
                if not self._processes[key]["running"]:
                    status = self._processes[key].get("status")
                    raise RequestError(f"adapter {key} ended with {status} as it started{self._last_words(key)}")
            if waiting and time.monotonic() > deadline:
                raise RequestError(f"adapters not ready within {ADAPTERS_READY_MAX_S:g} s: {', '.join(sorted(waiting))}")
            if waiting:
                time.sleep(_POLL_S)

    def _control_path(self, node: str, adapter: str) -> Path:
        return Path(next(a["config"]["control"] for a in self._nodes[node]["adapters"] if a["name"] == adapter))

    def _last_words(self, key: str) -> str:
        node, _, name = key.partition("/")
        with suppress(OSError):
            lines = (self.directory / "nodes" / node / f"{name}.log").read_text(errors="replace").splitlines()
            if lines:
                return f": {lines[-1]}"
        return ""

    # Requests

    def handle(self, request: Message) -> tuple[Message, list[int]]:
        """Serves one request: its answer, and descriptors to send along."""
        operation = getattr(self, f"_do_{request.get('op')}", None)
        if operation is None:
            raise RequestError(f"unknown request {request.get('op')!r}")
        result: Message | tuple[Message, list[int]] = operation(request)
        return result if isinstance(result, tuple) else (result, [])

    def _do_describe(self, request: Message) -> Message:
        self._take_exits()
        return {
            "lab": self._spec["lab"],
            "topology": self._spec["topology"],
            "wire": self._spec["wire"],
            "mtu": self._spec["mtu"],
            "timings_ms": self.timings_ms,
            "cables": self._cables.describe(),
            "switches": self._spec["switches"],
            "nodes": list(self._nodes),
        }

    def _do_processes(self, request: Message) -> Message:
        self._take_exits()
        return {"processes": list(self._processes.values())}

    def _do_exits(self, request: Message) -> Message:
        self._take_exits()
        return {"exits": list(self._exits)}

    def _do_start_host(self, request: Message) -> Message:
        node = self._node(request)
        answer = self._start_one(
            {"op": "start", "key": f"{node}/host", "kind": "host", "config": self._nodes[node]["host_config"]},
            [self._namespaces[node]],
        )
        return {"at": answer["at"], "pid": answer["pid"]}

    def _do_start_adapter(self, request: Message) -> Message:
        node, adapter = self._node(request), self._adapter(request)
        answer = self._start_one(*self._adapter_start(node, adapter))
        self._wait_adapters([(node, adapter)])
        return {"at": answer["at"], "pid": answer["pid"]}

    def _start_one(self, request: Message, descriptors: list[int]) -> Message:
        answer = self._link.ask(request, descriptors)
        self._take_exits()
        self._note_start(request, answer)
        return answer

    def _do_signal(self, request: Message) -> Message:
        answer = self._link.ask({"op": "signal", "key": request["key"], "signal": request["signal"]})
        self._take_exits()
        return {"at": answer["at"]}

    def _do_cut(self, request: Message) -> Message:
        cable, end = self._cable(request)
        return {"at": self._cables.cut(cable, end)}

    def _do_restore(self, request: Message) -> Message:
        cable, end = self._cable(request)
        return {"at": self._cables.restore(cable, end)}

    def _do_blackhole(self, request: Message) -> Message:
        cable, end = self._cable(request)
        return {"at": self._cables.blackhole(cable, end)}

    def _do_unblackhole(self, request: Message) -> Message:
        cable, end = self._cable(request)
        return {"at": self._cables.unblackhole(cable, end), "swallowed": self._cables.swallowed(cable)}

    def _do_swallowed(self, request: Message) -> Message:
        cable, _ = self._cable(request)
        return {"swallowed": self._cables.swallowed(cable)}

    def _do_namespaces(self, request: Message) -> tuple[Message, list[int]]:
        """Descriptors of the lab's mount, pid and (a node's, or the fabric's own) network namespace, and the user one
        where there is one, in this order: user, mnt, pid, net. They are the receiver's to close."""
        node = str(request["node"])
        network = self._own_namespace if node == "fabric" else self._namespaces[self._node(request)]
        kinds = [*(["user"] if self._spec["user_namespace"] else []), "mnt", "pid"]
        opened = [namespaces.open_namespace(kind) for kind in kinds]
        return {"kinds": [*kinds, "net"], "opened": len(opened)}, [*opened, network]

    def _node(self, request: Message) -> str:
        node = str(request.get("node"))
        if node not in self._nodes:
            raise RequestError(f'no node "{node}"; there is: {", ".join(self._nodes)}')
        return node

    def _adapter(self, request: Message) -> str:
        node, adapter = self._node(request), str(request.get("adapter"))
        known = [entry["name"] for entry in self._nodes[node]["adapters"]]
        if adapter not in known:
            raise RequestError(f'node "{node}" has no adapter "{adapter}"; it has: {", ".join(known)}')
        return adapter

    def _cable(self, request: Message) -> tuple[str, str | None]:
        cable, end = str(request.get("cable")), request.get("end")
        text = None if end is None else str(end)
        problem = self._cables.check(cable, text)
        if problem is not None:
            raise RequestError(problem)
        return cable, text

    @property
    def _cables(self) -> Cabling:
        assert self._cabling is not None, "requests come after build"
        return self._cabling

    def _take_exits(self) -> None:
        for event in self._link.take_exits():
            self._exits.append(event)
            process = self._processes.get(str(event["key"]))
            if process is not None and process["pid"] == event["pid"]:
                process.update(running=False, status=event["status"], ended_at=event["at"])

    # The injector

    def _do_arm(self, request: Message) -> Message:
        """Starts the injector if need be, arms `rules`, then leads the directions that they need through it."""
        rules: Any = request["rules"]
        for rule in rules:
            for cable in rule.get("cables") or ():
                self._cable({"cable": cable})
        self._tap(sorted({cable for rule in rules for cable in rule.get("cables") or self._cables.names()}))
        answer = self._ask_injector({"op": "arm", "rules": rules, "seed": request.get("seed", 0)})
        self._divert(answer["directions"])
        return {"ids": answer["ids"], "at": time.monotonic_ns()}

    def _do_disarm(self, request: Message) -> Message:
        """Disarms rules, waits for the directions that nobody needs any more to idle, gives them their joint back."""
        if self._injector is None:
            return {"at": time.monotonic_ns()}
        answer = self._ask_injector({"op": "disarm", "ids": request["ids"]})
        needed = {(str(cable), str(end)) for cable, end in answer["directions"]}
        for cable, end in sorted(self._armed - needed):
            self._drain(cable, end)
            self._cables.disarm(cable, end)
            self._armed.discard((cable, end))
        return {"at": time.monotonic_ns()}

    def _do_fired(self, request: Message) -> Message:
        if self._injector is None:
            return {"counts": {}, "matched": {}, "events": [], "next": 0, "at": time.monotonic_ns()}
        return self._ask_injector({"op": "fired", "after": request.get("after", 0)})

    def _divert(self, directions: Any) -> None:
        for cable, end in directions:
            if (cable, end) not in self._armed:
                self._cables.arm(cable, end)
                self._armed.add((cable, end))

    def _drain(self, cable: str, end: str) -> None:
        """Waits until the injector has not seen a frame of this direction for a while, DRAIN_MAX_S at the most."""
        deadline = time.monotonic() + DRAIN_MAX_S
        while time.monotonic() < deadline:
            states: Any = self._ask_injector({"op": "state"})["cables"]
            idle_ns = states[cable][end]["idle_ns"]
            if idle_ns is None or idle_ns >= DRAIN_IDLE_NS:
                return
            time.sleep(_POLL_S)

    def _tap(self, cables: list[str]) -> None:
        """Lets the injector (started if need be) meet these cables."""
        added: list[object] = []
        for cable in cables:
            if cable not in self._tapped:
                ends = [
                    {"node": port.label, "interface": port.interface, "tap": port.tap}
                    for port in self._cables.injector_ports(cable)
                ]
                added.append({"name": cable, "ends": ends})
        if self._injector is None:
            self._injector = self._start_injector()
        if added:
            self._ask_injector({"op": "cables", "add": added})
            self._tapped.update(cables)

    def _start_injector(self) -> Channel:
        control = self.directory / "injector.sock"
        config = {
            "control": str(control), "cables": [], "addresses": self._spec["addresses"], "seed": self._spec["seed"],
            "log": str(self.directory / "injector.log"),
        }  # fmt: skip
        self._start_one({"op": "start", "key": "injector", "kind": "injector", "config": config}, [])
        deadline = time.monotonic() + INJECTOR_READY_MAX_S
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                return Channel.connect(control)
            self._take_exits()
            if not self._processes["injector"]["running"] or time.monotonic() > deadline:
                raise RequestError("the injector did not start; injector.log tells why")
            time.sleep(_POLL_S)

    def _ask_injector(self, request: Message) -> dict[str, Any]:
        assert self._injector is not None
        try:
            self._injector.send(request)
            answer, _ = self._injector.receive(SPAWNER_ANSWER_MAX_S)
        except (ChannelClosedError, ChannelTimeoutError) as error:
            raise RequestError(f"the injector does not answer ({error}); injector.log tells why") from error
        if not answer.get("ok"):
            raise RequestError(f"injector: {answer.get('error')}")
        return answer


class Loop:
    """Waits for requests, signals, and the end of the client's connection."""

    def __init__(self, server: Server, link: SpawnerLink, first: Channel) -> None:
        self._server = server
        self._selector = selectors.DefaultSelector()
        self._first = first
        self._kept = False
        self._ending = False
        self._listener = listen(server.directory / "fabric.sock")
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
            self._server._take_exits()
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
                answer, descriptors = self._server.handle(request)
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
    pid = os.fork()
    if pid != 0:
        with suppress(ChannelClosedError):
            channel.send({"pid": pid})  # as the client numbers it
        os._exit(0)
    status = 1
    try:
        _run(channel, spec, dict(zip(names, descriptors, strict=True)))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _enter(user_namespace: bool) -> None:
    if user_namespace:
        namespaces.enter_user_namespace()
    os.setsid()
    namespaces.make_private()


def _run(channel: Channel, spec: dict[str, Any], given: dict[str, int]) -> None:
    """As pid 1 of the lab."""
    namespaces.mount_proc()
    namespaces.prepare_network()
    link = SpawnerLink()
    server = Server(spec, given, link)
    try:
        server.build()
        loop = Loop(server, link, channel)
        channel.send({"ready": True, "timings_ms": server.timings_ms})
        loop.run()
    except LabError as error:
        channel.send(_refusal(error))
    finally:
        _end_processes()
        shutil.rmtree(server.directory, ignore_errors=True)


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
