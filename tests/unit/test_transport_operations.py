"""Stories of the operations beside plain SEND, WRITE and READ: atomics, FLUSH, ATOMIC WRITE, invalidation, draining."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from emul.clock import MILLISECOND
from emul.errors import RDMAError
from emul.vocabulary import (
    MTU,
    SGE,
    AccessFlags,
    EventType,
    PlacementType,
    QPAttr,
    QPState,
    RecvWR,
    Selectivity,
    SendFlags,
    SendWR,
    WCFlags,
    WCOpcode,
    WCStatus,
    WROpcode,
)
from emul.wire.headers import Opcode
from tests.helpers.adapters import AdapterPair, Party, Seen, connect_by_hand

OK = WCStatus.SUCCESS
EVERYTHING = (
    AccessFlags.LOCAL_WRITE
    | AccessFlags.REMOTE_WRITE
    | AccessFlags.REMOTE_READ
    | AccessFlags.REMOTE_ATOMIC
    | AccessFlags.FLUSH_GLOBAL
    | AccessFlags.FLUSH_PERSISTENT
)
BACK = 40_000
"""Where in a's region the answers go."""


def connected(**attributes: int) -> tuple[AdapterPair, Party, Party]:
    pair = AdapterPair()
    a, b = (Party(context, access=EVERYTHING) for context in pair.contexts)
    connect_by_hand(
        pair, (a, b), **{"qp_access_flags": EVERYTHING, "max_rd_atomic": 4, "max_dest_rd_atomic": 4, **attributes}
    )
    pair.settle(span_ns=50 * MILLISECOND)
    pair.seen.clear()
    return pair, a, b


def atomic(a: Party, b: Party, opcode: WROpcode, first: int, swap: int = 0, *, at: int = 0, wr_id: int = 1) -> None:
    request = SendWR(wr_id, opcode, sg=[SGE(a.mr.buf + BACK, 8, a.mr.lkey)])
    request.set_wr_atomic(b.mr.rkey, b.mr.buf + at, first, swap)
    a.qp.post_send(request)


def fetch_add(a: Party, b: Party, value: int, *, at: int = 0, wr_id: int = 1) -> None:
    atomic(a, b, WROpcode.ATOMIC_FETCH_AND_ADD, value, at=at, wr_id=wr_id)


def flush(a: Party, b: Party, length: int = 64, **how: int) -> None:
    request = SendWR(9, WROpcode.FLUSH)
    request.set_wr_flush(
        b.mr.rkey,
        b.mr.buf,
        length,
        PlacementType(how.get("placement", PlacementType.PERSISTENT)),
        Selectivity(how.get("selectivity", Selectivity.RANGE)),
    )
    a.qp.post_send(request)


