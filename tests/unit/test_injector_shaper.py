"""A shaped cable's direction: when frames leave it, and which are lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emul.clock import MILLISECOND, SECOND
from lab.injector.shaper import BACKLOG_BYTES_MAX, FRAMES_MAX, Shape, Shaper

MEGABYTE_A_SECOND = 8_000_000


def test_a_long_cable_delays_each_frame_by_its_length() -> None:
    shaper = Shaper(Shape(2 * MILLISECOND))
    assert shaper.put(b"first", now=10) == 10 + 2 * MILLISECOND
    assert shaper.put(b"second", now=20) == 20 + 2 * MILLISECOND
    assert shaper.due(now=2 * MILLISECOND + 9) == []
    assert shaper.next_at() == 2 * MILLISECOND + 10
    assert shaper.due(now=2 * MILLISECOND + 20) == [b"first", b"second"]
    assert shaper.next_at() is None


def test_a_slow_line_carries_one_frame_after_the_other() -> None:
    shaper = Shaper(Shape(MILLISECOND, MEGABYTE_A_SECOND))
    assert [shaper.put(bytes(1000), now=0) for _ in range(3)] == [2 * MILLISECOND, 3 * MILLISECOND, 4 * MILLISECOND]
    assert shaper.put(bytes(1000), now=SECOND) == SECOND + 2 * MILLISECOND, "an idle line has saved nothing up"


def test_a_cable_that_is_pulled_out_loses_what_was_in_it() -> None:
    shaper = Shaper(Shape(MILLISECOND, MEGABYTE_A_SECOND))
    for _ in range(5):
        shaper.put(bytes(1000), now=0)
    assert shaper.clear() == 5
    assert shaper.due(now=SECOND) == []
    assert shaper.put(bytes(1000), now=SECOND) == SECOND + 2 * MILLISECOND


def test_a_full_buffer_drops_and_goes_on_when_there_is_room() -> None:
    shaper = Shaper(Shape(0, MEGABYTE_A_SECOND))
    accepted = 0
    while shaper.put(bytes(1000), now=0) is not None:
        accepted += 1
    assert accepted == BACKLOG_BYTES_MAX // 1000 + 1
    assert shaper.dropped == 1
    assert len(shaper.due(now=10 * MILLISECOND)) == 10
    assert shaper.put(bytes(1000), now=10 * MILLISECOND) is not None


def test_the_number_of_frames_is_bounded_too() -> None:
    shaper = Shaper(Shape(SECOND))
    for _ in range(FRAMES_MAX):
        assert shaper.put(b"x", now=0) is not None
    assert shaper.put(b"x", now=0) is None


@given(
    st.lists(st.tuples(st.integers(0, MILLISECOND), st.integers(1, 4000)), max_size=50),
    st.integers(0, 5 * MILLISECOND),
    st.none() | st.integers(1_000_000, 10**11),
)
def test_frames_leave_in_order_and_never_early(
    arrivals: list[tuple[int, int]], delay_ns: int, rate_bps: int | None
) -> None:
    shaper, now = Shaper(Shape(delay_ns, rate_bps)), 0
    entered: list[bytes] = []
    left: list[bytes] = []
    for gap, length in arrivals:
        now += gap
        frame = len(entered).to_bytes(2, "big").ljust(length, b"\0")
        due_at = shaper.put(frame, now=now)
        assert due_at is not None
        assert due_at >= now + delay_ns + shaper.line_ns(len(frame))
        entered.append(frame)
        left += shaper.due(now=now)
    assert [*left, *shaper.due(now=now + 100 * SECOND)] == entered
