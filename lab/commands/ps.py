"""`lab ps`: the labs of this user."""

from __future__ import annotations

import argparse
import json

from lab.commands._labs import age, table
from lab.errors import EXIT_PASS

HELP = "list labs: those that stay, runs in progress, and what dead ones left"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def main(args: argparse.Namespace) -> int:
    """Lists them."""
    from lab.fabric.registry import LabRecord, labs

    def state(record: LabRecord) -> str:
        if not record.alive:
            return "dead"
        if record.details.get("pid") is None:
            return "starting"
        return "up" if record.kept else "running"

    records = labs()
    if args.json:
        rows = [
            {
                "name": record.lab_id,
                "state": state(record),
                "topology": record.topology,
                "wire": record.details.get("wire"),
                "nodes": list(_nodes(record)),
                "started": record.details.get("started"),
                "pid": record.details.get("pid"),
                "directory": str(record.directory),
            }
            for record in records
        ]
        print(json.dumps({"labs": rows}, indent=2))
        return EXIT_PASS
    lines = [("LAB", "STATE", "TOPOLOGY", "WIRE", "NODES", "AGE")]
    for record in records:
        wire, since = str(record.details.get("wire", "?")), age(record.details.get("started"))
        lines.append((record.lab_id, state(record), record.topology, wire, str(len(_nodes(record))), since))
    print(table(lines))
    return EXIT_PASS


def _nodes(record: object) -> dict[str, object]:
    from lab.fabric.registry import LabRecord

    assert isinstance(record, LabRecord)
    nodes = record.details.get("nodes")
    return nodes if isinstance(nodes, dict) else {}
