"""A hostile host: nonsense in its own rings harms nobody else, and a reset frees what it broke.

LAB_FUZZ_ENTRIES sets how many entries (the nightly session: many more than CI).
"""

from __future__ import annotations

import os
import random
import struct

from emul.clock import MILLISECOND
from emul.queues import (
    COMPLETION_STRIDE,
    DOORBELL_STRIDE,
    DOORBELLS,
    HEADER_BYTES,
    RECEIVE_STRIDE,
    SEND_STRIDE,
    send_ring_bytes,
)
from emul.vocabulary import WCStatus, WROpcode
from tests.helpers.adapters import Party, connect_by_hand
from tests.helpers.hostile import EVERYTHING, Guarded, Victim

ENTRIES = int(os.environ.get("LAB_FUZZ_ENTRIES", "6000"))
DEPTH = 8
ENTRIES_PER_ROUND = 60


class HostileHost:
    """Party a of a victim, writing into its own rings by hand."""

    def __init__(self, victim: Victim, rng: random.Random, guards: list[Guarded]) -> None:
        self._victim = victim
        self._rng = rng
        self._guards = guards
        self._sent = self._received = 0

    def reset(self) -> None:
        """The rings go on where they were: a reset does not turn them back."""
        self._victim.connect()

    def post_send(self) -> None:
        """One send entry: a stamp that counts, and anything in the fields."""
        rng = self._rng
        ring = self._victim.a.qp._memory.buffer
        start = HEADER_BYTES + self._sent % DEPTH * SEND_STRIDE
        entry = bytearray(rng.randbytes(SEND_STRIDE)) if rng.random() < 0.3 else bytearray(SEND_STRIDE)
        guard = rng.choice(self._guards).mr
        remote = rng.choice((self._victim.open, self._victim.readable, self._victim.strangers)).mr
        opcode = rng.choice((*(int(each) for each in WROpcode), rng.randrange(256)))
        struct.pack_into(
            "<BBBxIQQIIQI", entry, 0, opcode, rng.randrange(256), rng.choice((0, 1, 1, 1, 2, 6, 7, 255)),
            rng.getrandbits(32), rng.getrandbits(64), remote.buf + rng.choice((0, 8, 4090, 1 << 40)), remote.rkey,
            rng.choice((guard.lkey, guard.lkey, rng.getrandbits(32))),
            guard.buf + rng.choice((0, 0, 100, 4095, 1 << 50)),
            rng.choice((0, 1, 8, 64, 4096, 4097, 0xFFFFFFFF)),
        )  # fmt: skip
        self._sent += 1
        struct.pack_into("<I", entry, 44, self._sent & 0xFFFFFFFF)
        ring[start : start + SEND_STRIDE] = bytes(entry)

    def post_receive(self) -> None:
        """One receive entry, likewise."""
        rng = self._rng
        ring = self._victim.a.qp._memory.buffer
        start = send_ring_bytes(DEPTH) + HEADER_BYTES + self._received % DEPTH * RECEIVE_STRIDE
        entry = bytearray(rng.randbytes(RECEIVE_STRIDE))
        guard = rng.choice(self._guards).mr
        self._received += 1
        struct.pack_into(
            "<QIIQII", entry, 0, rng.getrandbits(64), rng.choice((guard.lkey, rng.getrandbits(32))),
            rng.choice((0, 10, 4096, 4097, 0xFFFFFFFF)), guard.buf + rng.choice((0, 1, 4095, 1 << 60)),
            rng.choice((0, 1, 2, 7, 8, 0xFFFFFFFF)), self._received & 0xFFFFFFFF,
        )  # fmt: skip
        ring[start : start + RECEIVE_STRIDE] = bytes(entry)

    def scribble(self) -> None:
        """Random bytes into headers, completion and doorbell rings."""
        rng, victim = self._rng, self._victim
        host = victim.pair.adapters[0].host
        assert host is not None
        completions = victim.a.cq._memory.buffer
        place = rng.randrange(4)
        if place == 0:
            offset = HEADER_BYTES + rng.randrange(4 * DEPTH) * COMPLETION_STRIDE
            completions[offset : offset + COMPLETION_STRIDE] = rng.randbytes(COMPLETION_STRIDE)
        elif place == 1:
            completions[:HEADER_BYTES] = rng.randbytes(HEADER_BYTES)
        elif place == 2:
            offset = HEADER_BYTES + rng.randrange(DOORBELLS) * DOORBELL_STRIDE
            host.memory.buffer[offset : offset + DOORBELL_STRIDE] = rng.randbytes(DOORBELL_STRIDE)
        else:
            victim.a.qp._memory.buffer[:HEADER_BYTES] = rng.randbytes(HEADER_BYTES)


def test_no_queue_entry_crashes_an_adapter_or_touches_what_the_host_may_not() -> None:
    for number in range(max(1, ENTRIES // ENTRIES_PER_ROUND)):
        seed = f"queues/{number}"
        rng = random.Random(seed)
        victim = Victim(number, depth=DEPTH)
        bystanders = Party(victim.pair.contexts[0]), Party(victim.pair.contexts[1])
        connect_by_hand(victim.pair, bystanders)
        victim.pair.settle(span_ns=20 * MILLISECOND)
        guards = [Guarded.make(victim.a.pd, EVERYTHING) for _ in range(2)]
        host = HostileHost(victim, rng, guards)
        try:
            for _ in range(ENTRIES_PER_ROUND):
                rng.choice((host.post_send, host.post_send, host.post_receive, host.scribble))()
                victim.pair.adapters[0].look_at_all_queues()
                victim.pair.step()
                if rng.random() < 0.1:
                    host.reset()
            victim.pair.settle(span_ns=100 * MILLISECOND)
            for guard in guards:
                guard_outside_is_whole(guard)
            victim.check()
            assert bystanders_work(victim, *bystanders), "another queue pair of the same adapter was harmed"
            assert a_new_queue_pair_works(victim), "the host could not begin anew"
        except Exception as error:
            raise AssertionError(f"seed {seed!r}: {type(error).__name__}: {error}") from error


def guard_outside_is_whole(guard: Guarded) -> None:
    assert set(guard.outside()) == {0xA5}, "bytes beside the host's own region have changed"


def bystanders_work(victim: Victim, a: Party, b: Party) -> bool:
    a.qp.post_write(1, a.mr.buf, 2000, a.mr.lkey, b.mr.buf, b.mr.rkey)
    # The doorbell ring is the host's, for all its queue pairs: who has scribbled into it is served when the adapter
    # looks by itself, as it does every ten milliseconds.
    victim.pair.adapters[0].look_at_all_queues()
    victim.pair.settle(span_ns=300 * MILLISECOND)
    return a.statuses() == [WCStatus.SUCCESS]


def a_new_queue_pair_works(victim: Victim) -> bool:
    victim.a.qp.close()
    a, b = Party(victim.pair.contexts[0]), Party(victim.pair.contexts[1])
    connect_by_hand(victim.pair, (a, b))
    return bystanders_work(victim, a, b)
