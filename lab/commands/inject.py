"""`lab inject`: lets a fault happen in a running lab."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from lab.commands._labs import open_lab
from lab.errors import EXIT_INPUT, EXIT_PASS

if TYPE_CHECKING:
    from lab.injected import Injected, InjectedFaults

HELP = "let a fault happen in a lab: a cable, an adapter or a host breaks"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="N", nargs="?", help="the lab")
    parser.add_argument("fault", metavar="FAULT", nargs="?", help="such as cable.cut or adapter.cqe_delay; see --list")
    parser.add_argument(
        "rest",
        metavar="[TARGET] [key=value...]",
        nargs="*",
        help="a cable, NODE.ADAPTER or a node; then the fault's parameters as in a scenario's step, such as delay=5ms. "
        "for=500ms: waits so long and undoes it; else it stays until `lab heal N`",
    )
    parser.add_argument("--list", action="store_true", help="tell what faults there are and what they take")


def main(args: argparse.Namespace) -> int:
    """Injects it, and with for=... waits and undoes it."""
    if args.list:
        print(catalogue(args.name))
        return EXIT_PASS
    if args.fault is None:
        print("lab: which lab, which fault? `lab inject --list` tells the faults, `lab ps` the labs", file=sys.stderr)
        return EXIT_INPUT
    from lab.injected import InjectedFaults, parse_step

    fabric = open_lab(args.name)
    try:
        faults = InjectedFaults(fabric)
        rest = list(args.rest)
        target = rest.pop(0) if rest and "=" not in rest[0] else None
        step = parse_step(faults.topology, args.fault, target, rest)
        injected = faults.inject(step)
        print(f"{injected.describe()}: injected")
        if step.duration_ns is not None:
            _wait_and_heal(faults, injected, step.duration_ns)
    finally:
        fabric.detach()
    return EXIT_PASS


def catalogue(word: str | None = None) -> str:
    """All faults, or those whose name contains `word`, with their parameters."""
    from lab.faults import FAULTS

    lines = []
    for name, fault in sorted(FAULTS.items()):
        if word is not None and word not in name:
            continue
        lasts = "" if fault.undone else " (can't be undone)"
        lines.append(f"{name} TARGET={fault.target.value}{lasts}\n    {fault.help}")
        for parameter in fault.parameters:
            need = " (needed)" if parameter.required else ""
            lines.append(f"    {parameter.name}={parameter.kind.value}{need}: {parameter.help}")
    return "\n".join(lines) or f"no fault has {word!r} in its name"


def _wait_and_heal(faults: InjectedFaults, injected: Injected, duration_ns: int) -> None:
    """Also where the wait is interrupted: whoever asked for an end shall have it."""
    try:
        time.sleep(duration_ns / 1e9)
    finally:
        if any(each.id == injected.id for each in faults.on()):
            faults.heal(injected.id)
            print(f"{injected.describe()}: undone")