def atomic_write(a: Party, b: Party, data: bytes, *, at: int = 0) -> None:
    a.mr.write(data, len(data), 100)
    request = SendWR(11, WROpcode.ATOMIC_WRITE, sg=[SGE(a.mr.buf + 100, len(data), a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf + at)
    a.qp.post_send(request)


def number(party: Party, at: int = 0) -> int:
    (value,) = struct.unpack("=Q", party.mr.read(8, at))
    return int(value)


def set_number(party: Party, value: int, at: int = 0) -> None:
    party.mr.write(struct.pack("=Q", value), 8, at)


def lose_first(wanted: Callable[[Seen], bool]) -> tuple[Callable[[Seen], list[bytes]], list[Seen]]:
    lost: list[Seen] = []

    def judge(seen: Seen) -> list[bytes]:
        if wanted(seen) and not lost:
            lost.append(seen)
            return []
        return [seen.frame]

    return judge, lost


# -- atomics ----------------------------------------------------------------------------------------------------------


def test_fetch_and_add_gives_what_was_there_and_wraps_at_64_bits() -> None:
    pair, a, b = connected()
    set_number(b, (1 << 64) - 2)
    fetch_add(a, b, 5)
    pair.settle()
    (done,) = a.completions()
    assert (done.status, done.opcode, done.byte_len) == (OK, WCOpcode.FETCH_ADD, 8)
    assert number(a, BACK) == (1 << 64) - 2
    assert number(b) == 3


@pytest.mark.parametrize(("compare", "after"), [(7, 99), (8, 7)])
def test_compare_and_swap_changes_only_what_it_expects(compare: int, after: int) -> None:
    pair, a, b = connected()
    set_number(b, 7)
    atomic(a, b, WROpcode.ATOMIC_CMP_AND_SWP, compare, 99)
    pair.settle()
    assert [each.opcode for each in a.completions()] == [WCOpcode.COMP_SWAP]
    assert (number(a, BACK), number(b)) == (7, after)


def test_an_atomic_whose_answer_is_lost_is_done_once_and_answered_twice() -> None:
    pair, a, b = connected()
    pair.filter, lost = lose_first(lambda seen: seen.opcode == Opcode.ATOMIC_ACKNOWLEDGE)
    set_number(b, 100)
    fetch_add(a, b, 1)
    pair.settle()
    assert len(lost) == 1
    assert a.statuses() == [OK]
    assert number(a, BACK) == 100
    assert number(b) == 101
    assert b.qp.counters()["duplicate_request"] == 1


def test_a_later_acknowledgement_shows_that_an_atomics_answer_was_lost() -> None:
    pair, a, b = connected(timeout=20)  # 4 s: silence alone must not be what repeats it
    pair.filter, lost = lose_first(lambda seen: seen.opcode == Opcode.ATOMIC_ACKNOWLEDGE)
    fetch_add(a, b, 1)
    a.qp.post_write(2, a.mr.buf, 8, a.mr.lkey, b.mr.buf + 64, b.mr.rkey)
    pair.settle(span_ns=100 * MILLISECOND)
    assert lost
    assert a.statuses() == [OK, OK]
    assert number(b) == 1


@pytest.mark.parametrize(
    ("access", "at", "length", "status"),
    [
        (EVERYTHING, 4, 8, WCStatus.REM_INV_REQ_ERR),  # misaligned
        (EVERYTHING & ~AccessFlags.REMOTE_ATOMIC, 0, 8, WCStatus.REM_INV_REQ_ERR),  # the queue pair forbids it
        (EVERYTHING, 65536, 8, WCStatus.REM_ACCESS_ERR),  # behind the region
        (EVERYTHING, 0, 4, WCStatus.LOC_LEN_ERR),  # no eight bytes to put the answer
    ],
)
def test_an_atomic_that_may_not_be_changes_nothing(access: AccessFlags, at: int, length: int, status: WCStatus) -> None:
    pair, a, b = connected(qp_access_flags=access)
    request = SendWR(1, WROpcode.ATOMIC_FETCH_AND_ADD, sg=[SGE(a.mr.buf + BACK, length, a.mr.lkey)])
    request.set_wr_atomic(b.mr.rkey, b.mr.buf + at, 1)
    a.qp.post_send(request)
    pair.settle()
    assert a.statuses() == [status]
    assert b.mr.read(65536, 0) == bytes(65536)
    assert a.qp.query().qp_state is QPState.ERR


def test_a_region_without_atomic_access_refuses_them() -> None:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0], access=EVERYTHING), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), qp_access_flags=EVERYTHING)
    fetch_add(a, b, 1)
    pair.settle()
    assert a.statuses() == [WCStatus.REM_ACCESS_ERR]
    assert [event.event_type for event in pair.contexts[1].get_async_events()] == [EventType.QP_ACCESS_ERR]


def test_many_atomics_add_up_whatever_the_cable_does() -> None:
    for seed in range(20):
        pair, a, b = connected()
        rng = random.Random(seed)
        pair.filter = lambda seen, rng=rng: [seen.frame] * rng.choice((0, 1, 1, 1, 1, 1, 2))  # type: ignore[misc]
        for index in range(30):
            fetch_add(a, b, 3, wr_id=index)
        pair.settle(span_ns=60_000 * MILLISECOND)
        assert a.statuses() == [OK] * 30, seed
        assert number(b) == 90, seed


# -- several at once --------------------------------------------------------------------------------------------------


def test_reads_in_flight_stay_within_max_rd_atomic() -> None:
    pair, a, b = connected(max_rd_atomic=2)
    held: list[bytes] = []
    pair.filter = lambda seen: [seen.frame] if seen.sender == 0 else (held.append(seen.frame) or [])  # type: ignore[func-returns-value]
    for index in range(5):
        fetch_add(a, b, 1, wr_id=index)
    for _ in range(20):
        pair.step()
    assert [seen.opcode for seen in pair.seen if seen.sender == 0] == [Opcode.FETCH_ADD] * 2
    pair.filter = lambda seen: [seen.frame]
    pair.settle()
    assert a.statuses() == [OK] * 5


