"""`lab heal`: undoes the faults of a running lab."""

from __future__ import annotations

import argparse

from lab.commands._labs import open_lab
from lab.errors import EXIT_PASS

HELP = "undo the faults that were injected into a lab, all or one"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", metavar="N", help="the lab")
    parser.add_argument("id", metavar="ID", nargs="?", type=int, help="of one fault, as `lab inject` told it")
    parser.add_argument("--list", action="store_true", help="only tell what is on")


def main(args: argparse.Namespace) -> int:
    """Undoes them, the newest first, and tells which."""
    from lab.injected import InjectedFaults

    fabric = open_lab(args.name)
    try:
        faults = InjectedFaults(fabric)
        if args.list:
            on = [each.describe() for each in faults.on()]
            print("\n".join(on) if on else "no fault is on")
            return EXIT_PASS
        healed = faults.heal(args.id)
        for each in reversed(healed):
            met = faults.met(each.id)
            print(f"{each.describe()}: undone" + ("" if met is None else f"; it has met something {met} times"))
        if not healed:
            print("no fault is on")
    finally:
        fabric.detach()
    return EXIT_PASS
