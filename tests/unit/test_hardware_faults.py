"""Stories of an adapter that fails: each hardware fault between two real adapters, and what undoing it brings back."""

from __future__ import annotations

import struct

import pytest

from emul.clock import MICROSECOND, MILLISECOND, Instant
from emul.cm import CmEvent, CmEventType, CmId
from emul.enums import PortState
from emul.errors import DeviceGone, RDMAError
from emul.fault_kinds import KINDS
from emul.hardware_faults import LOOK_INTERVAL_NS
from emul.verbs import MR, QP, QPInitAttr
from emul.vocabulary import SGE, AccessFlags, EventType, QPAttr, QPCap, QPState, RecvWR, SendWR, WCStatus, WROpcode
from emul.wellknown import PROTOCOL_VERSION, SERVICE_ID, ConnectRequest, VersionRefusal
from emul.wire.headers import Opcode
from emul.wire.mad import Rep, Req, parse_mad
from tests.helpers.adapters import ALL_ACCESS, AdapterPair, Party, connect_by_hand

OK = WCStatus.SUCCESS
A_WHILE = 50 * MILLISECOND


class Story:
    """Two connected parties; faults go into adapter 1 (b's) unless told otherwise."""

    def __init__(self, *, access: AccessFlags = ALL_ACCESS) -> None:
        self.pair = AdapterPair()
        self.a = Party(self.pair.contexts[0], access=access)
        self.b = Party(self.pair.contexts[1], access=access)
        connect_by_hand(self.pair, (self.a, self.b), qp_access_flags=access)
        self.pair.settle(span_ns=A_WHILE)
        self.pair.seen.clear()

    def inject(self, fault: str, where: int = 1, **parameters: object) -> int:
        number = self.pair.adapters[where].inject(fault, parameters, now=self.pair.now)["id"]
        assert isinstance(number, int)
        return number

    def heal(self, where: int = 1, number: int | None = None) -> None:
        self.pair.adapters[where].heal(number, now=self.pair.now)

    def fired(self, fault: str, where: int = 1) -> int:
        counted = self.pair.adapters[where].counters().get(f"fault_{fault}", 0)
        reported = sum(
            int(str(each["fired"])) for each in self.pair.adapters[where].faults.report() if each["fault"] == fault
        )
        assert counted == reported or fault == "stale_rkey"  # which counts when it is undone
        return counted

    def write(self, data: bytes, *, offset: int = 0, wr_id: int = 1) -> None:
        """a writes into b's region."""
        self.a.mr.write(data, len(data))
        self.a.qp.post_write(wr_id, self.a.mr.buf, len(data), self.a.mr.lkey, self.b.mr.buf + offset, self.b.mr.rkey)

    def let_pass(self, span_ns: int) -> None:
        """Time passes, whatever happens."""
        end = self.pair.now + span_ns
        self.pair.settle(span_ns=span_ns)
        self.pair.now = Instant(max(self.pair.now, end))
        for adapter in self.pair.adapters:
            adapter.on_time(now=self.pair.now)

    def state(self, qp: QP) -> QPState:
        """As the card has it."""
        return next(a.queue_pairs()[qp.qp_num] for a in self.pair.adapters if qp.qp_num in a.queue_pairs()).state

    def works(self) -> None:
        """Whatever was: a write now arrives and completes."""
        self.a.completions()
        self.write(b"all is well", offset=5000, wr_id=99)
        self.pair.settle()
        assert [(c.wr_id, c.status) for c in self.a.completions()] == [(99, OK)]
        assert self.b.mr.read(11, 5000) == b"all is well"


def test_each_kind_of_fault_has_its_story_here() -> None:
    told = set(STORIES) | {"atomic_duplicate", "firmware_old", "psn_wrap", "qpn_reuse", "stale_rkey"}
    assert told == set(KINDS)


