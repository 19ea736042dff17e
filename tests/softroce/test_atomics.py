"""Atomics, and the memory placement extensions, between the emulated adapter and Linux soft-RoCE."""

from __future__ import annotations

import struct

import pytest

from emul.wire.headers import Opcode
from tests.softroce.middle import Seen, pass_on, with_flush_icrc_of_rxe
from tests.softroce.world import End, World, both_in_error, connect

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.needs_softroce]
BOTH = pytest.mark.parametrize("ours_asks", [True, False], ids=["adapter-asks", "peer-asks"])
WORD = struct.Struct("=Q")
CELL, BACK = 64, 1 << 17


def pair(world: World, ours_asks: bool, *, placement: bool = False) -> tuple[End, End]:
    if placement and world.guest.release.startswith("6.1."):
        pytest.skip("rdma_rxe of Linux 6.1 has neither FLUSH nor ATOMIC WRITE (they came with 6.2 and 6.3)")
    ours, theirs = world.ends(placement=placement)
    connect(ours, theirs, timeout=16)
    world.middle.filter = with_flush_icrc_of_rxe(pass_on)
    return (ours, theirs) if ours_asks else (theirs, ours)


def atomic(a: End, b: End, opcode: str, compare: int, swap: int = 0) -> int:
    """Carries it out; gives the value that it found."""
    a.send(opcode, 8, offset=BACK, rkey=b.rkey, addr=b.addr + CELL, compare=compare, swap=swap)
    assert [s.status for s in a.poll()] == ["SUCCESS"]
    return int(WORD.unpack(a.bytes(BACK, 8))[0])


def cell(b: End) -> int:
    return int(WORD.unpack(b.bytes(CELL, 8))[0])


@BOTH
def test_fetch_and_add_gives_the_old_value_and_adds(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks)
    b.fill(WORD.pack(0x1122334455667788), CELL)
    assert atomic(a, b, "ATOMIC_FETCH_AND_ADD", 0x10) == 0x1122334455667788
    assert atomic(a, b, "ATOMIC_FETCH_AND_ADD", (1 << 64) - 1) == 0x1122334455667798
    assert cell(b) == 0x1122334455667797


@BOTH
def test_compare_and_swap_swaps_where_the_value_is_as_told(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks)
    b.fill(WORD.pack(5), CELL)
    assert atomic(a, b, "ATOMIC_CMP_AND_SWP", 4, 99) == 5
    assert cell(b) == 5
    assert atomic(a, b, "ATOMIC_CMP_AND_SWP", 5, 0xFEDCBA9876543210) == 5
    assert cell(b) == 0xFEDCBA9876543210


@BOTH
def test_an_atomic_whose_answer_is_lost_is_not_carried_out_twice(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks)
    b.fill(WORD.pack(1000), CELL)
    lost: list[Seen] = []

    def first_answer(seen: Seen) -> list[bytes]:
        if seen.opcode == Opcode.ATOMIC_ACKNOWLEDGE and not lost:
            lost.append(seen)
            return []
        return [seen.frame]

    world.middle.filter = first_answer
    assert atomic(a, b, "ATOMIC_FETCH_AND_ADD", 7) == 1000
    assert lost
    assert cell(b) == 1007


@BOTH
def test_many_atomics_are_outstanding(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks)
    b.fill(WORD.pack(0), CELL)
    for number in range(32):
        a.send("ATOMIC_FETCH_AND_ADD", 8, offset=BACK + 8 * number, rkey=b.rkey, addr=b.addr + CELL, compare=1)
    assert [s.status for s in a.poll(32)] == ["SUCCESS"] * 32
    assert [WORD.unpack(a.bytes(BACK + 8 * n, 8))[0] for n in range(32)] == list(range(32))


@BOTH
def test_a_misaligned_atomic_is_refused(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks)
    a.send("ATOMIC_FETCH_AND_ADD", 8, offset=BACK, rkey=b.rkey, addr=b.addr + 3, compare=1)
    assert [s.status for s in a.poll()] == ["REM_INV_REQ_ERR"]
    both_in_error(a, b)


@BOTH
@pytest.mark.parametrize("level", [0, 1], ids=["range", "region"])
def test_a_flush_after_writes_completes(world: World, level: int, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, placement=True)
    a.fill(b"w" * 5000)
    for number in range(4):
        a.send("RDMA_WRITE", 5000, rkey=b.rkey, addr=b.addr + BACK, wr_id=number)
        a.send("FLUSH", 5000, rkey=b.rkey, addr=b.addr + BACK, wr_id=100 + number, placement=1, level=level)
    assert [s.status for s in a.poll(8)] == ["SUCCESS"] * 8
    assert b.bytes(BACK, 5000) == b"w" * 5000


