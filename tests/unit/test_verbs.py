"""A program for pyverbs on emulated adapters: what it may do, and what it is told when it does it wrong."""

from __future__ import annotations

from dataclasses import replace
from errno import EAGAIN, EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP

import pytest

from emul import enums as e
from emul.errors import DeviceGone, PyverbsError, PyverbsRDMAError, PyverbsUserError, RDMAError
from emul.host_context import STEPS_MAX
from emul.local import LocalDevice
from emul.queues import INLINE_BYTES_MAX
from emul.transitions import FIELDS, check_mask, required
from emul.verbs.addr import GID, AHAttr, GlobalRoute
from emul.verbs.cq import CQ, CompChannel
from emul.verbs.device import Context
from emul.verbs.mr import MR
from emul.verbs.pd import PD
from emul.verbs.qp import QP, QPAttr, QPCap, QPInitAttr
from emul.verbs.srq import SRQ, SrqAttr, SrqInitAttr
from emul.verbs.wr import SGE, RecvWR, SendWR
from emul.vocabulary import MTU, AccessFlags, AsyncEvent, EventType, QPState, QPType, SendFlags, WCStatus, WROpcode
from tests.helpers.adapters import AdapterPair

ACCESS = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_ATOMIC


class Player:
    """One end as the tests of pyverbs make it."""

    def __init__(self, context: Context, *, srq: bool = False, rx: int = 8) -> None:
        self.context = context
        self.pd = PD(context)
        self.mr = MR(self.pd, 8192, ACCESS)
        self.channel = CompChannel(context)
        self.cq = CQ(context, 64, None, self.channel, 0)
        self.srq = SRQ(self.pd, SrqInitAttr(SrqAttr(max_wr=8, max_sge=2))) if srq else None
        cap = QPCap(max_send_wr=4, max_recv_wr=rx, max_send_sge=2, max_inline_data=60)
        self.init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, srq=self.srq, cap=cap, sq_sig_all=1)
        self.qp = QP(self.pd, self.init)

    def attr(self, other: Player, address: str) -> QPAttr:
        """What it takes to connect with the other end."""
        attr = QPAttr(port_num=1, path_mtu=MTU.MTU_1024)
        attr.dest_qp_num = other.qp.qp_num
        attr.qp_access_flags = ACCESS
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 4
        attr.ah_attr = AHAttr(gr=GlobalRoute(dgid=GID(address), sgid_index=1), is_global=1, port_num=1)
        return attr

    def piece(self, length: int, offset: int = 0) -> SGE:
        """A piece of its region."""
        return SGE(self.mr.buf + offset, length, self.mr.lkey)


def players(**options: int) -> tuple[AdapterPair, Player, Player]:
    """Two connected ends."""
    pair = AdapterPair()
    a, b = (Player(context, **options) for context in pair.contexts)  # type: ignore[arg-type]
    a.qp.to_rts(a.attr(b, pair.address(1)))
    b.qp.to_rts(b.attr(a, pair.address(0)))
    return pair, a, b


def refused(code: int, words: str, verb: object, *arguments: object) -> None:
    """The verb raises errno and a sentence."""
    assert callable(verb)
    with pytest.raises(PyverbsRDMAError, match=words) as caught:
        verb(*arguments)
    assert caught.value.error_code == code


# -- a conversation ---------------------------------------------------------------------------------------------------


def test_a_pyverbs_program_sends_and_receives_and_both_are_told_on_their_channels() -> None:
    pair, a, b = players()
    b.qp.post_recv(RecvWR(wr_id=7, num_sge=1, sg=[b.piece(100)]))
    for player in (a, b):
        player.cq.req_notify()
    a.mr.write("hello", 5)
    a.qp.post_send(SendWR(wr_id=1, opcode=e.IBV_WR_SEND_WITH_IMM, num_sge=1, imm_data=9, sg=[a.piece(5)]))
    pair.settle()
    for player in (a, b):
        assert player.channel.get_cq_event(player.cq) is player.cq
        player.cq.ack_events(1)
        refused(EAGAIN, "no completion event", player.channel.get_cq_event, player.cq)
    (count, (wc,)) = b.cq.poll()
    assert (count, wc.wr_id, wc.status, wc.opcode, wc.byte_len) == (1, 7, e.IBV_WC_SUCCESS, e.IBV_WC_RECV, 5)
    assert (wc.imm_data, wc.wc_flags, wc.qp_num, wc.vendor_err) == (9, e.IBV_WC_WITH_IMM, b.qp.qp_num, 0)
    assert b.mr.read(5, 0) == b"hello"
    assert a.cq.poll()[1][0].wr_id == 1


