"""The scenario file: its format, and the checks against the topology that it names.

scenario: cable-cut
topology: ha-pair
workload: {nvram-mirror: {record: 4KiB, depth: 8}}
steps:
  - {at: 1s, fault: cable.cut, target: ic0, for: 500ms}
  - {on: {frame: {opcode: RDMA_WRITE_LAST, from: a, nth: 3}}, fault: cable.drop}
expect:
  sessions.recovered: {within: 5s}
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from lab.errors import InputError, Problem, did_you_mean
from lab.expectations import EXPECTATIONS
from lab.faults import FAULTS, Fault, Target
from lab.parameters import COUNT_MAX, Parameter, ParameterKind
from lab.resources import locate, looks_like_path, shipped
from lab.scenario import (
    DEPTH_MAX,
    OPCODE_GROUPS,
    OPCODES,
    RATE_MAX_PER_S,
    RECORD_MAX_BYTES,
    RECORD_MIN_BYTES,
    SESSION_STATES,
    STEPS_MAX,
    At,
    OnFrame,
    OnSession,
    Scenario,
    Step,
    Trigger,
    Workload,
)
from lab.topology import LOADABLE, Topology
from lab.units import format_size, found
from lab.validation import NAME_PATTERN, Duration, FileModel, Size, in_file_order, validate
from lab.yaml_tree import Document, Place, parse_document, read_document

_RATE_PATTERN = r"^[0-9]+ ?/s$"


def parse_rate_per_s(value: object) -> int:
    """Records a second from text such as 500/s. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,9}) ?/s", value) if isinstance(value, str) else None
    if match is None or not 1 <= int(match[1]) <= RATE_MAX_PER_S:
        raise ValueError(f"expected records a second such as 500/s (1 to {RATE_MAX_PER_S}), found {found(value)}")
    return int(match[1])


if TYPE_CHECKING:
    RatePerSecond = int
else:
    _schema = {"type": "string", "pattern": _RATE_PATTERN}
    RatePerSecond = Annotated[int, BeforeValidator(parse_rate_per_s), WithJsonSchema(_schema)]


class WorkloadModel(FileModel):
    """What a client does on each node that runs it."""

    record: Size
    depth: int = Field(default=1, ge=1, le=DEPTH_MAX)
    rate: RatePerSecond | None = None


class FrameModel(FileModel):
    """The nth frame that matches."""

    opcode: str
    source: str | None = Field(default=None, alias="from")
    target: str | None = Field(default=None, alias="to")
    cable: str | None = None
    nth: int = Field(default=1, ge=1, le=COUNT_MAX)


class OnModel(FileModel):
    """An event: a frame, or a session's new state (then `client` and `node` may narrow it)."""

    frame: FrameModel | None = None
    session: str | None = None
    client: str | None = None
    node: str | None = None


class StepModel(FileModel):
    """One fault: when (`at` or `on`), what, at what, for how long; other keys are the fault's parameters."""

    model_config = ConfigDict(extra="allow")

    at: Duration | None = None
    on: OnModel | None = None
    fault: str
    target: str | None = None
    duration: Duration | None = Field(default=None, alias="for")


class ScenarioModel(FileModel):
    """A run: topology, workload, faults, expectations."""

    scenario: str = Field(min_length=1, max_length=64, pattern=NAME_PATTERN)
    description: str = ""
    topology: str = Field(min_length=1)
    workload: dict[str, WorkloadModel] = Field(default_factory=dict)
    steps: list[StepModel] = Field(default_factory=list, max_length=STEPS_MAX)
    expect: dict[str, dict[str, object] | None] = Field(default_factory=dict)


def load_scenario(name_or_path: str | Path, topology: Topology | None) -> Scenario:
    """Reads a scenario file, or one that ships, checked against `topology` (None: the one it names)."""
    path = locate(name_or_path, "scenario")
    return scenario_from(read_document(path), topology, path)


def parse_scenario(text: str, topology: Topology | None, file: str) -> Scenario:
    """As `load_scenario`, from text."""
    return scenario_from(parse_document(text, file), topology, None)


def scenario_from(document: Document, topology: Topology | None, source: Path | None) -> Scenario:
    """The scenario in a document that was read already. Raises InputError."""
    model = validate(ScenarioModel, document)
    if topology is None:
        topology = _its_topology(document, model, source)
    reader = _Reader(document, model, topology)
    scenario = Scenario(
        name=model.scenario,
        topology=model.topology,
        workload=reader.workload(),
        steps=reader.steps(),
        expect=reader.expect(),
        description=model.description,
        source=source,
    )
    if reader.problems:
        raise InputError.several(in_file_order(reader.problems))
    return scenario


