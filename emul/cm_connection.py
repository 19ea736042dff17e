"""What `emul.cm_machine` knows of its connections: their states, their times, and the table that finds them.

No transition happens here.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from enum import Enum
from typing import TypeVar

from emul.clock import MILLISECOND, Instant
from emul.vocabulary import QPAttr
from emul.wire.mad import Message

CONNECTIONS_MAX = 4096
"""Connections of an adapter, ended ones that are remembered included. At the bound the oldest ended one is forgotten;
where none has ended, calls are refused with NO_RESOURCES and the host's own with ENOMEM."""
CALLS_MAX = 3072
"""Of them those that came from outside: a flood of REQs leaves room for what the host itself begins."""
TIMERS_MAX = 4 * CONNECTIONS_MAX
"""Timers kept, those of forgotten connections included; at the bound these are swept out."""
_WAIT_MIN_NS = MILLISECOND
"""A shorter timeout than this is meant for hardware (Linux rounds up to the same)."""
_EXPONENT_MAX = 24
"""A longer one than 68 s is not believed, whatever a message says."""


class State(Enum):
    """States of a connection. The words are those of the specification (vol. 1, 12.9.5) and of Linux `ib_cm`."""

    REQ_SENT = "asked; REP, REJ or MRA is due"
    MRA_REQ_RECEIVED = "asked, and the peer wants more time; REP or REJ is due"
    REQ_RECEIVED = "somebody asks; the host must say accept or reject"
    MRA_REQ_SENT = "the same, and the caller was asked for more time"
    REP_RECEIVED = "accepted by the peer; the host must say establish or reject"
    MRA_REP_SENT = "the same, and the peer was asked for more time"
    REP_SENT = "accepted here; RTU is due"
    MRA_REP_RECEIVED = "accepted here, and the caller wants more time; RTU is due"
    ESTABLISHED = "both sides know"
    DREQ_SENT = "parting; DREP is due"
    TIMEWAIT = "ended; late duplicates are answered or ignored"


CALLED = frozenset({State.REQ_RECEIVED, State.MRA_REQ_SENT})
"""A request waits for the host's word."""
REPLIED = frozenset({State.REP_RECEIVED, State.MRA_REP_SENT})
"""A reply waits for the host's word."""
ACCEPTED = frozenset({State.REP_SENT, State.MRA_REP_RECEIVED})
"""The host's word was yes; the caller must confirm it."""
ASKED = frozenset({State.REQ_SENT, State.MRA_REQ_RECEIVED})
"""Nobody has answered yet."""


def wait_ns(exponent: int) -> int:
    """4.096 us x 2^exponent, the specification's encoding of times, kept within what makes sense here."""
    return max(_WAIT_MIN_NS, 4_096 << min(exponent, _EXPONENT_MAX))


_Key = TypeVar("_Key", int, tuple[bytes, int])


class Connection:
    """One connection; `emul.cm_machine` alone changes it."""

    __slots__ = (
        "abandoned", "address", "at_once", "attr", "called", "deadline", "established", "from_host", "interval_ns",
        "last", "listener", "number", "opened", "patience_ns", "qpn", "remote_id", "remote_qpn", "reply", "sends",
        "sends_max", "state", "told", "transaction",
    )  # fmt: skip

    def __init__(self, number: int, address: bytes, state: State, attr: QPAttr) -> None:
        self.number = number
        """Its communication id here."""
        self.address = address
        """The peer's."""
        self.state = state
        self.attr = attr
        """What the queue pair will be."""
        self.qpn = 0
        self.from_host = False
        """It is the host's, not the firmware's."""
        self.called = state is State.REQ_RECEIVED
        """It came from outside."""
        self.told = False
        """The host wants to hear of it."""
        self.listener = 0
        """The host's listener that was called."""
        self.at_once = False
        """A REP is agreed with without asking the host."""
        self.abandoned = False
        """Its host is gone: it is to end."""
        self.opened = False
        """Its queue pair has been ready to receive: packets for it may be under way."""
        self.established = False
        """It has been ESTABLISHED."""
        self.remote_id = 0
        self.remote_qpn = 0
        self.transaction = number
        self.reply = b""
        """Private data of the peer's REP, for the event that tells of it."""
        self.last: Message | None = None
        """What is sent again when the peer repeats its part."""
        self.sends = 0
        self.sends_max = 1
        self.interval_ns = _WAIT_MIN_NS
        """How long the peer may take to answer, both ways on the wire included."""
        self.patience_ns = _WAIT_MIN_NS
        """After so long the peer is told that the host here is slow."""
        self.deadline: Instant | None = None


