"""Connection management: the state machine behind REQ, MRA, REP, RTU, REJ, DREQ, DREP (InfiniBand spec vol. 1, 12.9).

One machine for an adapter, for connections that its host begins or accepts and for those that its firmware accepts. In:
verbs, messages and time. Out: messages to be sent and events. It asks an `Acceptor` what to do with a request that no
listener of the host wants, and tells `QpControl` when a queue pair is to change its state; it knows neither hosts nor
memory. Where the specification leaves room it does as Linux `drivers/infiniband/core/cm.c`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from errno import EADDRINUSE, EBUSY, EINVAL, ENOENT, ENOMEM
from typing import Protocol

from emul.clock import Instant, after
from emul.cm_connection import (
    ACCEPTED,
    ASKED,
    CALLED,
    CALLS_MAX,
    CONNECTIONS_MAX,
    REPLIED,
    Connection,
    ConnectionTable,
    State,
    wait_ns,
)
from emul.cm_events import CmEvent, CmEventType, ConnParam
from emul.errors import RDMAError
from emul.vocabulary import MTU, QPAttr
from emul.wellknown import SERVICE_ID
from emul.wire.address import address_text, gid_bytes
from emul.wire.mad import (
    RDMA_CM_HEADER_BYTES,
    REJ_PRIVATE_BYTES,
    RELIABLE_CONNECTION,
    REP_PRIVATE_BYTES,
    REQ_PRIVATE_BYTES,
    RTU_PRIVATE_BYTES,
    Answered,
    Drep,
    Dreq,
    Message,
    Mra,
    RdmaCmHeader,
    Rej,
    RejectReason,
    Rep,
    Req,
    Rtu,
    port_of,
)


class Reaction(Enum):
    """What a message brings about."""

    TAKE_REPLY = "the queue pair to RTR; the host, or nobody, is asked whether it agrees"
    TAKE_REFUSAL = "it is over: the peer does not want it, or no more"
    WAIT_LONGER = "the peer's time begins anew"
    CONFIRMED = "the queue pair to RTS"
    PART = "DREP, the queue pair to ERR"
    PARTED = "it is over: the peer has seen that we part"
    SEND_AGAIN = "what was sent last was lost"
    PART_AGAIN = "DREP was lost"
    DENY = "REJ: it is over here"


# What a message does in each state. What is not listed is stale, a duplicate or hostile, and changes nothing.
REACTIONS: dict[State, dict[type[Message], Reaction]] = {
    # A DREQ for somebody who waits for a REP: the REP was lost, and its sender parts already.
    State.REQ_SENT: {
        Rep: Reaction.TAKE_REPLY, Rej: Reaction.TAKE_REFUSAL, Mra: Reaction.WAIT_LONGER, Dreq: Reaction.PART,
    },
    State.MRA_REQ_RECEIVED: {Rep: Reaction.TAKE_REPLY, Rej: Reaction.TAKE_REFUSAL, Dreq: Reaction.PART},
    State.REQ_RECEIVED: {Rej: Reaction.TAKE_REFUSAL},
    State.MRA_REQ_SENT: {Req: Reaction.SEND_AGAIN, Rej: Reaction.TAKE_REFUSAL},
    State.REP_RECEIVED: {Rej: Reaction.TAKE_REFUSAL, Dreq: Reaction.PART},
    State.MRA_REP_SENT: {Rep: Reaction.SEND_AGAIN, Rej: Reaction.TAKE_REFUSAL, Dreq: Reaction.PART},
    State.REP_SENT: {
        Req: Reaction.SEND_AGAIN, Rtu: Reaction.CONFIRMED, Rej: Reaction.TAKE_REFUSAL, Mra: Reaction.WAIT_LONGER,
        Dreq: Reaction.PART,
    },
    State.MRA_REP_RECEIVED: {Rtu: Reaction.CONFIRMED, Rej: Reaction.TAKE_REFUSAL, Dreq: Reaction.PART},
    State.ESTABLISHED: {Rep: Reaction.SEND_AGAIN, Rej: Reaction.TAKE_REFUSAL, Dreq: Reaction.PART},
    State.DREQ_SENT: {Dreq: Reaction.PART, Drep: Reaction.PARTED, Rej: Reaction.PARTED},
    State.TIMEWAIT: {
        Req: Reaction.DENY, Rep: Reaction.DENY, Rtu: Reaction.SEND_AGAIN, Dreq: Reaction.PART_AGAIN,
    },
}  # fmt: skip

RESPONSE_EXPONENT = 12
"""How long an answer may take, as the REQ asks for: 16.8 ms, both ways on the wire not included."""
RETRIES_MAX = 15
"""Repetitions of a message that is not answered, as the REQ asks for; then the peer is UNREACHABLE."""
HOST_EXPONENT = 20
"""How long a host may take to say accept or establish: 4.3 s (the MRA that is sent for it says so). A host that is dead
says nothing: then REJ with TIMEOUT goes out."""
_TIMEWAIT_EXPONENT_MAX = 20
BACKLOG_DEFAULT = 128
BACKLOG_MAX = 1024
"""Requests that wait for a listener's host. At the bound new ones are refused with NO_RESOURCES: a definite answer now
is worth more to the caller than a place from which the next caller drives it away."""
LISTENERS_MAX = 1024
EVENTS_MAX = 4 * CONNECTIONS_MAX
"""Events that wait for the host; at the bound the newest are dropped and counted."""
_PORT_FIRST, _PORTS = 0xC000, 0x4000
_READS_MAX = 128
_QPN_FIRST = 2


@dataclass(frozen=True, slots=True)
class Accept:
    """An acceptor's yes: the queue pair that waits for the caller."""

    qpn: int
    starting_psn: int
    private_data: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """An acceptor's no."""

    reason: RejectReason
    private_data: bytes = b""


