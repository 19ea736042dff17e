"""Loss, duplication and reordering of chosen frames between the emulated adapter and Linux soft-RoCE."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from emul.wire.headers import Opcode
from tests.softroce.middle import Seen
from tests.softroce.world import End, World, connect

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.needs_softroce]
BOTH = pytest.mark.parametrize("ours_asks", [True, False], ids=["adapter-asks", "peer-asks"])
TARGET = 1 << 17
RESPONSES = range(Opcode.RDMA_READ_RESPONSE_FIRST, Opcode.ATOMIC_ACKNOWLEDGE + 1)
FRAMES = 13
"""Frames of one story on an undisturbed cable, at least: each of them is disturbed in turn."""


def connected(world: World, ours_asks: bool, **how: int) -> tuple[End, End]:
    ours, theirs = world.ends()
    connect(ours, theirs, **{"timeout": 15, **how})
    return (ours, theirs) if ours_asks else (theirs, ours)


def story(a: End, b: End, seed: int) -> None:
    """A SEND, a WRITE, a READ of three packets each and an atomic: all arrive, once, in order."""
    chance = random.Random(seed)
    data = [chance.randbytes(2_500) for _ in range(3)]
    a.fill(data[0])
    a.fill(data[1], 3_000)
    b.fill(data[2])
    b.fill((seed).to_bytes(8, "little"), 8_000)
    b.recv(4_000, TARGET, wr_id=1)
    a.send("SEND", 2_500, wr_id=1)
    a.send("RDMA_WRITE", 2_500, offset=3_000, rkey=b.rkey, addr=b.addr + TARGET + 4_000, wr_id=2)
    a.send("RDMA_READ", 2_500, offset=TARGET, rkey=b.rkey, addr=b.addr, wr_id=3)
    a.send("ATOMIC_FETCH_AND_ADD", 8, offset=TARGET + 4_000, rkey=b.rkey, addr=b.addr + 8_000, compare=5, wr_id=4)
    assert [(s.wr_id, s.status) for s in a.poll(4)] == [(n, "SUCCESS") for n in (1, 2, 3, 4)]
    assert [(r.wr_id, r.status, r.byte_len) for r in b.poll(1)] == [(1, "SUCCESS", 2_500)]
    assert b.bytes(TARGET, 2_500) == data[0]
    assert b.bytes(TARGET + 4_000, 2_500) == data[1]
    assert a.bytes(TARGET, 2_500) == data[2]
    assert int.from_bytes(a.bytes(TARGET + 4_000, 8), "little") == seed
    assert int.from_bytes(b.bytes(8_000, 8), "little") == seed + 5


class Nth:
    """Does something to the n-th RoCEv2 frame (0 is the first), once."""

    def __init__(self, nth: int, act: Callable[[Seen, Nth], list[bytes]]) -> None:
        self._left, self._act = nth, act
        self.held: list[bytes] = []
        self.done: Seen | None = None

    def __call__(self, seen: Seen) -> list[bytes]:
        if self.done is not None:
            held, self.held = self.held, []
            # What was held goes the way it came: it is released by the next frame of the same sender.
            return [seen.frame, *held] if seen.sender == self.done.sender else self._keep(seen, held)
        if self._left:
            self._left -= 1
            return [seen.frame]
        self.done = seen
        return self._act(seen, self)

    def _keep(self, seen: Seen, held: list[bytes]) -> list[bytes]:
        self.held = held
        return [seen.frame]


def lose(seen: Seen, how: Nth) -> list[bytes]:
    return []


def duplicate(seen: Seen, how: Nth) -> list[bytes]:
    return [seen.frame, seen.frame]


def overtaken_response_kills(seen: Seen) -> bool:
    """A response that overtakes the end of a READ puts a requester of rdma_rxe in error (Linux 6.1 to 7.3 at least);
    the emulated adapter asks again. Where the peer asks, responses therefore stay in order.
    """
    return seen.sender == "adapter" and seen.opcode in RESPONSES


def delay(seen: Seen, how: Nth) -> list[bytes]:
    if overtaken_response_kills(seen):
        return [seen.frame]
    how.held = [seen.frame]
    return []


def corrupt(seen: Seen, how: Nth) -> list[bytes]:
    frame = bytearray(seen.frame)
    frame[-6] ^= 0x10
    return [bytes(frame)]


@BOTH
@pytest.mark.parametrize("act", [lose, duplicate, delay, corrupt], ids=lambda act: act.__name__)
def test_each_frame_of_a_story_is_disturbed_in_turn(
    world: World, act: Callable[[Seen, Nth], list[bytes]], ours_asks: bool
) -> None:
    a, b = connected(world, ours_asks)
    for nth in range(FRAMES):
        world.middle.forget()
        disturbed = world.middle.filter = Nth(nth, act)
        story(a, b, nth)
        assert disturbed.done is not None, f"only {len(world.middle.seen)} frames crossed"


@BOTH
def test_a_lossy_cable_loses_nothing_of_the_work(world: World, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks)
    chance = random.Random(5)
    world.middle.filter = lambda seen: [] if chance.random() < 0.05 else [seen.frame]
    for seed in range(8):
        story(a, b, seed)


@BOTH
def test_a_reordering_and_duplicating_cable_harms_nothing(world: World, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks)
    chance = random.Random(6)
    held: dict[str, list[bytes]] = {"adapter": [], "peer": []}

    def shuffle(seen: Seen) -> list[bytes]:
        waiting, held[seen.sender] = held[seen.sender], []
        if chance.random() < 0.1 and not overtaken_response_kills(seen):
            held[seen.sender] = [seen.frame]
            return waiting
        copies = 2 if chance.random() < 0.1 else 1
        return [seen.frame] * copies + waiting

    world.middle.filter = shuffle
    for seed in range(8):
        story(a, b, seed)


@BOTH
def test_a_silent_cable_ends_in_retry_exceeded_and_flushes_the_rest(world: World, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks, timeout=14, retry_cnt=2)
    story(a, b, 1)
    world.middle.forget()
    world.middle.filter = lambda seen: []
    a.send("RDMA_WRITE", 100, rkey=b.rkey, addr=b.addr, wr_id=1)
    a.send("RDMA_WRITE", 100, rkey=b.rkey, addr=b.addr, wr_id=2)
    assert [(s.wr_id, s.status) for s in a.poll(2)] == [(1, "RETRY_EXC_ERR"), (2, "WR_FLUSH_ERR")]
    assert a.state() == "ERR"
    assert b.state() == "RTS"
    first = [seen for seen in world.middle.seen if seen.psn == world.middle.seen[0].psn]
    assert len(first) == 3  # once, and two repetitions


@BOTH
def test_work_waits_for_a_receive_and_goes_on(world: World, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks, min_rnr_timer=20)  # 10.24 ms
    a.fill(b"waited for" * 300)
    a.send("SEND", 3_000)
    a.send("RDMA_WRITE", 3_000, rkey=b.rkey, addr=b.addr + TARGET + 4_000)
    assert a.poll(1, timeout=0.2) == []
    assert any(seen.syndrome & 0xE0 == 0x20 for seen in world.middle.seen)
    b.recv(4_000, TARGET)
    assert [s.status for s in a.poll(2)] == ["SUCCESS", "SUCCESS"]
    assert b.bytes(TARGET, 3_000) == b.bytes(TARGET + 4_000, 3_000) == b"waited for" * 300


@BOTH
def test_rnr_retries_are_bounded(world: World, ours_asks: bool) -> None:
    a, b = connected(world, ours_asks, rnr_retry=2)
    a.send("SEND", 100, wr_id=1)
    a.send("SEND", 100, wr_id=2)
    assert [(s.wr_id, s.status) for s in a.poll(2)] == [(1, "RNR_RETRY_EXC_ERR"), (2, "WR_FLUSH_ERR")]
    assert a.state() == "ERR"
    assert b.state() == "RTS"
    refused = [seen for seen in world.middle.seen if seen.syndrome >= 0 and seen.syndrome & 0xE0 == 0x20]
    assert len(refused) == 3
