"""The responder alone, packet by packet: what well-behaved peers never send."""

from __future__ import annotations

import random
from collections import deque

import pytest

from emul.memory import Memory
from emul.queues import ReceiveEntry
from emul.regions import MemoryRegion, RegionTable
from emul.responder import MESSAGE_BYTES_MAX, Responder
from emul.vocabulary import AccessFlags, WCStatus
from emul.wire.headers import ATOMIC_ETH, IMM, RETH, Opcode, Syndrome
from tests.helpers.adapters import packets_of

MTU = 256
PD, OTHER_PD = 1, 2
ALL = (
    AccessFlags.LOCAL_WRITE
    | AccessFlags.REMOTE_WRITE
    | AccessFlags.REMOTE_READ
    | AccessFlags.REMOTE_ATOMIC
    | AccessFlags.FLUSH_GLOBAL
    | AccessFlags.FLUSH_PERSISTENT
)
FULL = b"x" * MTU
INVALID, ACCESS, OPERATION = (
    Syndrome.NAK_INVALID_REQUEST, Syndrome.NAK_REMOTE_ACCESS, Syndrome.NAK_REMOTE_OPERATION,
)  # fmt: skip


class Bench:
    """A responder with memory, receives and a fence, fed by hand with the PSNs that it expects."""

    def __init__(self, *, slots: int = 4) -> None:
        self.regions = RegionTable(random.Random(1))
        self.region = self.register()
        self.receives: deque[ReceiveEntry] = deque()
        self.fenced = False
        self.responder = Responder(
            regions=self.regions,
            pd=PD,
            receive_pd=PD,
            access=ALL,
            mtu=MTU,
            expected_psn=100,
            min_rnr_timer=1,
            max_dest_rd_atomic=slots,
            take_receive=lambda: self.receives.popleft() if self.receives else None,
            fenced=lambda: self.fenced,
        )

    def register(self, *, access: AccessFlags = ALL, pd: int = PD, watcher: int = 0) -> MemoryRegion:
        return self.regions.register(Memory.plain(4096), pd=pd, access=access, watcher=watcher)

    def post(self, region: MemoryRegion | None = None, length: int = 2048) -> None:
        region = region or self.region
        self.receives.append(ReceiveEntry(5, ((region.key, region.addr, length),)))

    def take(self, opcode: Opcode, body: bytes = b"", psn: int | None = None) -> Syndrome | None:
        expected = self.responder.epsn if psn is None else psn
        self.responder.on_request(opcode, expected, True, body, 0, len(body))
        return self.responder.refusal

    def reth(self, length: int, *, at: int = 0, region: MemoryRegion | None = None) -> bytes:
        region = region or self.region
        return RETH.pack(region.addr + at, region.key, length)

    def answers(self) -> list[tuple[int, int, bytes]]:
        """(opcode, PSN, rest) of what it says."""
        return packets_of(self.responder.answers)

    def statuses(self) -> list[WCStatus]:
        return [delivery.status for delivery in self.responder.delivered]


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (FULL[1:], []),
        (FULL + b"x", []),
        (b"", []),
        (FULL, [(Opcode.SEND_LAST, b"")]),
        (FULL, [(Opcode.SEND_LAST, FULL + b"x")]),
        (FULL, [(Opcode.SEND_MIDDLE, FULL[1:])]),
        (FULL, [(Opcode.SEND_ONLY, b"x")]),
        (FULL, [(Opcode.SEND_FIRST, FULL)]),
        (FULL, [(Opcode.RDMA_WRITE_LAST, b"x")]),
        (FULL, [(Opcode.SEND_LAST_WITH_IMMEDIATE, b"xyz")]),
        (FULL, [(Opcode.SEND_LAST_WITH_IMMEDIATE, b"four")]),
    ],
)
def test_packets_of_a_send_that_do_not_fit_together_are_invalid(first: bytes, rest: list[tuple[Opcode, bytes]]) -> None:
    bench = Bench()
    bench.post()
    refusal = bench.take(Opcode.SEND_FIRST, first)
    for opcode, body in rest:
        assert refusal is None
        refusal = bench.take(opcode, body)
    assert refusal is INVALID
    assert bench.statuses() == [WCStatus.REM_INV_REQ_ERR]


