"""A world: where a scenario takes place. What the runner needs of it, the same for virtual and for real time.

The runner decides what happens when; a world only does it. Times are ns on the world's own scale, which is the scale of
its histories: CLOCK_MONOTONIC where time is real, virtual time in the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from emul.wire.frame import ETHERNET_BYTES
from lab.check.evidence import PathEnd
from lab.faults import FAULTS, HARDWARE_FAULTS, Target
from lab.plan import Plan
from lab.scenario import OnFrame, Step

OBSERVE = "observe"
"""Action of an injector rule that only counts: the frame goes on unchanged."""
FRAME_ACTIONS: Mapping[str, str] = {
    "cable.drop": "drop",
    "cable.mtu": "drop",
    "cable.corrupt": "corrupt",
    "cable.duplicate": "duplicate",
    "frame.nak_sequence": "forge_nak_sequence",
    "frame.spoof_source": "stranger_source",
    "frame.rkey_guess": "stranger_rkey",
    "frame.psn_jump": "stranger_psn",
}
"""Faults that a rule of the injector does, and the rule's action."""


class HostUnreachable(Exception):
    """The host does not answer: it is down, paused or not yet up. Expected while a fault is on."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One step of a schedule with its number in the run."""

    id: int
    step: Step

    @property
    def kind(self) -> str:
        """Its name in the catalogue, such as "cable.cut"."""
        return self.step.fault

    @property
    def by_injector(self) -> bool:
        """Whether a rule of the injector does it."""
        return self.step.fault in FRAME_ACTIONS

    @property
    def in_adapter(self) -> str | None:
        """Its name in the adapter that does it, None for a fault that is done elsewhere."""
        return HARDWARE_FAULTS.get(self.step.fault)

    @property
    def needs_arming(self) -> bool:
        """Whether a rule has to watch for its trigger from the start of the load on."""
        return isinstance(self.step.trigger, OnFrame)

    def in_words(self) -> str:
        """For people: the target, and which of the node's clients where one is meant."""
        client = self.step.parameters.get("client")
        return self.target_text() + (f" {client}" if client is not None else "")

    def target_text(self) -> str:
        """For people: the target, or the frame that it waits for."""
        if self.step.target is not None:
            return self.step.target
        trigger = self.step.trigger
        if isinstance(trigger, OnFrame):
            way = f" {trigger.source or 'any'}->{trigger.target or 'any'}"
            return f"{trigger.opcode} no. {trigger.nth}{way}" + (f" on {trigger.cable}" if trigger.cable else "")
        return ""


@dataclass(frozen=True, slots=True)
class Firing:
    """What became of a rule: how many frames it met, and when the first and the last of them."""

    count: int
    first_at: int
    last_at: int


class World(Protocol):
    """Where nodes, cables and time are. Each method may raise LabError when the world itself fails."""

    name: str
    wire: str
    """How frames move; known after `start`."""
    poll_ns: int
    """How often the runner should look."""
    rate_max_per_s: int | None
    """Records a second that one client may submit here at the most; None: as fast as they are committed."""

    def start(self) -> None:
        """Brings everything up: cables, power, adapters, hosts."""

    def now(self) -> int:
        """The time."""

    def advance(self, until: int) -> None:
        """Lets time pass until then."""

    def apply(self, fault: PlannedFault) -> int:
        """Makes the fault happen; gives when it took effect."""

    def clear(self, fault: PlannedFault) -> int:
        """Undoes it (a crashed host boots again); gives when."""

    def arm(self, faults: list[PlannedFault]) -> None:
        """Lets the injector watch for the triggers of these faults from now on."""

    def fired(self) -> Mapping[int, Firing]:
        """By fault id: the rules that met frames so far, and the hardware faults that met something."""

    def host(self, node: str, request: Mapping[str, object]) -> dict[str, object]:
        """One request to a host's control interface and its answer. Raises HostUnreachable."""

    def history(self, node: str) -> memoryview:
        """The history of a node as it is written (layout in ccm.history)."""

    def nvram(self, node: str) -> bytes | memoryview:
        """What the node's NVRAM card holds; asked when nothing is written to it any more."""

    def fence_epoch(self, node: str, slot: int) -> int:
        """The fence epoch that stands in a slot of the node's memory (emul.node_memory)."""

    def counters(self, node: str) -> dict[str, int]:
        """The counters of the node's adapters, summed."""

    def trace_hash(self) -> str:
        """Of all that happened, where a world can tell ("" where it can't): equal hashes, equal runs."""

    def details(self) -> Mapping[str, object]:
        """What a report may want to tell of this world: versions, wires, processes."""

    def logs(self) -> Mapping[str, Path]:
        """Log files by their path in a run directory ("a/host.log")."""

    def journals(self) -> Mapping[str, Sequence[str]]:
        """Journals of managers that are in no file, by their path in a run directory: their lines."""

    def stop(self) -> None:
        """Takes everything down, whatever state it is in. Calling it again does nothing."""

    def leftovers(self) -> list[str]:
        """After `stop`: what is still there."""


