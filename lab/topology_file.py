"""The topology file: its format, and the checks that cross its parts.

name: ha-pair
defaults: {nvram: 16MiB}                      # for every node that doesn't say otherwise
nodes:
  a: {adapters: [ic0, ic1], clients: [nvram-mirror]}
  b: {clients: [nvram-mirror, echo], partners: {nvram-mirror: [a], echo: all}}    # all is the default
switches: [s0]
cables:
  ic0: [a.ic0, b.ic0]                         # or {ends: [a.ic0, s0], delay: 2ms, rate: 1gbit}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from ccm.exchange import CLIENTS_MAX
from emul.clock import MILLISECOND
from lab import chosen_partners, own_clients, settings_file, units
from lab.errors import InputError, Problem, did_you_mean
from lab.own_clients import ClientCodeModel
from lab.plan import Plan
from lab.resources import locate
from lab.settings_file import SettingsModel, settings_of
from lab.topology import (
    ADAPTERS_PER_NODE_MAX,
    CLIENTS,
    DEFAULT_CLUSTER_KEY,
    DELAY_RESOLUTION_NS,
    NODES_MAX,
    NVRAM_MAX_BYTES,
    NVRAM_MIN_BYTES,
    RATE_MIN_BPS,
    BootTimes,
    Cable,
    End,
    Node,
    Topology,
)
from lab.validation import NAME_PATTERN, Duration, FileModel, Rate, Size, in_file_order, validate
from lab.yaml_tree import Document, Place, parse_document, read_document

INTERFACE_NAME_MAX = 15
"""The kernel's limit (IFNAMSIZ - 1)."""
NAME_MAX = 32
"""Nodes, switches, cables: they become parts of file and socket names."""
NVRAM_STEP_BYTES = 8192
"""Two halves of whole pages."""
DEFAULT_NVRAM_BYTES = 16 << 20
DEFAULT_CLIENTS = ["nvram-mirror", "echo"]
DEFAULT_ADAPTERS = ["ic0", "ic1"]
MEMORY_MIN_BYTES = 64 << 20

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED_INTERFACES = ("lo", "all", "default")


class BootModel(FileModel):
    """How long a node stays in each boot stage."""

    loader: Duration = 50 * MILLISECOND
    kernel: Duration = 50 * MILLISECOND
    storage_os: Duration = Field(default=100 * MILLISECOND, alias="storage-os")


_CHOICE_SCHEMA = {
    "anyOf": [
        {"const": chosen_partners.ALL},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
    ],
    "description": "The nodes that the client is to have sessions with; all: whoever is reached and wants it too.",
}
Choice = Annotated[list[str] | None, BeforeValidator(chosen_partners.parse_choice), WithJsonSchema(_CHOICE_SCHEMA)]


class NodeModel(FileModel):
    """A node, or the defaults of all."""

    kind: Literal["netns", "docker", "vm"] | None = None
    adapters: list[str] | None = Field(default=None, min_length=1, max_length=ADAPTERS_PER_NODE_MAX)
    nvram: Size | None = None
    clients: list[str] | None = None
    partners: dict[str, Choice] = Field(default_factory=dict)
    image: str | None = Field(default=None, min_length=1)
    cpus: float | None = Field(default=None, gt=0, le=1024, strict=False)
    memory: Size | None = None
    boot: BootModel | None = None


def _from_short_form(value: object) -> object:
    return {"ends": value} if isinstance(value, list) else value


class CableModel(FileModel):
    """A cable. Short form: the list of its ends."""

    ends: list[str]
    delay: Duration = 0
    rate: Rate | None = None


KEYS_ACCEPTED_MAX = 2
"""Cluster keys accepted besides the one that a node proves itself with: the former one, or the next."""