@pytest.mark.parametrize(
    ("length", "packets"),
    [
        (MTU, [(Opcode.RDMA_WRITE_FIRST, FULL)]),  # all of it, and yet not the last
        (0, [(Opcode.RDMA_WRITE_FIRST, FULL)]),
        (MTU + 1, [(Opcode.RDMA_WRITE_ONLY, FULL + b"x")]),
        (MTU + 1, [(Opcode.RDMA_WRITE_ONLY, FULL)]),
        (MTU - 1, [(Opcode.RDMA_WRITE_ONLY, FULL)]),
        (2 * MTU, [(Opcode.RDMA_WRITE_FIRST, FULL), (Opcode.RDMA_WRITE_MIDDLE, FULL)]),
        (2 * MTU, [(Opcode.RDMA_WRITE_FIRST, FULL), (Opcode.RDMA_WRITE_LAST, FULL[1:])]),
        (3 * MTU, [(Opcode.RDMA_WRITE_FIRST, FULL), (Opcode.RDMA_WRITE_LAST, FULL)]),
        (2 * MTU, [(Opcode.RDMA_WRITE_FIRST, FULL), (Opcode.RDMA_READ_REQUEST, b"")]),
        (MESSAGE_BYTES_MAX + 1, [(Opcode.RDMA_WRITE_FIRST, FULL)]),
    ],
)
def test_packets_of_a_write_that_do_not_fit_its_length_are_invalid(
    length: int, packets: list[tuple[Opcode, bytes]]
) -> None:
    bench = Bench()
    refusal = None
    for number, (opcode, body) in enumerate(packets):
        assert refusal is None
        refusal = bench.take(opcode, (bench.reth(length) if number == 0 else b"") + body)
    assert refusal is INVALID
    assert not bench.responder.written


def test_a_region_that_goes_in_the_middle_of_a_write_takes_no_more_of_it() -> None:
    bench = Bench()
    assert bench.take(Opcode.RDMA_WRITE_FIRST, bench.reth(2 * MTU) + FULL) is None
    bench.regions.deregister(bench.region.key)
    assert bench.take(Opcode.RDMA_WRITE_LAST, FULL) is ACCESS
    assert bytes(bench.region.buffer[MTU : 2 * MTU]) == bytes(MTU)


def test_a_receive_whose_region_goes_in_the_middle_of_a_send_takes_no_more_of_it() -> None:
    bench = Bench()
    bench.post()
    assert bench.take(Opcode.SEND_FIRST, FULL) is None
    bench.regions.deregister(bench.region.key)
    assert bench.take(Opcode.SEND_LAST, FULL) is OPERATION
    assert bench.statuses() == [WCStatus.LOC_PROT_ERR]
    assert bytes(bench.region.buffer[MTU : 2 * MTU]) == bytes(MTU)


@pytest.mark.parametrize("wrong", ["access", "domain", "bounds"])
def test_a_receive_that_may_not_be_written_to_is_an_error_of_its_own_side(wrong: str) -> None:
    bench = Bench()
    access = AccessFlags.REMOTE_READ if wrong == "access" else ALL
    region = bench.register(access=access, pd=OTHER_PD if wrong == "domain" else PD)
    bench.post(region, 4097 if wrong == "bounds" else 4096)
    assert bench.take(Opcode.SEND_ONLY, b"data") is OPERATION
    assert bench.statuses() == [WCStatus.LOC_PROT_ERR]
    assert bytes(region.buffer) == bytes(4096)


def test_a_fence_in_the_middle_of_a_send_stops_its_rest() -> None:
    bench = Bench()
    bench.post()
    assert bench.take(Opcode.SEND_FIRST, FULL) is None
    bench.fenced = True
    assert bench.take(Opcode.SEND_LAST, FULL) is ACCESS
    assert bytes(bench.region.buffer[MTU : 2 * MTU]) == bytes(MTU)


def test_a_fenced_send_uses_up_no_receive() -> None:
    bench = Bench()
    bench.post()
    bench.fenced = True
    assert bench.take(Opcode.SEND_ONLY, b"data") is ACCESS
    assert len(bench.receives) == 1


