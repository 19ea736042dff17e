"""Each message in each state of a connection, against a table that was written from the specification's words."""

from __future__ import annotations

import pytest

from emul.clock import MILLISECOND, SECOND, Instant
from emul.cm_connection import CALLS_MAX, CONNECTIONS_MAX, TIMERS_MAX, State
from emul.cm_events import CmEvent, CmEventType
from emul.cm_machine import BACKLOG_MAX, EVENTS_MAX, LISTENERS_MAX, REACTIONS
from emul.errors import RDMAError
from emul.vocabulary import QPAttr, QPState
from emul.wire.address import gid_bytes
from emul.wire.mad import Answered, Drep, Dreq, Message, Mra, Rej, RejectReason, Rep, Req, Rtu
from tests.helpers.cm import FIRMWARE_SERVICE, HERE, SERVICE, THERE, Desk

PEER_ID, PEER_QPN = 0x7777, 0x99
OWN_QPN = 0x11


def request(service: int = SERVICE, *, id: int = PEER_ID, qpn: int = PEER_QPN, **fields: object) -> Req:
    known: dict[str, object] = {
        "local_comm_id": id, "service_id": service, "local_qpn": qpn, "starting_psn": 0x123,
        "local_gid": gid_bytes(THERE), "remote_gid": gid_bytes(HERE), "path_mtu": 3,
        "remote_response_timeout": 13, "local_response_timeout": 13, "local_ack_timeout": 8, "max_cm_retries": 3,
    }  # fmt: skip
    return Req(**{**known, **fields})  # type: ignore[arg-type]


def reach(start: str) -> tuple[Desk, int]:
    """A desk with one connection in a state; "ESTABLISHED/called" is the accepting side of it."""
    desk = Desk()
    state = start.split("/")[0]
    if start in ("REQ_RECEIVED", "MRA_REQ_SENT", "REP_SENT", "MRA_REP_RECEIVED", "ESTABLISHED/called"):
        desk.machine.listen(SERVICE)
        desk.deliver(request())
        number = desk.events()[0].number
        if start == "MRA_REQ_SENT":
            desk.pass_time(20 * MILLISECOND)
        if start in ("REP_SENT", "MRA_REP_RECEIVED", "ESTABLISHED/called"):
            desk.accept(number, OWN_QPN)
        if start == "MRA_REP_RECEIVED":
            desk.deliver(Mra(PEER_ID, number, Answered.REP, 20))
        if start == "ESTABLISHED/called":
            desk.deliver(Rtu(PEER_ID, number))
    else:
        number = desk.connect(OWN_QPN)
        if start == "MRA_REQ_RECEIVED":
            desk.deliver(Mra(PEER_ID, number, Answered.REQ, 20))
        elif start != "REQ_SENT":
            desk.deliver(Rep(PEER_ID, number, PEER_QPN, 0x123))
        if start == "MRA_REP_SENT":
            desk.pass_time(10 * MILLISECOND)
        if state in ("ESTABLISHED", "DREQ_SENT", "TIMEWAIT"):
            assert desk.machine.establish(number, b"", now=desk.now)
        if state in ("DREQ_SENT", "TIMEWAIT"):
            desk.machine.disconnect(number, now=desk.now)
        if state == "TIMEWAIT":
            desk.deliver(Drep(PEER_ID, number))
    assert desk.state(number) is State[state]
    desk.sent(), desk.events()
    return desk, number


def message(kind: str, number: int) -> Message:
    made: dict[str, Message] = {
        "REQ": request(),
        "MRA of REQ": Mra(PEER_ID, number, Answered.REQ, 20),
        "MRA of REP": Mra(PEER_ID, number, Answered.REP, 20),
        "REP": Rep(PEER_ID, number, PEER_QPN, 0x123),
        "RTU": Rtu(PEER_ID, number),
        "REJ of REQ": Rej(0, number, Answered.REQ, RejectReason.CONSUMER),
        "REJ": Rej(PEER_ID, number, Answered.OTHER, RejectReason.CONSUMER),
        "DREQ": Dreq(PEER_ID, number, OWN_QPN),
        "DREP": Drep(PEER_ID, number),
    }
    return made[kind]


