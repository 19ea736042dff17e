"""rtnetlink, fast: pyroute2 encodes each kind of message once, and batches of filled-in copies go out in one send.

pyroute2's encoder takes 150-180 us for a veth, longer than the kernel takes to make one. So it encodes a message with
marks in the place of figures, and each real message is that template with its figures written over the marks. Knows
messages and acknowledgements; cables.py knows what they build.

Measured on kernel 6.18: a veth's *peer* can't be born up (ENOTCONN: its peer is not linked yet), its main end can. So
the main end is born up wherever it belongs, and the peers, all born in one interface group, come up by one message.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.tcmsg import sched_netem, tcmsg

NAME_BYTES_MAX = 15
"""The kernel's limit of an interface name (IFNAMSIZ without the closing zero)."""
BATCH_BYTES_MAX = 32 * 1024
"""A batch stays well below the default send buffer (208 KiB)."""

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 36, 44, 45, 46
_RTM_NEWLINKPROP = 108
_HEADER = struct.Struct("<IHHII")
_IFF_UP = 1
_UNUSABLE = re.compile(r"[/:\s]")
_CLSACT_HANDLE, _CLSACT_PARENT, _INGRESS_PARENT, _TC_ROOT = 0xFFFF_0000, 0xFFFF_FFF1, 0xFFFF_FFF2, 0xFFFF_FFFF
_ETH_P_ALL = socket.htons(3)
_TC_ACT_STOLEN, _EGRESS_REDIRECT = 4, 1


class NetlinkError(Exception):
    """The kernel refused a message: which, and its answer."""

    def __init__(self, number: int, what: str, detail: str) -> None:
        super().__init__(f"{what}: {os.strerror(number)}{f' ({detail})' if detail else ''}")
        self.errno = number


class Request(NamedTuple):
    """One message, ready but for its sequence number, and what it does in words.

    A tuple, since a lab of many nodes makes thousands and a frozen dataclass takes four times as long to make.
    """

    data: bytearray
    what: str


class _Template:
    """A message encoded by pyroute2 with marks; `fill` gives copies with figures in their place."""

    __slots__ = ("_encoded", "_offsets")

    def __init__(self, encoded: bytes, marks: Mapping[str, tuple[bytes, struct.Struct]]) -> None:
        self._encoded = encoded
        self._offsets: dict[str, tuple[int, struct.Struct]] = {}
        for name, (mark, form) in marks.items():
            assert encoded.count(mark) == 1, f"mark of {name} found {encoded.count(mark)} times"
            self._offsets[name] = (encoded.index(mark), form)

    def fill(self, **figures: int | bytes) -> bytearray:
        """A copy with these figures; all marks have to get one."""
        data = bytearray(self._encoded)
        for name, (offset, form) in self._offsets.items():
            form.pack_into(data, offset, figures[name])
        return data


_U32 = struct.Struct("<I")
_MAC = struct.Struct("6s")


def _mark(number: int) -> int:
    """A figure that occurs nowhere else in a message; 31 bits, since indices are signed."""
    return 0x5EAF_0000 | number


def _mark_name(number: int) -> str:
    return f"?name-{number:04}-mark"  # 15 characters, the longest name: shorter ones are filled up with zeros


def _name_mark(number: int) -> tuple[bytes, struct.Struct]:
    return _mark_name(number).encode() + b"\0", struct.Struct("15s")


def _u32_mark(number: int) -> tuple[bytes, struct.Struct]:
    return _U32.pack(_mark(number)), _U32


def _encode(
    message: ifinfmsg | tcmsg, kind: int, header_flags: int, attributes: list[list[Any]], /, **fields: int
) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = header_flags | _NLM_F_REQUEST
    message["header"]["sequence_number"] = 0
    message["header"]["pid"] = 0
    message.encode()
    return bytes(message.data)


def _link(kind: int, header_flags: int, attributes: list[list[Any]], /, **fields: int) -> bytes:
    return _encode(ifinfmsg(), kind, header_flags, attributes, **fields)


_CREATE = _NLM_F_CREATE | _NLM_F_EXCL
_MARK_MAC = "5e:af:00:00:00:99"
_MARK_MAC_BYTES = bytes.fromhex("5eaf00000099")


