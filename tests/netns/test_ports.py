"""Ports on real interfaces: two private namespaces joined by a veth, each wire against each."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emul.port import bpf, filters
from emul.port.carrier import Interface
from emul.port.errors import PortBusy, PortDown, PortError, PortMissing, PortUnsupported
from emul.port.open import open_port
from emul.port.packet import PacketPort
from emul.port.sysfs import open_attributes
from emul.port.xdp import XdpPort
from emul.wire.address import address_bytes
from emul.wire.discovery import ALL_NODES, Advertisement, Solicitation, solicited_node
from emul.wire.frame import ARP_REPLY, ARP_REQUEST, Arp, Flow, ipv4_bytes, make_flow
from lab.fabric import namespaces
from tests.helpers.network import Namespace, Pair, wait_until

LEFT, RIGHT, OTHER = "10.77.0.1", "10.77.0.2", "10.77.0.3"
LEFT6, RIGHT6, OTHER6 = "fd77::1", "fd77::2", "fd77::3"
RealPort = XdpPort | PacketPort
pytestmark = [pytest.mark.netns, pytest.mark.root]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


@pytest.fixture
def opened(pair: Pair) -> Iterator[Callable[..., RealPort]]:
    """Opens ports ("left" or "right") and closes them at the end."""
    ports: list[RealPort] = []

    def opens(side: str, wire: str, address: str | list[str] | None = None, **sizes: int) -> RealPort:
        with getattr(pair, side).entered():
            name, own = f"{side}0", LEFT if side == "left" else RIGHT
            port = XdpPort(name, address or own, **sizes) if sizes else open_port(name, wire, address or own)
        ports.append(port)
        return port

    yield opens
    for port in ports:
        port.close()


def frame(length: int = 100, *, target: str = RIGHT, number: int = 0) -> bytes:
    """A RoCE frame of exactly `length` bytes from left to right, with a number in its PSN field."""
    flow = Flow(
        source_mac=Pair.LEFT_MAC, target_mac=Pair.RIGHT_MAC, source=ipv4_bytes(LEFT), target=ipv4_bytes(target),
        source_port=0xC000,
    )  # fmt: skip
    bth = b"\x04\0\xff\xff\0\0\0\x11" + number.to_bytes(4, "big")
    return flow.frame(bth, bytes(length - 58))


def frame6(length: int = 100, *, target: str = RIGHT6) -> bytes:
    """The same over IPv6."""
    flow = make_flow(
        source_mac=Pair.LEFT_MAC, target_mac=Pair.RIGHT_MAC, source=address_bytes(LEFT6),
        target=address_bytes(target), source_port=0xC000,
    )  # fmt: skip
    return flow.frame(bytes(12), bytes(length - 78))


def asks(target: str) -> bytes:
    wanted = address_bytes(target)
    return Solicitation(address_bytes(LEFT6), solicited_node(wanted), wanted, Pair.LEFT_MAC).emit()


def tells(destination: bytes) -> bytes:
    left = address_bytes(LEFT6)
    return Advertisement(left, destination, left, Pair.LEFT_MAC, solicited=False, override=True).emit(Pair.RIGHT_MAC)


def numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(item[50:54], "big") for item in frames]


def receive(port: RealPort, count: int) -> list[bytes]:
    """Waits for `count` frames, by epoll as an adapter does."""
    frames: list[bytes] = []
    with select.epoll() as epoll:
        epoll.register(port.fileno(), select.EPOLLIN)
        while len(frames) < count:
            assert epoll.poll(5), f"{len(frames)} of {count} frames came; {port.counters()}"
            frames += port.receive()
    return frames


def nothing_comes(port: RealPort) -> bool:
    """Delivery over a veth is synchronous: what has not come when send returned will not come."""
    return port.receive() == []


both_wires = pytest.mark.parametrize("wires", ["xdp-xdp", "packet-packet", "xdp-packet", "packet-xdp"])
each_wire = pytest.mark.parametrize("wire", ["xdp", "packet"])


@both_wires
def test_frames_arrive_unchanged_and_in_order(opened: Callable[..., RealPort], wires: str) -> None:
    left_wire, right_wire = wires.split("-")
    left, right = opened("left", left_wire), opened("right", right_wire)
    assert (left.mac, left.mtu, left.fallback_reason) == (Pair.LEFT_MAC, 2200, None)
    sent = [frame(length, number=number) for number, length in enumerate((58, 60, 61, 1500, 2214))]
    sent.insert(2, Arp(ARP_REQUEST, left.mac, ipv4_bytes(LEFT), bytes(6), ipv4_bytes(RIGHT)).emit())
    assert left.send(sent) == len(sent)
    assert receive(right, len(sent)) == sent
    reply = Arp(ARP_REPLY, right.mac, ipv4_bytes(RIGHT), left.mac, ipv4_bytes(LEFT)).emit()
    assert right.send([reply]) == 1
    assert receive(left, 1) == [reply]
    assert left.counters()["tx_frames"] == right.counters()["rx_frames"] == len(sent)


@each_wire
def test_what_is_for_others_is_left_to_the_kernel(pair: Pair, opened: Callable[..., RealPort], wire: str) -> None:
    right = opened("right", wire)
    raw = pair.left.raw_socket("left0")
    good = frame()
    fragment, options, port, tcp = bytearray(good), bytearray(good), bytearray(good), bytearray(good)
    fragment[20] = 0x20
    options[14] = 0x46
    port[37] ^= 1
    tcp[23] = 6
    elsewhere = Arp(ARP_REQUEST, b"\x02" * 6, ipv4_bytes(LEFT), bytes(6), ipv4_bytes(OTHER)).emit()
    tagged = good[:12] + b"\x81\x00\x00\x01" + good[12:]
    for other in (frame(target=OTHER), fragment, options, port, tcp, elsewhere, tagged):
        raw.send(other)
    assert nothing_comes(right)
    raw.send(good)
    assert receive(right, 1) == [good]
    raw.close()


@each_wire
@pytest.mark.parametrize("own", [[RIGHT6], [RIGHT, RIGHT6], ["fe80::2", RIGHT, RIGHT6]], ids=len)
def test_over_ipv6_its_own_frames_and_neighbour_discovery_are_taken(
    pair: Pair, opened: Callable[..., RealPort], wire: str, own: list[str]
) -> None:
    right = opened("right", wire, own)
    raw = pair.left.raw_socket("left0")
    good = frame6()
    port, tcp, options, version, cut = (bytearray(good) for _ in range(5))
    port[57] ^= 1
    tcp[20], options[20], version[14] = 6, 0, 0x50
    others = [frame6(target=OTHER6), asks(OTHER6), tells(address_bytes(OTHER6)), port, tcp, options, version]
    tagged = good[:12] + b"\x81\x00\x00\x01" + good[12:]
    for other in (*others, tagged, cut[:61], asks(RIGHT6)[:77]):
        raw.send(other)
    assert nothing_comes(right)
    mine = [good, frame6(2000), asks(RIGHT6), tells(address_bytes(RIGHT6)), tells(ALL_NODES)]
    mine += [frame(number=3)] if RIGHT in own else []
    for each in mine:
        raw.send(each)
    assert receive(right, len(mine)) == mine
    raw.close()


def group_addresses(namespace: Namespace, interface: str) -> set[bytes]:
    """The Ethernet groups that an interface passes up."""
    with namespace.entered():
        rows = [line.split() for line in Path("/proc/thread-self/net/dev_mcast").read_text().splitlines()]
    return {bytes.fromhex(row[4]) for row in rows if row[1] == interface}


@each_wire
def test_a_port_joins_the_groups_of_its_ipv6_addresses_and_leaves_them(
    pair: Pair, opened: Callable[..., RealPort], wire: str
) -> None:
    asked_at, all_nodes = bytes.fromhex("3333ff000002"), bytes.fromhex("333300000001")
    before = group_addresses(pair.right, "right0")
    assert asked_at not in before
    right = opened("right", wire, RIGHT6)
    assert group_addresses(pair.right, "right0") == before | {asked_at, all_nodes}
    right.close()
    assert group_addresses(pair.right, "right0") == before


@each_wire
def test_garbage_and_truncated_frames_do_no_harm(pair: Pair, opened: Callable[..., RealPort], wire: str) -> None:
    right = opened("right", wire)
    raw = pair.left.raw_socket("left0")
    chance = random.Random(4791)
    for length in range(14, 60):
        raw.send(frame(200)[:length])
        raw.send(Pair.RIGHT_MAC + chance.randbytes(length - 6))
    for _ in range(300):
        raw.send(Pair.RIGHT_MAC + Pair.LEFT_MAC + b"\x08\x00" + chance.randbytes(chance.randrange(0, 2000)))
    for got in right.receive(1000):
        assert len(got) >= 42, "whoever came this far had all headers"
    raw.send(frame(number=9))
    assert numbers(receive(right, 1)) == [9]
    raw.close()


@each_wire
def test_a_frame_above_the_mtu_is_lost_and_counted(opened: Callable[..., RealPort], wire: str) -> None:
    left, right = opened("left", wire), opened("right", wire)
    assert left.send([frame(2215), b"short", frame(2214)]) == 3
    assert len(receive(right, 1)[0]) == 2214
    assert left.counters()["tx_dropped"] == 2
    assert left.counters()["tx_frames"] == 1


@each_wire
def test_receive_hands_over_no_more_than_asked_oldest_first(opened: Callable[..., RealPort], wire: str) -> None:
    left, right = opened("left", wire), opened("right", wire)
    left.send([frame(number=number) for number in range(100)])
    assert numbers(right.receive(3)) == [0, 1, 2]
    assert numbers(right.receive()) == list(range(3, 67))
    assert numbers(right.receive(1000)) == list(range(67, 100))
    assert right.receive() == []


def test_a_burst_larger_than_the_rings_loses_its_end_and_nothing_after(opened: Callable[..., RealPort]) -> None:
    left = opened("left", "xdp", transmit_frames=16, receive_frames=16)
    right = opened("right", "xdp", transmit_frames=16, receive_frames=64)
    for turn in range(20):
        assert left.send([frame(number=number) for number in range(500)]) == 500, "a send ring of 16 takes them all"
        assert numbers(right.receive(1000)) == list(range(64)), f"turn {turn}"
    counters = right.counters()
    assert counters["rx_frames"] == 20 * 64
    assert counters["rx_dropped"] == 20 * (500 - 64)
    left.send([frame(number=7)])
    assert numbers(receive(right, 1)) == [7]


def test_the_packet_socket_keeps_a_large_burst(opened: Callable[..., RealPort]) -> None:
    left, right = opened("left", "packet"), opened("right", "packet")
    assert left.send([frame(number=number) for number in range(1000)]) == 1000
    assert numbers(right.receive(2000)) == list(range(1000))


@each_wire
def test_rings_wrap_many_times(opened: Callable[..., RealPort], wire: str) -> None:
    left, right = opened("left", wire), opened("right", wire)
    for turn in range(200):
        batch = [frame(58 + number, number=turn * 37 + number) for number in range(37)]
        assert left.send(batch) == 37
        assert right.receive() == batch


@each_wire
def test_the_carrier_goes_and_comes_with_the_other_end(pair: Pair, opened: Callable[..., RealPort], wire: str) -> None:
    left, right = opened("left", wire), opened("right", wire)
    assert left.carrier()
    pair.right.set_up("right0", False)
    assert not left.carrier()
    assert left.send([frame(number=1), frame(number=2)]) == 2, "taken, and lost as on a cut cable"
    assert left.counters()["tx_dropped"] == 2
    pair.right.set_up("right0", True)
    wait_until(left.carrier, "the carrier comes back")
    left.send([frame(number=3)])
    assert numbers(receive(right, 1)) == [3], "nothing stale arrives"
    assert left.counters()["tx_frames"] == 1


def test_the_carrier_that_is_counted_is_the_one_that_the_kernel_tells(pair: Pair) -> None:
    with pair.left.entered():
        left = Interface("left0")
        assert open_attributes("left0", left.index, left.mac) is not None, "sysfs tells of it"
        assert open_attributes("left0", left.index, bytes(6)) is None, "another interface of that name"
    for namespace, interface in ((pair.right, "right0"), (pair.left, "left0")) * 3:
        namespace.set_up(interface, False)
        assert (left.carrier(), left.ask_carrier()) == (False, False)
        namespace.set_up(interface, True)
        assert (left.carrier(), left.ask_carrier()) == (True, True)
    pair.right.set_up("right0", False)
    with pair.left.entered():
        late = Interface("left0")
    assert (late.carrier(), late.ask_carrier()) == (False, False), "one that was opened without a carrier"
    pair.right.set_up("right0", True)
    assert (late.carrier(), late.ask_carrier()) == (True, True)
    late.close()
    left.close()


@each_wire
def test_an_interface_set_down_loses_frames_and_sends_none_late(
    pair: Pair, opened: Callable[..., RealPort], wire: str
) -> None:
    left, right = opened("left", wire), opened("right", wire)
    for turn in range(3):
        pair.left.set_up("left0", False)
        assert not left.carrier()
        for number in range(100):
            assert left.send([frame(number=1000 + number)] * 5) == 5
        assert left.receive() == []
        pair.left.set_up("left0", True)
        wait_until(lambda: left.carrier() and right.carrier(), "both ends see the carrier")
        left.send([frame(number=turn)])
        assert numbers(receive(right, 1)) == [turn]
    assert left.counters()["tx_dropped"] == 1500


@each_wire
def test_an_interface_that_vanishes_is_no_carrier_and_no_exception(
    pair: Pair, opened: Callable[..., RealPort], wire: str
) -> None:
    left = opened("left", wire)
    pair.right.delete("right0")
    wait_until(lambda: not left.carrier(), "the carrier is gone")
    assert left.send([frame()] * 3) == 3
    assert left.receive() == []
    assert left.counters()["tx_dropped"] == 3


@pytest.mark.parametrize("first", ["xdp", "packet"])
@pytest.mark.parametrize("second", ["xdp", "packet", "auto"])
def test_an_interface_has_one_port_at_a_time(opened: Callable[..., RealPort], first: str, second: str) -> None:
    port = opened("left", first)
    with pytest.raises(PortBusy, match="left0: another port has the interface open"):
        opened("left", second)
    port.close()
    assert opened("left", second).carrier()


def has_program(namespace: Namespace, interface: str) -> bool:
    """Whether the kernel reports an XDP program on an interface."""
    from pyroute2 import IPRoute

    with namespace.entered(), IPRoute() as route:
        (link,) = route.link("get", ifname=interface)
        xdp = link.get_attr("IFLA_XDP")
        return xdp is not None and xdp.get_attr("IFLA_XDP_PROG_ID") is not None


def test_close_takes_the_program_off(pair: Pair, opened: Callable[..., RealPort]) -> None:
    port = opened("left", "xdp")
    assert port.wire == "xdp-native"
    assert has_program(pair.left, "left0")
    port.close()
    port.close()
    assert not has_program(pair.left, "left0")


def test_a_killed_process_leaves_no_program_and_no_lease(pair: Pair, opened: Callable[..., RealPort]) -> None:
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            namespaces.die_with_parent(signal.SIGKILL)
            opened("left", "xdp")
            os.write(ready_write, b"x")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready_read, 1) == b"x"
    assert has_program(pair.left, "left0")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: not has_program(pair.left, "left0"), "the program is gone")
    assert opened("left", "xdp").wire == "xdp-native"
    os.close(ready_read)
    os.close(ready_write)


def test_somebody_elses_program_is_left_alone(pair: Pair, opened: Callable[..., RealPort]) -> None:
    with pair.left.entered():
        queues = bpf.create_xsk_map(1)
        program = bpf.load_program(filters.xdp_program(queues, None), "foreign")
        link = bpf.attach(program, socket.if_nametoindex("left0"), bpf.XdpMode.NATIVE)
    for wire in ("xdp", "auto"):
        with pytest.raises(PortBusy, match="left0: another program holds the interface"):
            opened("left", wire)
    assert has_program(pair.left, "left0")
    for descriptor in (link, program, queues):
        os.close(descriptor)
    assert opened("left", "xdp").carrier()


def test_the_kernels_own_traffic_passes_a_port(pair: Pair, opened: Callable[..., RealPort]) -> None:
    from pyroute2 import IPRoute

    sockets = {}
    for side, address in (("left", "192.0.2.1"), ("right", "192.0.2.2")):
        namespace: Namespace = getattr(pair, side)
        with namespace.entered(), IPRoute() as route:
            route.addr("add", index=socket.if_nametoindex(f"{side}0"), address=address, prefixlen=24)
            sockets[side] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sockets[side].bind((address, 5000))
            sockets[side].settimeout(5)
    left, right = opened("left", "xdp"), opened("right", "xdp")
    sockets["left"].sendto(b"by way of the kernel", ("192.0.2.2", 5000))
    assert sockets["right"].recv(100) == b"by way of the kernel"
    assert left.receive() == right.receive() == [], "not even its ARP was taken"
    for each in sockets.values():
        each.close()


@pytest.mark.parametrize("wire", ["xdp", "packet", "auto"])
def test_what_is_not_there_or_down_is_told_in_words(pair: Pair, opened: Callable[..., RealPort], wire: str) -> None:
    with pair.left.entered():
        with pytest.raises(PortMissing, match="nosuch0: no such interface"):
            open_port("nosuch0", wire)
        with pytest.raises(PortMissing, match="1 to 15 characters, got 16"):
            open_port("x" * 16, wire)
    pair.left.set_up("left0", False)
    with pytest.raises(PortDown, match="left0: the interface is down"):
        opened("left", wire)
    pair.left.set_up("left0", True)
    assert opened("left", wire).mtu == 2200


class Jumbo:
    """A cable of any MTU and the ports at its ends."""

    def __init__(self) -> None:
        self.pairs: dict[int, Pair] = {}
        self.ports: list[RealPort] = []

    def __call__(self, mtu: int, side: str, wire: str) -> RealPort:
        if mtu not in self.pairs:
            self.pairs[mtu] = Pair(mtu=mtu)
        with getattr(self.pairs[mtu], side).entered():
            self.ports.append(open_port(f"{side}0", wire, LEFT if side == "left" else RIGHT))
        return self.ports[-1]


@pytest.fixture
def jumbo() -> Iterator[Jumbo]:
    made = Jumbo()
    yield made
    for port in made.ports:
        port.close()
    for pair in made.pairs.values():
        pair.close()


@pytest.mark.needs_large_frames
@both_wires
@pytest.mark.parametrize("mtu", [4200, 9000])
def test_frames_larger_than_a_chunk_arrive_unchanged(jumbo: Jumbo, mtu: int, wires: str) -> None:
    left_wire, right_wire = wires.split("-")
    left, right = jumbo(mtu, "left", left_wire), jumbo(mtu, "right", right_wire)
    assert (left.mtu, left.fallback_reason, right.fallback_reason) == (mtu, None, None)
    chance = random.Random(mtu)
    edges = (58, 3582, 3838, 3842, 4094, 4098, mtu + 14)  # what a chunk holds with the kernel's headroom, and without
    for turn in range(60):
        lengths = [chance.choice(edges) for _ in range(7)]
        sent = [frame(length - length % 4 + 2, number=turn * 8 + place) for place, length in enumerate(lengths)]
        assert left.send(sent) == len(sent)
        assert receive(right, len(sent)) == sent
    assert left.counters()["tx_frames"] == right.counters()["rx_frames"] == 420
    assert left.send([frame(mtu + 18), frame(mtu + 14)]) == 2
    assert len(receive(right, 1)[0]) == mtu + 14
    assert (left.counters()["tx_dropped"], left.counters()["tx_frames"]) == (1, 421)


@pytest.mark.needs_large_frames
def test_a_burst_of_large_frames_loses_whole_frames_alone(jumbo: Jumbo) -> None:
    left, right = jumbo(4200, "left", "xdp"), jumbo(4200, "right", "xdp")
    for _ in range(3):
        assert left.send([frame(4214, number=number) for number in range(600)]) == 600
        assert right.receive(3), "as many as were asked for"
        got = numbers(right.receive(1000))
        assert got == list(range(3, 256)), "two places of 512 for each frame"
    left.send([frame(4214, number=7), frame(number=8)])
    assert numbers(receive(right, 2)) == [7, 8]


@pytest.mark.needs_large_frames
def test_large_frames_are_lost_on_a_dead_interface_and_none_is_late(jumbo: Jumbo) -> None:
    left, right = jumbo(4200, "left", "xdp"), jumbo(4200, "right", "xdp")
    namespace = jumbo.pairs[4200].left
    for turn in range(3):
        namespace.set_up("left0", False)
        assert left.send([frame(4214)] * 200) == 200, "a ring of 256 takes them all, two places each"
        assert left.send([frame(100)] * 5) == 5
        namespace.set_up("left0", True)
        wait_until(lambda: left.carrier() and right.carrier(), "both ends see the carrier")
        left.send([frame(4214, number=turn)])
        assert numbers(receive(right, 1)) == [turn]
    assert (left.counters()["tx_dropped"], left.counters()["tx_frames"]) == (3 * 205, 3)


def test_an_mtu_too_large_for_xdp_falls_back_and_says_so(jumbo: Jumbo) -> None:
    with pytest.raises(PortUnsupported, match="left0: MTU 9300 is too large for AF_XDP here, at most 9216"):
        jumbo(9300, "left", "xdp")
    left, right = jumbo(9300, "left", "auto"), jumbo(9300, "right", "packet")
    assert left.wire == "packet"
    assert "MTU 9300 is too large" in str(left.fallback_reason)
    left.send([frame(9314)])
    assert len(receive(right, 1)[0]) == 9314


def test_a_kernel_without_frames_in_several_buffers_is_told_from_a_large_mtu(
    jumbo: Jumbo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This kernel refuses a flag that it does not know as an older one refuses that one."""
    monkeypatch.setattr("emul.port.xdp._XDP_USE_SG", 1 << 15)
    with pytest.raises(PortUnsupported, match=r"MTU 4200 needs frames in several buffers.*Linux 6\.6.*up to MTU 3498"):
        jumbo(4200, "left", "xdp")
    left = jumbo(4200, "left", "auto")
    assert left.wire == "packet"
    assert "several buffers" in str(left.fallback_reason)


def test_without_privilege_in_the_first_user_namespace_packet_sockets_serve() -> None:
    """In a user namespace bpf(2) is refused: "auto" falls back, "xdp" says why. (Runs in a child: one way only.)"""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = "nothing"
        try:
            namespaces.enter_user_namespace()
            namespaces.make_private(pid_namespace=False)
            pair = Pair()
            with pair.left.entered():
                left = open_port("left0", "auto", LEFT)
            with pair.right.entered():
                right = open_port("right0", "auto", RIGHT)
                try:
                    told = "xdp opened"
                    open_port("right0", "xdp", RIGHT)
                except PortError:
                    told = ""
            left.send([frame(number=5)])
            told += f"{left.wire} {numbers(receive(right, 1))} {left.fallback_reason}"
        except BaseException as error:
            told = repr(error)
        finally:
            os.write(write, told.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    assert told.startswith("packet [5] left0: AF_XDP is not to be had: "), told


def test_a_wire_that_does_not_exist_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="wire is one of auto, xdp, packet"):
        open_port("lo", "carrier-pigeon")
