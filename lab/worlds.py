"""Makes the world that a run is to take place in. Imports only the one that is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from lab.errors import InputError, MachineError
from lab.plan import Plan
from lab.topology import Topology
from lab.world import World

_HOME = {
    "sim": ("lab.sim.world", "SimWorld"),
    "netns": ("lab.netns_world", "NetnsWorld"),
    "docker": ("lab.docker.world", "DockerWorld"),
}
WORLDS = tuple(_HOME)
WIRES = ("auto", "xdp", "packet")


def world_for(topology: Topology) -> str:
    """The world that a topology asks for by the kinds of its nodes: containers as soon as one node is one."""
    return "docker" if any(node.kind == "docker" for node in topology.nodes.values()) else "netns"


def make_world(kind: str, plan: Plan, *, wire: str = "auto", seed: int = 0, keep: bool = False) -> World:
    """A world that is not yet started. Raises InputError for one that there isn't, MachineError where the machine lacks
    what it needs.
    """
    if kind not in _HOME:
        raise InputError(None, None, None, f'unknown world "{kind}"; expected one of {", ".join(WORLDS)}')
    machines = [node.name for node in plan.topology.nodes.values() if node.kind == "vm"]
    if machines and kind != "sim":
        raise MachineError(
            f"{plan.topology.name} has virtual machines ({', '.join(machines)}), which the lab doesn't start by itself",
            "bring them up with the Vagrantfile (LAB_TOPOLOGY, see docs/machines.md), or use --world sim",
        )
    module, name = _HOME[kind]
    factory = cast("Callable[..., World]", getattr(importlib.import_module(module), name))
    return factory(plan, wire=wire, seed=seed, keep=keep)
