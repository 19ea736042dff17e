"""Load for a lab: closed-loop generators on the clients' sessions, their records, and what they measure.

A generator keeps `depth` requests under way, at most `rate` a second, and notes in the history when each was submitted
and committed, before it does anything else with that knowledge. Records describe themselves: header (magic, node id,
incarnation, sequence, length, CRC-32 of filler and header), then filler that depends on seed and sequence.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from dataclasses import dataclass

from ccm.client import Session
from ccm.clients.echo import HEADER_BYTES as ECHO_HEADER_BYTES
from ccm.clients.echo import MESSAGE_BYTES_MAX, Echo, request
from ccm.clients.nvram_mirror import DEPTH as MIRROR_DEPTH
from ccm.clients.nvram_mirror import NvramMirror
from ccm.history import HistoryWriter, Kind
from emul.clock import SECOND, Instant
from emul.wire.icrc import crc32

RECORD_MAGIC = 0x4C4F4144
_HEADER = struct.Struct("<IHHQQI")
"""Magic, node id, version, incarnation, sequence, length; then the CRC-32."""
_CHECK = struct.Struct("<I")
_CHECKED_BYTES = _HEADER.size
RECORD_HEADER_BYTES = _CHECKED_BYTES + _CHECK.size
_VERSION = 1
WINDOWS = 61
"""Different fillers: windows into one random block, so that their checksums are known beforehand."""
_WINDOW_STEP = 16
DEPTH_MAX = 1024


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What is asked for: bytes of a record, requests under way, most requests per second (None: no limit)."""

    record_bytes: int
    depth: int
    rate_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Who submits: node, incarnation, the client's number in the history."""

    node: int
    incarnation: int
    client: int


class RecordMaker:
    """Makes records of one size."""

    def __init__(self, node: int, incarnation: int, record_bytes: int, seed: int) -> None:
        if record_bytes < RECORD_HEADER_BYTES:
            raise ValueError(f"a record has at least {RECORD_HEADER_BYTES} bytes, got {record_bytes}")
        length = record_bytes - RECORD_HEADER_BYTES
        block = random.Random(seed).randbytes(length + WINDOWS * _WINDOW_STEP)
        self._fillers = [block[i * _WINDOW_STEP : i * _WINDOW_STEP + length] for i in range(WINDOWS)]
        self._checks = [crc32(filler) for filler in self._fillers]
        self._node = node
        self._incarnation = incarnation
        self._bytes = record_bytes

    def make(self, sequence: int) -> bytes:
        """Record `sequence`."""
        window = sequence % WINDOWS
        head = _HEADER.pack(RECORD_MAGIC, self._node, _VERSION, self._incarnation, sequence, self._bytes)
        return b"".join((head, _CHECK.pack(crc32(head, self._checks[window])), self._fillers[window]))


def record_is_whole(data: bytes) -> bool:
    """Whether `data` is one of our records, undamaged."""
    if len(data) < RECORD_HEADER_BYTES:
        return False
    magic, _, version, _, _, length = _HEADER.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _CHECKED_BYTES)
    if magic != RECORD_MAGIC or version != _VERSION or length != len(data):
        return False
    return bool(crc32(data[:_CHECKED_BYTES], crc32(data[RECORD_HEADER_BYTES:])) == check)


