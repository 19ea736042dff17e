"""A scenario: topology, workload, faults and expectations, as values.

`Scenario.load` reads a file (lab.scenario_file has the format) or one that ships, and checks it against the topology
that it names. Sizes are bytes, durations ns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lab.topology import Topology

STEPS_MAX = 1000
RECORD_MIN_BYTES = 64
RECORD_MAX_BYTES = 1 << 20
DEPTH_MAX = 256
RATE_MAX_PER_S = 1_000_000
SESSION_STATES = ("ready", "broken", "closed")
OPCODES = (
    "SEND_FIRST", "SEND_MIDDLE", "SEND_LAST", "SEND_LAST_WITH_IMMEDIATE", "SEND_ONLY", "SEND_ONLY_WITH_IMMEDIATE",
    "RDMA_WRITE_FIRST", "RDMA_WRITE_MIDDLE", "RDMA_WRITE_LAST", "RDMA_WRITE_LAST_WITH_IMMEDIATE",
    "RDMA_WRITE_ONLY", "RDMA_WRITE_ONLY_WITH_IMMEDIATE",
    "RDMA_READ_REQUEST", "RDMA_READ_RESPONSE_FIRST", "RDMA_READ_RESPONSE_MIDDLE", "RDMA_READ_RESPONSE_LAST",
    "RDMA_READ_RESPONSE_ONLY", "ACKNOWLEDGE",
)  # fmt: skip
OPCODE_GROUPS = ("SEND", "RDMA_WRITE", "RDMA_READ")
"""A message of that kind, counted by its first packet (FIRST or ONLY, or the READ request)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What one client does on each node that runs it."""

    record_bytes: int
    depth: int
    """Requests outstanding at once."""
    rate_per_s: int | None = None
    """Records a second at the most; None: as fast as they are committed."""


@dataclass(frozen=True, slots=True)
class At:
    """A moment, counted from when all sessions are ready and the load runs."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class OnFrame:
    """The nth frame that matches, counted from when the load runs."""

    opcode: str
    """One of OPCODES or OPCODE_GROUPS."""
    source: str | None = None
    """The node that sends it; None: any."""
    target: str | None = None
    """The node that it goes to; None: any."""
    cable: str | None = None
    nth: int = 1


@dataclass(frozen=True, slots=True)
class OnSession:
    """A session of `client` on `node` reaches a state (one of SESSION_STATES); None: any client, any node."""

    state: str
    client: str | None = None
    node: str | None = None


Trigger = At | OnFrame | OnSession


@dataclass(frozen=True, slots=True)
class Step:
    """One fault: when, what, at what, for how long."""

    trigger: Trigger
    fault: str
    """A name of lab.faults.FAULTS."""
    target: str | None
    """A cable, a node or NODE.ADAPTER, as the fault takes; None where the trigger's frame is the target."""
    duration_ns: int | None = None
    """After which it is undone; None: it stays until the end of the fault phase."""
    parameters: dict[str, int | float | str] = field(default_factory=dict)
    """As the fault's parameters name them (Parameter.key): "end", "from", "count", "probability"."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run to be made."""

    name: str
    topology: str
    """As the file says: the name of a shipped topology or of one beside the scenario, or a path."""
    workload: dict[str, Workload]
    """By client."""
    steps: tuple[Step, ...]
    expect: dict[str, dict[str, int | float | str]]
    """By name of lab.expectations.EXPECTATIONS; parameters by Parameter.key, such as "within_ns"."""
    description: str = ""
    source: Path | None = None

    @classmethod
    def load(cls, name_or_path: str | Path, topology: Topology | None = None) -> Scenario:
        """Reads a scenario file, or one that ships by its name, and checks it against `topology` (None: its own).

        Raises InputError with file, line and column.
        """
        from lab.scenario_file import load_scenario

        return load_scenario(name_or_path, topology)

    @classmethod
    def parse(cls, text: str, topology: Topology | None = None, file: str = "<text>") -> Scenario:
        """As `load`, from text; `file` is what messages call it."""
        from lab.scenario_file import parse_scenario

        return parse_scenario(text, topology, file)

    def load_topology(self) -> Topology:
        """The topology that it names. Raises InputError."""
        from lab.scenario_file import find_topology

        return Topology.load(find_topology(self.topology, self.source))
