"""The report of a run as one HTML page that needs nothing else: verdict, timeline, a look at each fault, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lab.check.evidence import FaultRecord
from lab.drawing import draw as draw_topology
from lab.report import timeline
from lab.topology import Topology
from lab.verdict import Result

CLOSE_LOOKS_MAX = 8
_STYLE = """
:root { color-scheme: light; --ink: #1e293b; --soft: #64748b; --line: #e2e8f0; --panel: #f8fafc;
  --good: #15803d; --bad: #c92a2a; --doubt: #a16207; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: var(--ink);
  background: #fff; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 40px 0 12px; }
p { margin: 6px 0; } .soft { color: var(--soft); }
.head { display: flex; gap: 16px; align-items: center; flex-wrap: wrap; }
.verdict { padding: 3px 14px; border-radius: 999px; color: #fff; font-weight: 600; text-transform: uppercase;
  font-size: 13px; letter-spacing: 0.04em; }
.pass { background: var(--good); } .fail { background: var(--bad); } .inconclusive { background: var(--doubt); }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.figure { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px;
  min-width: 130px; }
.figure b { display: block; font-size: 20px; font-weight: 600; }
.figure span { color: var(--soft); font-size: 13px; }
.card { border: 1px solid var(--line); border-radius: 12px; padding: 16px; margin: 12px 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mark { font-weight: 700; white-space: nowrap; } .ok { color: var(--good); } .no { color: var(--bad); }
.none { color: var(--doubt); } code { background: var(--panel); padding: 2px 6px; border-radius: 5px; }
svg { display: block; } svg .row { font: 12px system-ui, sans-serif; fill: #1e293b; }
svg .axis { font: 11px system-ui, sans-serif; fill: #64748b; } svg .fault { font: 600 11px system-ui, sans-serif;
  fill: #b45309; } .legend span { margin-right: 18px; white-space: nowrap; } .swatch { display: inline-block;
  width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
"""


def page(result: Result, topology: Topology) -> str:
    """The whole document."""
    evidence = result.outcome.evidence
    parts = [
        _head(result),
        _figures(result),
        "<h2>Timeline</h2>",
        f'<div class="card">{timeline.draw(evidence, timeline.whole_run(evidence))}{_legend()}</div>',
        _close_looks(result),
        "<h2>Checks</h2>",
        _checks(result),
        "<h2>Recoveries</h2>",
        _recoveries(result),
        "<h2>Load</h2>",
        _workload(result),
        "<h2>Topology</h2>",
        f'<div class="card">{draw_topology(topology)}</div>',
        _again(result),
    ]
    title = escape(f"{result.scenario.name}: {result.verdict}")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body><main>",
            *parts,
            "</main></body></html>",
            "",
        ]
    )


def _head(result: Result) -> str:
    verdict = f'<span class="verdict {result.verdict}">{result.verdict}</span>'
    overloaded = result.outcome.evidence.suspensions
    warning = (
        f'<p class="none">The machine was overloaded during this run ({len(overloaded)} times, first:'
        f" {escape(overloaded[0])}); figures in time are doubtful.</p>"
        if overloaded
        else ""
    )
    return (
        f'<div class="head"><h1>{escape(result.scenario.name)}</h1>{verdict}</div>'
        f'<p>{escape(result.scenario.description)}</p><p class="soft">topology {escape(result.topology_name)},'
        f" world {escape(result.world)}, wire {escape(result.wire)}, seed {result.seed}</p>{warning}"
    )


def _figures(result: Result) -> str:
    figures = []
    if result.recoveries:
        done = [r.recovered_at - r.fault.at for r in result.recoveries if r.recovered_at and r.fault.at is not None]
        figures.append(("slowest recovery", f"{max(done) / 1e6:.1f} ms" if done else "never"))
    for client, numbers in result.workload.items():
        rest = f"{numbers['lost']} lost, longest gap {numbers['longest_gap_ms']:.1f} ms"
        figures.append((f"{client}: committed, {rest}", f"{numbers['committed']:,}"))
    cells = (f'<div class="figure"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in figures)
    return f'<div class="figures">{"".join(cells)}</div>'


def _legend() -> str:
    entries = (
        (timeline.UP, "path up, session ready"),
        (timeline.DOWN, "path down, session broken"),
        (timeline.ABSENT, "not there yet"),
        ("#fbe3b3", "fault"),
    )
    spans = (f'<span><i class="swatch" style="background:{colour}"></i>{words}</span>' for colour, words in entries)
    return f'<p class="legend soft">{"".join(spans)} time from the start of the load; bars are commits</p>'


def _close_looks(result: Result) -> str:
    """For each fault that was noticed the moments around it, enlarged."""
    shown: list[str] = []
    evidence = result.outcome.evidence
    for fault in evidence.faults:
        moments = _moments(result, fault)
        span = timeline.around(evidence, fault, moments)
        if span is not None and len(shown) < CLOSE_LOOKS_MAX:
            heading = f"<h2>Around {escape(fault.kind)} {escape(fault.target)}</h2>"
            shown.append(f'{heading}<div class="card">{timeline.draw(evidence, span)}</div>')
    return "\n".join(shown)


def _moments(result: Result, fault: FaultRecord) -> list[int]:
    found = []
    for recovery in result.recoveries:
        if recovery.fault is fault:
            found.append(recovery.detected_at)
            if recovery.recovered_at is not None:
                found.append(recovery.recovered_at)
    return found


def _table(heads: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """`heads` are names and whether the column is of numbers; cells are HTML."""
    numbers = [' class="number"' if number else "" for _, number in heads]
    head = "".join(f"<th{attribute}>{escape(name)}</th>" for (name, _), attribute in zip(heads, numbers, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{attribute}>{cell}</td>" for cell, attribute in zip(row, numbers, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


_MARKS = {True: '<span class="mark ok">ok</span>', False: '<span class="mark no">FAILED</span>',
          None: '<span class="mark none">not exercised</span>'}  # fmt: skip


def _checks(result: Result) -> str:
    rows = (
        (_MARKS[check.ok], escape(check.name), escape(check.detail), str(check.exercised)) for check in result.checks
    )
    return _table([("", False), ("check", False), ("found", False), ("looked at", True)], rows)


def _recoveries(result: Result) -> str:
    if not result.recoveries:
        return '<p class="soft">No node noticed a fault in its paths or sessions.</p>'
    evidence = result.outcome.evidence
    rows = []
    for recovery in result.recoveries:
        assert recovery.fault.at is not None
        back = recovery.recovered_at
        rows.append(
            (
                escape(f"{recovery.fault.kind} {recovery.fault.target}"),
                escape(evidence.session_name(recovery.session)),
                f"{(recovery.detected_at - recovery.fault.at) / 1e6:.3f} ms",
                f"{(back - recovery.fault.at) / 1e6:.3f} ms" if back is not None else "never",
                str(recovery.epoch),
            )
        )
    heads = [("fault", False), ("stream", False), ("noticed after", True), ("works again after", True), ("epoch", True)]
    return _table(heads, rows)


def _workload(result: Result) -> str:
    rows = (
        (
            escape(client), f"{n['committed']:,}", str(n["lost"]), f"{n['p50_us']:,.1f} us", f"{n['p99_us']:,.1f} us",
            f"{n['longest_gap_ms']:.1f} ms",
        )
        for client, n in result.workload.items()
    )  # fmt: skip
    heads = [("client", False), *((name, True) for name in ("committed", "lost", "p50", "p99", "longest gap"))]
    return _table(heads, rows)


def _again(result: Result) -> str:
    command = f"lab run {result.scenario.name} --world {result.world} --seed {result.seed}"
    exactly = " It gives the same run, to the bit." if result.world == "sim" else ""
    return f'<p class="soft">Again: <code>{escape(command)}</code>{exactly} schedule hash {result.schedule_hash}</p>'
