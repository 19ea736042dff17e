"""Stories of two hosts that connect to each other with `emul.cm`: the good ends, and the bad ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from errno import EADDRINUSE, EAGAIN, EBUSY, EINVAL, ENOENT, ENOTCONN

import pytest

from emul.clock import MILLISECOND, SECOND
from emul.cm import (
    CMID,
    RAI_PASSIVE,
    RDMA_PS_IB,
    RDMA_PS_TCP,
    AddrInfo,
    CMEvent,
    CMEventChannel,
    CmEventType,
    ConnParam,
    RejectReason,
)
from emul.errors import RDMAError
from emul.port_facts import eui64
from emul.verbs import CQ, MR, PD, QP, QPInitAttr
from emul.vocabulary import SGE, AsyncEvent, EventType, QPAttr, QPCap, QPState, RecvWR, SendWR, WCStatus, WROpcode
from emul.wire.headers import Opcode
from emul.wire.mad import Attribute, Rep, Req, parse_mad
from tests.helpers.adapters import ALL_ACCESS, AdapterPair, Seen

PORT = 7471
MAD_ATTRIBUTE = 42 + 12 + 8 + 16
E = CmEventType


class End:
    """A host's program: a channel, what its queue pairs are made from, a buffer."""

    def __init__(self, pair: AdapterPair, index: int) -> None:
        self.pair = pair
        self.context = pair.contexts[index]
        self.peer = pair.address(1 - index)
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 64)
        self.mr = MR(self.pd, 4096, ALL_ACCESS)
        self.channel = CMEventChannel(self.context)
        self.init_attr = QPInitAttr(cap=QPCap(max_send_wr=8, max_recv_wr=8), scq=self.cq, rcq=self.cq)

    def listener(self, backlog: int = 0, *, service: int | str = PORT, space: int = RDMA_PS_TCP) -> CMID:
        where = AddrInfo(service=service, port_space=space, flags=RAI_PASSIVE)
        cmid = CMID(where, self.init_attr, self.pd, event_channel=self.channel)
        cmid.listen(backlog)
        return cmid

    def caller(self, *, service: int | str = PORT, space: int = RDMA_PS_TCP) -> CMID:
        where = AddrInfo(dst=self.peer, service=service, port_space=space)
        return CMID(where, self.init_attr, self.pd, event_channel=self.channel)

    def next(self) -> CMEvent:
        """The next event, whenever it comes."""
        return CMEvent(self.channel)

    def kinds(self, span_ns: int = 20 * MILLISECOND) -> list[CmEventType]:
        """All events of the next so many ns."""
        self.pair.settle(span_ns=span_ns)
        found = []
        while True:
            try:
                found.append(self.next().event_type)
            except RDMAError as error:
                assert error.errno == EAGAIN
                return found

    def sends(self, cmid: CMID, text: bytes) -> None:
        assert cmid.qp is not None
        self.mr.write(text, len(text))
        cmid.qp.post_send(SendWR(1, WROpcode.SEND, num_sge=1, sg=[SGE(self.mr.buf, len(text), self.mr.lkey)]))

    def expects(self, cmid: CMID) -> None:
        assert cmid.qp is not None
        cmid.qp.post_recv(RecvWR(2, 1, [SGE(self.mr.buf + 2048, 256, self.mr.lkey)]))

    def received(self) -> bytes:
        received = [wc for wc in self.cq.poll(64)[1] if wc.wr_id == 2]
        assert [wc.status for wc in received] == [WCStatus.SUCCESS]
        return self.mr.read(received[0].byte_len, 2048)


def connected(pair: AdapterPair) -> tuple[End, CMID, End, CMID]:
    """Server and client of an established connection."""
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    calling = client.caller()
    calling.connect()
    pair.settle(span_ns=10 * MILLISECOND)
    asked = server.next()
    asked.id.accept()
    assert client.kinds() == [E.ESTABLISHED]
    assert server.kinds() == [E.ESTABLISHED]
    return server, asked.id, client, calling


