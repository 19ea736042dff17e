"""Ports: where frames enter and leave an adapter.

A port moves whole Ethernet frames and tells the carrier; it knows nothing of RDMA. `xdp` and `packet` are real
interfaces, `memory` is two ends in one process; `open` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from emul import compiled as _compiled

_compiled.use(__name__, __path__)

FRAMES_PER_TURN_MAX = 64
"""How many frames one call of `receive` hands over at the most: bounds the time away from doorbells and timers."""


class Port(Protocol):
    """One connector of an adapter."""

    mac: bytes
    """Six bytes."""
    mtu: int
    """Largest IP packet in bytes, as the interface says."""
    wire: str
    """How frames move: "xdp-native", "xdp-generic", "packet" or "memory"."""

    can_watch: bool
    """`waiting` costs no system call."""

    def waiting(self) -> bool:
        """Whether a frame has arrived; False where only the descriptor tells."""

    def fileno(self) -> int:
        """A descriptor that is readable (epoll, level-triggered) while frames wait."""

    def receive(self, frames_max: int = FRAMES_PER_TURN_MAX) -> list[bytes]:
        """Takes up to `frames_max` waiting frames, oldest first; never blocks."""

    def send(self, frames: Sequence[bytes]) -> int:
        """Sends frames in order, never blocks; gives how many were taken. Those not taken may be offered again; frames
        that a port without carrier takes are lost, as on a cable that was cut.
        """

    def carrier(self) -> bool:
        """Whether the cable is plugged in and the other end is up, read now (not remembered from an event)."""

    def counters(self) -> dict[str, int]:
        """What the port has counted since it was opened, by names such as "rx_frames", "tx_dropped"."""

    def close(self) -> None:
        """Gives the interface back as it was found."""
