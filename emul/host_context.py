"""What a host owns in an adapter: protection domains, regions, completion queues, queue pairs, and the doorbell ring.

One context at a time, bound to one incarnation of the host. Closing the host's channel frees nothing (a dead host's
queue pairs go on answering); the next incarnation that attaches does. `execute` is the slow half of the verbs: a
request as a dict in, a reply as a dict out, memory beside it; whether a socket lies between is not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from errno import EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP
from typing import Protocol, TypeVar

from emul.clock import Instant
from emul.cm_machine import ConnectionMachine
from emul.errors import RDMAError
from emul.host_objects import CompletionChannel, CompletionQueue, HostWork, SharedReceives, Tally
from emul.memory import Memory
from emul.node_memory import FENCE_SLOTS
from emul.qp import TRANSITIONS, QueuePair
from emul.queues import (
    DOORBELL_RING_BYTES,
    INLINE_BYTES_MAX,
    QUEUE_DEPTH_MAX,
    RECEIVE_SGES_MAX,
    SEND_SGES_MAX,
    DoorbellRing,
    ReceiveRing,
    SendRing,
    completion_ring_bytes,
    receive_ring_bytes,
    send_ring_bytes,
)
from emul.regions import REGIONS_MAX, MemoryRegion, RegionTable
from emul.transitions import check_mask, given_fields, merge
from emul.vocabulary import GID, MTU, AccessFlags, AHAttr, AsyncEvent, EventType, GlobalRoute, QPAttr, QPState
from emul.wire.address import address_bytes
from emul.wire.mad import RejectReason

Request = dict[str, object]
Reply = dict[str, object]
OBJECTS_MAX = 4096
"""Queue pairs, completion queues or protection domains of one host."""
STEPS_MAX = 4
"""Changes of a queue pair's state that one message may ask for besides its own."""
EVENTS_MAX = 4096
"""Asynchronous events that wait for the host; at the bound the newest are dropped and counted."""
# attribute -> its largest value: what does not fit the field on the wire must never get so far
GLOBAL_ROUTE = {"flow_label": 0xFFFFF, "sgid_index": 0xFF, "hop_limit": 0xFF, "traffic_class": 0xFF}
"""Fields of a global route besides the GID, and the largest value of each."""
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
    "sq_draining": 1,
    "fence_slot": FENCE_SLOTS - 1,
    "fence_epoch": (1 << 64) - 1,
}
_QP_EVENTS = frozenset(
    {
        EventType.QP_FATAL,
        EventType.QP_REQ_ERR,
        EventType.QP_ACCESS_ERR,
        EventType.COMM_EST,
        EventType.SQ_DRAINED,
        EventType.QP_LAST_WQE_REACHED,
    }
)
_CQ_EVENTS = frozenset({EventType.CQ_ERR})
_SRQ_EVENTS = frozenset({EventType.SRQ_ERR, EventType.SRQ_LIMIT_REACHED})
_WRITTEN_BY_PEERS = AccessFlags.REMOTE_WRITE | AccessFlags.REMOTE_ATOMIC
_OPTIONAL_ACCESS = 0x3FF << 20
"""Access flags that a card may ignore (IBV_ACCESS_OPTIONAL_RANGE), such as relaxed ordering."""
_ACCESS = sum(AccessFlags)
_SRQ_MAX_WR, _SRQ_LIMIT = 1, 2