def test_each_side_begins_where_the_other_expects_it() -> None:
    """A message's starting PSN is the one with which its receiver shall begin (vol. 1, 12.7.31), as Linux has it."""
    pair = AdapterPair()
    _, called, _, calling = connected(pair)
    messages = [parse_mad(seen.frame[62:-4]) for seen in pair.seen if seen.opcode == Opcode.UD_SEND_ONLY]
    told = {type(each[1]): each[1].starting_psn for each in messages if each and isinstance(each[1], Req | Rep)}
    assert called.qp is not None
    assert calling.qp is not None
    here, there = calling.qp.query(), called.qp.query()
    assert here.rq_psn == there.sq_psn == told[Req]
    assert there.rq_psn == here.sq_psn == told[Rep]


def lose(*attributes: Attribute, times: int = 1) -> Callable[[Seen], list[bytes]]:
    """A cable that loses so many of these messages."""
    left = dict.fromkeys(attributes, times)

    def passed(seen: Seen) -> list[bytes]:
        number = int.from_bytes(seen.frame[MAD_ATTRIBUTE : MAD_ATTRIBUTE + 2], "big") if seen.opcode == 0x64 else 0
        if left.get(number, 0):  # type: ignore[call-overload]
            left[Attribute(number)] -= 1
            return []
        return [seen.frame]

    return passed


def test_listen_connect_accept_send_both_ways_disconnect() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    listening = server.listener(backlog=4)
    calling = client.caller()
    calling.connect(ConnParam(resources=4, depth=2), b"hello")
    pair.settle(span_ns=5 * MILLISECOND)
    asked = server.next()
    assert (asked.event_type, asked.listen_id) == (E.CONNECT_REQUEST, listening)
    assert asked.private_data.rstrip(b"\0") == b"hello"
    assert asked.id.peer_address == pair.address(0)
    assert asked.id.peer_port >= 0xC000
    assert (asked.param.resources, asked.param.depth) == (2, 4)  # seen from here: what it asks for, what it serves
    asked.id.accept(ConnParam(resources=1, depth=8), b"welcome")
    pair.settle(span_ns=5 * MILLISECOND)
    told = client.next()
    assert (told.event_type, told.id, told.private_data.rstrip(b"\0")) == (E.ESTABLISHED, calling, b"welcome")
    assert told.event_str() == "RDMA_CM_EVENT_ESTABLISHED"
    assert server.kinds() == [E.ESTABLISHED]
    assert calling.qp is not None
    assert asked.id.qp is not None
    assert (calling.qp.query().max_rd_atomic, asked.id.qp.query().max_rd_atomic) == (1, 4)
    client.expects(calling)
    server.expects(asked.id)
    client.sends(calling, b"there")
    server.sends(asked.id, b"and back")
    pair.settle(span_ns=50 * MILLISECOND)
    assert (server.received(), client.received()) == (b"there", b"and back")
    calling.disconnect()
    assert server.kinds() == [E.DISCONNECTED]
    assert client.kinds(SECOND) == [E.DISCONNECTED, E.TIMEWAIT_EXIT]
    assert server.kinds(SECOND) == [E.TIMEWAIT_EXIT]
    assert calling.qp.query().qp_state is asked.id.qp.query().qp_state is QPState.ERR
    for cmid in (calling, asked.id, listening):
        cmid.close()
        cmid.close()
    assert server.context.resources()["qp"] == client.context.resources()["qp"] == 0


def test_a_service_id_takes_more_private_data_and_no_header() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener(service="0x1122334455", space=RDMA_PS_IB)
    client.caller(service=0x1122334455, space=RDMA_PS_IB).connect(None, bytes(range(92)))
    pair.settle(span_ns=5 * MILLISECOND)
    asked = server.next()
    assert asked.private_data == bytes(range(92))
    assert asked.id.peer_port == 0


