"""A lab's nodes in containers: for each of them a *hardware* container and a *host* container.

The hardware container's network namespace holds the adapters' interfaces, and its process namespace is the node's. It
runs nothing but a process that waits for our end of its standard input to close, so that it and all that shares its
namespaces end with the lab, however the lab ends. The host container runs `ccm.process` and shares both namespaces;
faults touch it alone, and what the adapters' processes, the cables and the NVRAM file hold is not in it.

Needs root, since interfaces are moved into the containers.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emul.clock import Instant
from lab.docker import image
from lab.docker.engine import Bind, Container, ContainerSpec, Engine, EngineError, Hold
from lab.errors import MachineError
from lab.plan import Plan, node_directory

HARDWARE = "hardware"
HOST = "host"
LABEL = image.LABEL
NODE_LABEL = f"{LABEL}.node"
ROLE_LABEL = f"{LABEL}.role"
KILL_MAX_S = 10
START_MAX_S = 60
"""A container that was made longer ago and has not started never will: its lab died in between."""
REMOVAL_MAX_S = 20
REMOVAL_POLL_S = 0.02
_WAITER = "cat"
"""The program of a hardware container: ends at the end of its input."""


@dataclass(slots=True)
class _Node:
    hardware: Container
    hold: Hold | None
    """Our end of its standard input; None in a lab that outlives this process."""
    namespace: int
    host: Container | None = None
    paused: bool = False


class DockerNodes:
    """The containers of one lab; `names` are the nodes that have some. `close` removes all and does no harm twice."""

    def __init__(
        self, engine: Engine, plan: Plan, lab_id: str, *, nodes: Sequence[str] | None = None, keep: bool = False
    ) -> None:
        """Makes nothing yet. `nodes` get containers (default: all); with `keep` they outlive this process.

        Raises MachineError without root.
        """
        if os.geteuid() != 0:
            raise MachineError(
                "nodes in containers need root: interfaces are moved into the containers' network namespaces",
                "run as root (sudo), or without containers: --world netns",
            )
        self._engine = engine
        self._plan = plan
        self._lab_id = lab_id
        self._keep = keep
        self.names: tuple[str, ...] = tuple(plan.topology.nodes if nodes is None else nodes)
        self._nodes: dict[str, _Node] = {}

    def start_hardware(self) -> dict[str, int]:
        """Starts a hardware container for each node; gives a descriptor of each one's network namespace.

        The descriptors stay ours (closed by `close`). Raises MachineError where the engine runs on another machine.
        """
        name = image.ensure_image(self._engine)
        for node in self.names:
            self._nodes[node] = self._start_hardware(name, node)
        return {node: parts.namespace for node, parts in self._nodes.items()}

    def create_hosts(self, state: Path, seed: int) -> None:
        """Makes the host containers, not yet running. `state` is the lab's state directory."""
        for node in self._nodes:
            self._create_host(node, state, seed)

    def start_host(self, node: str) -> Instant:
        """Starts the host container, once its former run has ended; gives the moment. Raises EngineError."""
        host = self._host(node)
        self._engine.call(host.wait)
        now = Instant(time.monotonic_ns())
        self._engine.call(host.start)
        return now

    def kill_host(self, node: str, number: int = signal.SIGKILL) -> Instant:
        """Sends a signal to the host's process; gives the moment. SIGKILL: returns when the process is gone.

        A host that does not run is left alone. Raises EngineError when a killed one is still there after KILL_MAX_S.
        """
        process = self.host_process(node)
        paused = process != 0 and self._nodes[node].paused
        now = Instant(time.monotonic_ns())
        # Straight to the process: the engine's own way takes 30 ms, within which the moment would be anywhere.
        with contextlib.ExitStack() as cleanup:
            try:
                pidfd = os.pidfd_open(process) if process else -1
            except ProcessLookupError:
                pidfd = -1
            if pidfd >= 0:
                cleanup.callback(os.close, pidfd)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
            if paused:
                self.continue_host(node)  # a frozen process does not die before it is thawed
            if pidfd >= 0 and number == signal.SIGKILL:
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                if not poller.poll(KILL_MAX_S * 1000):
                    raise EngineError(f"the host of {node} is still there {KILL_MAX_S} s after SIGKILL")
                self._engine.call(self._host(node).wait)  # the engine learns of it a little later
        return now

    def stop_host(self, node: str) -> Instant:
        """Freezes the host container, and it alone; gives the moment before."""
        now = Instant(time.monotonic_ns())
        self._engine.call(self._host(node).pause)
        self._nodes[node].paused = True
        return now

    def continue_host(self, node: str) -> Instant:
        """Thaws the host container; gives the moment before."""
        now = Instant(time.monotonic_ns())
        if self._nodes[node].paused:
            self._nodes[node].paused = False
            self._engine.call(self._host(node).unpause)
        return now

    def host_running(self, node: str) -> bool:
        """Whether the host container runs (a frozen one does)."""
        host = self._host(node)
        self._engine.call(host.reload)
        return host.status in ("running", "paused")

    def host_process(self, node: str) -> int:
        """The pid of the host's process as this machine numbers it; 0 while it does not run, or was never made."""
        if node not in self._nodes or self._nodes[node].host is None:
            return 0
        host = self._host(node)
        self._engine.call(host.reload)
        return _process_of(host)

    def close(self) -> None:
        """Removes the lab's containers, by label, and closes the namespaces' descriptors."""
        for name, node in self._nodes.items():
            if node.paused:
                with contextlib.suppress(EngineError):
                    self.continue_host(name)
        self.detach()
        _remove(self._engine, self._lab_id)

    def detach(self) -> None:
        """Lets go of the containers: those of a lab that is not kept end with that."""
        for node in self._nodes.values():
            if node.hold is not None:
                node.hold.close()
            os.close(node.namespace)
        self._nodes.clear()

    def _start_hardware(self, image_name: str, node: str) -> _Node:
        container = self._engine.create(
            ContainerSpec(
                image=image_name,
                name=self._name(node, HARDWARE),
                command=[_WAITER],
                labels=self._labels(node, HARDWARE),
                binds=image.binds(),
                environment=image.python_environment(),
                hostname=node,
                lives_with_stdin=True,
            )
        )
        # Nobody ever held the input of a kept lab's containers, so that it stays open.
        hold = None if self._keep else self._engine.hold(container)
        try:
            self._engine.call(container.start)
            self._engine.call(container.reload)
            return _Node(container, hold, _open_namespace(container))
        except BaseException:
            if hold is not None:
                hold.close()
            raise

    def _create_host(self, node: str, state: Path, seed: int) -> None:
        parts = self._nodes[node]
        settings = self._plan.topology.nodes[node]
        directory = node_directory(state, node)
        config = directory / "host.json"
        content = self._plan.host_config(node, state, seed=seed)
        config.write_text(json.dumps(content), encoding="utf-8")
        shared = f"container:{parts.hardware.id}"
        parts.host = self._engine.create(
            ContainerSpec(
                image=image.image_name(),
                name=self._name(node, HOST),
                command=_logged(host_command(config), str(content["log"])),
                labels=self._labels(node, HOST),
                binds=[*image.binds(), *self._client_binds(), Bind(str(directory), writable=True)],
                environment=image.python_environment(),
                network_mode=shared,
                pid_mode=shared,
                cpus=settings.cpus,
                memory_bytes=settings.memory_bytes,
            )
        )

    def _client_binds(self) -> list[Bind]:
        """Where the code of clients of the user's own lies that no container sees anyway."""
        seen = [bind.path for bind in image.binds()]
        wanted = {path for client in self._plan.topology.own_clients for path in client.directories()}
        outside = (path for path in sorted(wanted) if Path(path).is_dir() and not _is_below(path, seen))
        return [Bind(path) for path in outside]

    def _host(self, node: str) -> Container:
        host = self._nodes[node].host
        assert host is not None, f"the host container of {node} was not made yet"
        return host

    def _name(self, node: str, role: str) -> str:
        return f"{LABEL}-{self._lab_id}-{node}-{role}"

    def _labels(self, node: str, role: str) -> dict[str, str]:
        return {LABEL: self._lab_id, NODE_LABEL: node, ROLE_LABEL: role}


