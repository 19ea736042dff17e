"""What a storage pair takes for a failure while nothing fails, on a machine with far too much to do.

A pair in network namespaces writes records at a steady rate while twice as many busy loops as there are cores run
beside it. No fault is injected, so that each path declared down, each broken session and each word of the failover
monitor that would lead to a takeover is a false alarm. Counted are the histories of both nodes and, where they tell of
more, their status. Repetitions are minutes.

The reference is a bystander: a process that sleeps for 5 ms again and again, and how often it was woken so late that a
limit which doesn't adapt to the machine would have raised an alarm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ccm.history import Entry, Kind, count_entries, read_entries
from ccm.reasons import Reason
from emul.clock import MILLISECOND
from emul.memory import Memory
from lab.bench import Row
from lab.errors import LabError
from lab.fabric.client import Fabric, HostSilent
from lab.fabric.readiness import HISTORY_BYTES, boot_and_wait
from lab.plan import Plan
from lab.topology import CLIENTS, Topology

NAME = "false-alarms"
HELP = "paths declared down, sessions broken, takeovers without any fault, on an overloaded machine (minutes)"
REPETITIONS = 10
COMPILED = True
MINUTE_S = 60.0
LOOPS_PER_CORE = 2
RECORD_BYTES, DEPTH, RATE_PER_S = 512, 8, 1000
STATUS_WITHIN_S = 30.0
BYSTANDER_SLEEP_S = 0.005
BYSTANDER_LATE_S = 0.016
"""The floor of the manager's own limits (ccm.liveness.LIMIT_FLOOR_NS)."""
ALARMING_NEWS = ("stalled",)
"""Words of the failover monitor after which a partner is taken over."""
_WRITER = "a"
_CLIENT = "nvram-mirror"
_CLIENT_NUMBER = CLIENTS.index(_CLIENT) + 1
_TOPOLOGY = """
name: overloaded-pair
nodes:
  a: {adapters: [ic0, ic1], nvram: 16MiB, clients: [nvram-mirror, echo, failover-monitor]}
  b: {adapters: [ic0, ic1], nvram: 16MiB, clients: [nvram-mirror, echo, failover-monitor]}
cables:
  ic0: [a.ic0, b.ic0]
  ic1: [a.ic1, b.ic1]
"""
_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass(slots=True)
class Alarms:
    """What both nodes took for a failure."""

    paths_down: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Of the paths."""
    sessions_broken: int = 0
    takeovers: int = 0
    not_run: int = 0
    """How often a host noted that the machine had not run it."""
    longest_not_run_ms: float = 0.0
    committed: int = 0
    longest_gap_ms: float = 0.0
    """Between two committed writes of one stream."""

    def take_history(self, entries: Iterable[Entry]) -> None:
        """Adds what one node noted."""
        commits: list[int] = []
        for entry in entries:
            if entry.kind is Kind.COMMITTED:
                if entry.client == _CLIENT_NUMBER:
                    commits.append(entry.at)
            elif entry.kind is Kind.PATH_DOWN:
                self.paths_down += 1
                word = Reason(entry.length).name.lower()
                self.reasons[word] = self.reasons.get(word, 0) + 1
            elif entry.kind is Kind.ERROR_ALERT:
                self.sessions_broken += 1
            elif entry.kind is Kind.SUSPENDED:
                self.not_run += 1
                self.longest_not_run_ms = max(self.longest_not_run_ms, entry.extra / MILLISECOND)
        self.committed += len(commits)
        gap = max((later - earlier for earlier, later in pairwise(commits)), default=0)
        self.longest_gap_ms = max(self.longest_gap_ms, gap / MILLISECOND)

    def take_status(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Compares with what the managers count themselves; the larger figure stands."""
        losses, errors = _counted(after)
        losses_before, errors_before = _counted(before)
        self.paths_down = max(self.paths_down, losses - losses_before)
        self.sessions_broken = max(self.sessions_broken, errors - errors_before)

    def take_log(self, lines: Iterable[str]) -> None:
        """Adds the news of one node's failover monitor. A line that is cut short is not there."""
        for line in lines:
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            self.takeovers += fields.get("event") == "monitor" and fields.get("news") in ALARMING_NEWS


def run(repetitions: int) -> list[Row]:
    """So many minutes of overload. Raises MachineError, LabError."""
    alarms, late, seconds = measure(repetitions * MINUTE_S)
    return rows(alarms, late, seconds)


