"""Balancing by bytes in flight: a table of what moves, stories of when, and that it comes to rest."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccm.balance import (
    LEAST_BYTES,
    PAUSE_NS,
    REST_NS,
    TOLERANCE_PERCENT,
    UNEVEN_WINDOWS,
    WINDOW_GAP_MAX_NS,
    Carried,
    LoadBalance,
    Relief,
    find_relief,
)  # fmt: skip
from ccm.client import Partner, Session
from ccm.driver.loads import SAMPLE_NS, SAMPLES, SUMMED_MAX, LoadMeter, in_flight
from ccm.events import LoadSeen, ViLoad
from ccm.needs import Needs
from ccm.stream import Stream
from emul.clock import MILLISECOND, Instant

KIB = 1024
WINDOW_NS = SAMPLES * SAMPLE_NS
BOTH = (0, 1)


def loads(*placed: tuple[int, int], able: tuple[int, ...] = BOTH) -> list[Carried]:
    """Virtual interfaces 0, 1, ... of client 7, each (path, KiB in flight)."""
    return [Carried(7, vi, path, kib * KIB, able) for vi, (path, kib) in enumerate(placed)]


def leaves(vi: int, source: int, target: int) -> Relief:
    return Relief(7, vi, source, target)


TABLE = {
    "nothing at all": ([], None),
    "nothing in flight": (loads((0, 0), (0, 0)), None),
    "too little to matter": (loads((0, 7), (0, 7)), None),
    "two heavy ones together": (loads((0, 256), (1, 4), (0, 256)), leaves(0, 0, 1)),
    "the one that fits best goes": (loads((0, 100), (0, 40), (0, 20), (1, 70)), leaves(1, 0, 1)),
    "even": (loads((0, 256), (1, 256)), None),
    "one alone can't be split": (loads((0, 512), (1, 0)), None),
    "no better elsewhere": (loads((0, 256), (1, 4)), None),
    "within the tolerance": (loads((0, 60), (0, 40), (1, 80)), None),
    "to the emptiest of three": (
        loads((0, 64), (0, 64), (1, 32), (2, 4), able=(0, 1, 2)), leaves(0, 0, 2),
    ),
    "only where it may go": (
        [Carried(7, 0, 0, 64 * KIB, (0, 1)), Carried(8, 0, 0, 64 * KIB, (0, 2)), Carried(9, 0, 1, 60 * KIB, (1,))],
        Relief(8, 0, 0, 2),
    ),
    "off a path that it may not go over any more": (
        [Carried(7, 0, 2, 64 * KIB, (0, 1)), Carried(7, 1, 2, 32 * KIB, (0, 1))], leaves(0, 2, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_what_moves(case: str) -> None:
    carried, expected = TABLE[case]
    assert find_relief(carried) == expected


def test_who_rests_stays_and_another_one_goes() -> None:
    heavy = loads((0, 256), (1, 4), (0, 256))
    assert find_relief(heavy, frozenset({(7, 0)})) == leaves(2, 0, 1)
    assert find_relief(heavy, frozenset({(7, 0), (7, 2)})) is None


class Story:
    """A partner's balance, window by window; what it wants moved is moved."""

    def __init__(self, carried: list[Carried]) -> None:
        self.balance = LoadBalance()
        self.carried = carried
        self.now = Instant(WINDOW_NS)
        self.moved: list[tuple[int, int]] = []
        """(at, VI)"""

    def windows(self, count: int, *, apart_ns: int = WINDOW_NS) -> list[int]:
        """VIs that were moved in so many windows."""
        before = len(self.moved)
        for _ in range(count):
            relief = self.balance.on_window(self.carried, now=self.now)
            if relief is not None:
                self.moved.append((self.now, relief.vi))
                self.carried = [
                    replace(each, path=relief.target) if each.vi == relief.vi else each for each in self.carried
                ]
            self.now = Instant(self.now + apart_ns)
        return [vi for _, vi in self.moved[before:]]


HEAVY = ((0, 256), (1, 4), (0, 256))


def test_a_move_comes_after_several_windows_that_agree_and_then_nothing_more() -> None:
    story = Story(loads(*HEAVY))
    assert story.windows(UNEVEN_WINDOWS - 1) == []
    assert story.windows(1) == [0]
    assert story.windows(100) == []


def test_one_window_between_that_is_even_begins_the_count_anew() -> None:
    story = Story(loads(*HEAVY))
    story.windows(UNEVEN_WINDOWS - 1)
    story.carried = loads((0, 256), (1, 256), (0, 4))
    assert story.windows(1) == []
    story.carried = loads(*HEAVY)
    assert story.windows(UNEVEN_WINDOWS - 1) == []
    assert story.windows(1) == [0]


