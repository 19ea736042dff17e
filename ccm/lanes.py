"""The virtual interfaces and memory regions of one session on one path, made with the verbs.

Driver's half of `ccm.pairing.Lane`: opens, connects, posts, takes completions, closes. Completions of a stream's
requests go to its ledger and its client; everything else is reported to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

from ccm.adapter_port import AdapterPort
from ccm.client import Client, Region, Session
from ccm.exchange import LaneEntry, ViAddress
from ccm.needs import Needs
from ccm.stream import MESSAGE_HEADER, Stream
from emul.clock import SECOND, Instant
from emul.verbs import MR, QP, QPInitAttr
from emul.vocabulary import (
    GID,
    MTU,
    WC,
    AccessFlags,
    AHAttr,
    GlobalRoute,
    QPAttr,
    QPCap,
    QPState,
    WCOpcode,
    WCStatus,
)  # fmt: skip

VI_TIMEOUT = 14
"""4.096 us x 2^14 = 67 ms; with seven retries the adapter gives up after 537 ms, later than the limit of a last path.
Silence is noticed by probes long before, and a frame lost in mid-stream by the receiver's NAK.
"""
VI_RETRIES = 7
VI_RNR_RETRIES = 6
"""7 would be for ever, and a dead host never posts a receive."""
VI_RNR_TIMER = 24
"""41 ms: six of them outlast a host that is merely slow."""
RECEIVES_SPARE = 8
QUEUE_SPARE = 16
"""Room in the send queue for requests that completed and are not retired yet."""


REQUEST_MAX_NS = 2 * SECOND
"""An adapter completes each request before, well or not: its retries end after 537 ms."""


class PathLife:
    """When something last completed on a path's virtual interfaces (shared by all of them)."""

    __slots__ = ("at", "number", "partner", "path", "stirred", "told")

    def __init__(self, partner: int, path: int, number: int, stirred: list[PathLife]) -> None:
        """`number` counts them; one with news adds itself to `stirred`."""
        self.partner = partner
        self.path = path
        self.number = number
        self.stirred = stirred
        self.at = 0
        self.told = 0

    def note(self, now: Instant) -> None:
        """Something completed."""
        if self.at == self.told:
            self.stirred.append(self)
        self.at = now


class LaneOwner(Protocol):
    """What lanes tell the driver."""

    def on_lane_failed(self, lanes: Lanes, status: WCStatus, now: Instant) -> None:
        """A request or receive ended in error."""

    def on_stream_drained(self, lanes: Lanes, vi: int, now: Instant) -> None:
        """A stream that is to move has nothing under way any more."""

    def on_client_exception(self, name: str, error: BaseException) -> None:
        """A callback raised."""

    def watched(self, client: Client, callback: Callable[..., None]) -> Callable[..., None]:
        """The callback, perhaps with a look at how long it takes."""


