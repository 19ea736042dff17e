"""The responder: what request packets from the wire do to local memory, and what is answered.

Follows InfiniBand specification vol. 1, 9.7.4 (PSN check), 9.7.5 (acknowledgements), 9.6 and 9.8 (packet order,
errors), annex A19 (FLUSH, ATOMIC WRITE); where they leave room it does what Linux rxe does. Everything that comes in is
hostile: each packet's key, bounds, access and fence are checked before a byte is moved.

In: `on_request`. Out: `answers`; `delivered`, receives that are completed; `written`, regions into which a whole
message was written; `refusal`, set once by the error after which the queue pair must go to ERR.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from emul.answers import Answers
from emul.queues import ReceiveEntry
from emul.regions import MemoryRegion, RegionTable
from emul.vocabulary import AccessFlags, PlacementType, Selectivity, WCFlags, WCOpcode, WCStatus
from emul.wire.headers import (
    ATOMIC_ETH,
    ATOMIC_ETH_BYTES,
    IMM,
    IMM_BYTES,
    RETH,
    RETH_BYTES,
    Opcode,
    Place,
    Syndrome,
)
from emul.wire.psn import PSN_MASK, psn_distance

MESSAGE_BYTES_MAX: Final = 1 << 31
"""Bytes of one message (vol. 1, 9.3.3)."""
ATOMIC_BYTES: Final = 8

_REMOTE_WRITE: Final = int(AccessFlags.REMOTE_WRITE)
_REMOTE_READ: Final = int(AccessFlags.REMOTE_READ)
_REMOTE_ATOMIC: Final = int(AccessFlags.REMOTE_ATOMIC)
_ACK: Final = int(Syndrome.ACK)
_SEND: Final = 0
_WRITE: Final = 1
_NO_MESSAGE: Final = -1
_NOTHING: Final = 0
_IMMEDIATE: Final = 1
_INVALIDATE: Final = 2
# opcode -> (operation, whether it begins a message, whether it ends one, what stands before the payload of the last)
_DATA: Final[dict[int, tuple[int, bool, bool, int]]] = {
    int(opcode): (operation, place in (Place.FIRST, Place.ONLY), place in (Place.LAST, Place.ONLY), extra)
    for opcode, operation, place, extra in (
        (Opcode.SEND_FIRST, _SEND, Place.FIRST, _NOTHING),
        (Opcode.SEND_MIDDLE, _SEND, Place.MIDDLE, _NOTHING),
        (Opcode.SEND_LAST, _SEND, Place.LAST, _NOTHING),
        (Opcode.SEND_LAST_WITH_IMMEDIATE, _SEND, Place.LAST, _IMMEDIATE),
        (Opcode.SEND_LAST_WITH_INVALIDATE, _SEND, Place.LAST, _INVALIDATE),
        (Opcode.SEND_ONLY, _SEND, Place.ONLY, _NOTHING),
        (Opcode.SEND_ONLY_WITH_IMMEDIATE, _SEND, Place.ONLY, _IMMEDIATE),
        (Opcode.SEND_ONLY_WITH_INVALIDATE, _SEND, Place.ONLY, _INVALIDATE),
        (Opcode.RDMA_WRITE_FIRST, _WRITE, Place.FIRST, _NOTHING),
        (Opcode.RDMA_WRITE_MIDDLE, _WRITE, Place.MIDDLE, _NOTHING),
        (Opcode.RDMA_WRITE_LAST, _WRITE, Place.LAST, _NOTHING),
        (Opcode.RDMA_WRITE_LAST_WITH_IMMEDIATE, _WRITE, Place.LAST, _IMMEDIATE),
        (Opcode.RDMA_WRITE_ONLY, _WRITE, Place.ONLY, _NOTHING),
        (Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE, _WRITE, Place.ONLY, _IMMEDIATE),
    )
}
_NATIVE: Final = Struct("=Q")
"""An atomic works on eight bytes as the host's processor reads them."""
_U64: Final = (1 << 64) - 1
_FLUSH_ACCESS: Final[dict[int, int]] = {
    PlacementType.GLOBAL: int(AccessFlags.FLUSH_GLOBAL),
    PlacementType.PERSISTENT: int(AccessFlags.FLUSH_PERSISTENT),
    PlacementType.GLOBAL | PlacementType.PERSISTENT: int(AccessFlags.FLUSH_GLOBAL | AccessFlags.FLUSH_PERSISTENT),
}
# How a message that was refused half-way ends for the receive that it had taken.
_RECEIVE_STATUS = {
    Syndrome.NAK_INVALID_REQUEST: WCStatus.REM_INV_REQ_ERR,
    Syndrome.NAK_REMOTE_ACCESS: WCStatus.REM_ACCESS_ERR,
    Syndrome.NAK_REMOTE_OPERATION: WCStatus.LOC_QP_OP_ERR,
}


