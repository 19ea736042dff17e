"""Message echo (C3): sends messages, and answers each of the partner's with the same bytes.

A message is committed when its answer is back: then the partner's client has surely had it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from ccm.client import Client, Partner, Session
from ccm.clients.observer import Observer
from ccm.needs import Needs
from ccm.reasons import Reason
from emul.clock import Instant

MESSAGE_BYTES_MAX = 4096
DEPTH = 64
REQUESTS_MAX = DEPTH // 2
"""Own messages without answer; the other half of the ledger is for answers, so that two full sides never wait for each
other."""
_TYPE = struct.Struct("<B7xQ")
HEADER_BYTES = _TYPE.size
REQUEST, ANSWER = 1, 2

Delivered = Callable[[Session, int, bytes, Instant], None]


class Echo(Client):
    """One echo client; `on_delivered` (session, sequence, message, now) is told of a message before it is answered."""

    name: ClassVar[str] = "echo"

    def __init__(self, on_delivered: Delivered | None = None) -> None:
        self.observers: dict[int, Observer] = {}
        """By partner id."""
        self.sessions: dict[int, Session] = {}
        self._waiting: dict[int, int] = {}
        self._answers: dict[int, deque[bytes]] = {}
        self.on_delivered = on_delivered

    def needs(self, partner: Partner) -> Needs | None:
        """One virtual interface with every partner."""
        return Needs(vis=1, depth=DEPTH, message_bytes=MESSAGE_BYTES_MAX, service_class=1)

    def room(self, partner: int) -> int:
        """How many messages to `partner` are taken now."""
        return REQUESTS_MAX - self._waiting[partner] if partner in self.sessions else 0

    def send(self, partner: int, sequence: int, payload: bytes) -> bool:
        """Sends `payload` as message `sequence`; False when there is no room."""
        session = self.sessions.get(partner)
        if session is None or self._waiting[partner] >= REQUESTS_MAX:
            return False
        if not session.send(request(sequence, payload)):
            return False
        self._waiting[partner] += 1
        return True

    def on_ready(self, session: Session, now: Instant) -> None:
        """The partner's echo is ready."""
        partner = session.partner.id
        self.sessions[partner] = session
        self._waiting[partner] = 0
        self._answers[partner] = deque()
        if partner in self.observers:
            self.observers[partner].on_ready(session, now)

    def on_message(self, session: Session, data: bytes, now: Instant) -> None:
        """Answers a request; an answer commits the oldest message."""
        if len(data) < HEADER_BYTES:
            return
        kind, sequence = _TYPE.unpack_from(data)
        partner = session.partner.id
        if kind == REQUEST:
            if self.on_delivered is not None:
                self.on_delivered(session, sequence, data, now)
            self._answers[partner].append(_TYPE.pack(ANSWER, sequence) + data[HEADER_BYTES:])
            self._answer(session)
        elif kind == ANSWER and self._waiting.get(partner):
            self._waiting[partner] -= 1
            if partner in self.observers:
                self.observers[partner].on_committed(session, now)

    def on_completed(self, session: Session, sequence: int, now: Instant) -> None:
        """There is room for an answer that had to wait."""
        self._answer(session)

    def on_error(self, session: Session, reason: Reason, now: Instant) -> None:
        """Nothing is sent until the partner is ready again."""
        self._lose(session, now)

    def on_closed(self, session: Session, reason: Reason, now: Instant) -> None:
        """As on_error."""
        self._lose(session, now)

    def _answer(self, session: Session) -> None:
        """The partner has at most REQUESTS_MAX messages without answer, so no more wait here."""
        answers = self._answers.get(session.partner.id)
        while answers and session.send(answers[0]):
            answers.popleft()

    def _lose(self, session: Session, now: Instant) -> None:
        partner = session.partner.id
        if self.sessions.pop(partner, None) is not None:
            self._answers.pop(partner, None)
            if partner in self.observers:
                self.observers[partner].on_lost(session, now)


def request(sequence: int, payload: bytes) -> bytes:
    """The bytes of message `sequence`."""
    return _TYPE.pack(REQUEST, sequence) + payload
