"""The world of containers: the real world of namespaces, with hosts that are containers."""

from __future__ import annotations

from lab.docker.engine import Engine
from lab.docker.fabric import ContainerFabric
from lab.docker.nodes import LABEL
from lab.fabric.client import Fabric
from lab.netns_world import NetnsWorld
from lab.plan import Plan


def nodes_in_containers(plan: Plan) -> list[str]:
    """The nodes of `kind: docker`; in a topology that has none, all of them."""
    chosen = [name for name, node in plan.topology.nodes.items() if node.kind == "docker"]
    return chosen or list(plan.topology.nodes)


class DockerWorld(NetnsWorld):
    """As `NetnsWorld`; a crash, a pause and a boot are those of a host's container."""

    name = "docker"

    _lab_id: str | None = None
    """Once it has been started."""

    def _start_fabric(self) -> Fabric:
        fabric = ContainerFabric.start(
            self._plan,
            wire=self._asked_wire,
            keep=self._keep,
            seed=self._seed,
            in_containers=nodes_in_containers(self._plan),
        )
        self._lab_id = fabric.lab_id
        return fabric

    def leftovers(self) -> list[str]:
        """As in `NetnsWorld`, and containers."""
        left = super().leftovers()
        if self._lab_id is None:
            return left
        engine = Engine()
        try:
            label = f"{LABEL}={self._lab_id}"
            return left + [f"container {container.name}" for container in engine.find(label)]
        finally:
            engine.close()