class Delivery(NamedTuple):
    """A receive work request that is used up."""

    wr_id: int
    status: WCStatus
    opcode: WCOpcode
    byte_len: int
    imm: int
    flags: WCFlags
    solicited: bool


class Responder:
    """The receiving side of a queue pair."""

    __slots__ = (
        "_access", "_atomics", "_cursor", "_fenced", "_message", "_more", "_mtu", "_nak_sent", "_pd", "_receive",
        "_receive_pd", "_receive_regions", "_receive_room", "_region", "_regions", "_remaining", "_rnr_timer", "_slots",
        "_take_receive", "_target", "_written_bytes", "answers", "counts", "delivered", "epsn", "msn", "refusal",
        "twice", "written",
    )  # fmt: skip

    def __init__(
        self,
        *,
        regions: RegionTable,
        pd: int,
        receive_pd: int,
        access: AccessFlags,
        mtu: int,
        expected_psn: int,
        min_rnr_timer: int,
        max_dest_rd_atomic: int,
        take_receive: Callable[[], ReceiveEntry | None],
        fenced: Callable[[], bool],
    ) -> None:
        self._regions = regions
        self._pd = pd
        self._receive_pd = receive_pd
        self._access = int(access)
        self._mtu = mtu
        self._rnr_timer = min_rnr_timer & 0x1F
        self._slots = max_dest_rd_atomic
        self._take_receive = take_receive
        self._fenced = fenced
        self.epsn = expected_psn
        self.msn = 0
        self._message = _NO_MESSAGE
        """Operation of the message that has begun and not ended."""
        self._receive: ReceiveEntry | None = None
        self._receive_regions: list[MemoryRegion] = []
        self._receive_room = 0
        self._region: MemoryRegion | None = None
        self._target = 0
        """Of a WRITE: where the next byte goes, counted from the beginning of its region."""
        self._cursor = memoryview(b"")
        """Of a SEND: where the next byte goes ..."""
        self._more: list[memoryview] = []
        """... and, for a receive of several pieces, the pieces after that."""
        self._remaining = 0
        self._written_bytes = 0
        self._nak_sent = False
        self._atomics: dict[int, int] = {}
        """PSN -> value found, of the last atomics: what their repetitions are answered with."""
        self.answers = Answers(mtu=mtu)
        self.delivered: list[Delivery] = []
        self.written: list[MemoryRegion] = []
        self.refusal: Syndrome | None = None
        self.twice = False
        """A hardware fault: the next atomic is carried out twice."""
        self.counts = ResponderCounts()

    def adjust(self, *, access: AccessFlags, min_rnr_timer: int) -> None:
        """What modify_qp may change while it runs."""
        self._access, self._rnr_timer = int(access), min_rnr_timer & 0x1F

    def abandon(self) -> None:
        """The queue pair is broken for another reason than a request of the peer: the receive of a half-received
        message is given back, and no data go out any more.
        """
        self._finish_receive(WCStatus.WR_FLUSH_ERR, WCOpcode.RECV, 0)
        if self.refusal is None:
            self.answers.forget_data()

    def on_request(
        self, opcode: int, psn: int, ack_requested: bool, data: bytes, start: int, end: int, solicited: bool = False
    ) -> None:
        """One request packet; what follows its BTH, without padding and ICRC, lies in `data` from `start` to `end`."""
        if psn != self.epsn:
            if psn_distance(psn, self.epsn) > 0:
                self.counts.out_of_sequence += 1
                self._tell_once(_SEQUENCE_NAK)
            else:
                self._on_duplicate(opcode, psn, data, start, end)
            return
        kind = _DATA.get(opcode)
        if kind is not None:
            operation, begins, ends, extra = kind
            if self._message != (_NO_MESSAGE if begins else operation):
                self._fail(Syndrome.NAK_INVALID_REQUEST)
                return
            if operation == _WRITE:
                refusal = self._write(begins, ends, extra, data, start, end, solicited)
            else:
                refusal = self._receive_send(begins, ends, extra, data, start, end, solicited)
            if refusal is not None:
                self._refuse(refusal)
                return
            self._message = _NO_MESSAGE if ends else operation
            self._accept(psn, 1, ends)
            if ack_requested:
                self.answers.acknowledge(psn, _ACK, self.msn)
        elif self._message != _NO_MESSAGE:
            self._fail(Syndrome.NAK_INVALID_REQUEST)
        elif self.answers.slots >= self._slots:
            self._fail(Syndrome.NAK_INVALID_REQUEST)  # more at once than max_dest_rd_atomic
        elif self.answers.has_room():  # else as if lost: the requester asks again
            _RESPONDED[opcode](self, opcode, psn, data, start, end)

    # -- SEND and RDMA WRITE ------------------------------------------------------------------------------------------

    def _write(
        self, begins: bool, ends: bool, extra: int, data: bytes, start: int, end: int, solicited: bool
    ) -> Syndrome | None:
        if begins:
            refusal = self._open_write(data, start, end)
            if refusal is not None:
                return refusal
            start += RETH_BYTES
        word = 0
        if extra:
            if end - start < IMM_BYTES:
                return Syndrome.NAK_INVALID_REQUEST
            (word,) = IMM.unpack_from(data, start)
            start += IMM_BYTES
        size = end - start
        if not self._fits_packet(begins, ends, size):
            return Syndrome.NAK_INVALID_REQUEST
        if (size != self._remaining) if ends else (size >= self._remaining):
            return Syndrome.NAK_INVALID_REQUEST
        region = self._region
        # Not valid: deregistered between two packets of the message.
        if self._fenced() or (region is not None and not region.valid):
            return Syndrome.NAK_REMOTE_ACCESS
        if extra:
            self._receive = self._take_receive()
            if self._receive is None:
                return Syndrome.RNR_NAK
        if size:
            assert region is not None
            self._store(region, data[start:end])
        if extra:
            self._finish_receive(
                WCStatus.SUCCESS, WCOpcode.RECV_RDMA_WITH_IMM, self._written_bytes, word, WCFlags.WITH_IMM,
                solicited=solicited,
            )  # fmt: skip
        if ends and region is not None and region.watcher:
            self.written.append(region)
        return None

    def _store(self, region: MemoryRegion, payload: bytes) -> None:
        target = self._target
        self._target = target + len(payload)
        self._remaining -= len(payload)
        region.buffer[target : self._target] = payload

    def _fits_packet(self, begins: bool, ends: bool, size: int) -> bool:
        if not ends:
            return size == self._mtu
        return size <= self._mtu and (begins or size > 0)

    def _open_write(self, data: bytes, start: int, end: int) -> Syndrome | None:
        if end - start < RETH_BYTES:
            return Syndrome.NAK_INVALID_REQUEST
        addr: int
        rkey: int
        length: int
        addr, rkey, length = RETH.unpack_from(data, start)
        if not self._access & _REMOTE_WRITE or length > MESSAGE_BYTES_MAX:
            return Syndrome.NAK_INVALID_REQUEST
        self.counts.writes += 1
        self._region = None
        if length:
            region = self._regions.remote(rkey, addr, length, self._pd, _REMOTE_WRITE)
            if region is None:
                return Syndrome.NAK_REMOTE_ACCESS
            self._region = region
            self._target = addr - region.addr
        self._remaining = self._written_bytes = length
        return None

    def _receive_send(
        self, begins: bool, ends: bool, extra: int, data: bytes, start: int, end: int, solicited: bool
    ) -> Syndrome | None:
        if begins:
            refusal = self._open_send()
            if refusal is not None:
                return refusal
        word = 0
        if extra:
            if end - start < IMM_BYTES:
                return Syndrome.NAK_INVALID_REQUEST
            (word,) = IMM.unpack_from(data, start)
            start += IMM_BYTES
        size = end - start
        if not self._fits_packet(begins, ends, size):
            return Syndrome.NAK_INVALID_REQUEST
        refusal = self._check_send(size)
        if refusal is not None:
            return refusal
        if extra == _INVALIDATE and not self._regions.can_invalidate(word, self._pd):
            return Syndrome.NAK_REMOTE_ACCESS
        if size:
            self._scatter(memoryview(data)[start:end])
        self._receive_room -= size
        self._remaining += size  # counts up here: bytes received so far
        if ends:
            self._end_send(extra, word, solicited)
        return None

    def _open_send(self) -> Syndrome | None:
        if self._fenced():
            return Syndrome.NAK_REMOTE_ACCESS
        receive = self._take_receive()
        if receive is None:
            return Syndrome.RNR_NAK
        self._receive = receive
        self._receive_room = self._remaining = 0
        self._receive_regions.clear()
        self._more.clear()
        for lkey, addr, length in receive.sges:
            if not length:
                continue
            region = self._regions.local(lkey, addr, length, self._receive_pd, write=True)
            if region is None:
                self._finish_receive(WCStatus.LOC_PROT_ERR, WCOpcode.RECV, 0)
                return Syndrome.NAK_REMOTE_OPERATION
            self._receive_regions.append(region)
            self._more.append(region.slice(addr, length))
            self._receive_room += length
        self._cursor = self._more.pop(0) if self._more else memoryview(b"")
        return None

    def _check_send(self, size: int) -> Syndrome | None:
        if size > self._receive_room:
            self._finish_receive(WCStatus.LOC_LEN_ERR, WCOpcode.RECV, 0)
            return Syndrome.NAK_REMOTE_OPERATION
        for region in self._receive_regions:
            if not region.valid:
                self._finish_receive(WCStatus.LOC_PROT_ERR, WCOpcode.RECV, 0)
                return Syndrome.NAK_REMOTE_OPERATION
        return Syndrome.NAK_REMOTE_ACCESS if self._fenced() else None

    def _scatter(self, body: memoryview) -> None:
        while True:
            room = min(len(self._cursor), len(body))
            if room:
                self._cursor[:room] = body[:room]
                self._cursor, body = self._cursor[room:], body[room:]
            if not body:
                return
            self._cursor = self._more.pop(0)  # there is one: the length was checked against all pieces

    def _end_send(self, extra: int, word: int, solicited: bool) -> None:
        flags = WCFlags.NONE
        if extra == _IMMEDIATE:
            flags = WCFlags.WITH_IMM
        elif extra == _INVALIDATE:
            flags = WCFlags.WITH_INV
            self._regions.invalidate(word)
        self._finish_receive(WCStatus.SUCCESS, WCOpcode.RECV, self._remaining, word, flags, solicited=solicited)

    def _finish_receive(
        self,
        status: WCStatus,
        opcode: WCOpcode,
        size: int,
        imm: int = 0,
        flags: WCFlags = WCFlags.NONE,
        *,
        solicited: bool = True,
    ) -> None:
        receive, self._receive = self._receive, None
        if receive is not None:
            self.delivered.append(Delivery(receive.wr_id, status, opcode, size, imm, flags, solicited))

    # -- RDMA READ, FLUSH, atomics, ATOMIC WRITE ----------------------------------------------------------------------

    def _on_read(self, opcode: int, psn: int, data: bytes, start: int, end: int) -> None:
        if end - start != RETH_BYTES or not self._access & _REMOTE_READ:
            self._fail(Syndrome.NAK_INVALID_REQUEST)
            return
        found = self._read_source(data, start)
        if found is None:
            self._fail(Syndrome.NAK_REMOTE_ACCESS)
            return
        self.counts.reads += 1
        region, source = found
        self._accept(psn, max(1, -(-len(source) // self._mtu)))
        self.answers.respond(region, source, psn, self.msn)

    def _read_source(self, data: bytes, start: int) -> tuple[MemoryRegion | None, memoryview] | None:
        addr: int
        rkey: int
        length: int
        addr, rkey, length = RETH.unpack_from(data, start)
        if length == 0:
            return None, memoryview(b"")
        if length > MESSAGE_BYTES_MAX:
            return None
        region = self._regions.remote(rkey, addr, length, self._pd, _REMOTE_READ)
        return None if region is None else (region, region.slice(addr, length))

    def _on_atomic(self, opcode: int, psn: int, data: bytes, start: int, end: int) -> None:
        if end - start != ATOMIC_ETH_BYTES or not self._access & _REMOTE_ATOMIC:
            self._fail(Syndrome.NAK_INVALID_REQUEST)
            return
        addr, rkey, swap_or_add, compare = ATOMIC_ETH.unpack_from(data, start)
        target = self._atomic_target(rkey, addr, _REMOTE_ATOMIC)
        if isinstance(target, Syndrome):
            self._fail(target)
            return
        self.counts.atomics += 1
        original = _carry_out(opcode, target, swap_or_add, compare)
        if self.twice:
            self.twice = False
            _carry_out(opcode, target, swap_or_add, compare)
        self._accept(psn, 1)
        while len(self._atomics) >= max(1, self._slots):
            del self._atomics[next(iter(self._atomics))]
        self._atomics[psn] = original
        self.answers.answer_atomic(psn, self.msn, original)

    def _on_atomic_write(self, opcode: int, psn: int, data: bytes, start: int, end: int) -> None:
        if end - start != RETH_BYTES + ATOMIC_BYTES or not self._access & _REMOTE_WRITE:
            self._fail(Syndrome.NAK_INVALID_REQUEST)
            return
        addr, rkey, length = RETH.unpack_from(data, start)
        target = self._atomic_target(rkey, addr, _REMOTE_WRITE) if length == ATOMIC_BYTES else None
        if target is None or isinstance(target, Syndrome):
            self._fail(Syndrome.NAK_INVALID_REQUEST if target is None else target)
            return
        self.counts.writes += 1
        target[:] = data[start + RETH_BYTES : end]
        region = self._regions.get(rkey)
        if region is not None and region.watcher:
            self.written.append(region)
        self._accept(psn, 1)
        self.answers.respond(None, memoryview(b""), psn, self.msn)

    def _atomic_target(self, rkey: int, addr: int, access: int) -> memoryview | Syndrome:
        if addr % ATOMIC_BYTES:
            return Syndrome.NAK_INVALID_REQUEST
        region = self._regions.remote(rkey, addr, ATOMIC_BYTES, self._pd, access)
        if region is None or self._fenced():
            return Syndrome.NAK_REMOTE_ACCESS
        return region.slice(addr, ATOMIC_BYTES)

    def _on_flush(self, opcode: int, psn: int, data: bytes, start: int, end: int) -> None:
        refusal = self._flush(data, start, end)
        if refusal is not None:
            self._fail(refusal)
            return
        self._accept(psn, 1)
        self.answers.respond(None, memoryview(b""), psn, self.msn)

    def _flush(self, data: bytes, start: int, end: int) -> Syndrome | None:
        if end - start != IMM_BYTES + RETH_BYTES:
            return Syndrome.NAK_INVALID_REQUEST
        feth: int
        (feth,) = IMM.unpack_from(data, start)
        addr, rkey, length = RETH.unpack_from(data, start + IMM_BYTES)
        access, selectivity = _FLUSH_ACCESS.get(feth & 0xF, 0), feth >> 4 & 3
        if not access or self._access & access != access or selectivity > Selectivity.MR:
            return Syndrome.NAK_INVALID_REQUEST
        region = self._regions.get(rkey) if selectivity == Selectivity.MR else None
        if region is not None:
            addr, length = region.addr, region.length
        region = self._regions.remote(rkey, addr, length, self._pd, access)
        if region is None:
            return Syndrome.NAK_REMOTE_ACCESS
        self.counts.flushes += 1
        region.flush(addr, length, persistent=bool(feth & PlacementType.PERSISTENT))
        return None

    def _accept(self, psn: int, packets: int, ends: bool = True) -> None:
        if ends:
            self.msn = (self.msn + 1) & PSN_MASK
        self._nak_sent = False
        self.epsn = (psn + packets) & PSN_MASK

    # -- duplicates and errors ----------------------------------------------------------------------------------------

    def _on_duplicate(self, opcode: int, psn: int, data: bytes, start: int, end: int) -> None:
        self.counts.duplicates += 1
        answers = self.answers
        if not answers.has_room():
            return
        if opcode in _DATA:
            answers.acknowledge((self.epsn - 1) & PSN_MASK, _ACK, self.msn)
        elif opcode == Opcode.RDMA_READ_REQUEST:
            self._read_again(psn, data, start, end)
        elif opcode == Opcode.ATOMIC_WRITE or (opcode == Opcode.FLUSH and self._flush(data, start, end) is None):
            answers.respond(None, memoryview(b""), psn, self.msn, repeated=True)
        elif opcode in _ATOMIC_OPCODES and psn in self._atomics:
            answers.answer_atomic(psn, self.msn, self._atomics[psn], repeated=True)

    def _read_again(self, psn: int, data: bytes, start: int, end: int) -> None:
        if end - start != RETH_BYTES or not self._access & _REMOTE_READ:
            return
        found = self._read_source(data, start)
        if found is None:
            return
        region, source = found
        packets = max(1, -(-len(source) // self._mtu))
        if psn_distance(psn + packets, self.epsn) <= 0:  # a repetition reaches no further than the original did
            self.answers.respond(region, source, psn, self.msn, repeated=True)

    def _tell_once(self, syndrome: int) -> None:
        if not self._nak_sent:
            self._nak_sent = True
            self.counts.naks_sent += 1
            self.answers.acknowledge(self.epsn, syndrome, self.msn)

    def _refuse(self, syndrome: Syndrome) -> None:
        if syndrome is Syndrome.RNR_NAK:
            self.counts.rnr_naks_sent += 1
            self._nak_sent = False
            self._tell_once(Syndrome.RNR_NAK | self._rnr_timer)
        else:
            self._fail(syndrome)

    def _fail(self, syndrome: Syndrome) -> None:
        self._finish_receive(_RECEIVE_STATUS[syndrome], WCOpcode.RECV, 0)
        self._nak_sent = False
        self._tell_once(syndrome)
        self.refusal = syndrome


def _carry_out(opcode: int, target: memoryview, swap_or_add: int, compare: int) -> int:
    """One atomic; gives what it found."""
    original: int = _NATIVE.unpack_from(target)[0]
    if opcode == Opcode.FETCH_ADD:
        _NATIVE.pack_into(target, 0, (original + swap_or_add) & _U64)
    elif original == compare:
        _NATIVE.pack_into(target, 0, swap_or_add)
    return original


class ResponderCounts:
    """What a responder has seen and said."""

    __slots__ = (
        "atomics", "duplicates", "flushes", "naks_sent", "out_of_sequence", "reads", "rnr_naks_sent", "writes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.atomics = self.duplicates = self.flushes = self.naks_sent = 0
        self.out_of_sequence = self.reads = self.rnr_naks_sent = self.writes = 0


_SEQUENCE_NAK: Final = int(Syndrome.NAK_SEQUENCE)
_ATOMIC_OPCODES: Final = frozenset({int(Opcode.COMPARE_SWAP), int(Opcode.FETCH_ADD)})
_RESPONDED: Final[dict[int, Callable[[Responder, int, int, bytes, int, int], None]]] = {
    Opcode.RDMA_READ_REQUEST: Responder._on_read,
    Opcode.COMPARE_SWAP: Responder._on_atomic,
    Opcode.FETCH_ADD: Responder._on_atomic,
    Opcode.FLUSH: Responder._on_flush,
    Opcode.ATOMIC_WRITE: Responder._on_atomic_write,
}
REQUEST_OPCODES = frozenset(_DATA) | frozenset(_RESPONDED)
