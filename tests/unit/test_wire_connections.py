"""Which packets belong together: by connection management where it was seen, else by what answers what."""

from __future__ import annotations

import pytest

from emul.clock import MILLISECOND
from emul.vocabulary import QPAttr, QPState
from lab.wire.analyzer import analyze
from lab.wire.connections import Sorter
from lab.wire.exchange import View
from lab.wire.packets import Packet, parse
from tests.helpers.adapters import AdapterPair, Party, connect_by_hand
from tests.helpers.tap import AT_SENDERS, Tap, Weather
from tests.interop.conversation import conversation

UD_SEND_ONLY, READ_REQUEST = 0x64, 0x0C


def packets(frames: list[tuple[int, bytes]]) -> list[Packet]:
    found = (parse(number, at, frame) for number, (at, frame) in enumerate(frames, 1))
    return [packet for packet in found if isinstance(packet, Packet)]


def several(count: int, *, lose: float = 0.0) -> tuple[Tap, set[frozenset[int]]]:
    """So many connections between two adapters at once, each way some work; and the pairs of queue pairs."""
    pair = AdapterPair()
    tap = Tap(pair)
    couples = [(Party(pair.contexts[0]), Party(pair.contexts[1])) for _ in range(count)]
    for number, (a, b) in enumerate(couples):
        connect_by_hand(pair, (a, b), sq_psn=1000 * number)
        psns = (50_000 * number + 7, 70_000 * number)
        for party, psn, expected in ((a, psns[0], psns[1]), (b, psns[1], psns[0])):
            attr = party.qp.query()
            party.qp.modify(QPAttr(qp_state=QPState.RESET))
            attr.sq_psn, attr.rq_psn = psn, expected
            party.qp.to_rts(attr)
    tap.cable = Weather(1, lose=lose)
    for turn in range(6):
        for a, b in couples:
            a.qp.post_write(1, a.mr.buf, 100 + 900 * turn, a.mr.lkey, b.mr.buf, b.mr.rkey)
            if turn % 2:
                b.qp.post_write(1, b.mr.buf, 3000, b.mr.lkey, a.mr.buf, a.mr.rkey)
        pair.settle(span_ns=500 * MILLISECOND)
    return tap, {frozenset((a.qp.qp_num, b.qp.qp_num)) for a, b in couples}


@pytest.mark.parametrize("lose", [0.0, 0.2])
def test_connections_between_the_same_addresses_are_told_apart_by_their_psns(lose: float) -> None:
    tap, expected = several(4, lose=lose)
    sorter = Sorter()
    for packet in packets(tap.sent):
        sorter.add(packet)
    connections = sorter.connections()
    assert {frozenset(flow.qpn for flow in each.flows if flow is not None) for each in connections} == expected
    report = analyze(tap.sent, AT_SENDERS)
    assert report.findings == ()
    assert len(report.connections) == 4
    assert all(connection.judged for connection in report.connections)


def test_a_flow_whose_answers_went_elsewhere_stays_alone() -> None:
    tap, _ = several(2)
    there = {packet.qpn for packet in packets(tap.sent) if packet.source_name.endswith(".1")}
    lonely = min(there)
    kept = [
        (at, frame)
        for at, frame in tap.sent
        if not isinstance(each := parse(1, at, frame), Packet) or each.qpn != lonely
    ]
    report = analyze(kept, View())
    assert sorted(connection.judged for connection in report.connections) == [False, True]
    assert report.findings == ()


def test_connection_management_tells_the_pair_its_psns_and_its_path_mtu() -> None:
    sorter = Sorter()
    for packet in packets(list(conversation(False))):
        sorter.add(packet)
    called = [each for each in sorter.connections() if each.flows[0].call is not None]
    (connection,) = called
    assert connection.mtu() == 1024
    told = [flow.receiver for flow in connection.flows if flow is not None]
    assert {endpoint.retry_count for endpoint in told if endpoint is not None} == {2, None}


def test_a_call_that_comes_again_begins_no_new_connection() -> None:
    once = list(conversation(False))
    twice = [each for frame in once for each in ((frame, frame) if len(frame[1]) == 322 else (frame,))]
    assert len(analyze(twice, AT_SENDERS).connections) == len(analyze(once, AT_SENDERS).connections)


def test_an_answer_to_what_was_never_sent_is_found_where_the_beginning_is_known() -> None:
    frames = list(conversation(False))
    called = next(i for i, (_, frame) in enumerate(frames) if frame[42] == UD_SEND_ONLY)
    reading = next(i for i in range(called, len(frames)) if frames[i][1][42] == READ_REQUEST)
    del frames[reading]
    report = analyze(frames, View(may_mark=True))
    assert [finding.rule.name for finding in report.findings] == ["read.response"]