class Acceptor(Protocol):
    """Who answers where no listener of the host does (the firmware)."""

    def on_request(self, number: int, req: Req, source: bytes, *, now: Instant) -> Accept | Reject:
        """A REQ for connection `number` from the address `source`."""

    def on_established(self, number: int, private_data: bytes, *, now: Instant) -> bool:
        """Its RTU has come; False where what it carries proves nothing: the connection is dropped in silence."""

    def on_ended(self, number: int) -> None:
        """It is over."""


class QpControl(Protocol):
    """What the machine needs of the adapter."""

    def path_mtu_max(self) -> MTU:
        """The largest path MTU that the port carries."""

    def ready_to_receive(self, qpn: int, attr: QPAttr, address: bytes, *, now: Instant) -> bool:
        """The queue pair to RTR towards `address`; False where that is impossible by now."""

    def ready_to_send(self, qpn: int, attr: QPAttr, *, now: Instant) -> bool:
        """The queue pair to RTS."""

    def broken(self, qpn: int, *, now: Instant) -> None:
        """The queue pair to ERR."""

    def fresh_psn(self) -> int:
        """Where a new connection begins to count."""


class _Listener:
    __slots__ = ("backlog", "number", "service_id", "waiting")

    def __init__(self, number: int, service_id: int, backlog: int) -> None:
        self.number = number
        self.service_id = service_id
        self.backlog = backlog
        self.waiting: set[int] = set()


