"""A device whose adapter lives in the same process: the simulator's, and that of tests."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENODEV, ETIMEDOUT

from emul.adapter import Adapter
from emul.clock import Instant
from emul.cm_events import CmEvent
from emul.errors import DeviceGone
from emul.host_context import Reply, Request
from emul.memory import Memory
from emul.queues import DoorbellRing
from emul.vocabulary import AsyncEvent, EventType


class EmptySlot:
    """A slot whose card is dead or missing when the host opens it: the host finds nobody there."""

    event_fd = -1
    async_fd = -1
    waiting = False

    def attach(self, incarnation: int) -> None:
        """Device."""
        raise DeviceGone(ENODEV, "no card in this slot")

    def call(self, request: Request, memories: list[Memory]) -> tuple[Reply, list[Memory]]:
        """Device."""
        raise DeviceGone(ENODEV, "no card in this slot")

    def ring(self, qp_num: int) -> None:
        """Device."""

    def take_events(self) -> list[AsyncEvent]:
        """Device."""
        return []

    def take_cm_events(self) -> list[CmEvent]:
        """Device."""
        return []

    def clear_wake(self) -> None:
        """Device."""

    def wait(self, bell: Memory | None, timeout_ms: int | None) -> bool:
        """Device."""
        return False

    def allocate(self, length: int, name: str) -> Memory:
        """Device."""
        return Memory.plain(length)

    def descriptors(self) -> list[int]:
        """Device."""
        return []

    def close(self) -> None:
        """Device."""


class LocalDevice:
    """An adapter in the same process. `on_doorbell` is called for each doorbell: the driver gives the adapter a
    turn.
    """

    event_fd = -1
    async_fd = -1

    def __init__(self, adapter: Adapter, *, on_doorbell: Callable[[], None], clock: Callable[[], Instant]) -> None:
        self._adapter = adapter
        self._on_doorbell = on_doorbell
        self._clock = clock
        self._doorbells: DoorbellRing | None = None
        self.dead = False
        """Set by whoever lets the card die: every call fails from then on, and the host gets one DEVICE_FATAL."""
        self._death_told = False

    def attach(self, incarnation: int) -> None:
        """Device."""
        self._check()
        self._doorbells = DoorbellRing(self._adapter.attach(incarnation).memory.buffer)

    def call(self, request: Request, memories: list[Memory]) -> tuple[Reply, list[Memory]]:
        """Device."""
        self._check()
        answer = self._adapter.execute(request, memories, now=self._clock())
        self._on_doorbell()
        return answer

    def ring(self, qp_num: int) -> None:
        """Device."""
        if self._doorbells is not None:
            self._doorbells.ring(qp_num)
            if not self.dead:
                self._on_doorbell()

    @property
    def waiting(self) -> bool:
        """Whether `take_events` or `take_cm_events` has something."""
        if self.dead:
            return not self._death_told
        host = self._adapter.host
        return bool(self._adapter.cm.events or (host is not None and host.events))

    def take_events(self) -> list[AsyncEvent]:
        """Device."""
        if self.dead:
            told, self._death_told = self._death_told, True
            return [] if told else [AsyncEvent(EventType.DEVICE_FATAL, 0)]
        host = self._adapter.host
        if host is None:
            return []
        events, host.events = host.events, []
        return events

    def take_cm_events(self) -> list[CmEvent]:
        """Device."""
        if self.dead:
            return []
        events, self._adapter.cm.events = self._adapter.cm.events, []
        return events

    def clear_wake(self) -> None:
        """Device."""

    def wait(self, bell: Memory | None, timeout_ms: int | None) -> bool:
        """Device: nothing comes while the caller waits, as both are one thread."""
        return False

    def allocate(self, length: int, name: str) -> Memory:
        """Device."""
        return Memory.plain(length)

    def descriptors(self) -> list[int]:
        """Device."""
        return []

    def close(self) -> None:
        """Device."""

    def _check(self) -> None:
        if self.dead:
            raise DeviceGone(ENODEV, "the adapter is dead")
        if self._adapter.faults.hung:
            raise DeviceGone(ETIMEDOUT, "the adapter does not answer")
