"""Connection management as a host uses it, in the manner of librdmacm and pyverbs (`pyverbs/cmid.pyx`).

`CMID` listens, connects, accepts and parts; without a `CMEventChannel` its calls wait for what they bring about, with
one they return at once and events tell. `CmId` below it is one connection of one queue pair for a host that takes
`Context.get_cm_events` by itself; the two don't mix on one context. The work is done by the adapter
(`emul.cm_machine`), which goes on when its host is slow, hung or dead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from errno import EAGAIN, ECONNREFUSED, ECONNRESET, EINVAL, ENOTCONN, ETIMEDOUT
from weakref import WeakKeyDictionary

from emul.cm_events import CmEvent, CmEventType, ConnParam
from emul.cm_wait import sleep_until_told
from emul.errors import RDMAError
from emul.host_context import attr_to_request
from emul.verbs import PD, QP, Context, QPInitAttr
from emul.vocabulary import MTU, AccessFlags, QPAttr, QPState
from emul.wire.address import address_text
from emul.wire.mad import PS_TCP_SERVICE, RejectReason

RDMA_PS_TCP = 0x0106
"""Port space of services that are named by a port (rdma-core `librdmacm/rdma_cma.h`)."""
RDMA_PS_IB = 0x013F
"""Port space of services that are named by a service id of 64 bits."""
RAI_PASSIVE = 1
"""The address is to be listened on."""
ACK_TIMEOUT_DEFAULT = 14
"""Exponent of 4.096 us after which an unacknowledged packet is sent again: 67 ms."""
_REMOTE_ACCESS = AccessFlags.REMOTE_WRITE | AccessFlags.REMOTE_READ | AccessFlags.REMOTE_ATOMIC


@dataclass(frozen=True, slots=True)
class AddrInfo:
    """Where to connect to or what to listen for. Addresses are numbers, not names: an adapter resolves none.

    `service` is a port (RDMA_PS_TCP) or a service id (RDMA_PS_IB), as a number or as text. `src` says nothing that the
    adapter does not know: it has one port. Raises RDMAError (EINVAL).
    """

    src: str | None = None
    dst: str | None = None
    service: int | str | None = None
    port_space: int = RDMA_PS_TCP
    flags: int = 0

    @property
    def service_id(self) -> int:
        """The service id that goes into a REQ."""
        try:
            service = int(self.service, 0) if isinstance(self.service, str) else self.service
        except ValueError:
            service = None
        if self.port_space == RDMA_PS_TCP and service is not None and 0 < service < 1 << 16:
            return PS_TCP_SERVICE | service
        if self.port_space == RDMA_PS_IB and service is not None and 0 < service < 1 << 64:
            return service
        if self.port_space not in (RDMA_PS_TCP, RDMA_PS_IB):
            raise RDMAError(EINVAL, f"port space {self.port_space:#x} is neither RDMA_PS_TCP nor RDMA_PS_IB")
        kind = "a port, 1 ... 65535" if self.port_space == RDMA_PS_TCP else "a service id of 64 bits, not 0"
        raise RDMAError(EINVAL, f"service must be {kind}, got {self.service!r}")

    def close(self) -> None:
        """As in pyverbs; there is nothing to give back."""


class _Dispatcher:
    """All ids of a context that have not been closed: sorts what its adapter tells."""

    def __init__(self) -> None:
        self.by_number: dict[int, CMID] = {}
        self.listening: dict[int, CMID] = {}

    def pump(self, context: Context) -> None:
        for event in context.get_cm_events():
            called = event.kind is CmEventType.CONNECT_REQUEST
            owner = self.listening.get(event.listener) if called else self.by_number.get(event.number)
            if owner is not None:
                owner._on_event(event)


_dispatchers: WeakKeyDictionary[Context, _Dispatcher] = WeakKeyDictionary()


def _dispatcher(context: Context) -> _Dispatcher:
    return _dispatchers.setdefault(context, _Dispatcher())


def _next(context: Context, queue: deque[CMEvent], timeout_ms: int | None) -> CMEvent:
    while True:
        _dispatcher(context).pump(context)
        if queue:
            return queue.popleft()
        if not sleep_until_told(context, timeout_ms):
            raise RDMAError(EAGAIN, "no connection event waits")


class CMEventChannel:
    """Takes the events of the ids that were made with it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._events: deque[CMEvent] = deque()

    def get_cm_event(self, timeout_ms: int | None = None) -> CMEvent:
        """The next event; waits for one, `timeout_ms` at the most between two wake-ups. Raises RDMAError (EAGAIN) when
        there is none in that time, in the simulator at once.
        """
        return _next(self.context, self._events, timeout_ms)

    def close(self) -> None:
        """Forgets what waits."""
        self._events.clear()