def find_topology(name: str, scenario_file: Path | None) -> Path:
    """The file of the topology that a scenario names. Raises InputError.

    A path counts from the scenario's directory; a name is looked for there, in the directory above, and among those
    that ship.
    """
    beside = scenario_file.parent if scenario_file is not None else Path()
    if looks_like_path(name):
        return beside / name
    for directory in (beside, beside.parent):
        candidate = directory / f"{name}.yaml"
        if scenario_file is not None and candidate.is_file() and candidate != scenario_file:
            return candidate
    known = shipped("topology")
    if name not in known:
        hint = did_you_mean(name, known) or f" (those that ship: {', '.join(known)})"
        raise InputError(None, None, None, f'no topology "{name}"{hint}')
    return known[name]


def _its_topology(document: Document, model: ScenarioModel, source: Path | None) -> Topology:
    try:
        path = find_topology(model.topology, source)
    except InputError as error:
        raise InputError.several([document.problem(("topology",), error.problems[0].message)]) from None
    if not path.is_file():
        raise InputError.several([document.problem(("topology",), f'no topology file "{path}"')])
    return Topology.load(path)


class _Reader:
    """Turns the model into values; what is wrong is collected in `problems`."""

    def __init__(self, document: Document, model: ScenarioModel, topology: Topology) -> None:
        self.document = document
        self.model = model
        self.topology = topology
        self.problems: list[Problem] = []

    def workload(self) -> dict[str, Workload]:
        smallest = min(node.nvram_bytes for node in self.topology.nodes.values()) // 2
        running = {client for node in self.topology.nodes.values() for client in node.clients}
        loads: dict[str, Workload] = {}
        for client, load in self.model.workload.items():
            place = ("workload", client)
            if client not in self.topology.client_names:
                self._unknown(place, "client", client, self.topology.client_names, key=True)
            elif client not in running:
                self._wrong(place, f"no node of {self.topology.name} runs the client {client}", key=True)
            elif client not in LOADABLE:
                driven = " and ".join(LOADABLE)
                self._wrong(place, f"expected {driven}, found {client}: it works by itself", key=True)
            if not RECORD_MIN_BYTES <= load.record <= RECORD_MAX_BYTES:
                bounds = f"{format_size(RECORD_MIN_BYTES)} to {format_size(RECORD_MAX_BYTES)}"
                self._wrong((*place, "record"), f"record: expected {bounds}, found {format_size(load.record)}")
            elif client == "nvram-mirror" and load.record * load.depth > smallest:
                self._wrong(
                    (*place, "record"),
                    f"record: {load.depth} records of {format_size(load.record)} don't fit into half of the smallest "
                    f"NVRAM ({format_size(smallest)})",
                )
            loads[client] = Workload(load.record, load.depth, load.rate)
        return loads

    def steps(self) -> tuple[Step, ...]:
        steps = []
        for index, step in enumerate(self.model.steps):
            place: Place = ("steps", index)
            trigger = self._trigger(place, step)
            fault = FAULTS.get(step.fault)
            if fault is None:
                self._unknown((*place, "fault"), "fault", step.fault, FAULTS)
                continue
            self._check_target(place, step, fault)
            if step.duration is not None and not fault.undone:
                self._wrong((*place, "for"), f"{fault.name} can't be undone, so it takes no `for`", key=True)
            elif step.duration == 0:
                self._wrong((*place, "for"), "for: expected a duration above 0, found 0")
            own = step.model_extra or {}
            known = [field.alias or name for name, field in StepModel.model_fields.items()]
            parameters = self._parameters(place, own, fault.parameters, fault.name, known)
            self._check_ends(place, step, fault, parameters)
            self._check_client(place, step, fault, parameters)
            steps.append(Step(trigger, step.fault, step.target, step.duration, parameters))
        return tuple(steps)

    def expect(self) -> dict[str, dict[str, int | float | str]]:
        expect = {}
        for name, given in self.model.expect.items():
            expectation = EXPECTATIONS.get(name)
            if expectation is None:
                self._unknown(("expect", name), "expectation", name, EXPECTATIONS, key=True)
                continue
            expect[name] = self._parameters(("expect", name), given or {}, expectation.parameters, name, [])
        return expect

    def _trigger(self, place: Place, step: StepModel) -> Trigger:
        if (step.at is None) == (step.on is None):
            what = "both" if step.at is not None else "neither"
            self._wrong(place, f"expected either `at` or `on`, found {what}")
        if step.on is None:
            return At(step.at or 0)
        if (step.on.frame is None) == (step.on.session is None):
            what = "both" if step.on.frame is not None else "neither"
            self._wrong((*place, "on"), f"on: expected either `frame` or `session`, found {what}")
        if step.on.frame is not None:
            return self._on_frame((*place, "on"), step.on, step.on.frame)
        return self._on_session((*place, "on"), step.on)

    def _on_frame(self, place: Place, on: OnModel, frame: FrameModel) -> OnFrame:
        for key in ("client", "node"):
            if getattr(on, key) is not None:
                self._wrong((*place, key), f"`{key}` goes with `session`, not with `frame`", key=True)
        spot = (*place, "frame")
        if frame.opcode not in (*OPCODES, *OPCODE_GROUPS):
            self._unknown((*spot, "opcode"), "opcode", frame.opcode, (*OPCODES, *OPCODE_GROUPS))
        for key, name in (("from", frame.source), ("to", frame.target)):
            if name is not None and name not in self.topology.nodes:
                self._unknown((*spot, key), "node", name, self.topology.nodes)
        if frame.source is not None and frame.source == frame.target:
            self._wrong((*spot, "to"), f"to: expected another node than {frame.source}, found the same")
        if frame.cable is not None and frame.cable not in self.topology.cables:
            self._unknown((*spot, "cable"), "cable", frame.cable, self.topology.cables)
        return OnFrame(frame.opcode, frame.source, frame.target, frame.cable, frame.nth)

    def _on_session(self, place: Place, on: OnModel) -> OnSession:
        state = on.session or SESSION_STATES[0]
        if state not in SESSION_STATES:
            self._unknown((*place, "session"), "session state", state, SESSION_STATES)
        if on.client is not None and on.client not in self.topology.client_names:
            self._unknown((*place, "client"), "client", on.client, self.topology.client_names)
        if on.node is not None and on.node not in self.topology.nodes:
            self._unknown((*place, "node"), "node", on.node, self.topology.nodes)
        return OnSession(state, on.client, on.node)

    def _check_target(self, place: Place, step: StepModel, fault: Fault) -> None:
        by_frame = step.on is not None and step.on.frame is not None
        spot = (*place, "target")
        if step.target is None:
            if fault.target is Target.FRAME and by_frame:
                return
            what = {
                Target.CABLE: "a cable",
                Target.FRAME: "a cable, or a trigger `on: {frame: ...}`",
                Target.NODE: "a node",
                Target.PORT: "an adapter (NODE.ADAPTER)",
            }[fault.target]
            self._wrong((*place, "fault"), f"{fault.name} needs a target: {what}")
        elif fault.target in (Target.CABLE, Target.FRAME):
            if step.target not in self.topology.cables:
                self._unknown(spot, "cable", step.target, self.topology.cables)
        elif fault.target is Target.NODE:
            if step.target not in self.topology.nodes:
                self._unknown(spot, "node", step.target, self.topology.nodes)
        elif not self.topology.has_port(*_split(step.target)):
            ports = [f"{node.name}.{adapter}" for node in self.topology.nodes.values() for adapter in node.adapters]
            self._unknown(spot, "adapter", step.target, ports)

    def _parameters(
        self, place: Place, given: dict[str, object], known: tuple[Parameter, ...], owner: str, keys: list[str]
    ) -> dict[str, int | float | str]:
        """The values of `given` by Parameter.key; `keys` are others that may stand beside them, for suggestions."""
        by_name = {parameter.name: parameter for parameter in known}
        values: dict[str, int | float | str] = {}
        for name, value in given.items():
            if name not in by_name:
                takes = f"; {owner} takes {', '.join(by_name)}" if by_name else f"; {owner} takes no parameters"
                hint = did_you_mean(name, [*by_name, *keys])
                self._wrong((*place, name), f'unknown key "{name}"{hint or takes}', key=True)
                continue
            try:
                values[by_name[name].key] = by_name[name].parse(value)
            except ValueError as error:
                self._wrong((*place, name), f"{name}: {error}")
        for parameter in known:
            if parameter.required and parameter.name not in given:
                self._wrong(place, f'{owner}: the key "{parameter.name}" is missing ({parameter.help})')
        return values

    def _check_ends(
        self, place: Place, step: StepModel, fault: Fault, parameters: dict[str, int | float | str]
    ) -> None:
        if step.target not in self.topology.cables:
            return
        owners = [end.owner for end in self.topology.cables[step.target].ends]
        for parameter in fault.parameters:
            name = parameters.get(parameter.key)
            if parameter.kind is ParameterKind.END and name is not None and name not in owners:
                message = f'{parameter.name}: cable {step.target} ends at {" and ".join(owners)}, found "{name}"'
                self._wrong((*place, parameter.name), message)

    def _check_client(
        self, place: Place, step: StepModel, fault: Fault, parameters: dict[str, int | float | str]
    ) -> None:
        node = self.topology.nodes.get(step.target or "")
        for parameter in fault.parameters:
            name = parameters.get(parameter.key)
            if parameter.kind is ParameterKind.CLIENT and name is not None and node and name not in node.clients:
                runs = ", ".join(node.clients) or "none"
                hint = did_you_mean(str(name), node.clients) or f"; it runs: {runs}"
                self._wrong((*place, parameter.name), f'client: {node.name} runs no "{name}"{hint}')

    def _unknown(self, place: Place, what: str, word: str, known: Iterable[str], *, key: bool = False) -> None:
        names = list(known)
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        self._wrong(place, f'unknown {what} "{word}"{did_you_mean(word, names) or f" (known: {listed})"}', key=key)

    def _wrong(self, place: Place, message: str, *, key: bool = False) -> None:
        self.problems.append(self.document.problem(place, message, key=key))


def _split(port: str) -> tuple[str, str]:
    node, _, adapter = port.partition(".")
    return node, adapter
