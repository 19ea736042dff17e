"""Queue pairs (pyverbs' `qp`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from errno import EINVAL, ENOMEM
from typing import cast, overload

from emul.enums import QPAttrMask
from emul.errors import DeviceGone, PyverbsUserError, RDMAError
from emul.host_context import Request, attr_from_request, attr_to_request
from emul.queues import INLINE_BYTES_MAX, SEND_SGES_MAX, ReceiveRing, SendRing, send_ring_bytes
from emul.transitions import PRIVATE, required
from emul.verbs.base import Resource, answered_int, as_int, expect
from emul.verbs.cq import CQ
from emul.verbs.init_attr import QPInitAttr
from emul.verbs.mr import MR
from emul.verbs.pd import PD
from emul.verbs.srq import SRQ
from emul.verbs.wr import chain, check_id, copy_request, pieces, post_receives
from emul.vocabulary import SGE, QPAttr, QPCap, QPState, QPType, RecvWR, SendFlags, SendWR, WROpcode

_SIGNALED, _UNSIGNALED = int(SendFlags.SIGNALED), 0
_INLINE = int(SendFlags.INLINE)
_WRITE, _READ, _SEND = int(WROpcode.RDMA_WRITE), int(WROpcode.RDMA_READ), int(WROpcode.SEND)
_OPCODES = frozenset(int(opcode) for opcode in WROpcode)


class QP(Resource):
    """A reliable-connected queue pair. With `qp_attr` it goes on to INIT, as far as it can without knowing a peer."""

    def __init__(self, creator: PD, init_attr: QPInitAttr, qp_attr: QPAttr | None = None) -> None:
        super().__init__()
        self.pd = expect(creator, PD, "a QP's creator")
        self.pd._check_open()
        self.context = self.pd.context
        scq, rcq, srq = self._check_init_attr(expect(init_attr, QPInitAttr, "init_attr"))
        self.scq, self.rcq, self.srq = scq, rcq, srq
        cap = init_attr.cap or QPCap()
        request: dict[str, object] = {
            "op": "create_qp",
            "pd": self.pd.number,
            "send_cq": scq.number,
            "recv_cq": rcq.number,
            "sq_sig_all": init_attr.sq_sig_all,
            **{name: as_int(getattr(cap, name), name) for name in _CAP_NAMES},
        }
        if srq is not None:
            request["srq"] = srq.number
        if qp_attr is not None:
            request["then"] = [self._request_to(QPState.INIT, qp_attr)]
        reply, memories = self.context.call(request)
        self.qp_num = answered_int(reply, "qp_num")
        # As real cards do, it may hold more than was asked for: an engineer reads back what he was given.
        self.cap = replace(cap, **{name: answered_int(reply, name) for name in _CAP_NAMES})
        init_attr.cap = self.cap
        self._init_attr = init_attr
        self._memory = memories[0]
        split = send_ring_bytes(self.cap.max_send_wr)
        # None once it is closed; the receives of a shared queue are not here either.
        self._send: SendRing | None = SendRing(self._memory.buffer[:split], self.cap.max_send_wr)
        self._receive: ReceiveRing | None = None
        if srq is None:
            self._receive = ReceiveRing(self._memory.buffer[split:], self.cap.max_recv_wr)
        self._state = QPState.RESET if qp_attr is None else QPState.INIT
        """As last told: it may have gone on by itself, to ERR or through a connection manager."""
        self._ring_doorbell = self.context.device.ring
        self._belongs_to(self.pd, *{scq: None, rcq: None}, *([] if srq is None else [srq]))
        self.context._by_number["qp", self.qp_num] = self

    def _check_init_attr(self, attr: QPInitAttr) -> tuple[CQ, CQ, SRQ | None]:
        if attr.qp_type != QPType.RC:
            raise RDMAError(EINVAL, f"a queue pair is RC, got type {attr.qp_type!r}")
        scq, rcq = expect(attr.scq, CQ, "scq"), expect(attr.rcq, CQ, "rcq")
        used: list[CQ | SRQ] = [scq, rcq]
        if attr.srq is not None:
            used.append(expect(attr.srq, SRQ, "srq"))
        for each in used:
            each._check_open()
            if each.context is not self.context:
                raise PyverbsUserError(f"{each._name()} and the PD belong to different contexts")
        return scq, rcq, attr.srq

    # -- states -------------------------------------------------------------------------------------------------------

    @property
    def qp_type(self) -> QPType:
        """RC."""
        return QPType.RC

    @property
    def qp_state(self) -> QPState:
        """Its state, asked of the adapter."""
        return self.query().qp_state

    def modify(self, qp_attr: QPAttr, comp_mask: int | None = None) -> None:
        """Changes what `comp_mask` (IBV_QP_*) names, moving to `qp_attr.qp_state` where IBV_QP_STATE is among it.

        Without a mask, moves to `qp_attr.qp_state` with all that this transition takes. Raises RDMAError, state
        untouched: EINVAL for an illegal transition, an attribute that is missing or not allowed in it, or out of range.
        """
        self._check_open()
        request = attr_to_request(expect(qp_attr, QPAttr, "qp_attr"))
        if comp_mask is not None:
            request["mask"] = as_int(comp_mask, "comp_mask")
        self.context.call({"op": "modify_qp", "qp_num": self.qp_num, **request})
        if comp_mask is None or comp_mask & QPAttrMask.STATE:
            self._state = QPState(qp_attr.qp_state)

    def to_init(self, qp_attr: QPAttr) -> None:
        """RESET -> INIT."""
        self._to(QPState.INIT, qp_attr)

    def to_rtr(self, qp_attr: QPAttr) -> None:
        """RESET or INIT -> RTR."""
        if self.query().qp_state is not QPState.INIT:
            self.to_init(qp_attr)
        self._to(QPState.RTR, qp_attr)

    def to_rts(self, qp_attr: QPAttr) -> None:
        """RESET, INIT or RTR -> RTS."""
        if self.query().qp_state is not QPState.RTR:
            self.to_rtr(qp_attr)
        self._to(QPState.RTS, qp_attr)

    def modify_in_turn(self, *steps: QPAttr) -> None:
        """As `modify` with each of `steps`, in their order, and one message to the card for all of them: a slow card,
        or a busy machine, is waited for once. The first step that is refused is raised, and those before it hold.
        """
        self._check_open()
        first, *more = (attr_to_request(expect(step, QPAttr, "a step")) for step in steps)
        try:
            self.context.call({"op": "modify_qp", "qp_num": self.qp_num, **first, "then": more})
        except DeviceGone:
            raise
        except RDMAError:
            self._state = self.query().qp_state
            raise
        self._state = QPState(steps[-1].qp_state)

    def _request_to(self, state: QPState, qp_attr: QPAttr) -> Request:
        # As in pyverbs the caller's attributes say afterwards where it is.
        expect(qp_attr, QPAttr, "qp_attr").qp_state = state
        start = {QPState.INIT: QPState.RESET, QPState.RTR: QPState.INIT, QPState.RTS: QPState.RTR}[state]
        mask = required(start, state) | QPAttrMask.STATE
        return attr_to_request(qp_attr) | {"mask": int(mask | PRIVATE if state is not QPState.RTS else mask)}

    def _to(self, state: QPState, qp_attr: QPAttr) -> None:
        self._check_open()
        self.context.call({"op": "modify_qp", "qp_num": self.qp_num, **self._request_to(state, qp_attr)})
        self._state = state

    @overload
    def query(self) -> QPAttr: ...
    @overload
    def query(self, attr_mask: int) -> tuple[QPAttr, QPInitAttr]: ...
    def query(self, attr_mask: int | None = None) -> QPAttr | tuple[QPAttr, QPInitAttr]:
        """Its attributes as they are now; with a mask also, as in pyverbs, those that it was made with."""
        self._check_open()
        reply = self.context.call({"op": "query_qp", "qp_num": self.qp_num})[0]
        attr = attr_from_request(reply)
        attr.cur_qp_state = attr.qp_state
        attr.cap = replace(self.cap)
        self._state = attr.qp_state
        if attr_mask is None:
            return attr
        return attr, replace(self._init_attr, cap=replace(self.cap))

    def counters(self) -> dict[str, int]:
        """Its own counters: docs/counters.md."""
        self._check_open()
        counted = self.context.call({"op": "query_qp", "qp_num": self.qp_num})[0]["counters"]
        return {str(name): int(value) for name, value in cast("dict[str, int]", counted).items()}

    # -- work ---------------------------------------------------------------------------------------------------------

    def post_send(self, wr: SendWR, bad_wr: SendWR | None = None) -> None:
        """Hands a request, and those chained to it, to the adapter.

        Raises RDMAError: ENOMEM queue full, EINVAL too many pieces, inline data too long, an opcode that is none, or a
        state in which nothing is sent (RESET, INIT, RTR). The request that failed is then copied to `bad_wr`, and those
        before it are posted.
        """
        if self._state < QPState.RTS:
            self._check_sending()
        posted = False
        try:
            for request in chain(wr, SendWR):
                try:
                    self._post(request)
                except RDMAError:
                    copy_request(request, bad_wr)
                    raise
                posted = True
        finally:
            if posted:
                self._ring_doorbell(self.qp_num)

    def _post(self, wr: SendWR) -> None:
        opcode, flags = int(wr.opcode), int(wr.send_flags)
        if opcode not in _OPCODES or flags & ~0xF:
            raise RDMAError(EINVAL, f"no such request: opcode {wr.opcode!r}, flags {wr.send_flags!r}")
        sges = pieces(wr, SEND_SGES_MAX)
        _check_remote(wr)
        if opcode == WROpcode.FLUSH:
            sges = [SGE(0, wr.flush_length, 0)]  # it moves no local memory: the piece tells how much there
        inline = self._gather(sges) if flags & _INLINE else None
        if self._send is None:
            raise self._closed_error()
        if not self._send.post(
            opcode, flags, check_id(wr.wr_id), sges, wr.remote_addr, wr.rkey, wr.imm_data, inline, _operands(wr)
        ):
            raise RDMAError(ENOMEM, f"send queue of QP {self.qp_num} is full")

    def _gather(self, sges: list[SGE]) -> bytes:
        """The bytes of an inline request, taken now: the caller may change them at once, and needs no key for them."""
        size = sum(sge.length for sge in sges)
        if size > self.cap.max_inline_data:
            raise RDMAError(EINVAL, f"QP {self.qp_num} sends {self.cap.max_inline_data} bytes inline, got {size}")
        return b"".join(self._bytes_at(sge.addr, sge.length) for sge in sges)

    def _bytes_at(self, addr: int, length: int) -> memoryview:
        for region in self._regions():
            data = region.slice(addr, length)
            if data is not None:
                return data
        raise RDMAError(EINVAL, f"{length} bytes at {addr:#x} are in no open region of this context")

    def _regions(self) -> Iterator[MR]:
        for domain in self.context._children:
            yield from (child for child in domain._children if isinstance(child, MR))

    def _check_sending(self) -> None:
        state = self.query().qp_state
        if state < QPState.RTS:
            raise RDMAError(EINVAL, f"QP {self.qp_num} sends nothing in {state.name}")

    def post_write(
        self, wr_id: int, addr: int, length: int, lkey: int, remote_addr: int, rkey: int, signaled: bool = True
    ) -> None:
        """An RDMA WRITE of one piece of memory, without building a SendWR. Raises RDMAError (ENOMEM) when full."""
        if self._send is None:
            raise self._closed_error()
        if not self._send.post_one(
            _WRITE, _SIGNALED if signaled else _UNSIGNALED, wr_id, lkey, addr, length, remote_addr, rkey
        ):
            raise RDMAError(ENOMEM, f"send queue of QP {self.qp_num} is full")
        self._ring_doorbell(self.qp_num)

    def post_read(self, wr_id: int, addr: int, length: int, lkey: int, remote_addr: int, rkey: int) -> None:
        """An RDMA READ into one piece of memory, likewise."""
        if self._send is None:
            raise self._closed_error()
        if not self._send.post_one(_READ, _SIGNALED, wr_id, lkey, addr, length, remote_addr, rkey):
            raise RDMAError(ENOMEM, f"send queue of QP {self.qp_num} is full")
        self._ring_doorbell(self.qp_num)

    def post_message(self, wr_id: int, addr: int, length: int, lkey: int) -> None:
        """A SEND of one piece of memory, likewise. Raises RDMAError also in a state in which nothing is sent."""
        if self._state < QPState.RTS:
            self._check_sending()
        if self._send is None:
            raise self._closed_error()
        if not self._send.post_one(_SEND, _SIGNALED, wr_id, lkey, addr, length, 0, 0):
            raise RDMAError(ENOMEM, f"send queue of QP {self.qp_num} is full")
        self._ring_doorbell(self.qp_num)

    def post_buffer(self, wr_id: int, addr: int, length: int, lkey: int) -> None:
        """A buffer of one piece of memory, without building a RecvWR. Raises RDMAError as `post_recv` does."""
        if self.srq is not None:
            raise RDMAError(EINVAL, f"QP {self.qp_num} takes its buffers from {self.srq._name()}: post them there")
        if self._receive is None:
            raise self._closed_error()
        if not self._receive.post_one(wr_id, lkey, addr, length):
            raise RDMAError(ENOMEM, f"receive queue of {self._name()} is full")

    def post_recv(self, wr: RecvWR, bad_wr: RecvWR | None = None) -> None:
        """Posts a buffer, and those chained to it. Raises RDMAError: ENOMEM queue full; EINVAL too many pieces, or a
        queue pair that takes its buffers from a shared queue; the request that failed is then copied to `bad_wr`.
        """
        if self.srq is not None:
            raise RDMAError(EINVAL, f"QP {self.qp_num} takes its buffers from {self.srq._name()}: post them there")
        if self._receive is None:
            raise self._closed_error()
        post_receives(self._receive, self._name(), wr, bad_wr)

    # -- closing ------------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        return f"QP {self.qp_num}"

    def _destroy(self) -> None:
        # What was posted is forgotten without completions.
        self.context.call({"op": "destroy_qp", "qp_num": self.qp_num})

    def _release(self) -> None:
        self._send = self._receive = None
        self._memory.close()
        self.context._by_number.pop(("qp", self.qp_num), None)


_CAP_NAMES = ("max_send_wr", "max_recv_wr", "max_send_sge", "max_recv_sge", "max_inline_data")


def _operands(wr: SendWR) -> tuple[int, int]:
    return wr.compare_add, wr.swap


_WIDTHS = (
    ("remote_addr", 64), ("compare_add", 64), ("swap", 64), ("rkey", 32), ("imm_data", 32), ("flush_length", 32),
)  # fmt: skip


def _check_remote(wr: SendWR) -> None:
    for name, bits in _WIDTHS:
        value = getattr(wr, name)
        if not 0 <= value < 1 << bits:
            raise RDMAError(EINVAL, f"{name} has {bits} bits, got {value}")


__all__ = ["INLINE_BYTES_MAX", "QP", "QPAttr", "QPCap", "QPInitAttr"]