def host_command(config: Path) -> list[str]:
    """The program that a host container runs."""
    return [sys.executable, "-m", "ccm.process", str(config)]


def _logged(command: list[str], log: str) -> list[str]:
    """`command` with what it writes appended to `log`, where `lab logs` and the report look in every world."""
    return ["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1', log, *command]


def remove_leftovers(lab_ids: Iterable[str] = ()) -> list[str]:
    """Removes the containers of dead labs; gives the names of those removed.

    Dead are `lab_ids`, as the caller knows, and every lab of which no hardware container runs: those live as long as
    their lab. Without SDK or engine there is nothing to remove: the list is empty.
    """
    try:
        engine = Engine()
    except MachineError:
        return []
    try:
        dead = dict.fromkeys([*lab_ids, *_without_hardware(engine)])
        return [name for lab_id in dead for name in _remove(engine, lab_id)]
    finally:
        engine.close()


def _without_hardware(engine: Engine) -> list[str]:
    """Labs that have containers but no running hardware, and are not just being started."""
    hardware: dict[str, bool] = {}
    for container in engine.find(ROLE_LABEL):
        lab_id = container.labels[LABEL]
        is_hardware = container.labels[ROLE_LABEL] == HARDWARE
        fresh = container.status == "created" and time.time() - engine.created_at(container) < START_MAX_S
        lives = is_hardware and (container.status in ("running", "paused") or fresh)
        hardware[lab_id] = hardware.get(lab_id, False) or lives
    return [lab_id for lab_id, lives in hardware.items() if not lives]


def _remove(engine: Engine, lab_id: str) -> list[str]:
    """Hosts first, as they live in the hardware's namespaces; tries each before it raises. Gives the names."""
    label = f"{LABEL}={lab_id}"
    containers = engine.find(label)
    containers.sort(key=lambda container: container.labels.get(ROLE_LABEL) == HARDWARE)
    failure: EngineError | None = None
    for container in containers:
        try:
            engine.remove(container)
        except EngineError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    # A hardware container that ends is removed by the engine, in its own time.
    deadline = time.monotonic() + REMOVAL_MAX_S
    while engine.find(label):
        if time.monotonic() > deadline:
            raise EngineError(f"containers of lab {lab_id} are still there {REMOVAL_MAX_S} s after their removal")
        time.sleep(REMOVAL_POLL_S)
    return [container.name for container in containers]


def _process_of(container: Container) -> int:
    state = container.attrs["State"]
    assert isinstance(state, dict)
    return int(state["Pid"])


def _open_namespace(container: Container) -> int:
    """Opens the container's network namespace; makes sure that its pid means the same process here."""
    process = _process_of(container)
    try:
        namespace = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        program = Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        program, namespace = "", -1
    if program != _WAITER:
        if namespace >= 0:
            os.close(namespace)
        raise MachineError(
            f"the Docker engine runs in another process namespace (its pid {process} is not the container's here)",
            "run the lab on the machine, or in the namespace, that the engine runs in",
        )
    return namespace


def _is_below(path: str, others: list[str]) -> bool:
    return any(Path(path).is_relative_to(other) for other in others)
