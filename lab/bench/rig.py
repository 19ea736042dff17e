"""Two private namespaces joined by veths, and the processes that a reference measurement needs in them.

The rig is a process of its own (in a user namespace where the caller is not root), which measures and is asked over a
socket; its helpers die with it, and it dies with its caller. Nothing of it has a name outside.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from emul.port.open import open_port
from emul.port.packet import PacketPort
from emul.port.xdp import XdpPort
from lab.errors import MachineError
from lab.fabric import namespaces

MTU = 2200
LEFT_FRAMES, RIGHT_FRAMES = "10.77.0.1", "10.77.0.2"
LEFT_STREAM, RIGHT_STREAM = "192.0.2.1", "192.0.2.2"
STREAM_PORT_FIRST = 5000
_GROUP = 7
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_IFF_UP = 1
_MESSAGE_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: the latency of each operation in ns, in the order in which they ended, and how long all took."""

    samples: array.array[int]
    elapsed_ns: int

    def percentile(self, share: float) -> float:
        """The sample that `share` (0 ... 1) of all do not exceed, in ns."""
        ordered = sorted(self.samples)
        return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


@dataclass(slots=True)
class Rig:
    """The two namespaces as the rig process sees them: `left` is where it measures, `right` where helpers answer."""

    left: int
    right: int
    wire: str
    _pairs: int = 0
    _ports: int = 0
    _children: list[int] = field(default_factory=list)

    @classmethod
    def build(cls, wire: str) -> Rig:
        """Makes the namespaces. For the rig process alone: it leaves the namespace that it was in."""
        if not namespaces.may_make_namespaces():
            namespaces.enter_user_namespace()
        left, right = namespaces.new_network_namespace(), namespaces.new_network_namespace()
        return cls(left, right, wire)

    @contextmanager
    def inside(self, namespace: int) -> Iterator[None]:
        """The process is in `left` or `right`; outside of this it is in `right`."""
        namespaces.setns(namespace, namespaces.CLONE_NEWNET)
        try:
            yield
        finally:
            namespaces.setns(self.right, namespaces.CLONE_NEWNET)

    def join(self, *, addressed: bool = False) -> str:
        """Joins both namespaces by one more veth; gives its name, the same at both ends. `addressed`: with IPv4
        addresses for the kernel's stack."""
        from lab.fabric import netlink

        name, index = f"x{self._pairs}", 10 + self._pairs
        self._pairs += 1
        with self.inside(self.right):
            connection = netlink.Netlink()
            veth = netlink.node_veth(
                index=index, name=name, mac=bytes((2, 0, 0, 0, 1, index)), mtu=MTU, namespace=self.left,
                peer_index=index, peer_name=name, group=_GROUP,
            )  # fmt: skip
            connection.apply([veth, netlink.group_up(_GROUP)])
            connection.close()
            if addressed:
                set_address(name, RIGHT_STREAM)
        with self.inside(self.left):
            if addressed:
                set_address(name, LEFT_STREAM)
        return name

    def open_port(self, namespace: int, interface: str) -> XdpPort | PacketPort:
        """Opens a port in a namespace as an adapter does, on the rig's wire."""
        with self.inside(namespace):
            return open_port(interface, self.wire, LEFT_FRAMES if namespace == self.left else RIGHT_FRAMES)

    def listen(self) -> tuple[socket.socket, tuple[str, int]]:
        """A listening TCP socket in `right`, and its address."""
        self._ports += 1
        address = (RIGHT_STREAM, STREAM_PORT_FIRST + self._ports)
        with self.inside(self.right):
            return socket.create_server(address), address

    def connect(self, address: tuple[str, int]) -> socket.socket:
        """A TCP connection from `left`, without Nagle's delay."""
        with self.inside(self.left):
            stream = socket.create_connection(address)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def helper(self, work: Callable[[], None]) -> None:
        """Runs `work` in a process of its own (a fork) until the rig closes."""
        child = os.fork()
        if child == 0:
            try:
                namespaces.die_with_parent(signal.SIGKILL)
                work()
            finally:
                os._exit(1)
        self._children.append(child)

    def close(self) -> None:
        """Ends the helpers; the kernel takes the namespaces back with their descriptors."""
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._children.clear()
        os.close(self.left)
        os.close(self.right)


def set_address(interface: str, address: str) -> None:
    """Gives an interface of the caller's network namespace an IPv4 address (a /24) and brings it up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as request:
        for code, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
            sockaddr = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(request, code, struct.pack("16s16s8x", interface.encode(), sockaddr))
        fcntl.ioctl(request, _SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), _IFF_UP))


class RigClient:
    """The caller's side: starts a rig process, and asks it to measure."""

    def __init__(self, serve: Callable[[Rig, dict[str, object]], Measured], wire: str = "auto") -> None:
        """`serve` runs in the rig process: it measures what the request describes. Raises MachineError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = os.fork()
        if self._child == 0:
            try:
                self._socket.close()
                namespaces.die_with_parent(signal.SIGKILL)
                _serve(theirs, serve, wire)
                os._exit(0)
            finally:
                os._exit(1)
        theirs.close()
        self.wire = self._told("wire")

    def measure(self, **request: object) -> Measured:
        """Has the rig measure. Raises MachineError with what it says when it cannot."""
        self._socket.send(json.dumps(request).encode())
        elapsed = int(self._told("elapsed_ns"))
        samples: array.array[int] = array.array("q")
        while part := self._socket.recv(_MESSAGE_BYTES_MAX):
            if part == _END:
                break
            samples.frombytes(part)
        return Measured(samples, elapsed)

    def _told(self, key: str) -> str:
        message = self._socket.recv(_MESSAGE_BYTES_MAX)
        answer = json.loads(message) if message else {"error": "the rig process ended"}
        if "error" in answer:
            raise MachineError(f"reference measurement: {answer['error']}", "run as root, or allow user namespaces")
        return str(answer[key])

    def close(self) -> None:
        """Ends the rig process and all that it started."""
        self._socket.close()
        os.kill(self._child, signal.SIGTERM)
        os.waitpid(self._child, 0)

    def __enter__(self) -> RigClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_END = b"end"


def _serve(theirs: socket.socket, serve: Callable[[Rig, dict[str, object]], Measured], wire: str) -> None:
    try:
        rig = Rig.build(wire)
        probe = rig.open_port(rig.left, rig.join())
        theirs.send(json.dumps({"wire": probe.wire}).encode())
        probe.close()
        while request := theirs.recv(_MESSAGE_BYTES_MAX):
            measured = serve(rig, json.loads(request))
            theirs.send(json.dumps({"elapsed_ns": measured.elapsed_ns}).encode())
            data = measured.samples.tobytes()
            for start in range(0, len(data), _MESSAGE_BYTES_MAX):
                theirs.send(data[start : start + _MESSAGE_BYTES_MAX])
            theirs.send(_END)
        rig.close()
    except Exception as error:  # told to the caller, who raises it there
        theirs.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
