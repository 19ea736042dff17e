"""How long mirrored writes pause when something fails: beside a busy TCP connection that fails over by itself.

One storage pair for each case; node a writes records at a steady rate, and the case's fault comes again and again:
load, fault, heal, wait until both paths have been up for a while. The figure is the longest time between two committed
writes from the fault until writes flow over the other path. In turn, on cables of the same kind, the same fault meets a
TCP connection (lab.bench.tcp_failover). Where TCP has no such fault, and as the measure of the machine's own pauses,
stands the longest time between two committed writes in the 200 ms before the fault.

So that faults can follow each other within a second, the pair takes a path that was up for STEADY_NS for a steady one
(otherwise two seconds: what comes and goes faster is held down as flapping). TCP takes part in every TCP_EVERY-th
repetition. 300 repetitions of a case take about five minutes; p99 means little with fewer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ccm.history import Entry, Kind, count_entries, read_entries
from emul.clock import MILLISECOND, SECOND
from emul.memory import Memory
from emul.node_memory import Stage
from lab.bench import Row, limit
from lab.bench.tcp_failover import TcpFailover
from lab.errors import LabError
from lab.fabric.client import Fabric, HostSilent
from lab.fabric.readiness import HISTORY_BYTES, boot_and_wait
from lab.plan import Plan
from lab.topology import CLIENTS, Topology

NAME = "recovery"
HELP = "longest gap between committed writes: cuts, blackholes, reset and dead adapters, a crashed host; TCP beside it"
REPETITIONS = 20
CARRIER_MAX_MS, SILENT_MAX_MS = (5.0, 20.0), (25.0, 100.0)
"""p50 and p99 where the carrier tells of the fault, and where nothing does."""
RECORD_BYTES, DEPTH, RATE_PER_S = 512, 8, 1000
BEFORE_S = 0.25
"""Load before the fault; the window without a fault is its last AFTER_S."""
AFTER_S = 0.2
"""Load after the fault until it is healed; longer than the slowest recovery of a silent path should be."""
TCP_AFTER_S = 0.7
SECOND_FAULT_NS = SECOND
FIRST_LASTS_S = 0.2
STEADY_NS = 300 * MILLISECOND
TCP_EVERY = 4
RECOVER_MAX_S = 60.0
LIBKNET_QUOTED_MS = 506.0
LIBKNET_QUOTED = "libknet 1.25 passive, fastest working settings (506-906 ms; quoted, measured elsewhere)"
_WRITER, _PARTNER = "a", "b"
_CLIENT = "nvram-mirror"
_CLIENT_NUMBER = CLIENTS.index(_CLIENT) + 1
"""In a history."""
_POLL_S = 0.02
_DRAIN_MAX_S = 5.0

Action = Callable[["Pair"], int]
"""Does something to the pair; gives when, in ns."""


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, how it is undone, what it may cost, and the same for TCP where there is such a thing."""

    name: str
    inject: Action
    heal: Action
    at_most: tuple[float, float]
    tcp: tuple[Callable[[Fabric], int], Callable[[Fabric], int]] | None = None
    quoted: bool = False


@dataclass(slots=True)
class Figures:
    """Of one case, a value in ms for each repetition."""

    gaps: list[float] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)
    tcp: list[float] = field(default_factory=list)
    noticed: list[float] = field(default_factory=list)
    """From the fault until the first of the two nodes has taken the path out of use."""
    fenced: list[float] = field(default_factory=list)
    """From there until the writer has its partner's word that the path is fenced."""
    flowing: list[float] = field(default_factory=list)
    """From there until the next committed write."""
    suspended: int = 0
    """Repetitions in which the kernel did not run one of the two hosts for a while."""