class Services(Protocol):
    """What a context needs of its adapter."""

    regions: RegionTable
    cm: ConnectionMachine
    tally: Tally

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

    def modify_qp(
        self, qp: QueuePair, attr: QPAttr, address: bytes | None, *, now: Instant, given: frozenset[str] | None = None
    ) -> None:
        """Moves a queue pair, with a route to `address` where one is given; `given` names the attributes to change
        where its state stays.
        """

    def port_state(self) -> dict[str, object]:
        """Carrier, MTUs and GIDs."""

    def device_facts(self) -> dict[str, object]:
        """Identity and limits of the card."""

    def port_counters(self) -> dict[str, int]:
        """The port's own counters."""

    def path_mtu_max(self) -> MTU:
        """The largest path MTU that the port carries."""

    def counters(self) -> dict[str, int]:
        """All counters of the adapter."""


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
        make_bell: Callable[[], Memory] = lambda: Memory.plain(0),
        ring_bell: Callable[[Memory], None] = lambda bell: None,
    ) -> None:
        self._services = services
        self._make_bell = make_bell
        self._ring_bell = ring_bell
        self._allocate = allocate
        self._release = release
        self._wake = wake
        self.incarnation = incarnation
        self.memory = allocate(DOORBELL_RING_BYTES, "doorbells")
        self.doorbells = DoorbellRing(self.memory.buffer)
        self._pds: set[int] = set()
        self._regions: dict[int, MemoryRegion] = {}
        self._cqs: dict[int, CompletionQueue] = {}
        self._channels: dict[int, CompletionChannel] = {}
        self._srqs: dict[int, SharedReceives] = {}
        self._rings: dict[int, Memory] = {}
        self.qps: dict[int, QueuePair] = {}
        self._sinks: dict[int, tuple[int, int]] = {}
        self._srq_pds: dict[int, int] = {}
        self._shares: dict[int, int] = {}
        """Which shared receive queue a queue pair takes from."""
        self.events: list[AsyncEvent] = []
        self.events_dropped = 0
        self._next_number = 1

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

    def tell_lost_queue(self, qp_num: int) -> None:
        """Tells that a completion of queue pair `qp_num` found no room, and in which of its two queues."""
        pair = self._sinks.get(qp_num)
        if pair is None:
            return
        lost = [number for number in pair if self._cqs[number].lost] or pair
        self._cqs[lost[0]].lost = False
        self.tell(AsyncEvent(EventType.CQ_ERR, lost[0]))

    # -- slow verbs ---------------------------------------------------------------------------------------------------

    def execute(self, request: Request, memories: list[Memory], *, now: Instant) -> tuple[Reply, list[Memory]]:
        """Carries out one request; an error reply has "errno" and "message", and nothing has changed."""
        handler = _HANDLERS.get(str(request.get("op")))
        try:
            if handler is None:
                raise RDMAError(EOPNOTSUPP, f"no verb named {request.get('op')!r}")
            return handler(self, request, memories, now)
        except RDMAError as error:
            return {"errno": error.errno, "message": error.sentence}, []
        except (LookupError, TypeError, ValueError, ArithmeticError, struct.error) as error:
            return {"errno": EINVAL, "message": f"{request.get('op')}: {type(error).__name__}: {error}"}, []
        except OSError as error:  # no descriptors or no memory left: the host's own doing
            return {"errno": error.errno or ENOMEM, "message": f"{request.get('op')}: {error.strerror}"}, []

    def resources(self) -> dict[str, int]:
        """How many of each the host holds."""
        return {
            "pd": len(self._pds), "mr": len(self._regions), "cq": len(self._cqs), "qp": len(self.qps),
            "comp_channel": len(self._channels), "srq": len(self._srqs),
        }  # fmt: skip

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
        for number in list(self._srqs):
            self._release(self._srqs.pop(number).memory)
        for number in list(self._channels):
            self._drop_channel(number)
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
        if used or any(qp.pd == number for qp in self.qps.values()) or number in self._srq_pds.values():
            raise RDMAError(EBUSY, f"PD {number} still has regions, queue pairs or shared receive queues")
        self._pds.discard(number)
        return {}, []

    def _reg_mr(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        if len(memories) != 1:
            raise RDMAError(EINVAL, f"reg_mr takes one memory, got {len(memories)}")
        access = _access(request)
        region = self._services.regions.register(
            memories[0],
            pd=self._pd(request),
            access=access,
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

    def _create_comp_channel(
        self, request: Request, memories: list[Memory], now: Instant
    ) -> tuple[Reply, list[Memory]]:
        _check_room(len(self._channels), "completion channels")
        number = self._fresh_number()
        memory = self._allocate(DOORBELL_RING_BYTES, "comp_channel")
        try:
            bell = self._make_bell()
        except OSError:
            self._release(memory)
            raise
        channel = self._channels[number] = CompletionChannel(number, memory, bell, self._ring_bell)
        return {"channel": number}, [channel.memory, channel.bell]

    def _destroy_comp_channel(
        self, request: Request, memories: list[Memory], now: Instant
    ) -> tuple[Reply, list[Memory]]:
        channel = self._channel(request)
        if any(cq.channel is channel for cq in self._cqs.values()):
            raise RDMAError(EBUSY, f"completion channel {channel.number} still has completion queues")
        self._drop_channel(channel.number)
        return {}, []

    def _drop_channel(self, number: int) -> None:
        channel = self._channels.pop(number)
        self._release(channel.memory)
        self._release(channel.bell)

    def _create_cq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        _check_room(len(self._cqs), "completion queues")
        depth = _depth(request, "cqe")
        channel = self._channel(request) if "channel" in request else None
        memory = self._allocate(completion_ring_bytes(depth), "cq")
        number = self._fresh_number()
        self._cqs[number] = CompletionQueue(number, memory, depth, channel, self._wake, self._services.tally)
        return {"cq": number}, [memory]

    def _resize_cq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        cq, depth = self._cq(request), _depth(request, "cqe")
        waiting = cq.ring.waiting()
        if waiting > depth:
            raise RDMAError(EINVAL, f"{waiting} completions wait in CQ {cq.number}, {depth} would not hold them")
        memory = self._allocate(completion_ring_bytes(depth), "cq")
        self._release(cq.move(memory, depth))
        return {}, [memory]

    def _destroy_cq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        number = self._cq(request).number
        if any(number in pair for pair in self._sinks.values()):
            raise RDMAError(EBUSY, f"CQ {number} still has queue pairs")
        self._drop_cq(number)
        return {}, []

    def _drop_cq(self, number: int) -> None:
        self._release(self._cqs.pop(number).memory)
        self._forget_events(number, _CQ_EVENTS)

    def _create_srq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        _check_room(len(self._srqs), "shared receive queues")
        pd, depth, max_sge = self._pd(request), _depth(request, "max_wr"), _number(request, "max_sge", 1)
        if max_sge > RECEIVE_SGES_MAX:
            raise RDMAError(EINVAL, f"max_sge must be 0 ... {RECEIVE_SGES_MAX}, got {max_sge}")
        memory = self._allocate(receive_ring_bytes(depth), "srq")
        number = self._fresh_number()
        self._srqs[number] = SharedReceives(number, memory, depth, RECEIVE_SGES_MAX, self._tell_low)
        self._srq_pds[number] = pd
        return {"srq": number}, [memory]

    def _tell_low(self, number: int) -> None:
        self.tell(AsyncEvent(EventType.SRQ_LIMIT_REACHED, number))

    def _modify_srq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        srq, mask = self._srq(request), _number(request, "mask")
        if mask & ~(_SRQ_MAX_WR | _SRQ_LIMIT):
            raise RDMAError(EINVAL, f"no such attributes of an SRQ: mask {mask:#x}")
        if mask & _SRQ_MAX_WR:
            raise RDMAError(EOPNOTSUPP, "the adapter has no IBV_DEVICE_SRQ_RESIZE")
        limit = _number(request, "srq_limit")
        if limit > srq.depth:
            raise RDMAError(EINVAL, f"srq_limit must be 0 ... {srq.depth}, got {limit}")
        if mask:
            srq.limit = limit
        return {}, []

    def _query_srq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        srq = self._srq(request)
        return {"max_wr": srq.depth, "max_sge": srq.max_sge, "srq_limit": srq.limit}, []

    def _destroy_srq(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        number = self._srq(request).number
        if number in self._shares.values():
            raise RDMAError(EBUSY, f"SRQ {number} still has queue pairs")
        self._release(self._srqs.pop(number).memory)
        del self._srq_pds[number]
        self._forget_events(number, _SRQ_EVENTS)
        return {}, []

    def _create_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        _check_room(len(self.qps), "queue pairs")
        steps = _steps(request)
        pd = self._pd(request)
        send_cq, receive_cq = _number(request, "send_cq"), _number(request, "recv_cq")
        if send_cq not in self._cqs or receive_cq not in self._cqs:
            raise RDMAError(ENOENT, f"no CQ {send_cq} or {receive_cq}")
        srq = self._srq(request) if "srq" in request else None
        granted = _capabilities(request, shared=srq is not None)
        send_depth, receive_depth = granted["max_send_wr"], granted["max_recv_wr"]
        split = send_ring_bytes(send_depth)
        memory = self._allocate(split + (0 if srq else receive_ring_bytes(receive_depth)), "qp")
        receives = srq or ReceiveRing(memory.buffer[split:], receive_depth)
        qp = QueuePair(
            number=self._services.fresh_qpn(),
            pd=pd,
            regions=self._services.regions,
            work=HostWork(SendRing(memory.buffer[:split], send_depth), receives),
            send_sink=self._cqs[send_cq],
            receive_sink=self._cqs[receive_cq],
            signal_all=bool(request.get("sq_sig_all")),
            fence_epoch=self._services.fence_epoch,
            receive_pd=None if srq is None else self._srq_pds[srq.number],
        )
        self.qps[qp.number] = qp
        self._rings[qp.number] = memory
        self._sinks[qp.number] = (send_cq, receive_cq)
        if srq is not None:
            self._shares[qp.number] = srq.number
        self._services.add_qp(qp)
        try:
            for step in steps:
                self._move_qp(qp, step, now)
        except (RDMAError, LookupError, TypeError, ValueError):
            self._drop_qp(qp.number)
            raise
        return {"qp_num": qp.number, **granted}, [memory]

    def _destroy_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        self._drop_qp(self._qp(request).number)
        return {}, []

    def _drop_qp(self, number: int) -> None:
        self._services.remove_qp(number)
        self.qps.pop(number, None)
        self._sinks.pop(number, None)
        self._shares.pop(number, None)
        self._forget_events(number, _QP_EVENTS)
        ring = self._rings.pop(number, None)
        if ring is not None:
            self._release(ring)

    def _modify_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        qp, steps = self._qp(request), _steps(request)
        for step in (request, *steps):
            self._move_qp(qp, step, now)
        return {}, []

    def _move_qp(self, qp: QueuePair, request: Request, now: Instant) -> None:
        attr, given = attr_from_request(request), None
        if "mask" in request:
            mask, start = _number(request, "mask"), qp.state
            wanted = merge(qp.attr, attr, start, mask)
            if wanted.qp_state in TRANSITIONS[start]:  # what is no transition at all is told as that
                check_mask(start, wanted.qp_state, mask)
            attr, given = wanted, given_fields(mask)
        _check_fixed(attr)
        address = None
        if attr.qp_state is QPState.RTR:
            if attr.ah_attr.gr is None:
                raise RDMAError(EINVAL, f"QP {qp.number} needs a global route (ah_attr.gr) for RTR")
            address = address_bytes(attr.ah_attr.gr.dgid.gid)
        self._services.modify_qp(qp, attr, address, now=now, given=given)

    def _query_qp(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        qp = self._qp(request)
        attr = attr_to_request(qp.query())
        return {**attr, "sq_draining": int(qp.is_draining()), "counters": qp.counters()}, []

    def _query_device(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        limits: Reply = {
            "max_qp": OBJECTS_MAX, "max_qp_wr": QUEUE_DEPTH_MAX, "max_sge": SEND_SGES_MAX, "max_sge_rd": SEND_SGES_MAX,
            "max_cq": OBJECTS_MAX, "max_cqe": QUEUE_DEPTH_MAX, "max_mr": REGIONS_MAX, "max_pd": OBJECTS_MAX,
            "max_srq": OBJECTS_MAX, "max_srq_wr": QUEUE_DEPTH_MAX, "max_srq_sge": RECEIVE_SGES_MAX,
            "max_inline_data": INLINE_BYTES_MAX,
        }  # fmt: skip
        return {**self._services.device_facts(), **limits}, []

    def _query_port(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        return self._services.port_state(), []

    def _query_counters(self, request: Request, memories: list[Memory], now: Instant) -> tuple[Reply, list[Memory]]:
        counted, port = self._services.counters(), self._services.port_counters()
        return {"counters": counted, "port": port, "resources": self.resources()}, []

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

    def _fresh_number(self) -> int:
        number, self._next_number = self._next_number, self._next_number + 1
        return number

    def _forget_events(self, element: int, kinds: frozenset[EventType]) -> None:
        self.events = [each for each in self.events if each.element != element or each.event_type not in kinds]

    def _channel(self, request: Request) -> CompletionChannel:
        return _find(self._channels, request, "channel")

    def _cq(self, request: Request) -> CompletionQueue:
        return _find(self._cqs, request, "cq")

    def _srq(self, request: Request) -> SharedReceives:
        return _find(self._srqs, request, "srq")

    def _pd(self, request: Request) -> int:
        number = _number(request, "pd")
        if number not in self._pds:
            raise RDMAError(ENOENT, f"no PD {number}")
        return number

    def _qp(self, request: Request) -> QueuePair:
        return _find(self.qps, request, "qp_num")


_Handler = Callable[[HostContext, Request, list[Memory], Instant], tuple[Reply, list[Memory]]]
_HANDLERS: dict[str, _Handler] = {
    "alloc_pd": HostContext._alloc_pd,
    "dealloc_pd": HostContext._dealloc_pd,
    "reg_mr": HostContext._reg_mr,
    "dereg_mr": HostContext._dereg_mr,
    "create_comp_channel": HostContext._create_comp_channel,
    "destroy_comp_channel": HostContext._destroy_comp_channel,
    "create_cq": HostContext._create_cq,
    "resize_cq": HostContext._resize_cq,
    "destroy_cq": HostContext._destroy_cq,
    "create_srq": HostContext._create_srq,
    "modify_srq": HostContext._modify_srq,
    "query_srq": HostContext._query_srq,
    "destroy_srq": HostContext._destroy_srq,
    "create_qp": HostContext._create_qp,
    "destroy_qp": HostContext._destroy_qp,
    "modify_qp": HostContext._modify_qp,
    "query_qp": HostContext._query_qp,
    "query_device": HostContext._query_device,
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
        qp_state=_member(QPState, request, "qp_state", QPState.RESET),
        cur_qp_state=_member(QPState, request, "cur_qp_state", QPState.RESET),
        path_mtu=_member(MTU, request, "path_mtu", MTU.MTU_1024),
        qp_access_flags=AccessFlags(_number(request, "qp_access_flags", 0)),
        port_num=_number(request, "port_num", 1),
        pkey_index=_number(request, "pkey_index", 0),
    )
    for name, largest in QP_ATTRIBUTES.items():
        if name in request:
            value = _number(request, name)
            if value > largest:
                raise RDMAError(EINVAL, f"{name} must be 0 ... {largest}, got {value}")
            setattr(attr, name, value)
    dgid = request.get("dgid")
    if dgid is not None:
        route = GlobalRoute(dgid=GID(str(dgid)))
        for name, largest in GLOBAL_ROUTE.items():
            value = _number(request, name, getattr(route, name))
            if value > largest:
                raise RDMAError(EINVAL, f"{name} must be 0 ... {largest}, got {value}")
            setattr(route, name, value)
        attr.ah_attr = AHAttr(gr=route, is_global=1)
    return attr


_PLAIN = (*QP_ATTRIBUTES, "qp_state", "cur_qp_state", "path_mtu", "qp_access_flags", "port_num", "pkey_index")


def attr_to_request(attr: QPAttr) -> Request:
    """The same attributes as a host sends them. Raises RDMAError (EINVAL) for what is no number."""
    request: Request = {}
    for name in _PLAIN:
        value = getattr(attr, name)
        if not isinstance(value, int):
            raise RDMAError(EINVAL, f"{name} must be a number, got {value!r}")
        request[name] = int(value)
    route = attr.ah_attr.gr
    if route is not None:
        request["dgid"] = route.dgid.gid
        for name in GLOBAL_ROUTE:
            value = getattr(route, name)
            if not isinstance(value, int):
                raise RDMAError(EINVAL, f"{name} must be a number, got {value!r}")
            request[name] = int(value)
    return request


def _private_data(request: Request) -> bytes:
    return bytes.fromhex(str(request.get("private_data", "")))


def _steps(request: Request) -> list[Request]:
    """Further changes of a queue pair's state that the same message asks for. Raises RDMAError (EINVAL)."""
    steps = request.get("then", [])
    if not isinstance(steps, list) or len(steps) > STEPS_MAX or not all(isinstance(step, dict) for step in steps):
        raise RDMAError(EINVAL, f"{request.get('op')}: then is a list of at most {STEPS_MAX} steps, got {steps!r:.80}")
    return steps


_M = TypeVar("_M", bound=IntEnum)


def _member(kind: type[_M], request: Request, name: str, default: _M) -> _M:
    number = _number(request, name, int(default))
    if number not in kind._value2member_map_:
        raise RDMAError(EINVAL, f"{name} must be one of {', '.join(map(repr, kind))}, got {number}")
    return kind(number)


def _check_fixed(attr: QPAttr) -> None:
    if attr.port_num != 1:
        raise RDMAError(EINVAL, f"port_num must be 1, got {attr.port_num}")
    if attr.pkey_index != 0:
        raise RDMAError(EINVAL, f"pkey_index must be 0, got {attr.pkey_index}")
    if attr.qp_access_flags & ~_ACCESS:
        raise RDMAError(EINVAL, f"no such access flags: {int(attr.qp_access_flags):#x}")


def _access(request: Request) -> AccessFlags:
    flags = _number(request, "access") & ~_OPTIONAL_ACCESS
    if flags & ~_ACCESS:
        raise RDMAError(EOPNOTSUPP, f"the adapter has no such access flags: {flags & ~_ACCESS:#x}")
    access = AccessFlags(flags)
    if access & _WRITTEN_BY_PEERS and not access & AccessFlags.LOCAL_WRITE:
        raise RDMAError(EINVAL, "REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE")
    return access


def _capabilities(request: Request, *, shared: bool) -> dict[str, int]:
    """What a queue pair gets, at least what was asked for. Raises RDMAError (EINVAL) above what the card can do."""
    granted = {"max_send_wr": _depth(request, "max_send_wr")}
    granted["max_recv_wr"] = 0 if shared else _depth(request, "max_recv_wr")
    for name, largest in _PIECES_MAX.items():
        wanted = _number(request, name, 1)
        if wanted > largest:
            raise RDMAError(EINVAL, f"{name} must be 0 ... {largest}, got {wanted}")
        granted[name] = largest
    return granted


_PIECES_MAX = {
    "max_send_sge": SEND_SGES_MAX,
    "max_recv_sge": RECEIVE_SGES_MAX,
    "max_inline_data": INLINE_BYTES_MAX,
}
_T = TypeVar("_T")


def _find(table: dict[int, _T], request: Request, name: str) -> _T:
    number = _number(request, name)
    found = table.get(number)
    if found is None:
        raise RDMAError(ENOENT, f"{request.get('op')}: no {name} {number}")
    return found


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


__all__ = ["EventType", "HostContext", "Reply", "Request", "Services"]
