"""A world of two nodes that play their parts from a script: for tests of the runner, not of the manager.

Time is virtual. Each stream commits one record a millisecond; a cut cable costs its path for a moment, a crash the
sessions. `misbehave` names one thing that goes wrong, so that a test sees who notices.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ccm.history import HEADER_BYTES, RECORD_BYTES, HistoryWriter, Kind
from emul.clock import MILLISECOND, Instant
from emul.memory import Memory
from emul.node_memory import Stage
from lab.check.evidence import Session
from lab.plan import Plan
from lab.sessions import expected_sessions
from lab.world import Firing, HostUnreachable, PlannedFault

RECORD = 4096
DETECT_NS = MILLISECOND
BOOT_NS = 20 * MILLISECOND
ECHO = 2


class ScriptedWorld:
    """Two nodes, `a` and `b`, of the plan's names."""

    name = "scripted"
    wire = "none"
    poll_ns = MILLISECOND
    rate_max_per_s: int | None = None

    def __init__(self, plan: Plan, misbehave: str = "") -> None:
        self.plan = plan
        self.misbehave = misbehave
        self.time = 0
        self.stopped = 0
        self.armed: list[PlannedFault] = []
        self.faults: list[str] = []
        self.sessions = expected_sessions(plan)
        ids = plan.node_ids
        self.ids = ids
        self.memories = {node: Memory.plain(HEADER_BYTES + 200_000 * RECORD_BYTES) for node in ids}
        self.writers = {node: HistoryWriter(memory) for node, memory in self.memories.items()}
        self.cards = {node: bytearray(plan.topology.nodes[node].nvram_bytes) for node in ids}
        self.epochs = dict.fromkeys(self.sessions, 0)
        self.loaded: set[str] = set()
        self.down: set[str] = set()
        self.incarnation = dict.fromkeys(ids, 1)
        self.sequence = dict.fromkeys(self.sessions, 0)
        self.resumes_at: dict[Session, int] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._planned = 0

    # -- World --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.misbehave == "start fails":
            raise RuntimeError("no cables today")
        for node in self.ids:
            self.boot(node)

    def now(self) -> int:
        return self.time

    def advance(self, until: int) -> None:
        while self.time < until:
            self.time = min(until, (self.time // MILLISECOND + 1) * MILLISECOND)
            due = sorted(event for event in self._events if event[0] <= self.time)
            self._events = [event for event in self._events if event[0] > self.time]
            for _, _, action in due:
                action()
            if self.time % MILLISECOND == 0:
                self.work()

    def stop(self) -> None:
        self.stopped += 1

    def leftovers(self) -> list[str]:
        return ["process 4711"] if self.misbehave == "leaks" else []

    def apply(self, fault: PlannedFault) -> int:
        self.faults.append(fault.kind)
        if self.misbehave == "interrupted":
            raise KeyboardInterrupt
        if fault.kind == "cable.cut":
            self.lose_path()
        elif fault.kind == "host.crash":
            self.crash(str(fault.step.target))
        return self.time

    def clear(self, fault: PlannedFault) -> int:
        self.faults.append(f"{fault.kind} undone")
        if fault.kind == "cable.cut":
            for session in self.sessions:
                self.note(session, Kind.PATH_UP)
        elif fault.kind == "host.crash":
            self.boot(str(fault.step.target))
        return self.time

    def arm(self, faults: list[PlannedFault]) -> None:
        self.armed += faults

    def fired(self) -> Mapping[int, Firing]:
        if self.misbehave == "never fires":
            return {}
        return {fault.id: Firing(1, self.time, self.time) for fault in self.armed if self.loaded}

    def host(self, node: str, request: Mapping[str, object]) -> dict[str, object]:
        if node in self.down:
            raise HostUnreachable(node)
        operation = request["op"]
        if operation == "workload.start":
            self.loaded.add(node)
        elif operation == "workload.stop":
            self.loaded.discard(node)
        elif operation == "workload.state":
            return {"echo": {"outstanding": 3 if self.misbehave == "never drains" else 0}}
        elif operation == "resources":
            return {"qp": 9 if self.misbehave == "leaks" and not self.loaded else 4}
        elif operation == "close" and self.misbehave != "never closes":
            for session in self.sessions:
                if session.node == self.ids[node]:
                    self.note(session, Kind.SESSION_CLOSED, epoch=self.epochs[session])
        return {}

    def history(self, node: str) -> memoryview:
        return self.memories[node].buffer

    def nvram(self, node: str) -> bytes:
        if self.misbehave == "loses a record" and node == "b":
            middle = len(self.cards[node]) // 2
            self.cards[node][middle : middle + 8] = b"\xff" * 8
        return bytes(self.cards[node])

    def fence_epoch(self, node: str, slot: int) -> int:
        return 0 if self.misbehave == "fence does not stand" else 1

    def counters(self, node: str) -> dict[str, int]:
        return {"retransmitted": 1}

    def trace_hash(self) -> str:
        return ""

    def details(self) -> Mapping[str, object]:
        return {}

    def logs(self) -> Mapping[str, Path]:
        return {}

    # -- the script ---------------------------------------------------------------------------------------------------

    def note(self, session: Session, kind: Kind, **fields: int) -> None:
        node = next(name for name, number in self.ids.items() if number == session.node)
        client = 0 if kind in (Kind.PATH_UP, Kind.PATH_DOWN, Kind.PATH_FENCED, Kind.HANDSHAKE_STEP) else session.client
        self.writers[node].note(
            Instant(self.time), kind, session.node, session.partner, client, self.incarnation[node], **fields
        )

    def later(self, delay: int, action: Callable[[], None]) -> None:
        self._planned += 1
        self._events.append((self.time + delay, self._planned, action))

    def boot(self, node: str) -> None:
        self.down.discard(node)
        self.writers[node].note(
            Instant(self.time), Kind.HOST_STARTED, self.ids[node], incarnation=self.incarnation[node]
        )
        for session in self.sessions:
            if session.partner == self.ids[node]:
                self.note(session, Kind.PARTNER_STATUS, extra=Stage.LOADER)
        if self.misbehave != "never ready":
            self.later(BOOT_NS, lambda: self.serve(node))

    def serve(self, node: str) -> None:
        if not self.down:
            self.writers[node].note(Instant(self.time), Kind.STAGE, self.ids[node], extra=Stage.STORAGE_OS)
            for step in (1, 2, 3, 4):
                for session in self.sessions:
                    self.note(session, Kind.HANDSHAKE_STEP, extra=step)
            epoch = max(self.epochs.values()) + 1
            for session in self.sessions:
                if self.epochs[session] == 0 or session not in self.resumes_at or self.resumes_at[session] < 0:
                    self.epochs[session] = epoch
                    self.resumes_at[session] = self.time
                    self.note(session, Kind.READY_ALERT, epoch=epoch)

    def crash(self, node: str) -> None:
        self.down.add(node)
        self.loaded.discard(node)
        self.incarnation[node] += 1
        for session in self.sessions:
            self.resumes_at[session] = -1
            if session.node == self.ids[node]:
                self.sequence[session] = 0

        def notice() -> None:
            for session in self.sessions:
                if session.partner == self.ids[node]:
                    self.note(session, Kind.ERROR_ALERT, epoch=self.epochs[session])

        self.later(DETECT_NS, notice)

    def lose_path(self) -> None:
        def notice() -> None:
            for session in self.sessions:
                self.note(session, Kind.PATH_DOWN)
                if self.misbehave != "no fence":
                    self.note(session, Kind.PATH_FENCED, sequence=1)
                self.note(session, Kind.REPLAYED, epoch=self.epochs[session], length=1, extra=1)
                self.resumes_at[session] = self.time + MILLISECOND

        for session in self.sessions:
            self.resumes_at[session] = self.time + 10 * MILLISECOND
        self.later(DETECT_NS, notice)

    def work(self) -> None:
        """One record of each stream whose node is loaded."""
        for session in self.sessions:
            node = next(name for name, number in self.ids.items() if number == session.node)
            at = self.resumes_at.get(session, -1)
            if node in self.loaded and not self.down and 0 <= at <= self.time:
                self.write(session, node)

    def write(self, session: Session, node: str) -> None:
        sequence = self.sequence[session]
        self.sequence[session] = sequence + 1
        epoch = self.epochs[session]
        if session.client == ECHO:
            for kind, writer in (
                (Kind.SUBMITTED, session),
                (Kind.DELIVERED, _other(session)),
                (Kind.COMMITTED, session),
            ):
                self.note(writer, kind, epoch=epoch, sequence=sequence, digest=7)
            return
        half = len(self.cards[node]) // 2
        offset = sequence * RECORD % half
        data = bytes([sequence % 255 + 1, self.incarnation[node]]) * (RECORD // 2)
        fields = {"epoch": epoch, "sequence": sequence, "offset": offset, "length": RECORD, "digest": zlib.crc32(data)}
        self.note(session, Kind.SUBMITTED, **fields)
        partner = next(name for name, number in self.ids.items() if number == session.partner)
        self.cards[node][offset : offset + RECORD] = data
        self.cards[partner][half + offset : half + offset + RECORD] = data
        self.note(session, Kind.COMMITTED, **fields)


def _other(session: Session) -> Session:
    return Session(session.partner, session.node, session.client)