def test_a_chain_is_posted_up_to_the_request_that_fails_and_that_is_told() -> None:
    pair, a, b = players()
    chain: SendWR | None = None
    for wr_id in (5, 4, 3, 2, 1):
        chain = SendWR(wr_id, e.IBV_WR_RDMA_WRITE, 1, 0, [a.piece(8)], next_wr=chain)
        chain.set_wr_rdma(b.mr.rkey, b.mr.buf)
    assert chain is not None
    bad = SendWR()
    refused(ENOMEM, "send queue of QP .* is full", a.qp.post_send, chain, bad)
    assert bad.wr_id == 5  # the queue holds four
    pair.settle()
    assert [wc.wr_id for wc in a.cq.poll(10)[1]] == [1, 2, 3, 4]
    receives = RecvWR(1, 1, [b.piece(8)], next_wr=RecvWR(2, 9, [b.piece(8)]))
    bad_receive = RecvWR()
    refused(EINVAL, "num_sge is 9, 1 pieces", b.qp.post_recv, receives, bad_receive)
    assert bad_receive.wr_id == 2


def test_a_chain_without_an_end_is_refused() -> None:
    pair, a, b = players()
    wr = RecvWR(1, 1, [b.piece(8)])
    wr.next_wr = wr
    refused(ENOMEM, "full", b.qp.post_recv, wr)
    refused(EINVAL, "next_wr must be a RecvWR", a.qp.post_recv, RecvWR(1, 0, [], next_wr="x"))  # type: ignore[arg-type]


def test_inline_data_is_taken_when_it_is_posted_and_needs_no_key() -> None:
    pair, a, b = players()
    a.mr.write(b"first", 5)
    wr = SendWR(1, e.IBV_WR_RDMA_WRITE, 1, 0, [SGE(a.mr.buf, 5, 0)], e.IBV_SEND_SIGNALED | e.IBV_SEND_INLINE)
    wr.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(wr)
    a.mr.write(b"other", 5)
    pair.settle()
    assert b.mr.read(5, 0) == b"first"
    wr.sg = [a.piece(INLINE_BYTES_MAX + 1)]
    refused(EINVAL, "inline, got 81", a.qp.post_send, wr)
    wr.sg = [SGE(12345, 8, 0)]
    refused(EINVAL, "in no open region", a.qp.post_send, wr)


def test_requests_that_make_no_sense_are_refused_before_they_are_posted() -> None:
    _, a, b = players()
    write = SendWR(1, e.IBV_WR_RDMA_WRITE, 1, 0, [a.piece(8)])
    for name, value, words in (
        ("opcode", 77, "no such request"), ("send_flags", 1 << 9, "no such request"), ("remote_addr", -1, "64 bits"),
        ("rkey", 1 << 32, "rkey has 32 bits"), ("imm_data", 1 << 32, "imm_data"), ("wr_id", -1, "wr_id must be"),
        ("sg", [a.piece(8)] * 7, "6 pieces at the most"), ("sg", [SGE(0, 1 << 32, 0)], "no piece of memory"),
    ):  # fmt: skip
        broken = SendWR(1, e.IBV_WR_RDMA_WRITE, 0, 0, [a.piece(8)])
        setattr(broken, name, value)
        refused(EINVAL, words, a.qp.post_send, broken)
    refused(EINVAL, "wr must be a SendWR", a.qp.post_send, "write")
    refused(EINVAL, "pieces at the most", b.qp.post_recv, RecvWR(1, 0, [b.piece(8)] * 8))
    a.qp.post_send(write)  # nothing of all that was left in the queue
    a.qp.post_send(write)


def test_nothing_is_sent_before_rts() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0])
    refused(EINVAL, "sends nothing in RESET", a.qp.post_send, SendWR(1, e.IBV_WR_SEND, 1, 0, [a.piece(8)]))


