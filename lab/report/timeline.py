"""The timeline of a run as SVG: commits of each stream, paths, sessions and alerts, with the faults as bands.

All rows share one scale. What happened is drawn from the history alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ccm.history import Kind
from lab.check.evidence import Evidence, FaultRecord, PathEnd, Session

WIDTH = 1080
LABEL_WIDTH = 190
BUCKETS = 300
COMMIT_ROW, STATE_ROW, ROW_GAP, GROUP_GAP = 40, 12, 8, 18
AXIS_HEIGHT, FAULT_HEIGHT = 26, 34
UP, DOWN, ABSENT = "#2f9e6e", "#d9480f", "#e2e8f0"
INK, SOFT, GRID, BAND = "#1e293b", "#64748b", "#e8edf3", "#f59f00"
STREAM_COLOURS = ("#0f766e", "#4338ca", "#0369a1", "#7e22ce", "#a16207", "#be185d")


@dataclass(frozen=True, slots=True)
class Span:
    """What the drawing covers, in ns on the history's scale."""

    start: int
    end: int

    def x(self, at: int) -> float:
        """Where a moment is; outside moments are at the edge."""
        inside = min(max(at, self.start), self.end)
        return LABEL_WIDTH + (WIDTH - LABEL_WIDTH) * (inside - self.start) / (self.end - self.start)

    def covers(self, at: int) -> bool:
        """Whether it is inside."""
        return self.start <= at <= self.end


class _Rows:
    """Collects the shapes of rows from top to bottom."""

    def __init__(self, span: Span, top: float) -> None:
        self.span = span
        self.y = top
        self.shapes: list[str] = []

    def label(self, text: str, height: float) -> None:
        middle = self.y + height / 2 + 4
        place = f'x="{LABEL_WIDTH - 12}" y="{middle:g}" text-anchor="end"'
        self.shapes.append(f'<text {place} class="row">{escape(text)}</text>')

    def segment(self, start: int, end: int, height: float, colour: str, title: str) -> None:
        left, right = self.span.x(start), self.span.x(end)
        if right - left < 0.05 and not self.span.covers(start):
            return
        place = f'x="{left:.2f}" y="{self.y:g}" width="{max(right - left, 0.8):.2f}" height="{height:g}"'
        self.shapes.append(f'<rect {place} fill="{colour}"><title>{escape(title)}</title></rect>')

    def tick(self, at: int, height: float, colour: str, title: str) -> None:
        if not self.span.covers(at):
            return
        x = self.span.x(at)
        self.shapes.append(
            f'<path d="M{x - 4:.2f} {self.y - 5:g} h8 l-4 6 z" fill="{colour}"><title>{escape(title)}</title></path>'
        )


def whole_run(evidence: Evidence) -> Span:
    """From a little before the load to a little after the close."""
    end = evidence.close_at or evidence.stopped_at
    margin = max((end - evidence.load_at) // 50, 1_000_000)
    return Span(evidence.load_at - margin, max(end, evidence.load_at + 1_000_000) + margin)


def around(evidence: Evidence, fault: FaultRecord, moments: Sequence[int]) -> Span | None:
    """A close look at a fault: from shortly before it until after the last of `moments`. None: nothing to see."""
    if fault.at is None or not moments:
        return None
    length = max(max(moments) - fault.at, 4_000_000)
    return Span(fault.at - length // 2, max(moments) + length)


def draw(evidence: Evidence, span: Span) -> str:
    """The SVG element."""
    rows = _Rows(span, AXIS_HEIGHT + FAULT_HEIGHT)
    colours: dict[int, str] = {}
    for stream in evidence.streams:
        colour = colours.setdefault(stream.client, STREAM_COLOURS[len(colours) % len(STREAM_COLOURS)])
        _commit_row(evidence, rows, stream, colour)
    rows.y += GROUP_GAP - ROW_GAP
    for end in _path_ends(evidence):
        _path_row(evidence, rows, end)
    rows.y += GROUP_GAP - ROW_GAP
    for session in evidence.sessions:
        _session_row(evidence, rows, session)
    height = rows.y + 4
    background = [*_axis(evidence, span, height), *_fault_bands(evidence, span, height)]
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {height:g}" width="100%" role="img" aria-label="timeline">',
            *background,
            *rows.shapes,
            "</svg>",
        ]
    )


def _axis(evidence: Evidence, span: Span, height: float) -> list[str]:
    step = _nice_step((span.end - span.start) / 8)
    shapes = []
    first = (span.start - evidence.load_at) // step + 1
    moment = evidence.load_at + first * step
    while moment <= span.end:
        x = span.x(moment)
        text = _ms_text((moment - evidence.load_at) / 1e6, step)
        shapes.append(f'<line x1="{x:.2f}" y1="{AXIS_HEIGHT}" x2="{x:.2f}" y2="{height:g}" stroke="{GRID}"/>')
        shapes.append(f'<text x="{x:.2f}" y="{AXIS_HEIGHT - 8}" text-anchor="middle" class="axis">{text}</text>')
        moment += step
    return shapes


def _nice_step(wanted_ns: float) -> int:
    step = 1
    while step * 10 <= wanted_ns:
        step *= 10
    return step * next(factor for factor in (1, 2, 5, 10) if step * factor >= wanted_ns)


def _ms_text(ms: float, step_ns: int) -> str:
    if step_ns >= 100_000_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if step_ns >= 1_000_000 else f"{ms:.3f} ms"


