"""Hardware faults of an adapter: what is armed, whom it hits, what it holds back.

The adapter asks here at few points (a frame, a packet, a doorbell, a completion, time) and only while something is
armed; without a fault none of this runs and no frame differs. Deterministic: time and seed are given. What each fault
means stands in `emul.fault_kinds`; what it does to frames, queue pairs and regions is the adapter's, by `Card`.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping
from errno import EBUSY, EINVAL, ENOENT
from typing import Protocol

from emul.clock import MILLISECOND, Instant, after, earliest
from emul.diversion import Diversion
from emul.errors import RDMAError
from emul.fault_kinds import FaultKind, Value, kind_named, parameters_of
from emul.qp import QueuePair
from emul.sinks import CompletionSink
from emul.vocabulary import QPState, WCOpcode, WCStatus
from emul.wire.headers import IMM_BYTES, RETH, RETH_BYTES, Opcode
from emul.wire.heading import Heading

ARMED_MAX = 128
"""Faults that one adapter keeps, those that are over included."""
HELD_MAX = 4096
"""Frames, packets or doorbells that wait for a slow card; what comes beyond is lost, as in a receive buffer."""
NOTES_MAX = 1024
"""Lines that wait for the log; at the bound the oldest go."""
LOOK_INTERVAL_NS = 10 * MILLISECOND
"""How long work waits whose doorbell was lost: a card looks at its queues so often by itself."""
_ATOMICS = frozenset({int(Opcode.COMPARE_SWAP), int(Opcode.FETCH_ADD)})
_ANSWERS = frozenset(
    {
        int(Opcode.ACKNOWLEDGE), int(Opcode.ATOMIC_ACKNOWLEDGE), int(Opcode.RDMA_READ_RESPONSE_FIRST),
        int(Opcode.RDMA_READ_RESPONSE_MIDDLE), int(Opcode.RDMA_READ_RESPONSE_LAST),
        int(Opcode.RDMA_READ_RESPONSE_ONLY),
    }
)  # fmt: skip
_AETH_BYTES = 4
# opcode -> where its payload begins in what follows the BTH
_PAYLOAD_AT: dict[int, int] = {
    Opcode.SEND_FIRST: 0, Opcode.SEND_MIDDLE: 0, Opcode.SEND_LAST: 0, Opcode.SEND_ONLY: 0,
    Opcode.SEND_LAST_WITH_IMMEDIATE: IMM_BYTES, Opcode.SEND_ONLY_WITH_IMMEDIATE: IMM_BYTES,
    Opcode.SEND_LAST_WITH_INVALIDATE: IMM_BYTES, Opcode.SEND_ONLY_WITH_INVALIDATE: IMM_BYTES,
    Opcode.RDMA_WRITE_FIRST: RETH_BYTES, Opcode.RDMA_WRITE_MIDDLE: 0, Opcode.RDMA_WRITE_LAST: 0,
    Opcode.RDMA_WRITE_ONLY: RETH_BYTES, Opcode.RDMA_WRITE_LAST_WITH_IMMEDIATE: IMM_BYTES,
    Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE: RETH_BYTES + IMM_BYTES, Opcode.ATOMIC_WRITE: RETH_BYTES,
    Opcode.RDMA_READ_RESPONSE_FIRST: _AETH_BYTES, Opcode.RDMA_READ_RESPONSE_MIDDLE: 0,
    Opcode.RDMA_READ_RESPONSE_LAST: _AETH_BYTES, Opcode.RDMA_READ_RESPONSE_ONLY: _AETH_BYTES,
}  # fmt: skip
_KEYED = frozenset(
    {
        int(Opcode.RDMA_WRITE_FIRST), int(Opcode.RDMA_WRITE_ONLY), int(Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE),
        int(Opcode.RDMA_READ_REQUEST),
    }
)  # fmt: skip
"""Requests that begin with a RETH."""
_AFTERWARDS = frozenset({int(Opcode.RDMA_WRITE_FIRST), int(Opcode.RDMA_READ_REQUEST)})
"""Of them those of which something is still to be done when their first packet has been handled."""
_CONNECTED = frozenset({QPState.RTR, QPState.RTS, QPState.SQD})
_COMPLETION_FAULTS = ("cqe_lost", "cqe_reorder", "cqe_delay")
Report = dict[str, object]


class Card(Protocol):
    """What faults do to the adapter that they are in."""

    def queue_pairs(self) -> Mapping[int, QueuePair]:
        """All of them by number."""

    def role_of(self, number: int) -> str:
        """One of fault_kinds.ROLES but "all"."""

    def look_after(self, qp: QueuePair) -> None:
        """Something happened to the queue pair: events go out, it gets its turn."""

    def take_late(self, what: bytes | int, *, now: Instant) -> None:
        """A frame, or a doorbell (a queue pair's number), that came earlier."""

    def take_stalled(self, frame: bytes, heading: Heading, *, now: Instant) -> None:
        """A packet that came earlier, from its headers on."""

    def look_at_all_queues(self) -> None:
        """Takes posted work without a doorbell."""

    def switch_port(self, *, on: bool) -> None:
        """Port off, or on again."""

    def drop_key(self, key: int) -> None:
        """Deregisters what a peer names."""

    def keep_stale_keys(self, *, on: bool) -> None:
        """Keys deregistered from now on stay usable; off, they die."""

    def stale_uses(self) -> int:
        """How often such a key was used."""

    def speak_version(self, version: int | None) -> None:
        """The firmware's version of the well-known service; None: its own."""

    def begin_at_psn(self, first: int | None) -> None:
        """Where connections begin that are made from now on; None: anywhere."""


class Armed:
    """One injected fault and what became of it."""

    __slots__ = (
        "at", "chance", "count", "first_at", "fired", "healed_at", "kind", "last_at", "nth", "number", "rng", "seen",
        "until", "values",
    )  # fmt: skip

    def __init__(self, number: int, kind: FaultKind, values: dict[str, Value], seed: int, now: Instant) -> None:
        self.number = number
        self.kind = kind
        self.values = values
        self.rng = random.Random(f"{seed}/{number}/{kind.name}")
        self.at = now
        duration = values.get("for_ns")
        self.until = after(now, int(duration)) if duration is not None else None
        self.nth = int(values.get("nth", 1))
        count, chance = values.get("count"), values.get("probability")
        self.count = None if count is None else int(count)
        self.chance = None if chance is None else float(chance)
        self.seen = self.fired = 0
        self.first_at: Instant | None = None
        self.last_at: Instant | None = None
        self.healed_at: Instant | None = None

    @property
    def active(self) -> bool:
        """Whether it may still hit something."""
        return self.healed_at is None and self.kind.lasting and (self.count is None or self.fired < self.count)

    def meets(self) -> bool:
        """Something came by that it is aimed at: whether it is hit."""
        self.seen += 1
        return self.seen >= self.nth and (self.chance is None or self.rng.random() < self.chance)

    def note(self, now: Instant) -> None:
        """It has happened."""
        self.fired += 1
        self.last_at = now
        if self.first_at is None:
            self.first_at = now

    def report(self) -> Report:
        """For whoever injected it. Times in ns."""
        return {
            "id": self.number, "fault": self.kind.name, "parameters": dict(self.values), "at": self.at,
            "healed_at": self.healed_at, "seen": self.seen, "fired": self.fired, "first_at": self.first_at,
            "last_at": self.last_at, "active": self.active,
        }  # fmt: skip


class HardwareFaults:
    """All faults of one adapter."""

    __slots__ = (
        "_armed", "_by_kind", "_card", "_counters", "_dead_sinks", "_diversions", "_doomed_key", "_late", "_look_at",
        "_next_number", "_releasing", "_stale_before", "_stalled", "hung", "last_qpn", "notes", "now", "port_off",
    )  # fmt: skip

    def __init__(self, card: Card) -> None:
        self._card = card
        self._armed: dict[int, Armed] = {}
        self._by_kind: dict[str, list[Armed]] = {}
        """Those that are active."""
        self._counters: Counter[str] = Counter()
        self._next_number = 1
        self._diversions: dict[int, Diversion] = {}
        """By the completion queue's identity, while completions are led through here."""
        self._dead_sinks: list[CompletionSink] = []
        self._late: deque[tuple[Instant, bytes | int]] = deque()
        self._stalled: deque[tuple[Instant | None, bytes, Heading]] = deque()
        self._look_at: Instant | None = None
        self._doomed_key = 0
        self._releasing = False
        self._stale_before = 0
        self.hung = False
        self.port_off = False
        self.last_qpn: int | None = None
        """Of the queue pair that was destroyed last."""
        self.now = Instant(0)
        """Of the present call into the adapter: completions come without a time."""
        self.notes: deque[Report] = deque(maxlen=NOTES_MAX)
        """For the log: what was injected, what is over."""

    # -- whoever injects ----------------------------------------------------------------------------------------------

    def inject(
        self, name: str, given: Mapping[str, object], *, now: Instant, number: int | None = None, seed: int = 0
    ) -> Report:
        """Arms a fault, or lets it happen at once; gives its report. `number` is what it is called from now on.

        Raises RDMAError, nothing changed: an unknown name or parameter, a number that is taken.
        """
        kind = kind_named(name)
        values = parameters_of(kind, given)
        if number is None:
            number = self._next_number
        if number in self._armed:
            raise RDMAError(EBUSY, f"there is a fault {number} already")
        self._forget_oldest()
        self._next_number = max(self._next_number, number + 1)
        self.now = now
        fault = self._armed[number] = Armed(number, kind, values, seed, now)
        if fault.kind.lasting:
            self._by_kind.setdefault(name, []).append(fault)
        if name == "stale_rkey":
            self._stale_before = self._card.stale_uses()
        self._note("fault.injected", fault)
        self._begin(fault)
        self._apply_states()
        return fault.report()

    def heal(self, number: int | None = None, *, now: Instant) -> list[Report]:
        """Undoes one fault, or all; gives their reports. Raises RDMAError for a number that there never was."""
        if number is not None and number not in self._armed:
            raise RDMAError(ENOENT, f"no fault {number} was injected here")
        self.now = now
        healed = [each for each in self._armed.values() if number in (None, each.number) and each.healed_at is None]
        for fault in healed:
            self._end(fault)
        self._apply_states()
        self._release_what_nobody_holds()
        return [fault.report() for fault in healed]

    def report(self) -> list[Report]:
        """All faults since the adapter started, the oldest of many left out."""
        return [fault.report() for fault in self._armed.values()]

    def counters(self) -> dict[str, int]:
        """How often each kind has happened ("fault_cqe_lost"), and what was lost for lack of room."""
        return dict(self._counters)

    @property
    def busy(self) -> bool:
        """Whether the adapter has to ask: something is armed or held back."""
        waiting = self._late or self._stalled or self._look_at is not None
        return bool(waiting or any(self._by_kind.values()) or self._diversions)

    # -- frames, packets, doorbells -----------------------------------------------------------------------------------

    def admits(self, frame: bytes, *, now: Instant) -> bool:
        """Whether the adapter handles a frame now; it is lost, or comes again later, where not."""
        self.now = now
        if self._releasing:
            return True
        if self.hung or self.port_off:
            self._fire_all("hang" if self.hung else "port_down")
            return False
        return not self._keeps_late(frame)

    def on_packet(self, qp: QueuePair, heading: Heading, psn: int, frame: bytes) -> bytes | None:
        """What follows the BTH as the queue pair gets it; None where it gets nothing now."""
        opcode, body = heading.opcode, frame[heading.start : heading.end]
        if not self._releasing and self._stalls(qp, frame, heading):
            return None
        if opcode in _ANSWERS:
            if self._by_kind.get("retry_exhausted") and qp.is_waiting and self._hit("retry_exhausted", qp.number):
                qp.fail(WCStatus.RETRY_EXC_ERR)
                self._card.look_after(qp)
                return None
        elif not qp.expects(psn):
            return body
        if self._by_kind.get("mr_deregister_in_flight") and opcode in _KEYED:
            self._deregister(qp, opcode, body)
        if self._by_kind.get("atomic_duplicate") and opcode in _ATOMICS and self._hit("atomic_duplicate", qp.number):
            qp.repeat_atomic()
        if self._by_kind.get("dma_corrupt"):
            return self._corrupted(qp, opcode, body)
        return body

    def after_packet(self) -> None:
        """The packet was handled."""
        if self._doomed_key:
            key, self._doomed_key = self._doomed_key, 0
            self._card.drop_key(key)

    def keeps_doorbell(self, number: int, *, now: Instant) -> bool:
        """Whether a doorbell is not heard, or only later."""
        self.now = now
        if self._by_kind.get("doorbell_lost") and self._hit("doorbell_lost", number):
            if self._look_at is None:
                self._look_at = after(now, LOOK_INTERVAL_NS)
            return True
        return self._keeps_late(number)

    def loses_sent(self, frames: int) -> bool:
        """Whether what the adapter sends goes nowhere."""
        if self.port_off:
            self._fire_all("port_down", frames)
        return self.port_off

    # -- queue pairs --------------------------------------------------------------------------------------------------

    def adopt(self, qp: QueuePair) -> None:
        """A queue pair was made: its completions go the way that those of the others go."""
        if self._dead_sinks:
            for sink in self._dead_sinks:
                qp.divert(lambda used, dead=sink: _Nowhere(used) if used is dead else used)  # type: ignore[misc]
        if self._diversions or self._wants_diversion():
            self._divert(qp)

    def forget(self, number: int) -> None:
        """A queue pair is gone, and with it all of it that is held back."""
        self.last_qpn = number
        for diversion in self._diversions.values():
            diversion.forget(number)

    def reused_qpn(self) -> int | None:
        """The number that the next queue pair is to get."""
        if not self._by_kind.get("qpn_reuse") or self.last_qpn is None:
            return None
        number, self.last_qpn = self.last_qpn, None
        self._fire_all("qpn_reuse")
        return number

    def on_first_psn(self) -> None:
        """A connection begins where `psn_wrap` wants it."""
        self._fire_all("psn_wrap")

    def on_old_firmware(self) -> None:
        """A partner was refused for its version."""
        self._fire_all("firmware_old")

    # -- completions --------------------------------------------------------------------------------------------------

    def hits_completion(self, name: str, qp_num: int, opcode: int) -> Armed | None:
        """The fault that hits a completion, not yet noted as having happened; None where none does."""
        side = "receive" if opcode >= WCOpcode.RECV else "send"
        for fault in self._by_kind.get(name, ()):
            fits = fault.values["side"] in ("both", side) and self._aims_at(fault, qp_num)
            if fits and fault.meets():
                return fault
        return None

    def fire(self, fault: Armed) -> None:
        """It has happened."""
        fault.note(self.now)
        self._counters[f"fault_{fault.kind.name}"] += 1
        if not fault.active:
            self._retire(fault)

    # -- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> Instant | None:
        """When `on_time` has something to do."""
        until = earliest(*(fault.until for fault in self._armed.values() if fault.healed_at is None))
        if self.hung:
            return until
        late = self._late[0][0] if self._late else None
        stalled = self._stalled[0][0] if self._stalled else None
        held = (diversion.deadline() for diversion in self._diversions.values())
        return earliest(until, late, stalled, self._look_at, *held)

    def on_time(self, *, now: Instant) -> None:
        """Faults whose time is over end; what was held back long enough goes on."""
        self.now = now
        over = [f for f in self._armed.values() if f.healed_at is None and f.until is not None and f.until <= now]
        for fault in over:
            self._end(fault)
        if over:
            self._apply_states()
            self._release_what_nobody_holds()
        if self.hung:
            return
        self._release_late(now)
        self._release_stalled(now)
        for diversion in list(self._diversions.values()):
            diversion.release(now)
        if self._look_at is not None and self._look_at <= now:
            self._look_at = None
            self._counters["fault_doorbells_found"] += 1
            self._card.look_at_all_queues()

    # -- inside: begin and end ----------------------------------------------------------------------------------------

    def _begin(self, fault: Armed) -> None:
        name = fault.kind.name
        if name == "qp_error":
            for qp in self._chosen(fault)[: int(fault.values["count"])]:
                qp.fail(None)
                self._card.look_after(qp)
                self.fire(fault)
        elif name == "cq_overrun":
            for qp in self._chosen(fault)[:1]:
                self._overrun(qp.send_sink)
                self.fire(fault)
        elif name in ("hang", "port_down", "slow"):
            self.fire(fault)

    def _chosen(self, fault: Armed) -> list[QueuePair]:
        """The queue pairs that it may hit, by number; only those that are connected."""
        found = sorted(self._card.queue_pairs().items())
        return [qp for number, qp in found if qp.state in _CONNECTED and self._aims_at(fault, number)]

    def _overrun(self, sink: CompletionSink) -> None:
        real = sink.sink if isinstance(sink, Diversion) else sink
        self._dead_sinks.append(real)
        concerned = [qp for qp in self._card.queue_pairs().values() if qp.completes_to(sink)]
        for qp in concerned:
            qp.divert(lambda used: _Nowhere(real) if used is sink else used)
            qp.overrun = qp.attention = True
        for qp in concerned:
            self._card.look_after(qp)

    def _end(self, fault: Armed) -> None:
        fault.healed_at = self.now
        self._retire(fault)
        if fault.kind.name == "stale_rkey":
            fault.fired += self._card.stale_uses() - self._stale_before
            self._counters["fault_stale_rkey"] += fault.fired
        self._note("fault.healed", fault)
        if fault.kind.name == "doorbell_lost" and self._look_at is not None:
            self._look_at = self.now

    def _retire(self, fault: Armed) -> None:
        active = self._by_kind.get(fault.kind.name, [])
        if fault in active:
            active.remove(fault)

    def _apply_states(self) -> None:
        """What lasts: hung, port, keys, version, PSN, the way of completions, as the active faults want it."""
        self.hung = bool(self._by_kind.get("hang"))
        off = bool(self._by_kind.get("port_down"))
        if off is not self.port_off:
            self.port_off = off
            self._card.switch_port(on=not off)
        self._card.keep_stale_keys(on=bool(self._by_kind.get("stale_rkey")))
        self._card.speak_version(self._newest("firmware_old", "version"))
        self._card.begin_at_psn(self._newest("psn_wrap", "first"))
        if self._wants_diversion():
            for qp in self._card.queue_pairs().values():
                self._divert(qp)

    def _newest(self, name: str, key: str) -> int | None:
        active = self._by_kind.get(name)
        return int(active[-1].values[key]) if active else None

    def _release_what_nobody_holds(self) -> None:
        if not any("delay_ns" not in fault.values for fault in self._by_kind.get("dma_stall", ())):
            # Of two stalls only the one that had no end is over: what it held goes on in its turn.
            now, stalled = self.now, self._stalled
            self._stalled = deque((now if due is None else due, frame, heading) for due, frame, heading in stalled)
        if self.hung:
            return
        if not self._by_kind.get("slow"):
            self._release_late(None)
        if not self._by_kind.get("dma_stall"):
            self._release_stalled(None)
        if not self._wants_diversion() and self._diversions:
            for diversion in self._diversions.values():
                diversion.release(None)
            for qp in self._card.queue_pairs().values():
                qp.divert(lambda sink: sink.sink if isinstance(sink, Diversion) else sink)
            self._diversions.clear()

    # -- inside: hitting ----------------------------------------------------------------------------------------------

    def _aims_at(self, fault: Armed, number: int) -> bool:
        wanted = fault.values.get("qp", "all")
        return wanted == "all" or wanted == number or wanted == self._card.role_of(number)

    def _hit(self, name: str, number: int) -> bool:
        for fault in self._by_kind.get(name, ()):
            if self._aims_at(fault, number) and fault.meets():
                self.fire(fault)
                return True
        return False

    def _fire_all(self, name: str, times: int = 1) -> None:
        for fault in list(self._by_kind.get(name, ())):
            for _ in range(times):
                self.fire(fault)

    def _deregister(self, qp: QueuePair, opcode: int, body: bytes) -> None:
        if len(body) >= RETH_BYTES and self._hit("mr_deregister_in_flight", qp.number):
            key = RETH.unpack_from(body)[1]
            if opcode in _AFTERWARDS:
                self._doomed_key = key
            else:
                self._card.drop_key(key)

    def _corrupted(self, qp: QueuePair, opcode: int, body: bytes) -> bytes:
        start = _PAYLOAD_AT.get(opcode)
        if start is None or start >= len(body):
            return body
        for fault in self._by_kind.get("dma_corrupt", ()):
            if self._aims_at(fault, qp.number) and fault.meets():
                damaged = bytearray(body)
                bits = (len(damaged) - start) * 8
                for bit in fault.rng.sample(range(bits), min(bits, int(fault.values["bits"]))):
                    damaged[start + (bit >> 3)] ^= 1 << (bit & 7)
                self.fire(fault)
                return bytes(damaged)
        return body

    # -- inside: holding ----------------------------------------------------------------------------------------------

    def _keeps_late(self, what: bytes | int) -> bool:
        slow = self._by_kind.get("slow")
        if self._releasing or not (slow or self._late):
            return False
        if len(self._late) >= HELD_MAX:
            self._counters["fault_held_overflow"] += 1
            return True
        due = after(self.now, int(slow[-1].values["delay_ns"])) if slow else self.now
        if self._late:
            due = max(due, self._late[-1][0])
        self._late.append((due, what))
        if slow:
            self._fire_all("slow")
        return True

    def _stalls(self, qp: QueuePair, frame: bytes, heading: Heading) -> bool:
        if heading.opcode in _ANSWERS:
            return False
        fault = next((f for f in self._by_kind.get("dma_stall", ()) if self._aims_at(f, qp.number)), None)
        if fault is None:
            return False
        if len(self._stalled) >= HELD_MAX:
            self._counters["fault_held_overflow"] += 1
            return True
        delay = fault.values.get("delay_ns")
        due = None if delay is None else after(self.now, int(delay))
        self.fire(fault)
        self._stalled.append((due, frame, heading))
        return True

    def _release_late(self, until: Instant | None) -> None:
        self._releasing = True
        try:
            while self._late and (until is None or self._late[0][0] <= until):
                self._card.take_late(self._late.popleft()[1], now=self.now)
        finally:
            self._releasing = False

    def _release_stalled(self, until: Instant | None) -> None:
        self._releasing = True
        try:
            while self._stalled:
                due = self._stalled[0][0]
                if until is not None and (due is None or due > until):
                    return
                _, frame, heading = self._stalled.popleft()
                self._card.take_stalled(frame, heading, now=self.now)
        finally:
            self._releasing = False

    # -- inside: the way of completions -------------------------------------------------------------------------------

    def _wants_diversion(self) -> bool:
        return any(self._by_kind.get(name) for name in _COMPLETION_FAULTS)

    def _divert(self, qp: QueuePair) -> None:
        if self._card.role_of(qp.number) != "firmware":  # what the firmware's own ends complete, nobody polls
            qp.divert(self._diversion_of)

    def _diversion_of(self, sink: CompletionSink) -> CompletionSink:
        if isinstance(sink, Diversion | _Nowhere):
            return sink
        if id(sink) not in self._diversions:
            self._diversions[id(sink)] = Diversion(sink, self, self._lose)
        return self._diversions[id(sink)]

    def _lose(self, number: int) -> None:
        """A completion that was held back found no room."""
        qp = self._card.queue_pairs().get(number)
        if qp is not None:
            qp.overrun = qp.attention = True
            self._card.look_after(qp)

    # -- inside: notes ------------------------------------------------------------------------------------------------

    def _note(self, event: str, fault: Armed) -> None:
        self.notes.append({"event": event, **fault.report()})

    def _forget_oldest(self) -> None:
        over = [n for n, fault in self._armed.items() if fault.healed_at is not None or not fault.kind.lasting]
        while len(self._armed) >= ARMED_MAX and over:
            del self._armed[over.pop(0)]
        if len(self._armed) >= ARMED_MAX:
            raise RDMAError(EINVAL, f"an adapter keeps {ARMED_MAX} faults at the most")


class _Nowhere(CompletionSink):
    """A completion queue that is lost: what goes there is gone, and nobody is told again."""

    __slots__ = ("sink",)

    def __init__(self, sink: CompletionSink) -> None:
        self.sink = sink

    def push(
        self, wr_id: int, byte_len: int, qp_num: int, imm: int, status: int, opcode: int, flags: int, solicited: bool
    ) -> bool:
        """CompletionSink."""
        return True