class CMEvent:
    """An event with the id that it is about. `CMEvent(channel)` takes the next one of a channel, as pyverbs does."""

    def __init__(self, channel: CMEventChannel, timeout_ms: int | None = None) -> None:
        taken = channel.get_cm_event(timeout_ms)
        self._fill(taken.event, taken.id, taken.listen_id)

    @classmethod
    def _of(cls, event: CmEvent, cmid: CMID, listen_id: CMID | None) -> CMEvent:
        made = cls.__new__(cls)
        made._fill(event, cmid, listen_id)
        return made

    def _fill(self, event: CmEvent, cmid: CMID, listen_id: CMID | None) -> None:
        self.event = event
        self.id = cmid
        """The connection that it is about; for CONNECT_REQUEST the new one, to be accepted or rejected."""
        self.listen_id = listen_id
        """CONNECT_REQUEST: the id that listens."""

    @property
    def event_type(self) -> CmEventType:
        """What has happened."""
        return self.event.kind

    @property
    def status(self) -> int:
        """Why, where that is known: the reason of a REJ (`RejectReason`), else 0."""
        return self.event.reason

    @property
    def private_data(self) -> bytes:
        """What the peer sent with it, filled up with zeros to its full length."""
        return self.event.private_data

    @property
    def param(self) -> ConnParam:
        """What the peer offers."""
        return self.event.param

    def event_str(self) -> str:
        """Its name."""
        return f"RDMA_CM_EVENT_{self.event_type.name}"

    def ack_cm_event(self) -> None:
        """As in pyverbs; nothing waits for it here."""

    def close(self) -> None:
        """The same."""


