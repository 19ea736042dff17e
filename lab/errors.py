"""The lab's errors, split by whose fault they are.

`InputError`: a file or an argument is wrong; nothing was started. `MachineError`: the machine lacks something. Both end
the command with a message and the exit status of the contract; anything else that is raised is a defect of the lab.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_INPUT = 2
EXIT_MACHINE = 3
EXIT_INCONCLUSIVE = 4
EXIT_INTERRUPTED = 130
PROBLEMS_SHOWN_MAX = 20
"""A message names this many problems of a file; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where. Lines and columns count from 1; None where there is no such place."""

    file: str | None
    line: int | None
    column: int | None
    message: str

    def __str__(self) -> str:
        place = [str(part) for part in (self.file, self.line, self.column) if part is not None]
        return ":".join([*place, " " + self.message]) if place else self.message


class LabError(Exception):
    """An error that is told to the user without a traceback."""

    exit_status = EXIT_FAIL


class InputError(LabError):
    """Wrong usage or input. `problems` holds one or more, in the order of the file."""

    exit_status = EXIT_INPUT

    def __init__(self, file: str | None, line: int | None, column: int | None, message: str) -> None:
        super().__init__(file, line, column, message)
        self.problems: tuple[Problem, ...] = (Problem(file, line, column, message),)

    @classmethod
    def several(cls, problems: Sequence[Problem]) -> InputError:
        """One error for all that is wrong with an input. Raises ValueError without any problem."""
        if not problems:
            raise ValueError("an input error needs at least one problem")
        first = problems[0]
        error = cls(first.file, first.line, first.column, first.message)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:PROBLEMS_SHOWN_MAX]]
        if len(self.problems) > PROBLEMS_SHOWN_MAX:
            lines.append(f"... and {len(self.problems) - PROBLEMS_SHOWN_MAX} more")
        return "\n".join(lines)


class MachineError(LabError):
    """The machine lacks something: what (`missing`), and how to get it."""

    exit_status = EXIT_MACHINE

    def __init__(self, missing: str, how_to_get: str) -> None:
        super().__init__(missing, how_to_get)
        self.missing = missing
        self.how_to_get = how_to_get

    def __str__(self) -> str:
        return f"{self.missing}\n  to get it: {self.how_to_get}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The words " (did you mean X?)" for the nearest of `known`, empty where none is near."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    if word.lower() in lower:
        return f" (did you mean {lower[word.lower()]}?)"
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.55)
    return f" (did you mean {lower[near[0]]}?)" if near else ""