def _veth_template(
    main_attributes: list[list[Any]], main_marks: Mapping[str, tuple[bytes, struct.Struct]]
) -> _Template:
    """A veth pair, main end up, peer down in a group of the sender's namespace."""
    peer = {
        "index": _mark(3),
        "attrs": [["IFLA_IFNAME", _mark_name(4)], ["IFLA_MTU", _mark(5)], ["IFLA_GROUP", _mark(6)]],
    }
    data = {"attrs": [["IFLA_INFO_KIND", "veth"], ["IFLA_INFO_DATA", {"attrs": [["VETH_INFO_PEER", peer]]}]]}
    attributes: list[list[Any]] = [
        ["IFLA_IFNAME", _mark_name(1)],
        ["IFLA_MTU", _mark(2)],
        *main_attributes,
        ["IFLA_LINKINFO", data],
    ]
    encoded = _link(_RTM_NEWLINK, _CREATE, attributes, index=_mark(9), flags=_IFF_UP, change=_IFF_UP)
    marks = {
        "name": _name_mark(1), "mtu": _u32_mark(2), "peer_index": _u32_mark(3), "peer_name": _name_mark(4),
        "peer_mtu": _u32_mark(5), "group": _u32_mark(6), "index": _u32_mark(9), **main_marks,
    }  # fmt: skip
    return _Template(encoded, marks)


def _filter_template() -> _Template:
    """A u32 filter at clsact ingress that matches every frame and redirects it to the egress of another interface."""
    parms = {"action": _TC_ACT_STOLEN, "eaction": _EGRESS_REDIRECT, "ifindex": _mark(3)}
    action = {"attrs": [["TCA_ACT_KIND", "mirred"], ["TCA_ACT_OPTIONS", {"attrs": [["TCA_MIRRED_PARMS", parms]]}]]}
    selector = {"keys": ["0x0/0x0+0"], "flags": 1}
    options = {"attrs": [["TCA_U32_SEL", selector], ["TCA_U32_ACT", {"attrs": [["TCA_ACT_PRIO_1", action]]}]]}
    encoded = _encode(
        tcmsg(), _RTM_NEWTFILTER, _CREATE, [["TCA_KIND", "u32"], ["TCA_OPTIONS", options]],
        index=_mark(1), parent=_INGRESS_PARENT, info=_mark(2), handle=0,
    )  # fmt: skip
    return _Template(encoded, {"index": _u32_mark(1), "info": _u32_mark(2), "target": _u32_mark(3)})


_NODE_VETH = _veth_template(
    [["IFLA_ADDRESS", _MARK_MAC], ["IFLA_NET_NS_FD", _mark(10)]],
    {"mac": (_MARK_MAC_BYTES, _MAC), "namespace": _u32_mark(10)},
)
_PORT_VETH = _veth_template([["IFLA_MASTER", _mark(10)]], {"master": _u32_mark(10)})
_PLAIN_VETH = _veth_template([], {})
_BRIDGE = _Template(
    _link(
        _RTM_NEWLINK,
        _CREATE,
        [
            ["IFLA_IFNAME", _mark_name(1)],
            [
                "IFLA_LINKINFO",
                {
                    "attrs": [
                        ["IFLA_INFO_KIND", "bridge"],
                        [
                            "IFLA_INFO_DATA",
                            {
                                "attrs": [
                                    ["IFLA_BR_FORWARD_DELAY", 0],
                                    ["IFLA_BR_STP_STATE", 0],
                                    ["IFLA_BR_MCAST_SNOOPING", 0],
                                ]
                            },
                        ],
                    ]
                },
            ],
        ],
        index=_mark(2),
        flags=_IFF_UP,
        change=_IFF_UP,
    ),
    {"name": _name_mark(1), "index": _u32_mark(2)},
)
_GROUP_UP = _Template(
    _link(_RTM_NEWLINK, 0, [["IFLA_GROUP", _mark(1)]], index=0, flags=_IFF_UP, change=_IFF_UP),
    {"group": _u32_mark(1)},
)
_SET_FLAGS = _Template(
    _link(_RTM_NEWLINK, 0, [], index=_mark(1), flags=_mark(2), change=_IFF_UP),
    {"index": _u32_mark(1), "flags": _u32_mark(2)},
)
_DELETE_LINK = _Template(_link(_RTM_DELLINK, 0, [], index=_mark(1)), {"index": _u32_mark(1)})
_CLSACT = _Template(
    _encode(
        tcmsg(), _RTM_NEWQDISC, _CREATE, [["TCA_KIND", "clsact"]],
        index=_mark(1), handle=_CLSACT_HANDLE, parent=_CLSACT_PARENT,
    ),
    {"index": _u32_mark(1)},
)  # fmt: skip
_REDIRECT = _filter_template()
_REMOVE_FILTER = _Template(
    _encode(
        tcmsg(), _RTM_DELTFILTER, 0, [["TCA_KIND", "u32"]],
        index=_mark(1), parent=_INGRESS_PARENT, info=_mark(2), handle=0,
    ),
    {"index": _u32_mark(1), "info": _u32_mark(2)},
)  # fmt: skip


