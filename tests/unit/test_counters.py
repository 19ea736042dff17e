"""Counters under the names that engineers know, after traffic that each of them counts."""

from __future__ import annotations

from emul.counters import MLX5, RXE
from emul.verbs.wr import SGE, RecvWR, SendWR
from emul.vocabulary import WROpcode
from tests.helpers.adapters import AdapterPair, Party, Seen, connect_by_hand


def test_all_names_are_there_from_the_start() -> None:
    pair = AdapterPair()
    counted = pair.contexts[0].counters()
    assert set(RXE) | set(MLX5) <= set(counted)
    assert not any(counted[name] for name in (*RXE, *MLX5))


def test_a_lost_frame_shows_at_both_ends_under_their_names() -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    connect_by_hand(pair, (a, b))
    dropped: list[Seen] = []

    def drop_second(seen: Seen) -> list[bytes]:
        if seen.opcode == 0x07 and not dropped:  # RDMA_WRITE_MIDDLE
            dropped.append(seen)
            return []
        return [seen.frame]

    pair.filter = drop_second
    request = SendWR(1, WROpcode.RDMA_WRITE, 1, 0, [SGE(a.mr.buf, 5000, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    pair.settle()
    assert dropped
    here, there = pair.contexts[0].counters(), pair.contexts[1].counters()
    assert (here["rcvd_seq_err"], here["packet_seq_err"]) == (1, 1)
    assert there["out_of_sequence"] == there["out_of_seq_request"] == 3  # each packet after the gap
    assert there["rx_write_requests"] == 1


def test_a_receiver_that_is_not_ready_shows_at_both_ends() -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    connect_by_hand(pair, (a, b), min_rnr_timer=1)
    a.qp.post_send(SendWR(1, WROpcode.SEND, 1, 0, [SGE(a.mr.buf, 8, a.mr.lkey)]))
    pair.settle(lambda: pair.contexts[0].counters()["rcvd_rnr_err"] > 0)
    b.qp.post_recv(RecvWR(1, 1, [SGE(b.mr.buf, 8, b.mr.lkey)]))
    pair.settle()
    here, there = pair.contexts[0].counters(), pair.contexts[1].counters()
    assert here["rnr_nak_retry_err"] == here["rcvd_rnr_err"] >= 1
    assert there["out_of_buffer"] == there["send_rnr_err"] >= 1


def test_the_port_counts_packets_and_words_of_four_octets() -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    connect_by_hand(pair, (a, b))
    request = SendWR(1, WROpcode.RDMA_WRITE, 1, 0, [SGE(a.mr.buf, 4000, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request)
    pair.settle()
    sent = [seen.frame for seen in pair.seen if seen.sender == 0]
    here, there = pair.contexts[0].port_counters(), pair.contexts[1].port_counters()
    assert here["port_xmit_packets"] == there["port_rcv_packets"] == len(sent)
    assert here["port_xmit_data"] == there["port_rcv_data"] == sum(map(len, sent)) // 4
    pair.adapters[1].on_frame(b"short", now=pair.now)
    assert pair.contexts[1].port_counters()["port_rcv_errors"] == 1


def test_completions_and_refusals_are_counted_at_the_side_that_saw_them() -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    connect_by_hand(pair, (a, b))
    b.qp.post_recv(RecvWR(1, 1, [SGE(b.mr.buf, 8, b.mr.lkey)]))
    a.qp.post_send(SendWR(1, WROpcode.SEND, 1, 0, [SGE(a.mr.buf, 8, a.mr.lkey)]))
    pair.settle()
    request = SendWR(2, WROpcode.RDMA_WRITE, 1, 0, [SGE(a.mr.buf, 8, a.mr.lkey)])
    request.set_wr_rdma(b.mr.rkey ^ 1, b.mr.buf)
    a.qp.post_send(request)
    a.qp.post_send(request)
    pair.settle()
    here, there = pair.contexts[0].counters(), pair.contexts[1].counters()
    assert (here["rdma_sends"], there["rdma_recvs"]) == (1, 1)
    assert (here["req_remote_access_errors"], here["req_cqe_flush_error"], here["req_cqe_error"]) == (1, 1, 2)
    assert (there["resp_remote_access_errors"], there["resp_cqe_error"]) == (1, 0)
    b.cq.close()
    assert pair.contexts[1].counters()["rdma_recvs"] == 1  # what was counted stays
