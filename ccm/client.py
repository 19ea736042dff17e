"""What users of the manager implement, and what they get: `Client`, its sessions, and the memory that they share.

A client says what it needs towards each partner and is told when a session is ready, broken or closed; it never
connects, repairs or chooses a path. All callbacks run in the host's one thread and must not block; an exception in one
of them is logged and counted, and harms nobody else. See docs/writing-a-client.md for a worked example.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ccm.needs import Needs
from ccm.reasons import Reason
from ccm.stream import Arrivals, Stream
from emul.clock import Instant
from emul.memory import Memory
from emul.node_memory import BootStatus


@dataclass(frozen=True, slots=True)
class Partner:
    """Another node of the cluster."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """The node that a client runs on."""

    id: int
    name: str
    incarnation: int
    """Number of the host's boot: a client is made anew with each."""
    allocate: Callable[[int], Memory]
    """Zeroed memory of so many bytes that adapters can reach: what a Region is made of."""
    log: Callable[[str, dict[str, object]], None]
    """Writes a line into the host's log: a word and fields. They come out as {"event": "NAME.WORD", ...}."""


@dataclass(frozen=True, slots=True)
class Region:
    """`length` bytes of `memory` from `offset`, for RDMA."""

    memory: Memory
    offset: int
    length: int


class Session:
    """A client's conversation with the same client on a partner, for one epoch.

    Paths come and go under it; when its epoch ends (`on_error`, `on_closed`) it is dead and a later `on_ready` brings
    another one.
    """

    __slots__ = ("_close", "_open", "alive", "arrivals", "client_key", "early", "epoch", "needs", "partner", "streams")

    def __init__(
        self, partner: Partner, client_key: int, epoch: int, needs: Needs, streams: tuple[Stream, ...],
        close: Callable[[], None], open_: Callable[[], None],
    ) -> None:  # fmt: skip
        self.partner = partner
        self.client_key = client_key
        self.epoch = epoch
        self.needs = needs
        self.streams = streams
        self.arrivals = tuple(Arrivals(epoch) for _ in streams)
        self.early: list[bytes] = []
        """Messages that came before this side's client was told "ready": at most as many as receives are posted."""
        self.alive = False
        self._close = close
        self._open = open_

    def write(self, source_offset: int, length: int, target_offset: int, vi: int = 0) -> int:
        """Writes `length` bytes of our source region into the partner's exposed region, by RDMA.

        Gives the sequence that `on_completed` will name, 0 when the ledger is full or the session over (try again after
        the next completion). Offsets are relative to the regions; ValueError outside them. The bytes must stay as they
        are until the completion: they may be sent again.
        """
        for figure in (source_offset, length, target_offset):
            if not isinstance(figure, int):
                raise TypeError(f"offsets and length are whole numbers of bytes, got {figure!r}")
        return self.streams[vi].write(source_offset, length, target_offset) if self.alive else 0

    def send(self, data: bytes, vi: int = 0) -> int:
        """Sends a message of at most `needs.message_bytes`; the sequence, or 0 as for `write`. ValueError when too
        long.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"a message is bytes, got {type(data).__name__}")
        if len(data) > self.needs.message_bytes:
            raise ValueError(f"message of {len(data)} bytes, at most {self.needs.message_bytes} were agreed")
        return self.streams[vi].send(data) if self.alive else 0

    @property
    def outstanding(self) -> int:
        """Requests without completion."""
        return sum(len(stream.entries) for stream in self.streams)

    def close(self) -> None:
        """Closes orderly: both sides get `on_closed`. What is unconfirmed is given up; wait for it before, if it
        matters.
        """
        self._close()

    def open_again(self) -> None:
        """Asks for a session with this partner after a close: `needs` is asked again, and `on_ready` brings the next
        epoch. So a client suspends its session (`close`) and resumes it. Raises NeedsError.
        """
        self._open()


class Client(ABC):
    """A user of the manager. Override what you need; `name` is what both sides know it by (1 ... 24 bytes)."""

    name: ClassVar[str] = ""

    def on_boot(self, node: Node, now: Instant) -> None:
        """The host has booted: once, before anything else is called."""

    def needs(self, partner: Partner) -> Needs | None:
        """What a session with `partner` needs; None for no session with it."""
        return Needs()

    def source(self, partner: Partner) -> Region | None:
        """The memory that `Session.write` reads from."""
        return None

    def exposed(self, partner: Partner) -> Region | None:
        """The memory that the partner may write; as long as `needs(partner).exposed_bytes`."""
        return None

    def on_ready(self, session: Session, now: Instant) -> None:
        """The partner's client is ready as well: once for each epoch."""

    def on_completed(self, session: Session, sequence: int, now: Instant) -> None:
        """A write is in the partner's memory, or a message in its adapter."""

    def on_message(self, session: Session, data: bytes, now: Instant) -> None:
        """A message of the partner's: each once, in order."""

    def on_error(self, session: Session, reason: Reason, now: Instant) -> None:
        """The epoch is broken: what is unconfirmed may have arrived or not. The manager re-establishes by itself."""

    def on_closed(self, session: Session, reason: Reason, now: Instant) -> None:
        """The session was closed orderly, by this side or the partner's."""

    def on_partner_status(self, partner: Partner, status: BootStatus, now: Instant) -> None:
        """The partner's boot status as read by RDMA: at each change, and now and then without one."""

    def on_time(self, now: Instant) -> None:
        """Called when `next_deadline` has come."""

    def next_deadline(self) -> Instant | None:
        """When `on_time` is wanted."""
        return None