def test_more_than_max_dest_rd_atomic_at_once_is_an_invalid_request() -> None:
    pair, a, b = connected(max_rd_atomic=4, max_dest_rd_atomic=2)
    for index in range(4):
        fetch_add(a, b, 1, wr_id=index)
    pair.settle()
    assert a.statuses()[0] in (OK, WCStatus.REM_INV_REQ_ERR)
    assert a.qp.query().qp_state is QPState.ERR
    assert number(b) == 2  # as many as there were slots


def test_without_slots_for_it_a_request_with_a_response_is_refused_at_home() -> None:
    pair, a, b = connected(max_rd_atomic=0)
    fetch_add(a, b, 1)
    pair.settle()
    assert a.statuses() == [WCStatus.LOC_QP_OP_ERR]
    assert not pair.seen


def test_a_fenced_request_waits_for_every_answer_before_it() -> None:
    pair, a, b = connected()
    held: list[bytes] = []
    pair.filter = lambda seen: [seen.frame] if seen.sender == 0 else (held.append(seen.frame) or [])  # type: ignore[func-returns-value]
    fetch_add(a, b, 1)
    request = SendWR(2, WROpcode.RDMA_WRITE, sg=[SGE(a.mr.buf, 8, a.mr.lkey)])
    request.send_flags = SendFlags.SIGNALED | SendFlags.FENCE
    request.set_wr_rdma(b.mr.rkey, b.mr.buf + 64)
    a.qp.post_send(request)
    for _ in range(10):
        pair.step()
    assert [seen.opcode for seen in pair.seen if seen.sender == 0] == [Opcode.FETCH_ADD]
    pair.filter = lambda seen: [seen.frame]
    pair.settle()
    assert a.statuses() == [OK, OK]


# -- FLUSH and ATOMIC WRITE -------------------------------------------------------------------------------------------


def test_a_flush_is_answered_when_the_bytes_are_persistent() -> None:
    pair, a, b = connected()
    persisted: list[tuple[int, int]] = []
    b.mr.memory.on_persist = lambda offset, length: persisted.append((offset, length))
    a.mr.write(b"record", 6)
    a.qp.post_write(1, a.mr.buf, 6, a.mr.lkey, b.mr.buf, b.mr.rkey)
    flush(a, b, 6)
    pair.settle()
    assert [(each.status, each.opcode) for each in a.completions()] == [
        (OK, WCOpcode.RDMA_WRITE),
        (OK, WCOpcode.FLUSH),
    ]
    assert persisted == [(0, 6)]
    assert [seen.opcode for seen in pair.seen] == [
        Opcode.RDMA_WRITE_ONLY,
        Opcode.FLUSH,
        Opcode.ACKNOWLEDGE,
        Opcode.RDMA_READ_RESPONSE_ONLY,
    ]


def test_a_flush_of_a_whole_region_ignores_the_range() -> None:
    pair, a, b = connected()
    persisted: list[tuple[int, int]] = []
    b.mr.memory.on_persist = lambda offset, length: persisted.append((offset, length))
    flush(a, b, 0, selectivity=Selectivity.MR)
    pair.settle()
    assert a.statuses() == [OK]
    assert persisted == [(0, 65536)]


def test_a_flush_for_visibility_alone_persists_nothing() -> None:
    pair, a, b = connected()
    persisted: list[tuple[int, int]] = []
    b.mr.memory.on_persist = lambda offset, length: persisted.append((offset, length))
    flush(a, b, 8, placement=PlacementType.GLOBAL)
    pair.settle()
    assert a.statuses() == [OK]
    assert persisted == []


@pytest.mark.parametrize(
    ("access", "length", "placement", "status"),
    [
        (EVERYTHING & ~AccessFlags.FLUSH_PERSISTENT, 8, PlacementType.PERSISTENT, WCStatus.REM_INV_REQ_ERR),
        (EVERYTHING & ~AccessFlags.FLUSH_GLOBAL, 8, PlacementType.GLOBAL, WCStatus.REM_INV_REQ_ERR),
        (EVERYTHING, 65537, PlacementType.GLOBAL, WCStatus.REM_ACCESS_ERR),
        (EVERYTHING, 8, 0, WCStatus.REM_INV_REQ_ERR),  # neither of the two
    ],
)
def test_a_flush_that_may_not_be_is_refused(access: AccessFlags, length: int, placement: int, status: WCStatus) -> None:
    pair, a, b = connected(qp_access_flags=access)
    flush(a, b, length, placement=placement)
    pair.settle()
    assert a.statuses() == [status]


