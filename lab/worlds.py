"""Makes the world that a run is to take place in. Imports only the one that is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from lab.errors import InputError
from lab.plan import Plan
from lab.world import World

_HOME = {
    "sim": ("lab.sim.world", "SimWorld"),
    "netns": ("lab.netns_world", "NetnsWorld"),
    "docker": ("lab.docker.world", "DockerWorld"),
}
WORLDS = tuple(_HOME)
WIRES = ("auto", "xdp", "packet")


def make_world(kind: str, plan: Plan, *, wire: str = "auto", seed: int = 0, keep: bool = False) -> World:
    """A world that is not yet started. Raises InputError for one that there isn't, MachineError where the machine lacks
    what it needs.
    """
    if kind not in _HOME:
        raise InputError(None, None, None, f'unknown world "{kind}"; expected one of {", ".join(WORLDS)}')
    module, name = _HOME[kind]
    factory = cast("Callable[..., World]", getattr(importlib.import_module(module), name))
    return factory(plan, wire=wire, seed=seed, keep=keep)