class ConnectionMachine:
    """All connections of an adapter."""

    def __init__(
        self,
        *,
        source_for: Callable[[bytes], bytes | None],
        gids: frozenset[bytes],
        guid: int,
        rng: random.Random,
        acceptor: Acceptor,
        control: QpControl,
    ) -> None:
        """`source_for` gives the own address that goes to a peer's; `gids` are all own ones, `guid` the adapter's."""
        self._source_for = source_for
        self._gids = gids
        self._guid = guid
        self._rng = rng
        self._acceptor = acceptor
        self._control = control
        self._table = ConnectionTable(rng)
        self._listeners: dict[int, _Listener] = {}
        self._listeners_made = 0
        self.out: list[tuple[bytes, bytes]] = []
        """(address, MAD) to be sent."""
        self.events: list[CmEvent] = []
        self.awaited: dict[int, int] = {}
        """Queue pairs in RTR whose peer may show by its first packet that it has got the REP, and that PSN."""
        self.counters: Counter[str] = Counter()

    @property
    def next_at(self) -> Instant | None:
        """When `on_time` is due at the earliest."""
        return self._table.next_at()

    def connections(self) -> int:
        """How many there are, ended ones that are still remembered included."""
        return len(self._table)

    def state(self, number: int) -> State | None:
        """Of a connection; None where there is none."""
        connection = self._table.get(number)
        return None if connection is None else connection.state

    def holds(self, qpn: int) -> bool:
        """Whether packets for that queue pair may be under way: it must not be given out anew."""
        connection = self._table.of_qpn(qpn)
        return connection is not None and connection.opened

    # -- verbs of the host that calls ---------------------------------------------------------------------------------

    def connect(
        self,
        qpn: int,
        address: bytes,
        service_id: int,
        private_data: bytes,
        attr: QPAttr,
        *,
        at_once: bool = False,
        now: Instant,
    ) -> int:
        """Asks `address` for a connection of queue pair `qpn`; gives its number.

        With `at_once` a reply is agreed with as soon as it comes, else the host is asked (CONNECT_RESPONSE). For
        services of rdma_cm's TCP port space its header goes in front of the private data. Raises RDMAError: EINVAL,
        EBUSY (the queue pair has a connection), ENOMEM at CONNECTIONS_MAX.
        """
        source = self._source_for(address)
        if source is None:
            raise RDMAError(EINVAL, f"this adapter has no address to go to {address_text(address)} from")
        private_data = self._with_header(source, address, service_id, private_data)
        self._check_free(qpn)
        if not self._make_room():
            raise RDMAError(ENOMEM, f"an adapter has {CONNECTIONS_MAX} connections at the most")
        connection = Connection(self._table.fresh_number(), address, State.REQ_SENT, attr)
        connection.qpn, connection.from_host, connection.told, connection.at_once = qpn, True, True, at_once
        attr.rq_psn = self._control.fresh_psn()
        request = Req(
            local_comm_id=connection.number,
            service_id=service_id,
            local_qpn=qpn,
            starting_psn=attr.rq_psn,
            local_gid=gid_bytes(source),
            remote_gid=gid_bytes(address),
            path_mtu=int(attr.path_mtu),
            responder_resources=attr.max_dest_rd_atomic,
            initiator_depth=attr.max_rd_atomic,
            retry_count=attr.retry_cnt,
            rnr_retry_count=attr.rnr_retry,
            max_cm_retries=RETRIES_MAX,
            local_ack_timeout=attr.timeout,
            remote_response_timeout=RESPONSE_EXPONENT,
            local_response_timeout=RESPONSE_EXPONENT,
            ca_guid=self._guid,
            private_data=private_data,
        )
        _set_times(connection, RESPONSE_EXPONENT, RESPONSE_EXPONENT, attr.timeout, RETRIES_MAX)
        self._table.add(connection)
        self._send(connection, request, now)
        return connection.number

    def establish(self, number: int, private_data: bytes, *, now: Instant) -> bool:
        """The host agrees with a REP: RTU goes out, the queue pair to RTS. False where there is nothing to agree
        with. Raises RDMAError (EINVAL) for too much private data.
        """
        _check_private("RTU", private_data, RTU_PRIVATE_BYTES)
        connection = self._table.get(number)
        if connection is None or connection.state not in REPLIED:
            return False
        return self._confirm(connection, private_data, now)

    # -- verbs of the host that is called -----------------------------------------------------------------------------

    def listen(self, service_id: int, backlog: int = BACKLOG_DEFAULT) -> int:
        """Requests for `service_id` become CONNECT_REQUEST events from now on; gives the listener's number.

        At most `backlog` of them (0: BACKLOG_DEFAULT) wait for an answer at a time. Raises RDMAError: EADDRINUSE,
        EINVAL, ENOMEM at LISTENERS_MAX.
        """
        if not 0 <= backlog <= BACKLOG_MAX:
            raise RDMAError(EINVAL, f"a backlog is 0 ... {BACKLOG_MAX}, got {backlog}")
        if not 0 < service_id < 1 << 64:
            raise RDMAError(EINVAL, f"a service id has 64 bits and is not 0, got {service_id:#x}")
        if service_id == SERVICE_ID:
            raise RDMAError(EADDRINUSE, f"service {service_id:#x} is the firmware's own")
        if service_id in self._listeners:
            raise RDMAError(EADDRINUSE, f"somebody listens for service {service_id:#x} already")
        if len(self._listeners) >= LISTENERS_MAX:
            raise RDMAError(ENOMEM, f"an adapter has {LISTENERS_MAX} listeners at the most")
        self._listeners_made += 1
        listener = _Listener(self._listeners_made, service_id, backlog or BACKLOG_DEFAULT)
        self._listeners[service_id] = listener
        return listener.number

    def unlisten(self, number: int, *, now: Instant) -> None:
        """Listens no more; requests that wait are refused. Raises RDMAError (ENOENT)."""
        listener = next((each for each in self._listeners.values() if each.number == number), None)
        if listener is None:
            raise RDMAError(ENOENT, f"no listener {number}")
        del self._listeners[listener.service_id]
        for waiting in sorted(listener.waiting):
            self.reject(waiting, b"", now=now)

    def accept(self, number: int, qpn: int, private_data: bytes, attr: QPAttr, *, now: Instant) -> None:
        """The host agrees with a request: queue pair `qpn` (in INIT) to RTR, and REP goes out.

        Of `attr`: max_dest_rd_atomic and max_rd_atomic (both kept within what the caller asked for), rnr_retry (what
        the caller's queue pair is to do), min_rnr_timer, access flags, fence. All else is the caller's. Raises
        RDMAError: EINVAL (no such request, too much private data, unfit queue pair), EBUSY; the request waits on.
        """
        _check_private("REP", private_data, REP_PRIVATE_BYTES)
        connection = self._table.get(number)
        if connection is None or connection.state not in CALLED:
            raise RDMAError(EINVAL, f"connection {number} is no request that waits")
        self._check_free(qpn)
        asked = connection.attr
        own_rnr_retry = attr.rnr_retry
        attr.path_mtu, attr.dest_qp_num, attr.sq_psn = asked.path_mtu, asked.dest_qp_num, asked.sq_psn
        attr.timeout, attr.retry_cnt, attr.rnr_retry = asked.timeout, asked.retry_cnt, asked.rnr_retry
        attr.max_rd_atomic = min(attr.max_rd_atomic, asked.max_rd_atomic)
        attr.max_dest_rd_atomic = min(attr.max_dest_rd_atomic, asked.max_dest_rd_atomic)
        attr.rq_psn = self._control.fresh_psn()
        if not self._control.ready_to_receive(qpn, attr, connection.address, now=now):
            raise RDMAError(EINVAL, f"QP {qpn} could not be made ready to receive")
        self._leave_backlog(connection)
        connection.qpn, connection.attr, connection.opened = qpn, attr, True
        self._table.index(connection)
        self.awaited[qpn] = attr.rq_psn
        self._reply(connection, private_data, own_rnr_retry, now)

    # -- verbs of both ------------------------------------------------------------------------------------------------

    def reject(self, number: int, private_data: bytes, *, reason: int = RejectReason.CONSUMER, now: Instant) -> None:
        """The host does not agree with a request or a REP. One that is over is not missed. Raises RDMAError (EINVAL)
        for too much private data.
        """
        _check_private("REJ", private_data, REJ_PRIVATE_BYTES)
        connection = self._table.get(number)
        if connection is not None and connection.state in CALLED | REPLIED:
            self._refuse(connection, reason, private_data)
            self._control.broken(connection.qpn, now=now)
            self._end(connection, now)

    def disconnect(self, number: int, *, now: Instant) -> None:
        """Parts: DREQ, and the queue pair to ERR. What was never whole is taken back with REJ, without an event. A
        connection that is not there is not missed.
        """
        connection = self._table.get(number)
        if connection is None or connection.state in (State.TIMEWAIT, State.DREQ_SENT):
            return
        if connection.state in CALLED | REPLIED:
            self.reject(number, b"", now=now)
        elif connection.state in ASKED:
            # The peer may have got the REQ, and knows nothing of it but our id and GUID (spec 12.6.7.2, reason 4).
            info = self._guid.to_bytes(8, "big")
            connection.last = Rej(number, 0, Answered.OTHER, RejectReason.TIMEOUT, info=info)
            self._transmit(connection)
            self._control.broken(connection.qpn, now=now)
            self._end(connection, now)
        else:
            self._part(connection, now)

    def destroy(self, number: int, *, now: Instant) -> None:
        """Parts, and the host hears no more of it."""
        connection = self._table.get(number)
        if connection is not None:
            connection.told = False
            self.events[:] = [event for event in self.events if event.number != number]
            self.disconnect(number, now=now)

    def forget_host(self) -> None:
        """The host's incarnation is over: its listeners go, and what it began or accepted is parted from with the next
        `on_time`.
        """
        self._listeners.clear()
        for connection in self._table:
            if connection.from_host:
                connection.told = False
                if connection.state is not State.TIMEWAIT:
                    connection.abandoned = True
                    self._table.due(connection, Instant(0))
        self.events.clear()

    def forget(self, number: int) -> None:
        """Drops one connection without a word (its queue pair is gone)."""
        connection = self._table.get(number)
        if connection is not None:
            self._table.remove(connection)

    # -- in -----------------------------------------------------------------------------------------------------------

    def on_message(self, transaction: int, message: Message, source: bytes, *, now: Instant) -> None:
        """One CM message from the address `source`."""
        if isinstance(message, Req):
            connection = self._table.of_peer(source, message.local_comm_id)
            if connection is None:
                self._on_call(transaction, message, source, now)
                return
        elif isinstance(message, Rej) and message.remote_comm_id == 0:  # withdrawn by a caller that never heard of us
            connection = self._table.of_peer(source, message.local_comm_id)
        else:
            connection = self._table.get(message.remote_comm_id)
        if connection is None:
            self._on_unknown(transaction, message, source)
            return
        reaction = REACTIONS[connection.state].get(type(message))
        if reaction is None or not _belongs(connection, message, source):
            self.counters["cm_ignored"] += 1
            return
        _HANDLERS[reaction](self, connection, message, transaction, now)

    def on_communication(self, qpn: int, *, now: Instant) -> None:
        """The first packet for a queue pair of `awaited`: its peer has got the REP, whatever became of the RTU."""
        connection = self._table.of_qpn(qpn)
        if connection is not None and connection.from_host and connection.state in ACCEPTED:
            self._become_established(connection, b"", now)

    def on_time(self, *, now: Instant) -> None:
        """Sends again what was not answered, asks for patience, gives up, forgets what has been ended long enough."""
        for connection in self._table.expired(now):
            self._on_due(connection, now)

    def _on_due(self, connection: Connection, now: Instant) -> None:
        state = connection.state
        if state is State.TIMEWAIT:
            self._table.remove(connection)
            if connection.established:
                self._tell(connection, CmEvent(CmEventType.TIMEWAIT_EXIT, connection.number))
        elif connection.abandoned and state is not State.DREQ_SENT:
            self.disconnect(connection.number, now=now)
        elif state is State.REQ_RECEIVED:
            self._ask_for_patience(connection, State.MRA_REQ_SENT, Answered.REQ, now)
        elif state is State.REP_RECEIVED:
            self._ask_for_patience(connection, State.MRA_REP_SENT, Answered.REP, now)
        elif state in CALLED | REPLIED:
            self._refuse(connection, RejectReason.TIMEOUT, b"")
            self._fail(connection, CmEventType.CONNECT_ERROR, RejectReason.TIMEOUT, now)
        elif connection.sends < connection.sends_max and connection.last is not None:
            self._send(connection, connection.last, now)
        elif state in ACCEPTED:
            self._refuse(connection, RejectReason.TIMEOUT, b"")
            self._fail(connection, CmEventType.UNREACHABLE, RejectReason.TIMEOUT, now)
        else:
            parting = state is State.DREQ_SENT
            self._fail(connection, CmEventType.DISCONNECTED if parting else CmEventType.UNREACHABLE, 0, now)

    # -- a call -------------------------------------------------------------------------------------------------------

    def _on_call(self, transaction: int, req: Req, source: bytes, now: Instant) -> None:
        listener = self._listeners.get(req.service_id)
        stale = self._table.of_remote_qpn(source, req.local_qpn)
        no = self._objection(req, listener)
        if no is None and stale is not None:  # its owner can't have it twice: the connection that we know is dead
            no = (RejectReason.STALE_CONNECTION, b"")
            self._drop_stale(stale, now)
        if no is None and not self._make_room_for_call():
            no = (RejectReason.NO_RESOURCES, b"")
        if no is not None:
            self._turn_away(transaction, req, source, Reject(no[0]), no[1])
            return
        connection = Connection(self._table.fresh_number(), source, State.REQ_RECEIVED, _attr_asked_for(req))
        connection.transaction = transaction
        connection.remote_id, connection.remote_qpn = req.local_comm_id, req.local_qpn
        _set_times(
            connection, req.remote_response_timeout, req.local_response_timeout, req.local_ack_timeout,
            req.max_cm_retries,
        )  # fmt: skip
        if listener is not None:
            self._enter_backlog(connection, listener, req, now)
            return
        answer = self._acceptor.on_request(connection.number, req, source, now=now)
        if isinstance(answer, Reject):
            self._turn_away(transaction, req, source, answer)
            return
        connection.qpn, connection.attr.rq_psn = answer.qpn, answer.starting_psn
        self._table.add(connection)
        self._reply(connection, answer.private_data, 7, now)

    def _objection(self, req: Req, listener: _Listener | None) -> tuple[RejectReason, bytes] | None:
        if req.local_comm_id == 0:
            return RejectReason.INVALID_COMM_ID, b""
        if req.transport != RELIABLE_CONNECTION:
            return RejectReason.INVALID_TRANSPORT, b""
        if req.local_qpn < _QPN_FIRST:
            return RejectReason.UNSUPPORTED, b""
        if req.remote_gid not in self._gids:
            return RejectReason.INVALID_GID, min(self._gids)
        most = self._control.path_mtu_max()
        # The firmware's messages are short: it takes a smaller path MTU than it was asked for.
        if req.path_mtu not in MTU._value2member_map_ or (listener is not None and req.path_mtu > most):
            return RejectReason.INVALID_MTU, bytes([int(most) << 4])
        if listener is not None and len(listener.waiting) >= listener.backlog:
            return RejectReason.NO_RESOURCES, b""
        if listener is not None and port_of(req.service_id) is not None and not RdmaCmHeader.parse(req.private_data):
            return RejectReason.CONSUMER, b""  # as rdma_cm answers to a call without its header
        return None

    def _enter_backlog(self, connection: Connection, listener: _Listener, req: Req, now: Instant) -> None:
        connection.from_host = connection.told = True
        connection.listener = listener.number
        listener.waiting.add(connection.number)
        self._table.add(connection)
        self._table.due(connection, after(now, connection.patience_ns))
        private_data, port = req.private_data, 0
        if port_of(req.service_id) is not None:
            header = RdmaCmHeader.parse(private_data)
            assert header is not None
            private_data, port = private_data[RDMA_CM_HEADER_BYTES:], header.port
        param = ConnParam(
            req.initiator_depth, req.responder_resources, req.flow_control, req.retry_count, req.rnr_retry_count,
            req.srq, req.local_qpn,
        )  # fmt: skip
        event = CmEvent(
            CmEventType.CONNECT_REQUEST, connection.number, private_data, 0, listener.number, connection.address, port,
            param,
        )  # fmt: skip
        self._tell(connection, event)

    def _leave_backlog(self, connection: Connection) -> None:
        for listener in self._listeners.values():
            listener.waiting.discard(connection.number)

    def _turn_away(self, transaction: int, req: Req, source: bytes, answer: Reject, info: bytes = b"") -> None:
        self.counters["cm_refused"] += 1
        rej = Rej(0, req.local_comm_id, Answered.REQ, answer.reason, answer.private_data, info)
        self.out.append((source, rej.emit(transaction)))

    def _reply(self, connection: Connection, private_data: bytes, rnr_retry: int, now: Instant) -> None:
        attr = connection.attr
        rep = Rep(
            local_comm_id=connection.number,
            remote_comm_id=connection.remote_id,
            local_qpn=connection.qpn,
            starting_psn=attr.rq_psn,
            responder_resources=attr.max_dest_rd_atomic,
            initiator_depth=attr.max_rd_atomic,
            rnr_retry_count=rnr_retry,
            ca_guid=self._guid,
            private_data=private_data,
        )
        connection.state = State.REP_SENT
        self._send(connection, rep, now)

    # -- reactions ----------------------------------------------------------------------------------------------------

    def _take_reply(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        assert isinstance(message, Rep)
        if message.local_comm_id == 0 or message.local_qpn < _QPN_FIRST:
            self.counters["cm_ignored"] += 1
            return
        connection.remote_id = message.local_comm_id
        stale = self._table.of_remote_qpn(connection.address, message.local_qpn)
        connection.remote_qpn, connection.reply = message.local_qpn, message.private_data
        attr = connection.attr
        attr.dest_qp_num, attr.sq_psn = message.local_qpn, message.starting_psn
        attr.max_rd_atomic = min(attr.max_rd_atomic, message.responder_resources)
        attr.max_dest_rd_atomic = min(attr.max_dest_rd_atomic, message.initiator_depth)
        attr.rnr_retry = min(attr.rnr_retry, message.rnr_retry_count)
        connection.state = State.REP_RECEIVED
        reason = 0
        if stale is not None:
            self._drop_stale(stale, now)
            reason = RejectReason.STALE_CONNECTION
        elif not self._control.ready_to_receive(connection.qpn, attr, connection.address, now=now):
            reason = RejectReason.CONSUMER
        if reason:
            self._refuse(connection, reason, b"")
            self._fail(connection, CmEventType.CONNECT_ERROR, reason, now)
            return
        connection.opened = True
        self._table.index(connection)
        if connection.at_once:
            self._confirm(connection, b"", now)
            return
        self._table.due(connection, after(now, connection.patience_ns))
        self._tell(connection, _event(connection, CmEventType.CONNECT_RESPONSE, message.private_data))

    def _take_refusal(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        assert isinstance(message, Rej)
        kind = CmEventType.DISCONNECTED if connection.state is State.ESTABLISHED else CmEventType.REJECTED
        connection.last = None
        self._fail(connection, kind, message.reason, now, message.private_data)

    def _wait_longer(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        assert isinstance(message, Mra)
        asked = connection.state is State.REQ_SENT
        if message.message == (Answered.REQ if asked else Answered.REP):
            connection.state = State.MRA_REQ_RECEIVED if asked else State.MRA_REP_RECEIVED
            self._table.due(connection, after(now, wait_ns(message.service_timeout) + connection.interval_ns))

    def _confirmed(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        assert isinstance(message, Rtu)
        self._become_established(connection, message.private_data, now)

    def _take_parting(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        self._part_again(connection, message, transaction, now)
        self._fail(connection, CmEventType.DISCONNECTED, 0, now)

    def _part_again(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        assert isinstance(message, Dreq)
        drep = Drep(connection.number, message.local_comm_id)
        self.out.append((connection.address, drep.emit(transaction)))

    def _parted(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        connection.last = None
        self._fail(connection, CmEventType.DISCONNECTED, 0, now)

    def _send_again(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        if connection.last is not None:
            self._transmit(connection)

    def _deny(self, connection: Connection, message: Message, transaction: int, now: Instant) -> None:
        if connection.last is None:
            assert isinstance(message, (Req, Rep))
            about = Answered.REQ if isinstance(message, Req) else Answered.REP
            rej = Rej(connection.number, message.local_comm_id, about, RejectReason.STALE_CONNECTION)
            self.out.append((connection.address, rej.emit(transaction)))
        else:
            self._transmit(connection)  # the REJ that ended it was lost

    def _on_unknown(self, transaction: int, message: Message, source: bytes) -> None:
        answer: Message | None = None
        if isinstance(message, Dreq):  # the other side must be able to part from somebody who has forgotten it
            answer = Drep(message.remote_comm_id, message.local_comm_id)
        elif isinstance(message, (Rep, Rtu)):
            about = Answered.REP if isinstance(message, Rep) else Answered.OTHER
            answer = Rej(message.remote_comm_id, message.local_comm_id, about, RejectReason.INVALID_COMM_ID)
        if answer is None:
            self.counters["cm_ignored"] += 1
        else:
            self.out.append((source, answer.emit(transaction)))

    # -- transitions --------------------------------------------------------------------------------------------------

    def _confirm(self, connection: Connection, private_data: bytes, now: Instant) -> bool:
        if not self._control.ready_to_send(connection.qpn, connection.attr, now=now):
            self._refuse(connection, RejectReason.CONSUMER, b"")
            self._fail(connection, CmEventType.CONNECT_ERROR, RejectReason.CONSUMER, now)
            return False
        connection.state, connection.deadline, connection.established = State.ESTABLISHED, None, True
        connection.last = Rtu(connection.number, connection.remote_id, private_data)
        self._transmit(connection)
        self._tell(connection, _event(connection, CmEventType.ESTABLISHED, connection.reply))
        return True

    def _become_established(self, connection: Connection, private_data: bytes, now: Instant) -> None:
        number, qpn, attr = connection.number, connection.qpn, connection.attr
        self.awaited.pop(qpn, None)
        if not connection.from_host:
            known = self._acceptor.on_established(number, private_data, now=now)
            connection.opened = known and self._control.ready_to_receive(qpn, attr, connection.address, now=now)
            if not connection.opened:
                connection.last = None
                self._end(connection, now)
                return
        if not self._control.ready_to_send(qpn, attr, now=now):
            self._refuse(connection, RejectReason.CONSUMER, b"")
            self._fail(connection, CmEventType.CONNECT_ERROR, RejectReason.CONSUMER, now)
            return
        connection.state, connection.deadline, connection.established = State.ESTABLISHED, None, True
        connection.last = None
        self._tell(connection, _event(connection, CmEventType.ESTABLISHED, private_data))

    def _part(self, connection: Connection, now: Instant) -> None:
        self._control.broken(connection.qpn, now=now)
        self.awaited.pop(connection.qpn, None)
        connection.state = State.DREQ_SENT
        connection.transaction = connection.number
        self._send(connection, Dreq(connection.number, connection.remote_id, connection.remote_qpn), now)

    def _drop_stale(self, connection: Connection, now: Instant) -> None:
        if connection.state is State.ESTABLISHED:
            self._part(connection, now)
        elif connection.state is not State.DREQ_SENT:
            self._refuse(connection, RejectReason.STALE_CONNECTION, b"")
            self._fail(connection, CmEventType.CONNECT_ERROR, RejectReason.STALE_CONNECTION, now)

    def _refuse(self, connection: Connection, reason: int, private_data: bytes) -> None:
        """REJ; what it is about follows from the state."""
        number, state = connection.number, connection.state
        about = Answered.OTHER
        if state in CALLED:
            about = Answered.REQ
            number = 0 if state is State.REQ_RECEIVED else number  # the caller has not heard of it yet
        elif state in REPLIED:
            about = Answered.REP
        connection.last = Rej(number, connection.remote_id, about, reason, private_data)
        self._transmit(connection)

    def _ask_for_patience(self, connection: Connection, state: State, about: Answered, now: Instant) -> None:
        connection.state = state
        connection.last = Mra(connection.number, connection.remote_id, about, HOST_EXPONENT)
        self._transmit(connection)
        self._table.due(connection, after(now, wait_ns(HOST_EXPONENT)))

    def _fail(
        self, connection: Connection, kind: CmEventType, reason: int, now: Instant, private_data: bytes = b""
    ) -> None:
        waiting = [event for event in self.events if event.number == connection.number]
        if waiting and waiting[0].kind is CmEventType.CONNECT_REQUEST:  # the host has not seen it: it never came
            self.events[:] = [event for event in self.events if event.number != connection.number]
        else:
            self._tell(connection, CmEvent(kind, connection.number, private_data, reason))
        self._control.broken(connection.qpn, now=now)
        self._end(connection, now)

    def _end(self, connection: Connection, now: Instant) -> None:
        self._leave_backlog(connection)
        self.awaited.pop(connection.qpn, None)
        connection.state = State.TIMEWAIT
        if not isinstance(connection.last, Rej):
            connection.last = None
        self._table.release_remote_qpn(connection)
        self._table.due(connection, after(now, min(connection.interval_ns, wait_ns(_TIMEWAIT_EXPONENT_MAX))))
        if not connection.from_host:
            self._acceptor.on_ended(connection.number)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _send(self, connection: Connection, message: Message, now: Instant) -> None:
        if connection.last is not message:
            connection.last = message
            connection.sends = 0
        connection.sends += 1
        self._table.due(connection, after(now, connection.interval_ns))
        self._transmit(connection)

    def _transmit(self, connection: Connection) -> None:
        assert connection.last is not None
        self.out.append((connection.address, connection.last.emit(connection.transaction)))

    def _tell(self, connection: Connection, event: CmEvent) -> None:
        if not connection.told:
            return
        if len(self.events) >= EVENTS_MAX:
            self.counters["cm_events_dropped"] += 1
            return
        self.events.append(event)

    def _make_room(self) -> bool:
        return len(self._table) < CONNECTIONS_MAX or self._table.forget_ended(called=False)

    def _make_room_for_call(self) -> bool:
        return self._make_room() and (self._table.calls < CALLS_MAX or self._table.forget_ended(called=True))

    def _check_free(self, qpn: int) -> None:
        known = self._table.of_qpn(qpn)
        if known is not None and (known.opened or known.state is not State.TIMEWAIT):
            raise RDMAError(EBUSY, f"QP {qpn} has a connection that is in {known.state.name}")

    def _with_header(self, source: bytes, address: bytes, service_id: int, private_data: bytes) -> bytes:
        if not 0 < service_id < 1 << 64:
            raise RDMAError(EINVAL, f"a service id has 64 bits and is not 0, got {service_id:#x}")
        if port_of(service_id) is None:
            _check_private("REQ", private_data, REQ_PRIVATE_BYTES)
            return private_data
        _check_private("REQ to a port", private_data, REQ_PRIVATE_BYTES - RDMA_CM_HEADER_BYTES)
        port = _PORT_FIRST + self._rng.randrange(_PORTS)
        return RdmaCmHeader(port, source, address).emit() + private_data


def _belongs(connection: Connection, message: Message, source: bytes) -> bool:
    """Whether it comes from the peer of this connection and is about this connection: ids are random, and all must
    match, so that nobody off the path can end a connection.
    """
    if connection.address != source:
        return False
    if isinstance(message, Req):
        return True
    if connection.remote_id not in (0, message.local_comm_id):
        # A caller is refused by somebody who gave its refusal no id, but only while it knows of none.
        return False
    if isinstance(message, Rej) and message.message == Answered.REQ:
        return connection.state in ASKED
    return not isinstance(message, Dreq) or message.remote_qpn == connection.qpn


def _set_times(connection: Connection, here: int, there: int, ack_timeout: int, retries: int) -> None:
    """From the exponents of a REQ: `here` for what this side, `there` for what the other side may take to answer. The
    local ACK timeout stands for both ways on the wire (twice the packet life time, 9.7.6.1.3).
    """
    ack_ns = wait_ns(ack_timeout) if ack_timeout else 0
    connection.interval_ns = wait_ns(there) + ack_ns
    connection.patience_ns = wait_ns(here) // 2
    connection.sends_max = 1 + retries


def _attr_asked_for(req: Req) -> QPAttr:
    return QPAttr(
        path_mtu=MTU(req.path_mtu),
        dest_qp_num=req.local_qpn,
        sq_psn=req.starting_psn,
        max_rd_atomic=min(req.responder_resources, _READS_MAX),
        max_dest_rd_atomic=min(req.initiator_depth, _READS_MAX),
        timeout=req.local_ack_timeout,
        retry_cnt=req.retry_count,
        rnr_retry=req.rnr_retry_count,
    )


def _event(connection: Connection, kind: CmEventType, private_data: bytes) -> CmEvent:
    attr = connection.attr
    param = ConnParam(
        attr.max_dest_rd_atomic, attr.max_rd_atomic, retry=attr.retry_cnt, rnr_retry=attr.rnr_retry,
        qp_num=connection.remote_qpn,
    )  # fmt: skip
    return CmEvent(kind, connection.number, private_data, param=param)


def _check_private(what: str, private_data: bytes, most: int) -> None:
    if len(private_data) > most:
        raise RDMAError(EINVAL, f"a {what} carries {most} bytes of private data at the most, got {len(private_data)}")


_Handler = Callable[[ConnectionMachine, Connection, Message, int, Instant], None]
_HANDLERS: dict[Reaction, _Handler] = {
    Reaction.TAKE_REPLY: ConnectionMachine._take_reply,
    Reaction.TAKE_REFUSAL: ConnectionMachine._take_refusal,
    Reaction.WAIT_LONGER: ConnectionMachine._wait_longer,
    Reaction.CONFIRMED: ConnectionMachine._confirmed,
    Reaction.PART: ConnectionMachine._take_parting,
    Reaction.PARTED: ConnectionMachine._parted,
    Reaction.SEND_AGAIN: ConnectionMachine._send_again,
    Reaction.PART_AGAIN: ConnectionMachine._part_again,
    Reaction.DENY: ConnectionMachine._deny,
}

__all__ = ["Accept", "Acceptor", "CmEvent", "CmEventType", "ConnectionMachine", "QpControl", "Reject", "State"]
