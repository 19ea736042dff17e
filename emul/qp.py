"""A reliable-connected queue pair: its states, and the place where requester, completer and responder meet.

Knows queues, window and PSNs through its three parts; frames only through `Flow`. Where its packets go and come from is
the adapter's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import Protocol

from emul.clock import Instant
from emul.completer import Completer, Verdict
from emul.congestion import Congestion
from emul.errors import RDMAError
from emul.neighbours import Route
from emul.queues import ReceiveEntry, SendEntry
from emul.regions import RegionTable
from emul.requester import Requester
from emul.responder import MESSAGE_BYTES_MAX, REQUEST_OPCODES, Responder
from emul.vocabulary import QPAttr, QPState, QPType, SendFlags, WCFlags, WCOpcode, WCStatus, WROpcode
from emul.window import SendWindow, SendWqe
from emul.wire.frame import Flow
from emul.wire.headers import AETH, AETH_BYTES, Opcode

# From each state to those that modify_qp may ask for (InfiniBand specification vol. 1, figure 124). SQE belongs to
# unreliable queue pairs, SQD (draining) is not offered yet: a request for either is refused.
TRANSITIONS: dict[QPState, frozenset[QPState]] = {
    QPState.RESET: frozenset({QPState.INIT, QPState.RESET, QPState.ERR}),
    QPState.INIT: frozenset({QPState.INIT, QPState.RTR, QPState.RESET, QPState.ERR}),
    QPState.RTR: frozenset({QPState.RTS, QPState.RESET, QPState.ERR}),
    QPState.RTS: frozenset({QPState.RTS, QPState.RESET, QPState.ERR}),
    QPState.SQD: frozenset({QPState.RESET, QPState.ERR}),
    QPState.SQE: frozenset({QPState.RESET, QPState.ERR}),
    QPState.ERR: frozenset({QPState.RESET, QPState.ERR}),
}

WINDOW_REQUESTS_MAX = 256
"""Requests that one queue pair takes from its send queue before the oldest is completed."""
FLUSHED_PER_TURN_MAX = 1024
"""Requests of a broken queue pair that one turn completes with WR_FLUSH_ERR."""
_READ_RESPONSES = frozenset(
    {
        int(Opcode.RDMA_READ_RESPONSE_FIRST),
        int(Opcode.RDMA_READ_RESPONSE_MIDDLE),
        int(Opcode.RDMA_READ_RESPONSE_LAST),
        int(Opcode.RDMA_READ_RESPONSE_ONLY),
    }
)
_COMPLETED_AS = {
    WROpcode.SEND: WCOpcode.SEND,
    WROpcode.SEND_WITH_IMM: WCOpcode.SEND,
    WROpcode.RDMA_WRITE: WCOpcode.RDMA_WRITE,
    WROpcode.RDMA_WRITE_WITH_IMM: WCOpcode.RDMA_WRITE,
    WROpcode.RDMA_READ: WCOpcode.RDMA_READ,
}
_OPCODES = {int(opcode): opcode for opcode in WROpcode}
_SIGNALED = int(SendFlags.SIGNALED)
_SENDING = frozenset({QPState.RTS})
_RECEIVING = frozenset({QPState.RTR, QPState.RTS})


class CompletionSink(Protocol):
    """Where a queue pair's completions go."""

    def push(
        self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int, solicited: bool
    ) -> bool:
        """Takes one completion; False when there is no room."""


class WorkSource(Protocol):
    """Where a queue pair's work requests come from: three callables, as they are called for each packet."""

    @property
    def take_send(self) -> Callable[[], SendEntry | None]:
        """Gives the next send work request."""

    @property
    def retire_send(self) -> Callable[[int], None]:
        """Told that the oldest so many are completed."""

    @property
    def take_receive(self) -> Callable[[], ReceiveEntry | None]:
        """Gives the oldest posted receive."""


