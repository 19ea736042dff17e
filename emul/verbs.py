"""The verbs, under pyverbs' names: what a host does with an adapter.

Fast verbs (post, poll) touch shared rings only; slow ones go over the device's control channel and answer before they
return. Signatures follow rdma-core's pyverbs (`pyverbs/device.pyx`, `pd.pyx`, `mr.pyx`, `cq.pyx`, `qp.pyx`).
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL, ENOMEM

from emul.cm_events import CmEvent
from emul.device import Device
from emul.errors import DeviceGone, RDMAError
from emul.host_context import Reply, Request, attr_from_request, attr_to_request
from emul.memory import Memory
from emul.queues import (
    INLINE_BYTES_MAX,
    RECEIVE_SGES_MAX,
    SEND_SGES_MAX,
    CompletionRing,
    ReceiveRing,
    SendRing,
    send_ring_bytes,
)
from emul.vocabulary import (
    MTU,
    SGE,
    WC,
    AccessFlags,
    AsyncEvent,
    QPAttr,
    QPCap,
    QPState,
    QPType,
    RecvWR,
    SendFlags,
    SendWR,
    WCFlags,
    WCOpcode,
    WCStatus,
    WROpcode,
)

_STATUS = {int(status): status for status in WCStatus}
_OPCODE = {int(opcode): opcode for opcode in WCOpcode}
_FLAGS = {int(flags): flags for flags in (WCFlags.NONE, WCFlags.WITH_IMM, WCFlags.WITH_INV)}
_SIGNALED, _UNSIGNALED = int(SendFlags.SIGNALED), 0
_WRITE = int(WROpcode.RDMA_WRITE)


@dataclass(frozen=True, slots=True)
class PortAttr:
    """A port as it is now: `state` is "ACTIVE" or "DOWN"."""

    state: str
    active_mtu: MTU


class Context:
    """An open adapter. `attach` makes the caller its host."""

    def __init__(self, device: Device) -> None:
        self.device = device

    @property
    def event_fd(self) -> int:
        """Readable when an armed completion queue, an asynchronous or a connection event waits; -1 in the simulator."""
        return self.device.event_fd

    def descriptors(self) -> list[int]:
        """All descriptors that a host should wait on (also readable when the adapter dies)."""
        return self.device.descriptors()

    def attach(self, incarnation: int) -> None:
        """Becomes the adapter's host; what an earlier incarnation owned is destroyed."""
        self.device.attach(incarnation)

    def query_port(self, port_num: int = 1) -> PortAttr:
        """Carrier and active MTU of the port, of which there is one."""
        if port_num != 1:
            raise RDMAError(EINVAL, f"an adapter has port 1, not {port_num}")
        reply = self.call({"op": "query_port"})[0]
        return PortAttr(str(reply["state"]), MTU(_int(reply["active_mtu"])))

    def get_async_events(self) -> list[AsyncEvent]:
        """Asynchronous events since the last call; never blocks."""
        return self.device.take_events()

    def get_cm_events(self) -> list[CmEvent]:
        """Connection events since the last call; never blocks."""
        return self.device.take_cm_events()

    def clear_event(self) -> None:
        """Resets `event_fd`; call it before looking at what woke."""
        self.device.clear_wake()

    def counters(self) -> dict[str, int]:
        """All counters of the adapter."""
        return _int_dict(self.call({"op": "query_counters"})[0]["counters"])

    def resources(self) -> dict[str, int]:
        """How many pd, mr, cq and qp this host holds."""
        return _int_dict(self.call({"op": "query_counters"})[0]["resources"])

    def call(self, request: Request, memories: list[Memory] | None = None) -> tuple[Reply, list[Memory]]:
        """One slow verb. Raises RDMAError with the adapter's errno and sentence."""
        reply, answered = self.device.call(request, memories or [])
        if "errno" in reply:
            raise RDMAError(_int(reply["errno"]), f"{request['op']}: {reply.get('message', '')}")
        return reply, answered

    def close(self) -> None:
        """Lets go of the adapter; queue pairs and regions stay until another incarnation attaches."""
        self.device.close()