class Pair:
    """A storage pair whose node a writes; the mirror's writes take `cable`."""

    def __init__(self) -> None:
        pair = Topology.load("ha-pair")
        self._plan = Plan(replace(pair, settings=replace(pair.settings, steady_ns=STEADY_NS)))
        self.fabric = Fabric.start(self._plan)
        self._histories: dict[str, Memory] = {}
        missing = boot_and_wait(self.fabric, self._plan)
        if missing:
            self.fabric.stop()
            raise LabError(f"the pair did not get ready: {', '.join(missing)}")
        self._histories = {
            node: Memory.open_file(self.fabric.history_path(node), HISTORY_BYTES) for node in (_WRITER, _PARTNER)
        }
        self.cable = ""
        self.find_route()

    @property
    def adapter(self) -> str:
        """The adapters at both ends of `cable` (they have one name)."""
        return self.cable

    def find_route(self) -> None:
        """Looks which cable the mirror's writes take now."""
        (session,) = [s for s in self._partner_status()["sessions"] if s["client"] == _CLIENT]
        (path,) = session["routes"][:1] or [0]
        (cable,) = self._plan.paths(_WRITER, _PARTNER)[path].cables
        self.cable = cable

    def start_load(self) -> None:
        """Node a writes from now on."""
        request = {
            "op": "workload.start", "client": _CLIENT, "record": RECORD_BYTES, "depth": DEPTH,
            "rate": RATE_PER_S,
        }  # fmt: skip
        answer = self.fabric.host(_WRITER, request)
        if answer.get("error"):
            raise LabError(f"host {_WRITER} refused the load: {answer['error']}")

    def stop_load(self) -> None:
        """Stops it and waits for what is under way."""
        self.fabric.host(_WRITER, {"op": "workload.stop"})
        deadline = time.monotonic() + _DRAIN_MAX_S
        while self._outstanding():
            if time.monotonic() > deadline:
                raise LabError(f"records were not committed within {_DRAIN_MAX_S} s")
            time.sleep(_POLL_S)

    def _outstanding(self) -> int:
        (state,) = self.fabric.host(_WRITER, {"op": "workload.state"})["clients"][_CLIENT].values()
        return int(state["outstanding"])

    def marks(self) -> dict[str, int]:
        """Where the histories end now."""
        return {node: count_entries(memory.buffer) for node, memory in self._histories.items()}

    def since(self, marks: dict[str, int]) -> list[Entry]:
        """What was noted on both nodes since then, by time."""
        entries = [
            entry for node, memory in self._histories.items() for entry in read_entries(memory.buffer, marks[node])
        ]
        return sorted(entries, key=lambda entry: entry.at)

    def wait_steady(self, steady_ns: int = STEADY_NS) -> None:
        """Until both hosts have had all paths up for so long, and the mirror is ready. Raises LabError."""
        deadline = time.monotonic() + RECOVER_MAX_S
        while True:
            with suppress(HostSilent, KeyError, ValueError):
                if self._steady(_WRITER, _PARTNER, steady_ns) and self._steady(_PARTNER, _WRITER, steady_ns):
                    self.find_route()
                    return
            if time.monotonic() > deadline:
                raise LabError(f"not all paths were up again within {RECOVER_MAX_S} s")
            time.sleep(_POLL_S)

    def _steady(self, node: str, other: str, steady_ns: int) -> bool:
        status = self.fabric.host(node, {"op": "status"})
        partner = status["partners"][other]
        since = [path["since_ns"] for path in partner["paths"] if path["state"] == "UP"]
        sessions = {session["client"]: session["state"] for session in partner["sessions"]}
        whole = len(since) == len(partner["paths"]) and sessions[_CLIENT] == "READY"
        return whole and int(status["now_ns"]) - max(since) >= steady_ns

    def _partner_status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.fabric.host(_WRITER, {"op": "status"})["partners"][_PARTNER]
        return found

    def close(self) -> None:
        """Ends the lab."""
        for memory in self._histories.values():
            memory.close()
        self.fabric.stop()


def cases() -> list[Case]:
    """The faults of this benchmark."""
    cut: tuple[Action, Action] = (lambda p: p.fabric.cut(p.cable), lambda p: p.fabric.restore(p.cable))
    return [
        Case(
            "cable cut", *cut, CARRIER_MAX_MS, quoted=True,
            tcp=(lambda f: f.cut("ic0"), lambda f: f.restore("ic0")),
        ),
        Case(
            "partner's end cut", lambda p: p.fabric.cut(p.cable, _PARTNER), lambda p: p.fabric.restore(p.cable),
            CARRIER_MAX_MS, tcp=(lambda f: f.cut("ic0", _PARTNER), lambda f: f.restore("ic0")),
        ),
        Case(
            "blackhole", lambda p: p.fabric.blackhole(p.cable), lambda p: p.fabric.unblackhole(p.cable), SILENT_MAX_MS,
            tcp=(lambda f: f.blackhole("ic0"), lambda f: f.unblackhole("ic0")),
        ),
        Case(
            "blackhole one way", lambda p: p.fabric.blackhole(p.cable, _WRITER),
            lambda p: p.fabric.unblackhole(p.cable), SILENT_MAX_MS,
            tcp=(lambda f: f.blackhole("ic0", _WRITER), lambda f: f.unblackhole("ic0")),
        ),
        Case("adapter reset", _reset, lambda p: 0, SILENT_MAX_MS),
        Case(
            "own adapter dies", lambda p: p.fabric.kill_adapter(_WRITER, p.adapter),
            lambda p: p.fabric.start_adapter(_WRITER, p.adapter), SILENT_MAX_MS,
        ),
        Case(
            "partner's adapter dies", lambda p: p.fabric.kill_adapter(_PARTNER, p.adapter),
            lambda p: p.fabric.start_adapter(_PARTNER, p.adapter), SILENT_MAX_MS,
        ),
        Case("second cut, 1 s after the first", *cut, CARRIER_MAX_MS),
    ]  # fmt: skip


