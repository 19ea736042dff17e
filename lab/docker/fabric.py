"""A lab whose hosts run in containers: the fabric of the real worlds, with another way to start and to break a host.

Cables, switches, power and adapters are the fabric process's, as everywhere; only the network namespaces of the nodes
come from their hardware containers.
"""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from lab.docker.engine import Engine
from lab.docker.nodes import DockerNodes
from lab.errors import LabError
from lab.fabric.client import Fabric

if TYPE_CHECKING:
    from lab.plan import Plan

_STEM_LENGTH = 16


class ContainerFabric(Fabric):
    """As `Fabric`; hosts of the nodes in `containers` are containers."""

    _engine: Engine
    containers: DockerNodes

    @classmethod
    def start(
        cls,
        plan: Plan,
        name: str | None = None,
        wire: str = "auto",
        keep: bool = False,
        node_namespaces: Mapping[str, int] | None = None,
        *,
        seed: int = 0,
        adapters: bool = True,
        in_containers: Sequence[str] | None = None,
    ) -> Self:
        """As `Fabric.start`. `in_containers` are the nodes that get containers (default: all).

        A lab to `keep` keeps its containers; `remove_leftovers` takes them when it goes down. Raises MachineError
        without an engine, its SDK, or root.
        """
        chosen = list(plan.topology.nodes) if in_containers is None else list(in_containers)
        lab_id = name or f"{_stem(plan.topology.name)}-{secrets.token_hex(4)}"
        engine = Engine()
        containers: DockerNodes | None = None
        try:
            containers = DockerNodes(engine, plan, lab_id, nodes=chosen, keep=keep)
            namespaces = {**(node_namespaces or {}), **containers.start_hardware()}
            fabric = super().start(plan, lab_id, wire, keep, namespaces, seed=seed, adapters=adapters)
            assert isinstance(fabric, cls)
            fabric._engine, fabric.containers = engine, containers
            try:
                containers.create_hosts(fabric.directory, seed)
            except BaseException:
                super(cls, fabric).stop()
                raise
        except BaseException:
            if containers is not None:
                containers.close()
            engine.close()
            raise
        return fabric

    def stop(self) -> None:
        """Ends the lab and removes its containers; doing it twice does no harm."""
        # Hosts first: a host that loses its adapters under it would only fill its log.
        for node in self.containers.names:
            with suppress(LabError):
                self.containers.kill_host(node)
        try:
            super().stop()
        finally:
            self.containers.close()
            self._engine.close()

    def detach(self) -> None:
        """Leaves a kept lab and its containers running and lets go of them."""
        super().detach()
        self.containers.detach()
        self._engine.close()

    def start_host(self, node: str) -> int:
        """Starts the host of `node`, in its container if it has one. The moment in ns."""
        return self.containers.start_host(node) if node in self.containers.names else super().start_host(node)

    def kill_host(self, node: str, signal_number: int = signal.SIGKILL) -> int:
        """Signals the host process; after SIGKILL it is gone when this returns. The moment in ns."""
        if node in self.containers.names:
            return self.containers.kill_host(node, signal_number)
        return super().kill_host(node, signal_number)

    def stop_host(self, node: str) -> int:
        """Freezes the host, by its container if it has one; its adapters go on."""
        return self.containers.stop_host(node) if node in self.containers.names else super().stop_host(node)

    def continue_host(self, node: str) -> int:
        """Lets a frozen host go on."""
        return self.containers.continue_host(node) if node in self.containers.names else super().continue_host(node)

    def processes(self) -> list[dict[str, Any]]:
        """As `Fabric.processes`, with the hosts in containers (`inner_pid` None: not in the lab's pid namespace)."""
        found = super().processes()
        for node in self.containers.names:
            pid = self.containers.host_process(node)
            found.append(
                {
                    "key": f"{node}/host", "node": node, "name": "host", "kind": "host", "pid": pid or None,
                    "running": bool(pid), "inner_pid": None,
                }
            )  # fmt: skip
        return found


def start_fabric(
    plan: Plan, name: str | None = None, wire: str = "auto", keep: bool = False, *, seed: int = 0
) -> Fabric:
    """The fabric that the topology itself asks for: nodes of `kind: docker` in containers, the others without.

    Where there is no such node neither SDK nor engine is needed.
    """
    chosen = [node.name for node in plan.topology.nodes.values() if node.kind == "docker"]
    if not chosen:
        return Fabric.start(plan, name, wire, keep, seed=seed)
    return ContainerFabric.start(plan, name, wire, keep, seed=seed, in_containers=chosen)


def _stem(topology: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", topology)[:_STEM_LENGTH].strip("-_") or "lab"
