"""Faults in a lab that stays: injected by one command, undone by another.

What is on stands in a file of the lab's directory, with what it takes to undo it: commands come and go. The faults
themselves are done as in a run, by the world of namespaces over the running fabric.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import InputError, LabError, Problem
from lab.faults import FAULTS
from lab.netns_world import NetnsWorld
from lab.plan import Plan
from lab.scenario import At, Scenario, Step
from lab.topology import Topology
from lab.world import PlannedFault

if TYPE_CHECKING:
    from lab.fabric.client import Fabric

FILE = "faults.json"
INJECTED_MAX = 1000
"""Faults that one lab keeps note of."""


@dataclass(slots=True)
class Injected:
    """One fault that is on."""

    id: int
    fault: str
    target: str | None
    parameters: dict[str, Any] = field(default_factory=dict)
    rule: int | None = None
    """Of the injector, where a rule of it does the fault."""

    def planned(self) -> PlannedFault:
        """As a world takes it. What lasts until `lab heal` has no duration."""
        return PlannedFault(self.id, Step(At(0), self.fault, self.target, None, dict(self.parameters)))

    def describe(self) -> str:
        """For people."""
        client = [str(self.parameters["client"])] if "client" in self.parameters else []
        return " ".join([str(self.id), self.fault, *([self.target] if self.target else []), *client])


def parse_step(topology: Topology, fault: str, target: str | None, options: list[str]) -> Step:
    """The step that a command line names: "key=value" as a scenario's step has them. Raises InputError."""
    pairs: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key or not value:
            raise _wrong(f'expected key=value, found "{option}"')
        if key in pairs:
            raise _wrong(f'"{key}" is given twice')
        if key in ("at", "on", "fault", "target"):
            raise _wrong(f'"{key}" belongs into a scenario: here the fault happens at once')
        pairs[key] = value
    lines = ["at: 0", f"fault: {json.dumps(fault)}"]
    lines += [f"target: {json.dumps(target)}"] if target is not None else []
    lines += [f"{json.dumps(key)}: {_plain(value)}" for key, value in pairs.items()]
    text = f"scenario: injected\ntopology: x\nsteps:\n  - {{{', '.join(lines)}}}\n"
    try:
        return Scenario.parse(text, topology).steps[0]
    except InputError as error:  # places in a text that nobody has written mean nothing
        raise InputError.several([Problem(None, None, None, each.message) for each in error.problems]) from None


class InjectedFaults:
    """The faults of one running lab."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._file = fabric.directory / FILE
        self.topology = _topology_of(fabric)
        self._world = NetnsWorld.over(Plan(self.topology), fabric)

    def inject(self, step: Step) -> Injected:
        """Makes it happen; what can be undone is noted. Raises LabError."""
        with self._noted() as noted:
            if len(noted) >= INJECTED_MAX:
                raise LabError(f"this lab has {INJECTED_MAX} faults already; `lab heal {self._fabric.lab_id}`")
            number = 1 + self._last_id()  # never one that an adapter has had before
            injected = Injected(number, step.fault, step.target, dict(step.parameters))
            self._check_not_on(injected, noted)
            self._check_host(step)
            planned = PlannedFault(number, step)
            self._world.apply(planned)
            if planned.by_injector:
                injected.rule = self._world.rule_id(number)
            if step.fault == "adapter.port_up":
                noted[:] = [e for e in noted if (e.fault, e.target) != ("adapter.port_down", step.target)]
            if FAULTS[step.fault].undone:
                noted.append(injected)
            (self._file.parent / "faults.last").write_text(str(number), encoding="ascii")
            return injected

    def heal(self, number: int | None = None) -> list[Injected]:
        """Undoes one, or all, the newest first; gives them. Raises InputError for one that is not on."""
        with self._noted() as noted:
            chosen = [each for each in noted if number in (None, each.id)]
            if number is not None and not chosen:
                on = ", ".join(str(each.id) for each in noted) or "none"
                raise _wrong(f"fault {number} is not on; those that are: {on}")
            for each in reversed(chosen):
                planned = each.planned()
                if each.rule is not None:
                    self._world.note_rule(each.id, each.rule)
                self._world.clear(planned)
                noted.remove(each)
            return chosen

    def met(self, number: int) -> int | None:
        """How often a fault that was undone has met something; None where only the adapter or nobody counts."""
        firing = self._world.fired().get(number)
        return firing.count if firing is not None else None

    def on(self) -> list[Injected]:
        """Those that are on."""
        with self._noted() as noted:
            return list(noted)

    def _check_not_on(self, injected: Injected, noted: list[Injected]) -> None:
        twice = injected.fault.startswith(("cable.cut", "cable.blackhole", "host.")) or injected.fault == "adapter.die"
        if twice and any((each.fault, each.target) == (injected.fault, injected.target) for each in noted):
            raise _wrong(f"{injected.fault} {injected.target} is on already; `lab heal {self._fabric.lab_id}` ends it")

    def _check_host(self, step: Step) -> None:
        node = self.topology.nodes.get(step.target or "")
        if step.fault.startswith("host.") and node is not None and node.kind == "docker":
            raise _wrong(f"the host of {node.name} is a container: `docker kill` or `docker pause` do that there")

    def _last_id(self) -> int:
        with suppress(OSError, ValueError):
            return int((self._file.parent / "faults.last").read_text(encoding="ascii"))
        return 0

    @contextmanager
    def _noted(self) -> Iterator[list[Injected]]:
        """The list, for this command alone; written back also where something failed half-way."""
        fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = Path(self._file).read_text(encoding="utf-8")
            noted = [Injected(**entry) for entry in json.loads(text or "[]")]
            try:
                yield noted
            finally:
                data = json.dumps([_fields(each) for each in noted]).encode()
                os.pwrite(fd, data, 0)
                os.ftruncate(fd, len(data))
        finally:
            os.close(fd)


def _fields(injected: Injected) -> Mapping[str, object]:
    return {
        "id": injected.id, "fault": injected.fault, "target": injected.target, "parameters": injected.parameters,
        "rule": injected.rule,
    }  # fmt: skip


def _plain(value: str) -> str:
    """As YAML writes it: a number stays one, all else is text."""
    number = value.removeprefix("-")
    return value if number.replace(".", "", 1).isdecimal() else json.dumps(value)


def _topology_of(fabric: Fabric) -> Topology:
    source = fabric.source
    try:
        topology = Topology.load(source if source is not None else fabric.topology)
    except InputError as error:
        raise LabError(f"the topology of lab {fabric.lab_id} is not where it was: {error}") from error
    if {name: list(node.adapters) for name, node in topology.nodes.items()} != fabric.nodes:
        raise LabError(f"{source}: changed since lab {fabric.lab_id} was started; `lab down` and `lab up` it again")
    return topology


def _wrong(message: str) -> InputError:
    return InputError(None, None, None, message)
