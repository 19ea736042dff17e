"""How long a committed mirrored write takes, one at a time: beside a bare chain of the same processes, and beside TCP.

The lab is a storage pair; node a writes records into both NVRAM cards through the whole connection manager, and the
time from the submission to the commit is what its load generator measures. The references are those of
lab.bench.reference. Everything blocks while it waits. Lab and references take turns, and each figure is the median over
the turns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from lab.bench import Row, build, compare, median
from lab.bench.reference import REFERENCES, References
from lab.errors import LabError
from lab.fabric.client import Fabric
from lab.fabric.readiness import boot_and_wait
from lab.plan import Plan
from lab.topology import Topology

NAME = "latency"
HELP = "a committed mirrored write, beside a bare chain, ping-pongs and a TCP mirror"
REPETITIONS = 7
COMPILED = True
RECORD_BYTES = (512, 4096)
CHAIN_RATIO_MAX, MIRROR_RATIO_MAX = 2.0, 1.0
LOAD_S = 0.4
"""How long the lab writes in one turn."""
REFERENCE_COUNT = 3000
WARM_UP_COUNT = 300
DRAIN_MAX_S = 5.0
_CLIENT = "nvram-mirror"
_WRITER = "a"
_POLL_S = 0.005
_MICRO = 1e3


@dataclass(slots=True)
class _Figures:
    """Microseconds, one of each for a turn."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)

    def add(self, p50_us: float, p99_us: float) -> None:
        self.p50.append(p50_us)
        self.p99.append(p99_us)


class Pair:
    """A running storage pair whose node a writes when it is asked to. Raises MachineError, LabError."""

    def __init__(self, wire: str = "auto") -> None:
        plan = Plan(Topology.load("ha-pair"))
        self._fabric = Fabric.start(plan, wire=wire)
        missing = boot_and_wait(self._fabric, plan)
        if missing:
            self._fabric.stop()
            raise LabError(f"the pair did not get ready: {', '.join(missing)}")
        self.wire = self._fabric.wire

    def write(self, record_bytes: int, depth: int, seconds: float) -> dict[str, Any]:
        """Mirrors records for a while, waits until all are committed; gives the load's figures."""
        request = {"op": "workload.start", "client": _CLIENT, "record": record_bytes, "depth": depth}
        self._ask(request)
        time.sleep(seconds)
        self._ask({"op": "workload.stop"})
        deadline = time.monotonic() + DRAIN_MAX_S
        while True:
            (state,) = self._ask({"op": "workload.state"})["clients"][_CLIENT].values()
            if not state["outstanding"]:
                break
            if time.monotonic() > deadline:
                raise LabError(f"{state['outstanding']} records were not committed within {DRAIN_MAX_S} s")
            time.sleep(_POLL_S)
        if not state["committed"]:
            raise LabError("no record was committed")
        return dict(state)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._fabric.host(_WRITER, request)
        if answer.get("error"):
            raise LabError(f"host {_WRITER} refused {request['op']}: {answer['error']}")
        return answer

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._fabric.stop()


def run(repetitions: int) -> list[Row]:
    """For each record size: the lab beside each reference. Raises MachineError, LabError."""
    figures = {(name, size): _Figures() for name in ("lab", *REFERENCES) for size in RECORD_BYTES}
    with References() as references, Pair() as pair:
        for size in RECORD_BYTES:
            pair.write(size, 1, LOAD_S / 4)
            for name in REFERENCES:
                references.measure(name, record_bytes=size, count=WARM_UP_COUNT)
        for _ in range(repetitions):
            for size in RECORD_BYTES:
                state = pair.write(size, 1, LOAD_S)
                figures["lab", size].add(state["p50_us"], state["p99_us"])
                for name in REFERENCES:
                    measured = references.measure(name, record_bytes=size, count=REFERENCE_COUNT)
                    p50, p99 = (measured.percentile(share) / _MICRO for share in (0.5, 0.99))
                    figures[name, size].add(p50, p99)
    return [row for size in RECORD_BYTES for row in _rows(size, figures, references.wire)]


def _rows(size: int, figures: dict[tuple[str, int], _Figures], wire: str) -> list[Row]:
    lab, label = figures["lab", size], f"{size} B over {wire}, {build()}"
    p50, p99 = median(lab.p50), median(lab.p99)
    chain, mirror = figures["bare-chain", size], figures["tcp-mirror", size]
    rows = [
        compare(f"{label}, p50", p50, "us", "bare chain", median(chain.p50), at_most=CHAIN_RATIO_MAX),
        compare(f"{label}, p50", p50, "us", "asyncio TCP mirror", median(mirror.p50), at_most=MIRROR_RATIO_MAX),
        _shown(f"{label}, p99", p99, "bare chain", median(chain.p99)),
        _shown(f"{label}, p99", p99, "asyncio TCP mirror", median(mirror.p99)),
    ]
    for name in ("frame-ping-pong", "tcp-ping-pong"):
        rows.append(_shown(f"{label}, p50", p50, name, median(figures[name, size].p50)))
    return rows


def _shown(case: str, value: float, reference: str, reference_value: float) -> Row:
    """A row without a target: it shows where the floor is."""
    return Row(case, value, "us", reference, reference_value, value / reference_value, "-", True)