def test_plain_numbers_do_where_enumerations_are_due() -> None:
    pair = AdapterPair()
    a, b = (Player(context) for context in pair.contexts)
    for player, other, address in ((a, b, pair.address(1)), (b, a, pair.address(0))):
        attr = QPAttr(qp_state=1)  # type: ignore[arg-type]
        attr.path_mtu, attr.qp_access_flags = 3, 7  # type: ignore[assignment]
        attr.dest_qp_num = other.qp.qp_num
        attr.ah_attr = AHAttr(gr=GlobalRoute(dgid=GID(address)), is_global=1)
        player.qp.to_rts(attr)
    b.qp.post_recv(RecvWR(1, 1, [b.piece(8)]))
    a.qp.post_send(SendWR(1, 2, 1, 0, [a.piece(8)], 2))  # type: ignore[arg-type]
    pair.settle()
    assert b.cq.poll()[1][0].status == 0


# -- attributes -------------------------------------------------------------------------------------------------------


def test_to_init_to_rtr_and_to_rts_go_step_by_step_as_in_pyverbs() -> None:
    pair = AdapterPair()
    a, b = (Player(context) for context in pair.contexts)
    attr = a.attr(b, pair.address(1))
    a.qp.to_init(attr)
    assert attr.qp_state == a.qp.qp_state == e.IBV_QPS_INIT
    a.qp.to_rtr(attr)
    a.qp.to_rts(attr)
    got, init = a.qp.query(e.IBV_QP_STATE | e.IBV_QP_CAP)
    assert (got.qp_state, got.dest_qp_num, got.path_mtu) == (e.IBV_QPS_RTS, b.qp.qp_num, e.IBV_MTU_1024)
    assert got.ah_attr.gr is not None
    assert init.cap is not None
    assert init.cap.max_inline_data == INLINE_BYTES_MAX  # more than was asked for, and told
    assert (init.sq_sig_all, init.send_cq, init.recv_cq) == (1, a.cq, a.cq)


def test_a_queue_pair_made_with_attributes_goes_to_init_alone() -> None:
    pair = AdapterPair()
    a, b = (Player(context) for context in pair.contexts)
    qp = QP(a.pd, QPInitAttr(scq=a.cq, rcq=a.cq), a.attr(b, pair.address(1)))
    assert qp.qp_state is QPState.INIT
    assert qp.qp_type is QPType.RC


RC_WAYS = (
    (QPState.RESET, QPState.INIT), (QPState.INIT, QPState.RTR), (QPState.RTR, QPState.RTS),
)  # fmt: skip


@pytest.mark.parametrize(("start", "target"), RC_WAYS)
def test_each_transition_names_the_attribute_that_is_missing(start: QPState, target: QPState) -> None:
    needed = required(start, target)
    check_mask(start, target, needed | e.IBV_QP_STATE)
    for bit in FIELDS:
        if needed & bit:
            refused(EINVAL, f"needs IBV_QP_{bit.name}", check_mask, start, target, int(needed & ~bit))


@pytest.mark.parametrize(("start", "target"), RC_WAYS)
def test_each_transition_refuses_attributes_that_it_does_not_take(start: QPState, target: QPState) -> None:
    for stray in (e.IBV_QP_QKEY, e.IBV_QP_CAP, e.IBV_QP_RATE_LIMIT):
        refused(EINVAL, "does not take", check_mask, start, target, int(required(start, target) | stray))


def test_modify_with_a_mask_changes_what_it_names_and_nothing_else() -> None:
    _, a, _ = players()
    attr = QPAttr(min_rnr_timer=20, timeout=5)
    a.qp.modify(attr, e.IBV_QP_MIN_RNR_TIMER)
    got = a.qp.query()
    assert (got.qp_state, got.min_rnr_timer, got.timeout) == (QPState.RTS, 20, 14)
    refused(EINVAL, "does not take IBV_QP_TIMEOUT", a.qp.modify, attr, e.IBV_QP_TIMEOUT)
    attr.cur_qp_state = QPState.SQD
    refused(EINVAL, "cur_qp_state is SQD", a.qp.modify, attr, e.IBV_QP_CUR_STATE)
    refused(EINVAL, "has no IBV_QP_ALT_PATH", a.qp.modify, attr, e.IBV_QP_ALT_PATH)
    attr.qp_state = QPState.SQD
    a.qp.modify(attr, e.IBV_QP_STATE)
    a.qp.modify(attr, e.IBV_QP_TIMEOUT)  # while it is drained, that may change
    assert a.qp.query().timeout == 5