@BOTH
def test_an_atomic_write_lands_whole(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, placement=True)
    for number in range(4):
        a.send("ATOMIC_WRITE", rkey=b.rkey, addr=b.addr + CELL, data=WORD.pack(number + 0x0102030405060708))
        assert [s.status for s in a.poll()] == ["SUCCESS"]
        assert cell(b) == number + 0x0102030405060708


@pytest.mark.parametrize("opcode", ["FLUSH", "ATOMIC_WRITE"])
def test_our_placement_request_and_then_its_answer_are_lost(world: World, opcode: str) -> None:
    # rdma_rxe (6.2 to 7.3 at least) does not answer a FLUSH again that it has answered.
    losses = [Opcode[opcode]] if opcode == "FLUSH" else [Opcode[opcode], Opcode.RDMA_READ_RESPONSE_ONLY]
    a, b = pair(world, True, placement=True)
    lost: list[int] = []

    def lose_both_once(seen: Seen) -> list[bytes]:
        if seen.opcode in losses and seen.opcode not in lost:
            lost.append(seen.opcode)
            return []
        return [seen.frame]

    world.middle.filter = with_flush_icrc_of_rxe(lose_both_once)
    a.send(opcode, 8, rkey=b.rkey, addr=b.addr + CELL, data=WORD.pack(77))
    assert [s.status for s in a.poll()] == ["SUCCESS"]
    assert lost == losses


@pytest.mark.parametrize("opcode", ["FLUSH", "ATOMIC_WRITE"])
def test_the_peer_repeats_placement_requests_without_their_address(world: World, opcode: str) -> None:
    """A slip of rdma_rxe (Linux 6.2 to 7.3 at least); a kernel without it has its request carried out."""
    a, b = pair(world, False, placement=True)
    requests: list[Seen] = []

    def lose_first(seen: Seen) -> list[bytes]:
        if seen.opcode == Opcode[opcode]:
            requests.append(seen)
            return [] if len(requests) == 1 else [seen.frame]
        return [seen.frame]

    world.middle.filter = with_flush_icrc_of_rxe(lose_first)
    a.send(opcode, 8, rkey=b.rkey, addr=b.addr + CELL, data=WORD.pack(77))
    status = [s.status for s in a.poll()]
    at = requests[1].start + 12 + (4 if opcode == "FLUSH" else 0)
    address = int.from_bytes(requests[1].frame[at : at + 8], "big")
    assert (address, status) in [(0, ["REM_ACCESS_ERR"]), (b.addr + CELL, ["SUCCESS"])]


@BOTH
def test_a_flush_to_persistence_that_the_queue_pair_does_not_permit(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, placement=True)
    a.send("FLUSH", 8, rkey=b.rkey, addr=b.addr, placement=2)
    assert [s.status for s in a.poll()] == ["REM_INV_REQ_ERR"]
    both_in_error(a, b)


@BOTH
def test_a_misaligned_atomic_write_is_refused(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, placement=True)
    a.send("ATOMIC_WRITE", rkey=b.rkey, addr=b.addr + 3, data=WORD.pack(1))
    assert [s.status for s in a.poll()] == ["REM_INV_REQ_ERR"]
    both_in_error(a, b)


def test_our_send_invalidates_a_memory_window_of_the_peer(world: World) -> None:
    ours, theirs = world.ends()
    connect(ours, theirs)
    key = theirs.window(BACK, 4096)
    ours.fill(b"through the window")
    ours.send("RDMA_WRITE", 18, rkey=key, addr=theirs.addr + BACK)
    assert [s.status for s in ours.poll()] == ["SUCCESS"]
    assert theirs.bytes(BACK, 18) == b"through the window"
    theirs.recv(100)
    ours.send("SEND_WITH_INV", 10, imm=key)
    assert [s.status for s in ours.poll()] == ["SUCCESS"]
    # The flag arrives as rdma_rxe's kernel knows it (bit 2), not as libibverbs does (bit 3).
    assert [(r.status, r.byte_len, bool(r.flags & 12)) for r in theirs.poll()] == [("SUCCESS", 10, True)]
    ours.send("RDMA_WRITE", 18, rkey=key, addr=theirs.addr + BACK)
    assert [s.status for s in ours.poll()] == ["REM_ACCESS_ERR"]


def test_the_peers_send_invalidates_a_region_of_ours(world: World) -> None:
    ours, theirs = world.ends()
    connect(ours, theirs)
    extra = ours.region(4096)
    ours.recv(100)
    theirs.send("SEND_WITH_INV", 10, imm=extra.rkey)
    assert [s.status for s in theirs.poll()] == ["SUCCESS"]
    assert [(r.status, r.byte_len, r.imm, r.flags & 8) for r in ours.poll()] == [("SUCCESS", 10, extra.rkey, 8)]
    theirs.send("RDMA_WRITE", 18, rkey=extra.rkey, addr=extra.buf)
    assert [s.status for s in theirs.poll()] == ["REM_ACCESS_ERR"]
    both_in_error(ours, theirs)