class CMID:
    """An end of a connection, or a listener: for a peer's address `CMID(AddrInfo(dst=..., service=...), ..., pd)`, to
    listen `CMID(AddrInfo(service=..., flags=RAI_PASSIVE), ..., pd)`.

    `qp_init_attr` makes the queue pair (a listener's those of its requests); else give `qp` before connect or accept.
    With `event_channel` no call waits.
    """

    def __init__(
        self,
        creator: AddrInfo | None = None,
        qp_init_attr: QPInitAttr | None = None,
        pd: PD | None = None,
        *,
        event_channel: CMEventChannel | None = None,
        timeout_ms: int | None = None,
    ) -> None:
        if pd is None:
            raise RDMAError(EINVAL, "a CMID needs a protection domain, which says on which adapter it is")
        self.pd = pd
        self.context = pd.context
        self.event_channel = event_channel
        self.timeout_ms = timeout_ms
        """How long a call that waits does so between two wake-ups; None: for as long as it takes."""
        self.ack_timeout = ACK_TIMEOUT_DEFAULT
        self.addr_info = creator or AddrInfo()
        self.qp: QP | None = None
        self.number = 0
        """Its communication id, once there is one."""
        self.listener = 0
        self.peer_address = ""
        """A request's: who calls."""
        self.peer_port = 0
        self.param = ConnParam()
        """What the peer offers, as far as it has said so."""
        self.private_data = b""
        """What the peer sent last."""
        self._init_attr = qp_init_attr
        self._events: deque[CMEvent] = deque()
        self._requests: deque[CMEvent] = deque()
        self._established = False
        self._gone = False
        if qp_init_attr is not None and creator is not None and not self.addr_info.flags & RAI_PASSIVE:
            self.create_qp(qp_init_attr)

    # -- one who is called --------------------------------------------------------------------------------------------

    def listen(self, backlog: int = 0) -> None:
        """Takes requests from now on; `backlog` of them (0: 128) may wait, the others are refused. Raises RDMAError:
        EADDRINUSE, EINVAL.
        """
        if self.listener:
            raise RDMAError(EINVAL, "this id listens already")
        request = {"op": "cm_listen", "service_id": self.addr_info.service_id, "backlog": backlog}
        self.listener = _int(self.context.call(dict(request))[0]["listener"])
        _dispatcher(self.context).listening[self.listener] = self

    def get_request(self) -> CMID:
        """The next request, as an id to accept or reject; its queue pair is made if this id was given what to make it
        from. Waits. Raises RDMAError: EAGAIN (see `timeout_ms`), EINVAL where nobody listens.
        """
        if not self.listener:
            raise RDMAError(EINVAL, "this id does not listen")
        return _next(self.context, self._requests, self.timeout_ms).id

    def accept(self, param: ConnParam | None = None, private_data: bytes = b"") -> None:
        """Agrees with a request: REP goes out with at most 196 bytes of private data. Waits until ESTABLISHED. Raises
        RDMAError: EINVAL (no request, no queue pair), ETIMEDOUT, ECONNREFUSED, ECONNRESET.
        """
        self._call("cm_accept", private_data, self._attributes(param or ConnParam()))
        self._wait()

    def reject(self, private_data: bytes = b"", reason: int = RejectReason.CONSUMER) -> None:
        """Does not agree with a request, or with a reply: at most 148 bytes of private data. One that is over is not
        missed.
        """
        self._call("cm_reject", private_data, {"reason": int(reason)})

    # -- one who calls ------------------------------------------------------------------------------------------------

    def connect(self, param: ConnParam | None = None, private_data: bytes = b"") -> None:
        """Asks for a connection, with at most 56 bytes of private data to a port and 92 to a service id. Waits until
        ESTABLISHED. Raises RDMAError: EINVAL, ETIMEDOUT (nobody answers), ECONNREFUSED (rejected: the sentence has the
        reason), ECONNRESET.
        """
        attributes = self._attributes(param or ConnParam())
        reply, _ = self.context.call(
            {
                **attributes,
                "op": "cm_connect",
                "at_once": True,
                "dgid": self.addr_info.dst or "",
                "service_id": self.addr_info.service_id,
                "private_data": private_data.hex(),
            }
        )
        self._know(_int(reply["number"]))
        self._wait()

    # -- both ---------------------------------------------------------------------------------------------------------

    def create_qp(self, qp_init_attr: QPInitAttr) -> QP:
        """Makes its queue pair, in INIT and open for the peer's READs, WRITEs and atomics."""
        self.qp = QP(self.pd, qp_init_attr)
        self.qp.to_init(QPAttr(qp_access_flags=_REMOTE_ACCESS))
        return self.qp

    def disconnect(self) -> None:
        """Parts; both queue pairs go to ERR. Waits until DISCONNECTED. One that is over is not missed."""
        self._call("cm_disconnect", b"")
        _dispatcher(self.context).pump(self.context)
        if self._established and self.event_channel is None:
            while not self._gone:
                _next(self.context, self._events, self.timeout_ms)

    def get_cm_event(self, timeout_ms: int | None = None) -> CMEvent:
        """The next event of an id without a channel. Raises RDMAError (EAGAIN)."""
        return _next(self.context, self._events, timeout_ms)

    def close(self) -> None:
        """Listens no more; parts if that has not been done, and no event comes any more. Its queue pair is closed if
        it was made here.
        """
        known = _dispatcher(self.context)
        if self.listener:
            listener, self.listener = self.listener, 0
            known.listening.pop(listener, None)
            self.context.call({"op": "cm_unlisten", "listener": listener})
        if self.number:
            self._call("cm_destroy", b"")
            known.by_number.pop(self.number, None)
            self.number = 0
        if self.qp is not None and self._init_attr is not None:
            self.qp.close()
            self.qp = None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _on_event(self, event: CmEvent) -> None:
        channel = self.event_channel
        if event.kind is CmEventType.CONNECT_REQUEST:
            made = CMID(None, None, self.pd, event_channel=channel, timeout_ms=self.timeout_ms)
            made.ack_timeout, made._init_attr = self.ack_timeout, self._init_attr
            made.peer_address, made.peer_port = address_text(event.address), event.port
            made.param, made.private_data = event.param, event.private_data
            made._know(event.number)
            if self._init_attr is not None:
                made.create_qp(self._init_attr)
            told = CMEvent._of(event, made, self)
            (self._requests if channel is None else channel._events).append(told)
            return
        told = CMEvent._of(event, self, None)
        self._note(event)
        (self._events if channel is None else channel._events).append(told)

    def _note(self, event: CmEvent) -> None:
        if event.kind is CmEventType.ESTABLISHED:
            self._established = True
            self.param, self.private_data = event.param, event.private_data
        elif event.kind in _ENDS:
            self._gone = True

    def _wait(self) -> None:
        if self.event_channel is not None:
            return
        while not self._established and not self._gone:
            last = _next(self.context, self._events, self.timeout_ms)
            if last.event_type in _ENDS:
                raise RDMAError(_ENDS[last.event_type], f"{last.event_str()}, reason {_reason_text(last.status)}")

    def _attributes(self, param: ConnParam) -> dict[str, object]:
        if self.qp is None:
            raise RDMAError(EINVAL, "a connection needs a queue pair: give qp_init_attr, or set qp")
        if self.qp.query().qp_state is QPState.RESET:
            self.qp.to_init(QPAttr(qp_access_flags=_REMOTE_ACCESS))
        attr = QPAttr(
            path_mtu=MTU(self.context.query_port(1).active_mtu),
            timeout=self.ack_timeout,
            max_dest_rd_atomic=param.resources,
            max_rd_atomic=param.depth,
            retry_cnt=param.retry,
            rnr_retry=param.rnr_retry,
        )
        return {**attr_to_request(attr), "qp_num": self.qp.qp_num}

    def _know(self, number: int) -> None:
        self.number = number
        _dispatcher(self.context).by_number[number] = self

    def _call(self, verb: str, private_data: bytes, more: dict[str, object] | None = None) -> None:
        if not self.number:
            raise RDMAError(ENOTCONN, f"{verb}: this id has no connection")
        fields = {**(more or {}), "op": verb, "number": self.number, "private_data": private_data.hex()}
        self.context.call(fields)


