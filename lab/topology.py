"""A topology: nodes, switches and cables, as values.

`Topology.load` reads a file (lab.topology_file has the format) or one that ships. Sizes are bytes, durations ns, rates
bits a second. What addresses and paths follow from it is lab.plan's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccm.settings import DEFAULTS, Settings
from emul.clock import MILLISECOND
from emul.node_memory import ADAPTERS_MAX, PARTNERS_MAX

NODES_MAX = PARTNERS_MAX - 1
ADAPTERS_PER_NODE_MAX = ADAPTERS_MAX
NVRAM_MIN_BYTES = 1 << 16
NVRAM_MAX_BYTES = 4 << 30
DELAY_RESOLUTION_NS = 1 * MILLISECOND
"""A shaped cable's delay is a multiple of this: what a timer in Python keeps reliably on a loaded machine."""
RATE_MIN_BPS = 1_000_000
KINDS = ("netns", "docker", "vm")
CLIENTS = ("nvram-mirror", "echo", "failover-monitor")
"""Clients of the manager that come with it."""
LOADABLE = CLIENTS[:2]
"""Those that a scenario's workload can drive."""
DEFAULT_CLUSTER_KEY = "ccm-lab"


@dataclass(frozen=True, slots=True)
class BootTimes:
    """How long a node stays in each boot stage, in ns."""

    loader_ns: int = 50 * MILLISECOND
    kernel_ns: int = 50 * MILLISECOND
    storage_os_ns: int = 100 * MILLISECOND


@dataclass(frozen=True, slots=True)
class Node:
    """A storage system. `id` is 1 ... NODES_MAX, in the order of the file."""

    name: str
    id: int
    kind: str
    adapters: tuple[str, ...]
    """Names of its adapters, which are the names of their network interfaces."""
    nvram_bytes: int
    clients: tuple[str, ...]
    image: str | None = None
    cpus: float | None = None
    """Processor cores that it may use at the most; None: all."""
    memory_bytes: int | None = None
    """Main memory that it may use at the most; None: all."""
    boot: BootTimes = BootTimes()
    partners: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """By client the nodes that it is to have sessions with; of a client that is not there: all."""


@dataclass(frozen=True, slots=True)
class OwnClient:
    """A client of the user's own: where its class is (`ccm.client_code`), and what its constructor is given."""

    name: str
    code: str
    options: Mapping[str, object]
    path: tuple[str, ...] = ()
    """Directories in which its modules are looked for."""

    def directories(self) -> list[str]:
        """Where its code may lie: the file's directory, or where modules are looked for."""
        module = self.code.rpartition(":")[0]
        return [str(Path(module).parent)] if module.endswith(".py") else list(self.path)

    def config(self) -> dict[str, object]:
        """What hosts are told."""
        return {"name": self.name, "code": self.code, "options": dict(self.options), "path": list(self.path)}


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable: an adapter of a node, or a switch (then `node` and `adapter` are empty)."""

    node: str = ""
    adapter: str = ""
    switch: str = ""

    @property
    def owner(self) -> str:
        """The node or switch that the cable ends at."""
        return self.node or self.switch

    def __str__(self) -> str:
        return self.switch or f"{self.node}.{self.adapter}"


@dataclass(frozen=True, slots=True)
class Cable:
    """What connects two ports, or a port and a switch. `ends` has two."""

    name: str
    ends: tuple[End, ...]
    delay_ns: int = 0
    """One way."""
    rate_bps: int | None = None
    """Each way; None: as fast as the machine."""

    @property
    def shaped(self) -> bool:
        """Whether it delays or limits, and so leaves the kernel's fast path."""
        return self.delay_ns > 0 or self.rate_bps is not None


@dataclass(frozen=True, slots=True)
class Topology:
    """A cluster. Everything that its names refer to exists."""

    name: str
    nodes: dict[str, Node]
    switches: tuple[str, ...]
    cables: dict[str, Cable]
    cluster_key: str = DEFAULT_CLUSTER_KEY
    source: Path | None = None
    """The file it was read from; None for one made in a program."""
    cluster_keys_accepted: tuple[str, ...] = ()
    """Accepted besides `cluster_key`, while the cluster changes its key."""
    journal: bool = False
    """Whether the hosts write down all that their managers are told and want (ccm.journal)."""
    settings: Settings = DEFAULTS
    """Of the connection managers of all nodes."""
    own_clients: tuple[OwnClient, ...] = ()
    directory: Path = Path()
    """Where its references to files count from."""

    @property
    def client_names(self) -> tuple[str, ...]:
        """All clients that nodes may run; a client's number in a history is its place here + 1."""
        return (*CLIENTS, *(client.name for client in self.own_clients))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Topology:
        """Reads a topology file, or one that ships by its name. Raises InputError with file, line and column."""
        from lab.topology_file import load_topology

        return load_topology(name_or_path)

    @classmethod
    def parse(cls, text: str, file: str = "<text>", directory: Path | None = None) -> Topology:
        """As `load`, from text; `file` is what messages call it, and references to files count from `directory`."""
        from lab.topology_file import parse_topology

        return parse_topology(text, file, directory)

    def has_port(self, node: str, adapter: str) -> bool:
        """Whether there is such an adapter."""
        return node in self.nodes and adapter in self.nodes[node].adapters