@pytest.mark.parametrize("what", ["skip", "gap", "paths", "other path"])
def test_what_else_begins_the_count_anew(what: str) -> None:
    story = Story(loads(*HEAVY))
    story.windows(UNEVEN_WINDOWS - 1)
    if what == "skip":
        story.balance.skip()
    elif what == "gap":
        story.now = Instant(story.now + WINDOW_GAP_MAX_NS)
    elif what == "paths":
        story.carried = loads(*HEAVY, able=(0, 1, 2))
    else:
        story.carried = loads(*((1 - path, kib) for path, kib in HEAVY))
    assert story.windows(UNEVEN_WINDOWS - 1) == []
    assert len(story.windows(1)) == 1


def test_a_load_that_swings_moves_no_virtual_interface_more_often_than_the_rest_allows() -> None:
    """Two loads that take turns in being heavy, each long enough to be believed: the worst case for a balance."""
    story = Story(loads((0, 0), (0, 0), (0, 0), (1, 0)))
    for turn in range(60):
        heavy = 256 if turn % 2 else 64
        story.carried = [
            replace(each, in_flight=KIB * (heavy if each.vi % 2 else 320 - heavy)) for each in story.carried
        ]
        story.windows(UNEVEN_WINDOWS + 2)
    for vi in range(4):
        times = [at for at, moved in story.moved if moved == vi]
        assert all(later - sooner >= REST_NS for sooner, later in pairwise(times))
    times = [at for at, _ in story.moved]
    assert times and all(later - sooner >= PAUSE_NS for sooner, later in pairwise(times))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 512)), min_size=1, max_size=12),
    st.sampled_from([(0, 1), (0, 1, 2)]),
)
def test_a_steady_load_comes_to_rest_and_each_move_makes_the_largest_share_smaller(
    placed: list[tuple[int, int]], able: tuple[int, ...]
) -> None:
    carried = loads(*((path % len(able), kib) for path, kib in placed), able=able)
    for _ in range(64):
        largest = max(shares(carried).values())
        relief = find_relief(carried)
        if relief is None:
            break
        carried = [replace(each, path=relief.target) if each.vi == relief.vi else each for each in carried]
        assert max(shares(carried).values()) <= largest
        assert shares(carried)[relief.source] < largest and shares(carried)[relief.target] < largest
    else:
        pytest.fail(f"still moving: {carried}")
    # what is left can't be bettered by one move, beyond the tolerance
    total = shares(carried)
    full = max(total, key=lambda path: total[path])
    if total[full] >= LEAST_BYTES:
        for each in carried:
            for path in able if each.path == full else ():
                if path != full:
                    better = max(total[full] - each.in_flight, total[path] + each.in_flight)
                    assert total[full] * 100 <= TOLERANCE_PERCENT * better


def shares(carried: list[Carried]) -> dict[int, int]:
    found = dict.fromkeys((path for each in carried for path in each.able), 0)
    for each in carried:
        found[each.path] += each.in_flight
    return found


# -- what the driver tells --


def session(partner: int, vis: int, epoch: int = 3) -> Session:
    streams = tuple(Stream(1024, 1 << 20, 1 << 20) for _ in range(vis))
    made = Session(Partner(partner, "b"), 7, epoch, Needs(vis=vis), streams, lambda: None, lambda: None)
    made.alive = True
    return made


def window(meter: LoadMeter, sessions: list[Session], now: int) -> list[LoadSeen]:
    """The looks of one window, which all come at their time."""
    seen: list[LoadSeen] = []
    for look in range(SAMPLES):
        assert not seen, "told before the window was over"
        seen = meter.look(sessions, now=Instant(now + look * SAMPLE_NS))
    return seen


def test_a_window_tells_the_mean_of_what_is_in_flight_and_once_that_there_is_nothing_more() -> None:
    meter, busy, idle = LoadMeter(), session(2, 2), session(3, 1)
    for _ in range(4):
        busy.write(0, 4 * KIB, 0, vi=1)
    assert window(meter, [busy, idle], 0) == [LoadSeen(2, (ViLoad(7, 3, 1, 16 * KIB),))]
    busy.streams[1].drop()
    assert window(meter, [busy, idle], WINDOW_NS) == [LoadSeen(2, ())]
    assert window(meter, [busy, idle], 2 * WINDOW_NS) == []


def test_looks_that_come_too_early_count_for_nothing_and_dead_sessions_for_none() -> None:
    meter, busy = LoadMeter(), session(2, 1)
    busy.write(0, 4 * KIB, 0)
    for early in range(3 * SAMPLES):
        assert meter.look([busy], now=Instant(early * MILLISECOND // 10)) == []
    busy.alive = False
    seen = [meter.look([busy], now=Instant(look * SAMPLE_NS)) for look in range(1, SAMPLES)]
    assert seen[-1] == [LoadSeen(2, (ViLoad(7, 3, 0, 4 * KIB // SAMPLES),))] and not any(seen[:-1])


def test_of_a_long_ledger_a_part_stands_for_all() -> None:
    stream = Stream(1024, 1 << 20, 1 << 20)
    for _ in range(10 * SUMMED_MAX):
        assert stream.write(0, KIB, 0)
    assert in_flight(stream) == 10 * SUMMED_MAX * KIB