def test_the_callers_qp_may_be_its_own() -> None:
    pair = AdapterPair()
    client = End(pair, 0)
    calling = CMID(AddrInfo(dst=client.peer, service=PORT), None, client.pd, event_channel=client.channel)
    with pytest.raises(RDMAError, match="needs a queue pair") as caught:
        calling.connect()
    assert caught.value.errno == EINVAL
    calling.qp = QP(client.pd, client.init_attr)  # in RESET: it is moved on
    calling.connect()
    assert client.kinds() == [E.REJECTED]
    calling.close()
    assert calling.qp is not None  # it is not the id's


@pytest.mark.parametrize("lost", [Attribute.REQ, Attribute.REP, Attribute.RTU])
def test_what_is_lost_on_the_way_in_is_sent_again(lost: Attribute) -> None:
    pair = AdapterPair()
    pair.filter = lose(lost, times=3)
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    client.caller().connect()
    pair.settle(lambda: bool(pair.adapters[1].cm.events), span_ns=SECOND)
    server.next().id.accept()
    pair.settle(span_ns=SECOND)
    assert client.kinds() == [E.ESTABLISHED]
    assert server.kinds() == [E.ESTABLISHED]


def test_what_is_lost_on_the_way_out_is_sent_again() -> None:
    pair = AdapterPair()
    server, accepted, client, _calling = connected(pair)
    pair.filter = lose(Attribute.DREQ, Attribute.DREP, times=2)
    accepted.disconnect()
    assert server.kinds(SECOND) == [E.DISCONNECTED, E.TIMEWAIT_EXIT]
    assert client.kinds(SECOND) == [E.DISCONNECTED, E.TIMEWAIT_EXIT]


def test_the_first_packet_stands_for_a_lost_rtu() -> None:
    pair = AdapterPair()
    pair.filter = lose(Attribute.RTU, times=100)
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    calling = client.caller()
    calling.connect()
    pair.settle(span_ns=5 * MILLISECOND)
    asked = server.next().id
    asked.accept()
    server.expects(asked)
    assert client.kinds(5 * MILLISECOND) == [E.ESTABLISHED]
    assert server.kinds(5 * MILLISECOND) == []
    client.sends(calling, b"first")
    assert server.kinds(5 * MILLISECOND) == [E.ESTABLISHED]
    assert AsyncEvent(EventType.COMM_EST, asked.qp.qp_num if asked.qp else 0) in server.context.get_async_events()
    assert server.received() == b"first"
    assert pair.adapters[1].cm.awaited == {}


def test_a_packet_with_another_psn_does_not_stand_for_an_rtu() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    calling = client.caller()
    calling.connect()
    pair.settle(span_ns=5 * MILLISECOND)
    asked = server.next().id
    pair.filter = lose(Attribute.RTU, times=100)
    asked.accept()
    server.expects(asked)
    client.kinds(5 * MILLISECOND)
    first: list[bytes] = []

    def shifted(seen: Seen) -> list[bytes]:
        from emul.wire.icrc import icrc

        if seen.opcode != 0x04:
            return [] if seen.opcode == 0x64 else [seen.frame]
        first.append(seen.frame)
        frame = bytearray(seen.frame)
        frame[53] ^= 0x40
        frame[-4:] = icrc(bytes(frame[14:-4]))
        return [bytes(frame)]

    pair.filter = shifted
    client.sends(calling, b"first")
    assert server.kinds(5 * MILLISECOND) == []
    assert first
    assert asked.qp is not None
    assert asked.qp.query().qp_state is QPState.RTR


def test_a_slow_host_is_waited_for_and_its_caller_is_told_so() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    client.caller().connect()
    pair.settle(span_ns=3 * SECOND)  # longer than all repetitions of the REQ
    assert client.kinds() == []
    server.next().id.accept()
    pair.settle(span_ns=SECOND)
    assert client.kinds() == [E.ESTABLISHED]
    assert server.kinds() == [E.ESTABLISHED]


def test_a_host_that_never_answers_is_answered_for() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    client.caller().connect()
    pair.settle(span_ns=5 * SECOND)
    told = client.next()
    assert (told.event_type, told.status) == (E.REJECTED, RejectReason.TIMEOUT)
    assert server.kinds() == []  # it never saw the request, which is over
    assert pair.adapters[1].cm.events == []


