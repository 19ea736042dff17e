"""`lab validate`: checks topologies and scenarios without starting anything."""

from __future__ import annotations

import argparse

from lab.errors import EXIT_PASS, InputError, Problem

HELP = "check topologies and scenarios, without starting anything"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    what = "a topology or scenario: a file, or the name of one that ships"
    parser.add_argument("files", metavar="FILE", nargs="+", help=what)


def main(args: argparse.Namespace) -> int:
    """Checks every file, then tells of all problems at once."""
    problems: list[Problem] = []
    for name in args.files:
        try:
            print(f"{name}: {describe(name)}")
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError.several(problems)
    return EXIT_PASS


def describe(name: str) -> str:
    """Reads the topology or scenario `name`; one line on what it is. Raises InputError."""
    from lab.resources import locate, shipped
    from lab.scenario_file import scenario_from
    from lab.topology_file import topology_from
    from lab.yaml_tree import read_document

    kind = "scenario" if name in shipped("scenario") or name not in shipped("topology") else "topology"
    path = locate(name, kind)
    document = read_document(path)
    if "scenario" in document.root.items:
        scenario = scenario_from(document, None, path)
        return (
            f"scenario {scenario.name} on {scenario.topology}, {_count(len(scenario.steps), 'step')}, "
            f"{_count(len(scenario.expect), 'expectation')}"
        )
    topology = topology_from(document, path)
    return (
        f"topology {topology.name}, {_count(len(topology.nodes), 'node')}, {_count(len(topology.cables), 'cable')}, "
        f"{_count(len(topology.switches), 'switch', 'switches')}"
    )


def _count(number: int, word: str, words: str | None = None) -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"