class TopologyModel(FileModel):
    """A cluster: nodes, switches and the cables between them."""

    name: str = Field(min_length=1, max_length=64, pattern=NAME_PATTERN)
    description: str = ""
    defaults: NodeModel = NodeModel()
    nodes: dict[str, NodeModel | None] = Field(min_length=1, max_length=NODES_MAX)
    switches: list[str] = Field(default_factory=list)
    cables: dict[str, Annotated[CableModel, BeforeValidator(_from_short_form)]] = Field(default_factory=dict)
    cluster_key: str = Field(default=DEFAULT_CLUSTER_KEY, min_length=1, max_length=64)
    cluster_keys_accepted: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        default_factory=list, max_length=KEYS_ACCEPTED_MAX
    )
    journal: bool = False
    ccm: SettingsModel = SettingsModel()
    client_code: dict[str, Annotated[ClientCodeModel, BeforeValidator(own_clients.from_short_form)]] = Field(
        default_factory=dict
    )


def load_topology(name_or_path: str | Path) -> Topology:
    """Reads a topology file, or one that ships by its name. Raises InputError."""
    path = locate(name_or_path, "topology")
    return _build(read_document(path), path, path.parent)


def parse_topology(text: str, file: str, directory: Path | None = None) -> Topology:
    """As `load_topology`, from text; references to files count from `directory` (None: where we are)."""
    return _build(parse_document(text, file), None, directory)


def topology_from(document: Document, source: Path | None) -> Topology:
    """The topology in a document that was read already. Raises InputError."""
    return _build(document, source, source.parent if source is not None else None)


def _build(document: Document, source: Path | None, directory: Path | None) -> Topology:
    model = validate(TopologyModel, document)
    nodes = {name: _node(name, number, model) for number, name in enumerate(model.nodes, start=1)}
    problems = [*_name_problems(document, model), *_node_problems(document, model)]
    problems += settings_file.problems(document, model.ccm)
    wanted = [*(model.defaults.clients or ()), *(name for node in nodes.values() for name in node.clients)]
    owned = own_clients.own_clients(model.client_code, wanted, directory)
    problems += _client_problems(document, model, [*CLIENTS, *owned])
    problems += own_clients.problems(document, model.client_code, owned)
    choices = {name: node.partners for name, node in model.nodes.items() if node is not None}
    chosen = chosen_partners.Checks(document, model.defaults.partners, choices, nodes)
    problems += chosen.names([*CLIENTS, *owned])
    cables = _Cables(document, model, nodes)
    problems += cables.problems()
    if problems:
        raise InputError.several(in_file_order(problems))
    built = {name: Cable(name, cables.ends[name], cable.delay, cable.rate) for name, cable in model.cables.items()}
    topology = Topology(
        model.name, nodes, tuple(model.switches), built, model.cluster_key, source, tuple(model.cluster_keys_accepted),
        model.journal, settings_of(model.ccm), tuple(owned.values()),
        (directory or Path()).resolve(),
    )
    plan = Plan(topology)
    lonely = [node for node in nodes.values() if node.clients and not plan.partners(node.name)]
    if lonely:
        message = "runs clients, but no cable leads from it to another node"
        raise InputError.several(
            [document.problem(("nodes", node.name), f"node {node.name} {message}", key=True) for node in lonely]
        )
    contradictions = list(chosen.meaning(plan))
    if contradictions:
        raise InputError.several(in_file_order(contradictions))
    return topology


def _node(name: str, number: int, model: TopologyModel) -> Node:
    own, common = model.nodes[name] or NodeModel(), model.defaults
    boot = own.boot or common.boot or BootModel()
    nvram = own.nvram if own.nvram is not None else common.nvram
    clients = own.clients if own.clients is not None else common.clients
    running = tuple(DEFAULT_CLIENTS if clients is None else clients)
    return Node(
        name=name,
        id=number,
        kind=own.kind or common.kind or "netns",
        adapters=tuple(own.adapters or common.adapters or DEFAULT_ADAPTERS),
        nvram_bytes=DEFAULT_NVRAM_BYTES if nvram is None else nvram,
        clients=running,
        image=own.image or common.image,
        cpus=own.cpus or common.cpus,
        memory_bytes=own.memory or common.memory,
        boot=BootTimes(boot.loader, boot.kernel, boot.storage_os),
        partners=chosen_partners.chosen(common.partners, own.partners, running),
    )


