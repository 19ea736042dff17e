"""An adapter's firmware: the well-known service that answers whether or not a host runs (R2, R3, R11).

Accepts connections of partners that prove to know the cluster key, lets each of them read the boot status page and its
outbox and write its inbox, and raises fences for them. It never writes the host's fields of the status page.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from emul.clock import MILLISECOND, Instant, after
from emul.cm_machine import Accept, Reject
from emul.memory import Memory
from emul.node_memory import ADAPTERS_MAX, STATUS_BYTES, NodeMemory, fence_slot
from emul.queues import ReceiveEntry
from emul.regions import MemoryRegion, RegionTable
from emul.sinks import CompletionSink, WorkSource
from emul.vocabulary import AccessFlags, AsyncEvent, EventType, SendFlags, WCOpcode, WCStatus, WROpcode
from emul.wellknown import (
    CHALLENGE_BYTES,
    MESSAGE_FENCE,
    MESSAGE_FENCED,
    PROBE_BYTES,
    PROOF_BYTES,
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
)
from emul.wire.mad import RDMA_CM_HEADER_BYTES, RdmaCmHeader, RejectReason, Req
from emul.wqe import SendWqe

LINKS_MAX = 1024
"""Connections of partners to one adapter's firmware, those that wait for their proof included."""
UNPROVEN_MAX = 64
"""Of them those that wait for their proof. At the bound the oldest gives way: a partner that holds the key proves it
within a round trip, so that whoever floods must send so many requests in that time to keep it out. (Were new requests
refused instead, 64 of them would keep everybody out for as long as their REPs are repeated.)"""
FENCE_POLL_NS = MILLISECOND
"""How often a fence that waits for a sibling adapter is looked at."""
_PAGE_SIZE = RECEIVE_BYTES * RECEIVES_POSTED
_ACCESS = AccessFlags.REMOTE_READ | AccessFlags.REMOTE_WRITE


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this adapter is."""

    node_id: int
    adapter_index: int
    cluster_key: bytes
    """What this adapter proves itself with, and accepts."""
    also_accepted: tuple[bytes, ...] = ()
    """Further keys that a caller may prove itself with, while the cluster changes its key."""


@dataclass(slots=True)
class _PendingFence:
    link: FirmwareLink
    answer: FirmwareMessage
    turns: dict[int, int]
    """Sibling adapters that were handling a frame when the fence rose, with their turn counter then."""


class FirmwareLink(WorkSource):
    """The firmware's end of one partner's well-known connection: source of its work."""

    def __init__(
        self, *, number: int, request: ConnectRequest, pd: int, challenge: bytes, regions: RegionTable
    ) -> None:
        self.number = number
        self.partner_id = request.node_id
        self.path = request.path
        self.incarnation = request.incarnation
        self.challenge = challenge
        self.pd = pd
        self.qpn = 0
        self.proven = False
        self.source = b""
        """The caller's address."""
        memory = Memory.plain(2 * _PAGE_SIZE)
        self.buffers = regions.register(memory, pd=pd, access=AccessFlags.LOCAL_WRITE)
        self.regions: list[MemoryRegion] = [self.buffers]
        self._sends: deque[SendWqe] = deque()
        self._receives: deque[ReceiveEntry] = deque()
        self._sent = 0
        self.arrived: deque[bytes] = deque()
        for slot in range(RECEIVES_POSTED):
            self._post_receive(slot)

    def send(self, message: FirmwareMessage) -> None:
        """Posts a SEND of `message`."""
        slot = self._sent % RECEIVES_POSTED
        self._sent += 1
        offset = _PAGE_SIZE + slot * RECEIVE_BYTES
        data = message.emit()
        self.buffers.buffer[offset : offset + len(data)] = data
        key, addr = self.buffers.key, self.buffers.addr + offset
        self._sends.append(SendWqe(slot, int(WROpcode.SEND), int(SendFlags.NONE), 0, 0, 0, key, addr, len(data)))

    def take_send(self) -> SendWqe | None:
        """WorkSource."""
        return self._sends.popleft() if self._sends else None

    def retire_send(self, count: int) -> None:
        """WorkSource."""

    def take_receive(self) -> ReceiveEntry | None:
        """WorkSource."""
        return self._receives.popleft() if self._receives else None

    def shares_receives(self) -> bool:
        """WorkSource."""
        return False

    def keep(self, slot: int, length: int) -> None:
        """A message of `length` bytes came: keeps it, posts the buffer again."""
        offset = slot * RECEIVE_BYTES
        self.arrived.append(bytes(self.buffers.buffer[offset : offset + length]))
        self._post_receive(slot)

    def _post_receive(self, slot: int) -> None:
        addr = self.buffers.addr + slot * RECEIVE_BYTES
        self._receives.append(ReceiveEntry(slot, ((self.buffers.key, addr, RECEIVE_BYTES),)))


