"""How many mirrored writes are committed in a second, many at a time: beside a TCP mirror that does the same.

The lab is a storage pair; node a keeps DEPTH records under way through the whole connection manager. The reference is
`lab.bench.reference`'s asyncio mirror at the same depth. Lab and reference take turns, and each figure is the median.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.bench import Row, at_least, build, median
from lab.bench.latency import Pair
from lab.bench.reference import References

NAME = "throughput"
HELP = "committed mirrored writes a second at depth 32, beside a TCP mirror"
REPETITIONS = 5
COMPILED = True
DEPTH = 32
SIZES = {512: 0.3, 4096: 0.3, 65536: 0.1}
"""Bytes of a record -> the share of the TCP mirror's rate that is asked for first; the goal is 1."""
LOAD_S = 0.6
"""How long the lab writes in one turn."""
REFERENCE_BYTES = 64 << 20
"""What the reference moves in one turn, within REFERENCE_COUNTS records."""
REFERENCE_COUNTS = (1000, 20_000)
_REFERENCE = "tcp-mirror"


@dataclass(slots=True)
class _Rates:
    """Records a second, one for each turn."""

    lab: list[float] = field(default_factory=list)
    mirror: list[float] = field(default_factory=list)


def run(repetitions: int) -> list[Row]:
    """For each record size two rows: records and megabytes a second. Raises MachineError, LabError."""
    rates = {size: _Rates() for size in SIZES}
    with References() as references, Pair() as pair:
        for size in SIZES:
            pair.write(size, DEPTH, LOAD_S / 4)
        for _ in range(repetitions):
            for size, measured in rates.items():
                measured.lab.append(pair.write(size, DEPTH, LOAD_S)["committed"] / LOAD_S)
                measured.mirror.append(_reference(references, size))
    return [row for size, measured in rates.items() for row in _rows(size, measured, pair.wire)]


def _reference(references: References, size: int) -> float:
    fewest, most = REFERENCE_COUNTS
    count = min(most, max(fewest, REFERENCE_BYTES // size))
    done = references.measure(_REFERENCE, record_bytes=size, count=count, depth=DEPTH)
    return count / (done.elapsed_ns / 1e9)


def _rows(size: int, rates: _Rates, wire: str) -> list[Row]:
    lab, mirror, label = median(rates.lab), median(rates.mirror), f"{size} B over {wire}, depth {DEPTH}, {build()}"
    megabytes = size / 1e6
    name = "asyncio TCP mirror"
    return [
        at_least(label, lab, "writes/s", name, mirror, least=SIZES[size]),
        at_least(label, lab * megabytes, "MB/s", name, mirror * megabytes, least=SIZES[size]),
    ]
