"""Shared receive queues (pyverbs' `srq`)."""

from __future__ import annotations

from dataclasses import dataclass

from emul.enums import SrqAttrMask
from emul.queues import ReceiveRing
from emul.verbs.base import Resource, answered_int, as_int, expect
from emul.verbs.pd import PD
from emul.verbs.wr import post_receives
from emul.vocabulary import RecvWR


@dataclass(slots=True)
class SrqAttr:
    """Sizes of a shared receive queue, and below how many buffers it tells of SRQ_LIMIT_REACHED (0: never)."""

    max_wr: int = 100
    max_sge: int = 1
    srq_limit: int = 0


class SrqInitAttr:
    """How a shared receive queue is made."""

    def __init__(self, attr: SrqAttr | None = None) -> None:
        self.attr = SrqAttr() if attr is None else expect(attr, SrqAttr, "attr")

    @property
    def max_wr(self) -> int:
        """Buffers that it holds."""
        return self.attr.max_wr

    @property
    def max_sge(self) -> int:
        """Pieces that a buffer may have."""
        return self.attr.max_sge

    @property
    def srq_limit(self) -> int:
        """Below how many buffers it tells; only `SRQ.modify` arms it."""
        return self.attr.srq_limit


class SRQ(Resource):
    """A queue of buffers that several queue pairs take from; closing it closes those."""

    def __init__(self, creator: PD, attr: SrqInitAttr) -> None:
        super().__init__()
        self.pd = expect(creator, PD, "an SRQ's creator")
        self.context = self.pd.context
        expect(attr, SrqInitAttr, "attr")
        self.pd._check_open()
        reply, (self._memory,) = self.context.call(
            {
                "op": "create_srq",
                "pd": self.pd.number,
                "max_wr": as_int(attr.max_wr, "max_wr"),
                "max_sge": as_int(attr.max_sge, "max_sge"),
            }
        )
        self.number = answered_int(reply, "srq")
        self._ring: ReceiveRing | None = ReceiveRing(self._memory.buffer, attr.max_wr)
        self._belongs_to(self.pd)
        self.context._by_number["srq", self.number] = self

    def get_srq_num(self) -> int:
        """Its number."""
        return self.number

    def modify(self, attr: SrqAttr, comp_mask: int) -> None:
        """Arms the limit (IBV_SRQ_LIMIT): one SRQ_LIMIT_REACHED when fewer buffers are left. Raises RDMAError: EINVAL
        above its size, EOPNOTSUPP for IBV_SRQ_MAX_WR.
        """
        self._check_open()
        expect(attr, SrqAttr, "attr")
        mask = SrqAttrMask(as_int(comp_mask, "comp_mask"))
        request: dict[str, object] = {"op": "modify_srq", "srq": self.number, "mask": int(mask)}
        self.context.call({**request, "srq_limit": as_int(attr.srq_limit, "srq_limit")})

    def query(self) -> SrqAttr:
        """Its sizes and limit as they are; the limit is 0 once it was reached."""
        self._check_open()
        reply = self.context.call({"op": "query_srq", "srq": self.number})[0]
        return SrqAttr(*(answered_int(reply, name) for name in ("max_wr", "max_sge", "srq_limit")))

    def post_recv(self, wr: RecvWR, bad_wr: RecvWR | None = None) -> None:
        """Posts a buffer, and those chained to it. Raises RDMAError: ENOMEM when full, EINVAL for too many pieces; the
        request that failed is then copied to `bad_wr`.
        """
        if self._ring is None:
            raise self._closed_error()
        post_receives(self._ring, self._name(), wr, bad_wr)

    def _name(self) -> str:
        return f"SRQ {self.number}"

    def _destroy(self) -> None:
        self.context.call({"op": "destroy_srq", "srq": self.number})

    def _release(self) -> None:
        self._ring = None
        self._memory.close()
        self.context._by_number.pop(("srq", self.number), None)