_ENDS = {
    CmEventType.UNREACHABLE: ETIMEDOUT,
    CmEventType.REJECTED: ECONNREFUSED,
    CmEventType.CONNECT_ERROR: ECONNRESET,
    CmEventType.DISCONNECTED: ECONNRESET,
}


def _reason_text(reason: int) -> str:
    known = {int(each): each.name for each in RejectReason}
    return f"{reason} ({known[reason]})" if reason in known else str(reason)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


class CmId:
    """One connection of one queue pair, which must be in INIT. Its host takes the events of `Context.get_cm_events`,
    which name the connection by `number`, and agrees with a reply by itself.
    """

    def __init__(self, qp: QP) -> None:
        self.qp = qp
        self.number = 0
        """Known after `connect`; 0 before."""

    def connect(self, dgid: str, service_id: int, private_data: bytes, qp_attr: QPAttr) -> None:
        """Asks `dgid` for the service; REPLY, REJECTED or UNREACHABLE follows. `qp_attr` gives timers and path MTU."""
        reply, _ = self.qp.context.call(
            {
                **attr_to_request(qp_attr),
                "op": "cm_connect",
                "qp_num": self.qp.qp_num,
                "dgid": dgid,
                "service_id": service_id,
                "private_data": private_data.hex(),
            }
        )
        self.number = _int(reply["number"])

    def establish(self, private_data: bytes = b"") -> None:
        """Agrees with a REPLY: RTU is sent and the queue pair goes to RTS. Raises RDMAError without one."""
        self._call("cm_establish", private_data)

    def reject(self, private_data: bytes = b"") -> None:
        """Does not agree with a REPLY."""
        self._call("cm_reject", private_data)

    def disconnect(self) -> None:
        """Parts; the queue pair goes to ERR. DISCONNECTED follows."""
        self._call("cm_disconnect", b"")

    def close(self) -> None:
        """Parts if that has not been done, and forgets the connection: no event of it comes any more."""
        if self.number:
            self._call("cm_destroy", b"")
            self.number = 0

    def _call(self, verb: str, private_data: bytes) -> None:
        self.qp.context.call({"op": verb, "number": self.number, "private_data": private_data.hex()})


__all__ = [
    "RAI_PASSIVE", "RDMA_PS_IB", "RDMA_PS_TCP", "CMEvent", "CMEventChannel", "CMID", "AddrInfo", "CmEvent",
    "CmEventType", "CmId", "ConnParam", "RejectReason",
]  # fmt: skip