def check_name(name: str) -> bytes:
    """`name` as the kernel takes it. Raises ValueError for one that it would refuse with a bare number."""
    encoded = name.encode()
    if not 0 < len(encoded) <= NAME_BYTES_MAX:
        raise ValueError(f'interface name "{name}" has {len(encoded)} bytes, the kernel takes 1 to {NAME_BYTES_MAX}')
    if name in (".", "..") or _UNUSABLE.search(name):
        raise ValueError(f'interface name "{name}" holds a slash, a colon or a space')
    return encoded


def node_veth(
    *, index: int, name: str, mac: bytes, mtu: int, namespace: int, peer_index: int, peer_name: str, group: int
) -> Request:
    """A veth: main end `name` born up in the namespace behind the descriptor `namespace`, its peer here, down.

    The kernel heeds `peer_index` only because `index` is given, too.
    """
    data = _NODE_VETH.fill(
        name=check_name(name), mac=mac, mtu=mtu, namespace=namespace, index=index, peer_index=peer_index,
        peer_name=check_name(peer_name), peer_mtu=mtu, group=group,
    )  # fmt: skip
    return Request(data, f"make interface {name} (peer {peer_name})")


def bridge_veth(
    *, index: int, name: str, mtu: int, master: int, peer_index: int, peer_name: str, group: int
) -> Request:
    """A veth of this namespace: main end up as a port of the bridge `master`, its peer down in `group`."""
    data = _PORT_VETH.fill(
        index=index, name=check_name(name), mtu=mtu, master=master, peer_index=peer_index,
        peer_name=check_name(peer_name), peer_mtu=mtu, group=group,
    )  # fmt: skip
    return Request(data, f"make switch port {name} (peer {peer_name})")


def plain_veth(*, index: int, name: str, mtu: int, peer_index: int, peer_name: str, group: int) -> Request:
    """A veth with both ends in this namespace: main end up, its peer down in `group`."""
    data = _PLAIN_VETH.fill(
        index=index, name=check_name(name), mtu=mtu, peer_index=peer_index, peer_name=check_name(peer_name),
        peer_mtu=mtu, group=group,
    )  # fmt: skip
    return Request(data, f"make interface {name} (peer {peer_name})")


def bridge(*, index: int, name: str) -> Request:
    """A bridge, up: no spanning tree, no forward delay, no multicast snooping; it forwards from the first frame."""
    return Request(_BRIDGE.fill(index=index, name=check_name(name)), f"make switch {name}")


def group_up(group: int) -> Request:
    """Brings up all interfaces of `group`."""
    return Request(_GROUP_UP.fill(group=group), f"bring up interface group {group}")


def set_up(index: int, up: bool) -> Request:
    """Brings interface `index` up or down; a veth's other end gains or loses its carrier with it."""
    return Request(_SET_FLAGS.fill(index=index, flags=int(up)), f"set interface {index} {'up' if up else 'down'}")


def delete_link(index: int) -> Request:
    """Removes interface `index` (and a veth's other end)."""
    return Request(_DELETE_LINK.fill(index=index), f"remove interface {index}")


def clsact(index: int) -> Request:
    """Gives interface `index` the place where redirects are attached."""
    return Request(_CLSACT.fill(index=index), f"add clsact to interface {index}")


def redirect(index: int, target: int, priority: int) -> Request:
    """All frames that arrive at `index` leave by `target`, unless a redirect of a lower number takes them first."""
    return Request(
        _REDIRECT.fill(index=index, target=target, info=priority << 16 | _ETH_P_ALL),
        f"redirect interface {index} to {target} (priority {priority})",
    )


def remove_redirect(index: int, priority: int) -> Request:
    """Takes the redirect of `priority` away: the next one applies to the next frame."""
    return Request(
        _REMOVE_FILTER.fill(index=index, info=priority << 16 | _ETH_P_ALL),
        f"remove redirect of interface {index} (priority {priority})",
    )


def netem(index: int, *, delay_us: int) -> Request:
    """Delays all frames that leave by `index`."""
    message = tcmsg()
    options = sched_netem.get_parameters({"delay": delay_us})
    encoded = _encode(
        message, _RTM_NEWQDISC, _CREATE, [["TCA_KIND", "netem"], ["TCA_OPTIONS", options]],
        index=index, parent=_TC_ROOT, handle=0,
    )  # fmt: skip
    return Request(bytearray(encoded), f"add netem to interface {index}")


