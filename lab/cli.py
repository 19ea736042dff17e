"""The command `lab`: finds the subcommand, runs it, turns errors into the exit statuses of the contract.

Each subcommand is a module of `lab.commands` with `HELP`, `configure(parser)` and `main(args)`. Only the module that is
called is imported; the overview takes the help lines from the source text, so that `lab --help` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol, cast

from lab.errors import (
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_PASS,
    PROBLEMS_SHOWN_MAX,
    InputError,
    LabError,
    Problem,
    did_you_mean,
)

COMMANDS = Path(__file__).parent / "commands"
EXCERPT_MAX = 160
"""Longer lines of a file are not shown."""

_EPILOGUE = """exit status: 0 verdict pass, 1 a check failed, 2 wrong usage or input, 3 the machine lacks something,
4 inconclusive, 130 interrupted. `lab COMMAND --help` tells more."""


class Command(Protocol):
    """What a module of `lab.commands` offers."""

    HELP: str
    """One line for the overview."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments."""

    def main(self, args: argparse.Namespace) -> int:
        """Does it, gives the exit status. May raise LabError."""


def command_names() -> list[str]:
    """The names of all subcommands, sorted."""
    return sorted(file.stem for file in COMMANDS.glob("*.py") if not file.stem.startswith("_"))


def load_command(name: str) -> Command:
    """Imports one subcommand."""
    return cast("Command", importlib.import_module(f"lab.commands.{name}"))


def help_line(name: str) -> str:
    """The HELP of a subcommand, read from its source without importing it."""
    tree = ast.parse((COMMANDS / f"{name}.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        named = any(isinstance(target, ast.Name) and target.id == "HELP" for target in targets)
        if named and isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            return str(ast.literal_eval(statement.value))
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `lab` with `argv` (sys.argv without the program's name); gives the exit status."""
    if argv is None:
        # Only as a process of its own: a program that calls main() keeps its handlers.
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGHUP, _interrupt)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except InputError as error:
        _tell_input_error(error)
        return error.exit_status
    except LabError as error:
        _tell(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _tell("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (`lab ps | head`); the interpreter must not complain about it at exit.
        sys.stdout = None
        return EXIT_PASS


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if arguments[:1] == ["help"] and len(arguments) > 1:
            return _dispatch([*arguments[1:], "--help"])
        print(overview())
        return EXIT_PASS if arguments else EXIT_INPUT
    if arguments[0] in ("-V", "--version"):
        print(f"ccm-lab {version()}")
        return EXIT_PASS
    name = arguments[0]
    if name not in command_names():
        return _unknown(name)
    command = load_command(name)
    parser = argparse.ArgumentParser(prog=f"lab {name}", description=command.HELP)
    command.configure(parser)
    return command.main(parser.parse_args(arguments[1:]))


def overview() -> str:
    """The text of `lab --help`."""
    names = command_names()
    width = max((len(name) for name in names), default=0)
    rows = [f"  {name:<{width}}  {help_line(name)}" for name in names]
    return "\n".join(["usage: lab COMMAND ...", "", "commands:", *rows, "", _EPILOGUE])


def version() -> str:
    """The version of the installed distribution; "unknown" in a checkout that isn't installed."""
    from importlib import metadata

    try:
        return metadata.version("ccm-lab")
    except metadata.PackageNotFoundError:
        return "unknown"


def _unknown(name: str) -> int:
    kind = "option" if name.startswith("-") else "command"
    _tell(f'unknown {kind} "{name}"{did_you_mean(name, command_names())}; `lab --help` lists the commands')
    return EXIT_INPUT


def _tell(message: str) -> None:
    print(f"lab: {message}", file=sys.stderr)


def _tell_input_error(error: InputError) -> None:
    """Each problem with the line of the file that it is about, as compilers show it."""
    for problem in error.problems[:PROBLEMS_SHOWN_MAX]:
        _tell(str(problem))
        for line in _excerpt(problem):
            print(line, file=sys.stderr)
    if len(error.problems) > PROBLEMS_SHOWN_MAX:
        _tell(f"... and {len(error.problems) - PROBLEMS_SHOWN_MAX} more")


def _excerpt(problem: Problem) -> list[str]:
    """The line of the file and a mark below the column; nothing where the line can't be shown as it is."""
    if problem.file is None or problem.line is None or problem.column is None:
        return []
    try:
        lines = Path(problem.file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    if problem.line > len(lines):
        return []
    line = lines[problem.line - 1].replace("\t", " ")
    if not line.isprintable() or len(line) > EXCERPT_MAX:
        return []
    return [f"    {line}", "    " + " " * (problem.column - 1) + "^"]


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, so that every `finally` runs."""
    raise KeyboardInterrupt
