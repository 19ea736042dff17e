"""What ibv_modify_qp wants of an RC queue pair in each transition: attributes that must be named, and that may be.

InfiniBand specification vol. 1, table 91 (Modify QP, attributes for RC) and 11.2.5.2. Which transitions there are is
the queue pair's own matter.
"""

from __future__ import annotations

from errno import EINVAL

from emul.enums import QPAttrMask as Q
from emul.errors import RDMAError
from emul.vocabulary import QPAttr, QPState

_R, _I, _RTR, _RTS, _SQD, _SQE, _ERR = (
    QPState.RESET, QPState.INIT, QPState.RTR, QPState.RTS, QPState.SQD, QPState.SQE, QPState.ERR,
)  # fmt: skip
_NONE = Q(0)
_IN_INIT = Q.PKEY_INDEX | Q.PORT | Q.ACCESS_FLAGS
_RUNNING = Q.CUR_STATE | Q.ACCESS_FLAGS | Q.MIN_RNR_TIMER | Q.ALT_PATH | Q.PATH_MIG_STATE
PRIVATE = Q.FENCE
"""The emulated adapter's own attributes may be named wherever those of the responder are set."""

# (from, to) -> (required, optional); what may be reached from everywhere needs nothing
_TABLE: dict[tuple[QPState, QPState], tuple[Q, Q]] = {
    (_R, _I): (_IN_INIT, PRIVATE),
    (_I, _I): (_NONE, _IN_INIT | PRIVATE),
    (_I, _RTR): (
        Q.AV | Q.PATH_MTU | Q.DEST_QPN | Q.RQ_PSN | Q.MAX_DEST_RD_ATOMIC | Q.MIN_RNR_TIMER,
        Q.ALT_PATH | Q.ACCESS_FLAGS | Q.PKEY_INDEX | PRIVATE,
    ),
    (_RTR, _RTS): (Q.TIMEOUT | Q.RETRY_CNT | Q.RNR_RETRY | Q.SQ_PSN | Q.MAX_QP_RD_ATOMIC, _RUNNING),
    (_RTS, _RTS): (_NONE, _RUNNING),
    (_RTS, _SQD): (_NONE, Q.EN_SQD_ASYNC_NOTIFY),
    (_SQD, _RTS): (_NONE, _RUNNING),
    (_SQD, _SQD): (
        _NONE,
        _IN_INIT | Q.AV | Q.TIMEOUT | Q.RETRY_CNT | Q.RNR_RETRY | Q.MAX_QP_RD_ATOMIC | Q.MAX_DEST_RD_ATOMIC
        | Q.MIN_RNR_TIMER | Q.ALT_PATH | Q.PATH_MIG_STATE,
    ),
    (_SQE, _RTS): (_NONE, Q.CUR_STATE | Q.ACCESS_FLAGS | Q.MIN_RNR_TIMER),
}  # fmt: skip
_UNSUPPORTED = Q.ALT_PATH | Q.PATH_MIG_STATE | Q.QKEY | Q.CAP | Q.RATE_LIMIT
_CURRENT = frozenset({_RTR, _RTS, _SQD, _SQE})

# what each bit of the mask stands for
FIELDS: dict[Q, tuple[str, ...]] = {
    Q.EN_SQD_ASYNC_NOTIFY: ("en_sqd_async_notify",),
    Q.ACCESS_FLAGS: ("qp_access_flags",),
    Q.PKEY_INDEX: ("pkey_index",),
    Q.PORT: ("port_num",),
    Q.AV: ("ah_attr",),
    Q.PATH_MTU: ("path_mtu",),
    Q.TIMEOUT: ("timeout",),
    Q.RETRY_CNT: ("retry_cnt",),
    Q.RNR_RETRY: ("rnr_retry",),
    Q.RQ_PSN: ("rq_psn",),
    Q.MAX_QP_RD_ATOMIC: ("max_rd_atomic",),
    Q.MIN_RNR_TIMER: ("min_rnr_timer",),
    Q.SQ_PSN: ("sq_psn",),
    Q.MAX_DEST_RD_ATOMIC: ("max_dest_rd_atomic",),
    Q.DEST_QPN: ("dest_qp_num",),
    Q.FENCE: ("fence_slot", "fence_epoch"),
}


def required(start: QPState, target: QPState) -> Q:
    """The attributes that a transition can't do without."""
    return _TABLE.get((start, target), (_NONE, _NONE))[0]


def check_mask(start: QPState, target: QPState, mask: int) -> None:
    """Raises RDMAError (EINVAL) that names the attributes that are missing, or not allowed in this transition. Whether
    there is such a transition is not looked at.
    """
    given = Q(mask) & ~Q.STATE
    must, may = _TABLE.get((start, target), (_NONE, _NONE))
    missing, stray = must & ~given, given & ~(must | may)
    way = f"from {start.name} to {target.name}"
    if missing:
        raise RDMAError(EINVAL, f"{way} needs {_names(missing)}")
    if stray:
        raise RDMAError(EINVAL, f"{way} does not take {_names(stray)}")
    if given & _UNSUPPORTED:
        raise RDMAError(EINVAL, f"the adapter has no {_names(given & _UNSUPPORTED)}")


def merge(current: QPAttr, wanted: QPAttr, start: QPState, mask: int) -> QPAttr:
    """`current` with what `mask` names taken from `wanted`. Raises RDMAError (EINVAL) where the caller's idea of the
    present state is wrong.
    """
    given = Q(mask)
    if given & Q.CUR_STATE and (wanted.cur_qp_state not in _CURRENT or wanted.cur_qp_state is not start):
        raise RDMAError(EINVAL, f"cur_qp_state is {wanted.cur_qp_state.name}, the queue pair is in {start.name}")
    merged = QPAttr(**{name: getattr(current, name) for name in _ALL_FIELDS})
    for bit, names in FIELDS.items():
        if given & bit:
            for name in names:
                setattr(merged, name, getattr(wanted, name))
    merged.qp_state = wanted.qp_state if given & Q.STATE else start
    return merged


def given_fields(mask: int) -> frozenset[str]:
    """The attributes that a mask names."""
    return frozenset(name for bit, names in FIELDS.items() if Q(mask) & bit for name in names)


_ALL_FIELDS = tuple(name for names in FIELDS.values() for name in names)


def _names(mask: Q) -> str:
    return ", ".join(f"IBV_QP_{each.name}" for each in Q if each in mask) or f"mask {int(mask):#x}"


__all__ = ["FIELDS", "PRIVATE", "check_mask", "given_fields", "merge", "required"]