class PD:
    """A protection domain."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.number = _int(context.call({"op": "alloc_pd"})[0]["pd"])
        self._regions: dict[int, MR] = {}

    def add(self, mr: MR) -> None:
        """Knows the region by its lkey from now on."""
        self._regions[mr.lkey] = mr

    def remove(self, mr: MR) -> None:
        """Forgets it."""
        self._regions.pop(mr.lkey, None)

    def bytes_at(self, sge: SGE) -> bytes:
        """The bytes that a piece of memory holds now. Raises RDMAError (EINVAL) where no region here has them."""
        if not sge.length:
            return b""
        mr = self._regions.get(sge.lkey)
        if mr is None:
            raise RDMAError(EINVAL, f"no region with lkey {sge.lkey} in this protection domain")
        return mr.read(sge.length, sge.addr - mr.buf)

    def close(self) -> None:
        """Gives it back. Raises RDMAError (EBUSY) while regions or queue pairs are in it."""
        self.context.call({"op": "dealloc_pd", "pd": self.number})


class MR:
    """A memory region: `length` bytes of its own, or of `memory` from `offset`."""

    def __init__(self, pd: PD, length: int, access: AccessFlags, memory: Memory | None = None, offset: int = 0) -> None:
        if length <= 0:
            raise RDMAError(EINVAL, f"a region has at least one byte, got {length}")
        self.pd = pd
        self.length = length
        self._owns = memory is None
        self.memory = pd.context.device.allocate(length, "mr") if memory is None else memory
        self._offset = offset
        reply, _ = pd.context.call(
            {"op": "reg_mr", "pd": pd.number, "access": int(access), "offset": offset, "length": length}, [self.memory]
        )
        self.lkey = _int(reply["lkey"])
        self.rkey = _int(reply["rkey"])
        self.buf = _int(reply["addr"])
        """Its virtual address, the same here and over the wire."""
        pd.add(self)

    def read(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset`."""
        self._check(length, offset)
        start = self._offset + offset
        return bytes(self.memory.buffer[start : start + length])

    def write(self, data: bytes, length: int, offset: int = 0) -> None:
        """Stores the first `length` bytes of `data` at `offset`."""
        self._check(length, offset)
        start = self._offset + offset
        self.memory.buffer[start : start + length] = data[:length]

    def close(self) -> None:
        """Deregisters: packets that name its key are refused from now on."""
        try:
            self.pd.remove(self)
            self.pd.context.call({"op": "dereg_mr", "lkey": self.lkey})
        finally:
            if self._owns:
                self.memory.close()

    def _check(self, length: int, offset: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise RDMAError(EINVAL, f"{length} bytes at {offset} are not inside a region of {self.length}")


class CQ:
    """A completion queue of `cqe` entries."""

    def __init__(self, context: Context, cqe: int) -> None:
        self.context = context
        reply, memories = context.call({"op": "create_cq", "cqe": cqe})
        self.number = _int(reply["cq"])
        self._memory = memories[0]
        self._ring = CompletionRing(self._memory.buffer, cqe)

    def poll(self, num_entries: int = 1) -> tuple[int, list[WC]]:
        """Up to `num_entries` completions, oldest first, and how many they are."""
        completions = []
        poll = self._ring.poll
        for _ in range(num_entries):
            entry = poll()
            if entry is None:
                break
            wr_id, byte_len, qp_num, imm, status, opcode, flags = entry
            completions.append(WC(wr_id, _STATUS[status], _OPCODE[opcode], byte_len, qp_num, imm, _FLAGS[flags]))
        return len(completions), completions

    def req_notify(self, solicited_only: bool = False) -> None:
        """Wakes the context's event descriptor with the next completion (that the peer solicited, or that is an
        error); poll once more afterwards.
        """
        self._ring.arm(solicited_only)

    def close(self) -> None:
        """Gives it back. Raises RDMAError (EBUSY) while queue pairs use it."""
        try:
            self.context.call({"op": "destroy_cq", "cq": self.number})
        except DeviceGone:
            self._release()
            raise
        self._release()

    def _release(self) -> None:
        del self._ring
        self._memory.close()


@dataclass(slots=True)
class QPInitAttr:
    """How a queue pair is made."""

    qp_type: QPType = QPType.RC
    cap: QPCap | None = None
    scq: CQ | None = None
    rcq: CQ | None = None
    sq_sig_all: int = 1


class QP:
    """A reliable-connected queue pair."""

    def __init__(self, pd: PD, init_attr: QPInitAttr, qp_attr: QPAttr | None = None) -> None:
        cap = init_attr.cap or QPCap()
        if init_attr.qp_type is not QPType.RC or init_attr.scq is None or init_attr.rcq is None:
            raise RDMAError(EINVAL, "a queue pair is RC and has a send and a receive completion queue")
        self.context = pd.context
        self._pd = pd
        reply, memories = self.context.call(
            {
                "op": "create_qp",
                "pd": pd.number,
                "send_cq": init_attr.scq.number,
                "recv_cq": init_attr.rcq.number,
                "max_send_wr": cap.max_send_wr,
                "max_recv_wr": cap.max_recv_wr,
                "sq_sig_all": init_attr.sq_sig_all,
            }
        )
        self.qp_num = _int(reply["qp_num"])
        self._memory = memories[0]
        split = send_ring_bytes(cap.max_send_wr)
        self._send = SendRing(self._memory.buffer[:split], cap.max_send_wr)
        self._receive = ReceiveRing(self._memory.buffer[split:], cap.max_recv_wr)
        self._ring_doorbell = self.context.device.ring
        if qp_attr is not None:
            self.to_rts(qp_attr)

    def modify(self, qp_attr: QPAttr, mask: int = 0) -> None:
        """Moves to `qp_attr.qp_state` with the attributes that this transition needs (the mask is not needed)."""
        self.context.call({"op": "modify_qp", "qp_num": self.qp_num, **attr_to_request(qp_attr)})

    def to_init(self, qp_attr: QPAttr) -> None:
        """RESET -> INIT."""
        self._to(QPState.INIT, qp_attr)

    def to_rtr(self, qp_attr: QPAttr) -> None:
        """RESET or INIT -> RTR."""
        if self.query().qp_state is QPState.RESET:
            self._to(QPState.INIT, qp_attr)
        self._to(QPState.RTR, qp_attr)

    def to_rts(self, qp_attr: QPAttr) -> None:
        """RESET, INIT or RTR -> RTS."""
        if self.query().qp_state in (QPState.RESET, QPState.INIT):
            self.to_rtr(qp_attr)
        self._to(QPState.RTS, qp_attr)

    def query(self) -> QPAttr:
        """Its attributes as they are now."""
        return attr_from_request(self.context.call({"op": "query_qp", "qp_num": self.qp_num})[0])

    def counters(self) -> dict[str, int]:
        """Its own counters: retransmitted, rcvd_nak, timeouts, duplicate_request, sent_nak."""
        return _int_dict(self.context.call({"op": "query_qp", "qp_num": self.qp_num})[0]["counters"])

    def post_send(self, wr: SendWR) -> None:
        """Hands a request to the adapter. Raises RDMAError: ENOMEM queue full, EINVAL too many pieces."""
        sges = wr.sg or []
        if len(sges) > SEND_SGES_MAX:
            raise RDMAError(EINVAL, f"a request has {SEND_SGES_MAX} pieces at the most, got {len(sges)}")
        inline = self._inline_data(sges) if wr.send_flags & SendFlags.INLINE else None
        if wr.opcode is WROpcode.FLUSH:
            sges = [SGE(0, wr.flush_length, 0)]
        if not self._send.post(
            int(wr.opcode),
            int(wr.send_flags),
            wr.wr_id,
            sges,
            wr.remote_addr,
            wr.rkey,
            wr.imm_data,
            inline,
            (wr.compare_add, wr.swap),
        ):
            raise RDMAError(ENOMEM, f"send queue of QP {self.qp_num} is full")
        self._ring_doorbell(self.qp_num)

    def post_write(
        self, wr_id: int, addr: int, length: int, lkey: int, remote_addr: int, rkey: int, signaled: bool = True
    ) -> None:
        """An RDMA WRITE of one piece of memory, without building a SendWR. Raises RDMAError (ENOMEM) when full."""
        if not self._send.post_one(
            _WRITE, _SIGNALED if signaled else _UNSIGNALED, wr_id, lkey, addr, length, remote_addr, rkey
        ):
            raise RDMAError(ENOMEM, f"send queue of QP {self.qp_num} is full")
        self._ring_doorbell(self.qp_num)

    def post_recv(self, wr: RecvWR) -> None:
        """Posts a buffer. Raises RDMAError: ENOMEM queue full, EINVAL too many pieces."""
        sges = wr.sg or []
        if len(sges) > RECEIVE_SGES_MAX:
            raise RDMAError(EINVAL, f"a receive has {RECEIVE_SGES_MAX} pieces at the most, got {len(sges)}")
        if not self._receive.post(wr.wr_id, sges):
            raise RDMAError(ENOMEM, f"receive queue of QP {self.qp_num} is full")

    def _inline_data(self, sges: list[SGE]) -> bytes:
        """The bytes as they are now, so that the memory is the caller's again at once."""
        data = b"".join(self._pd.bytes_at(sge) for sge in sges)
        if len(data) > INLINE_BYTES_MAX:
            raise RDMAError(EINVAL, f"inline data is {INLINE_BYTES_MAX} bytes at the most, got {len(data)}")
        return data

    def close(self) -> None:
        """Destroys it; what was posted is forgotten without completions."""
        try:
            self.context.call({"op": "destroy_qp", "qp_num": self.qp_num})
        finally:
            del self._send, self._receive
            self._memory.close()

    def _to(self, state: QPState, qp_attr: QPAttr) -> None:
        self.modify(_with_state(qp_attr, state))


def _with_state(attr: QPAttr, state: QPState) -> QPAttr:
    request = attr_to_request(attr)
    request["qp_state"] = int(state)
    return attr_from_request(request)


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise RDMAError(EINVAL, f"the adapter answered {value!r} where a number was due")
    return value


def _int_dict(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise RDMAError(EINVAL, f"the adapter answered {value!r} where counters were due")
    return {str(name): int(number) for name, number in value.items()}
