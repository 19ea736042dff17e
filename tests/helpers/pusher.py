"""A client with two heavy and two light virtual interfaces: by number they are spread evenly, by bytes they are not."""

from __future__ import annotations

from ccm import Client, Needs, Node, Partner, Reason, Region, Session
from emul.clock import Instant

HEAVY_BYTES, HEAVY_DEPTH = 8 * 1024, 8
LIGHT_BYTES, LIGHT_DEPTH = 256, 1


class Pusher(Client):
    """Keeps all its virtual interfaces full: 0 and 2 with large writes, 1 and 3 with small ones."""

    name = "pusher"

    def on_boot(self, node: Node, now: Instant) -> None:
        """Client."""
        self.ours = node.allocate(HEAVY_BYTES)
        self.theirs = node.allocate(HEAVY_BYTES)

    def needs(self, partner: Partner) -> Needs | None:
        """Client."""
        return Needs(vis=4, depth=HEAVY_DEPTH, exposed_bytes=HEAVY_BYTES)

    def source(self, partner: Partner) -> Region:
        """Client."""
        return Region(self.ours, 0, HEAVY_BYTES)

    def exposed(self, partner: Partner) -> Region:
        """Client."""
        return Region(self.theirs, 0, HEAVY_BYTES)

    def on_ready(self, session: Session, now: Instant) -> None:
        """Client."""
        self._push(session)

    def on_completed(self, session: Session, sequence: int, now: Instant) -> None:
        """Client."""
        self._push(session)

    def on_error(self, session: Session, reason: Reason, now: Instant) -> None:
        """Client."""

    def _push(self, session: Session) -> None:
        for vi, stream in enumerate(session.streams):
            length, depth = (LIGHT_BYTES, LIGHT_DEPTH) if vi % 2 else (HEAVY_BYTES, HEAVY_DEPTH)
            while len(stream.entries) < depth and session.write(0, length, 0, vi):
                pass