def test_attributes_out_of_range_leave_the_state_untouched() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0])
    mask = e.IBV_QP_STATE | e.IBV_QP_PKEY_INDEX | e.IBV_QP_PORT | e.IBV_QP_ACCESS_FLAGS
    for name, value, words in (
        ("port_num", 2, "port_num must be 1"), ("pkey_index", 1, "pkey_index must be 0"),
        ("qp_access_flags", 1 << 12, "no such access flags"), ("path_mtu", 9, "path_mtu must be one of"),
        ("timeout", 32, "timeout must be 0 ... 31"), ("rq_psn", "x", "rq_psn must be a number"),
        ("retry_cnt", -1, "retry_cnt must be a number from 0"),
    ):  # fmt: skip
        attr = QPAttr(qp_state=QPState.INIT)
        setattr(attr, name, value)
        refused(EINVAL, words, a.qp.modify, attr, mask)
        assert a.qp.qp_state is QPState.RESET
    refused(EINVAL, "comp_mask must be a number", a.qp.modify, QPAttr(), "all")
    refused(EINVAL, "qp_attr must be a QPAttr", a.qp.modify, 5)


# -- objects ----------------------------------------------------------------------------------------------------------


def test_closing_a_domain_closes_what_is_in_it_and_closing_twice_is_no_error() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0], srq=True)
    a.pd.close()
    assert (a.qp.closed, a.mr.closed, a.cq.closed) == (True, True, False)
    assert a.context.resources() == {"pd": 0, "mr": 0, "cq": 1, "qp": 0, "comp_channel": 1, "srq": 0}
    a.pd.close()
    a.channel.close()
    assert a.cq.closed
    assert not any(a.context.resources().values())


def test_context_managers_close_in_their_order() -> None:
    pair = AdapterPair()
    with PD(pair.contexts[0]) as pd, CQ(pair.contexts[0], 10) as cq, QP(pd, QPInitAttr(scq=cq, rcq=cq)) as qp:
        assert pair.contexts[0].resources()["qp"] == 1
    assert qp.closed
    assert not any(pair.contexts[0].resources().values())


def test_closed_objects_refuse_whatever_they_are_asked() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0], srq=True)
    b = Player(pair.contexts[0])
    srq, send = a.srq, SendWR(1, e.IBV_WR_SEND, 1, 0, [b.piece(8)])
    assert srq is not None
    for player in (a, b):
        player.channel.close()
        player.pd.close()
    for verb, arguments in (
        (b.qp.post_recv, (RecvWR(1, 1, [b.piece(8)]),)), (b.qp.post_send, (send,)), (b.qp.query, ()),
        (b.qp.post_write, (1, 2, 3, 4, 5, 6)), (b.qp.counters, ()), (b.qp.modify, (QPAttr(),)),
        (b.mr.read, (1, 0)), (b.cq.poll, ()), (b.cq.req_notify, ()), (b.cq.ack_events, (0,)), (b.cq.resize, (5,)),
        (b.channel.get_cq_event, ()), (srq.query, ()), (srq.post_recv, (RecvWR(1, 1, [b.piece(8)]),)),
        (MR, (b.pd, 8, 1)), (QP, (b.pd, QPInitAttr(scq=b.cq, rcq=b.cq))),
    ):  # fmt: skip
        refused(EINVAL, "is closed", verb, *arguments)
    a.context.close()
    refused(EINVAL, "is closed", a.context.query_port)
    refused(EINVAL, "is closed", a.context.get_async_event)


def test_objects_of_another_context_are_refused() -> None:
    pair = AdapterPair()
    a, b = (Player(context) for context in pair.contexts)
    refused(EINVAL, "different contexts", QP, a.pd, QPInitAttr(scq=b.cq, rcq=a.cq))
    refused(EINVAL, "another context", CQ, a.context, 8, None, b.channel)
    for maker, arguments, words in (
        (PD, ("x",), "must be a Context"), (MR, (a.cq, 8, 1), "must be a PD"), (CQ, (a.pd, 8), "must be a Context"),
        (QP, (a.pd, QPInitAttr(scq=a.cq)), "rcq must be a CQ"), (QP, (a.pd, 5), "init_attr must be"),
        (QP, (a.pd, QPInitAttr(e.IBV_QPT_UD, scq=a.cq, rcq=a.cq)), "a queue pair is RC"),
        (SRQ, (a.pd, 5), "attr must be"),
        (CQ, (a.context, 8, None, None, 1), "comp_vector"), (CQ, (a.context, "many"), "cqe must be a number"),
        (CQ, (a.context, 0), "cqe must be 1"), (MR, (a.pd, 0, 1), "at least one byte"),
        (MR, (a.pd, 8, 1 << 15), "no such access flags"),
        (MR, (a.pd, 8, e.IBV_ACCESS_REMOTE_WRITE), "need LOCAL_WRITE"),
        (MR, (a.pd, 8, 1, 4096), "in no open region"), (CompChannel, (a.pd,), "must be a Context"),
    ):  # fmt: skip
        with pytest.raises(PyverbsError, match=words):
            maker(*arguments)  # type: ignore[operator]
    cap = QPCap(max_send_sge=50)
    refused(EINVAL, "max_send_sge must be 0", QP, a.pd, QPInitAttr(scq=a.cq, rcq=a.cq, cap=cap))
    cap = QPCap(max_inline_data=5000)
    refused(EINVAL, "max_inline_data must be 0", QP, a.pd, QPInitAttr(scq=a.cq, rcq=a.cq, cap=cap))