def client_requests(fault: PlannedFault) -> tuple[dict[str, object], dict[str, object]]:
    """What a host is asked for a fault of the family `client`, and to undo it."""
    client = fault.step.parameters["client"]
    return {"op": fault.kind, "client": client}, {"op": "client.open", "client": client}


@dataclass(slots=True)
class Touched:
    """What a fault reaches."""

    paths: set[PathEnd] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)


def touched(plan: Plan, fault: PlannedFault) -> Touched:
    """The path ends and the hosts that `fault` reaches, by node id."""
    reached = Touched()
    target, step = FAULTS[fault.kind].target, fault.step
    if target is Target.NODE and step.target is not None:
        reached.nodes.add(plan.node_ids[step.target])
        return reached
    cables = set(rule_cables(plan, fault)) if target is Target.FRAME else {step.target}
    node, _, adapter = (step.target or "").partition(".")
    for local in plan.topology.nodes:
        for partner in plan.partners(local):
            for path in plan.paths(local, partner):
                ports = {(path.local.node, path.local.adapter), (path.remote.node, path.remote.adapter)}
                hit = (node, adapter) in ports if target is Target.PORT else bool(cables & set(path.cables))
                if hit:
                    reached.paths.add(PathEnd(plan.node_ids[local], plan.node_ids[partner], path.index))
    return reached


def rule_cables(plan: Plan, fault: PlannedFault) -> list[str]:
    """The cables on which the rule of a fault has to look, sorted."""
    trigger, step = fault.step.trigger, fault.step
    if not isinstance(trigger, OnFrame):
        return [step.target] if step.target else sorted(plan.topology.cables)
    if trigger.cable is not None:
        return [trigger.cable]
    sources = [trigger.source] if trigger.source else list(plan.topology.nodes)
    targets = [trigger.target] if trigger.target else list(plan.topology.nodes)
    crossed = {
        # A path through switches is watched on its first cable alone: on each of them the frame would count again.
        path.cables[0]
        for source in sources
        for target in targets
        for path in plan.paths(source, target)
    }
    return sorted(crossed)


def firing_of(report: Mapping[str, object]) -> Firing | None:
    """What became of a hardware fault, from the adapter's report; None where it has met nothing."""
    count, first, last = report.get("fired"), report.get("first_at"), report.get("last_at")
    if not isinstance(count, int) or not count:
        return None
    at = report.get("at")
    begun = first if isinstance(first, int) else at if isinstance(at, int) else 0
    return Firing(count, begun, last if isinstance(last, int) else begun)


def cable_at(plan: Plan, port: str) -> str | None:
    """The cable that is plugged in at NODE.ADAPTER."""
    node, _, adapter = port.partition(".")
    for name, cable in plan.topology.cables.items():
        if any((end.node, end.adapter) == (node, adapter) for end in cable.ends):
            return name
    return None


def rule_of(plan: Plan, fault: PlannedFault) -> dict[str, object]:
    """The injector's rule for a fault that it does, or for a trigger that it watches (keys in lab.injector)."""
    step, trigger = fault.step, fault.step.trigger
    rule: dict[str, object] = {"action": FRAME_ACTIONS.get(fault.kind, OBSERVE), "note": f"fault {fault.id}"}
    if isinstance(trigger, OnFrame):
        rule.update(opcode=trigger.opcode, source=trigger.source, target=trigger.target, nth=trigger.nth)
        if trigger.cable is not None:
            rule["cables"] = [trigger.cable]
    else:
        rule.update(cables=rule_cables(plan, fault), source=step.parameters.get("from"))
    if fault.by_injector:
        probability = step.parameters.get("probability")
        rule.update(probability=probability, count=step.parameters.get("count"))
        size = step.parameters.get("size_bytes")
        if isinstance(size, int):
            rule["longer"] = size + ETHERNET_BYTES
        if rule["count"] is None and (size is not None or probability is not None or step.duration_ns is not None):
            del rule["count"]
            return {key: value for key, value in rule.items() if value is not None} | {"count": None}
    return {key: value for key, value in rule.items() if value is not None}