def _fault_bands(evidence: Evidence, span: Span, height: float) -> list[str]:
    shapes = []
    for number, fault in enumerate(fault for fault in evidence.faults if fault.at is not None):
        assert fault.at is not None
        end = fault.at if fault.cleared is None else fault.cleared
        if end < span.start or fault.at > span.end:
            continue
        left, right = span.x(fault.at), span.x(end)
        y = AXIS_HEIGHT + 12 + 14 * (number % 2)
        label = f"{fault.kind} {fault.target}"
        anchor, x = ("end", right) if left > WIDTH - 220 else ("start", left + 3)
        depth = height - AXIS_HEIGHT
        shapes += [
            f'<rect x="{left:.2f}" y="{AXIS_HEIGHT}" width="{max(right - left, 1.2):.2f}" height="{depth:g}"'
            f' fill="{BAND}" opacity="0.16"><title>{escape(label)}</title></rect>',
            f'<rect x="{left:.2f}" y="{AXIS_HEIGHT}" width="1.2" height="{depth:g}" fill="{BAND}"/>',
            f'<text x="{x:.2f}" y="{y}" text-anchor="{anchor}" class="fault">{escape(label)}</text>',
        ]
    return shapes


def _commit_row(evidence: Evidence, rows: _Rows, stream: Session, colour: str) -> None:
    """Commits by time as bars; the height is relative to the fullest bucket of the row."""
    rows.label(evidence.session_name(stream), COMMIT_ROW)
    span, counts = rows.span, [0] * BUCKETS
    width = (span.end - span.start) / BUCKETS
    for entry in evidence.of_session(stream, Kind.COMMITTED):
        if span.covers(entry.at):
            counts[min(int((entry.at - span.start) / width), BUCKETS - 1)] += 1
    top = max(counts, default=0) or 1
    bar = (WIDTH - LABEL_WIDTH) / BUCKETS
    bottom = rows.y + COMMIT_ROW
    path = "".join(
        f"M{LABEL_WIDTH + index * bar:.2f} {bottom:g}v{-COMMIT_ROW * count / top:.2f}h{bar:.2f}V{bottom:g}z"
        for index, count in enumerate(counts)
        if count
    )
    per_second = top / (width / 1e9)
    title = f"{evidence.session_name(stream)}: up to {per_second:,.0f} commits/s"
    rows.shapes.append(f'<line x1="{LABEL_WIDTH}" y1="{bottom:g}" x2="{WIDTH}" y2="{bottom:g}" stroke="{GRID}"/>')
    rows.shapes.append(f'<path d="{path}" fill="{colour}"><title>{escape(title)}</title></path>')
    rows.y += COMMIT_ROW + ROW_GAP


def _path_ends(evidence: Evidence) -> list[PathEnd]:
    """Every path end of which the history tells, sorted."""
    ends = set()
    for node in evidence.nodes:
        for entry in evidence.of(node, Kind.PATH_UP, Kind.PATH_DOWN):
            ends.add(PathEnd(entry.node, entry.partner, entry.extra))
    return sorted(ends)


def _path_row(evidence: Evidence, rows: _Rows, end: PathEnd) -> None:
    name = f"{evidence.node_name(end.node)}->{evidence.node_name(end.partner)} path {end.path}"
    rows.label(name, STATE_ROW)
    changes: list[tuple[int, bool | None]] = [(at, None) for at in _host_ends(evidence, end.node)]
    for entry in evidence.of(end.node, Kind.PATH_UP, Kind.PATH_DOWN):
        if (entry.partner, entry.extra) == (end.partner, end.path):
            changes.append((entry.at, entry.kind == Kind.PATH_UP))
    _states(rows, name, changes)
    rows.y += STATE_ROW + ROW_GAP


def _host_ends(evidence: Evidence, node: int) -> list[int]:
    """When a host began or ended: what the one before it had was gone then."""
    started = [entry.at for entry in evidence.of(node, Kind.HOST_STARTED)]
    return started + [fault.at for fault in evidence.faults if fault.at is not None and node in fault.nodes]


def _states(rows: _Rows, name: str, changes: list[tuple[int, bool | None]]) -> None:
    """A row of segments: up, down, or not there, from each change to the next."""
    state, since = None, rows.span.start
    for at, following in sorted(changes, key=lambda change: change[0]):
        _state_segment(rows, name, state, since, at)
        state, since = following, at
    _state_segment(rows, name, state, since, rows.span.end)


def _state_segment(rows: _Rows, name: str, state: bool | None, since: int, until: int) -> None:
    colour, word = (ABSENT, "not there") if state is None else (UP, "up") if state else (DOWN, "down")
    rows.segment(since, until, STATE_ROW, colour, f"{name}: {word} for {(until - since) / 1e6:.3f} ms")


def _session_row(evidence: Evidence, rows: _Rows, session: Session) -> None:
    name = evidence.session_name(session)
    rows.label(name, STATE_ROW)
    meaning = {Kind.READY_ALERT: True, Kind.ERROR_ALERT: False}
    alerts = evidence.of_session(session, Kind.READY_ALERT, Kind.ERROR_ALERT, Kind.SESSION_CLOSED)
    changes: list[tuple[int, bool | None]] = [(at, None) for at in _host_ends(evidence, session.node)]
    _states(rows, name, changes + [(entry.at, meaning.get(entry.kind)) for entry in alerts])
    for entry in alerts:
        if entry.kind in meaning:
            word, colour = ("ready", UP) if meaning[entry.kind] else ("error", DOWN)
            rows.tick(entry.at, STATE_ROW, colour, f"{word} alert, epoch {entry.epoch}")
    rows.y += STATE_ROW + ROW_GAP
