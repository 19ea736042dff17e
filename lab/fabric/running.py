"""A running lab inside the fabric process: builds it, then serves what the client asks.

Owns the namespaces' descriptors, the cabling and the table of processes. The loop around it is server.py's, the
processes' parent is the spawner.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError, MachineError
from lab.fabric import namespaces
from lab.fabric.channel import Message
from lab.fabric.spawner_link import EVENTS_MAX, RequestError, SpawnerLink

if TYPE_CHECKING:
    from lab.fabric.cables import Cabling
    from lab.fabric.injection import Injection

ADAPTERS_READY_MAX_S = 30.0
"""How long adapters may take to answer at their control sockets."""
_POLL_S = 0.001


class RunningLab:
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
        self._injection: Injection | None = None

    # Building

    def build(self) -> None:
        """Namespaces, cables, power, adapters. Raises LabError; what was built goes with the process."""
        for name, step in (
            ("encoders", self._load_encoders),
            ("namespaces", self._make_namespaces),
            ("cables", self._make_cables),
            ("power", self._power_on),
            ("spawner", self._wait_spawner),
            ("shapes", self._shape_cables),
            ("adapters", self._start_adapters),
        ):
            started = time.perf_counter()
            step()
            self.timings_ms[name] = (time.perf_counter() - started) * 1000

    def _load_encoders(self) -> None:
        """Imports pyroute2's part of the work, while the spawner imports the nodes' part."""
        from lab.fabric.lean_import import import_with_parts_of

        import_with_parts_of("pyroute2", "lab.fabric.netlink")
        from lab.fabric.cables import Cabling
        from lab.fabric.netlink import Netlink

        self._cabling = Cabling(Netlink(), self._namespaces, self._spec["mtu"])
        self._cabling.warm_up()

    def _wait_spawner(self) -> None:
        try:
            self._link.wait_warm()
        except LabError as error:
            raise LabError(f"{error}{last_line(self.directory / 'fabric.log')}") from error

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
        from lab.fabric.netlink import NetlinkError

        try:
            self._cables.build(self._spec["switches"], self._spec["cables"])
        except NetlinkError as error:
            raise MachineError(
                f"the kernel refused to build the cables: {error}",
                "a kernel with veth, bridge, the clsact queueing discipline, cls_u32 and act_mirred",
            ) from error

    def _shape_cables(self) -> None:
        shapes = {cable["name"]: cable["shape"] for cable in self._spec["cables"] if cable["shape"]}
        if shapes:
            self._injector.shape(shapes)

    def _power_on(self) -> None:
        from emul.memory import Memory
        from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory

        for node in self._nodes.values():
            memory = Memory.open_file(Path(node["memory"]), NODE_MEMORY_BYTES)
            NodeMemory(memory).power_on()
            memory.close()

    def _start_adapters(self) -> None:
        wanted = [
            (name, adapter["name"])
            for name, node in self._nodes.items()
            if node["start"]
            for adapter in node["adapters"]
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
            self.take_exits()
            for key in waiting:
                if not self._processes[key]["running"]:
                    status = self._processes[key].get("status")
                    raise RequestError(f"adapter {key} ended with {status} as it started{self._last_words(key)}")
            if waiting and time.monotonic() > deadline:
                raise RequestError(
                    f"adapters not ready within {ADAPTERS_READY_MAX_S:g} s: {', '.join(sorted(waiting))}"
                )
            if waiting:
                time.sleep(_POLL_S)

    def _control_path(self, node: str, adapter: str) -> Path:
        return Path(next(a["config"]["control"] for a in self._nodes[node]["adapters"] if a["name"] == adapter))

    def _last_words(self, key: str) -> str:
        node, _, name = key.partition("/")
        return last_line(self.directory / "nodes" / node / f"{name}.log")

    # Requests

    def handle(self, request: Message) -> tuple[Message, list[int]]:
        """Serves one request: its answer, and descriptors to send along."""
        operation = getattr(self, f"_do_{request.get('op')}", None)
        if operation is None:
            raise RequestError(f"unknown request {request.get('op')!r}")
        result: Message | tuple[Message, list[int]] = operation(request)
        return result if isinstance(result, tuple) else (result, [])

    def _do_describe(self, request: Message) -> Message:
        self.take_exits()
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
        self.take_exits()
        return {"processes": list(self._processes.values())}

    def _do_exits(self, request: Message) -> Message:
        self.take_exits()
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
        self.take_exits()
        self._note_start(request, answer)
        return answer

    def _do_signal(self, request: Message) -> Message:
        answer = self._link.ask({"op": "signal", "key": request["key"], "signal": request["signal"]})
        self.take_exits()
        return {"at": answer["at"]}

    def _do_cut(self, request: Message) -> Message:
        cable, end = self._cable(request)
        at = self._cables.cut(cable, end)
        if self._injection is not None:
            self._injection.on_cut(cable)
        return {"at": at}

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

    def _do_arm(self, request: Message) -> Message:
        rules: Any = request["rules"]
        for rule in rules:
            for cable in rule.get("cables") or ():
                self._cable({"cable": cable})
        return {"ids": self._injector.arm(rules, int(str(request.get("seed", 0)))), "at": time.monotonic_ns()}

    def _do_disarm(self, request: Message) -> Message:
        ids: Any = request["ids"]
        self._injector.disarm(ids)
        return {"at": time.monotonic_ns()}

    def _do_fired(self, request: Message) -> Message:
        return self._injector.fired(int(str(request.get("after", 0))))

    def _do_namespaces(self, request: Message) -> tuple[Message, list[int]]:
        """Descriptors of the lab's mount, pid and (a node's, or the fabric's own) network namespace, and the user one
        where there is one, in this order: user, mnt, pid, net. They are the receiver's to close.
        """
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

    @property
    def _injector(self) -> Injection:
        if self._injection is None:
            from lab.fabric.injection import Injection

            self._injection = Injection(
                self.directory,
                self._cables,
                {"addresses": self._spec["addresses"], "seed": self._spec["seed"]},
                self._start_injector,
                self._injector_runs,
            )
        return self._injection

    def _start_injector(self, config: Message) -> None:
        self._start_one({"op": "start", "key": "injector", "kind": "injector", "config": config}, [])

    def _injector_runs(self) -> bool:
        self.take_exits()
        return bool(self._processes["injector"]["running"])

    def take_exits(self) -> None:
        """Notes the processes that have ended since the last call. Raises ChannelClosedError without a spawner."""
        for event in self._link.take_exits():
            self._exits.append(event)
            process = self._processes.get(str(event["key"]))
            if process is not None and process["pid"] == event["pid"]:
                process.update(running=False, status=event["status"], ended_at=event["at"])


def last_line(log: Path) -> str:
    """What a log says last, behind a colon: of a traceback its reason. Nothing for an empty log."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            return f": {lines[-1]}"
    return ""