def test_with_nothing_armed_and_with_what_was_undone_the_frames_are_the_same() -> None:
    frames = []
    for injected in ((), tuple(name for name in KINDS if KINDS[name].lasting)):
        story = Story()
        for name in injected:
            needed = {"delay_ns": 1000} if name in ("slow", "cqe_delay") else {}
            story.inject(name, **needed)
        story.heal()
        story.pair.now = Instant(10 * MILLISECOND)
        assert not story.pair.adapters[1].faults.busy
        story.write(bytes(range(200)) * 10)
        story.pair.settle()
        frames.append([seen.frame for seen in story.pair.seen if seen.opcode >= 0])
    assert frames[0] == frames[1]


def test_a_card_that_hangs_is_silent_and_goes_on_where_it_was() -> None:
    story = Story()
    story.inject("hang")
    story.write(b"nobody is there")
    story.let_pass(A_WHILE)
    assert not [seen for seen in story.pair.seen if seen.sender == 1]
    with pytest.raises(DeviceGone, match="does not answer"):
        story.b.context.query_port(1)
    assert story.fired("hang") > 1  # the moment itself, and each frame that was lost
    story.heal()
    story.pair.settle()
    assert story.a.statuses() == [OK]
    assert story.b.mr.read(15, 0) == b"nobody is there"
    story.works()


def test_a_hang_ends_by_itself_when_its_time_is_over() -> None:
    story = Story()
    story.inject("hang", for_ns=5 * MILLISECOND)
    assert story.pair.adapters[1].next_deadline(now=story.pair.now) == story.pair.now + 5 * MILLISECOND
    story.let_pass(6 * MILLISECOND)
    assert not story.pair.adapters[1].faults.hung
    story.works()


def test_a_slow_card_answers_late_and_in_order() -> None:
    story = Story()
    story.inject("slow", delay_ns=2 * MILLISECOND)
    begun = story.pair.now
    for number in range(3):
        story.write(bytes([number]) * 8, offset=8 * number, wr_id=number)
        story.pair.settle(span_ns=0)
    story.pair.settle(lambda: story.b.mr.read(1, 16) == b"\2")
    assert story.pair.now - begun >= 2 * MILLISECOND
    story.pair.settle()
    assert [c.wr_id for c in story.a.completions()] == [0, 1, 2]
    story.heal()
    story.works()


def test_a_port_that_is_switched_off_tells_its_host_and_comes_back() -> None:
    story = Story()
    story.inject("port_down")
    story.write(b"into the dark")
    story.let_pass(A_WHILE)
    assert [e.event_type for e in story.b.context.get_async_events()] == [EventType.PORT_ERR]
    assert story.b.context.query_port(1).state is PortState.DOWN
    assert story.b.mr.read(4, 0) == bytes(4)
    story.pair.adapters[1].on_carrier(True)  # the cable was never bad
    assert story.b.context.query_port(1).state is PortState.DOWN
    story.heal()
    assert [e.event_type for e in story.b.context.get_async_events()] == [EventType.PORT_ACTIVE]
    story.pair.settle()
    assert story.a.statuses() == [OK]
    story.works()


def test_a_queue_pair_that_fails_inside_the_card_flushes_and_says_so() -> None:
    story = Story()
    story.write(b"on its way")
    story.inject("qp_error", where=0)
    story.pair.settle()
    assert story.a.statuses() == [WCStatus.WR_FLUSH_ERR]
    assert story.state(story.a.qp) is QPState.ERR
    assert EventType.QP_FATAL in [event.event_type for event in story.a.context.get_async_events()]
    assert story.state(story.b.qp) is QPState.RTS  # the peer heard nothing
    assert story.fired("qp_error", where=0) == 1
    reconnect(story)
    story.works()


def reconnect(story: Story) -> None:
    """Both queue pairs from the beginning."""
    for party in (story.a, story.b):
        party.qp.modify(QPAttr(qp_state=QPState.RESET))
        party.completions()
    connect_by_hand(story.pair, (story.a, story.b))


def test_the_queue_pair_may_be_named_by_its_number() -> None:
    story = Story()
    other = Party(story.pair.contexts[1])
    connect_by_hand(story.pair, (Party(story.pair.contexts[0]), other))
    story.inject("qp_error", qp=other.qp.qp_num)
    assert story.state(other.qp) is QPState.ERR
    assert story.state(story.b.qp) is QPState.RTS


