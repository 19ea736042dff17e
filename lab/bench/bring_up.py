"""How fast nodes and cables come up and go: beside `ip -batch`, and beside the least that netlink needs for less.

The lab builds what it always builds: a namespace for each node with IPv6 and forwarding off, and cables of two veth
pairs, joined by redirects, so that a fault can be put into them. Both references build *less*, veths without joints:

- `ip -batch` makes namespaces, veths and the bridge; `ip -all netns exec` brings the nodes' loopback up.
- the floor sends netlink messages that were encoded before the clock started, from one process without forks, and gives
  each node an address (the lab's adapters have theirs themselves).

Each build happens in a process with private namespaces. Up means ready for processes: namespaces, loopbacks, interfaces
up. Down lasts until the command has ended: for `ip -batch` that, for the lab the end of the process that holds it all.
The kernel removes the namespaces after both, in the same 10 to 100 ms.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lab.bench import Row, compare, median, netlink_floor
from lab.errors import LabError, MachineError
from lab.fabric import namespaces

NAME = "bring-up"
HELP = "namespaces and cables up and down, beside ip -batch and the netlink floor"
REPETITIONS = 7
SIZES = (2, 10, 50, 200)
SMALL = 20
"""Builds of fewer nodes than this are repeated more often: they take a millisecond, as long as a disturbance does."""
SHAPES = ("star", "pairs")
IP_RATIO_MAX, FLOOR_RATIO_MAX, TEARDOWN_RATIO_MAX = 0.8, 2.0, 1.0
MTU = 2200
SETTLE_PER_NODE_S = 0.002
"""What the kernel still tidies up after the last interface has gone must not slow the next build."""
_SWITCH = "switch"
_MILLI = 1e3


@dataclass(frozen=True, slots=True)
class _Timing:
    """Seconds of one build and one teardown."""

    up: float
    down: float


Builder = Callable[[str, int], Callable[[], None]]
"""Prepares a build of (shape, nodes) outside the clock; gives the build itself."""


def run(repetitions: int) -> list[Row]:
    """Rows for each shape and size: against `ip -batch`, against the floor, and the teardown."""
    if shutil.which("ip") is None:
        raise MachineError(
            "the reference of this benchmark is ip(8), which is not installed", "apt-get install iproute2"
        )
    rows: list[Row] = []
    for shape in SHAPES:
        for nodes in SIZES:
            rows += _measure(shape, nodes, repetitions)
    return rows


def _measure(shape: str, nodes: int, repetitions: int) -> list[Row]:
    builders: dict[str, Builder] = {"lab": _lab, "ip": _ip, "floor": _floor}
    timings: dict[str, list[_Timing]] = {name: [] for name in builders}
    for _ in range(repetitions * max(1, SMALL // nodes)):
        for name, builder in builders.items():
            timings[name].append(_time_one(builder, shape, nodes))
            _settle(nodes)
    up = {name: median([timing.up for timing in several]) * _MILLI for name, several in timings.items()}
    down = {name: median([timing.down for timing in several]) * _MILLI for name, several in timings.items()}
    case = f"{shape} of {nodes}"
    return [
        compare(f"{case}, up", up["lab"], "ms", "ip -batch", up["ip"], at_most=IP_RATIO_MAX),
        compare(f"{case}, up", up["lab"], "ms", "batched netlink", up["floor"], at_most=FLOOR_RATIO_MAX),
        compare(f"{case}, down", down["lab"], "ms", "ip -batch", down["ip"], at_most=TEARDOWN_RATIO_MAX),
    ]


def _time_one(builder: Builder, shape: str, nodes: int) -> _Timing:
    """One build and one teardown, in processes of their own. Raises LabError."""
    answers, telling = os.pipe()
    observer = os.fork()
    if observer == 0:
        os.close(answers)
        _as_child(lambda: _observe(builder, shape, nodes, telling))
    os.close(telling)
    with os.fdopen(answers, "rb") as reader:
        words = reader.read().split()
    os.waitpid(observer, 0)
    if len(words) != 2:
        raise LabError(f"bring-up of {nodes} nodes failed; see the message above")
    return _Timing(float(words[0]), float(words[1]))


def _observe(builder: Builder, shape: str, nodes: int, telling: int) -> None:
    """Has a child build and take down; tells both times."""
    if not namespaces.may_make_namespaces():
        namespaces.enter_user_namespace()
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        mine.close()
        _as_child(lambda: _build(builder, shape, nodes, theirs))
    theirs.close()
    up = mine.recv(64)
    if up:
        started = time.perf_counter()
        if builder is _ip:
            mine.send(b"take it down")
            mine.recv(64)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        os.write(telling, up + b" %f" % (time.perf_counter() - started))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _build(builder: Builder, shape: str, nodes: int, channel: socket.socket) -> None:
    namespaces.make_private(pid_namespace=False)
    namespaces.prepare_network()
    build = builder(shape, nodes)
    started = time.perf_counter()
    build()
    up = time.perf_counter() - started
    channel.send(b"%f" % up)
    channel.recv(64)  # the lab and the floor end here, by SIGKILL
    batch = Path("/run/down")
    switch = f"link del dev {_SWITCH}\n" if shape == "star" else ""
    batch.write_text("".join(f"netns del n{node}\n" for node in range(nodes)) + switch)
    _run_ip("-batch", str(batch))
    channel.send(b"down")
    signal.pause()


def _as_child(body: Callable[[], None]) -> NoReturn:
    try:
        body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _cables(shape: str, nodes: int) -> list[tuple[int, int | None]]:
    """Which nodes the cables join; None is the switch."""
    if shape == "star":
        return [(node, None) for node in range(nodes)]
    return [(node, node + 1) for node in range(0, nodes, 2)]


def _mac(node: int) -> bytes:
    return bytes((2, 0, 0, 0)) + node.to_bytes(2, "big")


def _lab(shape: str, nodes: int) -> Callable[[], None]:
    """What the fabric process does, with its own code; pyroute2 is imported outside the clock."""
    from lab.fabric.lean_import import import_with_parts_of

    import_with_parts_of("pyroute2", "lab.fabric.netlink")
    from lab.fabric.cables import Cabling
    from lab.fabric.netlink import Netlink

    def end(node: int | None) -> dict[str, str]:
        if node is None:
            return {"switch": _SWITCH}
        return {"node": f"n{node}", "adapter": "ic0", "mac": _mac(node).hex(":")}

    cables = [
        {"name": f"c{number}", "ends": [end(left), end(right)]}
        for number, (left, right) in enumerate(_cables(shape, nodes))
    ]
    own = namespaces.open_namespace("net")
    # As the fabric process does while the spawner imports.
    Cabling(Netlink(), {}, MTU).warm_up()

    def build() -> None:
        made = {f"n{node}": namespaces.new_network_namespace() for node in range(nodes)}
        namespaces.setns(own, namespaces.CLONE_NEWNET)
        Cabling(Netlink(), made, MTU).build([_SWITCH] if shape == "star" else [], cables)

    return build


def _ip(shape: str, nodes: int) -> Callable[[], None]:
    """One `ip -batch` for namespaces and links, one `ip -all netns exec` for the loopbacks."""
    # `ip netns` pins namespaces by files: in a directory that only this process sees.
    namespaces.mount("tmpfs", "/run", "tmpfs", 0)
    lines = [f"link add dev {_SWITCH} up type bridge"] if shape == "star" else []
    lines += [f"netns add n{node}" for node in range(nodes)]
    for left, right in _cables(shape, nodes):
        if right is None:
            lines.append(f"link add dev ic0 up mtu {MTU} netns n{left} type veth peer name c{left} mtu {MTU}")
            lines.append(f"link set dev c{left} up master {_SWITCH}")
        else:
            lines.append(
                f"link add dev ic0 up mtu {MTU} netns n{left} type veth peer name ic0 mtu {MTU} netns n{right}"
            )
    batch, inside = Path("/run/batch"), Path("/run/inside")
    batch.write_text("\n".join(lines) + "\n")
    inside.write_text("link set dev lo up\n" + ("link set dev ic0 up\n" if shape == "pairs" else ""))

    def build() -> None:
        _run_ip("-batch", str(batch))
        _run_ip("-all", "netns", "exec", "ip", "-batch", str(inside))

    return build


def _run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdout=subprocess.DEVNULL)


def _floor(shape: str, nodes: int) -> Callable[[], None]:
    """A namespace for each node, then ready-made messages in as few packets as fit."""
    return netlink_floor.prepare(_cables(shape, nodes), nodes, MTU)


def _settle(nodes: int) -> None:
    """Leaves the kernel a moment for what the last build left."""
    time.sleep(SETTLE_PER_NODE_S * nodes)