def alternative_name(index: int, name: str) -> Request:
    """Gives interface `index` a second name of up to 127 bytes."""
    attributes = [["IFLA_PROP_LIST", {"attrs": [["IFLA_ALT_IFNAME", name]]}]]
    encoded = _link(_RTM_NEWLINKPROP, _CREATE | 0x800, attributes, index=index)
    return Request(bytearray(encoded), f"name interface {index} {name}")


class Netlink:
    """One rtnetlink socket, bound for ever to the network namespace in which it was made."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(270, 11, 1)  # SOL_NETLINK, NETLINK_EXT_ACK: the kernel says why in words
        self._sequence = 0

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def apply(self, requests: Sequence[Request]) -> None:
        """Sends all in order, in as few packets as fit, and checks each. Raises NetlinkError for the first refused one
        (those after it in the same packet may have been applied).
        """
        for batch in _batches(requests):
            self._apply_batch(batch)

    def _apply_batch(self, batch: Sequence[Request]) -> None:
        first = self._sequence + 1
        for request in batch:
            self._sequence += 1
            _U32.pack_into(request.data, 8, self._sequence)
        # A refused message is always answered; only the last has to ask for its answer, and it closes the batch.
        last = batch[-1].data
        flags = struct.unpack_from("<H", last, 6)[0]
        struct.pack_into("<H", last, 6, flags | _NLM_F_ACK)
        self._socket.send(b"".join(request.data for request in batch))
        failure: NetlinkError | None = None
        for _, sequence, number, detail in self._answers():
            if number and failure is None:
                failure = NetlinkError(number, batch[sequence - first].what, detail)
            if sequence == self._sequence:
                break
        if failure is not None:
            raise failure

    def _answers(self) -> Iterator[tuple[int, int, int, str]]:
        """Message type, sequence, error number and the kernel's words, of each answer as it comes."""
        while True:
            data = self._socket.recv(65536)
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("<i", data, offset + 16)[0]
                    yield kind, sequence, number, _explanation(data[offset : offset + length], flags)
                offset += (length + 3) & ~3

    def redirected_frames(self, index: int, priority: int) -> int:
        """How many frames the redirect of `priority` on interface `index` has taken so far; 0 where there is none."""
        self._sequence += 1
        data = bytearray(
            _encode(tcmsg(), _RTM_GETTFILTER, _NLM_F_DUMP, [], index=index, parent=_INGRESS_PARENT, info=0, handle=0)
        )
        _U32.pack_into(data, 8, self._sequence)
        self._socket.send(data)
        frames = 0
        while True:
            data_in = self._socket.recv(65536)
            offset = 0
            while offset < len(data_in):
                length, kind, _, _, _ = _HEADER.unpack_from(data_in, offset)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return frames
                message = tcmsg(data_in[offset : offset + length])
                message.decode()
                if message["info"] >> 16 == priority:
                    frames += _action_frames(message)
                offset += (length + 3) & ~3


def _action_frames(message: tcmsg) -> int:
    """Frames that the first action of a filter has handled."""
    options = message.get_attr("TCA_OPTIONS")
    actions = options.get_attr("TCA_U32_ACT") if options is not None else None
    action = actions.get_attr("TCA_ACT_PRIO_1") if actions is not None else None
    statistics = action.get_attr("TCA_ACT_STATS") if action is not None else None
    basic = statistics.get_attr("TCA_STATS_BASIC") if statistics is not None else None
    return int(basic["packets"]) if basic is not None else 0


def _batches(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    start, size = 0, 0
    for position, request in enumerate(requests):
        if size + len(request.data) > BATCH_BYTES_MAX and position > start:
            yield requests[start:position]
            start, size = position, 0
        size += len(request.data)
    if start < len(requests):
        yield requests[start:]


def _explanation(answer: bytes, flags: int) -> str:
    """The words in an extended acknowledgement (NLMSGERR_ATTR_MSG), "" without any."""
    if not flags & 0x200:  # NLM_F_ACK_TLVS
        return ""
    capped = flags & 0x100  # NLM_F_CAPPED: the request is not repeated
    offset = 20 + (16 if capped else _U32.unpack_from(answer, 20)[0])
    while offset + 4 <= len(answer):
        length, kind = struct.unpack_from("<HH", answer, offset)
        if length < 4:
            return ""
        if kind == 1:
            return answer[offset + 4 : offset + length].rstrip(b"\0").decode("utf-8", "replace")
        offset += (length + 3) & ~3
    return ""
