"""The fabric as the rest of the lab sees it: one object for one lab, synchronous, used by one thread.

    with Fabric.start(plan) as fabric:
        fabric.start_host("a")
        fabric.cut("ic0")

Times are ns of CLOCK_MONOTONIC. Every call that applies a fault returns the moment just before the kernel was told.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lab.errors import LabError
from lab.fabric import registry
from lab.fabric.channel import Channel, ChannelClosedError, ChannelTimeoutError, Message
from lab.fabric.launch import launch, reap
from lab.fabric.specification import record_of, resolve_wire, specification

if TYPE_CHECKING:
    from lab.plan import Plan

REQUEST_MAX_S = 30.0
STOP_MAX_S = 20.0
HOST_REQUEST_MAX_S = 2.0


class FabricGone(LabError):
    """The fabric process has ended: killed, or taken down by `lab down`."""


class HostSilent(LabError):
    """A host's control socket doesn't answer: the host is down, stopped or not yet up."""


class Fabric:
    """One running lab. Made by `start` or `attach`."""

    def __init__(self, channel: Channel, record: Mapping[str, Any], directory: Path) -> None:
        self._channel = channel
        self._pidfd: int | None = None
        self._pid = int(record["pid"])
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self._pid)
        self._launcher: int | None = None
        """Our child that forked the fabric process and waits for it, None where that was started by another process."""
        self.directory = directory
        self.lab_id = str(record["lab"])
        self.topology = str(record["topology"])
        self.source: str | None = record.get("source")
        """The file of the topology, where there is one."""
        self.wire = str(record["wire"])
        """"xdp" (adapters use AF_XDP where their interface allows) or "packet"."""
        self.nodes: dict[str, list[str]] = dict(record["nodes"])
        """Names of the nodes, and of each one's adapters."""
        self.cables: list[str] = list(record["cables"])
        self.timings: dict[str, float] = {}
        """Milliseconds of the parts of the bring-up."""

    @classmethod
    def start(
        cls,
        plan: Plan,
        name: str | None = None,
        wire: str = "auto",
        keep: bool = False,
        node_namespaces: Mapping[str, int] | None = None,
        *,
        seed: int = 0,
        adapters: bool = True,
    ) -> Self:
        """Builds the lab of `plan`: namespaces, cables, power, and (with `adapters`) the adapters; no host yet.

        `name` is its id (default: one that nobody has). `node_namespaces` are descriptors of network namespaces that
        nodes have already; they stay the caller's. A lab that is not to `keep` ends with this object or this process.
        Raises InputError, MachineError, LabError; nothing is left then.
        """
        started = time.perf_counter()
        chosen = resolve_wire(wire)
        claim = registry.claim(name, plan.topology.name)
        try:
            spec = specification(plan, claim, chosen, wire, keep, seed, dict(node_namespaces or {}), adapters)
            registry.write_record(claim.directory, record_of(spec, None))  # `lab ps` may look meanwhile
            launched = launch(claim, spec, node_namespaces or {})
            record = record_of(spec, launched.fabric_pid)
            registry.write_record(claim.directory, record)
        except BaseException:
            # The fabric process, if there is one, sees its connection close and ends; what it has not removed, we do.
            os.close(claim.lock)
            _remove_once_dead(claim)
            raise
        os.close(claim.lock)
        fabric = cls(launched.channel, record, claim.directory)
        fabric._launcher = launched.launcher_pid
        fabric.timings = {**launched.timings_ms, "total": (time.perf_counter() - started) * 1000}
        if keep:
            fabric._ask({"op": "keep"})
        return fabric

    @classmethod
    def attach(cls, name: str) -> Self:
        """The running lab `name` of this user. Raises InputError for one that is not there."""
        found = registry.find(name)
        try:
            channel = Channel.connect(found.directory / "fabric.sock")
        except OSError as error:
            raise FabricGone(f'lab "{found.lab_id}" is not answering ({error.strerror}); `lab down {name}`') from error
        return cls(channel, found.details, found.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the lab, whatever state it is in, and waits until all of it is gone. Doing it twice does no harm."""
        with suppress(ChannelClosedError, ChannelTimeoutError, OSError):
            self._channel.send({"op": "stop"})
        self._channel.close()
        if self._pidfd is not None:
            if not _ended(self._pidfd, STOP_MAX_S):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                _ended(self._pidfd, STOP_MAX_S)
            os.close(self._pidfd)
            self._pidfd = None
        if self._launcher is not None:
            reap(self._launcher)
            self._launcher = None
        if self.directory.is_dir():
            registry.remove_dead(registry.LabRecord(self.lab_id, self.directory, alive=False, kept=False))

    @staticmethod
    def end_process(record: registry.LabRecord) -> None:
        """Ends a fabric process that lives (its lock is held) and doesn't answer, and with it the lab."""
        pid = record.details.get("pid")
        if not isinstance(pid, int):
            raise LabError(f"lab {record.lab_id} is just starting, or its record is damaged: {record.directory}")
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            # The number could be somebody else's by now: only a first process of its pid namespace is a fabric process.
            if _inner_pid(pid) == 1:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _ended(pidfd, STOP_MAX_S)
            os.close(pidfd)

    def detach(self) -> None:
        """Leaves a kept (or attached) lab running and lets go of it."""
        self._channel.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def alive(self) -> bool:
        """Whether the fabric process runs."""
        return self._pidfd is not None and not _ended(self._pidfd, 0.0)

    # Hosts and adapters

    def start_host(self, node: str) -> int:
        """Starts the host process of `node`: power is on, it begins to boot. The moment in ns."""
        return self._at({"op": "start_host", "node": node})

    def kill_host(self, node: str, signal_number: int = signal.SIGKILL) -> int:
        """Signals the host process; after SIGKILL it is gone when this returns. The moment in ns."""
        return self._signal(f"{node}/host", signal_number)

    def stop_host(self, node: str) -> int:
        """Freezes the host process (SIGSTOP); its adapters go on."""
        return self._signal(f"{node}/host", signal.SIGSTOP)

    def continue_host(self, node: str) -> int:
        """Lets a frozen host go on."""
        return self._signal(f"{node}/host", signal.SIGCONT)

    def start_adapter(self, node: str, adapter: str) -> int:
        """Starts an adapter again and waits until it answers. The moment of its start."""
        return self._at({"op": "start_adapter", "node": node, "adapter": adapter})

    def kill_adapter(self, node: str, adapter: str, signal_number: int = signal.SIGKILL) -> int:
        """Signals an adapter; after SIGKILL it is gone when this returns. The moment in ns."""
        return self._signal(f"{node}/{adapter}", signal_number)

    def host(self, node: str, request: Mapping[str, object], timeout: float = HOST_REQUEST_MAX_S) -> dict[str, Any]:
        """One request to the control socket of a host, and its answer. Raises HostSilent."""
        try:
            channel = Channel.connect(self.node_directory(node) / "host.sock")
        except OSError as error:
            raise HostSilent(f"host {node} is not answering: {error.strerror}") from error
        try:
            channel.send(request)
            return channel.receive(timeout)[0]
        except (ChannelClosedError, ChannelTimeoutError) as error:
            raise HostSilent(f"host {node} is not answering: {error}") from error
        finally:
            channel.close()

    # Cables

    def cut(self, cable: str, end: str | None = None) -> int:
        """Pulls a cable out, at both ends or at one (a node, a switch, node.adapter). The moment in ns."""
        return self._at({"op": "cut", "cable": cable, "end": end})

    def restore(self, cable: str, end: str | None = None) -> int:
        """Plugs it in again. The moment in ns."""
        return self._at({"op": "restore", "cable": cable, "end": end})

    def blackhole(self, cable: str, source: str | None = None) -> int:
        """Lets frames vanish in the cable with the carrier kept: those from `source`, or all. The moment in ns."""
        return self._at({"op": "blackhole", "cable": cable, "end": source})

    def unblackhole(self, cable: str, source: str | None = None) -> int:
        """Ends `blackhole`. The moment in ns."""
        return self._at({"op": "unblackhole", "cable": cable, "end": source})

    def swallowed(self, cable: str) -> int:
        """How many frames blackholes of this cable have taken so far."""
        return int(self._ask({"op": "swallowed", "cable": cable})["swallowed"])

    def arm(self, cables: Sequence[str], rules: Sequence[Mapping[str, object]], *, seed: int = 0) -> list[int]:
        """Arms rules of the injector (lab.injector has their keys); gives their ids, in the order of the rules.

        `cables` are where a rule that names none looks.
        """
        prepared = [{**rule, "cables": list(rule.get("cables") or cables)} for rule in rules]  # type: ignore[call-overload]
        answer = self._ask({"op": "arm", "rules": prepared, "seed": seed})
        return [int(number) for number in answer["ids"]]

    def disarm(self, ids: Sequence[int]) -> int:
        """Disarms rules, and gives cables that no other rule needs their fast path back. The moment in ns."""
        return self._at({"op": "disarm", "ids": list(ids)})

    def fired(self, after: int = 0) -> tuple[dict[int, int], list[dict[str, Any]]]:
        """How often each rule has acted, and the events since number `after` (see lab.injector)."""
        answer = self._ask({"op": "fired", "after": after})
        return {int(rule): int(count) for rule, count in answer["counts"].items()}, list(answer["events"])

    # What there is

    def describe(self) -> dict[str, Any]:
        """Topology, wire, cables with their state, timings of the bring-up."""
        return self._ask({"op": "describe"})

    def processes(self) -> list[dict[str, Any]]:
        """Adapters, hosts and the injector, running or ended: key, node, name, kind, running, status, and `pid` as this
        process sees it (None for one that has ended; `inner_pid` is the lab's own number).
        """
        pids = self._outer_pids()
        found: list[dict[str, Any]] = []
        for process in self._ask({"op": "processes"})["processes"]:
            inner = int(process["pid"])
            found.append({**process, "inner_pid": inner, "pid": pids.get(inner) if process["running"] else None})
        return found

    def exits(self) -> list[dict[str, Any]]:
        """The processes that have ended since the start, oldest first: key, pid, status, at."""
        return list(self._ask({"op": "exits"})["exits"])

    def namespaces(self, node: str) -> tuple[list[str], list[int]]:
        """Kinds and descriptors of the namespaces of a node or of "fabric", in the order of joining; yours to close."""
        self._channel.send({"op": "namespaces", "node": node})
        answer, descriptors = self._receive()
        kinds: Any = answer["kinds"]
        return list(kinds), descriptors

    def node_directory(self, node: str) -> Path:
        """Where a node's sockets, memory and logs are."""
        return self.directory / "nodes" / node

    def node_memory_path(self, node: str) -> Path:
        """The file of emul.node_memory.NodeMemory."""
        return self.node_directory(node) / "node.mem"

    def nvram_path(self, node: str) -> Path:
        """The file of the node's NVRAM card."""
        return self.node_directory(node) / "nvram.img"

    def history_path(self, node: str) -> Path:
        """The file of the node's history (ccm.history)."""
        return self.node_directory(node) / "history.bin"

    @property
    def fabric_pid(self) -> int:
        """The fabric process, as this process's pid namespace numbers it."""
        return self._pid

    def _outer_pids(self) -> dict[int, int]:
        """The lab's pids -> this process's pids, for all descendants of the fabric process."""
        found: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError, ValueError):
                status = (entry / "status").read_text(encoding="ascii", errors="replace")
                inner = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
                if len(inner) > 1 and self._same_pid_namespace(entry):
                    found[int(inner[-1])] = int(entry.name)
        return found

    def _same_pid_namespace(self, process: Path) -> bool:
        return os.readlink(process / "ns/pid") == os.readlink(f"/proc/{self._pid}/ns/pid")  # noqa: PTH115 - no path

    def _at(self, request: Message) -> int:
        return int(self._ask(request)["at"])

    def _signal(self, key: str, number: int) -> int:
        return self._at({"op": "signal", "key": key, "signal": int(number)})

    def _ask(self, request: Message) -> dict[str, Any]:
        try:
            self._channel.send(request)
        except (ChannelClosedError, OSError) as error:
            raise FabricGone(f"the fabric process of lab {self.lab_id} has ended") from error
        return self._receive()[0]

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            answer, descriptors = self._channel.receive(REQUEST_MAX_S)
        except ChannelClosedError as error:
            raise FabricGone(f"the fabric process of lab {self.lab_id} has ended") from error
        except ChannelTimeoutError as error:
            raise LabError(f"the fabric process of lab {self.lab_id} does not answer") from error
        if "error" in answer:
            raise LabError(str(answer["error"]))
        return answer, descriptors


def _remove_once_dead(claim: registry.Claim) -> None:
    """After a start that failed: the fabric process is about to end; what it leaves is removed."""
    deadline = time.monotonic() + STOP_MAX_S
    record = registry.LabRecord(claim.lab_id, claim.directory, alive=False, kept=False)
    while not registry.remove_dead(record) and time.monotonic() < deadline:
        time.sleep(0.005)


def _inner_pid(pid: int) -> int | None:
    """The number of a process in its own pid namespace, None where it has gone."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
        return int(numbers[-1]) if len(numbers) > 1 else None
    return None


def _ended(pidfd: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout * 1000))
