"""`lab shrink`: the smallest part of a recorded schedule that still fails."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lab.commands._labs import input_error
from lab.errors import EXIT_FAIL, EXIT_PASS

HELP = "find the smallest failing part of a recorded schedule"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lab shrink`."""
    parser.add_argument("file", metavar="FILE", help="a schedule.json, or the directory of a run")
    parser.add_argument("-o", "--output", metavar="FILE", help="where the part goes (default: beside it, .shrunk.json)")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="runs at the most (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Writes the part; 0 when there is one, 1 when the schedule doesn't fail."""
    from lab.campaign.record import load_record
    from lab.campaign.runs import Task
    from lab.campaign.shrink import Shrinker
    from lab.verdict import schedule_json

    if args.runs < 1:
        raise input_error(f"--runs: expected 1 or more, found {args.runs}")
    path = Path(args.file)
    file = path / "schedule.json" if path.is_dir() else path
    recorded = load_record(file)
    task = Task(recorded.topology, recorded.scenario, recorded.world, recorded.seed)

    def tell(scenario: object) -> None:
        steps, clients = len(shrinker.best.steps), len(shrinker.best.workload)
        sys.stdout.write(f"run {shrinker.runs}: {steps} faults and {clients} clients still fail\n")
        sys.stdout.flush()

    print(f"{file}: {len(recorded.scenario.steps)} faults, seed {recorded.seed}, in {recorded.world}")
    shrinker = Shrinker(task, runs_max=args.runs, tell=tell)
    if not shrinker.failed:
        print(f"it does not fail ({shrinker.first.verdict}): nothing to shrink")
        return EXIT_FAIL
    for problem in shrinker.first.problems:
        print(f"  {problem}")
    best = shrinker.shrink()
    source = recorded.topology.source
    text = source.read_text(encoding="utf-8") if source else str(json.loads(file.read_text())["topology_text"])
    output = Path(args.output) if args.output else file.with_suffix(".shrunk.json")
    where = str(recorded.topology.directory)
    data = schedule_json(best, text, recorded.world, recorded.wire, recorded.seed, directory=where)
    output.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    print(f"{len(best.steps)} of {len(recorded.scenario.steps)} faults, after {shrinker.runs} runs: {output}")
    return EXIT_PASS
