"""The way from a host to an adapter, as `emul.verbs` sees it: slow verbs, doorbells, wake-ups, events.

`emul.local.LocalDevice` has the adapter in the same process (simulator, tests); `emul.control.SocketDevice` talks to an
adapter process. Both give the same rings over shared bytes.
"""

from __future__ import annotations

from typing import Protocol

from emul.cm_events import CmEvent
from emul.host_context import Reply, Request
from emul.memory import Memory
from emul.vocabulary import AsyncEvent


class Device(Protocol):
    """What verbs need of an adapter."""

    event_fd: int
    """Readable when something waits for the host; -1 where there is no such thing."""

    @property
    def async_fd(self) -> int:
        """Readable while `take_events` has something to give; -1 where there is no such thing."""

    def attach(self, incarnation: int) -> None:
        """Becomes the adapter's host; what an earlier one owned is destroyed."""

    def call(self, request: Request, memories: list[Memory]) -> tuple[Reply, list[Memory]]:
        """Carries out a slow verb. Raises DeviceGone when the adapter does not answer."""

    def ring(self, qp_num: int) -> None:
        """Rings the doorbell of a queue pair."""

    def take_events(self) -> list[AsyncEvent]:
        """Asynchronous events since the last call."""

    def take_cm_events(self) -> list[CmEvent]:
        """Connection events since the last call."""

    def clear_wake(self) -> None:
        """Resets the wake-up before looking at what woke."""

    def wait(self, bell: Memory | None, timeout_ms: int | None) -> bool:
        """Sleeps until `bell` rings (which this resets), or without one until an event is there to be taken; False
        when `timeout_ms` are over (None: no end), at once where nothing can be waited for. Raises DeviceGone when the
        adapter dies while a bell is waited for.
        """

    def allocate(self, length: int, name: str) -> Memory:
        """Memory that the adapter can be shown."""

    def descriptors(self) -> list[int]:
        """Everything that a host must wait on: the event descriptor, and the channel that tells when the adapter
        dies.
        """

    def close(self) -> None:
        """Lets go of the adapter; what the host owns there stays."""
