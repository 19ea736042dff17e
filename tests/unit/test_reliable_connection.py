"""Stories of two queue pairs on a cable that loses, repeats and damages."""

from __future__ import annotations

import random
import zlib

import pytest

from emul.clock import MILLISECOND
from emul.errors import RDMAError
from emul.vocabulary import (
    GID,
    MTU,
    SGE,
    AccessFlags,
    AHAttr,
    EventType,
    GlobalRoute,
    QPAttr,
    QPState,
    RecvWR,
    SendFlags,
    SendWR,
    WCOpcode,
    WCStatus,
    WROpcode,
)
from emul.wire.headers import Opcode
from tests.helpers.adapters import ALL_ACCESS, AdapterPair, Party, Seen, connect_by_hand

OK = WCStatus.SUCCESS


def connected(**attributes: int) -> tuple[AdapterPair, Party, Party]:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), **attributes)
    pair.settle(span_ns=50 * MILLISECOND)
    pair.seen.clear()
    return pair, a, b


def write(a: Party, b: Party, data: bytes, *, offset: int = 0, wr_id: int = 1) -> None:
    a.mr.write(data, len(data))
    a.qp.post_write(wr_id, a.mr.buf, len(data), a.mr.lkey, b.mr.buf + offset, b.mr.rkey)