def test_a_region_may_be_registered_a_second_time_by_its_address() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0])
    part = MR(a.pd, 100, e.IBV_ACCESS_LOCAL_WRITE, address=a.mr.buf + 50)
    part.write(b"seen in both", 12)
    assert a.mr.read(12, 50) == b"seen in both"
    assert part.rkey != a.mr.rkey
    part.close()
    assert a.mr.read(12, 50) == b"seen in both"
    refused(EINVAL, "not inside a region", a.mr.read, 8192, 1)
    refused(EINVAL, "bytes are to be written, 3 were given", a.mr.write, b"abc", 5)


def test_the_device_and_its_port_tell_what_they_are() -> None:
    pair = AdapterPair()
    context = pair.contexts[0]
    device = context.query_device()
    assert (device.phys_port_cnt, device.max_qp, device.atomic_caps) == (1, 4096, e.IBV_ATOMIC_HCA)
    port = context.query_port(1)
    assert (port.state, port.active_mtu, port.link_layer) == (4, e.IBV_MTU_1024, e.IBV_LINK_LAYER_ETHERNET)
    assert context.query_gid(1, 1).gid == "0000:0000:0000:0000:0000:ffff:0a4d:0001"
    assert context.query_pkey(1, 0) == 0xFFFF
    refused(EINVAL, "has GIDs 0 ... 1", context.query_gid, 1, 2)
    refused(EINVAL, "P_Key 0", context.query_pkey, 1, 1)
    refused(EINVAL, "port 1, not 2", context.query_port, 2)
    refused(EINVAL, "needs a device or a name", Context)
    assert context.num_comp_vectors == 1
    assert (context.async_fd, context.event_fd, CompChannel(context).fileno()) == (-1, -1, -1)


# -- events -----------------------------------------------------------------------------------------------------------


def test_a_solicited_queue_wakes_for_solicited_messages_alone() -> None:
    pair, a, b = players()
    for wr_id in range(3):
        b.qp.post_recv(RecvWR(wr_id, 1, [b.piece(8)]))
    b.cq.req_notify(solicited_only=True)
    a.qp.post_send(SendWR(1, e.IBV_WR_SEND, 1, 0, [a.piece(8)]))
    pair.settle()
    refused(EAGAIN, "no completion event", b.channel.get_cq_event, b.cq)
    a.qp.post_send(SendWR(2, e.IBV_WR_SEND, 1, 0, [a.piece(8)], SendFlags.SIGNALED | SendFlags.SOLICITED))
    pair.settle()
    assert b.channel.get_cq_event() is b.cq


def test_an_event_of_another_queue_stays_for_who_expects_it() -> None:
    pair, a, b = players()
    other = CQ(b.context, 8, "mine", b.channel)
    assert other.cq_context == "mine"
    b.qp.post_recv(RecvWR(1, 1, [b.piece(8)]))
    b.cq.req_notify()
    a.qp.post_send(SendWR(1, e.IBV_WR_SEND, 1, 0, [a.piece(8)]))
    pair.settle()
    refused(EINVAL, "an event of CQ", b.channel.get_cq_event, other)
    assert b.channel.get_cq_event(b.cq) is b.cq
    refused(EBUSY, "1 events that are not acknowledged", b.cq.close)
    refused(EINVAL, "2 events are acknowledged", b.cq.ack_events, 2)
    b.cq.ack_events(1)
    b.cq.close()


