"""An emulated adapter and a soft-RoCE guest at the two ends of one cable, and queue pairs of either sort."""

from __future__ import annotations

import base64
import fcntl
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import emul
from emul.verbs import CQ, MR, PD, QP, Context, QPInitAttr
from emul.vocabulary import (
    GID,
    MTU,
    SGE,
    AccessFlags,
    AHAttr,
    GlobalRoute,
    PlacementType,
    QPAttr,
    QPCap,
    QPState,
    RecvWR,
    Selectivity,
    SendFlags,
    SendWR,
    WROpcode,
)
from lab.fabric import netlink
from tests.helpers.network import Namespace, wait_until
from tests.softroce.guest import DEVICE, INTERFACE, Guest, encoded, open_tap
from tests.softroce.image import MODULES, image
from tests.softroce.middle import Middle, raw_socket

OURS, THEIRS = {4: "10.77.0.1", 6: "fd00:77::1"}, {4: "10.77.0.9", 6: "fd00:77::9"}
PREFIX = {4: 24, 6: 64}
MAC = b"\x02\0\0\0\0\x01"
INTERFACE_MTU = 4200
"""Of the interfaces: for path MTU 4096. What rdma_cm asks for follows from it, so that both ends have the same."""
GROUP = 7
SLOTS = 64
REGION_BYTES = 1 << 18
COMPLETION_TIMEOUT_S = 20.0
_SIOCSIFMTU = 0x8922
ALL_ACCESS = ("LOCAL_WRITE", "REMOTE_WRITE", "REMOTE_READ", "REMOTE_ATOMIC")
Pieces = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Done:
    """A completion, as both sides tell it."""

    wr_id: int
    status: str
    opcode: int
    byte_len: int
    imm: int
    flags: int


class End(Protocol):
    """A queue pair with a region, on either side. Offsets are in the region."""

    qpn: int
    addr: int
    rkey: int
    gid: str

    def connect(self, other: End, sq_psn: int, rq_psn: int, path_mtu: int, **attributes: Any) -> None:
        """RESET -> RTS. `path_mtu` in bytes; `attributes` as those of the verbs."""

    def fill(self, data: bytes, offset: int = 0) -> None:
        """Stores bytes."""

    def bytes(self, offset: int, length: int) -> bytes:
        """What is there."""

    def recv(self, length: int, offset: int = 0, wr_id: int = 0, pieces: Pieces | None = None) -> None:
        """Posts a receive."""

    def send(
        self, opcode: str, length: int = 0, *, offset: int = 0, rkey: int = 0, addr: int = 0, wr_id: int = 0,
        imm: int = 0, compare: int = 0, swap: int = 0, data: bytes = b"", flags: int = 2, pieces: Pieces | None = None,
        placement: int = 1, level: int = 0,
    ) -> None:  # fmt: skip
        """Posts a request of `length` bytes at `offset`, or of `pieces`. A FLUSH takes its length from `length`, an
        ATOMIC WRITE its eight bytes from `data`.
        """

    def poll(self, count: int = 1, timeout: float = COMPLETION_TIMEOUT_S) -> list[Done]:
        """Waits for `count` completions, in vain after `timeout` s; gives what came."""

    def state(self) -> str:
        """State of the queue pair."""

    def close(self) -> None:
        """Destroys all that it has."""


