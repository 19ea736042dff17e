"""Both ends of a test on a cable of their own: two network namespaces with a veth pair, gone when the test is over.

Without root they are made in a user namespace. Nothing of this has a name on the machine: the namespaces live as long
as the processes in them.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from errno import EINVAL
from pathlib import Path

from emul.errors import PyverbsUserError, RDMAError
from emul.port.open import WIRES

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
MTU_BYTES = {"xdp": 2200, "packet": 4200, "auto": 2200}
"""What a cable takes: a path MTU of 2048 in one buffer of XDP, of 4096 over AF_PACKET."""
INTERFACES, ADDRESSES = ("perf0", "perf1"), ("10.77.0.1", "10.77.0.2")
SERVER_STOP_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


def run_both(module: str, arguments: Sequence[str], wires: str) -> int:
    """Runs `python -m MODULE` with these arguments at both ends, once for each wire of a list; the client's exit
    status, or the first that is not 0. Raises RDMAError.
    """
    chosen = wires.split(",")
    for wire in chosen:
        if wire not in WIRES:
            raise PyverbsUserError(f"--wire is one of {', '.join(WIRES)}, got {wire!r}")
    _own_namespaces()
    for wire in chosen:
        status = _run(module, list(arguments), wire)
        if status:
            return status
    return 0


def _run(module: str, arguments: list[str], wire: str) -> int:
    there, here = _two_ends(MTU_BYTES[wire])
    given = _without(arguments, "--self-test", "--loopback-pair")
    with tempfile.TemporaryDirectory(prefix="emul-") as directory:
        place = f"unix:{Path(directory) / 'exchange'}"
        command = [sys.executable, "-m", module, *given, "--wire", wire]
        package = str(Path(__file__).resolve().parent.parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
        _enter(there)
        server = subprocess.Popen(
            [*command, "-d", INTERFACES[0], "--local", ADDRESSES[0], "--exchange", place],
            stdout=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        try:
            _enter(here)
            client = subprocess.run(
                [*command, "-d", INTERFACES[1], "--local", ADDRESSES[1], place], check=False, env=environment
            )
            try:
                return client.returncode or server.wait(SERVER_STOP_S)
            except subprocess.TimeoutExpired:
                return 1
        finally:
            server.terminate()
            server.wait()
            os.close(there)
            os.close(here)


def _own_namespaces() -> None:
    if os.geteuid() == 0:
        return
    user, group = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER, "user namespaces are not allowed here: run it as root")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _two_ends(mtu: int) -> tuple[int, int]:
    """Descriptors of two new namespaces, each with an end of a new cable, up."""
    namespaces = []
    for _ in range(2):
        _unshare(_CLONE_NEWNET, "network namespaces are not allowed here: run it as root")
        namespaces.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    there, here = namespaces
    _ip("link", "add", INTERFACES[1], "mtu", str(mtu), "type", "veth", "peer", "name", INTERFACES[0], "mtu", str(mtu),
        "netns", f"/proc/{os.getpid()}/fd/{there}")  # fmt: skip
    for namespace, interface in ((there, INTERFACES[0]), (here, INTERFACES[1])):
        _enter(namespace)
        for each in ("all", "default"):  # the stack beside the adapter keeps quiet
            Path(f"/proc/sys/net/ipv6/conf/{each}/disable_ipv6").write_text("1")
        _ip("link", "set", interface, "up")
    return there, here


def _without(arguments: list[str], *names: str) -> list[str]:
    """The arguments without these switches, nor --wire and its value."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--wire":
            skip = True
        elif argument not in names and not argument.startswith("--wire="):
            kept.append(argument)
    return kept


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise RDMAError(EINVAL, "ip(8) of iproute2 is needed to make the cable") from None
    if done.returncode:
        raise RDMAError(EINVAL, f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _unshare(flags: int, refusal: str) -> None:
    if _libc.unshare(flags):
        raise RDMAError(ctypes.get_errno(), refusal)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise RDMAError(ctypes.get_errno(), "a network namespace of our own cannot be entered")
