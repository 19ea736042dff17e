"""The least that a usual lab of namespaces needs: ready-made rtnetlink messages from one process, as in C.

Each node gets its namespace, one plain veth (to the switch, or to its neighbour), an address, and all interfaces up.

A reference, deliberately independent of lab.fabric.netlink: bytes packed by hand before the clock starts, sent in as
few packets as fit, the last message of each acknowledged. As fast as the same in C within a few percent.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence

from lab.fabric import namespaces

_RTM_NEWLINK = 16
_CREATE_EXCLUSIVE = 0x600
_UP = 1
_SIOCSIFADDR = 0x8916
_IFNAME, _MTU, _MASTER, _LINKINFO, _NET_NS_FD, _GROUP = 3, 4, 10, 18, 28, 27
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_PACKET_BYTES_MAX = 32 * 1024
_U32 = struct.Struct("I")
_FIRST_DESCRIPTOR = 256
"""The namespaces' descriptors are moved here: the messages name them before they are there."""
_SWITCH_INDEX, _OUTER_INDEX, _INNER_INDEX = 5, 100_000, 1_000
_PEERS = 1
"""Interface group of the veths' ends at the switch."""


def prepare(cables: Sequence[tuple[int, int | None]], nodes: int, mtu: int) -> Callable[[], None]:
    """Encodes all that makes `nodes` namespaces and plain veths between them (None: the switch); gives the build.

    The calling process is in a private network namespace with nothing in it.
    """
    own = namespaces.open_namespace("net")
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    first = _FIRST_DESCRIPTOR
    to_switch = any(right is None for _, right in cables)
    messages = [_link(_SWITCH_INDEX, _UP, _name("switch"), _info("bridge"))] if to_switch else []
    for number, (left, right) in enumerate(cables):
        if right is None:
            peer = (
                _header(_INNER_INDEX + number, 0) + _name(f"c{number}") + _number(_MTU, mtu) + _number(_GROUP, _PEERS)
            )
        else:
            peer = _header(0, 0) + _name("ic0") + _number(_MTU, mtu) + _number(_NET_NS_FD, first + right)
        info = _info("veth", _attribute(_VETH_PEER, peer))
        place = _number(_NET_NS_FD, first + left)
        messages.append(_link(_OUTER_INDEX + number, _UP, _name("ic0"), _number(_MTU, mtu), place, info))
        if right is None:
            # Its port of the switch: a bridge takes it only when it exists.
            messages.append(_set(_INNER_INDEX + number, _number(_MASTER, _SWITCH_INDEX)))
    packets = _packets(messages)
    rights = frozenset(first + right for _, right in cables if right is not None)

    def build() -> None:
        for node in range(nodes):
            namespaces.unshare(namespaces.CLONE_NEWNET)
            namespaces.bring_up("lo")
            opened = namespaces.open_namespace("net")
            os.dup2(opened, first + node)
            os.close(opened)
        namespaces.setns(own, namespaces.CLONE_NEWNET)
        for packet in packets:
            _send(connection, packet)
        for node in range(nodes):
            namespaces.setns(first + node, namespaces.CLONE_NEWNET)
            _set_address("ic0", node)
            if first + node in rights:
                namespaces.bring_up("ic0")

    return build


def _set_address(interface: str, node: int) -> None:
    address = struct.pack("HH4s8x", socket.AF_INET, 0, bytes((10, 0, node >> 8, node & 0xFF)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as request:
        fcntl.ioctl(request, _SIOCSIFADDR, struct.pack("16s16s", interface.encode(), address))


def _send(connection: socket.socket, packet: bytes) -> None:
    connection.send(packet)
    answer = connection.recv(65_536)
    error = struct.unpack_from("i", answer, 16)[0]
    if error:
        raise OSError(-error, os.strerror(-error))


def _packets(messages: Sequence[bytes]) -> list[bytes]:
    packets: list[bytes] = []
    batch: list[bytes] = []
    for message in messages:
        if batch and sum(map(len, batch)) + len(message) > _PACKET_BYTES_MAX:
            packets.append(_closed(batch))
            batch = []
        batch.append(message)
    packets.append(_closed(batch))
    return packets


def _closed(batch: Sequence[bytes]) -> bytes:
    """One packet; only its last message asks for an answer (an earlier one that fails is answered all the same)."""
    last = bytearray(batch[-1])
    flags = struct.unpack_from("H", last, 6)[0]
    struct.pack_into("H", last, 6, flags | 0x4)
    return b"".join([*batch[:-1], last])


def _link(index: int, flags: int, *attributes: bytes) -> bytes:
    return _message(_CREATE_EXCLUSIVE, _header(index, flags) + b"".join(attributes))


def _set(index: int, *attributes: bytes) -> bytes:
    return _message(0, _header(index, _UP) + b"".join(attributes))


def _message(flags: int, body: bytes) -> bytes:
    return struct.pack("IHHII", 16 + len(body), _RTM_NEWLINK, 0x1 | flags, 0, 0) + body


def _header(index: int, flags: int) -> bytes:
    return struct.pack("BxHiII", 0, 0, index, flags, _UP if flags else 0)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _name(name: str) -> bytes:
    return _attribute(_IFNAME, name.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, _U32.pack(value))


def _info(kind: str, data: bytes = b"") -> bytes:
    return _attribute(_LINKINFO, _attribute(_INFO_KIND, kind.encode() + b"\0") + (_attribute(_INFO_DATA, data)))
