"""`lab replay`: a recorded schedule again."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path

from lab.commands._labs import input_error

HELP = "run a recorded schedule again (schedule.json of a run's directory)"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lab replay`."""
    parser.add_argument("file", metavar="FILE", help="a schedule.json, or the directory of a run")
    parser.add_argument("--world", help="sim, netns or docker (default: where it was recorded)")
    parser.add_argument("--report", metavar="DIR", help="directory of the run (default: a new one under lab-runs)")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")


def main(args: argparse.Namespace) -> int:
    """Runs it; the exit status is that of its verdict. In the simulator, says whether it was the same run."""
    from lab.api import run
    from lab.campaign.record import load_record
    from lab.console import RunConsole, printer_for
    from lab.report import new_directory
    from lab.worlds import WORLDS

    recorded = load_record(Path(args.file))
    world = args.world or recorded.world
    if world not in WORLDS:
        raise input_error(f'unknown world "{world}"; expected one of {", ".join(WORLDS)}')
    stream = sys.stderr if args.json else sys.stdout
    console = RunConsole(printer_for(stream))
    console.begin(recorded.scenario, recorded.topology, world, recorded.seed)
    directory = new_directory(recorded.scenario.name, recorded.seed, args.report)
    try:
        result = run(
            recorded.scenario, topology=recorded.topology, world=world, seed=recorded.seed, report=directory,
            tell=console.progress,
        )  # fmt: skip
    except BaseException:
        with suppress(OSError):
            directory.rmdir()
        raise
    console.end(result)
    if world == "sim" and recorded.world == "sim" and recorded.schedule_hash:
        same = result.schedule_hash == recorded.schedule_hash
        word = "the same run, to the bit" if same else "another run than the recorded one: the code has changed since"
        print(word, file=stream)
    if args.json:
        print(json.dumps(result.to_json(), indent=2))
    return result.exit_status
