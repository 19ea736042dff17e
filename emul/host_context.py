"""What a host owns in an adapter: protection domains, regions, completion queues, queue pairs, and the doorbell ring.

One context at a time, bound to one incarnation of the host. Closing the host's channel frees nothing (a dead host's
queue pairs go on answering); the next incarnation that attaches does. `execute` is the slow half of the verbs: a
request as a dict in, a reply as a dict out, memory beside it; whether a socket lies between is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP
from typing import Protocol

from emul.clock import Instant
from emul.cm_machine import ConnectionMachine
from emul.errors import RDMAError
from emul.memory import Memory
from emul.node_memory import FENCE_SLOTS
from emul.qp import QueuePair
from emul.queues import (
    DOORBELL_RING_BYTES,
    QUEUE_DEPTH_MAX,
    CompletionRing,
    DoorbellRing,
    ReceiveEntry,
    ReceiveRing,
    SendEntry,
    SendRing,
    completion_ring_bytes,
    receive_ring_bytes,
    send_ring_bytes,
)
from emul.regions import MemoryRegion, RegionTable
from emul.vocabulary import GID, MTU, AccessFlags, AHAttr, AsyncEvent, EventType, GlobalRoute, QPAttr, QPState
from emul.wire.address import address_bytes
from emul.wire.mad import RejectReason

Request = dict[str, object]
Reply = dict[str, object]
OBJECTS_MAX = 4096
"""Queue pairs, completion queues or protection domains of one host."""
EVENTS_MAX = 4096
"""Asynchronous events that wait for the host; at the bound the newest are dropped and counted."""
# attribute -> its largest value: what does not fit the field on the wire must never get so far
QP_ATTRIBUTES = {
    "dest_qp_num": (1 << 24) - 1,
    "rq_psn": (1 << 24) - 1,
    "sq_psn": (1 << 24) - 1,
    "max_rd_atomic": 128,
    "max_dest_rd_atomic": 128,
    "min_rnr_timer": 31,
    "timeout": 31,
    "retry_cnt": 7,
    "rnr_retry": 7,
    "en_sqd_async_notify": 1,
    "fence_slot": FENCE_SLOTS - 1,
    "fence_epoch": (1 << 64) - 1,
}


class Services(Protocol):
    """What a context needs of its adapter."""

    regions: RegionTable
    cm: ConnectionMachine

    def fresh_pd(self) -> int:
        """A protection domain number that is not in use."""

    def add_qp(self, qp: QueuePair) -> None:
        """Makes the queue pair reachable from the wire."""

    def remove_qp(self, number: int) -> None:
        """Takes it away."""

    def fresh_qpn(self) -> int:
        """A queue pair number not used lately."""

    def fence_epoch(self, slot: int) -> int:
        """The node's fence epoch of a slot."""

    def modify_qp(self, qp: QueuePair, attr: QPAttr, address: bytes | None, *, now: Instant) -> None:
        """Moves a queue pair, with a route to `address` where one is given."""

    def port_state(self) -> dict[str, object]:
        """Carrier and active MTU."""

    def path_mtu_max(self) -> MTU:
        """The largest path MTU that the port carries."""

    def counters(self) -> dict[str, int]:
        """All counters of the adapter."""


class CompletionQueue:
    """A host's completion queue: the sink of its queue pairs."""

    __slots__ = ("_wake", "lost", "number", "ring")

    def __init__(self, number: int, ring: CompletionRing, wake: Callable[[], None]) -> None:
        self.number = number
        self.ring = ring
        self._wake = wake
        self.lost = False

    def push(
        self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int, solicited: bool
    ) -> bool:
        """CompletionSink."""
        if not self.ring.push(wr_id, byte_len, qp_num, imm, status, opcode, flags):
            self.lost = True
            return False
        if self.ring.take_armed(solicited):
            self._wake()
        return True


class HostWork:
    """A host's send and receive rings: the source of a queue pair's work."""

    __slots__ = ("retire_send", "shares_receives", "take_receive", "take_send")

    def __init__(self, send: SendRing, receive: ReceiveRing, *, shares_receives: bool = False) -> None:
        self.shares_receives = shares_receives
        self.take_send: Callable[[], SendEntry | None] = send.take
        self.retire_send: Callable[[int], None] = send.retire
        self.take_receive: Callable[[], ReceiveEntry | None] = receive.take


