"""From `lab up` to all sessions ready, and what a node that stands ready costs: memory, and processor time when idle.

`lab up` is run as a user runs it, with the start of Python and the reading of the file. Beside it, in turn, stands
the start of as many bare Python processes as the lab has (three for each node). Clusters: storage pairs, two cables
each, as many as fit; and one cluster of ten nodes through two switches, where each node has nine partners.

Memory is the proportional set size (shared pages divided among those who share them) of a node's host and two adapters,
without the NVRAM card's file. The spawner that they are forked from and the fabric process are the lab's, not a
node's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.bench import Row, limit, median
from lab.errors import EXIT_FAIL, EXIT_PASS, LabError

NAME = "ready"
HELP = "lab up to all sessions ready; memory of a node, idle adapters"
REPETITIONS = 3
PAIR_MAX_MS, FIFTY_MAX_MS, MEMORY_MAX_MIB, IDLE_MAX_PERCENT = 1_000.0, 10_000.0, 30.0, 3.0
TEN_MAX_MS = FIFTY_MAX_MS / 5
"""In proportion to the bound for fifty."""
PROCESSES_PER_NODE = 3
IDLE_S = 2.0
UP_MAX_S = 300.0
_MIB = 1024.0
_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)")


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What is started: how it is called here, its topology, how fast it has to be ready."""

    case: str
    nodes: int
    text: str
    ready_max_ms: float


@dataclass(slots=True)
class _Figures:
    ready_ms: list[float] = field(default_factory=list)
    bare_ms: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    idle_percent: list[float] = field(default_factory=list)
    poller_percent: list[float] = field(default_factory=list)
    late: int = 0
    """How often sessions were still missing when `lab up` gave up; `ready_ms` is then the time until it did."""


def run(repetitions: int) -> list[Row]:
    """Rows for each cluster: time, memory of a node, processor time of an idle adapter."""
    bare_mib = _bare_memory_mib()
    rows: list[Row] = []
    for cluster in _clusters():
        figures = _Figures()
        for _ in range(repetitions):
            _measure(cluster, figures)
        rows += _rows(cluster, figures, bare_mib)
    return rows


def _rows(cluster: _Cluster, figures: _Figures, bare_mib: float) -> list[Row]:
    words = f"{PROCESSES_PER_NODE * cluster.nodes} x python3 -c pass"
    case = f"{cluster.case}, ready" + (f" ({figures.late} times NOT within that time)" if figures.late else "")
    ready_ms, bare_ms = median(figures.ready_ms), median(figures.bare_ms)
    rows = [limit(case, ready_ms, "ms", words, bare_ms, at_most=cluster.ready_max_ms)]
    if figures.memory_mib:
        memory, case = median(figures.memory_mib), f"{cluster.case}, memory of a node"
        rows.append(limit(case, memory, "MiB", "bare Python process", bare_mib, at_most=MEMORY_MAX_MIB))
        idle, poller, case = (
            median(figures.idle_percent),
            median(figures.poller_percent),
            f"{cluster.case}, idle adapter",
        )
        words = "Python that only wakes every 2 ms"
        rows.append(limit(case, idle, "% of a core", words, poller, at_most=IDLE_MAX_PERCENT))
    return rows


def _clusters() -> list[_Cluster]:
    return [
        _Cluster("pair", 2, _pairs(2), PAIR_MAX_MS),
        _Cluster("10 nodes, 5 pairs", 10, _pairs(10), TEN_MAX_MS),
        _Cluster("50 nodes, 25 pairs", 50, _pairs(50), FIFTY_MAX_MS),
        _Cluster("10 nodes, 2 switches", 10, _switched(10), TEN_MAX_MS),
    ]


def _nodes(count: int) -> list[str]:
    node = "{adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror, echo]}"
    return ["nodes:", *(f"  n{number}: {node}" for number in range(count))]


def _pairs(count: int) -> str:
    cables = [
        f"  c{left}-{side}: [n{left}.ic{side}, n{left + 1}.ic{side}]" for left in range(0, count, 2) for side in (0, 1)
    ]
    return "\n".join([f"name: pairs-of-{count}", *_nodes(count), "cables:", *cables, ""])


def _switched(count: int) -> str:
    switches = ("left", "right")
    cables = [
        f"  c{node}-{side}: [n{node}.ic{side}, {name}]" for node in range(count) for side, name in enumerate(switches)
    ]
    head = [f"name: switched-{count}", *_nodes(count), f"switches: [{', '.join(switches)}]"]
    return "\n".join([*head, "cables:", *cables, ""])


def _measure(cluster: _Cluster, figures: _Figures) -> None:
    from lab.fabric.client import Fabric

    figures.bare_ms.append(_bare_starts_ms(PROCESSES_PER_NODE * cluster.nodes))
    name = f"bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "cluster.yaml"
        file.write_text(cluster.text, encoding="utf-8")
        started = time.perf_counter()
        done = _lab("up", str(file), "--name", name)
        ready_ms = (time.perf_counter() - started) * 1000
    if done.returncode not in (EXIT_PASS, EXIT_FAIL):
        raise LabError(f"lab up, {cluster.case}: {done.stderr.strip() or done.stdout.strip()}")
    fabric = Fabric.attach(name)
    try:
        figures.ready_ms.append(ready_ms)
        if done.returncode == EXIT_FAIL:
            figures.late += 1
            return
        processes = [(str(one["kind"]), int(one["pid"])) for one in fabric.processes() if one["pid"] is not None]
        figures.memory_mib.append(sum(_memory_mib(pid) for _, pid in processes) / cluster.nodes)
        adapters = [pid for kind, pid in processes if kind == "adapter"]
        with _poller() as poller:
            before = [_busy_ns(pid) for pid in (*adapters, poller)]
            time.sleep(IDLE_S)
            after = [_busy_ns(pid) for pid in (*adapters, poller)]
        shares = [(end - start) / (IDLE_S * 1e7) for start, end in zip(before, after, strict=True)]
        figures.idle_percent.append(sum(shares[:-1]) / len(adapters))
        figures.poller_percent.append(shares[-1])
    finally:
        fabric.stop()


def _lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(":")}
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments], capture_output=True, text=True, env=environment, timeout=UP_MAX_S,
        check=False,
    )  # fmt: skip


def _bare_starts_ms(count: int) -> float:
    """Starts bare Python processes, as many at a time as there are processors; milliseconds for all."""
    at_once = max(1, len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    running: list[subprocess.Popen[bytes]] = []
    for _ in range(count):
        if len(running) == at_once:
            running.pop(0).wait()
        running.append(subprocess.Popen([sys.executable, "-c", "pass"]))
    for process in running:
        process.wait()
    return (time.perf_counter() - started) * 1000


@contextmanager
def _poller() -> Iterator[int]:
    """A process that does nothing but wake every 2 ms, as an idle adapter does to look at its carrier."""
    program = "import select\nsleeper = select.epoll()\nwhile True: sleeper.poll(0.002)"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _bare_memory_mib() -> float:
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(1)
        return _memory_mib(process.pid)


def _memory_mib(pid: int) -> float:
    """Proportional set size of a process without mapped NVRAM cards."""
    total_kib, counted = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        head = _HEAD.match(line)
        if head is not None:
            counted = not head[1].endswith("/nvram.img")
        elif counted and line.startswith("Pss:"):
            total_kib += int(line.split()[1])
    return total_kib / _MIB


def _busy_ns(pid: int) -> int:
    """Processor time of a process so far, all its threads."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
