"""A topology as SVG, with a layout of its own: no other program is needed.

Two nodes face each other, cables between them. Otherwise nodes stand in two rows with their ports towards the middle,
where the switches are. Each adapter number has one colour, and so has the cable that leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from lab.topology import Cable, End, Node, Topology
from lab.units import format_duration, format_rate, format_size

COLOURS = ("#0f766e", "#c2410c", "#4338ca", "#a16207", "#be185d", "#15803d", "#0369a1", "#7e22ce")
_INK, _SOFT, _LINE, _PAPER, _PANEL = "#1e293b", "#64748b", "#cbd5e1", "#ffffff", "#f8fafc"
_NODE_HEIGHT, _CHIP_WIDTH, _CHIP_HEIGHT, _CHIP_GAP = 96, 52, 24, 12
_MARGIN, _GAP, _TITLE = 36, 52, 56
_SWITCH_WIDTH, _SWITCH_HEIGHT = 132, 44
_LABELLED_CABLES_MAX = 16
"""With more cables than this names are left to tooltips."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a cable is plugged in, and the direction in which it leaves."""

    x: float
    y: float
    dx: float
    dy: float


class _Sheet:
    """Collects shapes, and knows how large the drawing grew."""

    def __init__(self) -> None:
        self.below: list[str] = []
        self.above: list[str] = []
        self.width = 0.0
        self.height = 0.0
        self.spots: dict[End, _Spot] = {}

    def box(self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str, radius: int = 10) -> None:
        self.above.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"/>'
        )
        self.width, self.height = max(self.width, x + width), max(self.height, y + height)

    def text(
        self, x: float, y: float, words: str, *, size: int = 13, colour: str = _INK, bold: bool = False,
        anchor: str = "middle",
    ) -> None:  # fmt: skip
        weight = ' font-weight="600"' if bold else ""
        self.above.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )


def draw(topology: Topology) -> str:
    """The drawing, a whole SVG document."""
    sheet = _Sheet()
    nodes = list(topology.nodes.values())
    if len(nodes) == 2 and not topology.switches:
        _face_to_face(sheet, nodes, topology)
    else:
        _in_rows(sheet, nodes, topology)
    labelled = len(topology.cables) <= _LABELLED_CABLES_MAX
    for cable in topology.cables.values():
        _draw_cable(sheet, topology, cable, labelled=labelled)
    width, height = max(sheet.width + _MARGIN, 320), sheet.height + _MARGIN
    sheet.text(_MARGIN, 34, topology.name, size=18, bold=True, anchor="start")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">',
            f"<title>{escape(topology.name)}</title>",
            f'<rect width="100%" height="100%" fill="{_PAPER}"/>',
            *sheet.below,
            *sheet.above,
            "</svg>",
            "",
        ]
    )


def _node_width(node: Node) -> float:
    chips = len(node.adapters) * (_chip_width(node) + _CHIP_GAP) + _CHIP_GAP
    return max(chips, 150, 9 * len(node.name) + 40, 5.6 * max(map(len, _facts(node))) + 16)


def _chip_width(node: Node) -> float:
    return max(_CHIP_WIDTH, 7.5 * max(len(name) for name in node.adapters) + 14)


def _face_to_face(sheet: _Sheet, nodes: list[Node], topology: Topology) -> None:
    rows = max(len(node.adapters) for node in nodes)
    height = max(_NODE_HEIGHT + 20, 64 + rows * (_CHIP_HEIGHT + 22))
    left_width = _node_width(nodes[0]) + 30
    apart = 240
    for node, x, width, side in (
        (nodes[0], _MARGIN, left_width, 1),
        (nodes[1], _MARGIN + left_width + apart, _node_width(nodes[1]) + 30, -1),
    ):
        sheet.box(x, _TITLE, width, height, fill=_PANEL, stroke=_LINE, radius=14)
        middle = x + width / 2 - side * _chip_width(node) / 4
        sheet.text(middle, _TITLE + 30, node.name, size=17, bold=True)
        for line, words in enumerate(_facts(node)):
            sheet.text(middle, _TITLE + 52 + 17 * line, words, size=11, colour=_SOFT)
        for index, adapter in enumerate(node.adapters):
            edge = x + width if side > 0 else x
            y = _TITLE + height * (index + 1) / (len(node.adapters) + 1)
            _chip(sheet, node, adapter, edge - _chip_width(node) / 2, y - _CHIP_HEIGHT / 2)
            spot = _Spot(edge + side * _chip_width(node) / 2, y, side, 0)
            sheet.spots[End(node.name, adapter)] = spot


