"""Connection management: the state machine behind REQ, REP, RTU, REJ, DREQ and DREP (InfiniBand specification, 12.9).

One machine for an adapter, for connections that its host begins and for those that its firmware accepts. In: messages
and time. Out: messages to be sent and events. It asks an `Acceptor` what to do with a request, and tells `QpControl`
when a queue pair is to change its state; it knows neither hosts nor memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

from emul.clock import MILLISECOND, SECOND, Instant, after, earliest
from emul.vocabulary import MTU, QPAttr
from emul.wire.address import address_text, gid_bytes
from emul.wire.mad import Drep, Dreq, Message, Mra, Rej, RejectReason, Rep, Req, Rtu

RESPONSE_TIMEOUT_NS = 34 * MILLISECOND
"""How long an answer may take: exponent 13 of the specification's encoding."""
_RESPONSE_EXPONENT = 13
SENDS_MAX = 16
"""Transmissions of a message that is not answered; then the connection is UNREACHABLE."""
TIMEWAIT_NS = SECOND
"""How long an ended connection's id stays known, so that late duplicates find it ended."""
CONNECTIONS_MAX = 4096


class State(Enum):
    """States of a connection."""

    REQ_SENT = "asked; REP, REJ or MRA is due"
    REP_RECEIVED = "accepted by the peer; the host must say establish"
    REP_SENT = "accepted here; RTU is due"
    ESTABLISHED = "both sides know"
    DREQ_SENT = "parting; DREP is due"
    TIMEWAIT = "ended; late duplicates are answered or ignored"


# state -> messages that mean something in it. All others are stale or hostile, and change nothing.
EXPECTED: dict[State, tuple[type[Message], ...]] = {
    State.REQ_SENT: (Rep, Rej, Mra),
    State.REP_RECEIVED: (Rep, Rej, Dreq),
    State.REP_SENT: (Req, Rtu, Rej, Mra, Dreq),
    State.ESTABLISHED: (Req, Rep, Rtu, Rej, Dreq),
    State.DREQ_SENT: (Dreq, Drep),
    State.TIMEWAIT: (Dreq, Rep),
}


class CmEventType(IntEnum):
    """What the host is told of its connections."""

    REPLY = 1
    """The peer accepted; `private_data` is that of its REP. Say establish or reject."""
    ESTABLISHED = 2
    REJECTED = 3
    """`reason` is that of the REJ."""
    UNREACHABLE = 4
    """No answer."""
    DISCONNECTED = 5


@dataclass(frozen=True, slots=True)
class CmEvent:
    """One event of the connection that the host knows as `number`."""

    kind: CmEventType
    number: int
    private_data: bytes = b""
    reason: int = 0


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
    """Whoever listens (the firmware)."""

    def on_request(self, number: int, req: Req, source: bytes, *, now: Instant) -> Accept | Reject:
        """A REQ for connection `number` from the address `source`."""

    def on_established(self, number: int, private_data: bytes, *, now: Instant) -> bool:
        """Its RTU has come; False where what it carries proves nothing: the connection is dropped in silence."""

    def on_ended(self, number: int) -> None:
        """It is over."""


class QpControl(Protocol):
    """What the machine needs of the adapter."""

    def ready_to_receive(self, qpn: int, attr: QPAttr, address: bytes, *, now: Instant) -> bool:
        """The queue pair to RTR towards `address`; False where that is impossible by now."""

    def ready_to_send(self, qpn: int, attr: QPAttr, *, now: Instant) -> bool:
        """The queue pair to RTS."""

    def broken(self, qpn: int, *, now: Instant) -> None:
        """The queue pair to ERR."""


class _Connection:
    __slots__ = (
        "address", "attr", "deadline", "from_host", "last", "number", "qpn", "remote_id", "remote_qpn", "sends",
        "state", "transaction",
    )  # fmt: skip

    def __init__(self, number: int, address: bytes, qpn: int, state: State, *, from_host: bool, attr: QPAttr) -> None:
        self.number = number
        self.address = address
        self.qpn = qpn
        self.state = state
        self.from_host = from_host
        self.attr = attr
        self.remote_id = 0
        self.remote_qpn = 0
        self.transaction = number
        self.last: Message | None = None
        self.sends = 0
        self.deadline: Instant | None = None