class ViLane:
    """One virtual interface (`ccm.stream.Lane`)."""

    __slots__ = ("_index", "_lanes", "_last_number", "_next_slot", "_oldest", "_oldest_since", "_receives", "_send_slots", "_silent", "_silent_since", "_stream", "lkey", "on_completed", "post_write", "psn", "qp", "rkey", "source", "target")  # fmt: skip  # noqa: E501

    def __init__(self, lanes: Lanes, index: int, qp: QP, psn: int) -> None:
        self._lanes = lanes
        self._index = index
        self._stream = lanes.session.streams[index]
        self.on_completed = lanes.on_completed
        self.qp = qp
        self.psn = psn
        self.post_write: Callable[[int, int, int, int, int, int], None] = qp.post_write
        self.source = lanes.source_mr.buf if lanes.source_mr is not None else 0
        self.lkey = lanes.source_mr.lkey if lanes.source_mr is not None else 0
        self.target = 0
        self.rkey = 0
        self._receives: list[int] = []
        """Addresses of the receive buffers, by slot."""
        self._send_slots = 0
        self._next_slot = 0
        """The receive that completes next: they complete in the order in which they were posted, slot after slot."""
        self._last_number = 0
        """Number of the last message that came on this lane."""
        self._silent = 0
        """Number of the message that stood in the next receive's buffer when `take_silent` was last asked, ..."""
        self._silent_since = Instant(0)
        """... and when it was first found there."""
        self._oldest = 0
        """Sequence of the oldest request when `is_stuck` was last asked, ..."""
        self._oldest_since = Instant(0)
        """... and when it was first found to be that."""

    def prepare_messages(self, base: int, depth: int) -> None:
        """Posts the receives. From `base` of the message region on: `depth` send slots, then the receive buffers."""
        mr, size = self._lanes.message_mr, self._lanes.message_stride
        assert mr is not None
        self._send_slots = base
        first = base + depth * size
        for slot in range(depth + RECEIVES_SPARE):
            self._receives.append(mr.buf + first + slot * size)
            self.qp.post_buffer(slot, self._receives[slot], size, mr.lkey)

    def post_message(self, sequence: int, number: int, data: bytes) -> None:
        """Copies message `number` into a send slot and posts it."""
        lanes = self._lanes
        mr, session = lanes.message_mr, lanes.session
        assert mr is not None
        offset = self._send_slots + (sequence % session.needs.depth) * lanes.message_stride
        length = MESSAGE_HEADER.size + len(data)
        mr.write(MESSAGE_HEADER.pack(session.epoch, len(data), number) + data, length, offset)
        self.qp.post_message(sequence, mr.buf + offset, length, mr.lkey)

    def is_stuck(self, stream: Stream, now: Instant) -> bool:
        """Whether the oldest request on this lane should long have completed; to be asked now and then."""
        carried = stream.lane is self or (stream.former is self and not stream.drained)
        oldest = stream.entries[0][0] if carried and stream.entries else 0
        if oldest != self._oldest:
            self._oldest, self._oldest_since = oldest, now
        return bool(oldest) and now - self._oldest_since > REQUEST_MAX_NS

    def on_completion(self, completion: WC, now: Instant) -> None:
        """One completion of this queue pair."""
        if completion.status is not WCStatus.SUCCESS:
            self._lanes.fail(completion.status, now)
            return
        if completion.opcode is WCOpcode.RECV:
            self._on_message(completion, now)
            return
        lanes, stream = self._lanes, self._stream
        lanes.life.note(now)
        if stream.confirm(self, completion.wr_id) is None:
            if stream.lane is self:
                lanes.fail(WCStatus.FATAL_ERR, now)  # out of order: an adapter that can't be trusted
            return
        try:
            self.on_completed(lanes.session, completion.wr_id, now)
        except (Exception, SystemExit) as error:
            lanes.owner.on_client_exception(lanes.client.name, error)
        if stream.former is self and stream.drained:
            lanes.owner.on_stream_drained(lanes, self._index, now)

    def take_silent(self, now: Instant) -> bool:
        """Takes a message that has lain in the next receive's buffer for REQUEST_MAX_NS without a completion (it was
        lost, and nothing that came later has shown that); to be asked now and then. Whether there was one.

        It is whole by then: its sender's retries end after 537 ms, and a message that was not acknowledged fails the
        sender's queue pair, which takes this one with it.
        """
        number = 0 if self._lanes.failed or not self._receives else self._number_in(self._next_slot)
        if number != self._silent:
            self._silent, self._silent_since = number, now
        if not number or now - self._silent_since <= REQUEST_MAX_NS:
            return False
        self._silent = 0
        self._take_slot(self._next_slot, now)
        return True

    def _number_in(self, slot: int) -> int:
        """Number of the message in a receive's buffer, if it came after the last that was taken; else 0."""
        lanes = self._lanes
        assert lanes.message_mr is not None
        head = lanes.message_mr.read(MESSAGE_HEADER.size, self._buffer_of(slot))
        epoch, length, number = MESSAGE_HEADER.unpack(head)
        fresh = epoch == lanes.session.epoch and length <= lanes.session.needs.message_bytes
        return number if fresh and number > self._last_number else 0

    def _buffer_of(self, slot: int) -> int:
        mr = self._lanes.message_mr
        assert mr is not None
        return self._receives[slot] - mr.buf

    def _take_slot(self, slot: int, now: Instant) -> None:
        """Takes the message in a buffer whose completion was lost; its header tells how long it is."""
        mr = self._lanes.message_mr
        assert mr is not None
        offset = self._buffer_of(slot)
        _, length, _ = MESSAGE_HEADER.unpack(mr.read(MESSAGE_HEADER.size, offset))
        self._take_message(slot, mr.read(MESSAGE_HEADER.size + length, offset), now)

    def _on_message(self, completion: WC, now: Instant) -> None:
        slot = completion.wr_id
        while self._next_slot != slot:  # completions before this one were lost; what they would have told is there
            if not self._number_in(self._next_slot):
                self._lanes.fail(WCStatus.FATAL_ERR, now)  # out of order: an adapter that can't be trusted
                return
            self._take_slot(self._next_slot, now)
        mr = self._lanes.message_mr
        assert mr is not None
        self._take_message(slot, mr.read(completion.byte_len, self._buffer_of(slot)), now)

    def _take_message(self, slot: int, data: bytes, now: Instant) -> None:
        lanes, session = self._lanes, self._lanes.session
        if not lanes.failed:
            mr = lanes.message_mr
            assert mr is not None
            self.qp.post_buffer(slot, self._receives[slot], lanes.message_stride, mr.lkey)
        self._next_slot = slot + 1 if slot + 1 < len(self._receives) else 0
        if len(data) >= MESSAGE_HEADER.size:
            self._last_number = MESSAGE_HEADER.unpack_from(data)[2]
        lanes.life.note(now)
        lanes.deliver(session.arrivals[self._index].take(data), now)


