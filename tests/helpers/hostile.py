"""A victim with guarded memory, and a forger who knows all that an attacker on the path could know.

The oracle is simple: bytes that nobody gave away never change, whatever comes; and after a reset the queue pairs work.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from emul.clock import MILLISECOND
from emul.memory import Memory
from emul.verbs import MR, PD
from emul.vocabulary import SGE, AccessFlags, QPAttr, QPState, RecvWR, SendWR, WCStatus, WROpcode
from emul.wire.frame import ENVELOPE_BYTES, internet_checksum
from emul.wire.headers import ATOMIC_ETH, BTH, IMM, P_KEY_FULL, RETH, Opcode
from emul.wire.icrc import icrc
from tests.helpers.adapters import AdapterPair, Party, connect_by_hand

PAGE = 4096
EVERYTHING = (
    AccessFlags.LOCAL_WRITE
    | AccessFlags.REMOTE_WRITE
    | AccessFlags.REMOTE_READ
    | AccessFlags.REMOTE_ATOMIC
    | AccessFlags.FLUSH_GLOBAL
    | AccessFlags.FLUSH_PERSISTENT
)
_DATA_OPCODES = tuple(int(opcode) for opcode in Opcode if opcode <= Opcode.ATOMIC_WRITE)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A region in the middle page of three; what lies before and behind it belongs to nobody on the wire."""

    memory: Memory
    mr: MR

    @classmethod
    def make(cls, pd: PD, access: AccessFlags) -> Guarded:
        """Pages of 0xA5 around and in the region."""
        memory = Memory.plain(3 * PAGE)
        memory.buffer[:] = b"\xa5" * (3 * PAGE)
        return cls(memory, MR(pd, PAGE, access, memory=memory, offset=PAGE))

    def outside(self) -> bytes:
        """What must never change."""
        return bytes(self.memory.buffer[:PAGE]) + bytes(self.memory.buffer[2 * PAGE :])


UNTOUCHED = b"\xa5" * (2 * PAGE)


class Victim:
    """Two connected parties; the second one, the victim, has an open region, a read-only one and a stranger's."""

    def __init__(self, seed: int, *, depth: int = 16) -> None:
        self.pair = AdapterPair(seed=seed)
        self.pair.seen = _Forgetful()
        self.a, self.b = (Party(context, access=EVERYTHING, depth=depth) for context in self.pair.contexts)
        self.open = Guarded.make(self.b.pd, EVERYTHING)
        self.readable = Guarded.make(self.b.pd, AccessFlags.REMOTE_READ)
        self.strangers = Guarded.make(PD(self.pair.contexts[1]), EVERYTHING)
        self.psns = (0, 0)
        self.connect()

    def connect(self) -> None:
        """Resets both queue pairs, empties their queues, and connects them anew."""
        for party in (self.a, self.b):
            party.qp.modify(QPAttr(qp_state=QPState.ERR))
            party.qp.modify(QPAttr(qp_state=QPState.RESET))
            party.completions()
        connect_by_hand(
            self.pair,
            (self.a, self.b),
            qp_access_flags=EVERYTHING,
            max_rd_atomic=4,
            max_dest_rd_atomic=4,
            timeout=8,
            retry_cnt=2,
            rnr_retry=1,
        )
        self.pair.settle(span_ns=20 * MILLISECOND)

    def works(self) -> bool:
        """A write goes through after a reset."""
        self.connect()
        self.a.qp.post_write(1, self.a.mr.buf, 3000, self.a.mr.lkey, self.b.mr.buf, self.b.mr.rkey)
        self.pair.settle(span_ns=300 * MILLISECOND)
        return self.a.statuses() == [WCStatus.SUCCESS]

    def busy(self, rng: random.Random) -> None:
        """Puts some work on the way, so that answers mean something."""
        for number in range(rng.randrange(3)):
            opcode = rng.choice((WROpcode.RDMA_WRITE, WROpcode.RDMA_READ, WROpcode.SEND))
            request = SendWR(number, opcode, sg=[SGE(self.a.mr.buf, rng.randrange(3000), self.a.mr.lkey)])
            request.set_wr_rdma(self.b.mr.rkey, self.b.mr.buf)
            self.a.qp.post_send(request)
        for number in range(rng.randrange(2)):
            self.b.qp.post_recv(RecvWR(number, 1, [SGE(self.b.mr.buf, rng.randrange(2000), self.b.mr.lkey)]))
        for _ in range(rng.randrange(3)):
            self.pair.step()

    def check(self) -> None:
        """Raises AssertionError where anything that nobody gave away has changed."""
        assert self.open.outside() == UNTOUCHED, "bytes beside an open region have changed"
        for name, guarded in (("read-only", self.readable), ("another domain's", self.strangers)):
            assert bytes(guarded.memory.buffer) == b"\xa5" * (3 * PAGE), f"{name} region has changed"


class _Forgetful(list):  # type: ignore[type-arg]
    """A million frames are not kept."""

    def append(self, item: object) -> None:
        """Forgets."""


