"""`lab run`: runs scenarios and tells the verdicts."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import replace

from lab.errors import EXIT_PASS, InputError

HELP = "run scenarios: load, faults, checks, verdict"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lab run`."""
    parser.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="a file, or the name of a scenario that ships")
    parser.add_argument("--topology", metavar="T", help="instead of the topology that the scenario names")
    parser.add_argument("--world", help="sim, netns or docker (default: what the topology's nodes are, mostly netns)")
    parser.add_argument("--wire", default="auto", choices=("auto", "xdp", "packet"), help="how adapters move frames")
    parser.add_argument("--seed", type=int, metavar="N", help="repeat a run; without it each run has its own")
    parser.add_argument("--report", metavar="DIR", help="directory of the run (default: a new one under lab-runs)")
    parser.add_argument("--json", action="store_true", help="one JSON object (several scenarios: a list) on stdout")
    parser.add_argument("--keep", action="store_true", help="leave the lab running; `lab ps` and `lab down` find it")
    parser.add_argument("--journal", action="store_true", help="each manager's journal, for `lab journal`")
    parser.add_argument("--capture", action="store_true", help="all frames, as cables/*.pcapng in the run's directory")


def main(args: argparse.Namespace) -> int:
    """Runs all scenarios; the exit status is that of the worst verdict: fail, inconclusive, pass."""
    from lab.scenario import Scenario
    from lab.topology import Topology
    from lab.worlds import WORLDS

    if args.world is not None and args.world not in WORLDS:
        raise InputError(None, None, None, f'unknown world "{args.world}"; expected one of {", ".join(WORLDS)}')
    if args.capture and args.world == "sim":
        raise InputError(None, None, None, "--capture: the simulator has no real frames; use --world netns or docker")
    if args.seed is not None and args.seed < 0:
        raise InputError(None, None, None, f"expected a seed of 0 or more, found {args.seed}")
    topology = Topology.load(args.topology) if args.topology else None
    # All files are read before anything starts: a typing mistake in the third must not cost a run of the first two.
    loaded = [Scenario.load(name, topology) for name in args.scenarios]
    played = [(scenario, topology or scenario.load_topology()) for scenario in loaded]
    if args.journal:
        played = [(scenario, replace(cluster, journal=True)) for scenario, cluster in played]
    results = [_run_one(args, scenario, cluster, several=len(played) > 1) for scenario, cluster in played]
    if args.json:
        objects = [result for result, _ in results]
        sys.stdout.write(json.dumps(objects if len(objects) > 1 else objects[0], indent=2) + "\n")
    statuses = [status for _, status in results]
    return next((status for status in (1, 4) if status in statuses), EXIT_PASS)


def _run_one(
    args: argparse.Namespace, scenario: object, cluster: object, *, several: bool
) -> tuple[dict[str, object], int]:
    """One scenario: gives its JSON object and exit status."""
    from lab.api import fresh_seed, run
    from lab.console import RunConsole, printer_for
    from lab.report import new_directory
    from lab.scenario import Scenario
    from lab.topology import Topology
    from lab.worlds import world_for

    assert isinstance(scenario, Scenario)
    assert isinstance(cluster, Topology)
    seed = fresh_seed() if args.seed is None else args.seed
    world = args.world or world_for(cluster)
    console = RunConsole(printer_for(sys.stderr if args.json else sys.stdout))
    console.begin(scenario, cluster, world, seed)
    directory = new_directory(scenario.name, seed, args.report, several=several)
    try:
        result = run(
            scenario, topology=cluster, world=world, wire=args.wire, seed=seed, report=directory, keep=args.keep,
            capture=args.capture, tell=console.progress,
        )  # fmt: skip
    except BaseException:
        with suppress(OSError):
            directory.rmdir()  # only if nothing was written: a run that never began leaves nothing
        raise
    console.end(result)
    return result.to_json(), result.exit_status