def test_a_host_that_answers_too_late_is_told() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    asked = server.next()
    pair.settle(span_ns=5 * SECOND)
    assert server.kinds() == [E.CONNECT_ERROR]
    with pytest.raises(RDMAError, match="no request that waits"):
        asked.id.accept()
    asked.id.reject()  # is not missed
    assert client.kinds() == [E.REJECTED]


def test_rejected_with_reason_and_private_data() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    server.next().id.reject(b"not you", RejectReason.NO_RESOURCES)
    pair.settle(span_ns=5 * MILLISECOND)
    told = client.next()
    assert (told.event_type, told.status) == (E.REJECTED, RejectReason.NO_RESOURCES)
    assert told.private_data.rstrip(b"\0") == b"not you"


def test_a_rejection_that_is_lost_is_repeated_and_no_second_request_is_told() -> None:
    pair = AdapterPair()
    pair.filter = lose(Attribute.REJ)
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    client.caller().connect()
    pair.settle(lambda: bool(pair.adapters[1].cm.events), span_ns=SECOND)
    server.next().id.reject()
    assert client.kinds(200 * MILLISECOND) == [E.REJECTED]
    assert server.kinds() == []


def test_nobody_listens() -> None:
    pair = AdapterPair()
    client = End(pair, 0)
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    told = client.next()
    assert (told.event_type, told.status) == (E.REJECTED, RejectReason.INVALID_SERVICE_ID)


def test_nobody_is_there() -> None:
    pair = AdapterPair()
    client = End(pair, 0)
    client.caller().connect()
    pair.filter = lambda seen: []
    assert client.kinds(3 * SECOND) == [E.UNREACHABLE]


def test_requests_beyond_the_backlog_are_refused_and_places_become_free() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener(backlog=2)
    for _ in range(3):
        client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    told = client.next()
    assert (told.event_type, told.status) == (E.REJECTED, RejectReason.NO_RESOURCES)
    server.next().id.accept()
    assert client.kinds() == [E.ESTABLISHED]
    client.caller().connect()
    assert [kind for kind in server.kinds() if kind is E.CONNECT_REQUEST] == [E.CONNECT_REQUEST] * 2


def test_a_closed_listener_refuses_what_waits_and_what_comes() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    listening = server.listener()
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    listening.close()
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    assert [client.next().status for _ in range(2)] == [RejectReason.CONSUMER, RejectReason.INVALID_SERVICE_ID]
    assert server.kinds() == []
    server.listener()  # the port is free again


def test_a_dead_hosts_listeners_and_connections_go_when_the_next_incarnation_attaches() -> None:
    pair = AdapterPair()
    server, _accepted, client, _calling = connected(pair)
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    server.context.attach(2)
    assert set(client.kinds(200 * MILLISECOND)) == {E.DISCONNECTED, E.REJECTED, E.TIMEWAIT_EXIT}
    assert pair.contexts[1].get_cm_events() == []
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    assert client.next().status == RejectReason.INVALID_SERVICE_ID
    pair.settle(span_ns=5 * SECOND)
    assert pair.adapters[1].cm.connections() == 0


def test_two_who_call_each_other_at_once_have_two_connections() -> None:
    pair = AdapterPair()
    ends = [End(pair, 0), End(pair, 1)]
    calls = []
    for end in ends:
        end.listener()
    for end in ends:
        calls.append(end.caller())
        calls[-1].connect()
    pair.settle(span_ns=5 * MILLISECOND)
    accepted = [end.next().id for end in ends]
    for cmid in accepted:
        cmid.accept()
    assert [sorted(end.kinds()) for end in ends] == [[E.ESTABLISHED] * 2] * 2
    for end, cmid, other, peer in zip(ends, calls, reversed(ends), reversed(accepted), strict=True):
        other.expects(peer)
        end.sends(cmid, b"through mine")
        pair.settle(span_ns=20 * MILLISECOND)
        assert other.received() == b"through mine"


