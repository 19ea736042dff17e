"""`python -m ccm.journal replay FILE...`: replays journals in this process.

Exit status: 0 the same actions followed; 1 others did; 2 the file is no journal, or damaged.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ccm.journal.codec import JournalError
from ccm.journal.replay import replay


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m ccm.journal", description="Journals of connection managers.")
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser("replay", help="give a new manager the same events, and compare its actions")
    again.add_argument("files", nargs="+", metavar="FILE")
    again.add_argument("--status", action="store_true", help="print what the last manager says of itself, as JSON")
    args = parser.parse_args(arguments)
    worst = 0
    for name in args.files:
        worst = max(worst, replay_file(Path(name), status=args.status))
    return worst


def replay_file(path: Path, *, status: bool) -> int:
    """Replays one journal, tells how it went, and with `status` what its last manager says; gives the exit status."""
    try:
        with path.open(encoding="utf-8") as file:
            found = replay(file)
    except (JournalError, OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else f"no text: {error}" if _is_binary(error) else error
        sys.stderr.write(f"{path}: {what}\n")
        return 2
    counts = f"{found.incarnations} incarnations, {found.events} events, {found.turns} turns, {found.actions} actions"
    verdict = found.difference or "the same actions"
    sys.stderr.write(f"{path}: {counts}: {verdict}\n")
    if status:
        sys.stdout.write(json.dumps(found.status, indent=2) + "\n")
    return 1 if found.difference else 0


def _is_binary(error: Exception) -> bool:
    return isinstance(error, UnicodeDecodeError)


if __name__ == "__main__":
    sys.exit(main())
