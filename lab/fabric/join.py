"""Runs a program inside a lab: in the namespaces of a node, or of the fabric.

Joining a user namespace needs a process with one thread, and joining a pid namespace only counts for children. So two
forks: the first child joins, its child becomes the program, and its status comes back the same way.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lab.fabric import namespaces

EXIT_NOT_FOUND, EXIT_NOT_EXECUTABLE, EXIT_NOT_JOINED = 127, 126, 125
"""As shells and docker give them."""
_FLAGS = {
    "user": namespaces.CLONE_NEWUSER,
    "mnt": namespaces.CLONE_NEWNS,
    "pid": namespaces.CLONE_NEWPID,
    "net": namespaces.CLONE_NEWNET,
}


def join(kinds: Sequence[str], descriptors: Sequence[int]) -> None:
    """Moves this process (one thread) into the namespaces, in their order. Raises OSError."""
    for kind, descriptor in zip(kinds, descriptors, strict=True):
        namespaces.setns(descriptor, _FLAGS[kind])


def run_program(kinds: Sequence[str], descriptors: Sequence[int], command: Sequence[str]) -> int:
    """Runs `command` inside, on this process's terminal, and waits; its exit status, 128 + n after signal n."""
    return run_inside(kinds, descriptors, lambda: _execute(command))


def run_inside(kinds: Sequence[str], descriptors: Sequence[int], body: Callable[[], int]) -> int:
    """Runs `body` in a process inside and waits; what it returned. The caller's other threads are not there."""
    directory = Path.cwd()
    child = os.fork()
    if child == 0:
        _as_child(kinds, descriptors, directory, body)
    # Ctrl-C on a terminal reaches the program itself, and the program decides.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGINT, before)
    return _exit_status(status)


def _as_child(kinds: Sequence[str], descriptors: Sequence[int], directory: Path, body: Callable[[], int]) -> NoReturn:
    """The process in between: joins, forks the one inside, waits for it."""
    status = EXIT_NOT_JOINED
    try:
        namespaces.die_with_parent(signal.SIGTERM)
        join(kinds, descriptors)
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.make_mounts_private()
        namespaces.mount_sys()
        with suppress(OSError):
            os.chdir(directory)  # joining a mount namespace led to its root
        inside = os.fork()
        if inside == 0:
            _as_grandchild(body)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(inside, signal.SIGTERM))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        status = _exit_status(os.waitpid(inside, 0)[1])
    except OSError as error:
        sys.stderr.write(f"lab: cannot join the node: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _as_grandchild(body: Callable[[], int]) -> NoReturn:
    status = EXIT_NOT_EXECUTABLE
    try:
        namespaces.die_with_parent(signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _execute(command: Sequence[str]) -> int:
    # execvp would answer "permission denied" for an unknown program where PATH has a directory that can't be read.
    if "/" not in command[0] and shutil.which(command[0]) is None:
        sys.stderr.write(f"lab: {command[0]}: command not found\n")
        return EXIT_NOT_FOUND
    try:
        os.execvp(command[0], list(command))
    except FileNotFoundError:
        sys.stderr.write(f"lab: {command[0]}: no such program\n")
        return EXIT_NOT_FOUND
    except OSError as error:
        sys.stderr.write(f"lab: {command[0]}: {error.strerror}\n")
        return EXIT_NOT_EXECUTABLE


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