def test_retries_are_exhausted_as_if_the_peer_were_silent() -> None:
    story = Story()
    story.inject("retry_exhausted", where=0, nth=2)
    for number in range(4):
        story.write(b"%d" % number, offset=number, wr_id=number)
        story.pair.settle()
    assert [(c.wr_id, c.status) for c in story.a.completions()] == [
        (0, OK), (1, WCStatus.RETRY_EXC_ERR), (2, WCStatus.WR_FLUSH_ERR), (3, WCStatus.WR_FLUSH_ERR)
    ]  # fmt: skip
    assert story.b.mr.read(4, 0) == b"01\0\0"  # it was done; only its answer was not seen
    assert story.state(story.b.qp) is QPState.RTS
    assert story.fired("retry_exhausted", where=0) == 1
    reconnect(story)
    story.works()


def test_a_completion_queue_that_overruns_takes_its_queue_pairs_along() -> None:
    story = Story()
    cap = QPCap(max_send_wr=4, max_recv_wr=4)
    second = QP(story.b.pd, QPInitAttr(cap=cap, scq=story.b.cq, rcq=story.b.cq))
    story.inject("cq_overrun")
    story.pair.settle()
    assert EventType.CQ_ERR in [event.event_type for event in story.b.context.get_async_events()]
    assert story.state(story.b.qp) is QPState.ERR
    assert story.state(second) is QPState.ERR
    third = QP(story.b.pd, QPInitAttr(cap=cap, scq=story.b.cq, rcq=story.b.cq))
    third.modify(QPAttr(qp_state=QPState.INIT))
    third.post_recv(RecvWR(7, 0, []))
    third.modify(QPAttr(qp_state=QPState.ERR))
    story.pair.settle()
    assert story.b.statuses() == []  # a queue that is lost stays lost
    fresh = Party(story.pair.contexts[1])
    other = Party(story.pair.contexts[0])
    connect_by_hand(story.pair, (other, fresh))
    story.a, story.b = other, fresh
    story.works()


def test_completions_are_held_back_in_their_order() -> None:
    story = Story()
    story.inject("cqe_delay", where=0, delay_ns=3 * MILLISECOND, nth=2, count=1)
    begun = story.pair.now
    for number in range(3):
        story.write(b"x", wr_id=number)
    story.pair.settle(span_ns=MILLISECOND)
    assert [c.wr_id for c in story.a.completions()] == [0]  # 2 waits behind 1
    story.pair.settle()
    assert [c.wr_id for c in story.a.completions()] == [1, 2]
    assert story.pair.now - begun >= 3 * MILLISECOND
    assert story.fired("cqe_delay", where=0) == 1
    story.works()


def test_undoing_a_delay_lets_everything_out_at_once() -> None:
    story = Story()
    story.inject("cqe_delay", where=0, delay_ns=3600 * 1000 * MILLISECOND)
    for number in range(3):
        story.write(b"x", wr_id=number)
    story.pair.settle(span_ns=MILLISECOND)
    assert story.a.completions() == []
    story.heal(where=0)
    assert [c.wr_id for c in story.a.completions()] == [0, 1, 2]
    story.works()


def test_a_completion_is_overtaken_by_that_of_another_queue_pair_or_of_its_own() -> None:
    story = Story()
    second, peer = Party(story.pair.contexts[0]), Party(story.pair.contexts[1])
    second.qp.close()
    cap = QPCap(max_send_wr=8, max_recv_wr=8)
    second.qp = QP(second.pd, QPInitAttr(cap=cap, scq=story.a.cq, rcq=story.a.cq))
    connect_by_hand(story.pair, (second, peer))
    story.inject("cqe_reorder", where=0)
    story.write(b"x", wr_id=1)
    story.write(b"x", wr_id=2)
    story.pair.step()
    story.pair.step()
    second.qp.post_write(3, second.mr.buf, 1, second.mr.lkey, peer.mr.buf, peer.mr.rkey)
    story.pair.settle()
    assert [c.wr_id for c in story.a.completions()] == [3, 1, 2]  # a queue pair's own order is kept
    story.inject("cqe_reorder", where=0, scope="within")
    for number in range(4, 8):
        story.write(b"x", wr_id=number)
    story.pair.settle()
    assert [c.wr_id for c in story.a.completions()] == [5, 4, 6, 7]
    assert story.fired("cqe_reorder", where=0) == 2
    story.works()


