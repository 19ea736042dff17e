"""`lab exec`: runs a program in a node of a running lab."""

from __future__ import annotations

import argparse
import os

from lab.commands._labs import check_node, input_error, open_lab

HELP = 'run a program in a node of a lab, or in its "fabric"'


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", metavar="N", help="the lab")
    parser.add_argument("node", metavar="NODE", help='a node, or "fabric": where the cables are')
    parser.add_argument("command", metavar="-- CMD...", nargs=argparse.REMAINDER, help="the program and its arguments")


def main(args: argparse.Namespace) -> int:
    """Runs it on this terminal, in the node's namespaces and with this directory; its exit status."""
    from lab.fabric.join import run_program

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise input_error("no program given: lab exec N NODE -- CMD...")
    fabric = open_lab(args.name)
    try:
        kinds, descriptors = fabric.namespaces(check_node(fabric, args.node))
    finally:
        fabric.detach()
    os.environ["LAB"], os.environ["LAB_NODE"] = fabric.lab_id, args.node
    return run_program(kinds, descriptors, command)
