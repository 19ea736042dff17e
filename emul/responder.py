"""The responder: what request packets from the wire do to local memory, and what is answered.

Follows InfiniBand specification vol. 1, 9.7.4 (PSN check), 9.7.5 (acknowledgements), 9.6 and 9.8 (packet order,
errors); where they leave room it does what Linux rxe does. Everything that comes in is hostile: each packet's key,
bounds, access and fence are checked before a byte is moved.

In: `on_request`. Out: `next_packet`, in the order of PSNs; `delivered`, receives that are completed; `written`, regions
into which a whole message was written; `broken`, set once by the error after which the queue pair must go to ERR.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from emul.queues import ReceiveEntry
from emul.regions import MemoryRegion, RegionTable
from emul.vocabulary import AccessFlags, WCFlags, WCOpcode, WCStatus
from emul.wire.headers import (
    AETH,
    BTH,
    IMM,
    P_KEY_FULL,
    PAD_SHIFT,
    RETH,
    RETH_BYTES,
    Opcode,
    Place,
    Syndrome,
)
from emul.wire.psn import PSN_MASK, psn_distance

ANSWERS_MAX = 256
"""Answers that wait to be sent; at the bound duplicates go unanswered (the requester asks again)."""
MESSAGE_BYTES_MAX = 1 << 31
"""Bytes of one message (vol. 1, 9.3.3)."""

_REMOTE_WRITE, _REMOTE_READ = int(AccessFlags.REMOTE_WRITE), int(AccessFlags.REMOTE_READ)
_ACK, _ACKNOWLEDGE, _READ_REQUEST = int(Syndrome.ACK), int(Opcode.ACKNOWLEDGE), int(Opcode.RDMA_READ_REQUEST)
_SEND, _WRITE = 0, 1
# opcode -> (operation, place, has immediate data)
_REQUESTS: dict[int, tuple[int, Place, bool]] = {
    Opcode.SEND_FIRST: (_SEND, Place.FIRST, False),
    Opcode.SEND_MIDDLE: (_SEND, Place.MIDDLE, False),
    Opcode.SEND_LAST: (_SEND, Place.LAST, False),
    Opcode.SEND_LAST_WITH_IMMEDIATE: (_SEND, Place.LAST, True),
    Opcode.SEND_ONLY: (_SEND, Place.ONLY, False),
    Opcode.SEND_ONLY_WITH_IMMEDIATE: (_SEND, Place.ONLY, True),
    Opcode.RDMA_WRITE_FIRST: (_WRITE, Place.FIRST, False),
    Opcode.RDMA_WRITE_MIDDLE: (_WRITE, Place.MIDDLE, False),
    Opcode.RDMA_WRITE_LAST: (_WRITE, Place.LAST, False),
    Opcode.RDMA_WRITE_LAST_WITH_IMMEDIATE: (_WRITE, Place.LAST, True),
    Opcode.RDMA_WRITE_ONLY: (_WRITE, Place.ONLY, False),
    Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE: (_WRITE, Place.ONLY, True),
}
REQUEST_OPCODES = frozenset(_REQUESTS) | {int(Opcode.RDMA_READ_REQUEST)}
_BEGINS = frozenset({Place.FIRST, Place.ONLY})
_ENDS = frozenset({Place.LAST, Place.ONLY})


@dataclass(frozen=True, slots=True)
class Delivery:
    """A receive work request that is used up."""

    wr_id: int
    status: WCStatus
    opcode: WCOpcode
    byte_len: int
    imm: int
    flags: WCFlags


class _ReadJob:
    """A READ whose response is being sent."""

    __slots__ = ("buffer", "first", "msn", "offset", "psn")

    def __init__(self, buffer: memoryview, psn: int, msn: int) -> None:
        self.buffer = buffer
        self.offset = 0
        self.psn = psn
        self.msn = msn
        self.first = True


class Responder:
    """The receiving side of a queue pair."""

    __slots__ = (
        "_access", "_answers", "_cursor", "_destination", "_fenced", "_message", "_mtu", "_nak_sent", "_pd", "_receive",
        "_receive_room", "_region", "_regions", "_remaining", "_rnr_timer", "_take_receive", "broken", "delivered",
        "duplicates", "epsn", "msn", "naks_sent", "written",
    )  # fmt: skip

    def __init__(
        self,
        *,
        regions: RegionTable,
        pd: int,
        access: AccessFlags,
        mtu: int,
        destination_qpn: int,
        expected_psn: int,
        min_rnr_timer: int,
        take_receive: Callable[[], ReceiveEntry | None],
        fenced: Callable[[], bool],
    ) -> None:
        self._regions = regions
        self._pd = pd
        self._access = int(access)
        self._mtu = mtu
        self._destination = destination_qpn
        self._rnr_timer = min_rnr_timer
        self._take_receive = take_receive
        self._fenced = fenced
        self.epsn = expected_psn
        self.msn = 0
        self._nak_sent = False
        """A gap or an RNR was told; silence until the expected PSN arrives."""
        self._message: int | None = None
        """The operation whose FIRST has come and whose LAST has not."""
        self._region: MemoryRegion | None = None
        self._cursor: memoryview = memoryview(b"")
        """What is left of the target of the message in progress."""
        self._remaining = 0
        self._receive: ReceiveEntry | None = None
        self._receive_room = 0
        self._answers: deque[tuple[int, int, int] | _ReadJob] = deque()
        self.delivered: list[Delivery] = []
        self.written: list[MemoryRegion] = []
        self.broken = False
        self.duplicates = 0
        self.naks_sent = 0

    def on_request(self, opcode: int, psn: int, ack_requested: bool, body: memoryview) -> None:
        """One request packet; `body` is what follows the BTH without padding and ICRC."""
        if psn != self.epsn:
            if psn_distance(psn, self.epsn) > 0:
                self._tell_once(Syndrome.NAK_SEQUENCE)
            else:
                self._on_duplicate(opcode, psn, body)
        elif opcode == _READ_REQUEST:
            self._on_read(psn, body)
        else:
            self._on_data(opcode, psn, ack_requested, body)

    def next_packet(self) -> tuple[bytes, bytes] | None:
        """BTH and rest of the oldest answer; None where none waits."""
        if not self._answers:
            return None
        answer = self._answers[0]
        if isinstance(answer, _ReadJob):
            return self._read_response(answer)
        self._answers.popleft()
        psn, syndrome, msn = answer
        bth = BTH.pack(_ACKNOWLEDGE, 0, P_KEY_FULL, self._destination, psn)
        return bth, AETH.pack(syndrome << 24 | msn)

    # -- SEND and RDMA WRITE ------------------------------------------------------------------------------------------

    def _on_data(self, opcode: int, psn: int, ack_requested: bool, body: memoryview) -> None:
        operation, place, immediate = _REQUESTS[opcode]
        begins = place in _BEGINS
        if begins is (self._message is not None) or (not begins and self._message != operation):
            self._fail(Syndrome.NAK_INVALID_REQUEST)
            return
        imm = 0
        if operation == _WRITE and begins:
            refusal, body = self._open_write(body)
        elif operation == _SEND and begins:
            refusal = self._open_send()
        else:
            refusal = None
        if refusal is None and immediate:
            if len(body) < IMM.size:
                refusal = Syndrome.NAK_INVALID_REQUEST
            else:
                imm, body = IMM.unpack_from(body)[0], body[IMM.size :]
        if refusal is None:
            refusal = self._check_length(operation, place, len(body))
        if refusal is None and operation == _WRITE and immediate:
            self._receive = self._take_receive()
            refusal = Syndrome.RNR_NAK if self._receive is None else None
        if refusal is not None:
            self._refuse(refusal, begins)
            return
        self._store(operation, place, immediate, imm, body)
        self._nak_sent = False
        self.epsn = (psn + 1) & PSN_MASK
        if place in _ENDS:
            self.msn = (self.msn + 1) & PSN_MASK
        if ack_requested:
            self._answers.append((psn, _ACK, self.msn))

    def _open_write(self, body: memoryview) -> tuple[Syndrome | None, memoryview]:
        if len(body) < RETH_BYTES:
            return Syndrome.NAK_INVALID_REQUEST, body
        addr, rkey, length = RETH.unpack_from(body)
        body = body[RETH_BYTES:]
        if not self._access & _REMOTE_WRITE or length > MESSAGE_BYTES_MAX:
            return Syndrome.NAK_INVALID_REQUEST, body
        self._region = None
        self._cursor = memoryview(b"")
        if length:
            region = self._regions.remote(rkey, addr, length, self._pd, _REMOTE_WRITE)
            if region is None:
                return Syndrome.NAK_REMOTE_ACCESS, body
            self._region = region
            self._cursor = region.slice(addr, length)
        self._remaining = length
        return None, body

    def _open_send(self) -> Syndrome | None:
        if self._fenced():
            return Syndrome.NAK_REMOTE_ACCESS
        receive = self._take_receive()
        if receive is None:
            return Syndrome.RNR_NAK
        self._receive = receive
        self._receive_room = 0
        if receive.length:
            target = self._regions.local(receive.lkey, receive.addr, receive.length, self._pd, write=True)
            if target is None:
                self._finish_receive(WCStatus.LOC_PROT_ERR, WCOpcode.RECV, 0)
                return Syndrome.NAK_REMOTE_OPERATION
            self._cursor = target
            self._receive_room = receive.length
        self._remaining = 0
        return None

    def _check_length(self, operation: int, place: Place, size: int) -> Syndrome | None:
        if place in (Place.FIRST, Place.MIDDLE):
            if size != self._mtu:
                return Syndrome.NAK_INVALID_REQUEST
        elif size > self._mtu or (place is Place.LAST and size == 0):
            return Syndrome.NAK_INVALID_REQUEST
        if operation == _SEND:
            if size > self._receive_room:
                self._finish_receive(WCStatus.LOC_LEN_ERR, WCOpcode.RECV, 0)
                return Syndrome.NAK_REMOTE_OPERATION
            return Syndrome.NAK_REMOTE_ACCESS if self._fenced() else None
        if (size != self._remaining) if place in _ENDS else (size >= self._remaining):
            return Syndrome.NAK_INVALID_REQUEST
        if self._fenced():
            return Syndrome.NAK_REMOTE_ACCESS
        region = self._region
        if region is not None and self._regions.get(region.key) is not region:
            return Syndrome.NAK_REMOTE_ACCESS  # deregistered between two packets of the message
        return None

    def _store(self, operation: int, place: Place, immediate: bool, imm: int, body: memoryview) -> None:
        size = len(body)
        if size:
            self._cursor[:size] = body
            self._cursor = self._cursor[size:]
        if operation == _SEND:
            self._receive_room -= size
            self._remaining += size  # counts up here: bytes received so far
        else:
            self._remaining -= size
        if place not in _ENDS:
            self._message = operation
            return
        self._message = None
        flags = WCFlags.WITH_IMM if immediate else WCFlags.NONE
        if operation == _SEND:
            self._finish_receive(WCStatus.SUCCESS, WCOpcode.RECV, self._remaining, imm, flags)
            return
        if immediate:
            self._finish_receive(WCStatus.SUCCESS, WCOpcode.RECV_RDMA_WITH_IMM, 0, imm, flags)
        if self._region is not None and self._region.watcher:
            self.written.append(self._region)

    def _finish_receive(
        self, status: WCStatus, opcode: WCOpcode, size: int, imm: int = 0, flags: WCFlags = WCFlags.NONE
    ) -> None:
        receive, self._receive = self._receive, None
        if receive is not None:
            self.delivered.append(Delivery(receive.wr_id, status, opcode, size, imm, flags))

    # -- RDMA READ ----------------------------------------------------------------------------------------------------

    def _on_read(self, psn: int, body: memoryview) -> None:
        if self._message is not None or len(body) != RETH_BYTES or not self._access & _REMOTE_READ:
            self._fail(Syndrome.NAK_INVALID_REQUEST)
            return
        source = self._read_source(body)
        if source is None:
            self._fail(Syndrome.NAK_REMOTE_ACCESS)
            return
        if len(self._answers) >= ANSWERS_MAX:
            return  # as if lost: the requester asks again
        self.msn = (self.msn + 1) & PSN_MASK
        self._nak_sent = False
        self.epsn = (psn + max(1, -(-len(source) // self._mtu))) & PSN_MASK
        self._answers.append(_ReadJob(source, psn, self.msn))

    def _read_source(self, body: memoryview) -> memoryview | None:
        addr, rkey, length = RETH.unpack_from(body)
        if length == 0:
            return memoryview(b"")
        if length > MESSAGE_BYTES_MAX:
            return None
        region = self._regions.remote(rkey, addr, length, self._pd, _REMOTE_READ)
        return None if region is None else region.slice(addr, length)

    def _read_response(self, job: _ReadJob) -> tuple[bytes, bytes]:
        chunk = job.buffer[job.offset : job.offset + self._mtu]
        job.offset += len(chunk)
        last = job.offset >= len(job.buffer)
        if job.first:
            opcode = Opcode.RDMA_READ_RESPONSE_ONLY if last else Opcode.RDMA_READ_RESPONSE_FIRST
        else:
            opcode = Opcode.RDMA_READ_RESPONSE_LAST if last else Opcode.RDMA_READ_RESPONSE_MIDDLE
        pad = -len(chunk) & 3
        bth = BTH.pack(opcode, pad << PAD_SHIFT, P_KEY_FULL, self._destination, job.psn)
        head = b"" if opcode == Opcode.RDMA_READ_RESPONSE_MIDDLE else AETH.pack(Syndrome.ACK << 24 | job.msn)
        job.psn = (job.psn + 1) & PSN_MASK
        job.first = False
        if last:
            self._answers.popleft()
        return bth, b"".join((head, chunk, bytes(pad)))

    # -- duplicates and errors ----------------------------------------------------------------------------------------

    def _on_duplicate(self, opcode: int, psn: int, body: memoryview) -> None:
        self.duplicates += 1
        if len(self._answers) >= ANSWERS_MAX:
            return
        if opcode != Opcode.RDMA_READ_REQUEST:
            self._answers.append(((self.epsn - 1) & PSN_MASK, Syndrome.ACK, self.msn))
            return
        source = self._read_source(body) if len(body) == RETH_BYTES else None
        if source is None or not self._access & _REMOTE_READ:
            return
        packets = max(1, -(-len(source) // self._mtu))
        if psn_distance(psn + packets, self.epsn) <= 0:  # a repetition reaches no further than the original did
            self._answers.append(_ReadJob(source, psn, self.msn))

    def _tell_once(self, syndrome: int) -> None:
        if not self._nak_sent:
            self._nak_sent = True
            self.naks_sent += 1
            self._answers.append((self.epsn, syndrome, self.msn))

    def _refuse(self, syndrome: Syndrome, begins: bool) -> None:
        if syndrome is Syndrome.RNR_NAK:
            self._nak_sent = False
            self._tell_once(Syndrome.RNR_NAK | self._rnr_timer)
            return
        if begins and self._receive is not None:
            self._finish_receive(WCStatus.WR_FLUSH_ERR, WCOpcode.RECV, 0)
        self._fail(syndrome)

    def _fail(self, syndrome: Syndrome) -> None:
        self._nak_sent = False
        self._tell_once(syndrome)
        self.broken = True