def test_events_beyond_what_a_channel_holds_are_told_for_all_its_queues() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0])
    assert pair.adapters[0].host is not None
    channel = pair.adapters[0].host._channels[a.channel.number]
    for _ in range(1500):
        channel.tell(a.cq.number)
    seen = 0
    while True:
        try:
            assert a.channel.get_cq_event(timeout_ms=0) is a.cq
        except RDMAError as error:
            assert error.errno == EAGAIN
            break
        seen += 1
    assert 0 < seen <= 1500


def test_the_port_tells_when_it_goes_and_comes() -> None:
    pair = AdapterPair()
    context = pair.contexts[0]
    for up, expected in ((False, e.IBV_EVENT_PORT_ERR), (True, e.IBV_EVENT_PORT_ACTIVE)):
        pair.adapters[0].on_carrier(up)
        event = context.get_async_event()
        assert (event.event_type, event.element) == (expected, 1)
        event.ack()
        assert context.query_port().state == (e.IBV_PORT_ACTIVE if up else e.IBV_PORT_DOWN)
    refused(EAGAIN, "no asynchronous event", context.get_async_event)
    assert context.port_counters()["link_downed"] == 1


def test_a_queue_pair_is_told_of_its_first_message_and_of_a_bad_one_and_stays_until_that_is_acknowledged() -> None:
    pair = AdapterPair()
    a, b = (Player(context) for context in pair.contexts)
    a.qp.to_rts(a.attr(b, pair.address(1)))
    b.qp.to_rtr(b.attr(a, pair.address(0)))
    wr = SendWR(1, e.IBV_WR_RDMA_WRITE, 1, 0, [a.piece(8)])
    wr.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(wr)
    pair.settle()
    first = b.context.get_async_event()
    assert (first.event_type, first.element) == (e.IBV_EVENT_COMM_EST, b.qp.qp_num)
    wr.set_wr_rdma(b.mr.rkey ^ 1, b.mr.buf)
    a.qp.post_send(wr)
    pair.settle()
    second = b.context.get_async_event()
    assert second.event_type == e.IBV_EVENT_QP_ACCESS_ERR
    refused(EBUSY, "2 events that are not acknowledged", b.qp.close)
    for event in (first, second):
        event.ack()
        event.ack()
    b.qp.close()
    assert [wc.status for wc in a.cq.poll(9)[1]] == [WCStatus.SUCCESS, WCStatus.REM_ACCESS_ERR]


def test_an_overrun_queue_is_told_by_its_own_number_and_its_queue_pair_is_lost() -> None:
    pair, a, b = players()
    small = CQ(a.context, 1)
    qp = QP(a.pd, QPInitAttr(scq=small, rcq=a.cq, cap=QPCap(4, 4)))
    attr = a.attr(b, pair.address(1))
    other = QP(b.pd, QPInitAttr(scq=b.cq, rcq=b.cq))
    back = b.attr(a, pair.address(0))
    attr.dest_qp_num, back.dest_qp_num = other.qp_num, qp.qp_num
    qp.to_rts(attr)
    other.to_rts(back)
    wr = SendWR(1, e.IBV_WR_RDMA_WRITE, 1, 0, [a.piece(8)])
    wr.set_wr_rdma(b.mr.rkey, b.mr.buf)
    qp.post_send(wr)
    qp.post_send(wr)
    pair.settle()
    told = [a.context.get_async_event() for _ in range(2)]
    assert [(each.event_type, each.element) for each in told] == [
        (e.IBV_EVENT_CQ_ERR, small.number),
        (e.IBV_EVENT_QP_FATAL, qp.qp_num),
    ]
    assert qp.qp_state is QPState.ERR


def test_a_drained_send_queue_is_told_when_that_was_asked_for() -> None:
    pair, a, _ = players()
    attr = QPAttr(qp_state=QPState.SQD, en_sqd_async_notify=1)
    a.qp.modify(attr, e.IBV_QP_STATE | e.IBV_QP_EN_SQD_ASYNC_NOTIFY)
    pair.settle()
    event = a.context.get_async_event()
    assert (event.event_type, event.element) == (e.IBV_EVENT_SQ_DRAINED, a.qp.qp_num)
    assert a.qp.query().sq_draining == 0


def test_events_of_what_has_been_closed_and_of_the_firmware_are_passed_over() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0])
    host = pair.adapters[0].host
    assert host is not None
    host.tell(AsyncEvent(EventType.QP_FATAL, a.qp.qp_num))
    a.qp.close()
    assert host.events == []
    host.tell(AsyncEvent(EventType.QP_FATAL, 12345))
    host.tell(AsyncEvent(EventType.PATH_FENCED, 3))
    refused(EAGAIN, "no asynchronous event", a.context.get_async_event)