class PeerEnd:
    """A queue pair of rdma_rxe in the guest."""

    _next = 1

    def __init__(self, guest: Guest, access: Sequence[str], placement: bool, gid: str, gid_index: int) -> None:
        self._guest, self._placement, self.gid, self._gid_index = guest, placement, gid, gid_index
        self._access = [*access, "MW_BIND"]
        PeerEnd._next += 1
        self.number = PeerEnd._next
        made = guest.ask(
            "open", end=self.number, device=DEVICE, length=REGION_BYTES, access=self._access, placement=placement
        )
        self.qpn, self.addr, self.rkey = made["qpn"], made["addr"], made["rkey"]

    def connect(self, other: End, sq_psn: int, rq_psn: int, path_mtu: int, **attributes: Any) -> None:
        """End."""
        self._guest.ask(
            "connect", end=self.number, peer_qpn=other.qpn, peer_gid=ipaddress.IPv6Address(other.gid).exploded,
            gid_index=self._gid_index, sq_psn=sq_psn, rq_psn=rq_psn, path_mtu=_encoded_mtu(path_mtu),
            placement=self._placement, access=self._access, **attributes,
        )  # fmt: skip

    def fill(self, data: bytes, offset: int = 0) -> None:
        """End."""
        self._guest.ask("fill", end=self.number, data=encoded(data), offset=offset)

    def bytes(self, offset: int, length: int) -> bytes:
        """End."""
        return base64.b64decode(self._guest.ask("bytes", end=self.number, offset=offset, length=length))

    def recv(self, length: int, offset: int = 0, wr_id: int = 0, pieces: Pieces | None = None) -> None:
        """End."""
        self._guest.ask("recv", end=self.number, wr_id=wr_id, pieces=pieces or [(offset, length)])

    def send(
        self, opcode: str, length: int = 0, *, offset: int = 0, rkey: int = 0, addr: int = 0, wr_id: int = 0,
        imm: int = 0, compare: int = 0, swap: int = 0, data: bytes = b"", flags: int = 2, pieces: Pieces | None = None,
        placement: int = 1, level: int = 0,
    ) -> None:  # fmt: skip
        """End."""
        self._guest.ask(
            "send", end=self.number, wr_id=wr_id, opcode=opcode, pieces=pieces or [(offset, length)], rkey=rkey,
            addr=addr, imm=imm, compare=compare, swap=swap, length=length, data=encoded(data), placement=placement,
            level=level, flags=flags,
        )  # fmt: skip

    def window(self, offset: int, length: int) -> int:
        """Binds a memory window over part of the region; gives its key."""
        key: int = self._guest.ask("window", end=self.number, offset=offset, length=length)
        assert [done.status for done in self.poll()] == ["SUCCESS"]
        return key

    def poll(self, count: int = 1, timeout: float = COMPLETION_TIMEOUT_S) -> list[Done]:
        """End."""
        return [Done(**found) for found in self._guest.ask("poll", end=self.number, count=count, timeout=timeout)]

    def state(self) -> str:
        """End."""
        return str(self._guest.ask("state", end=self.number))

    def close(self) -> None:
        """End."""
        self._guest.ask("close", end=self.number)