def _in_rows(sheet: _Sheet, nodes: list[Node], topology: Topology) -> None:
    half = (len(nodes) + 1) // 2
    rows = (nodes[:half], nodes[half:])
    widths = [sum(_node_width(node) + _GAP for node in row) - _GAP for row in rows]
    switches = len(topology.switches) * (_SWITCH_WIDTH + 2 * _GAP) - 2 * _GAP
    widest = max(*widths, switches)
    middle = 250 if topology.switches else 190
    x = float(_MARGIN)
    for row, width, down in zip(rows, widths, (True, False), strict=True):
        x = _MARGIN + (widest - width) / 2
        y: float = _TITLE if down else _TITLE + _NODE_HEIGHT + middle
        for node in row:
            _node_in_row(sheet, node, x, y, down=down)
            x += _node_width(node) + _GAP
    y = _TITLE + _NODE_HEIGHT + (middle - _SWITCH_HEIGHT) / 2
    x = _MARGIN + (widest - switches) / 2
    for name in topology.switches:
        width = max(_SWITCH_WIDTH, 8.5 * len(name) + 24)
        sheet.box(x, y, width, _SWITCH_HEIGHT, fill=_INK, stroke=_INK, radius=8)
        sheet.text(x + width / 2, y + 20, name, colour=_PAPER, bold=True)
        sheet.text(x + width / 2, y + 35, "switch", size=10, colour=_LINE)
        sheet.spots[End(switch=name)] = _Spot(x + width / 2, y + _SWITCH_HEIGHT / 2, width, 0)
        x += width + 2 * _GAP


def _node_in_row(sheet: _Sheet, node: Node, x: float, y: float, *, down: bool) -> None:
    width = _node_width(node)
    sheet.box(x, y, width, _NODE_HEIGHT, fill=_PANEL, stroke=_LINE, radius=14)
    top = y + (26 if down else 44)
    sheet.text(x + width / 2, top, node.name, size=16, bold=True)
    for line, words in enumerate(_facts(node)):
        sheet.text(x + width / 2, top + 18 + 15 * line, words, size=10, colour=_SOFT)
    edge = y + _NODE_HEIGHT if down else y
    step = width / len(node.adapters)
    for index, adapter in enumerate(node.adapters):
        centre = x + step * (index + 0.5)
        _chip(sheet, node, adapter, centre - _chip_width(node) / 2, edge - _CHIP_HEIGHT / 2)
        direction = 1 if down else -1
        sheet.spots[End(node.name, adapter)] = _Spot(centre, edge + direction * _CHIP_HEIGHT / 2, 0, direction)


def _facts(node: Node) -> Iterator[str]:
    kind = "" if node.kind == "netns" else f"{node.kind}, "
    yield f"{kind}NVRAM {format_size(node.nvram_bytes)}"
    if node.clients:
        yield ", ".join(_client_words(node, client) for client in node.clients)


def _client_words(node: Node, client: str) -> str:
    chosen = node.partners.get(client)
    return client if chosen is None else f"{client} ({' '.join(chosen)})"


def _chip(sheet: _Sheet, node: Node, adapter: str, x: float, y: float) -> None:
    colour = COLOURS[node.adapters.index(adapter) % len(COLOURS)]
    sheet.box(x, y, _chip_width(node), _CHIP_HEIGHT, fill=colour, stroke=_PAPER, radius=6)
    sheet.text(x + _chip_width(node) / 2, y + 16, adapter, size=12, colour=_PAPER, bold=True)