def test_within_one_queue_pair_others_pass_by_in_their_order() -> None:
    story = Story()
    second, peer = Party(story.pair.contexts[0]), Party(story.pair.contexts[1])
    second.qp.close()
    cap = QPCap(max_send_wr=8, max_recv_wr=8)
    second.qp = QP(second.pd, QPInitAttr(cap=cap, scq=story.a.cq, rcq=story.a.cq))
    connect_by_hand(story.pair, (second, peer))
    story.inject("cqe_reorder", where=0, scope="within", delay_ns=3600 * 1000 * MILLISECOND)
    story.write(b"x", wr_id=1)
    story.pair.settle(span_ns=MILLISECOND)
    second.qp.post_write(3, second.mr.buf, 1, second.mr.lkey, peer.mr.buf, peer.mr.rkey)
    story.pair.settle(span_ns=MILLISECOND)
    assert [c.wr_id for c in story.a.completions()] == [3]
    story.write(b"x", wr_id=2)
    story.pair.settle(span_ns=MILLISECOND)
    assert [c.wr_id for c in story.a.completions()] == [2, 1]
    assert story.fired("cqe_reorder", where=0) == 1


@pytest.mark.parametrize("fault", ["cqe_delay", "cqe_reorder"])
def test_completions_of_a_queue_pair_that_is_gone_do_not_come_late(fault: str) -> None:
    story = Story()
    story.inject(fault, where=0, delay_ns=3600 * 1000 * MILLISECOND)
    story.write(b"x", wr_id=1)
    story.pair.settle(span_ns=MILLISECOND)
    story.a.qp.close()
    story.heal(where=0)
    story.pair.settle(span_ns=MILLISECOND)
    assert story.a.completions() == []


def test_a_completion_that_nothing_overtakes_comes_all_the_same() -> None:
    story = Story()
    story.inject("cqe_reorder", where=0, delay_ns=2 * MILLISECOND)
    story.write(b"x", wr_id=1)
    story.pair.settle()
    assert [c.wr_id for c in story.a.completions()] == [1]
    assert story.fired("cqe_reorder", where=0) == 0


def test_a_lost_completion_never_comes_and_its_work_is_done() -> None:
    story = Story()
    story.inject("cqe_lost", where=0, nth=2, side="send")
    for number in range(4):
        story.write(b"%d" % number, offset=number, wr_id=number)
        story.pair.settle()
    story.let_pass(A_WHILE)
    assert [c.wr_id for c in story.a.completions()] == [0, 2, 3]
    assert story.b.mr.read(4, 0) == b"0123"
    assert story.fired("cqe_lost", where=0) == 1
    story.heal(where=0)
    story.works()


def test_a_lost_doorbell_is_a_delay_and_no_more() -> None:
    story = Story()
    story.inject("doorbell_lost", where=0)
    begun = story.pair.now
    story.write(b"hello?")
    story.pair.settle(lambda: story.b.mr.read(6, 0) == b"hello?")
    assert story.pair.now - begun >= LOOK_INTERVAL_NS
    assert story.fired("doorbell_lost", where=0) == 1
    assert story.pair.adapters[0].counters()["fault_doorbells_found"] == 1
    story.pair.settle()
    story.works()


def test_undoing_a_lost_doorbell_finds_the_work_at_once() -> None:
    story = Story()
    story.inject("doorbell_lost", where=0)
    story.write(b"hello?")
    story.pair.settle(span_ns=MILLISECOND)
    begun = story.pair.now
    story.heal(where=0)
    story.pair.settle(lambda: story.b.mr.read(6, 0) == b"hello?")
    assert story.pair.now - begun < LOOK_INTERVAL_NS // 2