class OurEnd:
    """A queue pair of the emulated adapter."""

    def __init__(self, context: Context, access: Sequence[str], placement: bool, gid: str) -> None:
        self.gid = gid
        self._access = AccessFlags.NONE
        for name in access:
            self._access |= AccessFlags[name]
        if placement:
            self._access |= AccessFlags.FLUSH_GLOBAL
        self._pd = PD(context)
        self._mr = MR(self._pd, REGION_BYTES, self._access)
        self._more: list[MR] = []
        self._cq = CQ(context, 4 * SLOTS)
        cap = QPCap(max_send_wr=SLOTS, max_recv_wr=SLOTS, max_send_sge=4, max_recv_sge=4)
        self.qp = QP(self._pd, QPInitAttr(cap=cap, scq=self._cq, rcq=self._cq))
        self.qpn, self.addr, self.rkey = self.qp.qp_num, self._mr.buf, self._mr.rkey

    def connect(self, other: End, sq_psn: int, rq_psn: int, path_mtu: int, **attributes: Any) -> None:
        """End."""
        attr = QPAttr(
            qp_state=QPState.INIT,
            dest_qp_num=other.qpn,
            sq_psn=sq_psn,
            rq_psn=rq_psn,
            path_mtu=MTU(_encoded_mtu(path_mtu)),
            qp_access_flags=self._access,
            ah_attr=AHAttr(gr=GlobalRoute(dgid=GID(other.gid))),
        )
        depth = attributes.pop("rd_atomic", 16)
        for name, value in {**attributes, "max_rd_atomic": depth, "max_dest_rd_atomic": depth}.items():
            setattr(attr, name, value)
        self.qp.to_rts(attr)

    def fill(self, data: bytes, offset: int = 0) -> None:
        """End."""
        self._mr.write(data, len(data), offset)

    def bytes(self, offset: int, length: int) -> bytes:
        """End."""
        return self._mr.read(length, offset)

    def recv(self, length: int, offset: int = 0, wr_id: int = 0, pieces: Pieces | None = None) -> None:
        """End."""
        sges = self._pieces(pieces or [(offset, length)])
        self.qp.post_recv(RecvWR(wr_id, len(sges), sg=sges))

    def send(
        self, opcode: str, length: int = 0, *, offset: int = 0, rkey: int = 0, addr: int = 0, wr_id: int = 0,
        imm: int = 0, compare: int = 0, swap: int = 0, data: bytes = b"", flags: int = 2, pieces: Pieces | None = None,
        placement: int = 1, level: int = 0,
    ) -> None:  # fmt: skip
        """End."""
        if opcode == "ATOMIC_WRITE":
            offset = REGION_BYTES - len(data)
            self.fill(data, offset)
            length = len(data)
        sges = [] if opcode == "FLUSH" else self._pieces(pieces or [(offset, length)])
        request = SendWR(wr_id, WROpcode[opcode], len(sges), imm_data=imm, sg=sges, send_flags=SendFlags(flags))
        if opcode == "FLUSH":
            request.set_wr_flush(rkey, addr, length, PlacementType(placement), Selectivity(level))
        elif opcode in ("ATOMIC_CMP_AND_SWP", "ATOMIC_FETCH_AND_ADD"):
            request.set_wr_atomic(rkey, addr, compare, swap)
        else:
            request.set_wr_rdma(rkey, addr)
        self.qp.post_send(request)

    def poll(self, count: int = 1, timeout: float = COMPLETION_TIMEOUT_S) -> list[Done]:
        """End."""
        found: list[Done] = []
        until = time.monotonic() + timeout
        while len(found) < count and time.monotonic() < until:
            completions = self._cq.poll(count - len(found))[1]
            found += [
                Done(wc.wr_id, wc.status.name, int(wc.opcode), wc.byte_len, wc.imm_data, int(wc.wc_flags))
                for wc in completions
            ]
            if not completions:
                time.sleep(0.001)
        return found

    def region(self, length: int) -> MR:
        """One more region of its protection domain."""
        self._more.append(MR(self._pd, length, self._access))
        return self._more[-1]

    def close(self) -> None:
        """End."""
        self.qp.close()
        for region in (self._mr, *self._more):
            region.close()
        self._cq.close()
        self._pd.close()

    def state(self) -> str:
        """End."""
        return self.qp.query().qp_state.name

    def _pieces(self, pieces: Pieces) -> list[SGE]:
        return [SGE(self._mr.buf + offset, length, self._mr.lkey) for offset, length in pieces]


