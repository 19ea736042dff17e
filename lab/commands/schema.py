"""`lab schema`: the JSON Schema of the file formats, for editors."""

from __future__ import annotations

import argparse
import json

from lab.errors import EXIT_PASS

HELP = "print the JSON Schema of topology or scenario files"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("format", choices=("topology", "scenario"))


def main(args: argparse.Namespace) -> int:
    """Prints the schema."""
    from lab.schema import scenario_schema, topology_schema

    schema = topology_schema() if args.format == "topology" else scenario_schema()
    print(json.dumps(schema, indent=2))
    return EXIT_PASS
