"""A client's end of one epoch of a session: what it writes and sends with (`ccm.client` has the rest)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ccm.needs import Needs
from ccm.stream import Arrivals, Stream

if TYPE_CHECKING:
    from ccm.client import Partner


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