def test_work_whose_doorbell_was_lost_goes_with_the_next_one() -> None:
    story = Story()
    story.inject("doorbell_lost", where=0)
    story.write(b"one")
    story.pair.settle(span_ns=MILLISECOND)
    story.write(b"two", offset=3, wr_id=2)
    begun = story.pair.now
    story.pair.settle(lambda: story.b.mr.read(6, 0) == b"twotwo" or story.b.mr.read(6, 0)[3:] == b"two")
    assert story.pair.now - begun < LOOK_INTERVAL_NS
    story.pair.settle()
    assert [c.wr_id for c in story.a.completions()] == [1, 2]


def test_requests_wait_while_the_card_does_not_get_at_memory() -> None:
    story = Story()
    story.inject("dma_stall")
    for number in range(3):
        story.write(b"%d" % number, offset=number, wr_id=number)
        story.pair.settle(span_ns=0)
    story.let_pass(MILLISECOND)
    assert story.b.mr.read(3, 0) == bytes(3)
    assert [seen for seen in story.pair.seen if seen.sender == 1] == []
    story.heal()
    assert len(story.b.mr.read(3, 0).strip(b"\0")) == 3
    story.pair.settle()
    assert [(c.wr_id, c.status) for c in story.a.completions()] == [(0, OK), (1, OK), (2, OK)]
    story.works()


def test_a_stall_may_be_a_delay_of_each_request() -> None:
    story = Story()
    story.inject("dma_stall", delay_ns=200 * MICROSECOND)
    begun = story.pair.now
    story.write(b"x")
    story.pair.settle()
    assert story.a.statuses() == [OK]
    assert story.pair.now - begun >= 200 * MICROSECOND


def test_of_two_stalls_the_one_without_an_end_lets_go_when_it_is_undone() -> None:
    story = Story()
    endless = story.inject("dma_stall")
    story.write(b"x")
    story.pair.settle(span_ns=MILLISECOND)
    story.inject("dma_stall", delay_ns=100 * MICROSECOND)
    story.heal(number=endless)
    story.pair.settle()
    assert story.a.statuses() == [OK]


def test_bits_flip_between_card_and_memory_and_no_icrc_tells() -> None:
    story = Story()
    story.inject("dma_corrupt", nth=2, bits=3)
    data = bytes(3000)  # three packets
    story.write(data)
    story.pair.settle()
    assert story.a.statuses() == [OK]
    stored = story.b.mr.read(3000, 0)
    wrong = [position for position in range(3000) if stored[position]]
    assert sum(stored[position].bit_count() for position in wrong) == 3
    assert all(1024 <= position < 2048 for position in wrong)
    assert story.pair.adapters[1].counters().get("rx_icrc_error", 0) == 0
    assert story.fired("dma_corrupt") == 1
    story.heal()
    story.works()


def test_a_repeated_packet_is_not_counted_as_nothing_of_it_is_stored() -> None:
    story = Story()
    story.inject("dma_corrupt", nth=2)
    story.pair.filter = lambda seen: [seen.frame, seen.frame] if seen.sender == 0 else [seen.frame]
    story.write(b"first", wr_id=1)
    story.pair.settle()
    assert (story.b.mr.read(5, 0), story.fired("dma_corrupt")) == (b"first", 0)
    story.write(b"other", offset=100, wr_id=2)
    story.pair.settle()
    assert story.b.mr.read(5, 100) != b"other"
    assert story.fired("dma_corrupt") == 1


def test_a_region_loses_its_key_in_the_middle_of_a_message() -> None:
    story = Story()
    story.inject("mr_deregister_in_flight")
    story.write(b"\1" * 3000)
    story.pair.settle()
    assert story.a.statuses() == [WCStatus.REM_ACCESS_ERR]
    assert story.b.mr.read(3000, 0) == b"\1" * 1024 + bytes(1976)
    assert story.fired("mr_deregister_in_flight") == 1
    story.b.mr = story.b.another_region(65536)
    reconnect(story)
    story.works()


def read_message(story: Story, length: int) -> None:
    request = SendWR(5, WROpcode.RDMA_READ, sg=[SGE(story.a.mr.buf, length, story.a.mr.lkey)])
    request.set_wr_rdma(story.b.mr.rkey, story.b.mr.buf)
    story.a.qp.post_send(request)


