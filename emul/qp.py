"""A reliable-connected queue pair: its states, and the place where requester, completer and responder meet.

Knows queues, window and PSNs through its three parts; frames only through `Flow`. Where its packets go and come from is
the adapter's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import Final

from emul.clock import Instant
from emul.completer import Completer
from emul.congestion import Congestion
from emul.errors import RDMAError
from emul.neighbours import Route
from emul.queues import QUEUE_DEPTH_MAX
from emul.regions import RegionTable
from emul.requester import Requester
from emul.responder import REQUEST_OPCODES, Responder
from emul.sinks import CompletionSink, WorkSource
from emul.vocabulary import EventType, QPAttr, QPState, QPType, SendFlags, WCFlags, WCOpcode, WCStatus, WROpcode
from emul.window import SendWindow
from emul.wire.frame import Flow
from emul.wire.headers import AETH_BYTES, ATOMIC_ACK_ETH, ATOMIC_ACK_ETH_BYTES, Opcode, Syndrome
from emul.work_requests import refuse, resolve
from emul.wqe import SendWqe

# From each state to those that modify_qp may ask for (InfiniBand specification vol. 1, figure 124). SQE belongs to
# unreliable queue pairs: nothing leads there.
TRANSITIONS: dict[QPState, frozenset[QPState]] = {
    QPState.RESET: frozenset({QPState.INIT, QPState.RESET, QPState.ERR}),
    QPState.INIT: frozenset({QPState.INIT, QPState.RTR, QPState.RESET, QPState.ERR}),
    QPState.RTR: frozenset({QPState.RTS, QPState.RESET, QPState.ERR}),
    QPState.RTS: frozenset({QPState.RTS, QPState.SQD, QPState.RESET, QPState.ERR}),
    QPState.SQD: frozenset({QPState.SQD, QPState.RTS, QPState.RESET, QPState.ERR}),
    QPState.SQE: frozenset({QPState.RTS, QPState.RESET, QPState.ERR}),
    QPState.ERR: frozenset({QPState.RESET, QPState.ERR}),
}

WINDOW_REQUESTS_MAX: Final = 256
"""Requests that one queue pair takes from its send queue before the oldest is completed."""
FLUSHED_PER_TURN_MAX: Final = 1024
"""Requests of a broken queue pair that one turn completes with WR_FLUSH_ERR."""
_NO_USE: Final = 0
_REQUEST: Final = 1
_ACKNOWLEDGE: Final = 2
_READ_RESPONSE: Final = 3
_READ_RESPONSE_MIDDLE: Final = 4
_ATOMIC_ACKNOWLEDGE: Final = 5
_ANSWERS = {
    Opcode.ACKNOWLEDGE: _ACKNOWLEDGE,
    Opcode.RDMA_READ_RESPONSE_FIRST: _READ_RESPONSE,
    Opcode.RDMA_READ_RESPONSE_MIDDLE: _READ_RESPONSE_MIDDLE,
    Opcode.RDMA_READ_RESPONSE_LAST: _READ_RESPONSE,
    Opcode.RDMA_READ_RESPONSE_ONLY: _READ_RESPONSE,
    Opcode.ATOMIC_ACKNOWLEDGE: _ATOMIC_ACKNOWLEDGE,
}
_KINDS: Final = bytes(
    _REQUEST if opcode in REQUEST_OPCODES else _ANSWERS.get(opcode, _NO_USE)  # type: ignore[call-overload]
    for opcode in range(256)
)
"""What each opcode is for a queue pair."""
_COMPLETED_AS: Final[dict[int, int]] = {
    int(WROpcode.SEND): int(WCOpcode.SEND),
    int(WROpcode.SEND_WITH_IMM): int(WCOpcode.SEND),
    int(WROpcode.SEND_WITH_INV): int(WCOpcode.SEND),
    int(WROpcode.RDMA_WRITE): int(WCOpcode.RDMA_WRITE),
    int(WROpcode.RDMA_WRITE_WITH_IMM): int(WCOpcode.RDMA_WRITE),
    int(WROpcode.RDMA_READ): int(WCOpcode.RDMA_READ),
    int(WROpcode.ATOMIC_CMP_AND_SWP): int(WCOpcode.COMP_SWAP),
    int(WROpcode.ATOMIC_FETCH_AND_ADD): int(WCOpcode.FETCH_ADD),
    int(WROpcode.FLUSH): int(WCOpcode.FLUSH),
    int(WROpcode.ATOMIC_WRITE): int(WCOpcode.ATOMIC_WRITE),
}
_SIGNALED: Final = int(SendFlags.SIGNALED)
_RTR: Final = QPState.RTR
_RTS: Final = QPState.RTS
_SQD: Final = QPState.SQD
_ERR: Final = QPState.ERR
_SENDING: Final = frozenset({QPState.RTS, QPState.SQD})
_RECEIVING: Final = frozenset({QPState.RTR, QPState.RTS, QPState.SQD})
# What a refusal of the peer's request means for the host here (libibverbs' names of asynchronous events).
_REFUSAL_EVENTS: Final = {
    Syndrome.NAK_INVALID_REQUEST: EventType.QP_REQ_ERR,
    Syndrome.NAK_REMOTE_ACCESS: EventType.QP_ACCESS_ERR,
    Syndrome.NAK_REMOTE_OPERATION: EventType.QP_FATAL,
}
# What may change while a queue pair runs, by the state that it is in (vol. 1, table 91).
_ADJUSTABLE: dict[QPState, frozenset[str]] = {
    QPState.RTS: frozenset({"qp_access_flags", "min_rnr_timer"}),
    QPState.SQD: frozenset({"qp_access_flags", "min_rnr_timer", "timeout", "retry_cnt", "rnr_retry", "max_rd_atomic"}),
}


COUNTERS = (
    "retransmitted", "rcvd_nak", "rcvd_seq_err", "rcvd_rnr_err", "timeouts", "completer_retry_err",
    "retry_exceeded_err", "retry_rnr_exceeded_err", "duplicate_request", "out_of_seq_request", "sent_nak",
    "send_rnr_err", "rx_write_requests", "rx_read_requests", "rx_atomic_requests", "rx_flush_requests",
)  # fmt: skip
"""Counters of a queue pair."""


class QueuePair:
    """One end of a reliable connection."""

    __slots__ = (
        "_can_receive", "_can_send", "_completer", "_fence_epoch", "_fence_limit", "_fence_slot", "_former", "_greeted",
        "_left_work", "_receive_pd", "_receive_sink", "_regions", "_requester", "_responder", "_send_sink",
        "_signal_all", "_window", "_work", "active", "attention", "attr", "broken_by", "congestion", "events", "flow",
        "number", "overrun", "pd", "route", "state", "timer_at",
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
        receive_pd: int | None = None,
    ) -> None:
        self.number = number
        self.pd = pd
        self._receive_pd = pd if receive_pd is None else receive_pd
        """Where its receives lie: a shared queue's domain may be another one."""
        self._regions = regions
        self._work = work
        self._send_sink = send_sink
        self._receive_sink = receive_sink
        self._signal_all = signal_all
        self._fence_epoch = fence_epoch
        self.attr = QPAttr()
        self._enter(QPState.RESET)
        self._fence_slot = self._fence_limit = 0
        self.route: Route | None = None
        self.congestion = Congestion()
        self._former = dict.fromkeys(COUNTERS, 0)
        """What was counted before it was last reset."""
        self.flow: Flow | None = None
        """Builds its frames; its adapter gives it one when the peer's MAC address is known."""
        self.active = False
        """It waits for its turn to send, as its adapter notes here."""
        self.timer_at: Instant | None = None
        """When its adapter will look at its deadline."""
        self._window = SendWindow(256, 0)
        self._requester: Requester | None = None
        self._completer: Completer | None = None
        self._responder: Responder | None = None
        self.broken_by: WCStatus | None = None
        """The status that brought it to ERR by itself."""
        self.attention = False
        """The adapter must look at it: it has events, lost a completion, or belongs to the firmware."""
        self.events: list[EventType] = []
        """Asynchronous events for its host."""
        self._greeted = False
        """The host was told that the peer's first packet came before it was ready to send."""
        self._left_work = False
        """The window was full when work was last taken."""
        self.overrun = False
        """A completion found no room: the completion queue is lost, and this queue pair with it."""

    def _enter(self, state: QPState) -> None:
        # Kept twice: the attributes are a program's values, which are slow to look into for each packet.
        self.state = self.attr.qp_state = state
        self._can_send = state in _SENDING
        self._can_receive = state in _RECEIVING

    def _take_fence(self, attr: QPAttr) -> None:
        self.attr.fence_slot = self._fence_slot = attr.fence_slot
        self.attr.fence_epoch = self._fence_limit = attr.fence_epoch

    # -- verbs --------------------------------------------------------------------------------------------------------

    def modify(self, attr: QPAttr, route: Route | None = None, given: frozenset[str] | None = None) -> None:
        """Moves to `attr.qp_state`, taking from `attr` what that transition needs; where the state stays, what `given`
        names and may be changed then. Raises RDMAError, state untouched.
        """
        before, target = self.state, attr.qp_state
        if target not in TRANSITIONS[before]:
            raise RDMAError(EINVAL, f"QP {self.number} cannot go from {before.name} to {target.name}")
        if target is QPState.RTR and route is None:
            raise RDMAError(EINVAL, f"QP {self.number} needs a route to its peer before RTR")
        if target is QPState.RESET:
            self._reset()
        elif target is QPState.INIT:
            self.attr.qp_access_flags = attr.qp_access_flags
            self._take_fence(attr)
        elif target is QPState.RTR:
            # Without a mask none at all means "as in INIT".
            if attr.qp_access_flags or (given is not None and "qp_access_flags" in given):
                self.attr.qp_access_flags = attr.qp_access_flags
            self._become_ready_to_receive(attr, route)
        elif target is QPState.RTS and before is QPState.RTR:
            self._become_ready_to_send(attr)
            self._adjust(attr, (given or frozenset()) & _ADJUSTABLE[QPState.RTS])
        elif before in _ADJUSTABLE:
            self._adjust(attr, (given or frozenset()) & _ADJUSTABLE[before])
        self._enter(target)
        if before in _SENDING and target in _SENDING:
            self._drain(attr, before, target)

    def _reset(self) -> None:
        self._discard_work()
        self._former = self._counted()
        self.attr = QPAttr()
        self._enter(QPState.RESET)
        self._fence_slot = self._fence_limit = 0
        self.route = self.flow = None
        self._window = SendWindow(256, 0)
        self._requester = self._completer = self._responder = None
        self.broken_by = None
        self._greeted = False
        self.events.clear()

    def _discard_work(self) -> None:
        """Forgets without completions what was posted in this life: the next one begins with empty queues."""
        posted = len(self._window.wqes)
        for _ in range(QUEUE_DEPTH_MAX):
            if self._work.take_send() is None:
                break
            posted += 1
        self._work.retire_send(posted)
        if not self._work.shares_receives():
            for _ in range(QUEUE_DEPTH_MAX):
                if self._work.take_receive() is None:
                    break

    def _become_ready_to_receive(self, attr: QPAttr, route: Route | None) -> None:
        own = self.attr
        own.path_mtu, own.dest_qp_num, own.rq_psn = attr.path_mtu, attr.dest_qp_num, attr.rq_psn
        own.ah_attr, own.max_dest_rd_atomic = attr.ah_attr, attr.max_dest_rd_atomic
        own.min_rnr_timer = attr.min_rnr_timer
        self._take_fence(attr)
        self.route = route
        self._responder = Responder(
            regions=self._regions,
            pd=self.pd,
            receive_pd=self._receive_pd,
            access=own.qp_access_flags,
            mtu=own.path_mtu.size,
            expected_psn=own.rq_psn,
            min_rnr_timer=own.min_rnr_timer,
            max_dest_rd_atomic=own.max_dest_rd_atomic,
            take_receive=self._work.take_receive,
            fenced=self._is_fenced,
        )

    def _become_ready_to_send(self, attr: QPAttr) -> None:
        own = self.attr
        own.sq_psn, own.timeout, own.retry_cnt = attr.sq_psn, attr.timeout, attr.retry_cnt
        own.rnr_retry, own.max_rd_atomic = attr.rnr_retry, attr.max_rd_atomic
        self._window = SendWindow(own.path_mtu.size, own.sq_psn)
        self._requester = Requester(self._window, max_rd_atomic=own.max_rd_atomic)
        self._completer = Completer(
            self._window, timeout=own.timeout, retry_count=own.retry_cnt, rnr_retry=own.rnr_retry
        )

    def _adjust(self, attr: QPAttr, names: frozenset[str]) -> None:
        own = self.attr
        for name in sorted(names):
            setattr(own, name, getattr(attr, name))
        if self._responder is not None:
            self._responder.adjust(access=own.qp_access_flags, min_rnr_timer=own.min_rnr_timer)
        if self._completer is not None:
            self._completer.adjust(timeout=own.timeout, retry_count=own.retry_cnt, rnr_retry=own.rnr_retry)
        if self._requester is not None:
            self._requester.slots = own.max_rd_atomic

    def _drain(self, attr: QPAttr, before: QPState, target: QPState) -> None:
        assert self._requester is not None
        self._requester.draining = target is QPState.SQD
        if target is QPState.RTS:
            self.take_work()
        elif before is QPState.RTS:
            self.attr.en_sqd_async_notify = attr.en_sqd_async_notify
            self._tell_drained()

    def is_draining(self) -> bool:
        """Whether requests that were begun before SQD are still to be completed."""
        return self.state is QPState.SQD and not self._window.is_drained()

    def _tell_drained(self) -> None:
        if self.attr.en_sqd_async_notify and not self.is_draining():
            self.attr.en_sqd_async_notify = 0
            self._tell(EventType.SQ_DRAINED)

    def _tell(self, event: EventType) -> None:
        self.events.append(event)
        self.attention = True

    def _is_fenced(self) -> bool:
        return self._fence_slot != 0 and self._fence_epoch(self._fence_slot) > self._fence_limit

    # -- in -----------------------------------------------------------------------------------------------------------

    def on_packet(
        self, opcode: int, psn: int, ack_requested: bool, data: bytes, start: int, end: int, *, now: Instant,
        solicited: bool = False,
    ) -> bool:  # fmt: skip
        """One packet for this queue pair: what follows its BTH, without padding, lies in `data` from `start` to `end`.
        False when its state has no use for it.
        """
        kind = _KINDS[opcode]
        if kind == _REQUEST:
            responder = self._responder
            if responder is None or not self._can_receive:
                return False
            responder.on_request(opcode, psn, ack_requested, data, start, end, solicited)
            if responder.delivered:
                self._deliver(responder)
            if responder.refusal is not None:
                self.fail(None, _REFUSAL_EVENTS[responder.refusal])
            elif not self._greeted and self.state is _RTR:
                self._greeted = True
                self._tell(EventType.COMM_EST)
            return True
        completer = self._completer
        if completer is None or not self._can_send or kind == _NO_USE:
            return False
        if kind == _READ_RESPONSE_MIDDLE:
            completer.on_read_response(opcode, psn, data[start:end], now)
        elif kind == _READ_RESPONSE:
            # Of a body without a whole AETH nothing is left (a compiled slice must not end before it begins).
            completer.on_read_response(opcode, psn, data[min(start + AETH_BYTES, end) : end], now)
        elif kind == _ACKNOWLEDGE and end - start >= AETH_BYTES:
            completer.on_acknowledge(psn, data[start], now)
        elif kind == _ATOMIC_ACKNOWLEDGE and end - start >= AETH_BYTES + ATOMIC_ACK_ETH_BYTES:
            (original,) = ATOMIC_ACK_ETH.unpack_from(data, start + AETH_BYTES)
            completer.on_atomic_acknowledge(psn, original, now)
        else:
            return False
        self._apply(completer)
        return True

    def take_work(self) -> None:
        """Takes what the host has posted, as far as there is room (a broken queue pair flushes it)."""
        if self.state is _ERR:
            self.flush()
        elif self.state is _RTS:
            window, work, regions, pd = self._window, self._work, self._regions, self.pd
            wqes = window.wqes
            assert self._requester is not None
            slots = self._requester.slots
            self._left_work = True
            while len(wqes) < WINDOW_REQUESTS_MAX:
                wqe = work.take_send()
                if wqe is None:
                    self._left_work = False
                    break
                window.add(resolve(wqe, regions, pd, slots))
            self._break_on_bad_request()

    def _break_on_bad_request(self) -> None:
        wqes = self._window.wqes
        if not wqes or wqes[0].status is None:
            return
        if self.state is not QPState.SQD or self._window.has_begun(wqes[0]):  # else its turn comes after SQD
            self.fail(wqes[0].status)

    # -- out ----------------------------------------------------------------------------------------------------------

    def next_frame(self, *, now: Instant) -> bytes | None:
        """The next frame, answers before requests; None while there is nothing to send or no way to send it."""
        responder, flow = self._responder, self.flow
        if responder is None or flow is None:
            return None
        answers = responder.answers
        if answers.waiting:
            frame = answers.next_frame(flow)
            if answers.dead_region:
                self.fail(None, EventType.QP_ACCESS_ERR)
            return frame
        completer, requester = self._completer, self._requester
        if completer is None or requester is None or completer.resume_at is not None or not self._can_send:
            return None
        frame = requester.next_frame(flow)
        if frame is None:
            self._break_on_bad_request()
        else:
            completer.on_sent(now)
        return frame

    def may_have_more(self) -> bool:
        """Whether asking for another frame is worth its while: a False is certain."""
        responder, window = self._responder, self._window
        return window.index < len(window.wqes) or (responder is not None and bool(responder.answers.waiting))

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
        if completer is None or not self._can_send:
            return None
        return completer.deadline if completer.resume_at is None else completer.resume_at

    def on_time(self, *, now: Instant) -> None:
        """Retransmits, or gives up, where the answer is overdue."""
        if self._completer is not None and self._can_send:
            self._completer.on_time(now)
            self._apply(self._completer)

    # -- completions --------------------------------------------------------------------------------------------------

    def _apply(self, completer: Completer) -> None:
        completed, broken = completer.completed, completer.broken
        if completed:
            completer.completed = []
            for wqe in completed:
                self._work.retire_send(1)
                if self._signal_all or wqe.flags & _SIGNALED:
                    self._push_send(wqe, 0)
        if broken is not None:
            completer.broken = None
            self.fail(broken)
        elif completed:
            if self._left_work:
                self.take_work()
            else:
                self._break_on_bad_request()
            if self.state is _SQD and self.attr.en_sqd_async_notify:
                self._tell_drained()

    def _push_send(self, wqe: SendWqe, status: int) -> None:
        # An unsuccessful completion counts as solicited (vol. 1, 11.4.2.2).
        opcode = _COMPLETED_AS[wqe.opcode]
        if not self._send_sink.push(wqe.wr_id, wqe.length, self.number, 0, status, opcode, 0, status != 0):
            self.overrun = self.attention = True

    def _deliver(self, responder: Responder) -> None:
        for delivery in responder.delivered:
            if not self._receive_sink.push(
                delivery.wr_id, delivery.byte_len, self.number, delivery.imm, delivery.status, delivery.opcode,
                delivery.flags, delivery.solicited,
            ):  # fmt: skip
                self.overrun = self.attention = True
        responder.delivered.clear()

    def fail(self, status: WCStatus | None, event: EventType | None = EventType.QP_FATAL) -> None:
        """To ERR: the oldest request ends with `status` (where its own fault or its peer's answer is the reason), all
        others are flushed, and the host is told by `event`. A NAK that is still to be sent is sent.
        """
        if self.state is QPState.ERR:
            return
        self.broken_by = status
        self.attention = True
        if event is not None:
            self._tell(event)
        if self._work.shares_receives():
            self._tell(EventType.QP_LAST_WQE_REACHED)
        self._enter(QPState.ERR)
        if status is not None and self._window.wqes:
            wqe = self._window.pop_oldest()
            self._work.retire_send(1)
            self._push_send(wqe, status)
        if self._responder is not None:
            self._responder.abandon()
            self._deliver(self._responder)
        self.flush()

    def flush(self) -> None:
        """Completes what is posted on a broken queue pair with WR_FLUSH_ERR, a bounded number at a time."""
        while self._window.wqes:
            self._work.retire_send(1)
            self._push_send(self._window.pop_oldest(), WCStatus.WR_FLUSH_ERR)
        for _ in range(FLUSHED_PER_TURN_MAX):
            wqe = self._work.take_send()
            if wqe is None:
                break
            self._work.retire_send(1)
            self._push_send(refuse(wqe, WCStatus.WR_FLUSH_ERR), WCStatus.WR_FLUSH_ERR)
        if self._work.shares_receives():
            return
        for _ in range(FLUSHED_PER_TURN_MAX):
            receive = self._work.take_receive()
            if receive is None:
                break
            self._receive_sink.push(
                receive.wr_id, 0, self.number, 0, WCStatus.WR_FLUSH_ERR, WCOpcode.RECV, WCFlags.NONE, True
            )

    # -- hardware faults ----------------------------------------------------------------------------------------------

    @property
    def send_sink(self) -> CompletionSink:
        """Where completions of its send queue go."""
        return self._send_sink

    def completes_to(self, sink: CompletionSink) -> bool:
        """Whether any of its completions go there."""
        return self._send_sink is sink or self._receive_sink is sink

    def divert(self, way: Callable[[CompletionSink], CompletionSink]) -> None:
        """Lets completions go elsewhere: `way` gives for each sink the one to be used from now on."""
        self._send_sink, self._receive_sink = way(self._send_sink), way(self._receive_sink)

    def expects(self, psn: int) -> bool:
        """Whether a request with this PSN would be a new one."""
        return self._responder is not None and self._responder.epsn == psn

    @property
    def is_waiting(self) -> bool:
        """Whether a request of its own is under way."""
        return self._completer is not None and self._window.in_flight()

    def repeat_atomic(self) -> None:
        """The next atomic request is carried out twice."""
        if self._responder is not None:
            self._responder.twice = True

    # -- what outsiders may see ---------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Counters under the names that Linux rxe and mlx5 use where they have them."""
        return self._counted() | self.congestion.counters()

    def _counted(self) -> dict[str, int]:
        """In this life and those before it."""
        requester, completer, responder = self._requester, self._completer, self._responder
        counted = dict.fromkeys(COUNTERS, 0)
        if requester is not None and completer is not None:
            counted["retransmitted"] = requester.retransmitted
            counted["rcvd_nak"] = completer.naks_seen
            counted["rcvd_seq_err"] = completer.sequence_naks_seen
            counted["rcvd_rnr_err"] = completer.rnr_naks_seen
            counted["timeouts"] = completer.timeouts
            counted["completer_retry_err"] = completer.retried
            counted["retry_exceeded_err"] = int(self.broken_by is WCStatus.RETRY_EXC_ERR)
            counted["retry_rnr_exceeded_err"] = int(self.broken_by is WCStatus.RNR_RETRY_EXC_ERR)
        if responder is not None:
            counts = responder.counts
            counted["duplicate_request"] = counts.duplicates
            counted["out_of_seq_request"] = counts.out_of_sequence
            counted["sent_nak"] = counts.naks_sent
            counted["send_rnr_err"] = counts.rnr_naks_sent
            counted["rx_write_requests"] = counts.writes
            counted["rx_read_requests"] = counts.reads
            counted["rx_atomic_requests"] = counts.atomics
            counted["rx_flush_requests"] = counts.flushes
        return {name: count + self._former[name] for name, count in counted.items()}

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