def read(a: Party, b: Party, length: int, *, wr_id: int = 2) -> None:
    request = SendWR(wr_id, WROpcode.RDMA_READ, sg=[SGE(a.mr.buf + 30_000, length, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)


def opcodes(pair: AdapterPair, sender: int) -> list[int]:
    return [seen.opcode for seen in pair.seen if seen.sender == sender]


@pytest.mark.parametrize("length", [0, 1, 3, 1024, 1025, 2048, 5000])
def test_a_write_of_any_length_arrives_in_packets_of_the_path_mtu(length: int) -> None:
    pair, a, b = connected()
    data = random.Random(length).randbytes(length)
    write(a, b, data, offset=100)
    pair.settle()
    assert a.statuses() == [OK]
    assert b.mr.read(length, 100) == data
    packets = max(1, -(-length // 1024))
    assert len(opcodes(pair, 0)) == packets
    assert opcodes(pair, 1) == [Opcode.ACKNOWLEDGE]  # one for the message: AckReq stands at its end


def test_a_read_brings_what_the_partner_has_without_its_doing() -> None:
    pair, a, b = connected()
    data = random.Random(5).randbytes(3000)
    b.mr.write(data, 3000)
    read(a, b, 3000)
    pair.settle()
    assert a.statuses() == [OK]
    assert a.mr.read(3000, 30_000) == data
    first, middle, last = (
        Opcode.RDMA_READ_RESPONSE_FIRST,
        Opcode.RDMA_READ_RESPONSE_MIDDLE,
        Opcode.RDMA_READ_RESPONSE_LAST,
    )
    assert opcodes(pair, 1) == [first, middle, last]
    assert b.completions() == []


def test_a_send_takes_the_oldest_receive_and_tells_both_sides() -> None:
    pair, a, b = connected()
    b.qp.post_recv(RecvWR(70, 1, [SGE(b.mr.buf, 4000, b.mr.lkey)]))
    a.mr.write(b"x" * 1500, 1500)
    a.qp.post_send(SendWR(7, WROpcode.SEND, sg=[SGE(a.mr.buf, 1500, a.mr.lkey)]))
    pair.settle()
    (received,) = b.completions()
    assert (received.wr_id, received.opcode, received.byte_len) == (70, WCOpcode.RECV, 1500)
    assert a.statuses() == [OK]
    assert b.mr.read(1500, 0) == b"x" * 1500


def test_immediate_data_arrives_beside_a_write() -> None:
    pair, a, b = connected()
    b.qp.post_recv(RecvWR(71, 1, [SGE(b.mr.buf, 0, b.mr.lkey)]))
    request = SendWR(8, WROpcode.RDMA_WRITE_WITH_IMM, imm_data=0xABCD, sg=[SGE(a.mr.buf, 2000, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf + 8)
    a.qp.post_send(request)
    pair.settle()
    (received,) = b.completions()
    assert (received.opcode, received.imm_data) == (WCOpcode.RECV_RDMA_WITH_IMM, 0xABCD)
    assert received.byte_len == 2000  # as soft-RoCE tells it: what the WRITE brought, not what the receive took


def test_pieces_are_gathered_into_one_message_and_scattered_from_a_read() -> None:
    pair, a, b = connected()
    a.mr.write(b"abc" + b"defgh", 8)
    request = SendWR(1, WROpcode.RDMA_WRITE, sg=[SGE(a.mr.buf + 3, 5, a.mr.lkey), SGE(a.mr.buf, 3, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    back = SendWR(2, WROpcode.RDMA_READ, sg=[SGE(a.mr.buf + 100, 2, a.mr.lkey), SGE(a.mr.buf + 200, 6, a.mr.lkey)])
    back.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(back)
    pair.settle()
    assert a.statuses() == [OK, OK]
    assert (a.mr.read(2, 100), a.mr.read(6, 200)) == (b"de", b"fghabc")


def test_psns_wrap_in_the_middle_of_a_message() -> None:
    pair, a, b = connected()  # the helper begins two packets before the wrap
    data = random.Random(1).randbytes(6000)
    write(a, b, data)
    pair.settle()
    assert [seen.psn for seen in pair.seen if seen.sender == 0] == [0xFFFFFE, 0xFFFFFF, 0, 1, 2, 3]
    assert b.mr.read(6000, 0) == data


def test_a_lost_packet_is_told_once_and_all_from_it_on_is_sent_again() -> None:
    pair, a, b = connected()
    lost: list[int] = []

    def lose_second(seen: Seen) -> list[bytes]:
        if seen.sender == 0 and seen.psn == 0xFFFFFF and not lost:
            lost.append(seen.psn)
            return []
        return [seen.frame]

    pair.filter = lose_second
    data = random.Random(2).randbytes(4096)
    write(a, b, data)
    pair.settle()
    assert a.statuses() == [OK]
    assert b.mr.read(4096, 0) == data
    naks = [seen for seen in pair.seen if seen.sender == 1 and seen.frame[54] == 0x60]
    assert [nak.psn for nak in naks] == [0xFFFFFF]  # one, though two packets came behind the gap
    assert [seen.psn for seen in pair.seen if seen.sender == 0] == [0xFFFFFE, 0xFFFFFF, 0, 1, 0xFFFFFF, 0, 1]


def test_a_lost_acknowledgement_is_answered_again_and_the_write_is_not_done_twice() -> None:
    pair, a, b = connected()
    losses = [1]

    def lose_ack(seen: Seen) -> list[bytes]:
        if seen.opcode == Opcode.ACKNOWLEDGE and losses:
            losses.pop()
            b.mr.write(b"newer", 5)  # whatever is written meanwhile must not be overwritten by the repetition
            return []
        return [seen.frame]

    pair.filter = lose_ack
    write(a, b, b"older")
    pair.settle()
    assert a.statuses() == [OK]
    assert b.mr.read(5, 0) == b"newer"


def test_a_hole_in_a_read_is_asked_for_again_from_there() -> None:
    pair, a, b = connected(timeout=14)
    data = random.Random(3).randbytes(5000)
    b.mr.write(data, 5000)
    losses = [Opcode.RDMA_READ_RESPONSE_MIDDLE]

    def lose_one(seen: Seen) -> list[bytes]:
        if losses and seen.opcode == losses[0]:
            losses.pop()
            return []
        return [seen.frame]

    pair.filter = lose_one
    read(a, b, 5000)
    pair.settle()
    assert a.statuses() == [OK]
    assert a.mr.read(5000, 30_000) == data
    requests = [seen for seen in pair.seen if seen.opcode == Opcode.RDMA_READ_REQUEST]
    assert [request.psn for request in requests] == [0xFFFFFE, 0xFFFFFF]
    length = int.from_bytes(requests[1].frame[66:70], "big")
    assert length == 5000 - 1024


def test_an_acknowledgement_past_a_read_shows_that_its_response_was_lost() -> None:
    pair, a, b = connected()
    losses = [1]

    def lose_response(seen: Seen) -> list[bytes]:
        if losses and seen.opcode == Opcode.RDMA_READ_RESPONSE_ONLY:
            losses.pop()
            return []
        return [seen.frame]

    pair.filter = lose_response
    b.mr.write(b"answer", 6)
    read(a, b, 6)
    a.qp.post_write(3, a.mr.buf, 10, a.mr.lkey, b.mr.buf + 900, b.mr.rkey)
    pair.settle()
    assert [completion.wr_id for completion in a.completions()] == [2, 3]
    assert a.mr.read(6, 30_000) == b"answer"


def test_without_any_answer_the_retries_are_spent_and_the_rest_is_flushed() -> None:
    pair, a, b = connected(retry_cnt=2)
    pair.filter = lambda seen: []
    write(a, b, b"one", wr_id=1)
    write(a, b, b"two", wr_id=2)
    pair.settle()
    assert [(c.wr_id, c.status) for c in a.completions()] == [(1, WCStatus.RETRY_EXC_ERR), (2, WCStatus.WR_FLUSH_ERR)]
    assert [seen.psn for seen in pair.seen] == [0xFFFFFE, 0xFFFFFF] * 3  # retry_cnt 2: three transmissions
    assert a.qp.query().qp_state is QPState.ERR
    assert [event.event_type for event in pair.contexts[0].get_async_events()] == [EventType.QP_FATAL]
    a.qp.post_write(3, a.mr.buf, 1, a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.settle()
    assert a.statuses() == [WCStatus.WR_FLUSH_ERR]


def test_a_sender_waits_for_a_receiver_that_has_posted_nothing() -> None:
    pair, a, b = connected(rnr_retry=7)
    a.qp.post_send(SendWR(7, WROpcode.SEND, sg=[SGE(a.mr.buf, 100, a.mr.lkey)]))
    pair.settle(span_ns=20 * MILLISECOND)
    assert a.completions() == []
    b.qp.post_recv(RecvWR(70, 1, [SGE(b.mr.buf, 100, b.mr.lkey)]))
    pair.settle()
    assert a.statuses() == [OK]
    assert b.statuses() == [OK]


def test_a_bounded_sender_gives_up_on_a_receiver_that_is_dead() -> None:
    pair, a, b = connected(rnr_retry=2)
    a.qp.post_send(SendWR(7, WROpcode.SEND, sg=[SGE(a.mr.buf, 100, a.mr.lkey)]))
    pair.settle()
    assert a.statuses() == [WCStatus.RNR_RETRY_EXC_ERR]
    assert opcodes(pair, 0) == [Opcode.SEND_ONLY] * 3
    assert b.completions() == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"rkey": 1}, WCStatus.REM_ACCESS_ERR),
        ({"addr": -1}, WCStatus.REM_ACCESS_ERR),
        ({"addr": 65536 - 99}, WCStatus.REM_ACCESS_ERR),
    ],
)
def test_what_the_region_does_not_permit_is_refused_and_nothing_is_written(
    change: dict[str, int], status: WCStatus
) -> None:
    pair, a, b = connected()
    before = zlib.crc32(b.mr.memory.buffer)
    a.mr.write(b"z" * 100, 100)
    a.qp.post_write(
        1, a.mr.buf, 100, a.mr.lkey, b.mr.buf + change.get("addr", 0), (b.mr.rkey + change.get("rkey", 0)) % (1 << 32)
    )
    pair.settle()
    assert a.statuses() == [status]
    assert zlib.crc32(b.mr.memory.buffer) == before
    assert b.qp.query().qp_state is QPState.ERR


def test_a_region_that_was_deregistered_is_out_of_reach() -> None:
    pair, a, b = connected()
    b.mr.close()
    write(a, b, b"late")
    pair.settle()
    assert a.statuses() == [WCStatus.REM_ACCESS_ERR]


def test_a_queue_pair_without_remote_write_takes_no_write() -> None:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), qp_access_flags=AccessFlags.REMOTE_READ)
    write(a, b, b"no")
    pair.settle()
    assert a.statuses() == [WCStatus.REM_INV_REQ_ERR]


def test_a_message_longer_than_the_receive_breaks_both_ends() -> None:
    pair, a, b = connected()
    b.qp.post_recv(RecvWR(70, 1, [SGE(b.mr.buf, 99, b.mr.lkey)]))
    a.qp.post_send(SendWR(7, WROpcode.SEND, sg=[SGE(a.mr.buf, 100, a.mr.lkey)]))
    pair.settle()
    assert a.statuses() == [WCStatus.REM_OP_ERR]
    assert b.statuses() == [WCStatus.LOC_LEN_ERR]


def test_a_fence_stops_writes_and_sends_of_older_epochs_but_no_newer_ones() -> None:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), fence_slot=9, fence_epoch=3)
    write(a, b, b"before")
    pair.nodes[1].raise_fence(9, 3)
    pair.settle()
    assert a.statuses() == [OK]  # the fence stands at its own epoch: not above it
    pair.nodes[1].raise_fence(9, 4)
    write(a, b, b"behind")
    pair.settle()
    assert a.statuses() == [WCStatus.REM_ACCESS_ERR]
    assert b.mr.read(6, 0) == b"before"


def test_a_fence_in_the_middle_of_a_message_stops_its_rest() -> None:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), fence_slot=9, fence_epoch=0)
    pair.settle(span_ns=50 * MILLISECOND)

    def raise_after_first(seen: Seen) -> list[bytes]:
        if seen.opcode == Opcode.RDMA_WRITE_MIDDLE:
            pair.nodes[1].raise_fence(9, 1)
        return [seen.frame]

    pair.filter = raise_after_first
    write(a, b, b"y" * 4096)
    pair.settle()
    assert a.statuses() == [WCStatus.REM_ACCESS_ERR]
    assert b.mr.read(4096, 0) == b"y" * 1024 + bytes(3072)


