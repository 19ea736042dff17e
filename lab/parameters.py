"""Named parameters with units, as faults and expectations take them in a scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from emul.fault_kinds import ROLES, check_queue_pairs
from lab import units
from lab.errors import did_you_mean

COUNT_MAX = 1_000_000


class ParameterKind(Enum):
    """What a parameter's value may be."""

    DURATION = "duration"
    """Kept in ns, under the parameter's name with `_ns`."""
    SIZE = "size"
    """Kept in bytes, under the parameter's name with `_bytes`."""
    COUNT = "count"
    """A whole number from 1."""
    PROBABILITY = "probability"
    """Above 0, at most 1."""
    END = "end"
    """The node or switch at one end of the target cable."""
    NUMBER = "number"
    """A whole number between the parameter's own bounds."""
    WORD = "word"
    """One of the parameter's words."""
    CLIENT = "client"
    """A client that the target node runs."""
    QUEUE_PAIRS = "queue pairs"
    """A role of queue pairs, or a queue pair's number."""


_SUFFIX = {ParameterKind.DURATION: "_ns", ParameterKind.SIZE: "_bytes"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its name in a file, what it takes, what it is for."""

    name: str
    kind: ParameterKind
    help: str
    required: bool = False
    words: tuple[str, ...] = ()
    least: int = 1
    most: int = COUNT_MAX

    @property
    def key(self) -> str:
        """Its name once read, with the unit last: `within` becomes `within_ns`."""
        return self.name + _SUFFIX.get(self.kind, "")

    def parse(self, value: object) -> int | float | str:
        """The value in the unit of `key`. Raises ValueError with what was expected and found."""
        if self.kind is ParameterKind.NUMBER:
            return _whole(value, self.least, self.most)
        if self.kind is ParameterKind.WORD:
            return _word(value, self.words)
        return _PARSERS[self.kind](value)

    def schema(self) -> dict[str, object]:
        """JSON Schema of the value."""
        own: dict[str, object] = {}
        if self.kind is ParameterKind.NUMBER:
            own = {"minimum": self.least, "maximum": self.most}
        elif self.kind is ParameterKind.WORD:
            own = {"enum": list(self.words)}
        return {**_SCHEMAS[self.kind], **own, "description": self.help}


def parse_count(value: object) -> int:
    """A whole number, 1 ... COUNT_MAX. Raises ValueError."""
    return _whole(value, 1, COUNT_MAX)


def _whole(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"expected a whole number, {least} to {most}, found {units.found(value)}")
    return value


def _word(value: object, words: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in words:
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        raise ValueError(f"expected {' or '.join(words)}, found {units.found(value)}{hint}")
    return value


def _queue_pairs(value: object) -> int | str:
    try:
        return check_queue_pairs(value)
    except ValueError:
        expected = f"{', '.join(ROLES)} or a queue pair's number"
        hint = did_you_mean(value, ROLES) if isinstance(value, str) else ""
        raise ValueError(f"expected {expected}, found {units.found(value)}{hint}") from None


def _probability(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"expected a probability above 0, at most 1, found {units.found(value)}")
    return float(value)


def _end(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected the node or switch at one end of the cable, found {units.found(value)}")
    return value


def _client(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a client, found {units.found(value)}")
    return value


_PARSERS: dict[ParameterKind, Callable[[object], int | float | str]] = {
    ParameterKind.DURATION: units.parse_duration,
    ParameterKind.SIZE: units.parse_size,
    ParameterKind.COUNT: parse_count,
    ParameterKind.PROBABILITY: _probability,
    ParameterKind.END: _end,
    ParameterKind.CLIENT: _client,
    ParameterKind.QUEUE_PAIRS: _queue_pairs,
}
_SCHEMAS: dict[ParameterKind, dict[str, object]] = {
    ParameterKind.DURATION: {"type": ["string", "integer"], "pattern": units.DURATION_PATTERN, "maximum": 0},
    ParameterKind.SIZE: {"type": ["string", "integer"], "pattern": units.SIZE_PATTERN, "maximum": 0},
    ParameterKind.COUNT: {"type": "integer", "minimum": 1, "maximum": COUNT_MAX},
    ParameterKind.PROBABILITY: {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ParameterKind.END: {"type": "string"},
    ParameterKind.CLIENT: {"type": "string"},
    ParameterKind.NUMBER: {"type": "integer"},
    ParameterKind.WORD: {"type": "string"},
    ParameterKind.QUEUE_PAIRS: {"anyOf": [{"enum": list(ROLES)}, {"type": "integer", "minimum": 1}]},
}
