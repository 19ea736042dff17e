"""What the commands for labs that stay have in common: finding one, naming its nodes, telling ages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lab.errors import InputError

if TYPE_CHECKING:
    from lab.fabric.client import Fabric

FABRIC_NODE = "fabric"
"""The name by which commands mean the fabric itself: where the cables are."""


def open_lab(name: str) -> Fabric:
    """The running lab called `name`. Raises InputError with what there is."""
    from lab.fabric.client import Fabric

    return Fabric.attach(name)


def check_node(fabric: Fabric, name: str, *, with_fabric: bool = True) -> str:
    """`name` if the lab has such a node (or it is "fabric"). Raises InputError with the nearest."""
    from lab.fabric import registry

    nodes = list(fabric.nodes)
    if name in nodes or (with_fabric and name == FABRIC_NODE):
        return name
    raise registry.unknown("node", name, [*nodes, *([FABRIC_NODE] if with_fabric else [])])


def age(started: object) -> str:
    """How long ago a Unix time was, in one unit: 7 s, 12 min, 3 h, 2 d."""
    if not isinstance(started, int | float):
        return "?"
    seconds = max(0, int(time.time() - started))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with two spaces between; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def input_error(message: str) -> InputError:
    """An error in what the user typed, without a place in a file."""
    return InputError(None, None, None, message)