class Peer:
    """A guest with soft-RoCE on a tap interface of a namespace of its own; it serves one cable after the other."""

    def __init__(self, kernel: str) -> None:
        self.namespace = Namespace()
        with self.namespace.entered():
            tap = open_tap("tap0")
            _set_mtu("tap0", INTERFACE_MTU)
        self.namespace.set_up("tap0", True)
        with self.namespace.entered():
            self.socket = raw_socket("tap0")
        try:
            self.guest = Guest(image(kernel), tap, MODULES)
        finally:
            os.close(tap)
        try:
            self._configure()
        except BaseException:
            self.close()
            raise

    def _configure(self) -> None:
        run = self.guest.run
        run("ip", "link", "set", INTERFACE, "mtu", str(INTERFACE_MTU), "up")
        for family, address in THEIRS.items():
            nodad = ("nodad",) if family == 6 else ()
            run("ip", "address", "add", f"{address}/{PREFIX[family]}", "dev", INTERFACE, *nodad)
        run("rdma", "link", "add", DEVICE, "type", "rxe", "netdev", INTERFACE)
        self.gid_index = {family: self._find_gid(address) for family, address in THEIRS.items()}

    def _find_gid(self, address: str) -> int:
        """Where the device has an address in its table of GIDs."""
        wanted = _gid(address).exploded
        command = f"cd /sys/class/infiniband/{DEVICE}/ports/1/gids; grep -l {wanted} [0-9] | head -n 1"
        return int(self.guest.run("sh", "-c", command))

    def close(self) -> None:
        """Switches the guest off."""
        self.guest.close()
        self.socket.close()
        self.namespace.close()


class World:
    """A cable from `peer` to an adapter process of its own."""

    def __init__(self, peer: Peer, wire: str) -> None:
        self.peer, self.guest, self.wire = peer, peer.guest, wire
        self.home = Namespace()
        with peer.namespace.entered():
            connection = netlink.Netlink()
            veth = netlink.node_veth(
                index=10, name="ic0", mac=MAC, mtu=INTERFACE_MTU, namespace=self.home.fd,
                peer_index=socket.if_nametoindex("tap0") + 100, peer_name="middle0", group=GROUP,
            )  # fmt: skip
            connection.apply([veth, netlink.group_up(GROUP)])
            connection.close()
            middle = raw_socket("middle0")
        self.home.set_up("ic0", True)
        self.middle = Middle(middle, peer.socket)
        with self.home.entered():
            self.context: Context = emul.open_adapter("ic0", list(OURS.values()), wire)
        self.context.attach(1)
        self._ends: list[End] = []

    def ends(
        self, access: Sequence[str] = ALL_ACCESS, *, placement: bool = False, family: int = 4
    ) -> tuple[OurEnd, PeerEnd]:
        """A queue pair on either side, not connected."""
        index = self.peer.gid_index[family]
        theirs = PeerEnd(self.guest, access, placement, str(_gid(THEIRS[family])), index)
        self._ends.append(theirs)
        ours = OurEnd(self.context, access, placement, str(_gid(OURS[family])))
        self._ends.append(ours)
        return ours, theirs

    def new_test(self) -> None:
        """Nothing of what came before is left."""
        self.middle.forget()
        for end in self._ends:
            end.close()
        self._ends = []

    def close(self) -> None:
        """Cuts the cable and ends the adapter; the guest stays."""
        self.new_test()
        self.context.close()
        self.peer.namespace.delete("middle0")
        self.middle.close()
        self.home.close()


def connect(a: End, b: End, *, psns: tuple[int, int] = (0xFFFFFE, 0xFFFFF8), path_mtu: int = 1024, **how: Any) -> None:
    """Connects two queue pairs by hand; both PSNs soon wrap."""
    a.connect(b, psns[0], psns[1], path_mtu, **how)
    b.connect(a, psns[1], psns[0], path_mtu, **how)


def both_in_error(a: End, b: End) -> None:
    """Fails when one isn't in ERR soon: the NAK may be on its way before the state has changed."""
    wait_until(lambda: (a.state(), b.state()) == ("ERR", "ERR"), "both queue pairs in ERR")


def _gid(address: str) -> ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address)
    return parsed if isinstance(parsed, ipaddress.IPv6Address) else ipaddress.IPv6Address(f"::ffff:{address}")


def _encoded_mtu(size: int) -> int:
    return {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}[size]


def _set_mtu(interface: str, mtu: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as request:
        fcntl.ioctl(request, _SIOCSIFMTU, struct.pack("16si20x", interface.encode(), mtu))
