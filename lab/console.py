"""What a person sees of a run: topology, what happens as it happens, recovery times, figures, checks, verdict.

Colours only on a terminal; elsewhere the same lines as plain text.
"""

from __future__ import annotations

from typing import Protocol, TextIO

from lab.check.recovery import Recovery
from lab.runner import Progress
from lab.scenario import At, OnSession, Scenario
from lab.topology import Topology
from lab.units import format_duration, format_size
from lab.verdict import Result
from lab.world import PlannedFault

CABLES_DRAWN_MAX = 16
_STYLES = {
    "fault": "bold yellow",
    "heal": "yellow",
    "path": "cyan",
    "alert": "magenta",
    "load": "bold",
    "ready": "green",
}
_VERDICT_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
_MARKS = {True: ("ok  ", "green"), False: ("FAIL", "bold red"), None: ("--  ", "yellow")}


class Printer(Protocol):
    """Puts one line out, in pieces of (text, style)."""

    def line(self, *pieces: tuple[str, str] | str) -> None:
        """Writes the pieces and ends the line."""


class PlainPrinter:
    """Lines without any style."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, *pieces: tuple[str, str] | str) -> None:
        """Writes the words alone."""
        self._stream.write("".join(piece if isinstance(piece, str) else piece[0] for piece in pieces).rstrip() + "\n")
        self._stream.flush()


class RichPrinter:
    """Lines with colours, on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, soft_wrap=True)

    def line(self, *pieces: tuple[str, str] | str) -> None:
        """Writes the pieces in their styles."""
        from rich.text import Text

        self._console.print(Text.assemble(*pieces))


def printer_for(stream: TextIO) -> Printer:
    """With colours on a terminal, plain elsewhere."""
    return RichPrinter(stream) if stream.isatty() else PlainPrinter(stream)


class RunConsole:
    """Tells about one run."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer

    def begin(self, scenario: Scenario, topology: Topology, world: str, seed: int) -> None:
        """Before anything is started: what will be done to what."""
        line = self._printer.line
        line((scenario.name, "bold"), f": {scenario.description}" if scenario.description else "")
        line("")
        for drawn in drawing(topology):
            line("    ", drawn)
        line("")
        clients = ", ".join(
            f"{client} {format_size(load.record_bytes)} x {load.depth}" for client, load in scenario.workload.items()
        )
        line(f"  world {world}, seed {seed}; load on each node: {clients or 'none'}")
        for number, step in enumerate(scenario.steps):
            line(f"  fault: {describe_step(PlannedFault(number, step))}")
        line("")

    def progress(self, progress: Progress) -> None:
        """Something happened."""
        moment = f"{progress.at_ns / 1e6:+12.3f} ms" if progress.at_ns else " " * 15
        self._printer.line(
            f"  {moment}  ", (f"{progress.phase:<6}", _STYLES.get(progress.phase, "")), f" {progress.text}"
        )

    def end(self, result: Result) -> None:
        """The verdict and what it rests on."""
        line, evidence = self._printer.line, result.outcome.evidence
        line("")
        for recovery in result.recoveries:
            line(*_recovery_pieces(result, recovery))
        for client, n in result.workload.items():
            line(
                f"  {client}: {n['committed']:,} committed, {n['lost']} lost, p50 {n['p50_us']:,.0f} us, p99"
                f" {n['p99_us']:,.0f} us, longest gap {n['longest_gap_ms']:.1f} ms"
            )
        line("")
        for check in result.checks:
            mark, style = _MARKS[check.ok]
            line("  ", (mark, style), f" {check.name:<26} {check.detail}")
        if evidence.suspensions:
            line(
                ("  the machine was overloaded", "yellow"),
                f" ({len(evidence.suspensions)} times): {evidence.suspensions[0]}",
            )
        line("")
        line(
            "  ",
            (result.verdict.upper(), _VERDICT_STYLES[result.verdict]),
            f"  {result.scenario.name}, wire {result.wire}",
        )
        if result.report is not None:
            line(f"  report: {result.report}/report.html")
        line("")


def _recovery_pieces(result: Result, recovery: Recovery) -> list[tuple[str, str] | str]:
    fault, back = recovery.fault, recovery.recovered_at
    assert fault.at is not None
    noticed = f"noticed after {(recovery.detected_at - fault.at) / 1e6:8.3f} ms"
    works = f"works again after {(back - fault.at) / 1e6:9.3f} ms" if back is not None else "does not work again"
    name = result.outcome.evidence.session_name(recovery.session)
    return [
        f"  {fault.kind} {fault.target}: ",
        (f"{name:<20}", "bold"),
        f" {noticed}, {works} (epoch {recovery.epoch})",
    ]


def describe_step(fault: PlannedFault) -> str:
    """One fault of a schedule in words."""
    step, trigger = fault.step, fault.step.trigger
    words = [step.fault, fault.in_words()]
    if isinstance(trigger, At):
        words.append(f"at {format_duration(trigger.at_ns)}")
    elif isinstance(trigger, OnSession):
        words.append(f"when {trigger.client or 'any session'} on {trigger.node or 'any node'} is {trigger.state}")
    if step.duration_ns is not None:
        words.append(f"for {format_duration(step.duration_ns)}")
    return " ".join(words)


def drawing(topology: Topology) -> list[str]:
    """A small drawing: one line for each cable."""
    cables = list(topology.cables.values())[:CABLES_DRAWN_MAX]
    ends = [(str(cable.ends[0]), cable.name, str(cable.ends[1])) for cable in cables]
    if not ends:
        return []
    left, middle = max(len(end) for end, _, _ in ends), max(len(name) for _, name, _ in ends)
    lines = [f"{near:>{left}} ======[ {name:^{middle}} ]====== {far}" for near, name, far in ends]
    if len(topology.cables) > len(cables):
        lines.append(f"... and {len(topology.cables) - len(cables)} more cables")
    return lines