def _reset(pair: Pair) -> int:
    """The partner's adapter begins anew: what it knew is gone, and it takes part again at once."""
    at = pair.fabric.kill_adapter(_PARTNER, pair.adapter)
    pair.fabric.start_adapter(_PARTNER, pair.adapter)
    return at


def run(repetitions: int) -> list[Row]:
    """For each fault p50 and p99, where the time went, and the references. Raises MachineError, LabError."""
    rows: list[Row] = []
    with _tcp() as tcp:
        for case in cases():
            second = case.name.startswith("second")
            rows += _rows(case, _second_faults(case, repetitions) if second else _measure(case, repetitions, tcp))
    return rows + _host_crash(repetitions)


@contextmanager
def _tcp() -> Iterator[TcpFailover]:
    tcp = TcpFailover()
    try:
        yield tcp
    finally:
        tcp.close()


@contextmanager
def _pair() -> Iterator[Pair]:
    pair = Pair()
    try:
        yield pair
    finally:
        pair.close()


def _measure(case: Case, repetitions: int, tcp: TcpFailover) -> Figures:
    figures = Figures()
    with _pair() as pair:
        for number in range(repetitions):
            pair.wait_steady()
            _one(pair, case, figures)
            if case.tcp is not None and number % TCP_EVERY == 0:
                figures.tcp.append(tcp.longest_gap_ns(*case.tcp, BEFORE_S, TCP_AFTER_S) / MILLISECOND)
    return figures


def _second_faults(case: Case, repetitions: int) -> Figures:
    """The cable in use is cut; one second later the one in use then."""
    figures = Figures()
    with _pair() as pair:
        for _ in range(repetitions):
            pair.wait_steady()
            pair.start_load()
            first_at = pair.fabric.cut(pair.cable)
            time.sleep(FIRST_LASTS_S)
            pair.fabric.restore(pair.cable)
            pair.stop_load()
            left = first_at + SECOND_FAULT_NS - time.monotonic_ns()
            time.sleep(max(0.0, left / SECOND - BEFORE_S - 2 * _POLL_S))
            pair.find_route()
            _one(pair, case, figures)
    return figures


def _one(pair: Pair, case: Case, figures: Figures) -> None:
    """One fault under load."""
    marks = pair.marks()
    pair.start_load()
    time.sleep(BEFORE_S)
    at = case.inject(pair)
    time.sleep(AFTER_S)
    entries = pair.since(marks)
    ended = time.monotonic_ns()
    case.heal(pair)
    pair.stop_load()
    judge(entries, at, ended, figures)


def judge(entries: list[Entry], at: int, ended: int, figures: Figures) -> None:
    """Takes one fault at `at` into `figures`, from what both nodes noted around it until `ended`. Raises LabError."""
    stamps: list[int] = [e.at for e in entries if e.kind is Kind.COMMITTED and e.client == _CLIENT_NUMBER]
    if not stamps:
        raise LabError("no record was committed")
    figures.calm.append(_longest([t for t in stamps if at - AFTER_S * SECOND <= t <= at], 0))
    figures.suspended += any(e.kind is Kind.SUSPENDED and e.at > at - AFTER_S * SECOND for e in entries)
    after = [e for e in entries if e.at >= at]
    down = next((e.at for e in after if e.kind is Kind.PATH_DOWN), None)
    fenced = next((e.at for e in after if e.kind is Kind.PATH_FENCED and e.node == 1), None)
    if stamps[-1] <= at:
        stamps.append(ended)
    # Later pauses are the machine's: a few are to be expected in any window of this length.
    flows = next((t for t in stamps if fenced is not None and t > fenced), ended)
    figures.gaps.append(_longest([t for t in stamps if t <= flows], at))
    if down is None or fenced is None:
        return
    figures.noticed.append((down - at) / MILLISECOND)
    figures.fenced.append((fenced - down) / MILLISECOND)
    figures.flowing.append((flows - fenced) / MILLISECOND)