class Lanes:
    """All virtual interfaces of one session on one path."""

    def __init__(
        self, owner: LaneOwner, port: AdapterPort, path: int, session: Session, client: Client, life: PathLife
    ) -> None:
        self.owner = owner
        self.port = port
        self.path = path
        self.session = session
        self.life = life
        self.vis: list[ViLane] = []
        self.adopt(client)
        self.source_mr: MR | None = None
        self.exposed_mr: MR | None = None
        self.message_mr: MR | None = None
        self.message_stride = 0
        self.fence_epoch = 0
        self._reserved = 0
        """Entries of the adapter's completion queue."""
        self.failed = False
        """A queue pair is in error, or about to be destroyed."""

    def adopt(self, client: Client) -> None:
        """`client` gets the callbacks from now on."""
        self.client = client
        self.on_completed = self.owner.watched(client, client.on_completed)
        self.on_message = self.owner.watched(client, client.on_message)
        for vi in self.vis:
            vi.on_completed = self.on_completed

    def reserve(self, needs: Needs) -> None:
        """Makes sure that all completions that can wait have room. Raises RDMAError."""
        receives = needs.depth + RECEIVES_SPARE if needs.message_bytes else 0
        entries = needs.vis * (needs.depth + QUEUE_SPARE + receives)
        self.port.reserve(entries)
        self._reserved = entries

    def open(
        self,
        needs: Needs,
        source: Region | None,
        exposed: Region | None,
        fence: tuple[int, int],
        psn: Callable[[], int],
    ) -> Iterator[None]:
        """Makes regions and queue pairs, tagged with `fence` (slot, epoch), with a rest after each slow verb. Raises
        RDMAError; then `close` gives back what was made.
        """
        self.fence_epoch = fence[1]
        yield from self._open_regions(needs, source, exposed)
        for index in range(needs.vis):
            yield from self._open_vi(index, needs, fence, psn())

    def entry(self) -> LaneEntry:
        """What the partner must know of them."""
        region = self.exposed_mr
        return LaneEntry(
            self.session.client_key, self.session.epoch, 0, region.rkey if region else 0, region.buf if region else 0,
            region.length if region else 0, tuple(ViAddress(vi.qp.qp_num, vi.psn) for vi in self.vis),
        )  # fmt: skip

    def connect(self, remote: LaneEntry, address: str, mtu: int, fence: tuple[int, int]) -> Iterator[None]:
        """Connects each queue pair with the partner's, with a rest after each slow verb. Raises RDMAError."""
        for vi, theirs in zip(self.vis, remote.vis, strict=True):
            vi.target, vi.rkey = remote.address, remote.rkey
            attr = QPAttr(
                qp_state=QPState.RTR, path_mtu=MTU(mtu), dest_qp_num=theirs.qp_num, rq_psn=theirs.psn, sq_psn=vi.psn,
                qp_access_flags=AccessFlags.REMOTE_WRITE, ah_attr=AHAttr(gr=GlobalRoute(dgid=GID(address))),
                min_rnr_timer=VI_RNR_TIMER, timeout=VI_TIMEOUT, retry_cnt=VI_RETRIES, rnr_retry=VI_RNR_RETRIES,
                fence_slot=fence[0], fence_epoch=fence[1],
            )  # fmt: skip
            vi.qp.modify_in_turn(attr, replace(attr, qp_state=QPState.RTS))
            yield
        for stream in self.session.streams:
            stream.target_bytes = remote.length

    def fail(self, status: WCStatus, now: Instant) -> None:
        """The first error is told; what is flushed after it is not."""
        if not self.failed:
            self.failed = True
            self.owner.on_lane_failed(self, status, now)

    def deliver(self, messages: list[bytes], now: Instant) -> None:
        """Gives messages to the client, once it knows that the session is ready."""
        session = self.session
        if not session.alive:
            session.early += messages
            return
        for data in messages:
            try:
                self.on_message(session, data, now)
            except (Exception, SystemExit) as error:
                self.owner.on_client_exception(self.client.name, error)

    def close(self) -> Iterator[None]:
        """Destroys everything, with a rest after each slow verb. What was received until now is taken first, and
        nothing is accepted after that.
        """
        self.failed = True
        if self.message_mr is not None:
            for vi in self.vis:
                self.port.attempt(partial(vi.qp.modify, QPAttr(qp_state=QPState.ERR)))
                yield
            self.port.drain()
        while self.vis:
            vi = self.vis.pop()
            self.port.handlers.pop(vi.qp.qp_num, None)
            self.port.attempt(vi.qp.close)
            yield
        self.port.release(self._reserved)
        self._reserved = 0
        regions = (self.source_mr, self.exposed_mr, self.message_mr)
        self.source_mr = self.exposed_mr = self.message_mr = None
        for region in regions:
            if region is not None:
                self.port.attempt(region.close)
                yield

    def _open_regions(self, needs: Needs, source: Region | None, exposed: Region | None) -> Iterator[None]:
        pd = self.port.pd
        if source is not None:
            self.source_mr = MR(pd, source.length, AccessFlags.NONE, memory=source.memory, offset=source.offset)
            yield
        if exposed is not None:
            access = AccessFlags.LOCAL_WRITE | AccessFlags.REMOTE_WRITE
            self.exposed_mr = MR(pd, exposed.length, access, memory=exposed.memory, offset=exposed.offset)
            yield
        if needs.message_bytes:
            self.message_stride = (MESSAGE_HEADER.size + needs.message_bytes + 63) & ~63
            slots = 2 * needs.depth + RECEIVES_SPARE
            self.message_mr = MR(pd, needs.vis * slots * self.message_stride, AccessFlags.LOCAL_WRITE)
            yield

    def _open_vi(self, index: int, needs: Needs, fence: tuple[int, int], psn: int) -> Iterator[None]:
        cap = QPCap(max_send_wr=needs.depth + QUEUE_SPARE, max_recv_wr=needs.depth + RECEIVES_SPARE)
        start = QPAttr(qp_access_flags=AccessFlags.REMOTE_WRITE, fence_slot=fence[0], fence_epoch=fence[1])
        qp = QP(self.port.pd, QPInitAttr(cap=cap, scq=self.port.cq, rcq=self.port.cq), start)
        vi = ViLane(self, index, qp, psn)
        self.vis.append(vi)
        self.port.handlers[qp.qp_num] = vi.on_completion
        yield
        if self.message_mr is not None:
            slots = 2 * needs.depth + RECEIVES_SPARE
            vi.prepare_messages(index * slots * self.message_stride, needs.depth)