def test_a_lost_answer_to_a_flush_makes_it_flush_again() -> None:
    pair, a, b = connected()
    pair.filter, lost = lose_first(lambda seen: seen.opcode == Opcode.RDMA_READ_RESPONSE_ONLY)
    persisted: list[tuple[int, int]] = []
    b.mr.memory.on_persist = lambda offset, length: persisted.append((offset, length))
    flush(a, b)
    pair.settle()
    assert lost
    assert a.statuses() == [OK]
    assert len(persisted) == 2


def test_an_atomic_write_lands_whole_and_is_answered_by_an_empty_response() -> None:
    pair, a, b = connected()
    atomic_write(a, b, b"COMMITTD", at=16)
    pair.settle()
    (done,) = a.completions()
    assert (done.status, done.opcode) == (OK, WCOpcode.ATOMIC_WRITE)
    assert b.mr.read(8, 16) == b"COMMITTD"
    assert [seen.opcode for seen in pair.seen] == [Opcode.ATOMIC_WRITE, Opcode.RDMA_READ_RESPONSE_ONLY]


def test_a_repeated_atomic_write_does_not_land_again() -> None:
    pair, a, b = connected()
    pair.filter, lost = lose_first(lambda seen: seen.opcode == Opcode.RDMA_READ_RESPONSE_ONLY)
    atomic_write(a, b, b"11111111")
    for _ in range(5):
        pair.step()
    b.mr.write(b"22222222", 8)  # somebody writes between the two
    pair.settle()
    assert lost
    assert a.statuses() == [OK]
    assert b.mr.read(8, 0) == b"22222222"


@pytest.mark.parametrize(
    ("data", "at", "status"),
    [
        (b"12345678", 4, WCStatus.REM_INV_REQ_ERR),
        (b"1234", 0, WCStatus.LOC_LEN_ERR),
        (b"12345678", 65536, WCStatus.REM_ACCESS_ERR),
    ],
)
def test_an_atomic_write_that_may_not_be_is_refused(data: bytes, at: int, status: WCStatus) -> None:
    pair, a, b = connected()
    atomic_write(a, b, data, at=at)
    pair.settle()
    assert a.statuses() == [status]
    assert b.mr.read(65536, 0) == bytes(65536)


def test_a_fenced_path_takes_no_atomics_and_no_atomic_writes() -> None:
    for post in (lambda a, b: fetch_add(a, b, 1), lambda a, b: atomic_write(a, b, b"12345678")):
        pair, a, b = connected(fence_slot=5, fence_epoch=1)
        pair.nodes[1].raise_fence(5, 2)
        post(a, b)
        pair.settle()
        assert a.statuses() == [WCStatus.REM_ACCESS_ERR]
        assert b.mr.read(64, 0) == bytes(64)


# -- SEND with invalidate ---------------------------------------------------------------------------------------------


def send_with_invalidate(a: Party, b: Party, rkey: int, length: int = 20) -> None:
    b.qp.post_recv(RecvWR(70, 1, [SGE(b.mr.buf, 4096, b.mr.lkey)]))
    a.mr.write(b"y" * length, length)
    a.qp.post_send(SendWR(3, WROpcode.SEND_WITH_INV, imm_data=rkey, sg=[SGE(a.mr.buf, length, a.mr.lkey)]))


@pytest.mark.parametrize("length", [20, 1500])
def test_a_send_with_invalidate_kills_the_key_that_it_names(length: int) -> None:
    pair, a, b = connected()
    extra = b.another_region(256)
    send_with_invalidate(a, b, extra.rkey, length)
    pair.settle()
    (received,) = b.completions()
    assert (received.status, received.byte_len) == (OK, length)
    assert received.wc_flags == WCFlags.WITH_INV
    assert received.imm_data == extra.rkey
    assert b.mr.read(length, 0) == b"y" * length
    assert a.statuses() == [OK]
    a.qp.post_write(4, a.mr.buf, 8, a.mr.lkey, extra.buf, extra.rkey)
    pair.settle()
    assert a.statuses() == [WCStatus.REM_ACCESS_ERR]
    extra.close()  # still the host's to give back


