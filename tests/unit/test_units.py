"""Figures with units: what is accepted, and what messages say to the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import units


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("1ns", 1),
        ("20us", 20_000),
        ("500ms", 500_000_000),
        ("1.5 s", 1_500_000_000),
        ("2min", 120_000_000_000),
        ("0", 0),
        (0, 0),
        ("0s", 0),
    ],
)
def test_durations_become_nanoseconds(text: object, expected_ns: int) -> None:
    assert units.parse_duration(text) == expected_ns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", 'expected a duration such as 500ms (ns, us, ms, s, min), found "5" without a unit'),
        (5, "expected a duration such as 500ms (ns, us, ms, s, min), found 5 without a unit"),
        (True, "expected a duration such as 500ms (ns, us, ms, s, min), found true"),
        (None, "expected a duration such as 500ms (ns, us, ms, s, min), found nothing"),
        ([], "expected a duration such as 500ms (ns, us, ms, s, min), found a list"),
        ("-1s", 'expected a duration such as 500ms (ns, us, ms, s, min), found "-1s", which is negative'),
        ("1sec", 'expected a duration such as 500ms (ns, us, ms, s, min), found "1sec"'),
        ("1MS", 'expected a duration such as 500ms (ns, us, ms, s, min), found "1MS" (did you mean ms?)'),
        ("0.5ns", 'expected a whole number of ns, found "0.5ns"'),
        ("25000min", 'expected at most 24 hours, found "25000min"'),
        ("1e3ms", 'expected a duration such as 500ms (ns, us, ms, s, min), found "1e3ms"'),
        ("\u0661s", 'expected a duration such as 500ms (ns, us, ms, s, min), found "\u0661s"'),
    ],
)
def test_what_is_no_duration_is_refused_with_what_was_found(text: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        units.parse_duration(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "expected_bytes"), [("512B", 512), ("4KiB", 4096), ("16MiB", 1 << 24), ("1GiB", 1 << 30), ("1kB", 1000)]
)
def test_sizes_become_bytes(text: str, expected_bytes: int) -> None:
    assert units.parse_size(text) == expected_bytes


def test_a_size_with_a_unit_of_the_wrong_case_names_the_right_one() -> None:
    with pytest.raises(ValueError, match=r'found "16mib" \(did you mean MiB\?\)'):
        units.parse_size("16mib")


@pytest.mark.parametrize(("text", "expected_bps"), [("1gbit", 10**9), ("2.5gbit", 2_500_000_000), ("64kbit", 64_000)])
def test_rates_become_bits_a_second(text: str, expected_bps: int) -> None:
    assert units.parse_rate(text) == expected_bps


@given(st.integers(0, units.DURATION_MAX_NS))
def test_a_duration_survives_being_written_and_read(duration_ns: int) -> None:
    assert units.parse_duration(units.format_duration(duration_ns)) == duration_ns


@given(st.integers(0, units.SIZE_MAX_BYTES))
def test_a_size_survives_being_written_and_read(size_bytes: int) -> None:
    assert units.parse_size(units.format_size(size_bytes)) == size_bytes


@given(st.integers(0, units.RATE_MAX_BPS))
def test_a_rate_survives_being_written_and_read(rate_bps: int) -> None:
    assert units.parse_rate(units.format_rate(rate_bps)) == rate_bps


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
def test_whatever_a_file_holds_gives_a_figure_or_a_message(value: object) -> None:
    for parse in (units.parse_duration, units.parse_size, units.parse_rate):
        try:
            assert parse(value) >= 0
        except ValueError as error:
            assert str(error).startswith("expected ")