STARTS = [
    "REQ_SENT", "MRA_REQ_RECEIVED", "REQ_RECEIVED", "MRA_REQ_SENT", "REP_RECEIVED", "MRA_REP_SENT", "REP_SENT",
    "MRA_REP_RECEIVED", "ESTABLISHED", "ESTABLISHED/called", "DREQ_SENT", "TIMEWAIT",
]  # fmt: skip
KINDS = ["REQ", "MRA of REQ", "MRA of REP", "REP", "RTU", "REJ of REQ", "REJ", "DREQ", "DREP"]
E = CmEventType
# (state, message) -> next state, what is sent, what the host is told, the queue pair's state where it changes
EXPECTED: dict[tuple[str, str], tuple[str, list[str], list[CmEventType], QPState | None]] = {
    ("REQ_SENT", "REQ"): ("REQ_SENT", ["Rej"], [], None),  # a call of its own, for a service that nobody has
    ("REQ_SENT", "MRA of REQ"): ("MRA_REQ_RECEIVED", [], [], None),
    ("REQ_SENT", "REP"): ("REP_RECEIVED", [], [E.CONNECT_RESPONSE], QPState.RTR),
    ("REQ_SENT", "REJ of REQ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("REQ_SENT", "REJ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("REQ_SENT", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("MRA_REQ_RECEIVED", "REQ"): ("MRA_REQ_RECEIVED", ["Rej"], [], None),
    ("MRA_REQ_RECEIVED", "REP"): ("REP_RECEIVED", [], [E.CONNECT_RESPONSE], QPState.RTR),
    ("MRA_REQ_RECEIVED", "REJ of REQ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("MRA_REQ_RECEIVED", "REJ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("MRA_REQ_RECEIVED", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("REQ_RECEIVED", "REJ"): ("TIMEWAIT", [], [E.REJECTED], None),
    ("MRA_REQ_SENT", "REQ"): ("MRA_REQ_SENT", ["Mra"], [], None),
    ("MRA_REQ_SENT", "REJ"): ("TIMEWAIT", [], [E.REJECTED], None),
    ("REP_RECEIVED", "REJ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("REP_RECEIVED", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("MRA_REP_SENT", "REP"): ("MRA_REP_SENT", ["Mra"], [], None),
    ("MRA_REP_SENT", "REJ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("MRA_REP_SENT", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("REP_SENT", "REQ"): ("REP_SENT", ["Rep"], [], None),
    ("REP_SENT", "MRA of REP"): ("MRA_REP_RECEIVED", [], [], None),
    ("REP_SENT", "RTU"): ("ESTABLISHED", [], [E.ESTABLISHED], QPState.RTS),
    ("REP_SENT", "REJ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("REP_SENT", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("MRA_REP_RECEIVED", "RTU"): ("ESTABLISHED", [], [E.ESTABLISHED], QPState.RTS),
    ("MRA_REP_RECEIVED", "REJ"): ("TIMEWAIT", [], [E.REJECTED], QPState.ERR),
    ("MRA_REP_RECEIVED", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("ESTABLISHED", "REP"): ("ESTABLISHED", ["Rtu"], [], None),
    ("ESTABLISHED", "REJ"): ("TIMEWAIT", [], [E.DISCONNECTED], QPState.ERR),
    ("ESTABLISHED", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("ESTABLISHED/called", "REJ"): ("TIMEWAIT", [], [E.DISCONNECTED], QPState.ERR),
    ("ESTABLISHED/called", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], QPState.ERR),
    ("DREQ_SENT", "REJ"): ("TIMEWAIT", [], [E.DISCONNECTED], None),
    ("DREQ_SENT", "DREQ"): ("TIMEWAIT", ["Drep"], [E.DISCONNECTED], None),
    ("DREQ_SENT", "DREP"): ("TIMEWAIT", [], [E.DISCONNECTED], None),
    ("TIMEWAIT", "REQ"): ("TIMEWAIT", ["Rej"], [], None),
    ("TIMEWAIT", "REP"): ("TIMEWAIT", ["Rej"], [], None),
    ("TIMEWAIT", "DREQ"): ("TIMEWAIT", ["Drep"], [], None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", STARTS)
def test_a_message_does_what_the_table_says_and_nothing_else(start: str, kind: str) -> None:
    desk, number = reach(start)
    before = desk.qps.get(OWN_QPN)
    state, sent, events, qp = EXPECTED.get((start, kind), (start.split("/")[0], [], [], None))
    desk.deliver(message(kind, number))
    found = desk.state(number)
    assert found is not None
    assert (found.name, [type(each).__name__ for each in desk.sent()], desk.kinds()) == (state, sent, events)
    assert desk.qps.get(OWN_QPN) is (before if qp is None else qp)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", STARTS)
def test_the_same_message_once_more_tells_the_host_nothing_new(start: str, kind: str) -> None:
    desk, number = reach(start)
    desk.deliver(message(kind, number))
    desk.events()
    state = desk.state(number)
    for _ in range(3):
        desk.deliver(message(kind, number))
    assert desk.events() == []
    assert desk.state(number) is state


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "REQ"])
@pytest.mark.parametrize("start", STARTS)
def test_a_stranger_and_a_wrong_id_change_nothing(start: str, kind: str) -> None:
    desk, number = reach(start)
    state = desk.state(number)
    desk.deliver(message(kind, number), source=bytes([10, 77, 0, 9]))
    if start not in ("REQ_SENT", "MRA_REQ_RECEIVED"):  # these do not know yet which id the peer will have
        told = message(kind, number)
        wrong = {name: getattr(told, name) for name in told.__dataclass_fields__} | {"local_comm_id": PEER_ID + 1}
        desk.deliver(type(told)(**wrong))
    assert desk.state(number) is state
    assert desk.sent() == []
    assert desk.events() == []


@pytest.mark.parametrize("start", STARTS)
def test_a_dreq_that_names_another_queue_pair_is_ignored(start: str) -> None:
    desk, number = reach(start)
    state = desk.state(number)
    desk.deliver(Dreq(PEER_ID, number, OWN_QPN + 1))
    assert (desk.state(number), desk.sent(), desk.events()) == (state, [], [])


def test_the_table_of_the_machine_names_no_reaction_that_is_not_tested_here() -> None:
    tested = {(start.split("/")[0], kind.split(" ")[0]) for start, kind in EXPECTED}
    for state, reactions in REACTIONS.items():
        for kind in reactions:
            if (state, kind) != (State.TIMEWAIT, Rtu):  # a story of its own: see test_cm_stories
                assert (state.name, kind.__name__.upper()) in tested


# state -> what time alone brings: next state, what is sent at first, what the host is told in the end
OVERDUE: dict[str, tuple[list[str], list[CmEventType]]] = {
    "REQ_SENT": (["Req"] * 15, [E.UNREACHABLE]),
    "MRA_REQ_RECEIVED": (["Req"] * 15, [E.UNREACHABLE]),
    "REQ_RECEIVED": (["Mra", "Rej"], [E.CONNECT_ERROR]),
    "MRA_REQ_SENT": (["Rej"], [E.CONNECT_ERROR]),
    "REP_RECEIVED": (["Mra", "Rej"], [E.CONNECT_ERROR]),
    "MRA_REP_SENT": (["Rej"], [E.CONNECT_ERROR]),
    "REP_SENT": (["Rep"] * 3 + ["Rej"], [E.UNREACHABLE]),  # as often as the caller's REQ says
    "MRA_REP_RECEIVED": (["Rep"] * 3 + ["Rej"], [E.UNREACHABLE]),
    "ESTABLISHED": ([], []),
    "ESTABLISHED/called": ([], []),
    "DREQ_SENT": (["Dreq"] * 15, [E.DISCONNECTED, E.TIMEWAIT_EXIT]),
    "TIMEWAIT": ([], [E.TIMEWAIT_EXIT]),
}


@pytest.mark.parametrize("start", STARTS)
def test_silence_brings_repetitions_and_then_an_end(start: str) -> None:
    desk, number = reach(start)
    desk.pass_time(60 * SECOND)
    sent, events = OVERDUE[start]
    assert [type(each).__name__ for each in desk.sent()] == sent
    assert desk.kinds() == events
    if not start.startswith("ESTABLISHED"):
        assert desk.state(number) is None
        assert desk.machine.next_at is None
        assert desk.qps.get(OWN_QPN) in (None, QPState.ERR)


def test_a_call_too_early_and_one_too_late_do_no_harm() -> None:
    desk, number = reach("REQ_SENT")
    desk.machine.on_time(now=Instant(0))
    assert desk.sent() == []
    desk.machine.on_time(now=Instant(desk.now + SECOND))
    assert len(desk.sent()) == 1
    assert desk.state(number) is State.REQ_SENT


def test_the_firmwares_side_is_told_of_ends_and_of_callers_that_prove_nothing() -> None:
    desk = Desk()
    desk.proves = False
    desk.deliver(request(FIRMWARE_SERVICE))
    (rep,) = desk.sent()
    assert isinstance(rep, Rep)
    desk.deliver(Rtu(PEER_ID, rep.local_comm_id))
    assert desk.ended == [rep.local_comm_id]
    assert desk.state(rep.local_comm_id) is State.TIMEWAIT
    assert (desk.sent(), desk.events()) == ([], [])


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        (Dreq(5, 6, 7), Drep(6, 5, bytes(224))),
        (Rep(5, 6, 7, 8), Rej(6, 5, Answered.REP, RejectReason.INVALID_COMM_ID, bytes(148))),
        (Rtu(5, 6), Rej(6, 5, Answered.OTHER, RejectReason.INVALID_COMM_ID, bytes(148))),
        (Drep(5, 6), None),
        (Rej(5, 6, 0, 28), None),
        (Rej(5, 0, 2, 4), None),
        (Mra(5, 6, 0, 20), None),
    ],
)
def test_who_speaks_of_a_connection_that_nobody_knows_is_told_so(told: Message, answer: Message | None) -> None:
    desk = Desk()
    desk.deliver(told)
    assert desk.sent() == ([] if answer is None else [answer])
    assert desk.machine.connections() == 0


@pytest.mark.parametrize(
    ("fields", "reason", "info"),
    [
        ({"transport": 1}, RejectReason.INVALID_TRANSPORT, b""),
        ({"transport": 3}, RejectReason.INVALID_TRANSPORT, b""),
        ({"id": 0}, RejectReason.INVALID_COMM_ID, b""),
        ({"qpn": 1}, RejectReason.UNSUPPORTED, b""),
        ({"remote_gid": gid_bytes(THERE)}, RejectReason.INVALID_GID, gid_bytes(HERE)),
        ({"path_mtu": 0}, RejectReason.INVALID_MTU, b"\x30"),
        ({"path_mtu": 15}, RejectReason.INVALID_MTU, b"\x30"),
        ({"path_mtu": 4}, RejectReason.INVALID_MTU, b"\x30"),
        ({"service": SERVICE + 1}, RejectReason.INVALID_SERVICE_ID, b""),
        ({"service": 0x0106_0001}, RejectReason.CONSUMER, b""),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_with_its_reason(
    fields: dict[str, object], reason: RejectReason, info: bytes
) -> None:
    desk = Desk()
    desk.machine.listen(SERVICE)
    desk.machine.listen(0x0106_0001)
    desk.deliver(request(**fields))  # type: ignore[arg-type]
    (rej,) = desk.sent()
    assert isinstance(rej, Rej)
    assert (rej.reason, rej.info, rej.message) == (reason, info, Answered.REQ)
    assert desk.machine.connections() == 0
    assert desk.events() == []


def test_the_firmware_takes_a_larger_path_mtu_than_it_has() -> None:
    desk = Desk()
    desk.deliver(request(FIRMWARE_SERVICE, path_mtu=5))
    assert isinstance(desk.sent()[0], Rep)


def test_a_reply_that_names_a_queue_pair_in_use_is_stale() -> None:
    desk, first = reach("ESTABLISHED")
    second = desk.connect(OWN_QPN + 1)
    desk.deliver(Rep(PEER_ID + 1, second, PEER_QPN, 0x1))
    assert [type(each).__name__ for each in desk.sent()] == ["Req", "Dreq", "Rej"]
    assert (desk.state(first), desk.state(second)) == (State.DREQ_SENT, State.TIMEWAIT)
    (told,) = desk.events()
    assert (told.kind, told.reason) == (E.CONNECT_ERROR, RejectReason.STALE_CONNECTION)


def test_a_caller_that_begins_anew_with_the_same_queue_pair_ends_what_it_had_begun() -> None:
    desk, number = reach("REP_SENT")
    desk.deliver(request(id=PEER_ID + 1))
    assert [type(each).__name__ for each in desk.sent()] == ["Rej", "Rej"]
    assert desk.state(number) is State.TIMEWAIT
    assert desk.kinds() == [E.CONNECT_ERROR]
    desk.deliver(request(id=PEER_ID + 2))
    assert desk.kinds() == [E.CONNECT_REQUEST]


@pytest.mark.parametrize("fields", [{"local_comm_id": 0}, {"local_qpn": 0}, {"local_qpn": 1}])
def test_a_reply_that_names_nobody_is_ignored(fields: dict[str, int]) -> None:
    desk, number = reach("REQ_SENT")
    known = {"local_comm_id": PEER_ID, "remote_comm_id": number, "local_qpn": PEER_QPN, "starting_psn": 1}
    desk.deliver(Rep(**{**known, **fields}))
    assert (desk.state(number), desk.sent(), desk.events()) == (State.REQ_SENT, [], [])


@pytest.mark.parametrize("wrong", [QPState.RTR, QPState.RTS])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_callers_queue_pair_that_cannot_be_moved_is_an_error_and_the_peer_is_told(
    wrong: QPState, at_once: bool
) -> None:
    desk = Desk()
    desk.refuses = {wrong}
    number = desk.connect(OWN_QPN, at_once=at_once)
    desk.deliver(Rep(PEER_ID, number, PEER_QPN, 1))
    if wrong is QPState.RTS and not at_once:
        assert desk.kinds() == [E.CONNECT_RESPONSE]
        assert not desk.machine.establish(number, b"", now=desk.now)
    assert isinstance(desk.sent()[-1], Rej)
    assert desk.kinds() == [E.CONNECT_ERROR]
    assert desk.qps[OWN_QPN] is QPState.ERR


def test_an_accepting_queue_pair_that_cannot_be_moved() -> None:
    desk, number = reach("REQ_RECEIVED")
    desk.refuses = {QPState.RTR}
    with pytest.raises(RDMAError, match="could not be made ready"):
        desk.accept(number)
    assert desk.state(number) is State.REQ_RECEIVED  # it waits on
    desk.refuses = {QPState.RTS}
    desk.accept(number, OWN_QPN)
    desk.deliver(Rtu(PEER_ID, number))
    assert isinstance(desk.sent()[-1], Rej)
    assert desk.kinds() == [E.CONNECT_ERROR]


@pytest.mark.parametrize("state", ["REQ_SENT", "REP_SENT", "ESTABLISHED", "TIMEWAIT"])
def test_a_destroyed_connection_tells_nothing_more(state: str) -> None:
    desk, number = reach(state)
    desk.machine.destroy(number, now=desk.now)
    desk.machine.destroy(number, now=desk.now)
    desk.pass_time(60 * SECOND)
    assert desk.events() == []
    assert desk.machine.connections() == 0


def test_a_forgotten_host_parts_and_hears_nothing() -> None:
    for start in STARTS:
        desk, _number = reach(start)
        desk.machine.listen(SERVICE + 1)
        desk.machine.forget_host()
        desk.pass_time(60 * SECOND)
        assert desk.events() == []
        assert desk.machine.connections() == 0
        desk.machine.listen(SERVICE + 1)


def test_a_lost_refusal_is_repeated_for_a_rtu_and_a_rep() -> None:
    desk, number = reach("REP_RECEIVED")
    desk.machine.reject(number, b"no", now=desk.now)
    (refusal,) = desk.sent()
    desk.deliver(message("REP", number))
    desk.deliver(message("RTU", number))
    assert desk.sent() == [refusal, refusal]


def test_calls_from_outside_leave_room_for_the_hosts_own() -> None:
    desk = Desk()
    desk.machine.listen(SERVICE, BACKLOG_MAX)
    for index in range(CALLS_MAX + 10):
        source = bytes([10, 88, index >> 8, index & 255])
        desk.deliver(request(FIRMWARE_SERVICE if index > 1000 else SERVICE), source=source)
    replies = desk.sent()
    assert [rej.reason for rej in replies if isinstance(rej, Rej)] == [RejectReason.NO_RESOURCES] * 10
    for index in range(CONNECTIONS_MAX - CALLS_MAX):
        desk.connect(0x1000 + index)
    with pytest.raises(RDMAError, match="connections at the most"):
        desk.connect(0x9000)
    desk.pass_time(60 * SECOND)
    assert desk.machine.connections() == 0
    desk.connect(0x9000)


def test_ended_connections_give_way_to_new_ones() -> None:
    desk = Desk()
    long_wait = {"local_ack_timeout": 31, "local_response_timeout": 31}
    for index in range(CALLS_MAX + 10):
        source = bytes([10, 88, index >> 8, index & 255])
        desk.deliver(request(FIRMWARE_SERVICE, **long_wait), source=source)
        rep = desk.sent()[-1]
        assert isinstance(rep, Rep)
        desk.deliver(Rej(PEER_ID, rep.local_comm_id, Answered.REP, 28), source=source)
    assert desk.machine.connections() == CALLS_MAX
    assert len(desk.ended) == CALLS_MAX + 10


def test_events_beyond_their_bound_are_dropped_and_counted() -> None:
    desk, number = reach("REQ_SENT")
    desk.machine.events = [CmEvent(E.ESTABLISHED, 1)] * EVENTS_MAX
    desk.deliver(message("REJ", number))
    assert len(desk.machine.events) == EVENTS_MAX
    assert desk.machine.counters["cm_events_dropped"] == 1


def test_timers_of_connections_that_are_gone_are_swept_out() -> None:
    desk = Desk()
    for index in range(TIMERS_MAX + 10):
        number = desk.connect(0x100 + index)
        desk.machine.forget(number)
    desk.machine.forget(12345)
    assert len(desk.machine._table._timers) < TIMERS_MAX
    last = desk.connect(0x50)
    desk.pass_time(60 * SECOND)
    assert desk.kinds() == [E.UNREACHABLE]
    assert desk.state(last) is None


def test_wrong_calls_of_the_machine_itself() -> None:
    desk, _number = reach("ESTABLISHED")
    with pytest.raises(RDMAError, match="no address to go to fd00::1"):
        desk.connect(0x33, to=bytes.fromhex("fd000000000000000000000000000001"))
    with pytest.raises(RDMAError, match="64 bits"):
        desk.connect(0x33, service=0)
    with pytest.raises(RDMAError, match="64 bits"):
        desk.machine.listen(1 << 64)
    with pytest.raises(RDMAError, match="92 bytes"):
        desk.machine.connect(0x33, THERE, SERVICE, bytes(93), QPAttr(), now=desk.now)
    with pytest.raises(RDMAError, match="224 bytes"):
        desk.machine.establish(1, bytes(225), now=desk.now)
    for service in range(1, LISTENERS_MAX + 1):
        desk.machine.listen(service)
    with pytest.raises(RDMAError, match="listeners at the most"):
        desk.machine.listen(LISTENERS_MAX + 1)
    desk.machine.on_communication(OWN_QPN, now=desk.now)  # long established
    assert desk.events() == []
