"""Benchmarks: each measures the lab and a reference side by side in one run, since only the ratio means something.

A benchmark is a module here with `NAME` (as `lab bench` takes it), `HELP` (one line), `REPETITIONS` (how often it
measures unless told otherwise), `COMPILED` (True where the compiled hot modules are to be measured if they can be had)
and `run(repetitions) -> list[Row]`. It interleaves lab and reference, and gives
medians. Whoever looks for benchmarks reads these names from the source; a module is imported when it runs.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from emul.compiled import is_current


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside its reference. `ratio` is value / reference_value; `target` is for people: "<= 0.8 x"."""

    case: str
    value: float
    unit: str
    reference: str
    reference_value: float
    ratio: float
    target: str
    met: bool

    def to_json(self) -> dict[str, object]:
        """As the contract of `lab bench --json` says."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bench:
    """A benchmark that there is."""

    name: str
    help: str
    module: str
    repetitions: int
    compiled: bool = False
    """It measures the hot path, so that the compiled modules are to be used where they can be had."""

    def run(self, repetitions: int | None = None) -> list[Row]:
        """Measures. Raises MachineError where something that it needs is missing."""
        loaded = importlib.import_module(self.module)
        function = cast("Callable[[int], list[Row]]", loaded.run)
        return function(self.repetitions if repetitions is None else repetitions)


def compare(case: str, value: float, unit: str, reference: str, reference_value: float, *, at_most: float) -> Row:
    """A row whose target is a bound on the ratio."""
    ratio = value / reference_value if reference_value else float("inf")
    return Row(case, value, unit, reference, reference_value, ratio, f"<= {at_most:g} x", ratio <= at_most)


def limit(case: str, value: float, unit: str, reference: str, reference_value: float, *, at_most: float) -> Row:
    """A row whose target is a bound on the value itself; the reference shows how fast the machine was meanwhile."""
    ratio = value / reference_value if reference_value else float("inf")
    return Row(case, value, unit, reference, reference_value, ratio, f"<= {at_most:g} {unit}", value <= at_most)


def at_least(
    case: str, value: float, unit: str, reference: str, reference_value: float, *, least: float | None = None
) -> Row:
    """A row whose target is a lower bound on the ratio; None: no target, the figure is to be known."""
    ratio = value / reference_value if reference_value else float("inf")
    target = "-" if least is None else f">= {least:g} x"
    return Row(case, value, unit, reference, reference_value, ratio, target, least is None or ratio >= least)


def build() -> str:
    """Which build of the hot modules is measured, for a row's name."""
    return "compiled" if is_current() else "plain Python"


def median(values: Sequence[float]) -> float:
    """The middle one (the lower of two). Raises ValueError without any."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[(len(values) - 1) // 2]


def benches() -> dict[str, Bench]:
    """All benchmarks by name, found without importing them."""
    found: dict[str, Bench] = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        facts = _facts(file)
        if "NAME" in facts:
            name = str(facts["NAME"])
            repetitions = facts.get("REPETITIONS", 5)
            assert isinstance(repetitions, int), f"{file.name}: REPETITIONS is a number"
            module, compiled = f"lab.bench.{file.stem}", bool(facts.get("COMPILED"))
            found[name] = Bench(name, str(facts.get("HELP", "")), module, repetitions, compiled)
    return found


def _facts(file: Path) -> dict[str, object]:
    """The constants in capitals that a module assigns at its top level."""
    facts: dict[str, object] = {}
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            for target in statement.targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    facts[target.id] = statement.value.value
    return facts
