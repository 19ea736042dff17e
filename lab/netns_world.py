"""The real world of network namespaces: drives lab.fabric for the runner.

Real time is CLOCK_MONOTONIC, which all processes of the machine share: the hosts' histories, the fabric's faults and
the runner's own clock are on one scale.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ccm.history import HEADER_BYTES, RECORD_BYTES, RECORDS_MAX
from emul.clock import MILLISECOND
from emul.errors import DeviceGone, RDMAError
from emul.memory import Memory
from emul.node_memory import FENCES_OFFSET
from lab.errors import LabError
from lab.fabric.client import Fabric, HostSilent
from lab.injector.rules import FORGING
from lab.members import FORGOTTEN_WITHIN_NS, Members
from lab.plan import Plan
from lab.world import (
    Firing,
    HostUnreachable,
    PlannedFault,
    cable_at,
    client_requests,
    firing_of,
    rule_cables,
    rule_of,
)

if TYPE_CHECKING:
    from emul.service_port import ServicePort
    from lab.capture.session import CableCaptures, Comment
    from lab.wire.analyzer import Report

LOSING = frozenset({"drop", "corrupt", "observe"})
"""Actions of the injector that leave the order of frames, and what is in those that arrive, as they were."""
POLL_NS = 5 * MILLISECOND
COUNTERS_TIMEOUT_S = 2.0
HISTORY_BYTES = HEADER_BYTES + RECORDS_MAX * RECORD_BYTES


class NetnsWorld:
    """A lab of network namespaces, real frames and real processes."""

    name = "netns"
    poll_ns = POLL_NS
    rate_max_per_s: int | None = None
    """Load is as fast as it goes."""

    def __init__(self, plan: Plan, *, wire: str = "auto", seed: int = 0, keep: bool = False) -> None:
        self._plan = plan
        self._asked_wire = wire
        self._seed = seed
        self._keep = keep
        self._fabric: Fabric | None = None
        self._histories: dict[str, Memory] = {}
        self._rules: dict[int, int] = {}
        """Fault id to the id of its rule."""
        self._firings: dict[int, Firing] = {}
        self._members = Members(plan, self.host, self.now, self.advance)
        self._hardware: dict[int, str] = {}
        """Hardware faults by number: in which adapter."""
        self._events_seen = 0
        self._pids: list[int] = []
        self.wire = wire
        self.capturing = False
        """Whether `start` begins to capture all cables, before any host boots."""
        self.captures: CableCaptures | None = None
        self._injected: dict[str, list[Comment]] = {}

    @classmethod
    def over(cls, plan: Plan, fabric: Fabric) -> Self:
        """The faults of a lab that runs already, for whoever injects them one by one."""
        world = cls(plan, wire=fabric.wire)
        world._fabric = fabric
        return world

    def rule_id(self, fault: int) -> int:
        """The injector's rule that does a fault."""
        return self._rules[fault]

    def note_rule(self, fault: int, rule: int) -> None:
        """A fault's rule that an earlier world over the same fabric armed."""
        self._rules[fault] = rule

    # -- time and life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Builds the fabric, starts adapters, maps the histories, boots the hosts."""
        self._fabric = self._start_fabric()
        self.wire = self._fabric.wire
        if self.capturing:
            self._start_captures()
        for node in self._plan.topology.nodes:
            self._histories[node] = Memory.open_file(self._fabric.history_path(node), HISTORY_BYTES)
        for node in self._plan.topology.nodes:
            self._fabric.start_host(node)

    def _start_fabric(self) -> Fabric:
        return Fabric.start(self._plan, wire=self._asked_wire, keep=self._keep, seed=self._seed)

    @property
    def fabric(self) -> Fabric:
        """The running fabric. Raises LabError before `start` and after `stop`."""
        if self._fabric is None:
            raise LabError("this lab is not running")
        return self._fabric

    def now(self) -> int:
        """CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def advance(self, until: int) -> None:
        """Sleeps."""
        remaining = until - time.monotonic_ns()
        if remaining > 0:
            time.sleep(remaining / 1e9)

    def stop(self) -> None:
        """Ends the lab and waits until all of it is gone."""
        if self._fabric is None:
            return
        fabric, self._fabric = self._fabric, None
        try:
            self._pids = [int(process["pid"]) for process in fabric.processes() if process["pid"] is not None]
        except LabError:
            self._pids = []  # the fabric is gone already, and all processes with it
        fabric.stop()
        self._directory = fabric.directory
        self._fabric_pid = fabric.fabric_pid
        for memory in self._histories.values():
            memory.close()
        self._histories.clear()

    def leftovers(self) -> list[str]:
        """Processes and files of this lab that are still there. Its namespaces and interfaces have no name outside and
        live as long as its processes.
        """
        left = [f"process {pid}" for pid in [*self._pids, getattr(self, "_fabric_pid", 0)] if pid and _is_running(pid)]
        directory = getattr(self, "_directory", None)
        if directory is not None and directory.exists():
            left.append(f"state directory of lab {directory.name}")
        return left

    def _start_captures(self) -> None:
        from lab.capture.session import CableCaptures

        self.captures = CableCaptures(self.fabric)
        self.captures.start()

    def end_captures(self) -> None:
        """Before `stop`: captures end, and what the injector did is asked for, as long as it can tell."""
        if self.captures is None:
            return
        from lab.capture.session import injector_comments

        self.captures.stop()
        with suppress(LabError):  # a fabric that is gone
            self._injected = injector_comments(self.fabric)

    def judge_captures(self) -> dict[str, Report | None]:
        """What the analyzer finds in each cable, after `end_captures`; None for a cable on which frames were forged."""
        if self.captures is None:
            return {}
        from lab.wire.analyzer import analyze
        from lab.wire.exchange import View

        reports: dict[str, Report | None] = {}
        for name in self._plan.topology.cables:
            done = {comment.action for comment in self._injected.get(name, ())}
            if done & FORGING:
                reports[name] = None
                continue
            frames, lost = self.captures.frames(name)
            # Captured as they enter the cable, from before the first host booted.
            changed = bool(done - LOSING)
            view = View(at_senders=True, from_start=True, may_reorder=changed, may_mark=changed)
            reports[name] = analyze(frames, view, lost=lost)
        return reports

    def write_captures(self, directory: Path, faults: Iterable[Mapping[str, object]]) -> dict[str, tuple[int, int]]:
        """Writes CABLE.pcapng for each cable, with the faults (see lab.capture.session.fault_comments) as comments;
        gives the frames in each and those lost. Raises OSError.
        """
        if self.captures is None:
            return {}
        from lab.capture.session import fault_comments

        directory.mkdir(parents=True, exist_ok=True)
        names = list(self._plan.topology.cables)
        comments = fault_comments(faults, names)
        try:
            return {
                name: self.captures.write(
                    name, directory / f"{name}.pcapng", [*comments[name], *self._injected.get(name, ())]
                )
                for name in names
            }
        finally:
            self.captures.close()
            self.captures = None

    # -- faults -------------------------------------------------------------------------------------------------------

    def apply(self, fault: PlannedFault) -> int:
        """Makes the fault happen."""
        if fault.by_injector:
            self.arm([fault])
            return time.monotonic_ns()
        return self._doing(fault)[0](fault)

    def clear(self, fault: PlannedFault) -> int:
        """Undoes it."""
        if fault.by_injector:
            return self.fabric.disarm([self._rules[fault.id]])
        return self._doing(fault)[1](fault)

    def _doing(self, fault: PlannedFault) -> tuple[Callable[[PlannedFault], int], Callable[[PlannedFault], int]]:
        """How a fault of the catalogue is done and undone."""
        doings: dict[str, tuple[Callable[[PlannedFault], int], Callable[[PlannedFault], int]]] = {
            "cable.cut": (
                lambda f: self.fabric.cut(_target(f)),
                lambda f: self.fabric.restore(_target(f)),
            ),
            "cable.cut_one_end": (
                lambda f: self.fabric.cut(_target(f), str(f.step.parameters["end"])),
                lambda f: self.fabric.restore(_target(f), str(f.step.parameters["end"])),
            ),
            "cable.blackhole": (
                lambda f: self.fabric.blackhole(_target(f)),
                lambda f: self.fabric.unblackhole(_target(f)),
            ),
            "cable.blackhole_one_way": (
                lambda f: self.fabric.blackhole(_target(f), str(f.step.parameters["from"])),
                lambda f: self.fabric.unblackhole(_target(f), str(f.step.parameters["from"])),
            ),
            "host.crash": (lambda f: self.kill_host(_target(f)), lambda f: self.boot_host(_target(f))),
            "host.pause": (lambda f: self.pause_host(_target(f)), lambda f: self.resume_host(_target(f))),
            "operator.remove_member": (self._remove_member, self._add_member),
            "client.close": (self._do_to_client, self._open_client),
            "client.crash": (self._do_to_client, self._open_client),
            "adapter.die": (
                lambda f: self.fabric.kill_adapter(*_port(f)),
                lambda f: self.fabric.start_adapter(*_port(f)),
            ),
            "adapter.reset": (self._reset_adapter, lambda f: time.monotonic_ns()),
            "adapter.port_up": (self._switch_port_on, lambda f: time.monotonic_ns()),
        }
        if fault.in_adapter is not None:
            return self._inject_hardware, self._heal_hardware
        if fault.kind not in doings:
            raise LabError(f"the world {self.name} can't do {fault.kind}")
        return doings[fault.kind]

    def _remove_member(self, fault: PlannedFault) -> int:
        at, node = time.monotonic_ns(), _target(fault)
        self._members.leave(node)
        self._note_members()
        with suppress(LabError):  # a host that is down already
            self.fabric.kill_host(node, signal.SIGTERM)
        until = time.monotonic_ns() + FORGOTTEN_WITHIN_NS
        while self._answers(node) and time.monotonic_ns() < until:
            self.advance(time.monotonic_ns() + POLL_NS)
        return at

    def _add_member(self, fault: PlannedFault) -> int:
        node = _target(fault)
        self._members.absent.discard(node)
        self._note_members()
        at = self.fabric.start_host(node)
        self._members.join(node)
        return at

    def _note_members(self) -> None:
        """Whoever boots from now on is told of the present members."""
        for node in self._plan.topology.nodes:
            directory = self.fabric.node_directory(node)
            config = self._members.config_of(
                self._plan.host_config(node, directory.parent.parent, seed=self._seed)
            )
            (directory / "host.json").write_text(json.dumps(config), encoding="utf-8")

    def _answers(self, node: str) -> bool:
        try:
            self.host(node, {"op": "status"})
        except HostUnreachable:
            return False
        return True

    def _do_to_client(self, fault: PlannedFault) -> int:
        return self._ask_client(fault, client_requests(fault)[0])

    def _open_client(self, fault: PlannedFault) -> int:
        return self._ask_client(fault, client_requests(fault)[1])

    def _ask_client(self, fault: PlannedFault, request: Mapping[str, object]) -> int:
        at = time.monotonic_ns()
        with suppress(HostUnreachable):  # a host that is down opens its clients when it boots
            reply = self.host(_target(fault), request)
            if "error" in reply:
                raise LabError(f"{fault.kind} {fault.step.target}: {reply['error']}")
        return at

    def kill_host(self, node: str) -> int:
        """The host is gone when this returns; gives when it was killed."""
        return self.fabric.kill_host(node)

    def boot_host(self, node: str) -> int:
        """Starts the host again."""
        return self.fabric.start_host(node)

    def pause_host(self, node: str) -> int:
        """Freezes the host."""
        return self.fabric.stop_host(node)

    def resume_host(self, node: str) -> int:
        """Lets it go on."""
        return self.fabric.continue_host(node)

    def _reset_adapter(self, fault: PlannedFault) -> int:
        at = self.fabric.kill_adapter(*_port(fault))
        self.fabric.start_adapter(*_port(fault))
        return at

    def _service(self, target: str) -> ServicePort | None:
        """The service port of an adapter; None for one that is dead."""
        from emul.service_port import ServicePort  # a run without such faults needn't wait for its imports

        node, _, adapter = target.partition(".")
        try:
            return ServicePort(self.fabric.node_directory(node) / f"{adapter}.svc")
        except DeviceGone:
            return None

    def _inject_hardware(self, fault: PlannedFault) -> int:
        """A fault that the adapter does itself; a dead one has nothing to fail."""
        target, name = _target(fault), fault.in_adapter
        assert name is not None
        port, at = self._service(target), time.monotonic_ns()
        if port is None:
            return at
        with port:
            self._hardware[fault.id] = target
            self._note_firing(
                fault.id, port.inject(name, fault.step.parameters, number=fault.id, seed=self._seed)
            )
        cable = cable_at(self._plan, target)
        if name == "port_down" and cable is not None:
            self.fabric.cut(cable)  # a port that is switched off sends no light
        return at

    def _heal_hardware(self, fault: PlannedFault) -> int:
        return self._heal_number(fault.id, _target(fault))

    def _heal_number(self, number: int, target: str) -> int:
        port, at = self._service(target), time.monotonic_ns()
        if port is None:
            return at
        with port, suppress(RDMAError):  # a new adapter has not heard of the fault of the one before
            for report in port.heal(number):
                self._note_firing(number, report)
                cable = cable_at(self._plan, target)
                if report["fault"] == "port_down" and cable is not None:
                    self.fabric.restore(cable)
        return at

    def _switch_port_on(self, fault: PlannedFault) -> int:
        target, at = _target(fault), time.monotonic_ns()
        port = self._service(target)
        if port is not None:
            with port:
                off = [int(report["id"]) for report in port.faults() if report["fault"] == "port_down"]
            for number in off:
                self._heal_number(number, target)
        return at

    def _note_firing(self, number: int, report: Mapping[str, object]) -> None:
        firing = firing_of(report)
        if firing is not None:
            self._firings[number] = firing

    def _ask_hardware(self) -> None:
        """What the adapters' faults have met so far."""
        for target in sorted(set(self._hardware.values())):
            port = self._service(target)
            if port is None:
                continue
            with port:
                for report in port.faults():
                    self._note_firing(int(report["id"]), report)

    def arm(self, faults: list[PlannedFault]) -> None:
        """Leads the cables concerned through the injector, with one rule for each fault."""
        for fault in faults:
            cables = rule_cables(self._plan, fault)
            rule = rule_of(self._plan, fault)
            self._rules[fault.id] = self.fabric.arm(cables, [rule], seed=self._seed)[0]

    def fired(self) -> Mapping[int, Firing]:
        """Reads the injector's new events, and what the adapters tell of their faults."""
        if self._fabric is None:
            return self._firings
        if self._hardware:
            self._ask_hardware()
        if not self._rules:
            return self._firings
        counts, events = self._fabric.fired(self._events_seen)
        by_rule = {rule: fault for fault, rule in self._rules.items()}
        for event in events:
            self._events_seen = max(self._events_seen, int(event["number"]))
            fault = by_rule.get(int(event["rule"]))
            if fault is not None:
                at = int(event["at"])
                known = self._firings.get(fault)
                self._firings[fault] = Firing(counts[int(event["rule"])], known.first_at if known else at, at)
        return self._firings

    # -- looking ------------------------------------------------------------------------------------------------------

    def host(self, node: str, request: Mapping[str, object]) -> dict[str, object]:
        """Asks the host's control socket."""
        try:
            return self.fabric.host(node, request, timeout=COUNTERS_TIMEOUT_S)
        except HostSilent as error:
            raise HostUnreachable(str(error)) from error

    def history(self, node: str) -> memoryview:
        """The node's history, mapped."""
        return self._histories[node].buffer

    def nvram(self, node: str) -> bytes:
        """The card's file, which its host and adapters have mapped."""
        path = self.fabric.nvram_path(node)
        return path.read_bytes() if path.exists() else bytes(self._plan.topology.nodes[node].nvram_bytes)

    def fence_epoch(self, node: str, slot: int) -> int:
        """As the file of the node's memory has it."""
        with self.fabric.node_memory_path(node).open("rb") as file:
            file.seek(FENCES_OFFSET + 8 * slot)
            return int.from_bytes(file.read(8), "little")

    def counters(self, node: str) -> dict[str, int]:
        """As the node's host reads them from its adapters; empty when it doesn't answer."""
        try:
            reply = self.host(node, {"op": "status"})
        except HostUnreachable:
            return {}
        return adapter_counters(reply)

    def trace_hash(self) -> str:
        """Real time has no two equal runs."""
        return ""

    def details(self) -> Mapping[str, object]:
        """Wire and timings of the bring-up."""
        return {"wire": self.fabric.wire, "lab": self.fabric.lab_id, "bring_up_ms": self.fabric.timings}

    def journals(self) -> Mapping[str, Sequence[str]]:
        """None: they are among the logs."""
        return {}

    def logs(self) -> Mapping[str, Path]:
        """All log files of the nodes."""
        if self._fabric is None:
            return {}
        root = self._fabric.directory / "nodes"
        return {str(path.relative_to(root)): path for path in sorted(root.glob("*/*.log"))}


def adapter_counters(status: Mapping[str, Any]) -> dict[str, int]:
    """The counters in a host's status, summed over its adapters."""
    total: dict[str, int] = {}
    adapters = status.get("adapters", ())
    for adapter in adapters.values() if isinstance(adapters, Mapping) else adapters:
        counters = adapter.get("counters", {}) if isinstance(adapter, Mapping) else {}
        for name, amount in counters.items():
            if isinstance(amount, int):
                total[name] = total.get(name, 0) + amount
    return total


def _target(fault: PlannedFault) -> str:
    assert fault.step.target is not None
    return fault.step.target


def _port(fault: PlannedFault) -> tuple[str, str]:
    node, _, adapter = _target(fault).partition(".")
    return node, adapter


def _is_running(pid: int) -> bool:
    """Whether the process does anything; one that has ended and waits for its parent to notice does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
