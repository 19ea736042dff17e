"""Every operation between the emulated adapter and Linux soft-RoCE, each side as requester."""

from __future__ import annotations

import random

import pytest

from tests.softroce.world import End, World, connect

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.needs_softroce]
PATH_MTUS = (256, 512, 1024, 2048, 4096)
BOTH = pytest.mark.parametrize("ours_asks", [True, False], ids=["adapter-asks", "peer-asks"])
TARGET, SOURCE = 1 << 17, 0
"""Offsets in a region: where bytes arrive, and where they come from."""


def pair(world: World, ours_asks: bool, *, family: int = 4, **how: object) -> tuple[End, End]:
    """Requester and responder, connected."""
    ours, theirs = world.ends(family=family)
    connect(ours, theirs, **how)
    return (ours, theirs) if ours_asks else (theirs, ours)


def sizes(path_mtu: int) -> tuple[int, ...]:
    return (0, 1, path_mtu - 1, path_mtu, path_mtu + 1, 3 * path_mtu + 5, 65_536)


@BOTH
@pytest.mark.parametrize("path_mtu", PATH_MTUS)
@pytest.mark.parametrize("opcode", ["SEND", "SEND_WITH_IMM"])
def test_messages_of_all_sizes_arrive(world: World, opcode: str, path_mtu: int, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, path_mtu=path_mtu)
    imm = 0x01020304 if opcode == "SEND_WITH_IMM" else 0
    for number, size in enumerate(sizes(path_mtu)):
        data = random.Random(size).randbytes(size)
        a.fill(data)
        b.recv(65_536, TARGET, wr_id=number)
        a.send(opcode, size, wr_id=number, imm=imm)
        received = b.poll()
        assert [(r.wr_id, r.status, r.byte_len, r.imm if imm else 0) for r in received] == [
            (number, "SUCCESS", size, imm)
        ]
        assert [(s.wr_id, s.status) for s in a.poll()] == [(number, "SUCCESS")]
        assert b.bytes(TARGET, size) == data


@BOTH
@pytest.mark.parametrize("path_mtu", PATH_MTUS)
@pytest.mark.parametrize("opcode", ["RDMA_WRITE", "RDMA_WRITE_WITH_IMM"])
def test_writes_of_all_sizes_land(world: World, opcode: str, path_mtu: int, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, path_mtu=path_mtu)
    for size in sizes(path_mtu):
        data = random.Random(size).randbytes(size)
        a.fill(data)
        b.fill(b"\xee" * 8, TARGET + size)
        if opcode == "RDMA_WRITE_WITH_IMM":
            b.recv(0, 0, wr_id=9)
        a.send(opcode, size, rkey=b.rkey, addr=b.addr + TARGET, imm=7)
        assert [s.status for s in a.poll()] == ["SUCCESS"]
        if opcode == "RDMA_WRITE_WITH_IMM":
            assert [(r.wr_id, r.status, r.byte_len, r.imm) for r in b.poll()] == [(9, "SUCCESS", size, 7)]
        assert b.bytes(TARGET, size + 8) == data + b"\xee" * 8


@BOTH
@pytest.mark.parametrize("path_mtu", PATH_MTUS)
def test_reads_of_all_sizes_bring_the_bytes(world: World, path_mtu: int, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, path_mtu=path_mtu)
    for size in sizes(path_mtu):
        data = random.Random(size).randbytes(size)
        b.fill(data)
        a.send("RDMA_READ", size, offset=TARGET, rkey=b.rkey, addr=b.addr)
        assert [s.status for s in a.poll()] == ["SUCCESS"]
        assert a.bytes(TARGET, size) == data


@BOTH
@pytest.mark.parametrize("depth", [1, 4])
def test_many_reads_are_outstanding(world: World, depth: int, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, rd_atomic=depth)
    data = random.Random(3).randbytes(12 * 5_000)
    b.fill(data)
    for number in range(12):
        at = number * 5_000
        a.send("RDMA_READ", 5_000, offset=TARGET + at, rkey=b.rkey, addr=b.addr + at, wr_id=number)
    assert [(s.wr_id, s.status) for s in a.poll(12)] == [(number, "SUCCESS") for number in range(12)]
    assert a.bytes(TARGET, len(data)) == data


@BOTH
def test_a_mixture_of_requests_completes_in_order(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks)
    chance = random.Random(11)
    a.fill(chance.randbytes(65_536))
    b.fill(chance.randbytes(65_536))
    for turn in range(4):
        opcodes = [chance.choice(["SEND", "RDMA_WRITE", "RDMA_READ", "SEND_WITH_IMM"]) for _ in range(24)]
        length = [chance.choice([1, 100, 1024, 3000]) for _ in opcodes]
        sends = [n for n, opcode in enumerate(opcodes) if opcode.startswith("SEND")]
        for number in sends:
            b.recv(3000, 200_000, wr_id=number)
        for number, opcode in enumerate(opcodes):
            offset = TARGET if opcode == "RDMA_READ" else number * 100
            there = b.addr + (number * 100 if opcode == "RDMA_READ" else TARGET)
            a.send(opcode, length[number], offset=offset, rkey=b.rkey, addr=there, wr_id=number, imm=number)
        assert [(s.wr_id, s.status) for s in a.poll(24)] == [(n, "SUCCESS") for n in range(24)], turn
        assert [(r.wr_id, r.status, r.byte_len) for r in b.poll(len(sends))] == [
            (n, "SUCCESS", length[n]) for n in sends
        ]


@BOTH
def test_requests_gather_from_several_pieces(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks)
    data = random.Random(4).randbytes(10_000)
    a.fill(data)
    pieces = [(5_000, 3_000), (0, 1), (100, 2_222)]
    wanted = b"".join(data[offset : offset + length] for offset, length in pieces)
    b.recv(10_000, TARGET)
    a.send("SEND", pieces=pieces)
    assert [s.status for s in a.poll()] == ["SUCCESS"]
    assert [(r.status, r.byte_len) for r in b.poll()] == [("SUCCESS", len(wanted))]
    assert b.bytes(TARGET, len(wanted)) == wanted


@BOTH
def test_every_kind_of_message_crosses_over_ipv6(world: World, ours_asks: bool) -> None:
    a, b = pair(world, ours_asks, family=6)
    data = random.Random(6).randbytes(5_000)
    a.fill(data)
    b.recv(5_000, TARGET)
    a.send("SEND", 5_000)
    a.send("RDMA_WRITE", 5_000, rkey=b.rkey, addr=b.addr + TARGET + 5_000)
    a.send("RDMA_READ", 10_000, offset=TARGET, rkey=b.rkey, addr=b.addr + TARGET)
    a.send("ATOMIC_FETCH_AND_ADD", 8, offset=0, rkey=b.rkey, addr=b.addr, compare=5)
    assert [s.status for s in a.poll(4)] == ["SUCCESS"] * 4
    assert a.bytes(TARGET, 10_000) == data + data
    assert int.from_bytes(b.bytes(0, 8), "little") == 5
    assert {seen.frame[12:14] for seen in world.middle.seen} == {b"\x86\xdd"}