def test_a_peer_cannot_kill_a_key_that_was_never_open_to_it() -> None:
    pair, a, b = connected()
    private = b.another_region(256, AccessFlags.LOCAL_WRITE)
    send_with_invalidate(a, b, private.rkey)
    pair.settle()
    assert a.statuses() == [WCStatus.REM_ACCESS_ERR]
    assert b.statuses() == [WCStatus.REM_ACCESS_ERR]
    b.mr.write(bytes(4), 4)
    private.write(b"mine", 4)
    assert private.read(4, 0) == b"mine"


# -- memory that goes away under way ----------------------------------------------------------------------------------


def test_a_read_whose_region_loses_its_key_in_the_middle_is_refused_from_there() -> None:
    pair, a, b = connected(path_mtu=MTU.MTU_256)
    extra = b.another_region(40 * 1024)
    request = SendWR(2, WROpcode.RDMA_READ, sg=[SGE(a.mr.buf, 40 * 1024, a.mr.lkey)])
    request.set_wr_rdma(extra.rkey, extra.buf)
    a.qp.post_send(request)
    while not any(seen.sender == 1 for seen in pair.seen):
        pair.step()
    extra.close()
    pair.settle()
    assert a.statuses() == [WCStatus.REM_ACCESS_ERR]
    answers = [seen.opcode for seen in pair.seen if seen.sender == 1]
    assert answers[0] == Opcode.RDMA_READ_RESPONSE_FIRST
    assert answers[-1] == Opcode.ACKNOWLEDGE
    assert len(answers) < 160


def test_a_request_whose_own_region_loses_its_key_under_way_ends_with_a_protection_error() -> None:
    pair, a, b = connected(path_mtu=MTU.MTU_256)
    extra = a.another_region(60_000)
    a.qp.post_write(1, extra.buf, 60_000, extra.lkey, b.mr.buf, b.mr.rkey)
    pair.step()
    extra.close()
    pair.settle()
    assert a.statuses() == [WCStatus.LOC_PROT_ERR]
    assert a.qp.query().qp_state is QPState.ERR


def test_an_answer_for_a_region_that_lost_its_key_is_not_stored() -> None:
    pair, a, b = connected()
    extra = a.another_region(64)
    request = SendWR(1, WROpcode.ATOMIC_FETCH_AND_ADD, sg=[SGE(extra.buf, 8, extra.lkey)])
    request.set_wr_atomic(b.mr.rkey, b.mr.buf, 1)
    a.qp.post_send(request)
    pair.filter = lambda seen: [seen.frame] if seen.sender == 0 else []
    pair.step()
    extra.close()
    pair.filter = lambda seen: [seen.frame]
    pair.settle()
    assert a.statuses() == [WCStatus.LOC_PROT_ERR]


def test_a_message_refused_half_way_gives_its_receive_back_with_an_error() -> None:
    pair, a, b = connected()
    b.qp.post_recv(RecvWR(70, 1, [SGE(b.mr.buf, 1500, b.mr.lkey)]))
    a.qp.post_send(SendWR(3, WROpcode.SEND, sg=[SGE(a.mr.buf, 3000, a.mr.lkey)]))
    pair.settle()
    assert a.statuses() == [WCStatus.REM_OP_ERR]
    assert b.statuses() == [WCStatus.LOC_LEN_ERR]


# -- pieces, inline data ----------------------------------------------------------------------------------------------


def test_a_send_is_scattered_over_the_pieces_of_its_receive() -> None:
    pair, a, b = connected()
    pieces = [SGE(b.mr.buf + 100, 700, b.mr.lkey), SGE(b.mr.buf + 2000, 1, b.mr.lkey), SGE(b.mr.buf, 0, b.mr.lkey),
              SGE(b.mr.buf + 3000, 2000, b.mr.lkey)]  # fmt: skip
    b.qp.post_recv(RecvWR(70, len(pieces), pieces))
    data = random.Random(3).randbytes(2500)
    a.mr.write(data, len(data))
    a.qp.post_send(SendWR(3, WROpcode.SEND, sg=[SGE(a.mr.buf, 2500, a.mr.lkey)]))
    pair.settle()
    (received,) = b.completions()
    assert (received.status, received.byte_len) == (OK, 2500)
    assert b.mr.read(700, 100) + b.mr.read(1, 2000) + b.mr.read(1799, 3000) == data