class ConnectionTable:
    """All connections by what messages name them with."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._by_number: dict[int, Connection] = {}
        self._by_remote_id: dict[tuple[bytes, int], Connection] = {}
        self._by_remote_qpn: dict[tuple[bytes, int], Connection] = {}
        self._by_qpn: dict[int, Connection] = {}
        self._timers: list[tuple[Instant, int]] = []
        self.calls = 0
        """How many came from outside."""

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_number.values()))

    # -- who is there -------------------------------------------------------------------------------------------------

    def fresh_number(self) -> int:
        """A communication id that nobody can guess."""
        number = 0
        while number == 0 or number in self._by_number:
            number = self._rng.randrange(1, 1 << 32)
        return number

    def add(self, connection: Connection) -> None:
        """Known by its number from now on, and by all else that it has."""
        self._by_number[connection.number] = connection
        self.calls += connection.called
        self.index(connection)

    def index(self, connection: Connection) -> None:
        """Known also by what it has learned: the peer's id and queue pair, its own queue pair."""
        if connection.remote_id:
            self._by_remote_id.setdefault((connection.address, connection.remote_id), connection)
        if connection.remote_qpn:
            self._by_remote_qpn.setdefault((connection.address, connection.remote_qpn), connection)
        if connection.qpn:
            self._by_qpn[connection.qpn] = connection

    def release_remote_qpn(self, connection: Connection) -> None:
        """The peer may use that queue pair for another connection."""
        _drop(self._by_remote_qpn, (connection.address, connection.remote_qpn), connection)

    def remove(self, connection: Connection) -> None:
        """Not known any more. What is not there is not missed."""
        if self._by_number.pop(connection.number, None) is None:
            return
        self.calls -= connection.called
        connection.deadline = None
        _drop(self._by_remote_id, (connection.address, connection.remote_id), connection)
        self.release_remote_qpn(connection)
        _drop(self._by_qpn, connection.qpn, connection)

    def get(self, number: int) -> Connection | None:
        """By its number."""
        return self._by_number.get(number)

    def of_peer(self, address: bytes, remote_id: int) -> Connection | None:
        """By the peer's communication id."""
        return self._by_remote_id.get((address, remote_id))

    def of_remote_qpn(self, address: bytes, qpn: int) -> Connection | None:
        """By the peer's queue pair, as long as it has not ended."""
        return self._by_remote_qpn.get((address, qpn))

    def of_qpn(self, qpn: int) -> Connection | None:
        """By the queue pair here: the latest that had it."""
        return self._by_qpn.get(qpn)

    def forget_ended(self, *, called: bool) -> bool:
        """Makes room: removes the oldest connection in TIMEWAIT (of those that came from outside); False without one.
        Its late duplicates will find nobody, and its queue pair number may be given out early.
        """
        for each in self._by_number.values():
            if each.state is State.TIMEWAIT and (each.called or not called):
                self.remove(each)
                return True
        return False

    # -- time ---------------------------------------------------------------------------------------------------------

    def due(self, connection: Connection, at: Instant) -> None:
        """Its deadline is `at` and no other."""
        connection.deadline = at
        if len(self._timers) >= TIMERS_MAX:
            found = [(each.deadline, each.number) for each in self if each.deadline is not None]
            self._timers = found
            heapq.heapify(found)
        else:
            heapq.heappush(self._timers, (at, connection.number))

    def next_at(self) -> Instant | None:
        """When `expired` may have something; it may turn out to have nothing."""
        return self._timers[0][0] if self._timers else None

    def expired(self, now: Instant) -> list[Connection]:
        """Those whose deadline has come, earliest first; their deadlines are taken away."""
        found = []
        while self._timers and self._timers[0][0] <= now:
            at, number = heapq.heappop(self._timers)
            connection = self._by_number.get(number)
            if connection is not None and connection.deadline == at:
                connection.deadline = None
                found.append(connection)
        return found


def _drop(index: dict[_Key, Connection], key: _Key, connection: Connection) -> None:
    if index.get(key) is connection:
        del index[key]