def test_two_who_part_at_once_are_both_told_once() -> None:
    pair = AdapterPair()
    server, accepted, client, calling = connected(pair)
    accepted.disconnect()
    calling.disconnect()
    assert server.kinds(SECOND) == [E.DISCONNECTED, E.TIMEWAIT_EXIT]
    assert client.kinds(SECOND) == [E.DISCONNECTED, E.TIMEWAIT_EXIT]


@pytest.mark.parametrize("when", ["at once", "while it waits", "while the reply is on its way"])
def test_a_caller_that_gives_up_takes_its_request_back(when: str) -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    calling = client.caller()
    calling.connect()
    if when != "at once":
        pair.settle(span_ns=5 * MILLISECOND)
        asked = server.next()
        if when == "while the reply is on its way":
            pair.filter = lose(Attribute.REP)
            asked.id.accept()
            pair.settle(span_ns=MILLISECOND)
    calling.disconnect()
    calling.close()
    told = server.kinds(SECOND)
    assert told in ([], [E.CONNECT_REQUEST, E.REJECTED]) if when == "at once" else told == [E.REJECTED]
    assert client.kinds() == []
    pair.settle(span_ns=SECOND)
    assert [adapter.cm.connections() for adapter in pair.adapters] == [0, 0]


def test_an_accepting_side_that_parts_before_the_rtu() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    server.listener()
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    asked = server.next().id
    asked.accept()
    asked.disconnect()
    assert client.kinds(SECOND)[-2:] == [E.DISCONNECTED, E.TIMEWAIT_EXIT]
    assert server.kinds(SECOND)[:1] == [E.DISCONNECTED]


def test_a_request_that_names_a_queue_pair_in_use_is_stale_and_ends_the_old_connection() -> None:
    pair = AdapterPair()
    server, _accepted, client, calling = connected(pair)
    machine = pair.adapters[0].cm
    machine.forget(calling.number)  # as a caller that lost its memory
    assert calling.qp is not None
    machine.connect(calling.qp.qp_num, b"\x0a\x4d\x00\x02", 0x0106_0000 | PORT, b"", QPAttr(), now=pair.now)
    pair.adapters[0]._after_cm(pair.now)
    pair.settle(span_ns=SECOND)
    told = pair.contexts[0].get_cm_events()
    assert [(event.kind, event.reason) for event in told] == [(E.REJECTED, RejectReason.STALE_CONNECTION)]
    assert server.kinds(SECOND) == [E.DISCONNECTED, E.TIMEWAIT_EXIT]
    assert client.kinds() == []


def test_a_queue_pair_number_is_not_given_out_again_before_timewait_ends() -> None:
    pair = AdapterPair()
    _server, _accepted, _client, calling = connected(pair)
    adapter = pair.adapters[0]
    assert calling.qp is not None
    number = calling.qp.qp_num
    calling.disconnect()
    pair.settle(span_ns=MILLISECOND)
    calling.qp.close()
    adapter._next_qpn = number - 1
    assert adapter.fresh_qpn() == number + 1
    pair.settle(span_ns=SECOND)
    adapter._next_qpn = number - 1
    assert adapter.fresh_qpn() == number


