"""Named parameters with units, as faults and expectations take them in a scenario."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from lab import units

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


_SUFFIX = {ParameterKind.DURATION: "_ns", ParameterKind.SIZE: "_bytes"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its name in a file, what it takes, what it is for."""

    name: str
    kind: ParameterKind
    help: str
    required: bool = False

    @property
    def key(self) -> str:
        """Its name once read, with the unit last: `within` becomes `within_ns`."""
        return self.name + _SUFFIX.get(self.kind, "")

    def parse(self, value: object) -> int | float | str:
        """The value in the unit of `key`. Raises ValueError with what was expected and found."""
        return _PARSERS[self.kind](value)

    def schema(self) -> dict[str, object]:
        """JSON Schema of the value."""
        return {**_SCHEMAS[self.kind], "description": self.help}


def parse_count(value: object) -> int:
    """A whole number, 1 ... COUNT_MAX. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= COUNT_MAX:
        raise ValueError(f"expected a whole number, 1 to {COUNT_MAX}, found {units.found(value)}")
    return value


def _probability(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"expected a probability above 0, at most 1, found {units.found(value)}")
    return float(value)


def _end(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected the node or switch at one end of the cable, found {units.found(value)}")
    return value


_PARSERS: dict[ParameterKind, Callable[[object], int | float | str]] = {
    ParameterKind.DURATION: units.parse_duration,
    ParameterKind.SIZE: units.parse_size,
    ParameterKind.COUNT: parse_count,
    ParameterKind.PROBABILITY: _probability,
    ParameterKind.END: _end,
}
_SCHEMAS: dict[ParameterKind, dict[str, object]] = {
    ParameterKind.DURATION: {"type": ["string", "integer"], "pattern": units.DURATION_PATTERN, "maximum": 0},
    ParameterKind.SIZE: {"type": ["string", "integer"], "pattern": units.SIZE_PATTERN, "maximum": 0},
    ParameterKind.COUNT: {"type": "integer", "minimum": 1, "maximum": COUNT_MAX},
    ParameterKind.PROBABILITY: {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ParameterKind.END: {"type": "string"},
}