def _draw_cable(sheet: _Sheet, topology: Topology, cable: Cable, *, labelled: bool) -> None:
    source, target = (_plug(sheet, topology, end, other) for end, other in (cable.ends, cable.ends[::-1]))
    reach = max(40.0, (abs(target.x - source.x) * abs(source.dx) + abs(target.y - source.y) * abs(source.dy)) * 0.5)
    if source.dy == target.dy != 0:  # The same row: the cable bows towards the middle.
        reach = 70 + 0.12 * abs(target.x - source.x)
    c1 = (source.x + source.dx * reach, source.y + source.dy * reach)
    c2 = (target.x + target.dx * reach, target.y + target.dy * reach)
    colour = _colour(topology, cable)
    dash = ' stroke-dasharray="7 5"' if cable.shaped else ""
    words = _cable_words(cable)
    sheet.below.append(
        f'<path d="M {source.x:g} {source.y:g} C {c1[0]:g} {c1[1]:g}, {c2[0]:g} {c2[1]:g}, {target.x:g} {target.y:g}" '
        f'fill="none" stroke="{colour}" stroke-width="2.5"{dash}><title>{escape(words)}</title></path>'
    )
    if labelled:
        # Near the port where cables may cross: in the middle, or at a switch, their labels would meet.
        t = 0.5 if source.dx else 0.8 if cable.ends[0].switch else 0.2
        _label(sheet, _bezier(t, (source.x, source.y), c1, c2, (target.x, target.y)), words, colour)


def _label(sheet: _Sheet, place: tuple[float, float], words: str, colour: str) -> None:
    width = 6.4 * len(words) + 14
    x, y = place
    sheet.box(x - width / 2, y - 10, width, 20, fill=_PAPER, stroke=colour, radius=10)
    sheet.text(x, y + 4, words, size=11, colour=colour)


def _bezier(t: float, *points: tuple[float, float]) -> tuple[float, float]:
    weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
    x = sum(weight * point[0] for weight, point in zip(weights, points, strict=True))
    y = sum(weight * point[1] for weight, point in zip(weights, points, strict=True))
    return x, y


def _plug(sheet: _Sheet, topology: Topology, end: End, other: End) -> _Spot:
    """Where the cable meets this end; cables of a switch are spread along the edge that faces the other end."""
    spot = sheet.spots[end]
    if not end.switch:
        return spot
    far = sheet.spots[other]
    if other.switch:
        side = 1 if far.x > spot.x else -1
        return _Spot(spot.x + side * spot.dx / 2, spot.y, side, 0)
    down = far.y > spot.y
    peers = sorted(_facing(sheet, topology, end, down=down))
    position = peers.index((far.x, str(other)))
    x = spot.x - spot.dx / 2 + spot.dx * (position + 1) / (len(peers) + 1)
    direction = 1 if down else -1
    return _Spot(x, spot.y + direction * _SWITCH_HEIGHT / 2, 0, direction)


def _facing(sheet: _Sheet, topology: Topology, switch: End, *, down: bool) -> Iterator[tuple[float, str]]:
    """The ports on that side of a switch, by their place from left to right."""
    for cable in topology.cables.values():
        for end, other in (cable.ends, cable.ends[::-1]):
            if end == switch and not other.switch and (sheet.spots[other].y > sheet.spots[switch].y) == down:
                yield sheet.spots[other].x, str(other)


def _colour(topology: Topology, cable: Cable) -> str:
    for end in cable.ends:
        if end.node:
            return COLOURS[topology.nodes[end.node].adapters.index(end.adapter) % len(COLOURS)]
    return _SOFT


def _cable_words(cable: Cable) -> str:
    words = [cable.name]
    if cable.delay_ns:
        words.append(format_duration(cable.delay_ns))
    if cable.rate_bps is not None:
        words.append(format_rate(cable.rate_bps))
    return " ".join(words)
