"""What follows from a topology: numbers, addresses, paths, and what each process is told. Pure.

Addresses are 10.77.x.y: x tells the adapter (ten for each), y the node, so that a capture reads easily. A path is one
local port to one partner port that a cable or connected switches lead to; both ends give it the same number.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from emul.node_memory import PATHS_MAX
from lab.topology import End, Node, Topology

INTERFACE_MTU = 2200
"""MTU of an adapter's interface. AF_XDP on a veth takes whole frames of up to some 3,500 bytes; all wires and worlds
have the same, so that a scenario that waits for the LAST packet of a 4 KiB write meets it in each of them."""
PATH_MTU = 2048
"""InfiniBand path MTU that fits it, headers and ICRC included."""
Port = tuple[str, str]
"""Node and adapter."""
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
        self.ports: dict[Port, PortPlan] = {
            (node.name, adapter): _port(node, adapter, index)
            for node in topology.nodes.values()
            for index, adapter in enumerate(node.adapters)
        }
        self._plugs = _plugs(topology)
        self._switches = _between_switches(topology)
        self._partners: dict[str, list[str]] = {}
        self._paths: dict[tuple[str, str], tuple[PathPlan, ...]] = {}

    def partners(self, node: str) -> list[str]:
        """The nodes that `node` has a path to, in the order of their ids (not to be changed)."""
        if node not in self._partners:
            self._partners[node] = self._find_partners(node)
        return self._partners[node]

    def _find_partners(self, node: str) -> list[str]:
        ports = [(node, adapter) for adapter in self.topology.nodes[node].adapters]
        own = [self._plugs[port][1] for port in ports if port in self._plugs]
        met = {end.node for end in own if not end.switch}
        reached = {switch for end in own if end.switch for switch in self._switches[end.switch]}
        met |= {name for (name, _), (_, far) in self._plugs.items() if far.switch in reached}
        return [other for other in self.topology.nodes if other in met and other != node]

    def is_chosen(self, client: str) -> bool:
        """Whether a node has chosen partners for `client`."""
        return any(client in node.partners for node in self.topology.nodes.values())

    def session_partners(self, node: str, client: str) -> list[str]:
        """The partners with which `client` on `node` is to have sessions, in the order of their ids: they run it too,
        and neither side has chosen others.
        """
        nodes = self.topology.nodes
        return [
            other
            for other in self.partners(node)
            if client in nodes[node].clients and client in nodes[other].clients
            and other in nodes[node].partners.get(client, (other,))
            and node in nodes[other].partners.get(client, (node,))
        ]  # fmt: skip

    def paths(self, node: str, partner: str) -> tuple[PathPlan, ...]:
        """The paths from `node` to `partner` by number; empty where there is none."""
        if node == partner:
            return ()
        if (node, partner) not in self._paths:
            low, high = sorted((node, partner), key=self.node_ids.__getitem__)
            self._paths[low, high] = self._find_paths(low, high)
            self._paths[high, low] = tuple(
                PathPlan(path.index, path.remote, path.local, path.cables[::-1]) for path in self._paths[low, high]
            )
        return self._paths[node, partner]

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
            "client_partners": {
                client: [self.node_ids[other] for other in self.session_partners(node, client)]
                for client in plan.clients
                if self.is_chosen(client)
            },
            "client_code": [client.config() for client in self.topology.own_clients],
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
            "cluster_keys_accepted": list(self.topology.cluster_keys_accepted),
            "ccm": dataclasses.asdict(self.topology.settings),
            "seed": seed,
            "log": str(directory / "host.log"),
            "journal": str(directory / "journal.log") if self.topology.journal else None,
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
            "service": str(directory / f"{adapter}.svc"),
            "node_memory": str(directory / "node.mem"),
            "nvram": str(directory / "nvram.img"),
            "nvram_bytes": self.topology.nodes[node].nvram_bytes,
            "cluster_key": self.topology.cluster_key,
            "cluster_keys_accepted": list(self.topology.cluster_keys_accepted),
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

    def _find_paths(self, low: str, high: str) -> tuple[PathPlan, ...]:
        """The first PATHS_MAX port pairs in an order that spreads them over ports, as `low` sees them."""
        pairs = [
            (self.ports[low, local], self.ports[high, remote], cables)
            for local in self.topology.nodes[low].adapters
            for remote in self.topology.nodes[high].adapters
            if (cables := self._route((low, local), (high, remote))) is not None
        ]
        chosen = sorted(pairs, key=_spread)[:PATHS_MAX]
        return tuple(PathPlan(index, local, remote, cables) for index, (local, remote, cables) in enumerate(chosen))

    def _route(self, local: Port, remote: Port) -> tuple[str, ...] | None:
        """The cables from `local` to `remote`; None where nothing leads there."""
        here, there = self._plugs.get(local), self._plugs.get(remote)
        if here is None or there is None:
            return None
        (cable, far), (other_cable, other_far) = here, there
        if not far.switch or not other_far.switch:
            return (cable,) if cable == other_cable else None
        between = self._switches[far.switch].get(other_far.switch)
        return None if between is None else (cable, *between, other_cable)


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


def _plugs(topology: Topology) -> dict[Port, tuple[str, End]]:
    """For each port in use: its cable, and that cable's other end."""
    return {
        (near.node, near.adapter): (cable.name, far)
        for cable in topology.cables.values()
        for near, far in (cable.ends, cable.ends[::-1])
        if not near.switch
    }


def _between_switches(topology: Topology) -> dict[str, dict[str, tuple[str, ...]]]:
    """From each switch to each that is connected with it: the cables on the way (there is one way only)."""
    neighbours: dict[str, list[tuple[str, str]]] = {name: [] for name in topology.switches}
    for cable in topology.cables.values():
        near, far = cable.ends
        if near.switch and far.switch:
            neighbours[near.switch].append((cable.name, far.switch))
            neighbours[far.switch].append((cable.name, near.switch))
    ways: dict[str, dict[str, tuple[str, ...]]] = {}
    for start in topology.switches:
        ways[start] = {start: ()}
        queue = deque([start])
        while queue:
            switch = queue.popleft()
            for cable_name, other in neighbours[switch]:
                if other not in ways[start]:
                    ways[start][other] = (*ways[start][switch], cable_name)
                    queue.append(other)
    return ways
