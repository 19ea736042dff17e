"""The well-known connection of one path, made with the verbs: driver's half of the peer connection.

Connects to the partner's firmware and checks its proof (R11), reads status page and outbox, writes the inbox, sends
fence requests. Reports values; what they mean is decided in `ccm.peering`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ccm import events as ev
from ccm.adapter_port import PIECE_BYTES, AdapterPort
from ccm.exchange import Record, RecordKind, parse_record, slot_range
from ccm.reasons import Reason
from emul.clock import Instant
from emul.cm import CmEvent, CmEventType, CmId
from emul.errors import RDMAError
from emul.node_memory import STATUS_READ_BYTES, NodeMemory, parse_looks, status_figures
from emul.verbs import MR, QP, QPInitAttr
from emul.vocabulary import (
    MTU,
    SGE,
    WC,
    QPAttr,
    QPCap,
    RecvWR,
    SendFlags,
    SendWR,
    WCOpcode,
    WCStatus,
    WROpcode,
)  # fmt: skip
from emul.wellknown import (
    CHALLENGE_BYTES,
    MESSAGE_FENCE,
    MESSAGE_FENCED,
    PROBE_BYTES,
    PROTOCOL_VERSION,
    RECEIVE_BYTES,
    RECEIVES_POSTED,
    SERVICE_ID,
    ConnectReply,
    ConnectRequest,
    FirmwareMessage,
    IdentityRefusal,
    VersionRefusal,
    any_proof_matches,
    proof,
)  # fmt: skip

PEER_TIMEOUT = 13
"""4.096 us x 2^13 = 34 ms; seven retries end after 268 ms: later than a card that the machine does not run is excused
(`limit_most`). Silence is noticed by the probes' limit long before.
"""
PEER_PATIENCE_MAX = 3
"""How often that is doubled for a patient attempt at the most, from the second level of patience on. The request to
connect is repeated at these times too.
"""
PEER_RETRIES = 7
PEER_RNR_RETRIES = 6
SENDS_MAX = 48
"""Requests under way: a read or two, a write for each slot, fence requests."""
_STATUS_AT, _SEEN_AT, _SENDS_AT = 0, 256, 512
_RECEIVES_AT = _SENDS_AT + RECEIVES_POSTED * RECEIVE_BYTES
assert _RECEIVES_AT + RECEIVES_POSTED * RECEIVE_BYTES <= PIECE_BYTES
_PROBE = 1 << 48
"""Bit in the wr_id of a read of the status page; below it is the request's number."""
_GLANCE_BYTES = 8
"""Of the status page, only to see that small packets get through."""
_SEEN_BYTES = slot_range(RecordKind.SEEN)[1]


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who connects: this node towards one partner over one path."""

    node_id: int
    incarnation: int
    cluster_key: bytes
    also_accepted: tuple[bytes, ...]
    """Further keys that the firmware may prove itself with."""
    partner: int
    path: int
    address: str


class PeerLink:
    """One connection, or the attempt at one. `tell` takes its events; after `close` there are none."""

    def __init__(
        self,
        port: AdapterPort,
        identity: PeerIdentity,
        node: NodeMemory,
        outbox: MR,
        rng: random.Random,
        tell: Callable[[ev.Event], None],
    ) -> None:
        self._port = port
        self._me = identity
        self._node = node
        self._outbox = outbox
        self._tell = tell
        self._challenge = rng.randbytes(CHALLENGE_BYTES)
        self._reply: ConnectReply | None = None
        self._pending: dict[int, Callable[[], None]] = {}
        """What follows from the completion of a request, by its number, in the order in which they were posted."""
        self._probes: deque[int] = deque()
        """Numbers of the reads of the status page under way: `_on_status` follows. They are the most frequent ones."""
        self._next_wr = 1
        self._fences_sent = 0
        self._failed = False
        self._probing = False
        """Connected, and not yet known whether packets of the path MTU get through."""
        self._small_passed = False
        self.mtu = MTU.MTU_1024
        self.scratch = port.take_piece()
        cap = QPCap(max_send_wr=SENDS_MAX, max_recv_wr=2 * RECEIVES_POSTED)
        try:
            self.qp = QP(port.pd, QPInitAttr(cap=cap, scq=port.cq, rcq=port.cq), QPAttr())
        except RDMAError:
            for region in port.give_back(self.scratch):
                port.attempt(region.close)
            raise
        port.handlers[self.qp.qp_num] = self.on_completion
        self._cm = CmId(self.qp)

    @property
    def number(self) -> int:
        """The connection's number in CM events."""
        return self._cm.number

    @property
    def silent(self) -> bool:
        """Whether it failed, or was given up: nothing is told any more."""
        return self._failed

    def connect(self, mtu_most: int = 0, patience: int = 0) -> Iterator[None]:
        """Sends the request, with a rest after each slow verb; with a path MTU of `mtu_most` at the most (0: the
        port's). The request, and on the connection everything, is repeated after a time doubled for each level of
        `patience` but the first, PEER_PATIENCE_MAX times at the most. Raises RDMAError.
        """
        me = self._me
        self.mtu = self._port.mtu
        if 0 < mtu_most < self.mtu:
            self.mtu = MTU(mtu_most)
        yield
        request = ConnectRequest(me.node_id, me.path, me.incarnation, self._challenge)
        timeout = PEER_TIMEOUT + min(max(0, patience - 1), PEER_PATIENCE_MAX)
        attr = QPAttr(path_mtu=self.mtu, timeout=timeout, retry_cnt=PEER_RETRIES, rnr_retry=PEER_RNR_RETRIES)
        self._cm.connect(me.address, SERVICE_ID, request.emit(), attr)

    def on_cm_event(self, event: CmEvent, fence_epoch: int) -> None:
        """The firmware's answer, or its absence."""
        if self._failed:
            return
        if event.kind is CmEventType.REPLY and self._reply is None:
            self._on_reply(event.private_data, fence_epoch)
        elif event.kind is CmEventType.REJECTED:
            self._on_rejected(event)
        elif event.kind is CmEventType.CONNECT_ERROR:
            self._refuse(Reason.VERBS_FAILED, f"the connection could not be made here, reason {event.reason}")
        elif event.kind is CmEventType.UNREACHABLE:
            self._refuse(Reason.UNREACHABLE, "no answer to the connection request")
        elif event.kind is CmEventType.DISCONNECTED:
            self._fail("disconnected by the firmware")

    def read_status(self) -> None:
        """RDMA READ of the status page: StatusRead or StatusUnreadable follows."""
        reply, scratch = self._known_reply(), self.scratch
        number, self._next_wr = self._next_wr, self._next_wr + 1
        self.qp.post_read(
            _PROBE | number, scratch.buf + _STATUS_AT, STATUS_READ_BYTES, scratch.lkey, reply.status_addr,
            reply.status_rkey,
        )  # fmt: skip
        self._probes.append(number)

    def read_seen(self) -> None:
        """RDMA READ of the partner's SEEN record of this path: SeenRead follows."""
        reply, scratch = self._known_reply(), self.scratch
        offset, length = slot_range(RecordKind.SEEN, self._me.path)
        self.qp.post_read(
            self._expect(self._on_seen), scratch.buf + _SEEN_AT, length, scratch.lkey, reply.outbox_addr + offset,
            reply.outbox_rkey,
        )  # fmt: skip

    def write_record(self, record: Record, length: int) -> None:
        """RDMA WRITE of a record that is in our outbox already: RecordWritten follows."""
        reply, me = self._known_reply(), self._me
        offset, _ = slot_range(record.kind, record.index)
        event = ev.RecordWritten(me.partner, me.path, record.kind, record.index, record.sequence)
        wr_id = self._expect(lambda: self._tell(event))
        outbox = self._outbox
        self.qp.post_write(wr_id, outbox.buf + offset, length, outbox.lkey, reply.inbox_addr + offset, reply.inbox_rkey)

    def probe(self, then: Callable[[], None] | None = None) -> None:
        """Writes one packet of the path MTU where nobody reads it. If it is lost the connection fails."""
        reply, outbox = self._known_reply(), self._outbox
        if reply.probe_rkey:
            wr_id = self._expect(then if then is not None else _nothing)
            size = min(self.mtu.size, PROBE_BYTES)
            self.qp.post_write(wr_id, outbox.buf, size, outbox.lkey, reply.probe_addr, reply.probe_rkey)

    def request_fence(self, path: int, epoch: int, number: int) -> None:
        """SENDs a fence request: FenceAnswered follows."""
        data = FirmwareMessage(MESSAGE_FENCE, path, epoch, number).emit()
        offset = _SENDS_AT + (self._fences_sent % RECEIVES_POSTED) * RECEIVE_BYTES
        self._fences_sent += 1
        self.scratch.write(data, len(data), offset)
        wr_id = self._expect(lambda: None)
        piece = SGE(self.scratch.buf + offset, len(data), self.scratch.lkey)
        self.qp.post_send(SendWR(wr_id, WROpcode.SEND, 1, 0, [piece], SendFlags.SIGNALED))

    def on_completion(self, completion: WC, now: Instant) -> None:
        """One completion of this queue pair."""
        if completion.status is not WCStatus.SUCCESS:
            if self._probing:
                self._on_probe_failed(completion.status)
            else:
                self._fail(completion.status.name)
        elif completion.opcode is WCOpcode.RECV:
            self._on_message(completion)
        elif completion.wr_id & _PROBE:
            number = completion.wr_id ^ _PROBE
            self._settle(number)
            if self._probes and self._probes[0] == number:
                self._probes.popleft()
                self._on_status()
            else:
                self._fail(f"completion of probe {number}, which is not under way")
        else:
            self._settle(completion.wr_id)
            then = self._pending.pop(completion.wr_id, None)
            if then is None:
                self._fail(f"completion of request {completion.wr_id}, which is not under way")
            else:
                then()

    def _settle(self, below: int) -> None:
        """Requests complete in their order: those before one that has are done, though their completions were lost.
        Nothing is told of a probe among them: how long its answer took isn't known.
        """
        while self._pending and next(iter(self._pending)) < below:
            self._pending.pop(next(iter(self._pending)))()
        while self._probes and self._probes[0] < below:
            self._probes.popleft()

    def silence(self) -> None:
        """Nothing more is told of this connection."""
        self._failed = True
        self._port.handlers.pop(self.qp.qp_num, None)

    def close(self) -> Iterator[None]:
        """Parts, and gives back what it holds, with a rest after each slow verb."""
        self.silence()
        self._port.attempt(self._cm.close)
        yield
        if self._port.attempt(self.qp.close):  # else the adapter may write there still
            for region in self._port.give_back(self.scratch):
                yield
                self._port.attempt(region.close)
        yield

    def _on_reply(self, private_data: bytes, fence_epoch: int) -> None:
        me = self._me
        reply = ConnectReply.parse(private_data)
        if reply is None:
            self._refuse(Reason.REJECTED, "the reply is not one of a firmware")
        elif reply.node_id != me.partner:
            self._refuse(Reason.WRONG_IDENTITY, f"node {reply.node_id} answered, expected {me.partner}")
        elif not any_proof_matches(
            (me.cluster_key, *me.also_accepted), "firmware", self._challenge, reply.node_id, reply.incarnation,
            reply.proof,
        ):  # fmt: skip
            self._refuse(Reason.WRONG_PROOF, f"node {reply.node_id} does not hold the cluster key")
        else:
            self._reply = reply
            self._cm.establish(proof(me.cluster_key, "caller", reply.challenge, me.node_id, me.incarnation))
            for slot in range(RECEIVES_POSTED):
                self._post_receive(slot)
            adapter = -1 if reply.adapter is None else reply.adapter
            self._probe_first(ev.PeerConnected(me.partner, me.path, fence_epoch, int(self.mtu), adapter))

    def _probe_first(self, connected: ev.PeerConnected) -> None:
        """Tells `connected` once a packet of the path MTU got through. A READ before it, small both ways, tells one
        that is too large from a partner that is out of reach.
        """
        reply, scratch = self._known_reply(), self.scratch
        if not reply.probe_rkey:
            self._tell(connected)
            return

        def small_passed() -> None:
            self._small_passed = True

        def large_passed() -> None:
            self._probing = False
            self._tell(connected)

        self._probing = True
        self.qp.post_read(
            self._expect(small_passed), scratch.buf + _STATUS_AT, _GLANCE_BYTES, scratch.lkey, reply.status_addr,
            reply.status_rkey,
        )  # fmt: skip
        self.probe(large_passed)

    def _on_probe_failed(self, status: WCStatus) -> None:
        me, size = self._me, self.mtu.size
        if self._small_passed and status is WCStatus.RETRY_EXC_ERR:
            text = f"small packets get through, those of {size} bytes don't"
            self._refuse(Reason.LARGE_PACKETS_LOST, f"path {me.path}: {text}", int(self.mtu))
        else:
            self._refuse(Reason.UNREACHABLE, f"the new connection failed: {status.name}")

    def _on_rejected(self, event: CmEvent) -> None:
        refusal = VersionRefusal.parse(event.private_data)
        double = IdentityRefusal.parse(event.private_data)
        if double is not None:
            text = f"node {double.node_id} is connected there on path {self._me.path} from another address"
            self._refuse(Reason.DUPLICATE_IDENTITY, text)
        elif refusal is None:
            self._refuse(Reason.REJECTED, f"firmware rejected the connection, reason {event.reason}")
        else:
            spoken = f"the firmware speaks version {refusal.version} of the well-known service"
            self._refuse(Reason.NO_COMMON_VERSION, f"{spoken}, we speak {PROTOCOL_VERSION}")

    def _refuse(self, reason: Reason, text: str, mtu: int = 0) -> None:
        if not self._failed:
            self._failed = True
            self._tell(ev.PeerRefused(self._me.partner, self._me.path, reason, text, mtu))

    def _fail(self, text: str) -> None:
        if not self._failed:
            self._failed = True
            self._tell(ev.PeerLost(self._me.partner, self._me.path, text))

    def _on_status(self) -> None:
        me = self._me
        page = self.scratch.read(STATUS_READ_BYTES, _STATUS_AT)
        figures = status_figures(page)
        if figures is None:
            self._tell(ev.StatusUnreadable(me.partner, me.path))
        else:
            self._tell(ev.StatusRead(me.partner, me.path, *figures, parse_looks(page), self._node.looks))

    def _on_seen(self) -> None:
        found = parse_record(self.scratch.read(_SEEN_BYTES, _SEEN_AT), RecordKind.SEEN, self._me.path)
        record = found if isinstance(found, Record) else None
        self._tell(ev.SeenRead(self._me.partner, self._me.path, record))

    def _on_message(self, completion: WC) -> None:
        slot = completion.wr_id
        message = FirmwareMessage.parse(self.scratch.read(completion.byte_len, _RECEIVES_AT + slot * RECEIVE_BYTES))
        if not self._failed:
            self._post_receive(slot)
        if message is not None and message.kind == MESSAGE_FENCED:
            self._tell(ev.FenceAnswered(self._me.partner, message.path, message.number))

    def _post_receive(self, slot: int) -> None:
        address = self.scratch.buf + _RECEIVES_AT + slot * RECEIVE_BYTES
        self.qp.post_recv(RecvWR(slot, 1, [SGE(address, RECEIVE_BYTES, self.scratch.lkey)]))

    def _expect(self, then: Callable[[], None]) -> int:
        wr_id, self._next_wr = self._next_wr, self._next_wr + 1
        self._pending[wr_id] = then
        return wr_id

    def _known_reply(self) -> ConnectReply:
        if self._reply is None:
            raise RDMAError(107, f"path {self._me.path} is not connected")
        return self._reply


def _nothing() -> None:
    """Nobody waits for it."""