def test_a_dead_adapter_is_one_event_and_its_objects_close_without_a_word_in_a_with_statement() -> None:
    pair = AdapterPair()
    a = Player(pair.contexts[0])
    device = a.context.device
    assert isinstance(device, LocalDevice)
    with a.pd, a.cq:
        device.dead = True
        assert a.context.get_async_event().event_type is EventType.DEVICE_FATAL
    assert a.qp.closed
    with pytest.raises(DeviceGone):
        a.channel.close()
    assert a.channel.closed


# -- shared receives, resizing ----------------------------------------------------------------------------------------


def test_queue_pairs_share_receives_and_the_limit_is_told_once() -> None:
    pair = AdapterPair()
    a, other = Player(pair.contexts[0]), Player(pair.contexts[0])
    b = Player(pair.contexts[1], srq=True)
    srq = b.srq
    assert srq is not None
    b2 = QP(b.pd, QPInitAttr(scq=b.cq, rcq=b.cq, srq=srq))
    for qp, player, target in ((b.qp, a, a), (b2, other, other)):
        qp.to_rts(b.attr(target, pair.address(0)))
        attr = player.attr(b, pair.address(1))
        attr.dest_qp_num = qp.qp_num
        player.qp.to_rts(attr)
    refused(EINVAL, "takes its buffers from SRQ", b.qp.post_recv, RecvWR(1, 1, [b.piece(8)]))
    srq.post_recv(RecvWR(1, 1, [b.piece(8)], next_wr=RecvWR(2, 2, [b.piece(4), b.piece(4, 100)])))
    srq.modify(SrqAttr(srq_limit=2), e.IBV_SRQ_LIMIT)
    assert srq.query().srq_limit == 2
    refused(EINVAL, "srq_limit must be 0 ... 8", srq.modify, SrqAttr(srq_limit=9), e.IBV_SRQ_LIMIT)
    refused(EOPNOTSUPP, "SRQ_RESIZE", srq.modify, SrqAttr(), e.IBV_SRQ_MAX_WR)
    refused(EINVAL, "no such attributes", srq.modify, SrqAttr(), 64)
    for player in (a, other):
        player.qp.post_send(SendWR(1, e.IBV_WR_SEND, 1, 0, [player.piece(8)]))
        pair.settle()
    assert [(wc.wr_id, wc.qp_num) for wc in b.cq.poll(9)[1]] == [(1, b.qp.qp_num), (2, b2.qp_num)]
    event = b.context.get_async_event()
    assert (event.event_type, event.element) == (e.IBV_EVENT_SRQ_LIMIT_REACHED, srq.get_srq_num())
    event.ack()
    refused(EAGAIN, "no asynchronous event", b.context.get_async_event)
    assert srq.query().srq_limit == 0
    for _ in range(8):
        srq.post_recv(RecvWR(1, 1, [b.piece(8)]))
    refused(ENOMEM, "SRQ .* is full", srq.post_recv, RecvWR(1, 1, [b.piece(8)]))
    b2.modify(QPAttr(qp_state=QPState.ERR), e.IBV_QP_STATE)
    pair.settle()
    last = b.context.get_async_event()
    assert (last.event_type, last.element) == (e.IBV_EVENT_QP_LAST_WQE_REACHED, b2.qp_num)
    assert b.cq.poll()[0] == 0  # the shared buffers are not flushed: they belong to others too
    refused(EINVAL, "max_sge must be", SRQ, b.pd, SrqInitAttr(SrqAttr(max_sge=99)))
    srq.close()
    assert b.qp.closed


def test_a_completion_queue_is_resized_with_what_waits_in_it() -> None:
    pair, a, b = players()
    wr = SendWR(1, e.IBV_WR_RDMA_WRITE, 1, 0, [a.piece(8)])
    wr.set_wr_rdma(b.mr.rkey, b.mr.buf)
    for wr_id in (1, 2, 3):
        wr.wr_id = wr_id
        a.qp.post_send(wr)
    pair.settle()
    refused(EINVAL, "3 completions wait", a.cq.resize, 2)
    a.cq.req_notify()
    a.cq.resize(4)
    assert a.cq.cqe == 4
    wr.wr_id = 4
    a.qp.post_send(wr)
    pair.settle()
    assert a.channel.get_cq_event() is a.cq  # it was still armed
    assert [wc.wr_id for wc in a.cq.poll(2)[1]] == [1, 2]
    assert [wc.wr_id for wc in a.cq.poll(9)[1]] == [3, 4]