def test_wrong_use_is_told_and_changes_nothing() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    listening = server.listener()
    calling = client.caller()

    def fails(errno: int, what: str, call: Callable[[], object]) -> None:
        with pytest.raises(RDMAError, match=what) as caught:
            call()
        assert caught.value.errno == errno

    fails(EADDRINUSE, "listens for service", server.listener)
    fails(EADDRINUSE, "firmware", lambda: server.listener(service=0xCC4D))
    fails(EINVAL, "listens already", listening.listen)
    fails(EINVAL, "backlog", lambda: server.listener(5000, service=1))
    fails(EINVAL, "does not listen", calling.get_request)
    fails(ENOTCONN, "no connection", calling.disconnect)
    fails(EINVAL, "56 bytes", lambda: calling.connect(None, bytes(57)))
    fails(EINVAL, "a port, 1 ... 65535, got 'http'", lambda: client.caller(service="http").connect())
    fails(EINVAL, "a service id", lambda: client.caller(service=0, space=RDMA_PS_IB).connect())
    fails(EINVAL, "port space", lambda: client.caller(space=7).connect())
    fails(EINVAL, "protection domain", lambda: CMID(AddrInfo()))
    fails(ENOENT, "no listener 99", lambda: server.context.call({"op": "cm_unlisten", "listener": 99}))
    calling.connect(None, bytes(56))
    fails(EBUSY, "has a connection that is in REQ_SENT", calling.connect)
    pair.settle(span_ns=5 * MILLISECOND)
    asked = server.next().id
    fails(EINVAL, "196 bytes", lambda: asked.accept(None, bytes(197)))
    fails(EINVAL, "148 bytes", lambda: asked.reject(bytes(149)))
    fails(EINVAL, "a reason is", lambda: asked.reject(reason=0))
    asked.accept(None, bytes(196))
    assert client.kinds() == [E.ESTABLISHED]
    asked.qp = QP(server.pd, server.init_attr)
    fails(EINVAL, "no request that waits", asked.accept)
    fails(EAGAIN, "no connection event", client.next)


def test_calls_without_a_channel_wait_and_in_the_simulator_nothing_comes_meanwhile() -> None:
    pair = AdapterPair()
    server, client = End(pair, 1), End(pair, 0)
    listening = CMID(AddrInfo(service=PORT, flags=RAI_PASSIVE), server.init_attr, server.pd)
    listening.listen()
    calling = CMID(AddrInfo(dst=client.peer, service=PORT), client.init_attr, client.pd)
    with pytest.raises(RDMAError) as caught:
        calling.connect()
    assert caught.value.errno == EAGAIN  # it is under way all the same
    pair.settle(span_ns=5 * MILLISECOND)
    request = listening.get_request()
    with pytest.raises(RDMAError):
        request.accept()
    pair.settle(span_ns=5 * MILLISECOND)
    assert calling.get_cm_event().event_type is E.ESTABLISHED
    with pytest.raises(RDMAError):
        request.disconnect()
    pair.settle(span_ns=50 * MILLISECOND)
    assert request.get_cm_event().event_type is E.DISCONNECTED  # what it passed while it waited is not told again
    request.close()
    listening.close()


def test_a_path_mtu_that_the_port_does_not_carry_is_refused() -> None:
    pair = AdapterPair(mtu=4200)
    client = End(pair, 0)
    server = End(pair, 1)
    server.listener()
    pair.adapters[1]._active_mtu = min(pair.adapters[1]._active_mtu, type(pair.adapters[1]._active_mtu).MTU_1024)
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    assert client.next().status == RejectReason.INVALID_MTU


def test_the_guid_is_that_of_the_mac() -> None:
    assert eui64(bytes.fromhex("020000000001")) == 0x0000_00FF_FE00_0001
    assert eui64(bytes.fromhex("525400123456")) == 0x5054_00FF_FE12_3456


@pytest.mark.parametrize("seed", range(3))
def test_a_flood_of_requests_leaves_the_partners_way_in(seed: int) -> None:
    from emul.wellknown import SERVICE_ID, ConnectRequest
    from emul.wire.mad import Req, gid_of
    from tests.unit.test_well_known_connection import connected as partner

    pair = AdapterPair()
    chance = random.Random(seed)
    private = ConnectRequest(1, 0, 1, bytes(16)).emit()
    machine = pair.adapters[1].cm
    for number in range(1, 2000):
        flood = Req(
            chance.randrange(1, 1 << 32), SERVICE_ID, 0x1000 + number, 0, gid_of("10.77.0.66"), gid_of(pair.address(1)),
            3, private_data=private,
        )  # fmt: skip
        machine.on_message(number, flood, bytes([10, 77, 0, 66]), now=pair.now)
    machine.out.clear()
    assert pair.adapters[1].counters()["firmware_links"] <= 64
    assert machine.connections() <= 64
    partner(pair)
    assert len(pair.adapters[1].regions) <= 5 * 65