def measure(seconds: float) -> tuple[Alarms, int, float]:
    """A pair under load and overload for so long: its alarms, how often the bystander was late, the time it took."""
    plan = Plan(Topology.parse(_TOPOLOGY))
    with Fabric.start(plan) as fabric:
        missing = boot_and_wait(fabric, plan)
        if missing:
            raise LabError(f"the pair did not get ready: {', '.join(missing)}")
        nodes = list(plan.topology.nodes)
        marks, before = {node: _mark(fabric, node) for node in nodes}, _status(fabric, nodes)
        _start_load(fabric)
        with busy_loops(LOOPS_PER_CORE * len(os.sched_getaffinity(0))):
            started = time.monotonic()
            late = _stand_by(seconds)
            took = time.monotonic() - started
        alarms = Alarms()
        for node in nodes:
            _read(fabric, node, marks[node], alarms)
        alarms.take_status(before, _status(fabric, nodes))
    return alarms, late, took


def rows(alarms: Alarms, late: int, seconds: float) -> list[Row]:
    """The counts with their target, none; and what the machine was like."""
    words = f"wake-ups of a bystander late by {BYSTANDER_LATE_S * 1000:.0f} ms or more"
    reasons = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in sorted(alarms.reasons.items()))

    def none(case: str, count: int) -> Row:
        return Row(case, count, "times", words, late, count / late if late else 0.0, "none", count == 0)

    def shown(case: str, value: float, unit: str, reference: str, reference_value: float) -> Row:
        ratio = value / reference_value if reference_value else 0.0
        return Row(case, value, unit, reference, reference_value, ratio, "-", True)

    minutes = f" in {seconds / MINUTE_S:.3g} min"
    return [
        none(f"paths declared down{minutes}" + (f" ({reasons})" if reasons else ""), alarms.paths_down),
        none(f"sessions broken{minutes}", alarms.sessions_broken),
        none(f"takeovers{minutes}", alarms.takeovers),
        shown("a host not run when it wanted to", alarms.not_run, "times", words, late),
        shown("longest of these times", alarms.longest_not_run_ms, "ms", "all of the time", seconds * 1000),
        shown("longest gap between commits", alarms.longest_gap_ms, "ms", "all of the time", seconds * 1000),
        shown("committed writes", alarms.committed / seconds, "1/s", "wanted", RATE_PER_S),
    ]


@contextmanager
def busy_loops(count: int) -> Iterator[list[int]]:
    """So many processes that only count; all have ended afterwards, and they end by themselves with this one. Gives
    their process ids.
    """
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            loops.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", _BUSY]))
        yield [loop.pid for loop in loops]
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def _stand_by(seconds: float) -> int:
    """Sleeps again and again for so long; how often it was woken late."""
    late, now = 0, time.monotonic()
    until = now + seconds
    while now < until:
        time.sleep(BYSTANDER_SLEEP_S)
        woken = time.monotonic()
        late += woken - now - BYSTANDER_SLEEP_S >= BYSTANDER_LATE_S
        now = woken
    return late


def _start_load(fabric: Fabric) -> None:
    request = {"op": "workload.start", "client": _CLIENT, "record": RECORD_BYTES, "depth": DEPTH, "rate": RATE_PER_S}
    answer = fabric.host(_WRITER, request)
    if answer.get("error"):
        raise LabError(f"host {_WRITER} refused the load: {answer['error']}")


def _status(fabric: Fabric, nodes: Iterable[str]) -> dict[str, Any]:
    """Each host's status; asked again while it is too busy to answer. Raises LabError."""
    found: dict[str, Any] = {}
    for node in nodes:
        deadline = time.monotonic() + STATUS_WITHIN_S
        while node not in found:
            try:
                found[node] = fabric.host(node, {"op": "status"})
            except HostSilent as error:
                if time.monotonic() > deadline:
                    raise LabError(f"host {node} gave no status within {STATUS_WITHIN_S} s") from error
    return found


def _counted(status: Mapping[str, Any]) -> tuple[int, int]:
    """Losses of paths and errors of sessions over all nodes."""
    partners = [partner for host in status.values() for partner in host["partners"].values()]
    losses = sum(int(path["losses"]) for partner in partners for path in partner["paths"])
    return losses, sum(int(session["errors"]) for partner in partners for session in partner["sessions"])


def _mark(fabric: Fabric, node: str) -> tuple[int, int]:
    """Where a node's history and its host's log end now."""
    memory = Memory.open_file(fabric.history_path(node), HISTORY_BYTES)
    try:
        return count_entries(memory.buffer), _log(fabric, node).stat().st_size
    finally:
        memory.close()


def _read(fabric: Fabric, node: str, mark: tuple[int, int], alarms: Alarms) -> None:
    memory = Memory.open_file(fabric.history_path(node), HISTORY_BYTES)
    try:
        alarms.take_history(read_entries(memory.buffer, mark[0]))
    finally:
        memory.close()
    with _log(fabric, node).open("rb") as log:
        log.seek(mark[1])
        alarms.take_log(line.decode("utf-8", "replace") for line in log)


def _log(fabric: Fabric, node: str) -> Path:
    return fabric.node_directory(node) / "host.log"
