"""Random work of every kind between two parties, both ways, for tests that judge what crosses the cable."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from emul.clock import MILLISECOND
from emul.errors import RDMAError
from emul.vocabulary import (
    SGE,
    AccessFlags,
    RecvWR,
    SendWR,
    WROpcode,
)
from tests.helpers.adapters import AdapterPair, Party, Seen, connect_by_hand
from tests.helpers.tap import Tap

EVERYTHING = (
    AccessFlags.LOCAL_WRITE
    | AccessFlags.REMOTE_WRITE
    | AccessFlags.REMOTE_READ
    | AccessFlags.REMOTE_ATOMIC
    | AccessFlags.FLUSH_GLOBAL
    | AccessFlags.FLUSH_PERSISTENT
)
TAKES_RECEIVE = (WROpcode.SEND, WROpcode.SEND_WITH_IMM, WROpcode.SEND_WITH_INV, WROpcode.RDMA_WRITE_WITH_IMM)
LENGTHS = (0, 1, 3, 8, 500, 1024, 1025, 3000, 9000)
REGION_BYTES = 65536
ROOM_BYTES = 10_000
QUIET_ROUNDS_MAX = 40
QUIET_NS = 150 * MILLISECOND
"""Longer than the adapters' timers: who has anything left to do sends something in it."""
RECEIVES_A_ROUND = 8


class Traffic:
    """Two connected parties, a tap on their cable, and work drawn from a seed."""

    def __init__(self, seed: int, *, mtu: int = 1500, ipv6: bool = False, **attributes: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"traffic/{seed}")
        self.pair = AdapterPair(seed=seed, mtu=mtu, ipv6=ipv6)
        self.tap = Tap(self.pair)
        self.a, self.b = (Party(context, length=REGION_BYTES, access=EVERYTHING) for context in self.pair.contexts)
        wanted = {"qp_access_flags": int(EVERYTHING), "max_rd_atomic": 3, "max_dest_rd_atomic": 3, **attributes}
        connect_by_hand(self.pair, (self.a, self.b), **wanted)
        self._next_id = 0

    def post(
        self, opcode: WROpcode, party: Party, partner: Party, *, length: int | None = None, receive: bool = True
    ) -> None:
        """Posts one request, and what it needs on the other side."""
        self._next_id += 1
        size = self.rng.choice(LENGTHS) if length is None else length
        request = SendWR(self._next_id, opcode, imm_data=self.rng.randrange(1 << 32))
        if opcode in TAKES_RECEIVE and receive:
            partner.qp.post_recv(RecvWR(self._next_id, 1, [SGE(partner.mr.buf, ROOM_BYTES, partner.mr.lkey)]))
        if opcode is WROpcode.SEND_WITH_INV:
            request.imm_data = partner.another_region(64).rkey
        if opcode in (WROpcode.ATOMIC_CMP_AND_SWP, WROpcode.ATOMIC_FETCH_AND_ADD):
            size = 8
            request.set_wr_atomic(partner.mr.rkey, partner.mr.buf + 8 * self.rng.randrange(4), self.rng.randrange(9), 7)
        elif opcode is WROpcode.ATOMIC_WRITE:
            size = 8
            request.set_wr_rdma(partner.mr.rkey, partner.mr.buf + 64)
        elif opcode is WROpcode.FLUSH:
            size = 0
            request.set_wr_flush(partner.mr.rkey, partner.mr.buf, 256)
        else:
            request.set_wr_rdma(partner.mr.rkey, partner.mr.buf + 128)
        if opcode is not WROpcode.FLUSH:
            request.sg = [SGE(party.mr.buf + 20_000, size, party.mr.lkey)]
        party.qp.post_send(request)

    def receive(self, party: Party) -> None:
        """Posts one more receive, where there is room for it."""
        with contextlib.suppress(RDMAError):  # full: there are enough of them
            party.qp.post_recv(RecvWR(0, 1, [SGE(party.mr.buf, ROOM_BYTES, party.mr.lkey)]))

    def play(self, cable: Callable[[Seen], list[bytes]], requests: int = 40) -> Traffic:
        """Posts so many requests over a cable in this weather, with pauses, some receives late; then lets it end."""
        self.tap.cable = cable
        parties = ((self.a, self.b), (self.b, self.a))
        for _ in range(requests):
            party, partner = self.rng.choice(parties)
            self.post(self.rng.choice(list(WROpcode)), party, partner, receive=self.rng.random() < 0.8)
            if self.rng.random() < 0.3:
                self.pair.settle(span_ns=self.rng.randrange(3 * MILLISECOND))
        for _ in range(QUIET_ROUNDS_MAX):
            sent = len(self.tap.sent)
            for party in (self.a, self.b):
                for _ in range(RECEIVES_A_ROUND):
                    self.receive(party)
            self.pair.settle(span_ns=QUIET_NS)
            for party in (self.a, self.b):
                party.completions()
            if len(self.tap.sent) == sent:
                break
        return self
