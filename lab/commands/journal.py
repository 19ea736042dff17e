"""`lab journal`: replays what a manager was told, and compares what it wanted."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.commands._labs import check_node, input_error, open_lab
from lab.errors import did_you_mean

HELP = "replay managers' journals outside of the lab, and compare their actions"
JOURNAL = "journal.log"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "what", metavar="FILE | N NODE", nargs="+",
        help="journals, directories of runs (all journals in them), or a running lab and one of its nodes",
    )  # fmt: skip
    parser.add_argument("--status", action="store_true", help="print what the last manager says of itself, as JSON")


def main(args: argparse.Namespace) -> int:
    """0: the same actions followed; 1: others did; 2: no journal, or a damaged one."""
    from ccm.journal.__main__ import replay_file

    worst = 0
    for file in find(args.what):
        worst = max(worst, replay_file(file, status=args.status))
    return worst


def find(what: list[str]) -> list[Path]:
    """The files that are meant. Raises InputError."""
    if len(what) == 2 and not any("/" in word or Path(word).is_file() for word in what):
        return [_of_node(*what)]
    files: list[Path] = []
    for word in what:
        path = Path(word)
        found = sorted(path.rglob(JOURNAL)) if path.is_dir() else [path]
        if not found:
            raise input_error(f"{word}: no {JOURNAL} in this directory: its topology has no `journal: true`")
        if not found[0].is_file():
            raise input_error(f"{word}: there is no such file{_nearby(path)}")
        files += found
    return files


def _of_node(name: str, node: str) -> Path:
    fabric = open_lab(name)
    try:
        path = fabric.node_directory(check_node(fabric, node, with_fabric=False)) / JOURNAL
    finally:
        fabric.detach()
    if not path.is_file():
        raise input_error(f"{node} keeps no journal: `lab up TOPOLOGY --journal`, or `journal: true` in the topology")
    return path


def _nearby(path: Path) -> str:
    names = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)
