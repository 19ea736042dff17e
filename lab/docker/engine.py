"""The Docker engine as the lab uses it: a handful of typed calls over the docker SDK.

The SDK has no types and is not always installed; both end here. Errors of the engine become `EngineError`, a missing
engine or SDK `MachineError`.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from lab.errors import LabError, MachineError

TIMEOUT_S = 60
"""How long one call to the engine may take."""
ENGINE_NEEDED = "nodes in containers need a Docker engine"
HOW_TO_GET_ENGINE = "install Docker (Debian: apt-get install docker.io), start it, and run the lab as root"
HOW_TO_GET_SDK = "pip install docker"

Result = TypeVar("Result")


class EngineError(LabError):
    """The engine refused or failed a call."""


class Container(Protocol):
    """What the lab uses of the SDK's container."""

    id: str
    name: str
    status: str
    """"created", "running", "paused", "exited", ...; as of the last `reload`."""
    labels: dict[str, str]
    attrs: dict[str, object]
    """What the engine knows of it, as of the last `reload`."""

    def start(self) -> None:
        """Runs it; a running one is left alone."""

    def pause(self) -> None:
        """Freezes all its processes."""

    def unpause(self) -> None:
        """Lets them go on."""

    def wait(self) -> dict[str, object]:
        """Waits until it does not run."""

    def reload(self) -> None:
        """Asks the engine for `status` and `attrs`."""

    def remove(self, *, force: bool, v: bool) -> None:
        """Removes it, with `force` also when it runs."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A path of this machine that a container sees at the same place."""

    path: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to be made. Without any capability, with a read-only root; limits None: none."""

    image: str
    name: str
    command: Sequence[str]
    labels: Mapping[str, str]
    binds: Sequence[Bind]
    environment: Mapping[str, str]
    network_mode: str = "none"
    pid_mode: str | None = None
    """"container:ID" shares that container's process namespace, and so its end."""
    hostname: str | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    lives_with_stdin: bool = False
    """Reads a standard input that we hold (`Engine.hold`), and is removed by the engine when it ends."""


class Engine:
    """A connection to the engine of this machine."""

    def __init__(self) -> None:
        """Connects. Raises MachineError without SDK or engine, or where the engine is on another machine."""
        try:
            import docker
            import docker.errors
        except ImportError as error:
            raise MachineError("nodes in containers need the Docker SDK for Python", HOW_TO_GET_SDK) from error
        self._errors = (docker.errors.DockerException, OSError)
        try:
            self._client = docker.from_env(timeout=TIMEOUT_S)
            self.version = str(self._client.version()["Version"])
        except self._errors as error:
            raise MachineError(f"{ENGINE_NEEDED}, and none answers ({error})", HOW_TO_GET_ENGINE) from error
        if not self._client.api.base_url.startswith(("http+docker://", "http+unix://")):
            where = self._client.api.base_url
            raise MachineError(f"{ENGINE_NEEDED} on this machine; the one at {where} is elsewhere", "unset DOCKER_HOST")

    def close(self) -> None:
        """Ends the connection. Containers stay."""
        self._client.close()

    def ensure_empty_image(self, name: str, labels: Mapping[str, str]) -> None:
        """Makes the image `name` (repository:tag) without any file, unless it exists."""
        from docker.errors import ImageNotFound

        try:
            self._client.images.get(name)
        except ImageNotFound:
            repository, tag = name.split(":")
            changes = [f'LABEL {key}="{value}"' for key, value in labels.items()]
            empty = io.BytesIO()
            tarfile.open(fileobj=empty, mode="w").close()
            self._call(
                lambda: self._client.api.import_image_from_data(
                    empty.getvalue(), repository=repository, tag=tag, changes=changes
                )
            )

    def remove_image(self, name: str) -> None:
        """Removes the image; none of that name is no error."""
        from docker.errors import ImageNotFound

        try:
            self._call(lambda: self._client.images.remove(name, force=True))
        except EngineError as error:
            if not isinstance(error.__cause__, ImageNotFound):
                raise

    def create(self, spec: ContainerSpec) -> Container:
        """Makes a container that does not run yet."""
        volumes = {bind.path: {"bind": bind.path, "mode": "rw" if bind.writable else "ro"} for bind in spec.binds}
        options: dict[str, object] = {
            "network_mode": spec.network_mode,
            "pid_mode": spec.pid_mode,
            "hostname": None if spec.network_mode.startswith("container:") else spec.hostname,
            "nano_cpus": None if spec.cpus is None else int(spec.cpus * 1e9),
            "mem_limit": spec.memory_bytes,
            "auto_remove": spec.lives_with_stdin,
            "stdin_open": spec.lives_with_stdin,
        }
        container: Container = self._call(
            lambda: self._client.containers.create(
                spec.image,
                command=list(spec.command),
                name=spec.name,
                labels=dict(spec.labels),
                volumes=volumes,
                environment=dict(spec.environment),
                user=f"{os.getuid()}:{os.getgid()}",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                read_only=True,
                **{key: value for key, value in options.items() if value is not None},
            )
        )
        return container

    def hold(self, container: Container) -> Hold:
        """Holds the standard input of a container that lives with it; call before its start."""
        params = {"stdin": 1, "stream": 1}
        return Hold(self._call(lambda: self._client.api.attach_socket(container.id, params=params)))

    def find(self, label: str) -> list[Container]:
        """All containers with `label` (KEY or KEY=VALUE), running or not."""
        found: list[Container] = self._call(
            lambda: self._client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        )
        return found

    def created_at(self, container: Container) -> float:
        """When the container was made, in seconds as time.time() counts them."""
        whole_seconds = str(container.attrs["Created"])[: len("2000-01-01T00:00:00")]
        return datetime.fromisoformat(whole_seconds).replace(tzinfo=UTC).timestamp()

    def remove(self, container: Container) -> None:
        """Kills and removes a container; one that is gone, or about to go, is no error."""
        from docker.errors import APIError

        try:
            self._call(lambda: container.remove(force=True, v=True))
        except EngineError as error:
            cause = error.__cause__
            if not (isinstance(cause, APIError) and cause.status_code in (404, 409)):
                raise

    def call(self, action: Callable[[], Result]) -> Result:
        """Runs an action on a container. Raises EngineError when the engine refuses it."""
        return self._call(action)

    def _call(self, action: Callable[[], Result]) -> Result:
        try:
            return action()
        except self._errors as error:
            raise EngineError(f"the Docker engine: {error}") from error


class Attached(Protocol):
    """The stream of an attached standard input."""

    def fileno(self) -> int:
        """Its socket."""

    def close(self) -> None:
        """Closes the stream, not the connection."""


class Hold:
    """Our end of a container's standard input. When it closes (also: when this process dies) the container ends."""

    def __init__(self, stream: Attached) -> None:
        self._stream = stream

    def close(self) -> None:
        """Lets the container end."""
        # The HTTP response behind the stream keeps the socket open, so its end is said in so many words.
        with socket.socket(fileno=os.dup(self._stream.fileno())) as sock, contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        self._stream.close()
