"""Figures with units, as files and the command line write them.

Durations become integer ns, sizes bytes, data rates bits a second. A figure without a unit is refused (except 0), as
nobody can tell what it means. Knows nothing of files; errors are `ValueError` with what was expected and found.
"""

from __future__ import annotations

import re
from decimal import Decimal

DURATION_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000}
SIZE_UNITS = {
    "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}

DURATION_MAX_NS = 24 * 60 * DURATION_UNITS["min"]
SIZE_MAX_BYTES = 1 << 40
RATE_MAX_BPS = 10**12

DURATION_EXAMPLE = "a duration such as 500ms (ns, us, ms, s, min)"
SIZE_EXAMPLE = "a size such as 16MiB (B, KiB, MiB, GiB, kB, MB, GB)"
RATE_EXAMPLE = "a rate such as 1gbit (bit, kbit, mbit, gbit a second)"

DURATION_PATTERN = r"^(0|[0-9]+(\.[0-9]+)? ?(ns|us|ms|s|min))$"
SIZE_PATTERN = r"^(0|[0-9]+(\.[0-9]+)? ?(B|kB|MB|GB|KiB|MiB|GiB))$"
RATE_PATTERN = r"^(0|[0-9]+(\.[0-9]+)? ?(bit|kbit|mbit|gbit))$"
_FIGURE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")


def parse_duration(text: object) -> int:
    """A duration in ns, 0 ... 24 hours. Raises ValueError."""
    return _parse(text, DURATION_UNITS, DURATION_EXAMPLE, DURATION_MAX_NS, "24 hours")


def parse_size(text: object) -> int:
    """A size in bytes, 0 ... 1 TiB. Raises ValueError."""
    return _parse(text, SIZE_UNITS, SIZE_EXAMPLE, SIZE_MAX_BYTES, "1024GiB")


def parse_rate(text: object) -> int:
    """A data rate in bits a second, 0 ... 1000 gbit. Raises ValueError."""
    return _parse(text, RATE_UNITS, RATE_EXAMPLE, RATE_MAX_BPS, "1000gbit")


def format_duration(duration_ns: int) -> str:
    """`duration_ns` in the largest unit (up to s) that needs no more than three decimals: 1.5ms, 2s, 0s."""
    for unit in ("s", "ms", "us"):
        if duration_ns % (DURATION_UNITS[unit] // 1000) == 0 and duration_ns >= DURATION_UNITS[unit]:
            return f"{_shortest(duration_ns, DURATION_UNITS[unit])}{unit}"
    return f"{duration_ns}ns" if duration_ns else "0s"


def format_size(size_bytes: int) -> str:
    """`size_bytes` in the largest binary unit that divides it: 16MiB, 1536B."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def format_rate(rate_bps: int) -> str:
    """`rate_bps` in the largest unit that needs no more than three decimals: 1gbit, 2.5gbit."""
    for unit in ("gbit", "mbit", "kbit"):
        if rate_bps >= RATE_UNITS[unit] and rate_bps % (RATE_UNITS[unit] // 1000) == 0:
            return f"{_shortest(rate_bps, RATE_UNITS[unit])}{unit}"
    return f"{rate_bps}bit"


def _shortest(amount: int, unit: int) -> str:
    whole, rest = divmod(amount, unit)
    decimals = f"{rest * 1000 // unit:03d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)


def _parse(text: object, units: dict[str, int], example: str, largest: int, largest_text: str) -> int:
    shown = found(text)
    if isinstance(text, int) and not isinstance(text, bool) and text == 0:
        return 0
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f"expected {example}, found {shown} without a unit")
    if not isinstance(text, str):
        raise ValueError(f"expected {example}, found {shown}")
    match = _FIGURE.fullmatch(text.strip())
    if match is None:
        why = ", which is negative" if text.strip().startswith("-") else ""
        raise ValueError(f"expected {example}, found {shown}{why}")
    figure, unit = Decimal(match[1]), match[2]
    if not unit and figure == 0:
        return 0
    if unit not in units:
        raise ValueError(f"expected {example}, found {shown}{_unit_hint(unit, units)}")
    amount = figure * units[unit]
    if amount != int(amount):
        raise ValueError(f"expected a whole number of {next(iter(units))}, found {shown}")
    if amount > largest:
        raise ValueError(f"expected at most {largest_text}, found {shown}")
    return int(amount)


def _unit_hint(unit: str, units: dict[str, int]) -> str:
    if not unit:
        return " without a unit"
    for known in units:
        if known.lower() == unit.lower():
            return f" (did you mean {known}?)"
    return ""


def found(value: object) -> str:
    """How messages show what a file holds: quoted text, YAML's words for the rest, cut to 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:56] + "..." + text[-1:]
