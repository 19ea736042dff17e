"""`lab bench`: the lab's speed beside that of others, measured in one run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from lab.commands._labs import table
from lab.errors import EXIT_FAIL, EXIT_PASS

if TYPE_CHECKING:
    from lab.bench import Row

HELP = "run benchmarks, each beside a reference measured in the same run"
COMPILE_WITHIN_S = 600
"""How long compiling the hot modules may take before plain Python is measured."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="which (default: all); --list tells what there is")
    parser.add_argument("--json", action="store_true", help="a list of all rows on stdout")
    parser.add_argument("--repetitions", type=int, metavar="N", help="how often to measure (default: each its own)")
    parser.add_argument("--plain", action="store_true", help="measure plain Python, and compile nothing for it")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and end")


def main(args: argparse.Namespace) -> int:
    """Runs them one after another; 1 if a target was missed."""
    from lab.bench import benches
    from lab.commands._labs import input_error
    from lab.fabric.registry import unknown

    known = benches()
    if args.list:
        print(table([("NAME", "WHAT"), *((bench.name, bench.help) for bench in known.values())]))
        return EXIT_PASS
    if args.repetitions is not None and args.repetitions < 1:
        raise input_error(f"--repetitions: expected 1 or more, found {args.repetitions}")
    names = args.names or list(known)
    for name in names:
        if name not in known:
            raise unknown("benchmark", name, list(known))
    if _wants_other_build(args.plain, any(known[name].compiled for name in names)):
        return _again(args, names)
    results: list[tuple[str, list[Row]]] = []
    for name in names:
        started = time.perf_counter()
        sys.stderr.write(f"{name}: {known[name].help} ...\n")
        results.append((name, known[name].run(args.repetitions)))
        sys.stderr.write(f"{name}: {time.perf_counter() - started:.0f} s\n")
        if not args.json:
            print(render(name, results[-1][1]) + "\n")
            sys.stdout.flush()
    if args.json:
        print(
            json.dumps([{"bench": name, "rows": [row.to_json() for row in rows]} for name, rows in results], indent=2)
        )
    return EXIT_PASS if all(row.met for _, rows in results for row in rows) else EXIT_FAIL


def _wants_other_build(plain: bool, compiled: bool) -> bool:
    """Whether another process has to measure, as this one runs the wrong build of the hot modules. Compiles them where
    they are wanted and a compiler is there.
    """
    from emul.compiled import PLAIN_VARIABLE, is_current

    if plain:
        asked = PLAIN_VARIABLE not in os.environ and is_current()
        os.environ[PLAIN_VARIABLE] = "1"
        return asked
    if not compiled or is_current() or os.environ.get(PLAIN_VARIABLE):
        return False
    sys.stderr.write("compiling the hot modules first, one to three minutes, once (--plain does without) ...\n")
    try:
        done = subprocess.run([sys.executable, "-m", "lab.compile"], check=False, timeout=COMPILE_WITHIN_S)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"not compiled within {COMPILE_WITHIN_S} s, plain Python is measured\n")
        return False
    return done.returncode == 0


def _again(args: argparse.Namespace, names: list[str]) -> int:
    """The same in a new process, which loads the other build."""
    options = ["--json"] if args.json else []
    options += ["--plain"] if args.plain else []
    options += ["--repetitions", str(args.repetitions)] if args.repetitions is not None else []
    return subprocess.run([sys.executable, "-m", "lab", "bench", *names, *options], check=False).returncode


def render(name: str, rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [(name, "VALUE", "REFERENCE", "", "RATIO", "TARGET", "MET")]
    for row in rows:
        value, other = f"{row.value:.4g} {row.unit}", f"{row.reference_value:.4g} {row.unit}"
        lines.append(
            (row.case, value, other, row.reference, f"{row.ratio:.2f}", row.target, "yes" if row.met else "NO")
        )
    return table(lines)