def _name_problems(document: Document, model: TopologyModel) -> Iterator[Problem]:
    for name in model.nodes:
        yield from _check_name(document, ("nodes", name), "node", name, NAME_MAX)
    for name in model.cables:
        yield from _check_name(document, ("cables", name), "cable", name, NAME_MAX)
    seen: set[str] = set()
    for index, name in enumerate(model.switches):
        yield from _check_name(document, ("switches", index), "switch", name, NAME_MAX)
        if name in model.nodes:
            yield document.problem(("switches", index), f'switch "{name}" has the name of a node')
        if name in seen:
            yield document.problem(("switches", index), f'switch "{name}" is there twice')
        seen.add(name)


def _check_name(document: Document, place: Place, what: str, name: str, length_max: int) -> Iterator[Problem]:
    if not _NAME.fullmatch(name):
        rule = "letters, digits, - and _, beginning with a letter"
        yield document.problem(place, f"{what} name: expected {rule}, found {units.found(name)}", key=True)
    elif len(name) > length_max:
        limit = "the kernel's limit for interfaces is " if length_max == INTERFACE_NAME_MAX else "at most "
        message = f"{what} name {units.found(name)} has {len(name)} characters, {limit}{length_max}"
        yield document.problem(place, message, key=True)


def _node_problems(document: Document, model: TopologyModel) -> Iterator[Problem]:
    yield from _check_node(document, ("defaults",), model.defaults)
    for name, node in model.nodes.items():
        if node is not None:
            yield from _check_node(document, ("nodes", name), node)
            kind = node.kind or model.defaults.kind or "netns"
            if node.image is not None and kind == "netns":
                yield document.problem(("nodes", name, "image"), "an image needs kind: docker or vm", key=True)


def _check_node(document: Document, place: Place, node: NodeModel) -> Iterator[Problem]:
    adapters = node.adapters or []
    for index, name in enumerate(adapters):
        spot: Place = (*place, "adapters", index)
        yield from _check_name(document, spot, "adapter", name, INTERFACE_NAME_MAX)
        if name in _RESERVED_INTERFACES:
            yield document.problem(spot, f'adapter name "{name}" is reserved by the kernel')
        if name in adapters[:index]:
            yield document.problem(spot, f'adapter "{name}" is there twice')
    yield from _check_sizes(document, place, node)


def _client_problems(document: Document, model: TopologyModel, known: list[str]) -> Iterator[Problem]:
    places: list[tuple[Place, NodeModel | None]] = [(("defaults",), model.defaults)]
    places += [(("nodes", name), node) for name, node in model.nodes.items()]
    for place, node in places:
        names = (node.clients if node is not None else None) or []
        for index, name in enumerate(names):
            spot: Place = (*place, "clients", index)
            if name not in known:
                hint = did_you_mean(name, known) or f" (known: {', '.join(known)}; your own: see client_code)"
                yield document.problem(spot, f'unknown client "{name}"{hint}')
            if name in names[:index]:
                yield document.problem(spot, f'client "{name}" is there twice')
        if len(names) > CLIENTS_MAX:
            yield document.problem((*place, "clients"), f"expected at most {CLIENTS_MAX} clients, found {len(names)}")


def _check_sizes(document: Document, place: Place, node: NodeModel) -> Iterator[Problem]:
    if node.nvram is not None and not NVRAM_MIN_BYTES <= node.nvram <= NVRAM_MAX_BYTES:
        low, high = units.format_size(NVRAM_MIN_BYTES), units.format_size(NVRAM_MAX_BYTES)
        message = f"nvram: expected {low} to {high}, found {units.format_size(node.nvram)}"
        yield document.problem((*place, "nvram"), message)
    elif node.nvram is not None and node.nvram % NVRAM_STEP_BYTES:
        step = units.format_size(NVRAM_STEP_BYTES)
        message = f"nvram: expected a multiple of {step} (two halves of whole pages), found {node.nvram}B"
        yield document.problem((*place, "nvram"), message)
    if node.memory is not None and node.memory < MEMORY_MIN_BYTES:
        low = units.format_size(MEMORY_MIN_BYTES)
        message = f"memory: expected at least {low}, found {units.format_size(node.memory)}"
        yield document.problem((*place, "memory"), message)


