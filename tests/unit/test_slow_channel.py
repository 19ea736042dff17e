"""The slow verbs as a hostile host would use them: any JSON at all is answered, and the adapter goes on."""

from __future__ import annotations

import json
from errno import EBUSY, EINVAL, EMFILE, ENOENT
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from emul.host_context import _HANDLERS, EVENTS_MAX
from emul.memory import Memory
from emul.verbs.wr import SGE, SendWR
from emul.vocabulary import AsyncEvent, EventType, WCStatus, WROpcode
from tests.helpers.adapters import AdapterPair, Party, connect_by_hand

NAMES = (
    "pd", "cq", "srq", "qp_num", "send_cq", "recv_cq", "channel", "cqe", "max_wr", "max_sge", "srq_limit", "mask",
    "access", "offset", "length", "lkey", "max_send_wr", "max_recv_wr", "max_send_sge", "max_recv_sge",
    "max_inline_data", "sq_sig_all", "qp_state", "cur_qp_state", "path_mtu", "qp_access_flags", "port_num",
    "pkey_index", "dest_qp_num", "rq_psn", "sq_psn", "max_rd_atomic", "max_dest_rd_atomic", "min_rnr_timer", "timeout",
    "retry_cnt", "rnr_retry", "fence_slot", "fence_epoch", "dgid", "service_id", "private_data", "number", "listener",
    "backlog", "reason", "at_once",
)  # fmt: skip
NUMBERS = st.one_of(st.integers(0, 8), st.integers(), st.sampled_from([1 << 31, 1 << 32, 1 << 64, 10**60, -1]))
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["10.77.0.2", "::ffff:10.77.0.2", "fe80::1", "00ff", "\ud800"]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), TEXTS)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
REQUESTS = st.fixed_dictionaries(
    {"op": st.one_of(st.sampled_from(sorted(_HANDLERS)), VALUES)},
    optional=dict.fromkeys(NAMES, st.one_of(NUMBERS, VALUES)),
)


def as_sent(request: dict[str, Any]) -> dict[str, Any]:
    """As it comes out of a channel."""
    parsed: dict[str, Any] = json.loads(json.dumps(request))
    return parsed


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(REQUESTS, st.integers(0, 2)), max_size=25))
def test_any_request_is_answered_and_a_connection_beside_it_works_on(
    requests: list[tuple[dict[str, Any], int]],
) -> None:
    pair = AdapterPair()
    a, b = (Party(context) for context in pair.contexts)
    connect_by_hand(pair, (a, b))
    mine = {"pd": a.pd.number, "cq": a.cq.number, "qp_num": a.qp.qp_num, "lkey": a.mr.lkey}
    for request, memories in requests:
        sent = as_sent(request)
        if any(sent.get(name) == value for name, value in mine.items()):
            continue  # a host may do to its own what it likes
        reply, answered = pair.adapters[0].execute(sent, [Memory.plain(64) for _ in range(memories)], now=pair.now)
        assert isinstance(reply, dict)
        assert all(isinstance(each, Memory) for each in answered)
        if "errno" in reply:
            assert isinstance(reply["errno"], int)
            assert reply["message"]
            assert not answered
        json.dumps(reply)
        pair.step()
    request_ = SendWR(1, WROpcode.RDMA_WRITE, 1, 0, [SGE(a.mr.buf, 8, a.mr.lkey)])
    request_.set_wr_rdma(b.mr.rkey, b.mr.buf)
    a.qp.post_send(request_)
    pair.settle()
    assert a.statuses() == [WCStatus.SUCCESS]
    context = a.context
    context.attach(2)  # what all that opened goes with the next incarnation
    assert not any(context.resources().values())


class Host:
    """A host that speaks the slow verbs itself, without the manners of `emul.verbs`."""

    def __init__(self, pair: AdapterPair) -> None:
        self.pair = pair

    def ask(self, op: str, *memories: Memory, **fields: object) -> dict[str, Any]:
        reply, _ = self.pair.adapters[0].execute({"op": op, **fields}, list(memories), now=self.pair.now)
        return reply


def test_what_is_in_use_is_not_given_back_before_what_uses_it() -> None:
    pair = AdapterPair()
    host = Host(pair)
    pd, channel = host.ask("alloc_pd")["pd"], host.ask("create_comp_channel")["channel"]
    cq, srq = host.ask("create_cq", cqe=4, channel=channel)["cq"], host.ask("create_srq", pd=pd, max_wr=4)["srq"]
    sizes = {"max_send_wr": 2, "max_recv_wr": 2}
    qp = host.ask("create_qp", pd=pd, send_cq=cq, recv_cq=cq, srq=srq, **sizes)["qp_num"]
    for op, fields, words in (
        ("dealloc_pd", {"pd": pd}, "still has"), ("destroy_cq", {"cq": cq}, "still has queue pairs"),
        ("destroy_srq", {"srq": srq}, "still has queue pairs"),
        ("destroy_comp_channel", {"channel": channel}, "still has completion queues"),
    ):  # fmt: skip
        reply = host.ask(op, **fields)
        assert (reply["errno"], words in reply["message"]) == (EBUSY, True)
    assert host.ask("create_qp", pd=pd, send_cq=cq, recv_cq=99, **sizes)["errno"] == ENOENT
    assert host.ask("dereg_mr", lkey=5)["errno"] == ENOENT
    assert host.ask("reg_mr", Memory.plain(8), pd=pd, access=1, offset=4, length=8)["errno"] == EINVAL
    assert "message" in host.ask("modify_qp", qp_num=qp, qp_state=2, port_num=1)  # no global route
    pair.contexts[0].attach(2)
    assert not any(pair.contexts[0].resources().values())


def test_a_channel_without_a_bell_leaves_nothing_behind() -> None:
    pair = AdapterPair()
    host = pair.adapters[0].host
    assert host is not None
    released: list[Memory] = []

    def no_bell() -> Memory:
        raise OSError(EMFILE, "too many")

    host._make_bell, host._release = no_bell, released.append
    assert Host(pair).ask("create_comp_channel") == {"errno": EMFILE, "message": "create_comp_channel: too many"}
    assert (len(released), host.resources()["comp_channel"]) == (1, 0)


def test_a_flood_of_events_is_bounded_and_counted() -> None:
    pair = AdapterPair()
    host = pair.adapters[0].host
    assert host is not None
    for number in range(EVENTS_MAX + 10):
        host.tell(AsyncEvent(EventType.EXCHANGE_WRITTEN, number))
    host.tell(AsyncEvent(EventType.EXCHANGE_WRITTEN, 0))  # one that waits already
    assert (len(host.events), host.events_dropped) == (EVENTS_MAX, 10)
