"""Corners of the reliable transport: several losses at once, limits of queues, and what a queue pair leaves behind."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from typing import Any

import pytest

from emul.answers import ANSWERS_MAX, Answers
from emul.clock import MILLISECOND, Instant
from emul.enums import QPAttrMask
from emul.errors import RDMAError
from emul.memory import Memory
from emul.queues import (
    COMPLETION_STRIDE,
    DOORBELL_STRIDE,
    HEADER_BYTES,
    INLINE_BYTES_MAX,
    RECEIVE_SGES_MAX,
    CompletionRing,
    ReceiveRing,
    SendRing,
    completion_ring_bytes,
    index_span,
    receive_ring_bytes,
    send_ring_bytes,
)
from emul.regions import RegionTable
from emul.requester import PACKETS_IN_FLIGHT_MAX
from emul.responder import Responder
from emul.verbs import MR, PD, QP, SRQ, QPInitAttr, SrqInitAttr
from emul.vocabulary import (
    GID,
    MTU,
    SGE,
    AccessFlags,
    AHAttr,
    EventType,
    GlobalRoute,
    QPAttr,
    QPCap,
    QPState,
    RecvWR,
    SendFlags,
    SendWR,
    WCStatus,
    WROpcode,
)
from emul.window import SendWindow
from emul.wire.address import address_bytes
from emul.wire.frame import make_flow
from emul.wire.headers import ACK_REQUEST, BTH, DETH, DETH_BYTES, RETH, Opcode
from emul.wire.mad import CM_Q_KEY
from emul.work_requests import resolve
from emul.wqe import SendWqe
from tests.helpers.adapters import ALL_ACCESS, AdapterPair, Party, Seen, connect_by_hand, packets_of

OK = WCStatus.SUCCESS


def connected(**attributes: int) -> tuple[AdapterPair, Party, Party]:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), **attributes)
    pair.settle(span_ns=50 * MILLISECOND)
    pair.seen.clear()
    return pair, a, b


def write(a: Party, b: Party, length: int = 8, *, wr_id: int = 1) -> None:
    a.qp.post_write(wr_id, a.mr.buf, length, a.mr.lkey, b.mr.buf, b.mr.rkey)


def read(a: Party, b: Party, length: int = 8, *, wr_id: int = 2) -> None:
    request = SendWR(wr_id, WROpcode.RDMA_READ, sg=[SGE(a.mr.buf + 30_000, length, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)


def send(a: Party, length: int = 8, *, wr_id: int = 3) -> None:
    a.qp.post_send(SendWR(wr_id, WROpcode.SEND, sg=[SGE(a.mr.buf, length, a.mr.lkey)]))


def receive(b: Party, length: int = 4096, *, wr_id: int = 70) -> None:
    b.qp.post_recv(RecvWR(wr_id, 1, [SGE(b.mr.buf, length, b.mr.lkey)]))


def done(party: Party) -> list[tuple[int, WCStatus]]:
    return [(completion.wr_id, completion.status) for completion in party.completions()]


def events(pair: AdapterPair, index: int) -> list[EventType]:
    return [event.event_type for event in pair.contexts[index].get_async_events()]


def losing(*wanted: Callable[[Seen], bool]) -> Callable[[Seen], list[bytes]]:
    """Takes away the first frame that each of `wanted` is about."""
    left = list(wanted)

    def judge(seen: Seen) -> list[bytes]:
        for each in left:
            if each(seen):
                left.remove(each)
                return []
        return [seen.frame]

    return judge


def to_state(party: Party, state: QPState, **attributes: int) -> None:
    attr = QPAttr(qp_state=state)
    for name, value in attributes.items():
        setattr(attr, name, value)
    party.qp.modify(attr)


# -- retries: one disturbance spends one ------------------------------------------------------------------------------


def test_a_repeated_write_that_is_acknowledged_before_the_read_behind_it_costs_no_retry() -> None:
    pair, a, b = connected(retry_cnt=1)
    pair.filter = losing(
        lambda seen: seen.opcode == Opcode.ACKNOWLEDGE, lambda seen: seen.opcode == Opcode.RDMA_READ_RESPONSE_ONLY
    )
    write(a, b)
    read(a, b)
    pair.settle()  # silence; then the WRITE is acknowledged with the latest PSN, that of the READ
    assert done(a) == [(1, OK), (2, OK)]
    assert a.qp.counters()["completer_retry_err"] == 1
    assert [seen.opcode for seen in pair.seen].count(Opcode.RDMA_READ_REQUEST) == 2


def test_progress_before_a_hole_gives_the_retries_back() -> None:
    pair, a, b = connected(retry_cnt=1)
    acknowledged = [0, 0]

    def lose(seen: Seen) -> list[bytes]:
        if seen.sender == 1:
            kind = int(seen.opcode == Opcode.RDMA_READ_RESPONSE_ONLY)
            acknowledged[kind] += 1
            if acknowledged[kind] <= 2:
                return []
        return [seen.frame]

    pair.filter = lose
    write(a, b, wr_id=1)
    read(a, b, wr_id=2)
    write(a, b, wr_id=3)
    pair.settle()
    assert done(a) == [(1, OK), (2, OK), (3, OK)]


def test_a_lost_response_and_a_gap_behind_it_are_one_disturbance() -> None:
    pair, a, b = connected(retry_cnt=1)
    pair.filter = losing(
        lambda seen: seen.opcode == Opcode.RDMA_READ_RESPONSE_ONLY,
        lambda seen: seen.opcode == Opcode.RDMA_WRITE_ONLY,
    )
    read(a, b, wr_id=1)
    write(a, b, wr_id=2)
    write(a, b, wr_id=3)
    pair.settle(span_ns=20 * MILLISECOND)  # less than the timeout
    assert done(a) == [(1, OK), (2, OK), (3, OK)]
    assert a.qp.counters()["completer_retry_err"] == 1


def test_a_refusal_is_not_blamed_on_a_read_whose_response_was_lost() -> None:
    pair, a, b = connected(retry_cnt=1)
    pair.filter = losing(lambda seen: seen.opcode == Opcode.RDMA_READ_RESPONSE_ONLY)
    read(a, b, wr_id=1)
    a.qp.post_write(2, a.mr.buf, 8, a.mr.lkey, b.mr.buf, b.mr.rkey ^ 1)
    pair.settle()
    # b is in ERR and repeats nothing: nobody knows any more what the READ would have brought
    assert done(a) == [(1, WCStatus.RETRY_EXC_ERR), (2, WCStatus.WR_FLUSH_ERR)]


def test_a_send_that_the_cable_repeats_spends_one_rnr_retry() -> None:
    pair, a, b = connected(rnr_retry=1, min_rnr_timer=20)
    pair.filter = lambda seen: [seen.frame] * (1 + (seen.opcode == Opcode.SEND_ONLY))
    send(a)
    pair.settle(until=lambda: a.qp.counters()["rcvd_rnr_err"] >= 2, span_ns=5 * MILLISECOND)
    receive(b)
    pair.settle()
    assert done(a) == [(3, OK)]


def test_a_receiver_that_asks_for_patience_is_not_silent() -> None:
    pair, a, b = connected(rnr_retry=7, retry_cnt=1, timeout=8, min_rnr_timer=14)
    naks = [0]

    def lose_every_second(seen: Seen) -> list[bytes]:
        naks[0] += seen.sender == 1
        return [] if seen.sender == 1 and naks[0] % 2 else [seen.frame]

    pair.filter = lose_every_second
    send(a)
    pair.settle(until=lambda: a.qp.counters()["timeouts"] >= 5)
    assert a.qp.counters()["timeouts"] >= 5
    pair.filter = lambda seen: [seen.frame]
    receive(b)
    pair.settle()
    assert done(a) == [(3, OK)]


# -- a queue pair's end, and its next life ----------------------------------------------------------------------------


def reconnected(pair: AdapterPair, a: Party, b: Party) -> None:
    for party in (a, b):
        to_state(party, QPState.RESET)
    connect_by_hand(pair, (a, b))


def test_after_a_reset_the_queues_are_empty_and_have_all_their_room() -> None:
    pair, a, b = connected()
    pair.filter = lambda seen: []
    for number in range(60):
        write(a, b, wr_id=number)
    receive(b, wr_id=1)
    pair.step()
    pair.filter = lambda seen: [seen.frame]
    reconnected(pair, a, b)
    for number in range(64):  # as many as the queue holds
        write(a, b, wr_id=100 + number)
    receive(b, wr_id=2)
    pair.settle()
    assert done(a) == [(100 + number, OK) for number in range(64)]
    send(a)
    pair.settle()
    assert done(b) == [(2, OK)]


def test_what_was_posted_and_not_begun_is_not_sent_in_the_next_life() -> None:
    pair, a, b = connected()
    to_state(a, QPState.SQD)
    write(a, b, wr_id=1)
    reconnected(pair, a, b)
    pair.settle()
    assert [seen.opcode for seen in pair.seen if seen.sender == 0] == []
    assert done(a) == []


def test_counters_of_a_former_life_are_kept() -> None:
    pair, a, b = connected()
    write(a, b)
    pair.settle()
    reconnected(pair, a, b)
    write(a, b)
    pair.settle()
    assert b.qp.counters()["rx_write_requests"] == 2
    assert pair.adapters[1].counters()["rx_write_requests"] == 2


def test_a_half_received_message_gives_its_receive_back_when_the_queue_pair_ends() -> None:
    pair, a, b = connected()
    pair.filter = lambda seen: [] if seen.opcode == Opcode.SEND_LAST else [seen.frame]
    receive(b, wr_id=70)
    receive(b, wr_id=71)
    send(a, 3000)
    pair.step()
    to_state(b, QPState.ERR)
    assert done(b) == [(70, WCStatus.WR_FLUSH_ERR), (71, WCStatus.WR_FLUSH_ERR)]


def test_a_half_received_message_gives_its_shared_receive_back_too() -> None:
    pair, a, b = connected()
    srq = SRQ(b.pd, SrqInitAttr())
    cap = QPCap(max_send_wr=4, max_recv_wr=4)
    b.qp = QP(b.pd, QPInitAttr(cap=cap, scq=b.cq, rcq=b.cq, srq=srq))
    a.qp = QP(a.pd, QPInitAttr(cap=cap, scq=a.cq, rcq=a.cq))
    connect_by_hand(pair, (a, b))
    for wr_id in (70, 71):
        srq.post_recv(RecvWR(wr_id, 1, [SGE(b.mr.buf, 4096, b.mr.lkey)]))
    pair.filter = lambda seen: [] if seen.opcode == Opcode.SEND_LAST else [seen.frame]
    send(a, 3000)
    pair.step()
    to_state(b, QPState.ERR)
    assert done(b) == [(70, WCStatus.WR_FLUSH_ERR)]  # the other one is for whoever shares it
    assert events(pair, 1) == [EventType.QP_LAST_WQE_REACHED]


def test_a_queue_pair_in_error_reads_no_memory_for_its_peer_any_more() -> None:
    pair, a, b = connected()
    read(a, b, 30_000)
    pair.adapters[0].on_doorbell(now=pair.now)
    for frame in pair.adapters[0].poll_transmit(now=pair.now):
        pair.adapters[1].on_frame(frame, now=pair.now)
    assert len(pair.adapters[1].poll_transmit(4, now=pair.now)) == 4
    to_state(b, QPState.ERR)
    assert pair.adapters[1].poll_transmit(now=pair.now) == []


# -- draining ---------------------------------------------------------------------------------------------------------


def test_a_bad_request_that_was_not_begun_does_not_disturb_draining() -> None:
    pair, a, b = connected(path_mtu=MTU.MTU_256)
    write(a, b, 40_000, wr_id=1)
    a.qp.post_write(2, a.mr.buf, 8, a.mr.lkey ^ 1, b.mr.buf, b.mr.rkey)
    pair.step()
    to_state(a, QPState.SQD, en_sqd_async_notify=1)
    pair.settle()
    assert done(a) == [(1, OK)]
    assert events(pair, 0) == [EventType.SQ_DRAINED]
    to_state(a, QPState.RTS)
    assert done(a) == [(2, WCStatus.LOC_PROT_ERR)]


def test_a_request_that_breaks_while_draining_is_told_as_that_alone() -> None:
    pair, a, b = connected(path_mtu=MTU.MTU_256)
    extra = a.another_region(60_000)
    write(a, b, wr_id=1)
    a.qp.post_write(2, extra.buf, 60_000, extra.lkey, b.mr.buf, b.mr.rkey)
    pair.filter = lambda seen: [seen.frame] if seen.sender == 0 else []
    pair.step()
    to_state(a, QPState.SQD, en_sqd_async_notify=1)
    extra.close()
    pair.filter = lambda seen: [seen.frame]
    pair.settle()
    assert [status for _, status in done(a)] == [OK, WCStatus.LOC_PROT_ERR]
    assert events(pair, 0) == [EventType.QP_FATAL]


# -- attributes that a transition takes are taken ---------------------------------------------------------------------


def route(pair: AdapterPair, peer: Party, index: int) -> QPAttr:
    return QPAttr(
        dest_qp_num=peer.qp.qp_num,
        qp_access_flags=ALL_ACCESS,
        ah_attr=AHAttr(gr=GlobalRoute(dgid=GID(pair.address(index)))),
    )


M = QPAttrMask
INIT = M.STATE | M.PKEY_INDEX | M.PORT | M.ACCESS_FLAGS
RTR = M.STATE | M.AV | M.PATH_MTU | M.DEST_QPN | M.RQ_PSN | M.MAX_DEST_RD_ATOMIC | M.MIN_RNR_TIMER
RTS = M.STATE | M.TIMEOUT | M.RETRY_CNT | M.RNR_RETRY | M.SQ_PSN | M.MAX_QP_RD_ATOMIC


def by_masks(pair: AdapterPair, a: Party, b: Party, masks: tuple[int, int, int], **of_b: int) -> None:
    """Connects a to b, and b by `masks`, with `of_b` from the state on where its mask names it."""
    attr = route(pair, b, 1)
    a.qp.to_rts(attr)
    for state, mask in zip((QPState.INIT, QPState.RTR, QPState.RTS), masks, strict=True):
        attr = route(pair, a, 0)
        attr.qp_state = state
        if mask & (M.FENCE | (M.ACCESS_FLAGS if state is not QPState.INIT else 0)):
            for name, value in of_b.items():
                setattr(attr, name, value)
        b.qp.modify(attr, mask)


def test_a_fence_epoch_given_in_init_holds() -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    by_masks(pair, a, b, (INIT | M.FENCE, RTR, RTS), fence_slot=9, fence_epoch=4)
    pair.nodes[1].raise_fence(9, 5)
    write(a, b)
    pair.settle()
    assert done(a) == [(1, WCStatus.REM_ACCESS_ERR)]


@pytest.mark.parametrize("masks", [(INIT, RTR | M.ACCESS_FLAGS, RTS), (INIT, RTR, RTS | M.ACCESS_FLAGS)])
def test_access_that_is_taken_back_on_the_way_up_is_gone(masks: tuple[int, int, int]) -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    by_masks(pair, a, b, masks, qp_access_flags=int(AccessFlags.NONE))
    write(a, b)
    pair.settle()
    assert done(a) == [(1, WCStatus.REM_INV_REQ_ERR)]


# -- limits -----------------------------------------------------------------------------------------------------------


def test_acknowledgements_behind_an_answer_that_cannot_go_out_are_bounded_and_the_last_one_is_kept() -> None:
    answers = Answers(mtu=256)
    answers.respond(None, memoryview(bytes(600)), 0, 1)
    for psn in range(3, 10_000):
        answers.acknowledge(psn, 0x1F, psn)
    assert len(answers.waiting) <= ANSWERS_MAX
    assert not answers.has_room()
    packets = packets_of(answers)
    assert [opcode for opcode, _, _ in packets[:3]] == [0x0D, 0x0E, 0x0F]
    assert packets[3][1] == 3
    assert packets[-1][1] == 9_999
    assert answers.has_room()


def test_an_acknowledgement_behind_as_many_responses_as_may_wait_is_added_and_then_replaced() -> None:
    answers = Answers(mtu=256)
    for psn in range(ANSWERS_MAX):
        answers.respond(None, memoryview(b""), psn, psn)
    for psn in range(ANSWERS_MAX, 2 * ANSWERS_MAX):
        answers.acknowledge(psn, 0x1F, psn)
    assert len(packets_of(answers)) == ANSWERS_MAX + 1


def test_pieces_are_gathered_packet_by_packet() -> None:
    pair, a, b = connected()
    data = bytes(range(256)) * 24
    a.mr.write(data, len(data))
    pieces = [SGE(a.mr.buf + 10, 1500, a.mr.lkey), SGE(a.mr.buf + 3000, 3, a.mr.lkey), SGE(a.mr.buf, 2000, a.mr.lkey)]
    request = SendWR(1, WROpcode.RDMA_WRITE, sg=pieces)
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    pair.settle()
    assert done(a) == [(1, OK)]
    assert b.mr.read(3503, 0) == data[10:1510] + data[3000:3003] + data[:2000]
    wqe_pieces = [SGE(a.mr.buf, 4, a.mr.lkey), SGE(a.mr.buf + 100, 4, a.mr.lkey)]
    request = SendWR(2, WROpcode.ATOMIC_WRITE, sg=wqe_pieces)
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    pair.settle()
    assert done(a) == [(2, OK)]
    assert b.mr.read(8, 0) == data[:4] + data[100:104]


@pytest.mark.needs_plain
def test_a_host_that_fakes_overruns_gets_one_look_at_all_queues_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, _, _ = connected()
    adapter = pair.adapters[0]
    assert adapter.host is not None
    looks = [0]
    words = adapter.host.memory.buffer.cast("I")
    for slot in range(1024):
        words[(HEADER_BYTES + slot * DOORBELL_STRIDE) // 4 + 1] = 5000 * (slot + 1)

    def look() -> None:
        looks[0] += 1

    monkeypatch.setattr(adapter, "look_at_all_queues", look)
    assert adapter.on_doorbell(now=pair.now)
    assert looks == [1]


def test_a_full_send_ring_of_any_depth_survives_the_wrap_of_its_running_number() -> None:
    depth = 10
    buffer = memoryview(bytearray(send_ring_bytes(depth)))
    host, adapter = SendRing(buffer, depth), SendRing(buffer, depth)
    start = index_span(depth) - 3
    host._index = adapter._index = adapter._retired = start
    adapter.retire(0)
    for number in range(depth):
        assert host.post_one(0, 0, number, 1, 2, 3, 4, 5)
    assert not host.post_one(0, 0, 99, 1, 2, 3, 4, 5)
    taken = [entry.wr_id for entry in iter(adapter.take, None)]
    assert taken == list(range(depth))
    adapter.retire(depth)
    assert host.free() == depth


def test_a_full_receive_ring_of_any_depth_survives_the_wrap_of_its_running_number() -> None:
    depth = 10
    buffer = memoryview(bytearray(receive_ring_bytes(depth)))
    host, adapter = ReceiveRing(buffer, depth), ReceiveRing(buffer, depth)
    host._index = adapter._index = index_span(depth) - 3
    buffer.cast("I")[0] = host._index
    for number in range(depth):
        assert adapter.holds(depth) is False
        assert host.post(number, [SGE(1, 2, 3)])
        assert adapter.holds(number + 1)
    assert not host.post(99, [SGE(1, 2, 3)])
    assert [entry.wr_id for entry in iter(adapter.take, None)] == list(range(depth))


def test_a_full_completion_ring_of_any_depth_survives_the_wrap_of_its_running_number() -> None:
    depth = 10
    buffer = memoryview(bytearray(completion_ring_bytes(depth)))
    assert len(buffer) == HEADER_BYTES + depth * COMPLETION_STRIDE
    host, adapter = CompletionRing(buffer, depth), CompletionRing(buffer, depth)
    host._index = adapter._index = index_span(depth) - 3
    buffer.cast("I")[0] = host._index
    for number in range(depth):
        assert adapter.push(number, 0, 0, 0, 0, 0, 0)
        assert adapter.waiting() == number + 1
    assert not adapter.push(99, 0, 0, 0, 0, 0, 0)
    assert [completion.wr_id for completion in host.poll(2 * depth)] == list(range(depth))


# -- flags ------------------------------------------------------------------------------------------------------------


def test_the_fence_flag_holds_back_a_message_of_several_packets() -> None:
    pair, a, b = connected()
    pair.filter = lambda seen: [] if seen.sender == 1 else [seen.frame]
    read(a, b)
    request = SendWR(4, WROpcode.RDMA_WRITE, sg=[SGE(a.mr.buf, 3000, a.mr.lkey)])
    request.send_flags = SendFlags.SIGNALED | SendFlags.FENCE
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    pair.settle(span_ns=20 * MILLISECOND)
    assert {seen.opcode for seen in pair.seen if seen.sender == 0} == {Opcode.RDMA_READ_REQUEST}
    pair.filter = lambda seen: [seen.frame]
    pair.settle()
    assert done(a) == [(2, OK), (4, OK)]


# -- shared receives of another domain --------------------------------------------------------------------------------


def test_shared_receives_lie_in_the_domain_of_their_queue_and_in_no_other() -> None:
    pair, a, b = connected()
    other = PD(pair.contexts[1])
    region = MR(other, 4096, ALL_ACCESS)
    srq = SRQ(other, SrqInitAttr())
    cap = QPCap(max_send_wr=4, max_recv_wr=4)
    b.qp = QP(b.pd, QPInitAttr(cap=cap, scq=b.cq, rcq=b.cq, srq=srq))
    a.qp = QP(a.pd, QPInitAttr(cap=cap, scq=a.cq, rcq=a.cq))
    connect_by_hand(pair, (a, b))
    srq.post_recv(RecvWR(5, 1, [SGE(region.buf, 4096, region.lkey)]))
    srq.post_recv(RecvWR(6, 1, [SGE(b.mr.buf, 4096, b.mr.lkey)]))
    send(a)
    send(a)
    pair.settle()
    assert done(b) == [(5, OK), (6, WCStatus.LOC_PROT_ERR)]


# -- retries and timers, one by one -----------------------------------------------------------------------------------


def test_a_gap_in_mid_message_that_never_closes_spends_the_retries() -> None:
    pair, a, b = connected(retry_cnt=3)
    pair.filter = lambda seen: [] if seen.sender == 0 and seen.psn == 0xFFFFFF else [seen.frame]
    write(a, b, 3000)
    pair.settle()
    assert done(a) == [(1, WCStatus.RETRY_EXC_ERR)]
    assert a.qp.counters()["completer_retry_err"] == 3


def test_a_single_packet_that_waits_for_its_acknowledgement_is_not_drained() -> None:
    pair, a, b = connected()
    pair.filter = lambda seen: [seen.frame] if seen.sender == 0 else []
    write(a, b)
    pair.step()
    to_state(a, QPState.SQD, en_sqd_async_notify=1)
    assert events(pair, 0) == []
    pair.filter = lambda seen: [seen.frame]
    pair.settle()
    assert events(pair, 0) == [EventType.SQ_DRAINED]
    pair.settle()
    assert events(pair, 0) == []


def test_what_is_acknowledged_up_to_the_cursor_is_not_in_flight() -> None:
    window = SendWindow(256, 0xFFFFFF)
    wqe = SendWqe(1, WROpcode.RDMA_WRITE, 0, 0, 0, 0)
    wqe.length = 1000
    window.add(wqe)
    window.packet = 2
    assert window.in_flight()
    window.settle(wqe, 2)
    assert not window.in_flight()


def test_new_requests_do_not_put_off_the_timer_of_the_oldest() -> None:
    pair, a, b = connected(retry_cnt=1, timeout=14)
    pair.filter = lambda seen: []
    for number in range(40):  # one every 10 ms
        if a.qp.query().qp_state is QPState.ERR:
            break
        write(a, b, wr_id=number)
        until = pair.now + 10 * MILLISECOND
        pair.settle(lambda until=until: pair.now >= until, span_ns=10 * MILLISECOND)  # type: ignore[misc]
        pair.now = Instant(max(pair.now, until))
    assert a.statuses()[0] == WCStatus.RETRY_EXC_ERR


@pytest.mark.needs_plain
def test_a_response_that_ends_too_early_is_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, a, b = connected()
    monkeypatch.setattr("emul.answers._FIRST", int(Opcode.RDMA_READ_RESPONSE_ONLY))
    read(a, b, 3000)
    pair.settle()
    assert done(a) == [(2, WCStatus.BAD_RESP_ERR)]


def test_responses_of_a_smaller_path_mtu_are_bad_ones() -> None:
    pair, a, b = connected()
    to_state(b, QPState.RESET)
    attr = route(pair, a, 0)
    attr.path_mtu, attr.rq_psn = MTU.MTU_256, 0xFFFFFE
    b.qp.to_rts(attr)
    read(a, b, 3000)
    pair.settle()
    assert done(a) == [(2, WCStatus.BAD_RESP_ERR)]


def test_while_the_receiver_asks_for_patience_no_timer_runs_and_nothing_is_sent() -> None:
    pair, a, b = connected(timeout=8, min_rnr_timer=24)  # 1 ms, 41 ms
    send(a)
    pair.settle(span_ns=30 * MILLISECOND)
    assert a.qp.counters()["rcvd_rnr_err"] == 1
    receive(b)
    pair.settle()
    assert done(a) == [(3, OK)]
    assert [seen.opcode for seen in pair.seen if seen.sender == 0] == [Opcode.SEND_ONLY] * 2
    assert a.qp.counters()["timeouts"] == 0


def test_a_bound_of_rnr_retries_that_is_set_while_drained_holds() -> None:
    pair, a, b = connected(rnr_retry=7)
    write(a, b)
    to_state(a, QPState.SQD)
    attr = QPAttr(qp_state=QPState.SQD, rnr_retry=1)
    a.qp.modify(attr, QPAttrMask.STATE | QPAttrMask.RNR_RETRY)
    to_state(a, QPState.RTS)
    pair.settle()
    send(a)
    pair.settle(span_ns=500 * MILLISECOND)
    assert done(a) == [(1, OK), (3, WCStatus.RNR_RETRY_EXC_ERR)]
    assert a.qp.counters()["rcvd_rnr_err"] == 2


def test_rnr_retries_are_given_back_by_progress() -> None:
    pair, a, b = connected(rnr_retry=1)
    for number in range(3):
        send(a, wr_id=number)
        seen_before = a.qp.counters()["rcvd_rnr_err"]
        pair.settle(lambda before=seen_before: a.qp.counters()["rcvd_rnr_err"] > before)  # type: ignore[misc]
        receive(b)
        pair.settle()
    assert done(a) == [(number, OK) for number in range(3)]
    assert a.qp.counters()["rcvd_rnr_err"] == 3


def test_a_nak_that_the_cable_repeats_spends_one_retry() -> None:
    pair, a, b = connected()
    lose = losing(lambda seen: seen.sender == 0)
    pair.filter = lambda seen: lose(seen) * (1 + (seen.sender == 1))
    write(a, b, 3000)
    pair.settle()
    assert done(a) == [(1, OK)]
    assert a.qp.counters()["completer_retry_err"] == 1


def test_a_nak_that_arrives_late_is_no_news() -> None:
    pair, a, b = connected()
    pair.filter = losing(lambda seen: seen.sender == 0)
    write(a, b, 3000)
    pair.settle()
    (nak,) = [seen.frame for seen in pair.seen if seen.opcode == Opcode.ACKNOWLEDGE and seen.frame[54] == 0x60]
    pair.filter = lambda seen: []
    write(a, b, wr_id=2)
    pair.step()
    pair.seen.clear()
    pair.adapters[0].on_frame(nak, now=pair.now)
    pair.step()
    assert pair.seen == []


def test_an_acknowledgement_of_a_former_life_completes_nothing_that_was_not_sent() -> None:
    pair, a, b = connected()
    for number in range(5):
        write(a, b, wr_id=number)
    pair.settle()
    ghost = [seen.frame for seen in pair.seen if seen.sender == 1][-1]
    done(a)
    reconnected(pair, a, b)
    pair.filter = lambda seen: []
    write(a, b, wr_id=9)
    pair.step()
    pair.adapters[0].on_frame(ghost, now=pair.now)
    assert done(a) == []
    pair.filter = lambda seen: [seen.frame]
    pair.settle()
    assert done(a) == [(9, OK)]


def test_packets_without_an_answer_are_bounded() -> None:
    pair, a, b = connected(path_mtu=MTU.MTU_256)
    pair.filter = lambda seen: []
    for number in range(4):
        write(a, b, 65_536, wr_id=number)
    for _ in range(20):
        pair.step()
    assert len(pair.seen) == PACKETS_IN_FLIGHT_MAX


def test_an_acknowledgement_is_asked_for_within_a_long_message() -> None:
    pair, a, b = connected(path_mtu=MTU.MTU_256)
    write(a, b, 65_536)
    pair.settle()
    asked = [seen.psn for seen in pair.seen if seen.sender == 0 and seen.frame[50] & 0x80]
    assert [(psn - 0xFFFFFE) & 0xFFFFFF for psn in asked] == [63, 127, 191, 255]


# -- what is told, and how often --------------------------------------------------------------------------------------


def test_a_queue_pair_that_is_broken_already_tells_nothing_more() -> None:
    pair, a, b = connected(retry_cnt=0)
    pair.filter = lambda seen: []
    write(a, b)
    pair.settle()
    assert events(pair, 0) == [EventType.QP_FATAL]
    to_state(a, QPState.ERR)
    pair.adapters[0].broken(a.qp.qp_num, now=pair.now)
    pair.settle()
    assert events(pair, 0) == []
    assert done(a) == [(1, WCStatus.RETRY_EXC_ERR)]


def test_spent_retries_are_counted_once_for_each_life() -> None:
    pair, a, b = connected(retry_cnt=0)
    pair.filter = lambda seen: []
    write(a, b)
    pair.settle()
    reconnected(pair, a, b)
    assert a.qp.counters()["retry_exceeded_err"] == 1


def test_communication_is_established_once_in_each_life() -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    for _ in range(2):
        connect_by_hand(pair, (a, b), only_to=(QPState.RTS, QPState.RTR))
        told = []
        for number in range(3):
            write(a, b, wr_id=number)
            pair.settle()
            told += events(pair, 1)
        assert told == [EventType.COMM_EST]
        for party in (a, b):
            to_state(party, QPState.RESET)


def test_asking_for_all_completions_is_not_weakened_by_asking_for_solicited_ones() -> None:
    ring = CompletionRing(memoryview(bytearray(completion_ring_bytes(4))), 4)
    ring.arm()
    ring.arm(solicited_only=True)
    assert ring.take_armed(solicited=False)
    ring.arm(solicited_only=True)
    assert not ring.take_armed(solicited=False)
    assert ring.take_armed(solicited=True)
    assert not ring.take_armed(solicited=True)


def test_an_event_that_waits_is_not_queued_twice() -> None:
    pair, a, b = connected()
    for _ in range(2):
        to_state(a, QPState.SQD, en_sqd_async_notify=1)
        to_state(a, QPState.RTS)
    assert events(pair, 0) == [EventType.SQ_DRAINED]


def test_a_wait_that_is_shorter_than_the_timer_ends_when_it_should() -> None:
    pair, a, b = connected(timeout=22, min_rnr_timer=1)  # 17 s, 10 us
    send(a)
    pair.step()
    pair.step()
    receive(b)
    pair.settle(lambda: bool(pair.adapters[1].counters()["rdma_recvs"]), span_ns=100 * MILLISECOND)
    pair.settle(span_ns=100 * MILLISECOND)
    assert done(a) == [(3, OK)]


# -- frames and entries that nobody well-behaved sends ----------------------------------------------------------------


def forged(
    pair: AdapterPair, a: Party, b: Party, *, source: str = "10.77.0.1", flags: int = 0, p_key: int = 0xFFFF
) -> bytes:
    """A WRITE of eight bytes as `a` would send it next, but for what is said."""
    flow = make_flow(
        source_mac=bytes([2, 0, 0, 0, 0, 0]), target_mac=bytes([2, 0, 0, 0, 0, 1]), source=address_bytes(source),
        target=address_bytes("10.77.0.2"), source_port=0xC000,
    )  # fmt: skip
    psn = b.qp.query().rq_psn
    bth = BTH.pack(Opcode.RDMA_WRITE_ONLY, flags, p_key, b.qp.qp_num, ACK_REQUEST | psn)
    return flow.frame(bth, RETH.pack(b.mr.buf, b.mr.rkey, 8) + b"mischief")


@pytest.mark.parametrize(
    ("how", "counter"),
    [
        ({}, ""),
        ({"p_key": 0x7FFF}, ""),
        ({"flags": 0x40}, ""),  # MigReq is nobody's business
        ({"source": "10.77.0.9"}, "rx_wrong_source"),
        ({"p_key": 0x7FFE}, "rx_bad_header"),
        ({"flags": 0x01}, "rx_bad_header"),
        ({"flags": 0x08}, "rx_bad_header"),
    ],
)
def test_a_frame_counts_only_from_the_peer_and_in_this_transport(how: dict[str, Any], counter: str) -> None:
    pair, a, b = connected()
    pair.adapters[1].on_frame(forged(pair, a, b, **how), now=pair.now)
    assert b.mr.read(8, 0) == (bytes(8) if counter else b"mischief")
    if counter:
        assert pair.adapters[1].counters()[counter] == 1


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_response_without_a_whole_aeth_is_a_bad_one(size: int) -> None:
    pair, a, b = connected()
    flow = make_flow(
        source_mac=bytes([2, 0, 0, 0, 0, 1]), target_mac=bytes([2, 0, 0, 0, 0, 0]), source=address_bytes("10.77.0.2"),
        target=address_bytes("10.77.0.1"), source_port=0xC000, destination_qpn=a.qp.qp_num,
    )  # fmt: skip

    def cut(seen: Seen) -> list[bytes]:
        if seen.opcode != Opcode.RDMA_READ_RESPONSE_ONLY:
            return [seen.frame]
        pad = -size & 3
        kind = Opcode.RDMA_READ_RESPONSE_ONLY << 8 | pad << 4
        return [flow.packet(kind, seen.psn.to_bytes(4, "big") + bytes(size), bytes(pad))]

    pair.filter = cut
    read(a, b, 8)
    pair.settle(span_ns=100 * MILLISECOND)
    assert done(a) == [(2, WCStatus.BAD_RESP_ERR)]


def test_an_entry_of_a_ring_never_reaches_into_the_next() -> None:
    buffer = memoryview(bytearray(b"\xee" * send_ring_bytes(2)))
    buffer.cast("I")[0] = 0
    ring = SendRing(buffer, 2)
    ring.post(0, int(SendFlags.INLINE), 1, [], inline=b"x")
    length_at = HEADER_BYTES + 40
    buffer[length_at : length_at + 4] = (4096).to_bytes(4, "little")
    entry = SendRing(buffer, 2).take()
    assert entry is not None
    assert entry.inline is not None
    assert len(entry.inline) == INLINE_BYTES_MAX
    received = memoryview(bytearray(receive_ring_bytes(2)))
    receives = ReceiveRing(received, 2)
    receives.post(1, [SGE(1, 2, 3)])
    received[HEADER_BYTES + 24 : HEADER_BYTES + 28] = (1_000_000).to_bytes(4, "little")
    taken = ReceiveRing(received, 2).take()
    assert taken is not None
    assert len(taken.sges) == RECEIVE_SGES_MAX


def test_a_message_that_is_longer_than_any_may_be_is_refused_without_being_put_together() -> None:
    regions = RegionTable(random.Random(1))
    vast = Memory(memoryview(mmap.mmap(-1, 1 << 30)), fd=None, mapping=None)
    region = regions.register(vast, pd=1, access=ALL_ACCESS)
    piece = (region.key, region.addr, 1 << 30)

    def request(*further: tuple[int, int, int]) -> SendWqe:
        wqe = SendWqe(1, WROpcode.RDMA_WRITE, 0, 0, 0, 0, *piece)
        wqe.further = further
        return resolve(wqe, regions, 1, 1)

    assert request(piece).status is None
    assert request(piece, (region.key, region.addr, 1)).status is WCStatus.LOC_LEN_ERR


# -- answers that are wrong or stale ----------------------------------------------------------------------------------


def test_a_nak_of_mid_message_that_comes_again_and_again_spends_the_retries() -> None:
    pair, a, b = connected(retry_cnt=3)
    naks: list[bytes] = []

    def repeat_the_nak(seen: Seen) -> list[bytes]:
        if seen.sender == 1:
            naks.append(seen.frame)
        elif seen.psn == 0xFFFFFF:
            return []
        elif seen.psn == 0 and naks:
            pair.adapters[0].on_frame(naks[-1], now=pair.now)
        return [seen.frame]

    pair.filter = repeat_the_nak
    write(a, b, 3000)
    pair.settle(span_ns=50 * MILLISECOND)  # less than the timeout
    assert done(a) == [(1, WCStatus.RETRY_EXC_ERR)]


@pytest.mark.needs_plain
def test_a_response_that_is_too_short_is_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, a, b = connected()
    whole = Responder._read_source

    def cut(self: Responder, data: bytes, start: int) -> Any:
        found = whole(self, data, start)
        return found and (found[0], found[1][:-1])

    monkeypatch.setattr(Responder, "_read_source", cut)
    read(a, b, 8)
    pair.settle()
    assert done(a) == [(2, WCStatus.BAD_RESP_ERR)]


def test_after_the_receivers_wait_the_timer_begins_anew() -> None:
    pair, a, b = connected(timeout=14, min_rnr_timer=24)  # 67 ms, 41 ms
    sent_at: list[int] = []

    def lose_the_second(seen: Seen) -> list[bytes]:
        if seen.opcode == Opcode.SEND_ONLY:
            sent_at.append(pair.now)
            return [] if len(sent_at) == 2 else [seen.frame]
        return [seen.frame]

    pair.filter = lose_the_second
    send(a)
    pair.settle(span_ns=20 * MILLISECOND)
    receive(b)
    pair.settle()
    assert done(a) == [(3, OK)]
    assert sent_at[2] - sent_at[1] >= 67 * MILLISECOND


@pytest.mark.parametrize(("q_key", "sender", "bad"), [(CM_Q_KEY, 1, 0), (CM_Q_KEY ^ 1, 1, 1), (CM_Q_KEY, 2, 1)])
def test_a_datagram_of_management_counts_only_with_its_key_and_from_queue_pair_1(
    q_key: int, sender: int, bad: int
) -> None:
    pair = AdapterPair()
    a = Party(pair.contexts[0])
    a.qp.to_init(QPAttr(qp_access_flags=ALL_ACCESS))
    pair.filter = lambda seen: [] if seen.opcode == Opcode.UD_SEND_ONLY else [seen.frame]
    pair.contexts[0].call({"op": "cm_connect", "qp_num": a.qp.qp_num, "dgid": pair.address(1), "service_id": 77})
    pair.settle(span_ns=10 * MILLISECOND)
    request = next(seen.frame for seen in pair.seen if seen.opcode == Opcode.UD_SEND_ONLY)
    flow = make_flow(
        source_mac=request[6:12], target_mac=request[:6], source=request[26:30], target=request[30:34],
        source_port=0xC001,
    )  # fmt: skip
    mad = request[54 + DETH_BYTES : -4]
    pair.adapters[1].on_frame(flow.frame(request[42:54], DETH.pack(q_key, sender) + mad), now=pair.now)
    assert pair.adapters[1].counters().get("rx_bad_mad", 0) == bad
    assert bool(pair.adapters[1].poll_transmit(now=pair.now)) is not bool(bad)  # a REJ: nobody listens


def test_a_path_mtu_one_step_above_the_ports_is_refused() -> None:
    pair = AdapterPair(mtu=1500)
    a, b = (Party(context) for context in pair.contexts)
    with pytest.raises(RDMAError, match="2048 does not fit the port's 1024"):
        connect_by_hand(pair, (a, b), path_mtu=MTU.MTU_2048)
