"""`lab campaign`: many runs, each with a schedule of its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lab.commands._labs import input_error
from lab.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS

if TYPE_CHECKING:
    from lab.campaign.runs import Ran
    from lab.scenario import Scenario
    from lab.topology import Topology

HELP = "many runs with random schedules; what fails can be replayed and shrunk"
RUNS_MAX = 10_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lab campaign`."""
    what = "a topology: each run has random faults; or a scenario: its faults, at moments that differ a little"
    parser.add_argument("what", metavar="TOPOLOGY|SCENARIO", help=f"{what} (a file, or the name of one that ships)")
    parser.add_argument("--runs", type=int, metavar="N", required=True, help="how many")
    parser.add_argument("--seed", type=int, metavar="S", help="of the first run; the others count on (default: random)")
    parser.add_argument("--jobs", type=int, metavar="J", help="runs at once (default: the cores for sim, else 1)")
    parser.add_argument("--world", default="sim", help="sim (default), netns or docker")
    parser.add_argument("--report", metavar="DIR", help="where failed runs leave their directories")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def main(args: argparse.Namespace) -> int:
    """Makes the runs; 1 when one failed, 4 when one was inconclusive."""
    from lab.api import fresh_seed
    from lab.campaign.runs import JOBS_MAX, run_all, tasks_of
    from lab.worlds import WORLDS

    if not 1 <= args.runs <= RUNS_MAX:
        raise input_error(f"--runs: expected 1 to {RUNS_MAX}, found {args.runs}")
    if args.world not in WORLDS:
        raise input_error(f'unknown world "{args.world}"; expected one of {", ".join(WORLDS)}')
    if args.seed is not None and args.seed < 0:
        raise input_error(f"--seed: expected 0 or more, found {args.seed}")
    jobs = args.jobs if args.jobs is not None else (len(os.sched_getaffinity(0)) if args.world == "sim" else 1)
    if not 1 <= jobs <= JOBS_MAX:
        raise input_error(f"--jobs: expected 1 to {JOBS_MAX}, found {jobs}")
    topology, scenario = read(args.what)
    seed = fresh_seed() if args.seed is None else args.seed
    report = Path(args.report) if args.report else None
    stream = sys.stderr if args.json else sys.stdout
    print(f"{args.runs} runs on {topology.name} in {args.world}, seeds from {seed}, {jobs} at a time", file=stream)
    tasks = list(tasks_of(topology, scenario, world=args.world, seed=seed, runs=args.runs, report=report))
    found = run_all(tasks, jobs, lambda ran: _tell(ran, args.what, args.world, stream))
    wrong = [ran for ran in found if ran.verdict != "pass"]
    faults = sum(ran.faults for ran in found)
    print(f"{len(found) - len(wrong)} of {len(found)} runs passed, {faults} faults", file=stream)
    if args.json:
        summary = {
            "what": args.what, "topology": topology.name, "world": args.world, "seed": seed, "runs": len(found),
            "passed": len(found) - len(wrong), "faults": faults, "not_passed": [ran.to_json() for ran in wrong],
        }  # fmt: skip
        print(json.dumps(summary, indent=2))
    verdicts = {ran.verdict for ran in wrong}
    return EXIT_FAIL if "fail" in verdicts else EXIT_INCONCLUSIVE if verdicts else EXIT_PASS


def read(name: str) -> tuple[Topology, Scenario | None]:
    """The topology `name`, or the scenario `name` and its topology. Raises InputError."""
    from lab.resources import locate, shipped
    from lab.scenario import Scenario
    from lab.topology import Topology
    from lab.yaml_tree import read_document

    kind = "scenario" if name in shipped("scenario") or name not in shipped("topology") else "topology"
    if "scenario" not in read_document(locate(name, kind)).root.items:
        return Topology.load(name), None
    scenario = Scenario.load(name)
    return scenario.load_topology(), scenario


def _tell(ran: Ran, what: str, world: str, stream: TextIO) -> None:
    """A line for each run that did not pass, with the command that repeats it."""
    if ran.verdict == "pass":
        return
    again = f"lab campaign {what} --world {world} --runs 1 --seed {ran.seed}"
    if ran.report:
        again = f"lab replay {ran.report}"
    for line in (f"seed {ran.seed}: {ran.verdict}, {ran.faults} faults", *(f"  {text}" for text in ran.problems)):
        print(line, file=stream)
    print(f"  again: {again}", file=stream, flush=True)
