"""The recovery benchmark's arithmetic: from two nodes' histories to the gap, and where it went."""

from __future__ import annotations

import pytest

from ccm.history import Entry, Kind
from emul.clock import MILLISECOND, Instant
from lab.bench.recovery import Figures, judge

A, B, MIRROR = 1, 2, 1
FAULT = 1000


def entry(at_ms: float, kind: Kind, node: int = A, client: int = 0) -> Entry:
    return Entry(Instant(int(at_ms * MILLISECOND)), kind, node, client=client)


def commits(*at_ms: float) -> list[Entry]:
    return [entry(at, Kind.COMMITTED, client=MIRROR) for at in at_ms]


def judged(*entries: Entry, ended_ms: float = FAULT + 200) -> Figures:
    figures = Figures()
    judge(sorted(entries, key=lambda e: e.at), FAULT * MILLISECOND, int(ended_ms * MILLISECOND), figures)
    return figures


def test_the_gap_is_from_the_last_write_before_to_the_first_over_the_other_path() -> None:
    figures = judged(
        *commits(900, 903, 999, 1004.5, 1005),
        entry(1001, Kind.PATH_DOWN, B), entry(1001.5, Kind.PATH_DOWN, A), entry(1003, Kind.PATH_FENCED, A),
    )  # fmt: skip
    assert figures.gaps == [5.5]
    assert figures.calm == [96.0]
    assert (figures.noticed, figures.fenced, figures.flowing) == ([1.0], [2.0], [1.5])


def test_a_pause_of_the_machine_after_the_recovery_is_not_counted() -> None:
    figures = judged(*commits(999, 1003, 1060), entry(1001, Kind.PATH_DOWN), entry(1002, Kind.PATH_FENCED))
    assert figures.gaps == [4.0]


def test_writes_that_never_flow_again_count_until_the_end_of_the_window() -> None:
    figures = judged(*commits(998, 999))
    assert figures.gaps == [201.0]
    assert figures.noticed == []


def test_the_fence_of_the_partner_is_not_the_writers() -> None:
    figures = judged(
        *commits(999, 1006),
        entry(1001, Kind.PATH_DOWN, B), entry(1002, Kind.PATH_FENCED, B), entry(1005, Kind.PATH_FENCED, A),
    )  # fmt: skip
    assert figures.fenced == [4.0]
    assert figures.gaps == [7.0]


def test_without_a_write_there_is_nothing_to_measure() -> None:
    with pytest.raises(Exception, match="no record was committed"):
        judged(entry(1001, Kind.PATH_DOWN))
