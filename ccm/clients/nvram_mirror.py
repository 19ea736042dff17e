"""The NVRAM mirror (C2, in its first form): each record on the own card and in the mirror half of a partner's.

A card has two halves: the own log, and the mirror of another node's. The nodes of a cluster, or those that were chosen
as each other's partners, form a ring by their ids: each mirrors to the next one. A write is stored in the own half,
then written into the partner's mirror half by RDMA at the same offset; it is committed when both are done, and commits
come in the order of the writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from ccm.client import Client, Partner, Region, Session
from ccm.clients.observer import Observer
from ccm.needs import Needs
from ccm.reasons import Reason
from emul.clock import Instant
from emul.memory import Memory

DEPTH = 64
"""Most unconfirmed writes."""


def ring_neighbours(node_id: int, others: Iterable[int]) -> tuple[int, int]:
    """(whose card mirrors ours, whose log we mirror): the next and the former node in the ring of ids."""
    ring = sorted({node_id, *others})
    place = ring.index(node_id)
    return ring[(place + 1) % len(ring)], ring[place - 1]


class NvramMirror(Client):
    """Mirrors the first half of `nvram`."""

    name: ClassVar[str] = "nvram-mirror"

    def __init__(self, nvram: Memory, node_id: int, others: Iterable[int], observer: Observer | None = None) -> None:
        self.half_bytes = nvram.length // 2
        self.observer = observer
        self.session: Session | None = None
        """The session with the node that mirrors us, while it is ready."""
        self._nvram = nvram
        self._buffer = nvram.buffer
        self.target, self._source = ring_neighbours(node_id, others)
        """`target`: whose card mirrors ours. The ring stays what it is while the host runs, whoever leaves or joins."""

    def needs(self, partner: Partner) -> Needs | None:
        """One virtual interface with each neighbour of the ring; memory for the one whose log we mirror."""
        if partner.id not in (self.target, self._source):
            return None
        return Needs(vis=1, depth=DEPTH, exposed_bytes=self.half_bytes if partner.id == self._source else 0)

    def source(self, partner: Partner) -> Region | None:
        """The own log."""
        return Region(self._nvram, 0, self.half_bytes) if partner.id == self.target else None

    def exposed(self, partner: Partner) -> Region | None:
        """The mirror half."""
        return Region(self._nvram, self.half_bytes, self.half_bytes) if partner.id == self._source else None

    @property
    def room(self) -> int:
        """How many writes are taken now."""
        return DEPTH - len(self.session.streams[0].entries) if self.session is not None else 0

    def write(self, offset: int, record: bytes) -> bool:
        """Stores a record at `offset` of the log and mirrors it; False, and nothing stored, when there is no room.

        The bytes of an unconfirmed record must not be overwritten. Raises ValueError outside the log.
        """
        session, end = self.session, offset + len(record)
        if offset < 0 or end > self.half_bytes:
            raise ValueError(f"{len(record)} bytes at {offset} of a log of {self.half_bytes}")
        if session is None or len(session.streams[0].entries) >= DEPTH:
            return False
        self._buffer[offset:end] = record
        session.streams[0].write(offset, len(record), offset)
        return True

    def on_ready(self, session: Session, now: Instant) -> None:
        """The neighbour is ready."""
        if session.partner.id == self.target:
            self.session = session
            if self.observer is not None:
                self.observer.on_ready(session, now)

    def on_completed(self, session: Session, sequence: int, now: Instant) -> None:
        """The oldest record is on both cards."""
        if self.observer is not None:
            self.observer.on_committed(session, now)

    def on_error(self, session: Session, reason: Reason, now: Instant) -> None:
        """No neighbour: nothing is taken until there is one."""
        self._lose(session, now)

    def on_closed(self, session: Session, reason: Reason, now: Instant) -> None:
        """As on_error."""
        self._lose(session, now)

    def _lose(self, session: Session, now: Instant) -> None:
        if session is self.session:
            self.session = None
            if self.observer is not None:
                self.observer.on_lost(session, now)
