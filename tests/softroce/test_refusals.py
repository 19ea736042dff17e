"""Requests that the other side refuses, between the emulated adapter and Linux soft-RoCE: statuses, states, NAKs."""

from __future__ import annotations

import pytest

from tests.softroce.world import End, World, both_in_error, connect

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.needs_softroce]
BOTH = pytest.mark.parametrize("ours_asks", [True, False], ids=["adapter-asks", "peer-asks"])
TARGET = 1 << 17
WRITES = ("LOCAL_WRITE", "REMOTE_WRITE")
READS = ("LOCAL_WRITE", "REMOTE_READ")
NAK_INVALID, NAK_ACCESS, NAK_OPERATION = 0x61, 0x62, 0x63


def connected(world: World, ours_asks: bool, access: tuple[str, ...] | None = None) -> tuple[End, End]:
    ours, theirs = world.ends(access) if access else world.ends()
    connect(ours, theirs)
    return (ours, theirs) if ours_asks else (theirs, ours)


def refused(world: World, a: End, b: End, status: str, nak: int) -> None:
    """The first request ends with `status`, what is behind it is flushed, both sides are in error; one NAK says why."""
    a.send("RDMA_WRITE", 8, rkey=b.rkey, addr=b.addr, wr_id=99)
    told = [s.status for s in a.poll(2)]
    naks = [seen.syndrome for seen in world.middle.seen if seen.syndrome >= 0x60]
    assert (told, naks) == ([status, "WR_FLUSH_ERR"], [nak])
    both_in_error(a, b)


@BOTH
@pytest.mark.parametrize("opcode", ["RDMA_WRITE", "RDMA_READ", "ATOMIC_FETCH_AND_ADD"])
def test_an_unknown_key(world: World, opcode: str, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks)
    a.send(opcode, 8, rkey=b.rkey ^ 0x5500, addr=b.addr)
    refused(world, a, b, "REM_ACCESS_ERR", NAK_ACCESS)


@BOTH
@pytest.mark.parametrize("opcode", ["RDMA_WRITE", "RDMA_READ"])
@pytest.mark.parametrize("where", [-8, (1 << 18) - 8, 1 << 40])
def test_out_of_bounds(world: World, opcode: str, where: int, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks)
    before = b.bytes(0, 8)
    a.send(opcode, 4_000, rkey=b.rkey, addr=b.addr + where)
    refused(world, a, b, "REM_ACCESS_ERR", NAK_ACCESS)
    assert b.bytes(0, 8) == before


@BOTH
@pytest.mark.parametrize(
    ("opcode", "access"), [("RDMA_WRITE", READS), ("RDMA_READ", WRITES), ("ATOMIC_FETCH_AND_ADD", WRITES)]
)
def test_what_the_queue_pair_does_not_permit(
    world: World, opcode: str, access: tuple[str, ...], ours_asks: bool
) -> None:
    a, b = connected(world, ours_asks, access)
    a.send(opcode, 8, rkey=b.rkey, addr=b.addr)
    refused(world, a, b, "REM_INV_REQ_ERR", NAK_INVALID)


@BOTH
@pytest.mark.parametrize("size", [101, 3_000])
def test_a_message_longer_than_its_receive(world: World, size: int, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks)
    b.recv(100, TARGET, wr_id=7)
    b.recv(4_000, TARGET, wr_id=8)
    b.fill(b"\xee" * 8, TARGET + 100)
    a.send("SEND", size)
    refused(world, a, b, "REM_OP_ERR", NAK_OPERATION)
    receiver = "LOC_QP_OP_ERR" if ours_asks else "LOC_LEN_ERR"  # rdma_rxe's own word for it, and the specification's
    assert [(r.wr_id, r.status) for r in b.poll(2)] == [(7, receiver), (8, "WR_FLUSH_ERR")]
    assert b.bytes(TARGET + 100, 8) == b"\xee" * 8


@BOTH
def test_a_queue_pair_in_error_is_silent(world: World, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks)
    b.send("RDMA_WRITE", 8, rkey=0xDEAD00, addr=0)
    assert [s.status for s in b.poll()] == ["REM_ACCESS_ERR"]
    both_in_error(a, b)
    frames = len(world.middle.seen)
    a.send("SEND", 100, wr_id=1)
    assert [(s.wr_id, s.status) for s in a.poll()] == [(1, "WR_FLUSH_ERR")]
    assert len(world.middle.seen) == frames
