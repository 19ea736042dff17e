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

from ccm.client_session import Session
from ccm.needs import Needs
from ccm.reasons import Reason
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


__all__ = ["Client", "Node", "Partner", "Region", "Session"]
