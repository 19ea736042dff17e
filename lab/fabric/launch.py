"""Starts the fabric process as a program of its own, and waits until it has built the lab.

    client --spawns--> launcher --forks into new namespaces--> fabric process (pid 1 of the lab)

The launcher stays only to bury the fabric process: the client owns it, so that nothing is left when both have ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError, MachineError
from lab.fabric.channel import Channel, ChannelClosedError, ChannelTimeoutError
from lab.fabric.registry import Claim

START_MAX_S = 120.0
"""Building a lab of 200 nodes takes seconds on a loaded machine; longer than this is a hang."""
_CHANNEL_FD, _LOCK_FD = 3, 4


@dataclass(frozen=True, slots=True)
class Launched:
    """A lab that is built. Pids are this process's."""

    channel: Channel
    launcher_pid: int
    fabric_pid: int
    timings_ms: dict[str, float]


def launch(claim: Claim, spec: Mapping[str, Any], given: Mapping[str, int]) -> Launched:
    """Builds the lab of `spec`; `given` are descriptors of namespaces that nodes have already. Raises LabError."""
    path = claim.directory / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    mine, theirs = Channel.pair()
    told: dict[str, Any] = {}
    launcher = _spawn(theirs.fileno(), claim.lock, claim.directory / "fabric.log")
    theirs.close()
    try:
        mine.send({"spec": str(path), "given": list(given)}, list(given.values()))
        _hear(mine, told)
    except (ChannelClosedError, ChannelTimeoutError) as error:
        _give_up(mine, launcher, told)
        raise LabError(f"the fabric process did not start ({error}){_last_line(claim.directory)}") from error
    except BaseException:
        _give_up(mine, launcher, told)
        raise
    if "error" in told:
        _give_up(mine, launcher, told)
        machine: Any = told.get("machine")
        raise MachineError(*machine) if machine else LabError(str(told["error"]))
    return Launched(mine, launcher, int(told["pid"]), dict(told["timings_ms"]))


def reap(launcher: int) -> None:
    """Buries a launcher whose fabric process has ended."""
    with suppress(ChildProcessError):
        os.waitpid(launcher, 0)


def _spawn(channel: int, lock: int, log: Path) -> int:
    """The launcher process. Nothing but its two descriptors and the log is inherited."""
    package_root = str(Path(__file__).resolve().parents[2])
    program = f"import sys; sys.path.insert(0, {package_root!r}); from lab.fabric.server import main; main()"
    # Out of the way of the places that they are going to take.
    channel_copy, lock_copy = _high(channel), _high(lock)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-c", program, str(_CHANNEL_FD), str(_LOCK_FD)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, channel_copy, _CHANNEL_FD),
                (os.POSIX_SPAWN_DUP2, lock_copy, _LOCK_FD),
            ],
        )
    finally:
        os.close(channel_copy)
        os.close(lock_copy)


def _high(descriptor: int) -> int:
    """A copy of a descriptor with a number that no standard descriptor has."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LOCK_FD + 1)


def _hear(channel: Channel, told: dict[str, Any]) -> None:
    """The launcher tells the fabric process's pid, and that one that all is built, or an error; in any order."""
    deadline = time.monotonic() + START_MAX_S
    while not ("error" in told or ("pid" in told and "ready" in told)):
        told.update(channel.receive(max(0.0, deadline - time.monotonic()))[0])


def _give_up(channel: Channel, launcher: int, told: Mapping[str, Any]) -> None:
    """Ends what was started, whatever it is doing just now."""
    channel.close()
    with suppress(ProcessLookupError):
        # Without a pid there is no fabric process yet, or one that finds its connection closed and ends.
        os.kill(int(told.get("pid", launcher)), signal.SIGKILL)
    reap(launcher)


def _last_line(directory: Path) -> str:
    with suppress(OSError):
        lines = (directory / "fabric.log").read_text(encoding="utf-8", errors="replace").splitlines()
        if lines:
            return f": {lines[-1]}"
    return ""