class QueuePair:
    """One end of a reliable connection."""

    __slots__ = (
        "_completer", "_fence_epoch", "_flow", "_left_work", "_receive_sink", "_regions", "_requester", "_responder",
        "_send_sink", "_signal_all", "_window", "_work", "attention", "attr", "broken_by", "congestion",
        "fatal_told", "number", "overrun", "pd", "route",
    )  # fmt: skip

    def __init__(
        self,
        *,
        number: int,
        pd: int,
        regions: RegionTable,
        work: WorkSource,
        send_sink: CompletionSink,
        receive_sink: CompletionSink,
        signal_all: bool,
        fence_epoch: Callable[[int], int],
    ) -> None:
        self.number = number
        self.pd = pd
        self._regions = regions
        self._work = work
        self._send_sink = send_sink
        self._receive_sink = receive_sink
        self._signal_all = signal_all
        self._fence_epoch = fence_epoch
        self.attr = QPAttr(qp_state=QPState.RESET)
        self.route: Route | None = None
        self.congestion = Congestion()
        self._flow: Flow | None = None
        self._window = SendWindow(256, 0)
        self._requester: Requester | None = None
        self._completer: Completer | None = None
        self._responder: Responder | None = None
        self.broken_by: WCStatus | None = None
        """The status that brought it to ERR by itself."""
        self.attention = False
        """The adapter must look at it: it broke, lost a completion, or belongs to the firmware."""
        self.fatal_told = False
        """The host has got its QP_FATAL event."""
        self._left_work = False
        """The window was full when work was last taken."""
        self.overrun = False
        """A completion found no room: the completion queue is lost, and this queue pair with it."""

    @property
    def state(self) -> QPState:
        """Its state."""
        return self.attr.qp_state

    # -- verbs --------------------------------------------------------------------------------------------------------

    def modify(self, attr: QPAttr, route: Route | None = None) -> None:
        """Moves to `attr.qp_state`, taking from `attr` what that transition needs. Raises RDMAError, state
        untouched.
        """
        target = attr.qp_state
        if target not in TRANSITIONS[self.state]:
            raise RDMAError(EINVAL, f"QP {self.number} cannot go from {self.state.name} to {target.name}")
        if target is QPState.RTR and route is None:
            raise RDMAError(EINVAL, f"QP {self.number} needs a route to its peer before RTR")
        if target is QPState.RESET:
            self._reset()
        elif target is QPState.INIT:
            self.attr.qp_access_flags = attr.qp_access_flags
        elif target is QPState.RTR:
            self._become_ready_to_receive(attr, route)
        elif target is QPState.RTS and self.state is not QPState.RTS:
            self._become_ready_to_send(attr)
        self.attr.qp_state = target

    def _reset(self) -> None:
        self.attr = QPAttr(qp_state=QPState.RESET)
        self.route = self._flow = None
        self._window = SendWindow(256, 0)
        self._requester = self._completer = self._responder = None
        self.broken_by = None
        self.fatal_told = False

    def _become_ready_to_receive(self, attr: QPAttr, route: Route | None) -> None:
        own = self.attr
        own.path_mtu, own.dest_qp_num, own.rq_psn = attr.path_mtu, attr.dest_qp_num, attr.rq_psn
        own.ah_attr, own.max_dest_rd_atomic = attr.ah_attr, attr.max_dest_rd_atomic
        own.min_rnr_timer, own.fence_slot, own.fence_epoch = attr.min_rnr_timer, attr.fence_slot, attr.fence_epoch
        if attr.qp_access_flags:
            own.qp_access_flags = attr.qp_access_flags
        self.route = route
        self._responder = Responder(
            regions=self._regions,
            pd=self.pd,
            access=own.qp_access_flags,
            mtu=own.path_mtu.size,
            destination_qpn=own.dest_qp_num,
            expected_psn=own.rq_psn,
            min_rnr_timer=own.min_rnr_timer,
            take_receive=self._work.take_receive,
            fenced=self._is_fenced,
        )

    def _become_ready_to_send(self, attr: QPAttr) -> None:
        own = self.attr
        own.sq_psn, own.timeout, own.retry_cnt = attr.sq_psn, attr.timeout, attr.retry_cnt
        own.rnr_retry, own.max_rd_atomic = attr.rnr_retry, attr.max_rd_atomic
        self._window = SendWindow(own.path_mtu.size, own.sq_psn)
        self._requester = Requester(self._window, destination_qpn=own.dest_qp_num, reads_max=max(1, own.max_rd_atomic))
        self._completer = Completer(
            self._window, timeout=own.timeout, retry_count=own.retry_cnt, rnr_retry=own.rnr_retry
        )

    def _is_fenced(self) -> bool:
        slot = self.attr.fence_slot
        return slot != 0 and self._fence_epoch(slot) > self.attr.fence_epoch

    # -- in -----------------------------------------------------------------------------------------------------------

    def on_packet(self, opcode: int, psn: int, ack_requested: bool, body: memoryview, *, now: Instant) -> bool:
        """One packet for this queue pair, `body` without padding; False when its state has no use for it."""
        state = self.attr.qp_state
        if opcode in REQUEST_OPCODES:
            if state not in _RECEIVING or self._responder is None:
                return False
            self._responder.on_request(opcode, psn, ack_requested, body)
            if self._responder.delivered:
                self._deliver(self._responder)
            if self._responder.broken:
                self.fail(None)
            return True
        if state not in _SENDING or self._completer is None:
            return False
        if opcode in _READ_RESPONSES:
            has_aeth = opcode != Opcode.RDMA_READ_RESPONSE_MIDDLE
            payload = body[AETH_BYTES:] if has_aeth else body
            self._apply(self._completer.on_read_response(opcode, psn, payload, now))
            return True
        if opcode == Opcode.ACKNOWLEDGE and len(body) >= AETH_BYTES:
            syndrome = AETH.unpack_from(body)[0] >> 24
            self._apply(self._completer.on_acknowledge(psn, syndrome, now))
            return True
        return False

    def take_work(self) -> None:
        """Takes what the host has posted, as far as there is room (a broken queue pair flushes it)."""
        if self.attr.qp_state is QPState.ERR:
            self.flush()
        elif self.attr.qp_state is QPState.RTS:
            wqes = self._window.wqes
            self._left_work = True
            while len(wqes) < WINDOW_REQUESTS_MAX:
                entry = self._work.take_send()
                if entry is None:
                    self._left_work = False
                    break
                self._window.add(self._resolve(entry))
            self._break_on_bad_request()

    def _resolve(self, entry: SendEntry) -> SendWqe:
        opcode = _OPCODES.get(entry.opcode)
        if opcode is None:
            return self._bad_request(entry, WCStatus.LOC_QP_OP_ERR)
        write = opcode is WROpcode.RDMA_READ
        pieces = []
        total = 0
        for lkey, addr, length in entry.sges:
            if length == 0:
                continue
            piece = self._regions.local(lkey, addr, length, self.pd, write=write)
            if piece is None:
                return self._bad_request(entry, WCStatus.LOC_PROT_ERR)
            pieces.append(piece)
            total += length
        if total > MESSAGE_BYTES_MAX:
            return self._bad_request(entry, WCStatus.LOC_LEN_ERR)
        return SendWqe(entry.wr_id, opcode, entry.flags, entry.imm, entry.remote_addr, entry.rkey, pieces, total)

    @staticmethod
    def _bad_request(entry: SendEntry, status: WCStatus) -> SendWqe:
        return SendWqe(entry.wr_id, WROpcode.SEND, entry.flags, 0, 0, 0, [], 0, status)

    def _break_on_bad_request(self) -> None:
        wqes = self._window.wqes
        if wqes and wqes[0].status is not WCStatus.SUCCESS:
            self.fail(wqes[0].status)

    # -- out ----------------------------------------------------------------------------------------------------------

    def next_frame(self, flow: Callable[[QueuePair], Flow], *, now: Instant) -> bytes | None:
        """The next frame, answers before requests; None while there is nothing to send or no way to send it."""
        responder = self._responder
        if responder is None:
            return None
        if self._flow is None:
            if self.route is None or self.route.mac is None:
                return None
            self._flow = flow(self)
        packet = responder.next_packet()
        if packet is None:
            completer = self._completer
            if completer is None or completer.resume_at is not None or self.attr.qp_state is not QPState.RTS:
                return None
            assert self._requester is not None
            packet = self._requester.next_packet()
            if packet is None:
                return None
            completer.on_sent(now)
        return self._flow.frame(*packet)

    def forget_flow(self) -> None:
        """The peer's MAC address changed: envelopes are built anew."""
        self._flow = None

    def take_written(self) -> list[int]:
        """Watchers of regions into which whole messages were written since the last call."""
        responder = self._responder
        if responder is None or not responder.written:
            return []
        written = [region.watcher for region in responder.written]
        responder.written.clear()
        return written

    # -- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> Instant | None:
        """When `on_time` has something to do."""
        completer = self._completer
        if completer is None or self.attr.qp_state is not QPState.RTS:
            return None
        return completer.deadline if completer.resume_at is None else completer.resume_at

    def on_time(self, *, now: Instant) -> None:
        """Retransmits, or gives up, where the answer is overdue."""
        if self._completer is not None and self.attr.qp_state is QPState.RTS:
            self._apply(self._completer.on_time(now))

    # -- completions --------------------------------------------------------------------------------------------------

    def _apply(self, verdict: Verdict) -> None:
        for wqe in verdict.completed:
            self._work.retire_send(1)
            if self._signal_all or wqe.flags & _SIGNALED:
                self._push_send(wqe, WCStatus.SUCCESS)
        if verdict.broken is not None:
            self.fail(verdict.broken)
        elif verdict.completed:
            if self._left_work:
                self.take_work()
            else:
                self._break_on_bad_request()

    def _push_send(self, wqe: SendWqe, status: WCStatus) -> None:
        opcode = _COMPLETED_AS[wqe.opcode]
        if not self._send_sink.push(wqe.wr_id, wqe.length, self.number, 0, status, opcode, 0, False):
            self.overrun = self.attention = True

    def _deliver(self, responder: Responder) -> None:
        for delivery in responder.delivered:
            if not self._receive_sink.push(
                delivery.wr_id, delivery.byte_len, self.number, delivery.imm, delivery.status, delivery.opcode,
                delivery.flags, False,
            ):  # fmt: skip
                self.overrun = self.attention = True
        responder.delivered.clear()

    def fail(self, status: WCStatus | None) -> None:
        """To ERR: the oldest request ends with `status` (where its own fault or its peer's answer is the reason), all
        others are flushed. A NAK that is still to be sent is sent.
        """
        if self.attr.qp_state is QPState.ERR:
            return
        self.broken_by = status
        self.attention = True
        self.attr.qp_state = QPState.ERR
        if status is not None and self._window.wqes:
            wqe = self._window.pop_oldest()
            self._work.retire_send(1)
            self._push_send(wqe, status)
        self.flush()

    def flush(self) -> None:
        """Completes what is posted on a broken queue pair with WR_FLUSH_ERR, a bounded number at a time."""
        while self._window.wqes:
            self._work.retire_send(1)
            self._push_send(self._window.pop_oldest(), WCStatus.WR_FLUSH_ERR)
        for _ in range(FLUSHED_PER_TURN_MAX):
            entry = self._work.take_send()
            if entry is None:
                break
            self._work.retire_send(1)
            self._push_send(self._bad_request(entry, WCStatus.WR_FLUSH_ERR), WCStatus.WR_FLUSH_ERR)
        for _ in range(FLUSHED_PER_TURN_MAX):
            receive = self._work.take_receive()
            if receive is None:
                break
            self._receive_sink.push(
                receive.wr_id, 0, self.number, 0, WCStatus.WR_FLUSH_ERR, WCOpcode.RECV, WCFlags.NONE, False
            )

    # -- what outsiders may see ---------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Counters under the names that Linux rxe uses where it has them."""
        counted = {"retransmitted": 0, "rcvd_nak": 0, "timeouts": 0, "duplicate_request": 0, "sent_nak": 0}
        if self._requester is not None and self._completer is not None:
            counted["retransmitted"] = self._requester.retransmitted
            counted["rcvd_nak"] = self._completer.naks_seen
            counted["timeouts"] = self._completer.timeouts
        if self._responder is not None:
            counted["duplicate_request"] = self._responder.duplicates
            counted["sent_nak"] = self._responder.naks_sent
        return counted | self.congestion.counters()

    def inspect(self) -> dict[str, object]:
        """How it stands, for people who look for what is stuck."""
        window, responder, completer = self._window, self._responder, self._completer
        return {
            "qp_num": self.number,
            "dest_qp_num": self.attr.dest_qp_num,
            "state": self.state.name,
            "broken_by": None if self.broken_by is None else self.broken_by.name,
            "requests": len(window.wqes),
            "cursor": [window.index, window.packet],
            "oldest_psn": window.oldest_psn(),
            "next_psn": window.next_psn,
            "deadline": None if completer is None else completer.deadline,
            "resume_at": None if completer is None else completer.resume_at,
            "expected_psn": None if responder is None else responder.epsn,
            "msn": None if responder is None else responder.msn,
            "fence": [self.attr.fence_slot, self.attr.fence_epoch],
            **self.counters(),
        }

    def query(self) -> QPAttr:
        """Its attributes as they are; PSNs as they have moved."""
        attr = self.attr
        if self._responder is not None:
            attr.rq_psn = self._responder.epsn
        if self._requester is not None:
            attr.sq_psn = self._window.next_psn
        return attr


__all__ = ["TRANSITIONS", "CompletionSink", "QPType", "QueuePair", "WorkSource"]