def test_errors_are_pyverbs_and_operating_system_errors_at_once() -> None:
    pair = AdapterPair()
    with pytest.raises(OSError, match="no PD 99"):
        pair.contexts[0].call({"op": "dealloc_pd", "pd": 99})
    error = RDMAError(ENOENT, "none")
    assert isinstance(error, PyverbsError)
    assert (error.errno, error.error_code, error.sentence) == (ENOENT, ENOENT, "none")
    assert PyverbsUserError("wrong").errno == EINVAL


def test_enums_have_libibverbs_numbers() -> None:
    known = {
        "IBV_QPT_RC": 2, "IBV_QPS_SQD": 4, "IBV_MTU_4096": 5, "IBV_WR_SEND_WITH_INV": 9, "IBV_WR_FLUSH": 14,
        "IBV_WC_RECV_RDMA_WITH_IMM": 129, "IBV_WC_GENERAL_ERR": 21, "IBV_SEND_INLINE": 8, "IBV_ACCESS_REMOTE_ATOMIC": 8,
        "IBV_EVENT_QP_LAST_WQE_REACHED": 16, "IBV_EVENT_SRQ_LIMIT_REACHED": 15, "IBV_QP_DEST_QPN": 1 << 20,
        "IBV_QP_MAX_DEST_RD_ATOMIC": 1 << 17, "IBV_PORT_ACTIVE": 4, "IBV_NODE_CA": 1, "IBV_TRANSPORT_IB": 0,
        "IBV_SRQ_LIMIT": 2, "IBV_LINK_LAYER_ETHERNET": 2, "IBV_ACCESS_FLUSH_PERSISTENT": 512,
    }  # fmt: skip
    assert {name: int(getattr(e, name)) for name in known} == known
    from emul.verbs import enums

    assert enums.IBV_WC_SUCCESS is WCStatus.SUCCESS
    assert AccessFlags(e.IBV_ACCESS_LOCAL_WRITE) is AccessFlags.LOCAL_WRITE
    assert WROpcode.SEND is e.IBV_WR_SEND


# -- several changes with one message ---------------------------------------------------------------------------------


def steps_to_rts(player: Player, other: Player, address: str) -> list[QPAttr]:
    """INIT, RTR and RTS."""
    attr = player.attr(other, address)
    return [replace(attr, qp_state=state) for state in (QPState.INIT, QPState.RTR, QPState.RTS)]


def test_two_ends_connect_with_one_message_to_each_card_and_talk() -> None:
    pair = AdapterPair()
    a, b = (Player(context) for context in pair.contexts)
    a.qp.modify_in_turn(*steps_to_rts(a, b, pair.address(1)))
    b.qp.modify_in_turn(*steps_to_rts(b, a, pair.address(0)))
    b.qp.post_recv(RecvWR(wr_id=7, num_sge=1, sg=[b.piece(100)]))
    a.qp.post_send(SendWR(wr_id=5, opcode=WROpcode.SEND, num_sge=1, sg=[a.piece(10)]))
    pair.settle()
    assert [player.cq.poll(4)[1][0].status for player in (a, b)] == [WCStatus.SUCCESS] * 2


def test_of_several_changes_those_before_the_refused_one_hold() -> None:
    pair = AdapterPair()
    a, b = (Player(context) for context in pair.contexts)
    init, rtr, rts = steps_to_rts(a, b, pair.address(1))
    refused(EINVAL, "INIT to RTS", a.qp.modify_in_turn, init, rts, rtr)
    assert a.qp.qp_state is QPState.INIT
    a.qp.modify_in_turn(rtr, rts)
    assert a.qp.qp_state is QPState.RTS
    more = [rts] * (STEPS_MAX + 2)
    refused(EINVAL, f"at most {STEPS_MAX} steps", a.qp.modify_in_turn, *more)


def test_a_queue_pair_whose_attributes_are_refused_is_not_made() -> None:
    player = Player(AdapterPair().contexts[0])
    before = player.context.resources()
    refused(EINVAL, "port_num must be 1", QP, player.pd, player.init, QPAttr(port_num=2))
    assert player.context.resources() == before
    assert QP(player.pd, player.init, QPAttr()).qp_state is QPState.INIT