class Latencies:
    """A histogram with 16 steps for each power of two: percentiles within 6 %."""

    __slots__ = ("_counts", "count", "largest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.largest = 0

    def add(self, ns: int) -> None:
        """Counts one latency."""
        shift = ns.bit_length() - 5
        key = (shift << 5) + (ns >> shift) if shift > 0 else ns
        counts = self._counts
        counts[key] = counts.get(key, 0) + 1
        self.count += 1
        if ns > self.largest:
            self.largest = ns

    def percentile(self, percent: float) -> int:
        """Upper end of the step in which that percentile lies, in ns; 0 without any."""
        wanted, seen = self.count * percent / 100, 0
        for key in sorted(self._counts):
            seen += self._counts[key]
            if seen >= wanted:
                return key if key < 32 else min(self.largest, ((key & 31) + 1) << (key >> 5))
        return 0


class Load:
    """A closed loop on one session (`Observer`). Subclasses submit; everything that is counted is counted here."""

    def __init__(
        self, spec: LoadSpec, origin: Origin, partner: int, history: HistoryWriter, first_sequence: int, *, now: Instant
    ) -> None:
        if not 0 < spec.depth <= DEPTH_MAX:
            raise ValueError(f"depth must be 1 ... {DEPTH_MAX}, got {spec.depth}")
        self.spec = spec
        self.partner = partner
        self.committed = 0
        self.given_up = 0
        self.longest_gap_ns = 0
        self.latencies = Latencies()
        self.running = True
        self._origin = origin
        self._history = history
        self._under_way: deque[tuple[int, int, int, int, Instant]] = deque()
        self._session: Session | None = None
        self.next_sequence = first_sequence
        self._gap_ns = 0 if spec.rate_per_s is None else int(SECOND / spec.rate_per_s)
        self._next_at = now
        self._last_commit_at = now

    @property
    def outstanding(self) -> int:
        """Submitted and neither committed nor given up."""
        return len(self._under_way)

    def stop(self) -> None:
        """Submits nothing more; what is under way goes on."""
        self.running = False

    def start(self, session: Session | None, now: Instant) -> None:
        """Begins with the session that is there already, or with the next one."""
        if session is not None:
            self.on_ready(session, now)

    def next_deadline(self) -> Instant | None:
        """When the rate allows the next request."""
        waits = self.running and self._gap_ns and self._session is not None and len(self._under_way) < self.spec.depth
        return self._next_at if waits else None

    def on_ready(self, session: Session, now: Instant) -> None:
        """Observer."""
        self._session = session
        self._next_at = now
        self.submit(now)

    def on_lost(self, session: Session, now: Instant) -> None:
        """Observer."""
        self._session = None
        self.given_up += len(self._under_way)
        self._under_way.clear()

    def on_gone(self, now: Instant) -> None:
        """The client itself is no more."""
        if self._session is not None:
            self.on_lost(self._session, now)

    def on_committed(self, session: Session, now: Instant) -> None:
        """Observer."""
        sequence, offset, length, digest, submitted_at = self._under_way.popleft()
        origin = self._origin
        self._history.note(
            now, Kind.COMMITTED, origin.node, self.partner, origin.client, origin.incarnation, session.epoch, sequence,
            offset, length, digest,
        )  # fmt: skip
        self.committed += 1
        self.latencies.add(now - submitted_at)
        gap = now - self._last_commit_at
        self._last_commit_at = now
        if gap > self.longest_gap_ns:
            self.longest_gap_ns = gap
        if not self.running:
            return
        if self._gap_ns or len(self._under_way) + 1 != self.spec.depth:
            self.submit(now)
        else:
            self._submit_one(session, now)

    def submit(self, now: Instant) -> None:
        """Submits as much as depth, rate and the client's room allow."""
        session, under_way, depth = self._session, self._under_way, self.spec.depth
        while session is not None and self.running and len(under_way) < depth:
            if self._gap_ns:
                if now < self._next_at:
                    return
                self._next_at = Instant(max(self._next_at + self._gap_ns, now - self._gap_ns))
            if not self._submit_one(session, now):
                return

    def state(self) -> dict[str, object]:
        """What `workload.state` says."""
        return {
            "committed": self.committed,
            "outstanding": self.outstanding,
            "given_up": self.given_up,
            "p50_us": self.latencies.percentile(50) / 1000,
            "p99_us": self.latencies.percentile(99) / 1000,
            "longest_gap_ms": self.longest_gap_ns / 1e6,
            "running": self.running,
        }

    def _submit_one(self, session: Session, now: Instant) -> bool:
        """One request; False when the client has no room."""
        raise AssertionError("a load submits")

    def _note(self, session: Session, sequence: int, offset: int, length: int, digest: int, now: Instant) -> None:
        origin = self._origin
        self._history.note(
            now, Kind.SUBMITTED, origin.node, self.partner, origin.client, origin.incarnation, session.epoch, sequence,
            offset, length, digest,
        )  # fmt: skip
        self._under_way.append((sequence, offset, length, digest, now))
        self.next_sequence = sequence + 1


class MirrorLoad(Load):
    """Records round the log, one slot after the other."""

    def __init__(
        self, mirror: NvramMirror, partner: int, spec: LoadSpec, origin: Origin, history: HistoryWriter, seed: int,
        first_sequence: int = 1, *, now: Instant,
    ) -> None:  # fmt: skip
        super().__init__(spec, origin, partner, history, first_sequence, now=now)
        self._mirror = mirror
        self._slots = mirror.half_bytes // spec.record_bytes
        if self._slots <= spec.depth:
            raise ValueError(f"{self._slots} records fit the log, more than the depth of {spec.depth} are needed")
        self._maker = RecordMaker(origin.node, origin.incarnation, spec.record_bytes, seed)

    def adopt(self, mirror: NvramMirror) -> None:
        """Goes on with another mirror of the same log."""
        self._mirror = mirror

    def _submit_one(self, session: Session, now: Instant) -> bool:
        if len(session.streams[0].entries) >= MIRROR_DEPTH:
            return False
        sequence = self.next_sequence
        offset = sequence % self._slots * self.spec.record_bytes
        record = self._maker.make(sequence)
        self._note(session, sequence, offset, len(record), crc32(record), now)
        self._mirror.write(offset, record)
        return True


class EchoLoad(Load):
    """Messages to one partner."""

    def __init__(
        self, echo: Echo, partner: int, spec: LoadSpec, origin: Origin, history: HistoryWriter, seed: int,
        first_sequence: int = 1, *, now: Instant,
    ) -> None:  # fmt: skip
        if not RECORD_HEADER_BYTES + ECHO_HEADER_BYTES <= spec.record_bytes <= MESSAGE_BYTES_MAX:
            least = RECORD_HEADER_BYTES + ECHO_HEADER_BYTES
            raise ValueError(f"a message has {least} ... {MESSAGE_BYTES_MAX} bytes, got {spec.record_bytes}")
        super().__init__(spec, origin, partner, history, first_sequence, now=now)
        self._echo = echo
        self._maker = RecordMaker(origin.node, origin.incarnation, spec.record_bytes - ECHO_HEADER_BYTES, seed)

    def adopt(self, echo: Echo) -> None:
        """Goes on with another echo client."""
        self._echo = echo

    def _submit_one(self, session: Session, now: Instant) -> bool:
        if self._echo.room(self.partner) <= 0:
            return False
        sequence = self.next_sequence
        record = self._maker.make(sequence)
        self._note(session, sequence, 0, self.spec.record_bytes, crc32(request(sequence, record)), now)
        self._echo.send(self.partner, sequence, record)
        return True
