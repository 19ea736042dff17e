"""`lab logs`: what the processes of a node have said."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lab.commands._labs import FABRIC_NODE, check_node, input_error, open_lab
from lab.errors import EXIT_PASS

HELP = "show what the processes of a node have logged"
POLL_S = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", metavar="N", help="the lab")
    parser.add_argument("node", metavar="NODE", help='a node, or "fabric"')
    parser.add_argument("process", metavar="PROCESS", nargs="?", help='"host" or an adapter (default: all)')
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")


def main(args: argparse.Namespace) -> int:
    """Prints the logs one after another, each line with its process in front where there are several."""
    fabric = open_lab(args.name)
    node = check_node(fabric, args.node)
    directory = fabric.directory if node == FABRIC_NODE else fabric.node_directory(node)
    fabric.detach()
    logs = {path.stem: path for path in sorted(directory.glob("*.log"))}
    if args.process is not None:
        if args.process not in logs:
            raise input_error(f'{node} has no log of "{args.process}"; there is: {", ".join(logs) or "none"}')
        logs = {args.process: logs[args.process]}
    offsets = dict.fromkeys(logs, 0)
    _print_new(logs, offsets)
    while args.follow and directory.exists():
        time.sleep(POLL_S)
        _print_new(logs, offsets)
    return EXIT_PASS


def _print_new(logs: dict[str, Path], offsets: dict[str, int]) -> None:
    width = max((len(name) for name in logs), default=0)
    for name, path in logs.items():
        with path.open("rb") as log:
            log.seek(offsets[name])
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        offsets[name] += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            sys.stdout.write(f"{name:<{width}}  {line}\n" if len(logs) > 1 else f"{line}\n")
    sys.stdout.flush()