def test_a_bad_local_key_breaks_the_request_when_its_turn_comes_and_not_before() -> None:
    pair, a, b = connected()
    write(a, b, b"fine", wr_id=1)
    a.qp.post_write(2, a.mr.buf, 4, a.mr.lkey ^ 1, b.mr.buf, b.mr.rkey)
    pair.settle()
    assert [(c.wr_id, c.status) for c in a.completions()] == [(1, OK), (2, WCStatus.LOC_PROT_ERR)]


def test_unsignaled_requests_complete_in_silence() -> None:
    pair, a, b = connected()
    a.qp.post_write(1, a.mr.buf, 4, a.mr.lkey, b.mr.buf, b.mr.rkey, signaled=False)
    pair.settle()
    assert len(a.completions()) == 1  # sq_sig_all is on in the helper: everything is signalled


def test_a_full_send_queue_is_told_at_once_and_takes_more_when_completions_came() -> None:
    pair, a, b = connected()
    for number in range(64):
        a.qp.post_write(number, a.mr.buf, 4, a.mr.lkey, b.mr.buf, b.mr.rkey)
    with pytest.raises(RDMAError, match="full"):
        a.qp.post_write(64, a.mr.buf, 4, a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.settle()
    assert len(a.completions()) == 64
    a.qp.post_write(65, a.mr.buf, 4, a.mr.lkey, b.mr.buf, b.mr.rkey)


def test_a_completion_queue_that_the_host_never_reads_is_lost_and_its_queue_pair_with_it() -> None:
    pair, a, b = connected()
    for _ in range(5):
        for number in range(64):
            a.qp.post_write(number, a.mr.buf, 4, a.mr.lkey, b.mr.buf, b.mr.rkey)
        pair.settle(span_ns=10 * MILLISECOND)
    events = {event.event_type for event in pair.contexts[0].get_async_events()}
    assert EventType.CQ_ERR in events
    assert a.qp.query().qp_state is QPState.ERR


# SQE is no starting point: it belongs to unreliable queue pairs.
WAYS = {
    QPState.RESET: [],
    QPState.INIT: [QPState.INIT],
    QPState.RTR: [QPState.INIT, QPState.RTR],
    QPState.RTS: [QPState.INIT, QPState.RTR, QPState.RTS],
    QPState.SQD: [QPState.INIT, QPState.RTR, QPState.RTS, QPState.SQD],
    QPState.ERR: [QPState.ERR],
}


@pytest.mark.parametrize("start", list(WAYS))
@pytest.mark.parametrize("target", list(QPState))
def test_only_the_transitions_of_the_specification_are_made(start: QPState, target: QPState) -> None:
    pair = AdapterPair()
    party = Party(pair.contexts[0])
    route = AHAttr(gr=GlobalRoute(dgid=GID("10.77.0.2")))
    attr = QPAttr(qp_access_flags=ALL_ACCESS, dest_qp_num=5, ah_attr=route)
    for state in WAYS[start]:
        attr.qp_state = state
        party.qp.modify(attr)
    legal = {
        (QPState.RESET, QPState.INIT), (QPState.INIT, QPState.INIT), (QPState.INIT, QPState.RTR),
        (QPState.RTR, QPState.RTS), (QPState.RTS, QPState.RTS),
        (QPState.RTS, QPState.SQD), (QPState.SQD, QPState.SQD), (QPState.SQD, QPState.RTS),
    }  # fmt: skip
    attr.qp_state = target
    if (start, target) in legal or target in (QPState.RESET, QPState.ERR):
        party.qp.modify(attr)
        assert party.qp.query().qp_state is target
    else:
        with pytest.raises(RDMAError, match="cannot go from"):
            party.qp.modify(attr)
        assert party.qp.query().qp_state is start


def test_solicited_and_fence_flags_do_not_disturb() -> None:
    pair, a, b = connected()
    read(a, b, 3000)
    request = SendWR(
        3, WROpcode.RDMA_WRITE, send_flags=SendFlags.SIGNALED | SendFlags.FENCE | SendFlags.SOLICITED,
        sg=[SGE(a.mr.buf, 10, a.mr.lkey)],
    )  # fmt: skip
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    pair.settle()
    sent = opcodes(pair, 0)
    assert sent == [Opcode.RDMA_READ_REQUEST, Opcode.RDMA_WRITE_ONLY]
    answered_at = max(index for index, seen in enumerate(pair.seen) if seen.opcode == Opcode.RDMA_READ_RESPONSE_LAST)
    written_at = next(index for index, seen in enumerate(pair.seen) if seen.opcode == Opcode.RDMA_WRITE_ONLY)
    assert written_at > answered_at  # FENCE: not before the READ has its answer


@pytest.mark.parametrize("seed", range(25))
def test_whatever_the_cable_loses_repeats_and_reorders_every_request_completes_in_order(seed: int) -> None:
    pair, a, b = connected(retry_cnt=7, timeout=10)
    chance = random.Random(seed)
    held: list[bytes] = []

    def disturb(seen: Seen) -> list[bytes]:
        draw = chance.random()
        if draw < 0.05:
            return []
        if draw < 0.10:
            return [seen.frame, seen.frame]
        if draw < 0.13:
            held.append(seen.frame)
            return []
        if draw < 0.16:
            damaged = bytearray(seen.frame)
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            return [bytes(damaged)]
        late = [held.pop()] if held and seen.sender == 0 and chance.random() < 0.3 else []
        return [seen.frame, *late]

    expected = bytearray(20_000)
    pair.filter = disturb
    for number in range(40):
        data = chance.randbytes(chance.randrange(1, 4000))
        offset = chance.randrange(0, 20_000 - len(data))
        expected[offset : offset + len(data)] = data
        start = number % 8 * 4000
        a.mr.write(data, len(data), start)
        a.qp.post_write(number, a.mr.buf + start, len(data), a.mr.lkey, b.mr.buf + offset, b.mr.rkey)
        if number % 8 == 7:
            pair.settle(span_ns=1_000 * MILLISECOND)
    completions = a.completions()
    assert [c.wr_id for c in completions] == list(range(40)), f"seed {seed}: {completions[-1]}"
    assert {c.status for c in completions} == {OK}
    assert b.mr.read(20_000, 0) == bytes(expected), f"seed {seed}"


def test_a_path_mtu_that_the_port_cannot_carry_is_refused() -> None:
    pair = AdapterPair(mtu=1500)
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    with pytest.raises(RDMAError, match="4096 does not fit"):
        connect_by_hand(pair, (a, b), path_mtu=MTU.MTU_4096)


def test_a_message_and_its_buffer_are_posted_without_building_requests() -> None:
    pair, a, b = connected()
    b.qp.post_buffer(7, b.mr.buf + 100, 50, b.mr.lkey)
    a.mr.write(b"straight on", 11)
    a.qp.post_message(3, a.mr.buf, 11, a.mr.lkey)
    pair.settle()
    assert [(c.wr_id, c.opcode, c.status) for c in a.completions()] == [(3, WCOpcode.SEND, OK)]
    assert [(c.wr_id, c.opcode, c.byte_len) for c in b.completions()] == [(7, WCOpcode.RECV, 11)]
    assert b.mr.read(11, 100) == b"straight on"


def test_a_message_before_the_connection_and_a_buffer_too_many_are_refused() -> None:
    pair = AdapterPair()
    a = Party(pair.contexts[0])
    with pytest.raises(RDMAError, match="sends nothing in"):
        a.qp.post_message(1, a.mr.buf, 4, a.mr.lkey)
    for number in range(a.qp.cap.max_recv_wr):
        a.qp.post_buffer(number, a.mr.buf, 4, a.mr.lkey)
    with pytest.raises(RDMAError, match="full"):
        a.qp.post_buffer(99, a.mr.buf, 4, a.mr.lkey)