class ConnectionMachine:
    """All connections of an adapter."""

    def __init__(
        self, *, source_for: Callable[[bytes], bytes | None], rng: random.Random, acceptor: Acceptor, control: QpControl
    ) -> None:
        """`source_for` gives the own address that goes to a peer's."""
        self._source_for = source_for
        self._rng = rng
        self._acceptor = acceptor
        self._control = control
        self._connections: dict[int, _Connection] = {}
        self.out: list[tuple[bytes, bytes]] = []
        """(address, MAD) to be sent."""
        self.events: list[CmEvent] = []
        self.next_at: Instant | None = None
        """When `on_time` is due at the earliest."""

    # -- verbs of the host --------------------------------------------------------------------------------------------

    def connect(
        self, qpn: int, address: bytes, service_id: int, private_data: bytes, attr: QPAttr, *, now: Instant
    ) -> int:
        """Asks `address` for a connection of queue pair `qpn`; gives its number. Raises ValueError at
        CONNECTIONS_MAX, and for an address of a family that this adapter has none of.
        """
        if len(self._connections) >= CONNECTIONS_MAX:
            raise ValueError(f"an adapter has {CONNECTIONS_MAX} connections at the most")
        source = self._source_for(address)
        if source is None:
            raise ValueError(f"this adapter has no address to go to {address_text(address)} from")
        number = self._fresh_number()
        connection = _Connection(number, address, qpn, State.REQ_SENT, from_host=True, attr=attr)
        attr.sq_psn = self._rng.randrange(1 << 24)
        request = Req(
            local_comm_id=number,
            service_id=service_id,
            local_qpn=qpn,
            starting_psn=attr.sq_psn,
            local_gid=gid_bytes(source),
            remote_gid=gid_bytes(address),
            path_mtu=int(attr.path_mtu),
            responder_resources=attr.max_dest_rd_atomic,
            initiator_depth=attr.max_rd_atomic,
            retry_count=attr.retry_cnt,
            rnr_retry_count=attr.rnr_retry,
            max_cm_retries=min(15, SENDS_MAX - 1),
            local_ack_timeout=attr.timeout,
            remote_response_timeout=_RESPONSE_EXPONENT,
            local_response_timeout=_RESPONSE_EXPONENT,
            private_data=private_data,
        )
        self._connections[number] = connection
        self._send(connection, request, now)
        return number

    def establish(self, number: int, private_data: bytes, *, now: Instant) -> bool:
        """The host agrees with a REP: RTU goes out, the queue pair to RTS. False where there is nothing to agree
        with.
        """
        connection = self._connections.get(number)
        if connection is None or connection.state is not State.REP_RECEIVED:
            return False
        if not self._control.ready_to_send(connection.qpn, connection.attr, now=now):
            self._end(connection, now)
            return False
        connection.state = State.ESTABLISHED
        connection.deadline = None
        connection.last = Rtu(number, connection.remote_id, private_data)
        self._transmit(connection)
        self.events.append(CmEvent(CmEventType.ESTABLISHED, number))
        return True

    def reject(self, number: int, private_data: bytes, *, now: Instant) -> None:
        """The host does not agree with a REP."""
        connection = self._connections.get(number)
        if connection is not None and connection.state is State.REP_RECEIVED:
            connection.last = Rej(number, connection.remote_id, 1, RejectReason.CONSUMER, private_data)
            self._transmit(connection)
            self._end(connection, now)

    def disconnect(self, number: int, *, now: Instant) -> None:
        """Parts: DREQ, and the queue pair to ERR. A connection that is not there is not missed."""
        connection = self._connections.get(number)
        if connection is None or connection.state in (State.TIMEWAIT, State.DREQ_SENT):
            return
        self._control.broken(connection.qpn, now=now)
        if connection.state is State.REQ_SENT:
            self._end(connection, now)
            return
        connection.state = State.DREQ_SENT
        self._send(connection, Dreq(number, connection.remote_id, connection.remote_qpn), now)

    def forget_host(self) -> None:
        """The host's incarnation is over: what it began is forgotten without a word to the peer."""
        for connection in list(self._connections.values()):
            if connection.from_host:
                del self._connections[connection.number]
        self.events.clear()

    def forget(self, number: int) -> None:
        """Drops one connection without a word (its queue pair is gone)."""
        self._connections.pop(number, None)

    # -- in -----------------------------------------------------------------------------------------------------------

    def on_message(self, transaction: int, message: Message, source: bytes, *, now: Instant) -> None:
        """One CM message from the address `source`."""
        if isinstance(message, Req):
            self._on_req(transaction, message, source, now)
            return
        connection = self._connections.get(message.remote_comm_id)
        if connection is None or connection.address != source:
            self._on_unknown(transaction, message, source)
            return
        if not isinstance(message, EXPECTED[connection.state]):
            return
        if not isinstance(message, Rep) and connection.remote_id not in (0, message.local_comm_id):
            return
        handler = {
            Rep: self._on_rep, Rtu: self._on_rtu, Rej: self._on_rej, Mra: self._on_mra, Dreq: self._on_dreq,
            Drep: self._on_drep,
        }[type(message)]  # fmt: skip
        handler(connection, message, now)

    def on_time(self, *, now: Instant) -> None:
        """Sends again what was not answered, gives up, forgets what has been ended long enough."""
        if self.next_at is None or now < self.next_at:
            return
        for connection in list(self._connections.values()):
            if connection.deadline is None or now < connection.deadline:
                continue
            if connection.state is State.TIMEWAIT:
                del self._connections[connection.number]
            elif connection.sends < SENDS_MAX and connection.last is not None:
                self._send(connection, connection.last, now)
            else:
                self._give_up(connection, now)
        self.next_at = earliest(*(connection.deadline for connection in self._connections.values()))

    def _due(self, connection: _Connection, at: Instant) -> None:
        connection.deadline = at
        self.next_at = earliest(self.next_at, at)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _on_req(self, transaction: int, req: Req, source: bytes, now: Instant) -> None:
        known = self._of_peer(source, req.local_comm_id)
        if known is not None:
            if known.state is State.REP_SENT and known.last is not None:
                self._transmit(known)  # our REP was lost
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            return
        number = self._fresh_number()
        answer = self._acceptor.on_request(number, req, source, now=now)
        if isinstance(answer, Reject):
            rej = Rej(number, req.local_comm_id, 0, answer.reason, answer.private_data)
            self.out.append((source, rej.emit(transaction)))
            return
        attr = QPAttr(
            path_mtu=MTU(req.path_mtu) if req.path_mtu in MTU._value2member_map_ else MTU.MTU_256,
            dest_qp_num=req.local_qpn,
            rq_psn=req.starting_psn,
            sq_psn=answer.starting_psn,
            max_rd_atomic=max(1, req.responder_resources),
            max_dest_rd_atomic=max(1, req.initiator_depth),
            timeout=req.local_ack_timeout,
            retry_cnt=req.retry_count,
            rnr_retry=req.rnr_retry_count,
        )
        connection = _Connection(number, source, answer.qpn, State.REP_SENT, from_host=False, attr=attr)
        connection.remote_id, connection.remote_qpn = req.local_comm_id, req.local_qpn
        connection.transaction = transaction
        self._connections[number] = connection
        rep = Rep(
            local_comm_id=number,
            remote_comm_id=req.local_comm_id,
            local_qpn=answer.qpn,
            starting_psn=answer.starting_psn,
            responder_resources=attr.max_dest_rd_atomic,
            initiator_depth=attr.max_rd_atomic,
            rnr_retry_count=7,
            private_data=answer.private_data,
        )
        self._send(connection, rep, now)

    def _on_rep(self, connection: _Connection, message: Message, now: Instant) -> None:
        assert isinstance(message, Rep)
        if connection.state is not State.REQ_SENT:
            if connection.state is State.ESTABLISHED and connection.from_host:
                self._transmit(connection)  # our RTU was lost
            return
        connection.remote_id, connection.remote_qpn = message.local_comm_id, message.local_qpn
        attr = connection.attr
        attr.dest_qp_num, attr.rq_psn = message.local_qpn, message.starting_psn
        if not self._control.ready_to_receive(connection.qpn, attr, connection.address, now=now):
            connection.last = Rej(connection.number, message.local_comm_id, 1, RejectReason.CONSUMER)
            self._transmit(connection)
            self._end(connection, now)
            return
        connection.state = State.REP_RECEIVED
        connection.deadline = None
        self.events.append(CmEvent(CmEventType.REPLY, connection.number, message.private_data))

    def _on_rtu(self, connection: _Connection, message: Message, now: Instant) -> None:
        if connection.state is not State.REP_SENT:
            return
        if not self._acceptor.on_established(connection.number, message.private_data, now=now) or not (
            self._control.ready_to_receive(connection.qpn, connection.attr, connection.address, now=now)
            and self._control.ready_to_send(connection.qpn, connection.attr, now=now)
        ):
            self._end(connection, now)
            return
        connection.state = State.ESTABLISHED
        connection.deadline = None

    def _on_rej(self, connection: _Connection, message: Message, now: Instant) -> None:
        assert isinstance(message, Rej)
        self._tell_host(
            connection, CmEvent(CmEventType.REJECTED, connection.number, message.private_data, message.reason)
        )
        self._control.broken(connection.qpn, now=now)
        self._end(connection, now)

    def _on_mra(self, connection: _Connection, message: Message, now: Instant) -> None:
        assert isinstance(message, Mra)
        self._due(connection, after(now, 4_096 << min(message.service_timeout, 20)))

    def _on_dreq(self, connection: _Connection, message: Message, now: Instant) -> None:
        assert isinstance(message, Dreq)
        drep = Drep(connection.number, connection.remote_id)
        self.out.append((connection.address, drep.emit(connection.transaction)))
        if connection.state is State.TIMEWAIT:
            return
        if connection.state is not State.DREQ_SENT:
            self._control.broken(connection.qpn, now=now)
        self._tell_host(connection, CmEvent(CmEventType.DISCONNECTED, connection.number))
        self._end(connection, now)

    def _on_drep(self, connection: _Connection, message: Message, now: Instant) -> None:
        self._tell_host(connection, CmEvent(CmEventType.DISCONNECTED, connection.number))
        self._end(connection, now)

    def _on_unknown(self, transaction: int, message: Message, source: bytes) -> None:
        if isinstance(message, Dreq):  # the other side must be able to part from somebody who has forgotten it
            drep = Drep(message.remote_comm_id, message.local_comm_id)
            self.out.append((source, drep.emit(transaction)))
        elif isinstance(message, Rep):
            rej = Rej(message.remote_comm_id, message.local_comm_id, 1, RejectReason.INVALID_COMM_ID)
            self.out.append((source, rej.emit(transaction)))

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _send(self, connection: _Connection, message: Message, now: Instant) -> None:
        if connection.last is not message:
            connection.last = message
            connection.sends = 0
        connection.sends += 1
        self._due(connection, after(now, RESPONSE_TIMEOUT_NS))
        self._transmit(connection)

    def _transmit(self, connection: _Connection) -> None:
        assert connection.last is not None
        self.out.append((connection.address, connection.last.emit(connection.transaction)))

    def _give_up(self, connection: _Connection, now: Instant) -> None:
        kind = CmEventType.DISCONNECTED if connection.state is State.DREQ_SENT else CmEventType.UNREACHABLE
        self._tell_host(connection, CmEvent(kind, connection.number))
        self._control.broken(connection.qpn, now=now)
        self._end(connection, now)

    def _end(self, connection: _Connection, now: Instant) -> None:
        connection.state = State.TIMEWAIT
        self._due(connection, after(now, TIMEWAIT_NS))
        if not connection.from_host:
            self._acceptor.on_ended(connection.number)

    def _tell_host(self, connection: _Connection, event: CmEvent) -> None:
        if connection.from_host:
            self.events.append(event)

    def _of_peer(self, source: bytes, remote_id: int) -> _Connection | None:
        for connection in self._connections.values():
            if connection.remote_id == remote_id and connection.address == source and not connection.from_host:
                return connection
        return None

    def _fresh_number(self) -> int:
        number = self._rng.randrange(1, 1 << 32)
        while number in self._connections:
            number = self._rng.randrange(1, 1 << 32)
        return number