class HostContext:
    """All that one incarnation of the host owns."""

    def __init__(
        self,
        services: Services,
        *,
        allocate: Callable[[int, str], Memory],
        release: Callable[[Memory], None],
        wake: Callable[[], None],
        incarnation: int,
    ) -> None:
        self._services = services
        self._allocate = allocate
        self._release = release
        self._wake = wake
        self.incarnation = incarnation
        self.memory = allocate(DOORBELL_RING_BYTES, "doorbells")
        self.doorbells = DoorbellRing(self.memory.buffer)
        self._pds: set[int] = set()
        self._regions: dict[int, MemoryRegion] = {}
        self._cqs: dict[int, CompletionQueue] = {}
        self._cq_memory: dict[int, Memory] = {}
        self._rings: dict[int, Memory] = {}
        self.qps: dict[int, QueuePair] = {}
        self._sinks: dict[int, tuple[int, int]] = {}
        self.events: list[AsyncEvent] = []
        self.events_dropped = 0
        self._next_cq = 1

    # -- events -------------------------------------------------------------------------------------------------------

    def tell(self, event: AsyncEvent) -> None:
        """Queues an asynchronous event for the host; one that already waits is not queued twice."""
        if event in self.events:
            return
        if len(self.events) >= EVENTS_MAX:
            self.events_dropped += 1
            return
        self.events.append(event)
        self._wake()

    # -- slow verbs ---------------------------------------------------------------------------------------------------

    def execute(self, request: Request, memories: list[Memory], *, now: Instant) -> tuple[Reply, list[Memory]]:
        """Carries out one request; an error reply has "errno" and "message", and nothing has changed."""
        handler = _HANDLERS.get(str(request.get("op")))
        try:
            if handler is None:
                raise RDMAError(EOPNOTSUPP, f"no verb named {request.get('op')!r}")
            return handler(self, request, memories, now)
        except RDMAError as error:
            return {"errno": error.errno, "message": str(error.strerror)}, []
        except (KeyError, TypeError, ValueError) as error:
            return {"errno": EINVAL, "message": f"{request.get('op')}: {type(error).__name__}: {error}"}, []

    def resources(self) -> dict[str, int]:
        """How many of each the host holds."""
        return {"pd": len(self._pds), "mr": len(self._regions), "cq": len(self._cqs), "qp": len(self.qps)}

    def destroy(self) -> None:
        """Everything goes: another incarnation attached, or the adapter was reset."""
        for number in list(self.qps):
            self._drop_qp(number)
        for region in self._regions.values():
            self._services.regions.deregister(region.key)
            self._release(region.memory)
        self._regions.clear()
        for number in list(self._cqs):
            self._drop_cq(number)
        self._pds.clear()
        self._release(self.memory)
        self._services.cm.forget_host()

    def _alloc_pd(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        _check_room(len(self._pds), "protection domains")
        number = self._services.fresh_pd()
        self._pds.add(number)
        return {"pd": number}, []

    def _dealloc_pd(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        number = self._pd(request)
        used = any(region.pd == number for region in self._regions.values())
        if used or any(qp.pd == number for qp in self.qps.values()):
            raise RDMAError(EBUSY, f"PD {number} still has regions or queue pairs")
        self._pds.discard(number)
        return {}, []

    def _reg_mr(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        if len(memories) != 1:
            raise RDMAError(EINVAL, f"reg_mr takes one memory, got {len(memories)}")
        region = self._services.regions.register(
            memories[0],
            pd=self._pd(request),
            access=AccessFlags(_number(request, "access")),
            offset=_number(request, "offset"),
            length=_number(request, "length"),
        )
        self._regions[region.key] = region
        return {"lkey": region.key, "rkey": region.key, "addr": region.addr}, []

    def _dereg_mr(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        region = self._regions.pop(_number(request, "lkey"), None)
        if region is None:
            raise RDMAError(ENOENT, f"no region with lkey {request.get('lkey')}")
        self._services.regions.deregister(region.key)
        self._release(region.memory)
        return {}, []

    def _create_cq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        _check_room(len(self._cqs), "completion queues")
        depth = _depth(request, "cqe")
        memory = self._allocate(completion_ring_bytes(depth), "cq")
        number, self._next_cq = self._next_cq, self._next_cq + 1
        self._cq_memory[number] = memory
        self._cqs[number] = CompletionQueue(number, CompletionRing(memory.buffer, depth), self._wake)
        return {"cq": number}, [memory]

    def _destroy_cq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        number = _number(request, "cq")
        if any(number in pair for pair in self._sinks.values()):
            raise RDMAError(EBUSY, f"CQ {number} still has queue pairs")
        if number not in self._cqs:
            raise RDMAError(ENOENT, f"no CQ {number}")
        self._drop_cq(number)
        return {}, []

    def _drop_cq(self, number: int) -> None:
        del self._cqs[number]
        self._release(self._cq_memory.pop(number))

    def _create_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        _check_room(len(self.qps), "queue pairs")
        pd = self._pd(request)
        send_cq, receive_cq = _number(request, "send_cq"), _number(request, "recv_cq")
        if send_cq not in self._cqs or receive_cq not in self._cqs:
            raise RDMAError(ENOENT, f"no CQ {send_cq} or {receive_cq}")
        send_depth, receive_depth = _depth(request, "max_send_wr"), _depth(request, "max_recv_wr")
        memory = self._allocate(send_ring_bytes(send_depth) + receive_ring_bytes(receive_depth), "qp")
        split = send_ring_bytes(send_depth)
        work = HostWork(SendRing(memory.buffer[:split], send_depth), ReceiveRing(memory.buffer[split:], receive_depth))
        qp = QueuePair(
            number=self._services.fresh_qpn(),
            pd=pd,
            regions=self._services.regions,
            work=work,
            send_sink=self._cqs[send_cq],
            receive_sink=self._cqs[receive_cq],
            signal_all=bool(request.get("sq_sig_all")),
            fence_epoch=self._services.fence_epoch,
        )
        self.qps[qp.number] = qp
        self._rings[qp.number] = memory
        self._sinks[qp.number] = (send_cq, receive_cq)
        self._services.add_qp(qp)
        return {"qp_num": qp.number}, [memory]

    def _destroy_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        self._drop_qp(self._qp(request).number)
        return {}, []

    def _drop_qp(self, number: int) -> None:
        self._services.remove_qp(number)
        self.qps.pop(number, None)
        self._sinks.pop(number, None)
        ring = self._rings.pop(number, None)
        if ring is not None:
            self._release(ring)

    def _modify_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        qp, attr = self._qp(request), attr_from_request(request)
        address = None
        if attr.qp_state is QPState.RTR:
            if attr.ah_attr.gr is None:
                raise RDMAError(EINVAL, f"QP {qp.number} needs a global route (ah_attr.gr) for RTR")
            address = address_bytes(attr.ah_attr.gr.dgid.gid)
        self._services.modify_qp(qp, attr, address, now=now)
        return {}, []

    def _query_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        qp = self._qp(request)
        return {**attr_to_request(qp.query()), "counters": qp.counters()}, []

    def _query_port(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        return self._services.port_state(), []

    def _query_counters(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        return {"counters": self._services.counters(), "resources": self.resources()}, []

    def _cm_connect(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        qp, attr = self._qp_in_init(request), attr_from_request(request)
        most = self._services.path_mtu_max()
        if attr.path_mtu > most:
            raise RDMAError(EINVAL, f"path MTU {attr.path_mtu.size} does not fit the port's {most.size}")
        number = self._services.cm.connect(
            qp.number,
            address_bytes(str(request["dgid"])),
            _number(request, "service_id"),
            _private_data(request),
            attr,
            at_once=bool(request.get("at_once")),
            now=now,
        )
        return {"number": number}, []

    def _cm_establish(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        number = _number(request, "number")
        if not self._services.cm.establish(number, _private_data(request), now=now):
            raise RDMAError(EINVAL, f"connection {number} has no reply to agree with")
        return {}, []

    def _cm_listen(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        listener = self._services.cm.listen(_number(request, "service_id"), _number(request, "backlog", 0))
        return {"listener": listener}, []

    def _cm_unlisten(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        self._services.cm.unlisten(_number(request, "listener"), now=now)
        return {}, []

    def _cm_accept(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        qp, attr = self._qp_in_init(request), attr_from_request(request)
        self._services.cm.accept(_number(request, "number"), qp.number, _private_data(request), attr, now=now)
        return {}, []

    def _cm_reject(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        reason = _number(request, "reason", int(RejectReason.CONSUMER))
        if not 0 < reason < 1 << 16:
            raise RDMAError(EINVAL, f"a reason is 1 ... {(1 << 16) - 1}, got {reason}")
        self._services.cm.reject(_number(request, "number"), _private_data(request), reason=reason, now=now)
        return {}, []

    def _cm_disconnect(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        self._services.cm.disconnect(_number(request, "number"), now=now)
        return {}, []

    def _cm_destroy(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        self._services.cm.destroy(_number(request, "number"), now=now)
        return {}, []

    def _qp_in_init(self, request: Request) -> QueuePair:
        qp = self._qp(request)
        if qp.state is not QPState.INIT:
            raise RDMAError(EINVAL, f"QP {qp.number} must be in INIT to be connected, is in {qp.state.name}")
        return qp

    def _pd(self, request: Request) -> int:
        number = _number(request, "pd")
        if number not in self._pds:
            raise RDMAError(ENOENT, f"no PD {number}")
        return number

    def _qp(self, request: Request) -> QueuePair:
        number = _number(request, "qp_num")
        qp = self.qps.get(number)
        if qp is None:
            raise RDMAError(ENOENT, f"no QP {number}")
        return qp


_Handler = Callable[[HostContext, Request, list[Memory], Instant], tuple[Reply, list[Memory]]]
_HANDLERS: dict[str, _Handler] = {
    "alloc_pd": HostContext._alloc_pd,
    "dealloc_pd": HostContext._dealloc_pd,
    "reg_mr": HostContext._reg_mr,
    "dereg_mr": HostContext._dereg_mr,
    "create_cq": HostContext._create_cq,
    "destroy_cq": HostContext._destroy_cq,
    "create_qp": HostContext._create_qp,
    "destroy_qp": HostContext._destroy_qp,
    "modify_qp": HostContext._modify_qp,
    "query_qp": HostContext._query_qp,
    "query_port": HostContext._query_port,
    "query_counters": HostContext._query_counters,
    "cm_connect": HostContext._cm_connect,
    "cm_establish": HostContext._cm_establish,
    "cm_listen": HostContext._cm_listen,
    "cm_unlisten": HostContext._cm_unlisten,
    "cm_accept": HostContext._cm_accept,
    "cm_reject": HostContext._cm_reject,
    "cm_disconnect": HostContext._cm_disconnect,
    "cm_destroy": HostContext._cm_destroy,
}


def attr_from_request(request: Request) -> QPAttr:
    """The attributes that a host sent; what it left out has its default."""
    attr = QPAttr(
        qp_state=QPState(_number(request, "qp_state")),
        path_mtu=MTU(_number(request, "path_mtu", int(MTU.MTU_1024))),
        qp_access_flags=AccessFlags(_number(request, "qp_access_flags", 0)),
    )
    for name, largest in QP_ATTRIBUTES.items():
        if name in request:
            value = _number(request, name)
            if value > largest:
                raise RDMAError(EINVAL, f"{name} must be 0 ... {largest}, got {value}")
            setattr(attr, name, value)
    dgid = request.get("dgid")
    if dgid is not None:
        attr.ah_attr = AHAttr(gr=GlobalRoute(dgid=GID(str(dgid))))
    return attr


def attr_to_request(attr: QPAttr) -> Request:
    """The same attributes as a host sends them."""
    request: Request = {name: getattr(attr, name) for name in QP_ATTRIBUTES}
    request["qp_state"] = int(attr.qp_state)
    request["path_mtu"] = int(attr.path_mtu)
    request["qp_access_flags"] = int(attr.qp_access_flags)
    if attr.ah_attr.gr is not None:
        request["dgid"] = attr.ah_attr.gr.dgid.gid
    return request


def _private_data(request: Request) -> bytes:
    return bytes.fromhex(str(request.get("private_data", "")))


def _number(request: Request, name: str, default: int | None = None) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RDMAError(EINVAL, f"{request.get('op')}: {name} must be a number from 0, got {value!r}")
    return value


def _depth(request: Request, name: str) -> int:
    depth = _number(request, name)
    if not 0 < depth <= QUEUE_DEPTH_MAX:
        raise RDMAError(EINVAL, f"{name} must be 1 ... {QUEUE_DEPTH_MAX}, got {depth}")
    return depth


def _check_room(count: int, what: str) -> None:
    if count >= OBJECTS_MAX:
        raise RDMAError(ENOMEM, f"a host holds {OBJECTS_MAX} {what} at the most")


__all__ = ["CompletionQueue", "EventType", "HostContext", "Reply", "Request", "Services"]