def test_a_read_under_way_meets_a_key_that_dies() -> None:
    story = Story()
    story.inject("mr_deregister_in_flight")
    read_message(story, 3000)
    story.pair.settle()
    assert story.a.statuses() == [WCStatus.REM_ACCESS_ERR]


@pytest.mark.parametrize("armed", [True, False])
def test_a_stale_key_still_opens_the_memory_while_the_fault_lasts(armed: bool) -> None:
    story = Story()
    if armed:
        story.inject("stale_rkey")
    region: MR = story.b.mr
    buffer = story.pair.adapters[1].regions.get(region.rkey)
    assert buffer is not None
    target, rkey = region.buf, region.rkey
    region.close()
    story.a.mr.write(b"late", 4)
    story.a.qp.post_write(1, story.a.mr.buf, 4, story.a.mr.lkey, target, rkey)
    story.pair.settle()
    assert story.a.statuses() == [OK if armed else WCStatus.REM_ACCESS_ERR]
    if not armed:
        return
    assert bytes(buffer.buffer[:4]) == b"late"  # what the host thinks is its own again
    story.heal()
    assert story.fired("stale_rkey") == 1
    story.a.qp.post_write(2, story.a.mr.buf, 4, story.a.mr.lkey, target, rkey)
    story.pair.settle()
    assert story.a.statuses() == [WCStatus.REM_ACCESS_ERR]


@pytest.mark.parametrize("armed", [True, False])
def test_the_number_of_a_destroyed_queue_pair_is_given_again_only_by_a_fault(armed: bool) -> None:
    story = Story()
    if armed:
        story.inject("qpn_reuse")
    number = story.b.qp.qp_num
    story.b.qp.close()
    cap = QPCap(max_send_wr=4, max_recv_wr=4)
    numbers = [QP(story.b.pd, QPInitAttr(cap=cap, scq=story.b.cq, rcq=story.b.cq)).qp_num for _ in range(2)]
    assert (numbers[0] == number) is armed
    assert numbers[1] != number
    assert story.fired("qpn_reuse") == int(armed)


@pytest.mark.parametrize("armed", [True, False])
def test_an_atomic_is_carried_out_twice_by_a_fault(armed: bool) -> None:
    story = Story(access=ALL_ACCESS | AccessFlags.REMOTE_ATOMIC)
    if armed:
        story.inject("atomic_duplicate")
    story.b.mr.write(struct.pack("=Q", 10), 8)
    request = SendWR(1, WROpcode.ATOMIC_FETCH_AND_ADD, sg=[SGE(story.a.mr.buf, 8, story.a.mr.lkey)])
    request.set_wr_atomic(story.b.mr.rkey, story.b.mr.buf, 5, 0)
    story.a.qp.post_send(request)
    story.pair.settle()
    assert story.a.statuses() == [OK]
    assert struct.unpack("=Q", story.a.mr.read(8, 0)) == (10,)
    assert struct.unpack("=Q", story.b.mr.read(8, 0)) == (20 if armed else 15,)
    story.a.qp.post_send(request)
    story.pair.settle()
    assert struct.unpack("=Q", story.b.mr.read(8, 0)) == (25 if armed else 20,)  # once only
    assert story.fired("atomic_duplicate") == int(armed)


def call_firmware(story: Story) -> tuple[QP, list[CmEvent]]:
    """a connects to the firmware of adapter 1; gives the queue pair and what a was told."""
    cap = QPCap(max_send_wr=4, max_recv_wr=4)
    qp = QP(story.a.pd, QPInitAttr(cap=cap, scq=story.a.cq, rcq=story.a.cq))
    qp.modify(QPAttr(qp_state=QPState.INIT))
    connection = CmId(qp)
    request = ConnectRequest(1, 0, 1, bytes(16))
    connection.connect(story.pair.address(1), SERVICE_ID, request.emit(), QPAttr(timeout=12, retry_cnt=3))
    told: list[CmEvent] = []

    def answered() -> bool:
        told.extend(story.a.context.get_cm_events())
        return bool(told)

    story.pair.settle(answered)
    return qp, told


