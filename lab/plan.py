"""What follows from a topology: numbers, addresses, paths, and what each process is told. Pure.

Addresses are 10.77.x.y: x tells the adapter (ten for each), y the node, so that a capture reads easily. A path is one
local port to one partner port that a cable or connected switches lead to; both ends give it the same number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emul.node_memory import PATHS_MAX
from lab.topology import End, Node, Topology

INTERFACE_MTU = {"xdp": 2200, "packet": 4200, "memory": 4200}
"""MTU of an adapter's interface by wire: AF_XDP takes whole frames in one buffer, AF_PACKET any size."""
PATH_MTU = {"xdp": 2048, "packet": 4096, "memory": 4096}
"""InfiniBand path MTU that fits it, headers and ICRC included."""
_NODES_PER_OCTET = 250
_OCTETS_PER_ADAPTER = 10


@dataclass(frozen=True, slots=True)
class PortPlan:
    """One port: `index` counts its node's adapters from 0; `mac` has six bytes."""

    node: str
    adapter: str
    index: int
    address: str
    mac: bytes

    @property
    def mac_text(self) -> str:
        """As ip(8) writes it."""
        return ":".join(f"{byte:02x}" for byte in self.mac)


@dataclass(frozen=True, slots=True)
class PathPlan:
    """One path as one of its ends sees it; `cables` are crossed in this order, from local to remote."""

    index: int
    local: PortPlan
    remote: PortPlan
    cables: tuple[str, ...]


class Plan:
    """All that follows from `topology`. Immutable once made."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.node_ids: dict[str, int] = {node.name: node.id for node in topology.nodes.values()}
        self.ports: dict[tuple[str, str], PortPlan] = {
            (node.name, adapter): _port(node, adapter, index)
            for node in topology.nodes.values()
            for index, adapter in enumerate(node.adapters)
        }
        self._paths = self._find_paths()

    def partners(self, node: str) -> list[str]:
        """The nodes that `node` has a path to, in the order of their ids."""
        return [other for other in self.topology.nodes if (node, other) in self._paths]

    def paths(self, node: str, partner: str) -> tuple[PathPlan, ...]:
        """The paths from `node` to `partner` by number; empty where there is none."""
        return self._paths.get((node, partner), ())

    def host_config(self, node: str, state: Path, *, seed: int = 0) -> dict[str, object]:
        """What a host process is told (ccm.process.main). `state` is the lab's state directory."""
        plan = self.topology.nodes[node]
        directory = node_directory(state, node)
        return {
            "node": node,
            "node_id": plan.id,
            "adapters": [
                {
                    "name": adapter,
                    "control": str(directory / f"{adapter}.sock"),
                    "address": self.ports[node, adapter].address,
                    "mac": self.ports[node, adapter].mac_text,
                }
                for adapter in plan.adapters
            ],
            "partners": [self._partner_config(node, partner) for partner in self.partners(node)],
            "clients": list(plan.clients),
            "nvram": str(directory / "nvram.img"),
            "nvram_bytes": plan.nvram_bytes,
            "node_memory": str(directory / "node.mem"),
            "history": str(directory / "history.bin"),
            "control": str(directory / "host.sock"),
            "boot": {
                "loader_ns": plan.boot.loader_ns,
                "kernel_ns": plan.boot.kernel_ns,
                "storage_os_ns": plan.boot.storage_os_ns,
            },
            "cluster_key": self.topology.cluster_key,
            "seed": seed,
            "log": str(directory / "host.log"),
        }

    def adapter_config(self, node: str, adapter: str, state: Path, *, wire: str = "auto") -> dict[str, object]:
        """What an adapter process is told (emul.process.main)."""
        port = self.ports[node, adapter]
        directory = node_directory(state, node)
        return {
            "node": node,
            "node_id": self.node_ids[node],
            "adapter": adapter,
            "index": port.index,
            "interface": adapter,
            "address": port.address,
            "mac": port.mac_text,
            "wire": wire,
            "control": str(directory / f"{adapter}.sock"),
            "node_memory": str(directory / "node.mem"),
            "nvram": str(directory / "nvram.img"),
            "nvram_bytes": self.topology.nodes[node].nvram_bytes,
            "cluster_key": self.topology.cluster_key,
            "log": str(directory / f"{adapter}.log"),
        }

    def _partner_config(self, node: str, partner: str) -> dict[str, object]:
        return {
            "name": partner,
            "id": self.node_ids[partner],
            "paths": [
                {
                    "index": path.index,
                    "adapter": path.local.index,
                    "local": path.local.address,
                    "remote": path.remote.address,
                }
                for path in self.paths(node, partner)
            ],
        }

    def _find_paths(self) -> dict[tuple[str, str], tuple[PathPlan, ...]]:
        """For each pair of nodes the first PATHS_MAX port pairs, in an order that spreads them over ports."""
        reached = {port: _reach(self.topology, port) for port in self.ports}
        paths: dict[tuple[str, str], tuple[PathPlan, ...]] = {}
        names = list(self.topology.nodes)
        for position, low in enumerate(names):
            for high in names[position + 1 :]:
                pairs = sorted(self._port_pairs(low, high, reached), key=_spread)[:PATHS_MAX]
                if not pairs:
                    continue
                paths[low, high] = tuple(PathPlan(i, a, b, cables) for i, (a, b, cables) in enumerate(pairs))
                paths[high, low] = tuple(PathPlan(i, b, a, cables[::-1]) for i, (a, b, cables) in enumerate(pairs))
        return paths

    def _port_pairs(
        self, low: str, high: str, reached: dict[tuple[str, str], dict[tuple[str, str], tuple[str, ...]]]
    ) -> Iterator[tuple[PortPlan, PortPlan, tuple[str, ...]]]:
        for local in self.topology.nodes[low].adapters:
            for remote in self.topology.nodes[high].adapters:
                cables = reached[low, local].get((high, remote))
                if cables is not None:
                    yield self.ports[low, local], self.ports[high, remote], cables


