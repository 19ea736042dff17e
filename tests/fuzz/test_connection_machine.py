"""Any order of posts, losses, repetitions, resets and waits: each request completes once, in order, and truthfully.

The model knows what the second party's memory must hold after the writes that completed well, and counts completions.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emul.clock import MILLISECOND
from emul.verbs import MR
from emul.vocabulary import (
    MTU,
    SGE,
    AccessFlags,
    QPAttr,
    QPState,
    RecvWR,
    SendFlags,
    SendWR,
    WCOpcode,
    WCStatus,
    WROpcode,
)
from tests.helpers.adapters import AdapterPair, Party, connect_by_hand
from tests.helpers.hostile import EVERYTHING

EXAMPLES = int(os.environ.get("LAB_FUZZ_EXAMPLES", "100"))
DEPTH = 32
ROOM = 4096
COUNTER = 8192
TRUTH = 40_000
"""Bytes of b that nobody writes: what a READ must bring."""
OK = WCStatus.SUCCESS


class Connection(RuleBasedStateMachine):
    """Party a asks, party b answers; what a posts is known, and what must come of it."""

    @initialize(
        seed=st.integers(0, 1 << 16),
        psn=st.sampled_from([0, 5, 0xFFFFF0, 0xFFFFFF, 0x7FFFFF]),
        mtu=st.sampled_from([MTU.MTU_256, MTU.MTU_1024]),
        slots=st.integers(1, 4),
        loss=st.sampled_from([0.0, 0.05, 0.15, 0.3]),
        repeat=st.sampled_from([0.0, 0.2]),
    )
    def start(self, seed: int, psn: int, mtu: MTU, slots: int, loss: float, repeat: float) -> None:
        self.pair = AdapterPair(seed=seed)
        self.rng = random.Random(seed)
        self.loss, self.repeat = loss, repeat
        self.held: list[tuple[int, bytes]] = []
        self.pair.filter = self.cable
        self.a, self.b = (Party(context, access=EVERYTHING, depth=DEPTH) for context in self.pair.contexts)
        self.psn, self.mtu, self.slots = psn, mtu, slots
        self.posted: list[tuple[int, WROpcode, bytes]] = []
        self.completed: list[int] = []
        self.received = 0
        self.receives = 0
        self.truth = self.rng.randbytes(3000)
        self.b.mr.write(self.truth, 3000, TRUTH)
        self.model = bytearray(ROOM)
        self.targets: dict[int, MR] = {}
        self.added = 0
        self.uncertain = False
        self.next_id = 1
        self.connect()

    def connect(self) -> None:
        self.posted_at_connect = len(self.posted)
        connect_by_hand(
            self.pair,
            (self.a, self.b),
            qp_access_flags=EVERYTHING,
            path_mtu=self.mtu,
            max_rd_atomic=self.slots,
            max_dest_rd_atomic=self.slots,
            timeout=8,
            retry_cnt=7,
            sq_psn=self.psn,
            rq_psn=self.psn,
        )
        self.pair.settle(span_ns=20 * MILLISECOND)

    def cable(self, seen) -> list[bytes]:  # type: ignore[no-untyped-def]
        if self.rng.random() < self.loss:
            return []
        frames = [seen.frame] * (2 if self.rng.random() < self.repeat else 1)
        if self.held and self.held[0][0] == seen.sender:
            frames.append(self.held.pop(0)[1])
        return frames

    @rule(loss=st.sampled_from([0.0, 0.0, 0.1, 0.3]), repeat=st.sampled_from([0.0, 0.2]))
    def weather(self, loss: float, repeat: float) -> None:
        self.loss, self.repeat = loss, repeat

    @rule()
    def hold_back_a_copy(self) -> None:
        """An old frame comes again later, out of order."""
        if self.pair.seen and len(self.held) < 4:
            seen = self.pair.seen[self.rng.randrange(len(self.pair.seen))]
            self.held.append((seen.sender, seen.frame))

    def post(self, request: SendWR, opcode: WROpcode, data: bytes) -> None:
        if len(self.posted) - len(self.completed) >= DEPTH:
            return
        request.wr_id = self.next_id
        request.send_flags = SendFlags.SIGNALED
        self.a.qp.post_send(request)
        self.posted.append((self.next_id, opcode, data))
        self.next_id += 1

    @rule(length=st.integers(0, 1024), at=st.integers(0, 3000))
    def write(self, length: int, at: int) -> None:
        data = self.rng.randbytes(length)
        slot = 16384 + (self.next_id % DEPTH) * 1024
        self.a.mr.write(data, len(data), slot)
        request = SendWR(opcode=WROpcode.RDMA_WRITE, sg=[SGE(self.a.mr.buf + slot, len(data), self.a.mr.lkey)])
        request.set_wr_rdma(self.b.mr.rkey, self.b.mr.buf + at)
        self.post(request, WROpcode.RDMA_WRITE, at.to_bytes(2, "big") + data)

    @rule(length=st.integers(0, 3000))
    def read(self, length: int) -> None:
        memory = self.a.another_region(max(1, length))
        request = SendWR(opcode=WROpcode.RDMA_READ, sg=[SGE(memory.buf, length, memory.lkey)])
        request.set_wr_rdma(self.b.mr.rkey, self.b.mr.buf + TRUTH)
        self.targets[self.next_id] = memory
        self.post(request, WROpcode.RDMA_READ, length.to_bytes(2, "big"))

    @rule(amount=st.integers(1, 100))
    def add(self, amount: int) -> None:
        request = SendWR(opcode=WROpcode.ATOMIC_FETCH_AND_ADD, sg=[SGE(self.a.mr.buf + 9000, 8, self.a.mr.lkey)])
        request.set_wr_atomic(self.b.mr.rkey, self.b.mr.buf + COUNTER, amount)
        self.post(request, WROpcode.ATOMIC_FETCH_AND_ADD, amount.to_bytes(2, "big"))

    @rule()
    def flush(self) -> None:
        request = SendWR(opcode=WROpcode.FLUSH)
        request.set_wr_flush(self.b.mr.rkey, self.b.mr.buf, 64)
        self.post(request, WROpcode.FLUSH, b"")

    @rule(length=st.integers(0, 600))
    def send(self, length: int) -> None:
        if self.receives < DEPTH:
            self.b.qp.post_recv(RecvWR(self.receives, 1, [SGE(self.b.mr.buf + 20_000, 600, self.b.mr.lkey)]))
            self.receives += 1
            request = SendWR(opcode=WROpcode.SEND, sg=[SGE(self.a.mr.buf, length, self.a.mr.lkey)])
            self.post(request, WROpcode.SEND, b"")

    @rule(steps=st.integers(1, 6))
    def run_on(self, steps: int) -> None:
        for _ in range(steps):
            self.pair.step()
        self.collect()

    @rule()
    def wait(self) -> None:
        self.pair.settle(span_ns=5 * MILLISECOND)
        self.collect()

    @rule()
    def drain_and_go_on(self) -> None:
        if self.a.qp.query().qp_state is QPState.RTS:
            self.a.qp.modify(QPAttr(qp_state=QPState.SQD))
            self.pair.step()
            self.a.qp.modify(QPAttr(qp_state=QPState.RTS))

    @precondition(lambda self: len(self.posted) - self.posted_at_connect > 8)
    @rule()
    def break_and_connect_anew(self) -> None:
        """To ERR, where all is flushed, and through RESET back to RTS."""
        self.a.qp.modify(QPAttr(qp_state=QPState.ERR))
        self.b.qp.modify(QPAttr(qp_state=QPState.ERR))
        self.pair.step()
        self.collect()
        assert len(self.completed) == len(self.posted), "something posted was neither completed nor flushed"
        for party in (self.a, self.b):
            party.qp.modify(QPAttr(qp_state=QPState.RESET))
            party.completions()
        self.receives = self.received = 0
        self.held.clear()
        self.pair.seen.clear()
        self.resynchronise()
        self.connect()

    @precondition(lambda self: len(self.posted) - len(self.completed) > 4)
    @rule()
    def clear_up(self) -> None:
        """With a sound cable everything that was posted completes."""
        weather, self.loss, self.repeat = (self.loss, self.repeat), 0.0, 0.0
        self.pair.settle(span_ns=2_000 * MILLISECOND)
        self.collect()
        assert len(self.completed) == len(self.posted)
        self.loss, self.repeat = weather

    def collect(self) -> None:
        for done in self.a.completions():
            wr_id, opcode, data = self.posted[len(self.completed)]
            assert done.wr_id == wr_id, "completions come in the order of the posts"
            self.completed.append(done.wr_id)
            if done.status is OK:
                self.apply(opcode, data)
            else:
                self.uncertain = True
            memory = self.targets.pop(wr_id, None)
            if memory is not None:
                length = int.from_bytes(data, "big")
                if done.status is OK and length:
                    assert memory.read(length, 0) == self.truth[:length], "a READ completed without its data"
                memory.close()
        for done in self.b.completions():
            if done.status is OK:
                assert done.opcode is WCOpcode.RECV
                assert done.wr_id == self.received, "receives are used in order"
            self.received += 1
        if len(self.completed) == len(self.posted) and not self.uncertain:
            assert self.b.mr.read(ROOM, 0) == bytes(self.model), "memory is not what the completed writes made it"
            assert int.from_bytes(self.b.mr.read(8, COUNTER), "little") == self.added, "an atomic was done twice or not"

    def apply(self, opcode: WROpcode, data: bytes) -> None:
        if opcode is WROpcode.RDMA_WRITE:
            at = int.from_bytes(data[:2], "big")
            self.model[at : at + len(data) - 2] = data[2:]
        elif opcode is WROpcode.ATOMIC_FETCH_AND_ADD:
            self.added += int.from_bytes(data, "big")

    def resynchronise(self) -> None:
        """After a break nobody knows what of the flushed requests was done."""
        self.model[:] = self.b.mr.read(ROOM, 0)
        self.added = int.from_bytes(self.b.mr.read(8, COUNTER), "little")
        self.uncertain = False

    @invariant()
    def nothing_beside(self) -> None:
        if hasattr(self, "b"):
            assert self.b.mr.read(100, ROOM + 100) == bytes(100), "bytes that nobody wrote have changed"
            assert AccessFlags(self.b.qp.query().qp_access_flags) in (EVERYTHING, AccessFlags.NONE)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.clear_up()


Connection.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate) if not os.environ.get("LAB_FUZZ_SHRINK") else tuple(Phase),
    suppress_health_check=list(HealthCheck),
)
TestConnection = Connection.TestCase


WALKS = int(os.environ.get("LAB_FUZZ_WALKS", "60"))
STEPS = 150


def walk(seed: int) -> None:
    """The same machine, driven further than hypothesis would go: long runs in bad weather."""
    rng = random.Random(f"walk/{seed}")
    machine = Connection()
    loss, repeat = rng.choice((0.02, 0.1, 0.25)), rng.choice((0.0, 0.1, 0.3))
    machine.start(seed, rng.choice((0, 0xFFFFF0, 0x7FFFF0)), MTU.MTU_256, rng.randrange(1, 5), loss, repeat)
    moves = [
        lambda: machine.write(rng.randrange(1025), rng.randrange(3000)),
        lambda: machine.read(rng.randrange(3000)),
        lambda: machine.add(rng.randrange(1, 100)),
        machine.flush,
        lambda: machine.send(rng.randrange(600)),
        machine.hold_back_a_copy,
        lambda: machine.run_on(rng.randrange(1, 6)),
        machine.wait,
        machine.drain_and_go_on,
        lambda: machine.break_and_connect_anew() if rng.random() < 0.1 else None,
    ]
    for _ in range(STEPS):
        rng.choice(moves)()
        machine.nothing_beside()
    machine.clear_up()


@pytest.mark.parametrize("seed", range(WALKS))
def test_long_walks_in_bad_weather(seed: int) -> None:
    walk(seed)