@pytest.mark.parametrize("where", [0, 1])
def test_a_connection_begins_at_the_end_of_the_psn_range(where: int) -> None:
    story = Story()
    story.inject("psn_wrap", where=where, first=0xFFFFFE)
    call_firmware(story)
    messages = [parse_mad(seen.frame[62:-4]) for seen in story.pair.seen if seen.opcode == Opcode.UD_SEND_ONLY]
    found = [parsed[1] for parsed in messages if parsed is not None]
    begun = {type(message): message.starting_psn for message in found if isinstance(message, Req | Rep)}
    assert begun[Rep if where else Req] == 0xFFFFFE
    assert begun[Req if where else Rep] != 0xFFFFFE
    assert story.fired("psn_wrap", where=where) == 1
    story.heal(where=where)


def test_old_firmware_refuses_with_its_version() -> None:
    story = Story()
    story.inject("firmware_old")
    _, [told] = call_firmware(story)
    refusal = VersionRefusal.parse(told.private_data)
    assert refusal == VersionRefusal(PROTOCOL_VERSION - 1)
    assert story.fired("firmware_old") == 1
    story.works()  # what is connected stays
    story.heal()
    _, [told] = call_firmware(story)
    assert told.kind is CmEventType.REPLY


STORIES = (
    "hang", "slow", "port_down", "qp_error", "retry_exhausted", "cq_overrun", "cqe_delay", "cqe_reorder", "cqe_lost",
    "doorbell_lost", "dma_stall", "dma_corrupt", "mr_deregister_in_flight",
)  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "parameters", "message"),
    [
        ("cqe_dealy", {}, "no hardware fault 'cqe_dealy' .did you mean 'cqe_delay'"),
        ("cqe_delay", {}, "'delay_ns' is missing"),
        ("cqe_delay", {"dealy_ns": 5}, "no parameter 'dealy_ns' .did you mean 'delay_ns'"),
        ("cqe_delay", {"delay_ns": -1}, "expected 1 ... 3600000000000 ns, found -1"),
        ("cqe_delay", {"delay_ns": True}, "found True"),
        ("cqe_lost", {"qp": "clients"}, "expected all, client, path, firmware or a queue pair's number"),
        ("cqe_lost", {"probability": 0}, "above 0, at most 1"),
        ("cqe_reorder", {"scope": "between"}, "one of across, within"),
        ("qp_error", {"for_ns": 5}, "no parameter 'for_ns'; it takes qp, count"),
        ("hang", {"delay_ns": 5}, "no parameter 'delay_ns'; it takes for_ns"),
    ],
)
def test_a_wrong_request_is_refused_and_changes_nothing(
    fault: str, parameters: dict[str, object], message: str
) -> None:
    story = Story()
    with pytest.raises(RDMAError, match=message):
        story.inject(fault, **parameters)
    assert story.pair.adapters[1].faults.report() == []
    story.works()


def test_a_fault_that_never_was_cannot_be_undone() -> None:
    story = Story()
    with pytest.raises(RDMAError, match="no fault 7"):
        story.heal(number=7)


def test_chances_are_drawn_from_the_seed() -> None:
    lost = []
    for seed in (1, 1, 2):
        story = Story()
        story.pair.adapters[0].inject(
            "cqe_lost", {"probability": 0.5, "count": 1000}, now=story.pair.now, seed=seed
        )
        for number in range(32):
            story.write(b"x", wr_id=number)
            story.pair.settle()
        lost.append([c.wr_id for c in story.a.completions()])
    assert lost[0] == lost[1]
    assert lost[0] != lost[2]
    assert 4 < len(lost[0]) < 28


def test_what_was_injected_and_undone_is_noted_for_the_log() -> None:
    story = Story()
    number = story.inject("cqe_lost", where=0, count=2)
    story.write(b"x")
    story.pair.settle()
    story.heal(where=0)
    notes = [(note["event"], note["id"], note["fired"]) for note in story.pair.adapters[0].faults.notes]
    assert notes == [("fault.injected", number, 0), ("fault.healed", number, 1)]
