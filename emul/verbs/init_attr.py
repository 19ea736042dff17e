"""How a queue pair is made (of pyverbs' `qp`; there it is found here, too)."""

from __future__ import annotations

from dataclasses import dataclass

from emul.verbs.cq import CQ
from emul.verbs.srq import SRQ
from emul.vocabulary import QPCap, QPType


@dataclass(slots=True)
class QPInitAttr:
    """How a queue pair is made."""

    qp_type: QPType = QPType.RC
    qp_context: object = None
    scq: CQ | None = None
    rcq: CQ | None = None
    srq: SRQ | None = None
    cap: QPCap | None = None
    sq_sig_all: int = 1

    @property
    def send_cq(self) -> CQ | None:
        """`scq` under its other name."""
        return self.scq

    @property
    def recv_cq(self) -> CQ | None:
        """`rcq` under its other name."""
        return self.rcq