class FirmwareSink(CompletionSink):
    """Where the completions of a link's queue pair go."""

    __slots__ = ("_link",)

    def __init__(self, link: FirmwareLink) -> None:
        self._link = link

    def push(
        self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int, solicited: bool
    ) -> bool:
        """CompletionSink: what arrived is the link's."""
        if opcode == WCOpcode.RECV and status == WCStatus.SUCCESS:
            self._link.keep(wr_id, byte_len)
        return True


class Firmware:
    """The well-known service of one adapter."""

    def __init__(
        self,
        *,
        identity: Identity,
        node_memory: NodeMemory,
        regions: RegionTable,
        rng: random.Random,
        open_qp: Callable[[FirmwareLink], int],
        close_qp: Callable[[int], None],
        fresh_pd: Callable[[], int],
        fresh_psn: Callable[[], int],
        forget: Callable[[int], None],
        on_old: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._node = node_memory
        self._regions = regions
        self._rng = rng
        self._open_qp = open_qp
        self._close_qp = close_qp
        self._fresh_pd = fresh_pd
        self._fresh_psn = fresh_psn
        self._forget = forget
        self._on_old = on_old
        self.old_version: int | None = None
        """A hardware fault: the version of the service that it speaks instead of PROTOCOL_VERSION."""
        self._probed = Memory.plain(PROBE_BYTES)
        """Written by all partners, to see whether large packets get through; read by nobody."""
        self._links: dict[int, FirmwareLink] = {}
        self._unproven: dict[int, FirmwareLink] = {}
        """Of them those that wait for their proof, oldest first."""
        self._proven: dict[tuple[int, int], FirmwareLink] = {}
        """The others, by partner and path: there is one at a time."""
        self._pending: list[_PendingFence] = []
        self.events: list[AsyncEvent] = []
        """For the host, if there is one."""
        self.talking: list[int] = []
        """Queue pairs with something new to send."""
        self.refused = 0

    # -- Acceptor -----------------------------------------------------------------------------------------------------

    def on_request(self, number: int, req: Req, source: bytes, *, now: Instant) -> Accept | Reject:
        """A partner calls: challenge it, prove ourselves."""
        if req.service_id != SERVICE_ID:
            return self._refuse(RejectReason.INVALID_SERVICE_ID)
        private = req.private_data
        if RdmaCmHeader.parse(private) is not None:
            private = private[RDMA_CM_HEADER_BYTES:]
        request = ConnectRequest.parse(private)
        if request is None or not _addressable(request):
            return self._refuse(RejectReason.CONSUMER)
        version = PROTOCOL_VERSION if self.old_version is None else self.old_version
        if request.version != version:
            if self.old_version is not None:
                self._on_old()
            self.events.append(AsyncEvent(EventType.VERSION_REFUSED, fence_slot(request.node_id, request.path)))
            return self._refuse(RejectReason.CONSUMER, VersionRefusal(version).emit())
        if self._is_double(request, source):
            self.events.append(AsyncEvent(EventType.IDENTITY_REFUSED, fence_slot(request.node_id, request.path)))
            return self._refuse(RejectReason.CONSUMER, IdentityRefusal(request.node_id).emit())
        if len(self._links) >= LINKS_MAX:
            return self._refuse(RejectReason.NO_QP)
        if len(self._unproven) >= UNPROVEN_MAX:
            self._give_up(next(iter(self._unproven)))
        challenge = self._rng.randbytes(CHALLENGE_BYTES)
        link = FirmwareLink(
            number=number, request=request, pd=self._fresh_pd(), challenge=challenge, regions=self._regions
        )
        link.source = source
        self._links[number] = self._unproven[number] = link
        link.qpn = self._open_qp(link)
        reply = self._grant(link, request)
        return Accept(link.qpn, self._fresh_psn(), reply.emit())

    def on_established(self, number: int, private_data: bytes, *, now: Instant) -> bool:
        """The caller's proof decides; an older connection of the same partner and path ends."""
        link = self._links.get(number)
        if link is None:
            return False
        identity = self._identity
        if not any_proof_matches(
            (identity.cluster_key, *identity.also_accepted), "caller", link.challenge, link.partner_id,
            link.incarnation, private_data[:PROOF_BYTES],
        ):  # fmt: skip
            self.refused += 1
            return False
        caller = (link.partner_id, link.path)
        other = self._proven.get(caller)
        if other is not None and other is not link:
            self._give_up(other.number)
        link.proven = True
        self._unproven.pop(number, None)
        self._proven[caller] = link
        return True

    def _give_up(self, number: int) -> None:
        """Ends a connection without being told to."""
        self._forget(number)
        self.on_ended(number)

    def on_ended(self, number: int) -> None:
        """Takes back everything that the connection was given."""
        link = self._links.pop(number, None)
        if link is None:
            return
        self._unproven.pop(number, None)
        caller = (link.partner_id, link.path)
        if self._proven.get(caller) is link:
            del self._proven[caller]
        self._pending = [pending for pending in self._pending if pending.link is not link]
        self._close_qp(link.qpn)
        for region in link.regions:
            self._regions.deregister(region.key)

    # -- fences -------------------------------------------------------------------------------------------------------

    def on_messages(self, link: FirmwareLink) -> None:
        """Reads what the partner has sent."""
        while link.arrived:
            message = FirmwareMessage.parse(link.arrived.popleft())
            if message is None or message.kind != MESSAGE_FENCE or not _path_exists(message.path):
                self.refused += 1
                continue
            slot = fence_slot(link.partner_id, message.path)
            rises = message.epoch > self._node.fence_epoch(slot)
            self._node.raise_fence(slot, message.epoch)
            if rises:
                self.events.append(AsyncEvent(EventType.PATH_FENCED, slot))
            answer = FirmwareMessage(MESSAGE_FENCED, message.path, message.epoch, message.number)
            self._pending.append(_PendingFence(link, answer, self._busy_siblings()))
        self.poll()

    def poll(self) -> None:
        """Answers the fences whose siblings have all passed a frame boundary, or are dead."""
        for pending in list(self._pending):
            if all(self._passed(adapter, turn) for adapter, turn in pending.turns.items()):
                self._pending.remove(pending)
                pending.link.send(pending.answer)
                self.talking.append(pending.link.qpn)

    @property
    def fencing(self) -> bool:
        """Whether a fence waits for a sibling."""
        return bool(self._pending)

    def deadline(self, now: Instant) -> Instant | None:
        """When to poll again."""
        return after(now, FENCE_POLL_NS) if self._pending else None

    def links(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def _busy_siblings(self) -> dict[int, int]:
        turns = {adapter: self._node.turn(adapter) for adapter in range(ADAPTERS_MAX)}
        own = self._identity.adapter_index
        return {
            adapter: turn
            for adapter, turn in turns.items()
            if turn % 2 and adapter != own and self._node.adapter_alive(adapter)
        }

    def _passed(self, adapter: int, turn: int) -> bool:
        return self._node.turn(adapter) != turn or not self._node.adapter_alive(adapter)

    def _is_double(self, request: ConnectRequest, source: bytes) -> bool:
        """Whether the caller has the identity of a partner that is connected from another address.

        A later incarnation may come from anywhere: it is the one that counts from then on.
        """
        link = self._proven.get((request.node_id, request.path))
        return link is not None and link.source != source and link.incarnation >= request.incarnation

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _grant(self, link: FirmwareLink, request: ConnectRequest) -> ConnectReply:
        memory, partner = self._node.memory, link.partner_id
        status = self._regions.register(memory, pd=link.pd, access=AccessFlags.REMOTE_READ, length=STATUS_BYTES)
        start = self._node.exchange_offset(partner)
        half = len(self._node.inbox(partner))
        inbox = self._regions.register(
            memory, pd=link.pd, access=AccessFlags.REMOTE_WRITE, offset=start, length=half, watcher=partner
        )
        outbox = self._regions.register(
            memory, pd=link.pd, access=AccessFlags.REMOTE_READ, offset=start + half, length=half
        )
        probe = self._regions.register(self._probed, pd=link.pd, access=AccessFlags.REMOTE_WRITE)
        link.regions += [status, inbox, outbox, probe]
        identity, incarnation = self._identity, self._node.incarnation
        return ConnectReply(
            node_id=identity.node_id,
            incarnation=incarnation,
            challenge=link.challenge,
            proof=proof(identity.cluster_key, "firmware", request.challenge, identity.node_id, incarnation),
            status_addr=status.addr,
            status_rkey=status.key,
            inbox_addr=inbox.addr,
            inbox_rkey=inbox.key,
            outbox_addr=outbox.addr,
            outbox_rkey=outbox.key,
            adapter=identity.adapter_index,
            probe_addr=probe.addr,
            probe_rkey=probe.key,
        )

    def _refuse(self, reason: RejectReason, private_data: bytes = b"") -> Reject:
        self.refused += 1
        return Reject(reason, private_data)


def _addressable(request: ConnectRequest) -> bool:
    try:
        fence_slot(request.node_id, request.path)
    except ValueError:
        return False
    return True


def _path_exists(path: int) -> bool:
    return _addressable(ConnectRequest(1, path, 0, b""))


FIRMWARE_ACCESS = _ACCESS
"""What a firmware queue pair permits; its regions narrow it further."""