class Forger:
    """Frames from nonsense to almost right, by seed."""

    def __init__(self, victim: Victim, rng: random.Random) -> None:
        self._victim = victim
        self._rng = rng
        self._corpus: list[bytes] = []

    def learn(self, frame: bytes) -> None:
        """Keeps a real frame to be mutated."""
        if len(self._corpus) < 256:
            self._corpus.append(frame)
        else:
            self._corpus[self._rng.randrange(256)] = frame

    def frame(self) -> bytes:
        """The next frame."""
        kind = self._rng.randrange(10)
        if kind == 0:
            return self._rng.randbytes(self._rng.randrange(200))
        if kind <= 3 and self._corpus:
            return self._mutated(fix=kind > 1)
        return self._crafted()

    def _mutated(self, *, fix: bool) -> bytes:
        rng = self._rng
        frame = bytearray(rng.choice(self._corpus))
        for _ in range(rng.randrange(1, 5)):
            frame[rng.randrange(len(frame))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        if rng.random() < 0.2:
            del frame[rng.randrange(len(frame)) :]
        if fix and len(frame) > ENVELOPE_BYTES + 16 and frame[12:14] == b"\x08\x00":
            _seal(frame)
        return bytes(frame)

    def _crafted(self) -> bytes:
        """A frame that passes every check up to the one that it is made to meet."""
        rng, victim = self._rng, self._victim
        to = rng.randrange(2)
        parties = (victim.a, victim.b)
        attr = parties[to].qp.query()
        opcode = rng.choice((*_DATA_OPCODES, rng.randrange(256)))
        psn = (rng.choice((attr.rq_psn, attr.sq_psn)) + rng.choice((0, 0, 0, 0, 1, -1, 2, -5, 1 << 22))) & 0xFFFFFF
        body = self._body(opcode)
        pad = rng.choice((-len(body) & 3, -len(body) & 3, rng.randrange(4)))
        flags = pad << 4 | rng.choice((0, 0, 0x80, 0x40, rng.randrange(16)))
        qpn = rng.choice((parties[to].qp.qp_num,) * 8 + (1, 0, rng.randrange(1 << 24)))
        bth = BTH.pack(opcode, flags, P_KEY_FULL, qpn, psn | rng.choice((0, 1 << 31)))
        rest = body + bytes(-len(body) & 3)
        head = bytes([2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, 1 - to]) + b"\x08\x00"
        addresses = bytes([10, 77, 0, 2 - to, 10, 77, 0, to + 1])
        ip = struct.pack("!BBHHHBBH", 0x45, rng.choice((0, 0, 3)), 0, 0, 0x4000, 64, 17, 0) + addresses
        frame = bytearray(head + ip + struct.pack("!HHHH", 0xC123, 4791, 0, 0) + bth + rest + bytes(4))
        _seal(frame)
        return bytes(frame)

    def _body(self, opcode: int) -> bytes:
        rng = self._rng
        rkey, addr, length = self._target()
        size = rng.choice((0, 1, 4, 8, 64, 1023, 1024, 1024, 1025, length % 2048))
        data = b"\x5a" * size
        reth = RETH.pack(addr, rkey, length)
        if 6 <= opcode <= 0xB:
            return rng.choice((reth, reth, b"")) + rng.choice((b"", IMM.pack(7))) + data
        if opcode in (Opcode.COMPARE_SWAP, Opcode.FETCH_ADD):
            return ATOMIC_ETH.pack(addr, rkey, rng.getrandbits(64), 0xA5A5A5A5A5A5A5A5)[: rng.choice((28, 28, 28, 20))]
        if opcode == Opcode.FLUSH:
            return IMM.pack(rng.choice((1, 2, 3, 0x11, 0x12, 0, 0xFFFFFFFF))) + reth
        if opcode == Opcode.ATOMIC_WRITE:
            return RETH.pack(addr, rkey, rng.choice((8, 8, 9, 0))) + data[:8]
        if opcode == Opcode.RDMA_READ_REQUEST:
            return reth
        if 0xD <= opcode <= 0x12:
            syndrome = rng.choice((0x1F, 0x20, 0x60, 0x61, 0x62, 0x63, rng.randrange(256)))
            return struct.pack("!I", syndrome << 24 | rng.randrange(1 << 24)) + rng.choice((data, bytes(8), b""))
        return rng.choice((b"", IMM.pack(rkey))) + data

    def _target(self) -> tuple[int, int, int]:
        """A key, an address near one of the borders, and a length."""
        rng, victim = self._rng, self._victim
        guarded = rng.choice((victim.open, victim.open, victim.open, victim.readable, victim.strangers))
        rkey = rng.choice((guarded.mr.rkey,) * 6 + (rng.getrandbits(32),))
        border = rng.choice((0, 0, PAGE - 1024, PAGE - 8, PAGE, -8, PAGE // 2))
        addr = (guarded.mr.buf + border + rng.choice((0, 0, 0, 1, -1, 8))) & ((1 << 64) - 1)
        length = rng.choice((0, 1, 8, 64, 1024, 1025, 2048, PAGE, PAGE + 1, 1 << 31, (1 << 32) - 1))
        return rkey, addr, length


def _seal(frame: bytearray) -> None:
    """Makes lengths, IP checksum and ICRC right again."""
    frame[14] = 0x45
    struct.pack_into("!H", frame, 16, len(frame) - 14)
    struct.pack_into("!H", frame, 38, len(frame) - 34)
    frame[23] = 17
    frame[20:22] = b"\x40\x00"
    frame[36:38] = struct.pack("!H", 4791)
    frame[40:42] = b"\0\0"
    frame[24:26] = b"\0\0"
    struct.pack_into("!H", frame, 24, internet_checksum(bytes(frame[14:34])))
    frame[-4:] = icrc(bytes(frame[14:-4]))
