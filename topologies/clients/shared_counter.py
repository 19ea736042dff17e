"""A client of one's own, complete: each side's counter, visible on both. docs/writing-a-client.md explains it."""

import struct

from ccm import Client, Needs, Node, Partner, Reason, Region, Session
from emul.clock import MILLISECOND, Instant

COUNTER = struct.Struct("<Q")


class SharedCounter(Client):
    """Counts, writes its number into the partner's memory by RDMA, and sends a word about it."""

    name = "shared-counter"

    def __init__(self, every_ms: int = 10) -> None:
        self.every_ns = every_ms * MILLISECOND
        self.value = self.confirmed = 0
        self.next_at = Instant(0)
        self.heard: list[bytes] = []
        self.sessions: dict[int, Session] = {}  # by partner, while ready

    def on_boot(self, node: Node, now: Instant) -> None:
        self.node = node
        self.ours = node.allocate(COUNTER.size)
        self.theirs = node.allocate(COUNTER.size)  # the partner writes here

    def needs(self, partner: Partner) -> Needs | None:
        if abs(partner.id - self.node.id) != 1:
            return None  # in larger clusters: neighbours only
        return Needs(vis=1, depth=16, message_bytes=64, exposed_bytes=COUNTER.size)

    def source(self, partner: Partner) -> Region:
        return Region(self.ours, 0, COUNTER.size)

    def exposed(self, partner: Partner) -> Region:
        return Region(self.theirs, 0, COUNTER.size)

    def next_deadline(self) -> Instant | None:
        return self.next_at if self.sessions else None

    def on_time(self, now: Instant) -> None:
        self.next_at = Instant(now + self.every_ns)
        self.set(self.value + 1)

    def set(self, value: int) -> bool:
        """Publishes `value`; False when there is no session, or too much is under way."""
        COUNTER.pack_into(self.ours.buffer, 0, value)
        self.value = value
        taken = [session.write(0, COUNTER.size, 0) for session in self.sessions.values()]  # 0: the ledger is full
        for session in self.sessions.values():
            session.send(b"counter is %d" % value)
        return bool(taken) and all(taken)

    @property
    def partners_value(self) -> int:
        return int(COUNTER.unpack_from(self.theirs.buffer)[0])

    def on_ready(self, session: Session, now: Instant) -> None:
        self.sessions[session.partner.id] = session  # the partner's client is ready as well
        self.next_at = Instant(now + self.every_ns)

    def on_completed(self, session: Session, sequence: int, now: Instant) -> None:
        self.confirmed += 1  # in the partner's memory, or in its adapter: in the order of the requests

    def on_message(self, session: Session, data: bytes, now: Instant) -> None:
        self.heard = [*self.heard[-9:], data]  # each once, in the order in which it was sent
        if self.partners_value % 100 == 0:
            self.node.log("seen", {"partner": session.partner.name, "value": self.partners_value})

    def on_error(self, session: Session, reason: Reason, now: Instant) -> None:
        del self.sessions[session.partner.id]  # unconfirmed work may have arrived or not; on_ready comes by itself

    def on_closed(self, session: Session, reason: Reason, now: Instant) -> None:
        del self.sessions[session.partner.id]