@pytest.mark.parametrize("opcode", [Opcode.RDMA_WRITE_ONLY, Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE])
def test_a_fenced_write_of_no_bytes_is_refused_too(opcode: Opcode) -> None:
    bench = Bench()
    bench.post()
    bench.fenced = True
    assert bench.take(opcode, bench.reth(0) + (IMM.pack(1) if "IMM" in opcode.name else b"")) is ACCESS
    assert bench.responder.delivered == []


@pytest.mark.parametrize("feth", [0x00, 0x22, 0x32, 0x04])
def test_a_flush_of_an_unknown_kind_is_invalid(feth: int) -> None:
    bench = Bench()
    assert bench.take(Opcode.FLUSH, IMM.pack(feth) + bench.reth(64)) is INVALID


def test_a_flush_of_no_bytes_needs_a_key_all_the_same() -> None:
    bench = Bench()
    assert bench.take(Opcode.FLUSH, IMM.pack(2) + bench.reth(0)) is None
    assert bench.take(Opcode.FLUSH, IMM.pack(2) + RETH.pack(bench.region.addr, bench.region.key ^ 1, 0)) is ACCESS


def test_a_flush_of_a_whole_region_needs_its_permission() -> None:
    bench = Bench()
    region = bench.register(access=ALL & ~AccessFlags.FLUSH_PERSISTENT)
    assert bench.take(Opcode.FLUSH, IMM.pack(0x12) + bench.reth(0, region=region)) is ACCESS
    bench = Bench()
    region = bench.register(pd=OTHER_PD)
    assert bench.take(Opcode.FLUSH, IMM.pack(0x12) + bench.reth(0, region=region)) is ACCESS


@pytest.mark.parametrize("at", [-8, -1, 4096, 4089])
@pytest.mark.parametrize("opcode", [Opcode.FETCH_ADD, Opcode.RDMA_WRITE_ONLY, Opcode.RDMA_READ_REQUEST])
def test_a_byte_before_or_behind_a_region_is_out_of_reach(opcode: Opcode, at: int) -> None:
    bench = Bench()
    if opcode is Opcode.FETCH_ADD:
        at &= ~7
        at += 8 if at == 4088 else 0
        body = ATOMIC_ETH.pack(bench.region.addr + at, bench.region.key, 1, 0)
    else:
        body = bench.reth(8, at=at) + (b"8 bytes." if opcode is Opcode.RDMA_WRITE_ONLY else b"")
    assert bench.take(opcode, body) is ACCESS


def test_a_region_of_another_domain_is_out_of_reach() -> None:
    bench = Bench()
    region = bench.register(pd=OTHER_PD)
    assert bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(8, region=region)) is ACCESS
    bench = Bench()
    region = bench.register(pd=OTHER_PD)
    bench.post()
    assert bench.take(Opcode.SEND_ONLY_WITH_INVALIDATE, IMM.pack(region.key) + b"data") is ACCESS
    assert region.valid


def test_an_atomic_at_four_bytes_is_misaligned() -> None:
    bench = Bench()
    assert bench.take(Opcode.FETCH_ADD, ATOMIC_ETH.pack(bench.region.addr + 4, bench.region.key, 1, 0)) is INVALID


def test_as_many_atomics_as_there_are_slots_are_remembered() -> None:
    bench = Bench(slots=2)
    body = ATOMIC_ETH.pack(bench.region.addr, bench.region.key, 1, 0)
    for _ in range(3):
        bench.take(Opcode.FETCH_ADD, body)
        bench.answers()
    for psn in (100, 101, 102):
        bench.take(Opcode.FETCH_ADD, body, psn)
    repeated = [(psn, int.from_bytes(rest[4:], "big")) for _, psn, rest in bench.answers()]
    assert repeated == [(101, 1), (102, 2)]  # the first is forgotten: its repetition goes unanswered


def test_a_repeated_read_reaches_no_further_than_what_was_asked() -> None:
    bench = Bench()
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(2 * MTU))
    assert len(bench.answers()) == 2
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(MTU, at=MTU), 101)
    assert [psn for _, psn, _ in bench.answers()] == [101]
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(2 * MTU), 101)
    assert bench.answers() == []


