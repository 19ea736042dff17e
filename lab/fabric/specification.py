"""What the fabric process is told: a plan turned into files and one JSON object, checked against this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import InputError, MachineError
from lab.fabric import namespaces, registry

if TYPE_CHECKING:
    from lab.plan import Plan

FREE_BYTES_PER_NODE = 8 << 20
"""Room for a node's memory, logs and the beginning of its history, beside its NVRAM."""
_AF_XDP = 44


def resolve_wire(wire: str) -> str:
    """What "auto" means on this machine, "xdp" or "packet". Raises MachineError for "xdp" where that can't be had."""
    if wire == "packet":
        return "packet"
    problem = xdp_problem()
    if problem is None:
        return "xdp"
    if wire == "xdp":
        raise MachineError(f"AF_XDP: {problem}", "root, and a kernel with CONFIG_XDP_SOCKETS; or --wire packet")
    return "packet"


def xdp_problem() -> str | None:
    """Why AF_XDP can't be used here, None if it can: a socket and a map are made and closed again."""
    import socket

    from emul.port import bpf

    if not namespaces.may_make_namespaces():
        return "needs root (in a user namespace the kernel refuses BPF programs)"
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW, 0).close()
        os.close(bpf.create_xsk_map(1))
    except OSError as error:
        return f"the kernel refused it ({error.strerror})"
    return None


def specification(
    plan: Plan,
    claim: registry.Claim,
    chosen: str,
    wire: str,
    keep: bool,
    seed: int,
    given: dict[str, int],
    adapters: bool,
) -> dict[str, Any]:
    """What the fabric process is told, and the directories and host configurations that it refers to."""
    from lab.plan import INTERFACE_MTU, node_directory

    topology = plan.topology
    _check_room(claim.directory, sum(node.nvram_bytes + FREE_BYTES_PER_NODE for node in topology.nodes.values()))
    adapter_wire = "packet" if chosen == "packet" else wire
    nodes: list[dict[str, Any]] = []
    for node in topology.nodes.values():
        directory = node_directory(claim.directory, node.name)
        directory.mkdir(parents=True, mode=0o700)
        _check_socket_paths(directory, node.adapters)
        host_config = directory / "host.json"
        host_config.write_text(json.dumps(plan.host_config(node.name, claim.directory, seed=seed)), encoding="utf-8")
        configs = [plan.adapter_config(node.name, name, claim.directory, wire=adapter_wire) for name in node.adapters]
        nodes.append(
            {
                "name": node.name, "memory": str(directory / "node.mem"), "host_config": str(host_config),
                "start": adapters,
                "adapters": [
                    {"name": name, "config": {**config, "adapter_index": index}}
                    for index, (name, config) in enumerate(zip(node.adapters, configs, strict=True))
                ],
            }
        )  # fmt: skip
    return {
        "lab": claim.lab_id, "directory": str(claim.directory), "kept": keep, "topology": topology.name,
        "source": str(topology.source) if topology.source else None, "wire": chosen, "mtu": INTERFACE_MTU,
        "seed": seed, "user_namespace": not namespaces.may_make_namespaces(), "given": list(given), "nodes": nodes,
        "switches": list(topology.switches), "cables": [_cable(plan, name) for name in topology.cables],
        "addresses": {port.address: port.node for port in plan.ports.values()},
    }  # fmt: skip


def _cable(plan: Plan, name: str) -> dict[str, Any]:
    cable = plan.topology.cables[name]
    ends: list[dict[str, str]] = []
    for end in cable.ends:
        if end.switch:
            ends.append({"switch": end.switch})
        else:
            port = plan.ports[end.node, end.adapter]
            ends.append({"node": end.node, "adapter": end.adapter, "mac": port.mac.hex(":")})
    shape = {"delay_ns": cable.delay_ns, "rate_bps": cable.rate_bps}
    return {"name": name, "ends": ends, "shape": {key: value for key, value in shape.items() if value}}


def _check_room(directory: Path, needed: int) -> None:
    size = os.statvfs(directory)
    free = size.f_bavail * size.f_frsize
    if free < needed:
        raise MachineError(
            f"{directory.parent}: {free >> 20} MiB free, this lab needs {needed >> 20} MiB there",
            "make room (`lab down --all` removes labs), or make the nodes' NVRAM smaller",
        )


def _check_socket_paths(directory: Path, adapters: Sequence[str]) -> None:
    longest = max((len(os.fsencode(directory / f"{name}.sock")) for name in (*adapters, "host")), default=0)
    if longest > registry.SOCKET_PATH_BYTES_MAX:
        raise InputError(
            None, None, None,
            f"{directory}: names of node, adapter and lab make socket paths of {longest} bytes, the kernel takes "
            f"{registry.SOCKET_PATH_BYTES_MAX}; use shorter ones",
        )  # fmt: skip


def record_of(spec: Mapping[str, Any], pid: int | None) -> dict[str, Any]:
    """What lab.json tells: enough for other commands to find their way. `pid` is None until the lab is built."""
    keys = ("lab", "topology", "source", "wire", "mtu", "kept", "switches", "given", "seed")
    nodes = {node["name"]: [adapter["name"] for adapter in node["adapters"]] for node in spec["nodes"]}
    return {
        **{key: spec[key] for key in keys},
        "nodes": nodes, "cables": [cable["name"] for cable in spec["cables"]], "pid": pid, "started": time.time(),
    }  # fmt: skip
