"""`lab graph`: a topology as a drawing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.errors import EXIT_PASS, InputError

HELP = "draw a topology (SVG)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("topology", metavar="TOPOLOGY", help="a file, or the name of one that ships")
    parser.add_argument("-o", "--output", metavar="FILE.svg", type=Path, help="where to write it (otherwise: stdout)")


def main(args: argparse.Namespace) -> int:
    """Writes the drawing."""
    from lab.drawing import draw
    from lab.topology import Topology

    svg = draw(Topology.load(args.topology))
    if args.output is None:
        sys.stdout.write(svg)
        return EXIT_PASS
    try:
        args.output.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise InputError(str(args.output), None, None, f"can't be written: {error.strerror or error}") from None
    print(f"{args.output}: {args.topology}", file=sys.stderr)
    return EXIT_PASS
