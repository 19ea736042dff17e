"""The slow verbs as a hostile host would use them: any JSON at all is answered, and the adapter goes on."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from emul.host_context import _HANDLERS
from emul.memory import Memory
from emul.verbs.wr import SGE, SendWR
from emul.vocabulary import WCStatus, WROpcode
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