def _longest(stamps: list[int], after: int) -> float:
    """The longest time in ms between two stamps of which the later one is after `after`; 0 without two."""
    return max((later - earlier for earlier, later in pairwise(stamps) if later > after), default=0) / MILLISECOND


def _host_crash(repetitions: int) -> list[Row]:
    """The partner's host is killed and boots: from the end of its boot until both nodes' mirror sessions are ready."""
    ready, boots = [], []
    with _pair() as pair:
        for _ in range(repetitions):
            pair.wait_steady(0)
            pair.start_load()
            marks = pair.marks()
            pair.fabric.kill_host(_PARTNER)
            pair.fabric.start_host(_PARTNER)
            served, alerts, started = _after_boot(pair, marks)
            ready.append(max(0.0, (alerts - served) / MILLISECOND))
            boots.append((served - started) / MILLISECOND)
            pair.stop_load()
    words = "its boot (boot stages of the topology)"
    return [
        _limit_row("host crash, ready after the end of its boot", share, ready, bound, words, _percentile(boots, share))
        for share, bound in zip((0.5, 0.99), SILENT_MAX_MS, strict=True)
    ]


def _after_boot(pair: Pair, marks: dict[str, int]) -> tuple[int, int, int]:
    """When the new host served, when both sessions of the mirror were ready, and when it had started."""
    deadline = time.monotonic() + RECOVER_MAX_S
    while time.monotonic() < deadline:
        entries = pair.since(marks)
        started = next((e.at for e in entries if e.kind is Kind.HOST_STARTED), None)
        served = next((e.at for e in entries if e.kind is Kind.STAGE and e.extra == Stage.SERVING), None)
        alerts = {
            e.node: e.at
            for e in entries
            if e.kind is Kind.READY_ALERT and e.client == _CLIENT_NUMBER and started is not None and e.at > started
        }
        if started is not None and served is not None and len(alerts) == len(marks):
            return served, max(alerts.values()), started
        time.sleep(_POLL_S)
    raise LabError(f"the mirror's sessions were not ready within {RECOVER_MAX_S} s after the crash of a host")


def _rows(case: Case, figures: Figures) -> list[Row]:
    name = case.name
    if figures.suspended:
        name += f" ({figures.suspended} of {len(figures.gaps)} with a host not run)"
    rows: list[Row] = []
    for share, bound in zip((0.5, 0.99), case.at_most, strict=True):
        if figures.tcp:
            words, value = "TCP, USER_TIMEOUT 100 ms, connects anew", _percentile(figures.tcp, share)
            rows.append(_limit_row(name, share, figures.gaps, bound, words, value))
        words, value = "no fault, 200 ms", _percentile(figures.calm, share)
        if figures.tcp:
            rows.append(_shown(f"{name}, {_label(share)}", _percentile(figures.gaps, share), words, value))
        else:
            rows.append(_limit_row(name, share, figures.gaps, bound, words, value))
    middle = _percentile(figures.gaps, 0.5)
    if case.quoted:
        rows.append(_shown(f"{case.name}, p50", middle, LIBKNET_QUOTED, LIBKNET_QUOTED_MS))
    parts = {"noticed": figures.noticed, "then fenced": figures.fenced, "then flowing": figures.flowing}
    for part, values in parts.items():
        if values:
            rows.append(_shown(f"  {part}, p50", _percentile(values, 0.5), "the whole gap", middle))
    return rows


def _limit_row(
    name: str, share: float, values: list[float], bound: float, reference: str, reference_value: float
) -> Row:
    return limit(
        f"{name}, {_label(share)}", _percentile(values, share), "ms", reference, reference_value, at_most=bound
    )


def _shown(case: str, value: float, reference: str, reference_value: float) -> Row:
    """A row without a target."""
    ratio = value / reference_value if reference_value else float("inf")
    return Row(case, value, "ms", reference, reference_value, ratio, "-", True)


def _label(share: float) -> str:
    return f"p{share * 100:g}"


def _percentile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
