"""Ports without an interface: two ends in one process, for unit tests, or one end that a simulated cable drives.

Same promises as a real port, no descriptor unless it is asked for, nothing read from any clock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence

from emul.port import FRAMES_PER_TURN_MAX

WAITING_MAX = 4096
"""Frames that may wait at one end; more are dropped and counted, as a full ring does."""
_ETHERNET_BYTES = 14


class MemoryPort:
    """One end. What it sends goes to `on_send` (a simulated cable), a call for each frame; `deliver` brings frames in.

    `waiting_max` bounds the frames that wait. With `with_event` the port has an eventfd that is readable while frames
    wait, otherwise `fileno` is -1.
    """

    wire = "memory"

    def __init__(
        self, mac: bytes, on_send: Callable[[bytes], None], *,
        mtu: int = 2200, waiting_max: int = WAITING_MAX, with_event: bool = False,
    ) -> None:  # fmt: skip
        self.mac, self.mtu = mac, mtu
        self.fallback_reason: str | None = None
        self._on_send = on_send
        self._waiting: deque[bytes] = deque()
        self._waiting_max = waiting_max
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if with_event else -1
        self._carrier = True
        self._counters = dict.fromkeys(("rx_frames", "tx_frames", "tx_dropped", "rx_dropped"), 0)

    @classmethod
    def pair(
        cls, mac: bytes = b"\x02\0\0\0\0\x01", other_mac: bytes = b"\x02\0\0\0\0\x02", *,
        mtu: int = 2200, waiting_max: int = WAITING_MAX, with_event: bool = False,
    ) -> tuple[MemoryPort, MemoryPort]:  # fmt: skip
        """Two ports joined by a cable without length."""
        left = cls(mac, lambda frame: right.deliver(frame), mtu=mtu, waiting_max=waiting_max, with_event=with_event)
        right = cls(other_mac, left.deliver, mtu=mtu, waiting_max=waiting_max, with_event=with_event)
        return left, right

    can_watch: bool = False

    def waiting(self) -> bool:
        """Port; only the descriptor tells."""
        return False

    def fileno(self) -> int:
        """The eventfd, or -1."""
        return self._event

    def deliver(self, frame: bytes) -> None:
        """A frame arrives from the cable. Without carrier, or with too many waiting, it is dropped and counted."""
        if not self._carrier or len(self._waiting) >= self._waiting_max:
            self._counters["rx_dropped"] += 1
            return
        self._waiting.append(frame)
        if self._event >= 0 and len(self._waiting) == 1:
            os.eventfd_write(self._event, 1)

    def receive(self, frames_max: int = FRAMES_PER_TURN_MAX) -> list[bytes]:
        """Takes up to `frames_max` waiting frames, oldest first."""
        frames = [self._waiting.popleft() for _ in range(min(frames_max, len(self._waiting)))]
        if frames and not self._waiting and self._event >= 0:
            os.eventfd_read(self._event)
        self._counters["rx_frames"] += len(frames)
        return frames

    def send(self, frames: Sequence[bytes]) -> int:
        """Takes all frames; without carrier, or longer than the MTU allows, they are lost and counted."""
        for frame in frames:
            if not self._carrier or not _ETHERNET_BYTES <= len(frame) <= self.mtu + _ETHERNET_BYTES:
                self._counters["tx_dropped"] += 1
                continue
            self._counters["tx_frames"] += 1
            self._on_send(frame)
        return len(frames)

    def carrier(self) -> bool:
        """What `set_carrier` was told last."""
        return self._carrier

    def set_carrier(self, carrier: bool) -> None:
        """Plugs the cable in or pulls it, at this end alone; a test that means both tells both. What waits stays."""
        self._carrier = carrier

    def counters(self) -> dict[str, int]:
        """Frames moved and dropped since the port was made."""
        return dict(self._counters)

    def close(self) -> None:
        """Drops what waits."""
        self._waiting.clear()
        if self._event >= 0:
            os.close(self._event)
            self._event = -1