def node_directory(state: Path, node: str) -> Path:
    """Where a node's sockets, memory and logs are under a lab's state directory."""
    return state / "nodes" / node


def _port(node: Node, adapter: str, index: int) -> PortPlan:
    octet, last = divmod(node.id - 1, _NODES_PER_OCTET)
    address = f"10.77.{index * _OCTETS_PER_ADAPTER + octet}.{last + 1}"
    # 02: locally administered, unicast.
    mac = bytes((0x02, 0xCC, 0x4D, index)) + node.id.to_bytes(2, "big")
    return PortPlan(node.name, adapter, index, address, mac)


def _spread(pair: tuple[PortPlan, PortPlan, tuple[str, ...]]) -> tuple[int, int]:
    """Straight pairs (ic0-ic0, ic1-ic1) first, then those shifted by one, ...: a prefix uses many ports."""
    low, high, _ = pair
    return abs(high.index - low.index), low.index


def _reach(topology: Topology, port: tuple[str, str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The ports that frames from `port` can arrive at, with the cables they cross; breadth first."""
    at_switch: dict[str, list[tuple[str, End]]] = {name: [] for name in topology.switches}
    first: list[tuple[str, End]] = []
    for cable in topology.cables.values():
        for near, far in (cable.ends, cable.ends[::-1]):
            if near.switch:
                at_switch[near.switch].append((cable.name, far))
            elif (near.node, near.adapter) == port:
                first.append((cable.name, far))
    reached: dict[tuple[str, str], tuple[str, ...]] = {}
    seen: set[str] = set()
    queue: deque[tuple[tuple[str, ...], End]] = deque(((name,), far) for name, far in first)
    while queue:
        cables, end = queue.popleft()
        if not end.switch:
            reached.setdefault((end.node, end.adapter), cables)
        elif end.switch not in seen:
            seen.add(end.switch)
            queue.extend(((*cables, name), far) for name, far in at_switch[end.switch] if name != cables[-1])
    return reached
