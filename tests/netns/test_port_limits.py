"""What a port can't have: native XDP, one queue, privilege, the verifier's blessing, an MTU that will do."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute

from emul.adapter import Adapter, PortFacts
from emul.errors import RDMAError
from emul.firmware import Identity
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.port import bpf
from emul.port.carrier import Interface
from emul.port.errors import PortMissing, PortUnsupported
from emul.port.open import open_port
from emul.port.packet import PacketPort
from emul.port.xdp import XdpPort
from tests.helpers.network import Namespace, Pair, wait_until
from tests.netns.test_ports import LEFT, RIGHT, frame, numbers, receive

pytestmark = [pytest.mark.netns, pytest.mark.root]
NOBODY = 65534


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


@pytest.fixture
def elsewhere() -> Iterator[Namespace]:
    """A namespace with interfaces of other kinds: "lo" has no native XDP and gives back what it sends, "many0" has two
    queues.
    """
    made = Namespace()
    with made.entered(), IPRoute() as route:
        route.link("set", index=socket.if_nametoindex("lo"), mtu=2200, state="up")
        route.link("add", ifname="many0", kind="veth", peer="many1", num_rx_queues=2, num_tx_queues=2, state="up")
        route.link("set", index=socket.if_nametoindex("many1"), state="up")
    yield made
    made.close()


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without any privilege, for a while."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_where_a_driver_has_no_native_xdp_the_generic_one_serves_and_is_told(elsewhere: Namespace) -> None:
    with elsewhere.entered():
        port = open_port("lo", "xdp", RIGHT)
    assert port.wire == "xdp-generic"
    assert "no native XDP on lo" in str(port.fallback_reason)
    assert port.send([frame(number=number) for number in range(3)]) == 3
    assert numbers(receive(port, 3)) == [0, 1, 2]
    port.close()


def test_several_receive_queues_are_for_the_other_wire(elsewhere: Namespace) -> None:
    with elsewhere.entered():
        with pytest.raises(PortUnsupported, match="many0: 2 receive queues"):
            open_port("many0", "xdp", LEFT)
        port = open_port("many0", "auto", LEFT)
    assert port.wire == "packet"
    assert "2 receive queues" in str(port.fallback_reason)
    port.close()


def test_an_ordinary_user_is_told_for_both_wires(pair: Pair) -> None:
    with pair.left.entered(), ordinary_user():
        with pytest.raises(PortUnsupported, match=r"left0: AF_XDP is not to be had: .*not permitted"):
            open_port("left0", "xdp", LEFT)
        for wire in ("packet", "auto"):
            with pytest.raises(PortUnsupported, match=r"left0: AF_PACKET is not to be had: .*not permitted"):
                open_port("left0", wire, LEFT)
    with pair.left.entered():
        open_port("left0", "xdp", LEFT).close()


def test_an_adapter_does_not_start_on_an_mtu_below_the_smallest_packets() -> None:
    pair = Pair(mtu=300)
    with pair.left.entered():
        port = open_port("left0", "xdp", LEFT)
    node = NodeMemory(Memory.plain(NODE_MEMORY_BYTES))
    with pytest.raises(RDMAError, match=r"interface MTU 300 is too small: .* 256, need 320"):
        Adapter(
            port=PortFacts(port.mac, bytes([10, 77, 0, 1]), port.mtu), identity=Identity(1, 0, b"k"),
            node_memory=node, rng=random.Random(1), wake_host=lambda: None,
        )  # fmt: skip
    port.close()
    pair.close()


def test_rings_are_powers_of_two(pair: Pair) -> None:
    with pair.left.entered(), pytest.raises(ValueError, match="powers of two, got 100 and 128"):
        XdpPort("left0", LEFT, receive_frames=100)


def test_a_frame_of_a_larger_neighbour_is_counted_as_oversized(pair: Pair) -> None:
    """A veth lets four bytes more pass, room for a tag."""
    with pair.left.entered(), IPRoute() as route:
        route.link("set", index=socket.if_nametoindex("left0"), mtu=3000)
    with pair.right.entered():
        right = open_port("right0", "packet", RIGHT)
    raw = pair.left.raw_socket("left0")
    raw.send(frame(2218))
    raw.send(frame(2214, number=1))
    assert numbers(right.receive()) == [1]
    assert right.counters()["rx_oversized"] == 1
    raw.close()
    right.close()


def test_a_full_send_buffer_stops_at_the_frame_that_did_not_fit(pair: Pair) -> None:
    with pair.left.entered():
        left = open_port("left0", "packet", LEFT)
    assert isinstance(left, PacketPort)
    real, full_after = left._send_one, 3

    def filling(data: bytes) -> int:
        if left.counters()["tx_frames"] >= full_after:
            raise BlockingIOError
        return real(data)

    left._send_one = filling  # over a veth the kernel's own buffer never fills: it delivers while it sends
    assert left.send([frame(number=number) for number in range(5)]) == full_after
    left.close()


def test_frames_one_by_one_never_run_out_of_chunks(pair: Pair) -> None:
    with pair.left.entered():
        left = open_port("left0", "xdp", LEFT)
    with pair.right.entered():
        right = open_port("right0", "xdp", RIGHT)
    for number in range(2000):
        assert left.send([frame(number=number)]) == 1
        assert numbers(right.receive()) == [number]
    assert left.counters()["tx_frames"] == 2000
    left.close()
    right.close()


def test_the_verifier_s_reason_is_passed_on() -> None:
    program = bpf.Assembler()
    program.load(bpf.Size.WORD, bpf.Register.R0, bpf.Register.R5, 0)
    program.exit()
    with pytest.raises(OSError, match=r"the verifier says: (.|\n)*R5"):
        bpf.load_program(program.assemble(), "bad")


def test_a_processor_whose_system_calls_are_not_known_is_told(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    monkeypatch.setattr("emul.port.bpf.platform.machine", lambda: "pdp11")
    with pytest.raises(OSError, match=r"bpf\(2\) on pdp11 is not known") as raised:
        bpf.create_xsk_map(1)
    assert raised.value.errno == errno.ENOSYS
    with pair.left.entered():
        port = open_port("left0", "auto", LEFT)
    assert port.wire == "packet"
    assert "pdp11" in str(port.fallback_reason)
    port.close()


def test_without_sysfs_the_kernel_is_asked_for_the_carrier(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emul.port.carrier.open_attributes", lambda name, index, mac: None)
    with pair.left.entered():
        left = Interface("left0")
    assert left.carrier()
    pair.right.set_up("right0", False)
    assert not left.carrier()
    pair.right.delete("right0")
    wait_until(lambda: not left.is_up(), "the interface is gone")
    assert not left.carrier()
    left.close()


def test_an_interface_that_is_not_there_is_told(elsewhere: Namespace) -> None:
    with elsewhere.entered(), pytest.raises(PortMissing, match="many7: no such interface"):
        Interface("many7")