class _Cables:
    """Checks the cables; `ends` is filled as they are read."""

    def __init__(self, document: Document, model: TopologyModel, nodes: dict[str, Node]) -> None:
        self.document = document
        self.model = model
        self.nodes = nodes
        self.ends: dict[str, tuple[End, ...]] = {}

    def problems(self) -> list[Problem]:
        found = [problem for name in self.model.cables for problem in self._cable(name)]
        return [*found, *self._ports_used_twice(), *self._loops()]

    def _cable(self, name: str) -> Iterator[Problem]:
        cable = self.model.cables[name]
        place = ("cables", name)
        if len(cable.ends) != 2:
            yield self.document.problem((*place, "ends"), f"cable {name}: expected two ends, found {len(cable.ends)}")
            return
        ends: list[End] = []
        for index, text in enumerate(cable.ends):
            end = self._end(text)
            if isinstance(end, str):
                yield self.document.problem((*place, "ends", index), f"cable {name}: {end}")
            else:
                ends.append(end)
        if len(ends) == 2 and ends[0].owner == ends[1].owner:
            message = f"cable {name}: expected ends at two different nodes or switches, found {ends[0].owner} twice"
            yield self.document.problem((*place, "ends", 1), message)
        elif len(ends) == 2:
            self.ends[name] = tuple(ends)
        if 0 < cable.delay < DELAY_RESOLUTION_NS:
            message = (
                f"delay: expected at least {units.format_duration(DELAY_RESOLUTION_NS)} (the resolution of a shaped "
                f"cable), found {units.format_duration(cable.delay)}"
            )
            yield self.document.problem((*place, "delay"), message)
        if cable.rate is not None and cable.rate < RATE_MIN_BPS:
            low = units.format_rate(RATE_MIN_BPS)
            message = f"rate: expected at least {low}, found {units.format_rate(cable.rate)}"
            yield self.document.problem((*place, "rate"), message)

    def _end(self, text: str) -> End | str:
        """The end that `text` names, or what is wrong with it."""
        node, dot, adapter = text.partition(".")
        if not dot:
            if text in self.model.switches:
                return End(switch=text)
            if text in self.nodes:
                return f'expected NODE.ADAPTER or a switch, found "{text}"; node {text} has {self._adapters(text)}'
            names = [*self.model.switches, *self._ports()]
            return f'no switch "{text}"{did_you_mean(text, names)}; other ends are written NODE.ADAPTER'
        if node not in self.nodes:
            return f'no node "{node}"{did_you_mean(node, self.nodes) or self._known_nodes()}'
        if adapter not in self.nodes[node].adapters:
            hint = did_you_mean(adapter, self.nodes[node].adapters)
            return f'node {node} has no adapter "{adapter}"{hint}; it has {self._adapters(node)}'
        return End(node, adapter)

    def _adapters(self, node: str) -> str:
        return ", ".join(self.nodes[node].adapters)

    def _ports(self) -> list[str]:
        return [f"{node.name}.{adapter}" for node in self.nodes.values() for adapter in node.adapters]

    def _known_nodes(self) -> str:
        names = list(self.nodes)
        return f" (nodes: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"

    def _ports_used_twice(self) -> Iterator[Problem]:
        used: dict[End, str] = {}
        for name, ends in self.ends.items():
            for index, end in enumerate(ends):
                if not end.switch and end in used:
                    message = f"cable {name}: port {end} is used by cable {used[end]} already"
                    yield self.document.problem(("cables", name, "ends", index), message)
                used.setdefault(end, name)

    def _loops(self) -> Iterator[Problem]:
        """Switches don't run a spanning tree: a loop of cables between them would flood for ever."""
        group = {name: name for name in self.model.switches}

        def leader(name: str) -> str:
            while group[name] != name:
                name = group[name]
            return name

        for name, ends in self.ends.items():
            if ends[0].switch and ends[1].switch:
                one, other = leader(ends[0].switch), leader(ends[1].switch)
                if one == other:
                    yield self.document.problem(("cables", name), f"cable {name} closes a loop of switches", key=True)
                group[one] = other