def test_inline_data_is_taken_when_it_is_posted() -> None:
    pair, a, b = connected()
    a.mr.write(b"as it was", 9)
    request = SendWR(1, WROpcode.RDMA_WRITE, sg=[SGE(a.mr.buf, 9, a.mr.lkey)])
    request.send_flags = SendFlags.SIGNALED | SendFlags.INLINE
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    a.mr.write(b"and later", 9)
    pair.settle()
    assert a.statuses() == [OK]
    assert b.mr.read(9, 0) == b"as it was"


def test_too_much_inline_data_is_refused_at_once() -> None:
    pair, a, b = connected()
    request = SendWR(1, WROpcode.RDMA_WRITE, sg=[SGE(a.mr.buf, 81, a.mr.lkey)])
    request.send_flags = SendFlags.SIGNALED | SendFlags.INLINE
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    with pytest.raises(RDMAError, match="80"):
        a.qp.post_send(request)
    pair.settle()
    assert a.completions() == []


def test_a_read_cannot_be_inline() -> None:
    pair, a, b = connected()
    request = SendWR(1, WROpcode.RDMA_READ, sg=[SGE(a.mr.buf, 8, a.mr.lkey)])
    request.send_flags = SendFlags.SIGNALED | SendFlags.INLINE
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    pair.settle()
    assert a.statuses() == [WCStatus.LOC_QP_OP_ERR]


# -- draining ---------------------------------------------------------------------------------------------------------


def to_state(party: Party, state: QPState, **attributes: int) -> None:
    attr = QPAttr(qp_state=state)
    for name, value in attributes.items():
        setattr(attr, name, value)
    party.qp.modify(attr)


def test_a_draining_queue_pair_finishes_what_it_began_and_tells() -> None:
    pair, a, b = connected(path_mtu=MTU.MTU_256)
    a.qp.post_write(1, a.mr.buf, 40_000, a.mr.lkey, b.mr.buf, b.mr.rkey)
    a.qp.post_write(2, a.mr.buf, 100, a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.step()  # the first is half out
    to_state(a, QPState.SQD, en_sqd_async_notify=1)
    assert pair.contexts[0].get_async_events() == []
    a.qp.post_write(3, a.mr.buf, 100, a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.settle()
    assert [each.wr_id for each in a.completions()] == [1]
    assert [event.event_type for event in pair.contexts[0].get_async_events()] == [EventType.SQ_DRAINED]
    to_state(a, QPState.RTS)
    pair.settle()
    assert [each.wr_id for each in a.completions()] == [2, 3]


def test_an_idle_queue_pair_is_drained_at_once_and_still_receives() -> None:
    pair, a, b = connected()
    to_state(a, QPState.SQD, en_sqd_async_notify=1)
    assert [event.event_type for event in pair.contexts[0].get_async_events()] == [EventType.SQ_DRAINED]
    b.qp.post_write(5, b.mr.buf, 10, b.mr.lkey, a.mr.buf, a.mr.rkey)
    pair.settle()
    assert b.statuses() == [OK]


def test_a_drained_queue_pair_without_notification_says_nothing() -> None:
    pair, a, b = connected()
    to_state(a, QPState.SQD)
    assert pair.contexts[0].get_async_events() == []


# -- who is told what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "access", "event"),
    [
        (65536, EVERYTHING, EventType.QP_ACCESS_ERR),
        (0, AccessFlags.LOCAL_WRITE, EventType.QP_REQ_ERR),
    ],
)
def test_the_host_whose_peer_asked_wrongly_is_told_how(at: int, access: AccessFlags, event: EventType) -> None:
    pair, a, b = connected(qp_access_flags=access)
    pair.contexts[1].get_async_events()
    a.qp.post_write(1, a.mr.buf, 8, a.mr.lkey, b.mr.buf + at, b.mr.rkey)
    pair.settle()
    assert [each.event_type for each in pair.contexts[1].get_async_events()] == [event]


def test_the_first_packet_before_rts_establishes_communication() -> None:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), only_to=(QPState.RTS, QPState.RTR))
    a.qp.post_write(1, a.mr.buf, 8, a.mr.lkey, b.mr.buf, b.mr.rkey)
    a.qp.post_write(2, a.mr.buf, 8, a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.settle()
    assert a.statuses() == [OK, OK]
    assert [each.event_type for each in pair.contexts[1].get_async_events()] == [EventType.COMM_EST]
