"""`lab logs`: what the processes of a node have said, in the order in which they said it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.commands._labs import FABRIC_NODE, check_node, input_error, open_lab
from lab.errors import EXIT_PASS

HELP = "show what the processes of a node have logged"
POLL_S = 0.2
NS_PER_S = 1_000_000_000
OWN_FIELDS = ("at_ns", "node", "event")
"""What each line of a log has (docs/logs.md); all else is the event's own."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", metavar="N", help="the lab")
    parser.add_argument("node", metavar="NODE", help='a node, or "fabric"')
    parser.add_argument("process", metavar="PROCESS", nargs="?", help='"host" or an adapter (default: all)')
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("-n", "--tail", metavar="LINES", type=int, help="only so many of the lines that are there")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line, as the processes write them, with their process"
    )


def main(args: argparse.Namespace) -> int:
    """Prints the logs, each line with its time and process."""
    if args.tail is not None and args.tail < 0:
        raise input_error(f"--tail: expected a number of lines from 0, found {args.tail}")
    fabric = open_lab(args.name)
    node = check_node(fabric, args.node)
    directory = fabric.directory if node == FABRIC_NODE else fabric.node_directory(node)
    fabric.detach()
    logs = {path.stem: path for path in sorted(directory.glob("*.log")) if path.stem != "journal"}
    if args.process is not None:
        if args.process not in logs:
            raise input_error(f'{node} has no log of "{args.process}"; there is: {", ".join(logs) or "none"}')
        logs = {args.process: logs[args.process]}
    show = Lines(logs, as_json=args.json)
    show.print_new(args.tail)
    while args.follow and directory.exists():
        time.sleep(POLL_S)
        show.print_new()
    return EXIT_PASS


class Lines:
    """The lines of several logs, merged by their time."""

    def __init__(self, logs: Mapping[str, Path], *, as_json: bool) -> None:
        self._logs = logs
        self._as_json = as_json
        self._offsets = dict.fromkeys(logs, 0)
        self._width = max((len(name) for name in logs), default=0)
        self._begun: int | None = None

    def print_new(self, last: int | None = None) -> None:
        """What came since the last call; of that the `last` lines, if given."""
        fresh = [line for name in self._logs for line in self._read(name)]
        fresh.sort(key=lambda line: line[0])  # stable: what has no time stays behind the line before it
        if self._begun is None and fresh:
            self._begun = next((at for at, _, _ in fresh if at), None)
        shown = fresh if last is None else fresh[len(fresh) - last :] if last else []
        for at, name, content in shown:
            sys.stdout.write(self._line(at, name, content) + "\n")
        sys.stdout.flush()

    def _read(self, name: str) -> Iterator[tuple[int, str, dict[str, Any] | str]]:
        with self._logs[name].open("rb") as log:
            log.seek(self._offsets[name])
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offsets[name] += len(whole)
        at = 0
        for line in whole.decode("utf-8", "replace").splitlines():
            content = parsed(line)
            if isinstance(content, dict):
                at = int(content["at_ns"])
            yield at, name, content

    def _line(self, at: int, name: str, content: dict[str, Any] | str) -> str:
        if self._as_json:
            fields = content if isinstance(content, dict) else {"text": content}
            return json.dumps({"process": name, **fields})
        since = f"{(at - (self._begun or at)) / NS_PER_S:10.3f}"
        text = content if isinstance(content, str) else worded(content)
        return f"{since}  {name:<{self._width}}  {text}" if len(self._logs) > 1 else f"{since}  {text}"


def parsed(line: str) -> dict[str, Any] | str:
    """A structured line as its fields; anything else (a traceback) as it is."""
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    return fields if isinstance(fields, dict) and isinstance(fields.get("at_ns"), int) else line


def worded(fields: Mapping[str, Any]) -> str:
    """The event, then what belongs to it as key=value."""
    rest = (f"{key}={_value(value)}" for key, value in fields.items() if key not in OWN_FIELDS)
    return " ".join([f"{fields.get('event', '?'):<16}", *rest]).rstrip()


def _value(value: object) -> str:
    if isinstance(value, dict):  # counters: those that are not 0
        return "{" + " ".join(f"{key}={_value(each)}" for key, each in value.items() if each) + "}"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if " " in text and isinstance(value, str) else text