def test_a_repeated_read_needs_the_permission_of_now() -> None:
    bench = Bench()
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(MTU))
    bench.answers()
    bench.responder.adjust(access=AccessFlags.REMOTE_WRITE, min_rnr_timer=1)
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(MTU), 100)
    assert bench.answers() == []


def test_repeated_requests_hold_no_slots() -> None:
    bench = Bench(slots=1)
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(8))
    for _ in range(3):
        bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(8), 100)
    assert bench.responder.answers.slots == 1
    bench.answers()
    assert bench.responder.answers.slots == 0
    assert bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(8)) is None


def test_each_gap_is_told_once() -> None:
    bench = Bench()
    body = bench.reth(1) + b"x"
    for psn in (101, 102):
        bench.take(Opcode.RDMA_WRITE_ONLY, body, psn)
    bench.take(Opcode.RDMA_WRITE_ONLY, body, 100)
    bench.take(Opcode.RDMA_WRITE_ONLY, body, 105)
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(1), 101)
    bench.take(Opcode.RDMA_WRITE_ONLY, body, 105)
    naks = [(psn, rest[0]) for opcode, psn, rest in bench.answers() if opcode == Opcode.ACKNOWLEDGE and rest[0] >> 5]
    assert naks == [(psn, Syndrome.NAK_SEQUENCE) for psn in (100, 101, 102)]


def test_each_message_counts_in_the_msn() -> None:
    bench = Bench()
    bench.post()
    bench.take(Opcode.SEND_FIRST, FULL)
    bench.take(Opcode.SEND_LAST, FULL)
    bench.take(Opcode.RDMA_READ_REQUEST, bench.reth(8))
    bench.take(Opcode.FETCH_ADD, ATOMIC_ETH.pack(bench.region.addr, bench.region.key, 1, 0))
    bench.take(Opcode.FLUSH, IMM.pack(2) + bench.reth(64))
    bench.take(Opcode.RDMA_WRITE_ONLY, bench.reth(1) + b"x")
    assert [int.from_bytes(rest[1:4], "big") for _, _, rest in bench.answers()] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("opcode", [Opcode.RDMA_WRITE_ONLY, Opcode.ATOMIC_WRITE])
def test_a_watched_region_tells_of_each_whole_write(opcode: Opcode) -> None:
    bench = Bench()
    watched = bench.register(watcher=3)
    bench.take(opcode, bench.reth(8, region=watched) + b"8 bytes.")
    assert bench.responder.written == [watched]


def test_a_watched_region_tells_at_the_end_of_a_message_and_not_before() -> None:
    bench = Bench()
    watched = bench.register(watcher=3)
    bench.take(Opcode.RDMA_WRITE_FIRST, bench.reth(MTU + 1, region=watched) + FULL)
    assert bench.responder.written == []
    bench.take(Opcode.RDMA_WRITE_LAST, b"x")
    assert bench.responder.written == [watched]


def test_a_receiver_without_a_buffer_keeps_a_message_with_immediate_data_open_at_its_last_packet() -> None:
    bench = Bench()
    bench.take(Opcode.RDMA_WRITE_FIRST, bench.reth(MTU + 1) + FULL)
    for _ in range(2):
        bench.take(Opcode.RDMA_WRITE_LAST_WITH_IMMEDIATE, IMM.pack(9) + b"y")
    rnr = [psn for opcode, psn, rest in bench.answers() if opcode == Opcode.ACKNOWLEDGE and rest[0] >> 5 == 1]
    assert rnr == [101, 101]
    bench.take(Opcode.RDMA_WRITE_FIRST, bench.reth(MTU + 1) + FULL, 100)  # a peer may begin again from FIRST
    bench.post()
    assert bench.take(Opcode.RDMA_WRITE_LAST_WITH_IMMEDIATE, IMM.pack(9) + b"y") is None
    (delivery,) = bench.responder.delivered
    assert (delivery.imm, delivery.byte_len) == (9, MTU + 1)
