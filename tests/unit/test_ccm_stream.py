"""Ledger and arrivals: nothing is posted twice on one lane, nothing is lost, doubled or reordered between lanes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccm.stream import MESSAGE_HEADER, Arrivals, Stream


class FakeLane:
    """Records what is posted."""

    source, lkey, target, rkey = 1000, 1, 5000, 2

    def __init__(self) -> None:
        self.posted: list[int] = []
        self.post_write = lambda wr_id, *rest: self.posted.append(wr_id)

    def post_message(self, sequence: int, number: int, data: bytes) -> None:
        self.posted.append(sequence)


def stream_on(lane: FakeLane, depth: int = 8) -> Stream:
    stream = Stream(depth, 4096, 4096)
    stream.route(lane)
    return stream


def test_a_full_ledger_takes_nothing():
    lane = FakeLane()
    stream = stream_on(lane, depth=2)
    assert [stream.write(0, 8, 0) for _ in range(3)] == [1, 2, 0]
    assert stream.confirm(lane, 1)[0] == 1
    assert stream.send(b"x") == 3


@pytest.mark.parametrize("request_", [(-1, 8, 0), (0, 0, 0), (4090, 8, 0), (0, 8, 4090), (0, 8, -1)])
def test_nothing_outside_the_regions_is_posted(request_):
    lane = FakeLane()
    stream = stream_on(lane)
    with pytest.raises(ValueError, match="bytes from"):
        stream.write(*request_)
    assert not lane.posted and not stream.entries


def test_what_is_unconfirmed_is_replayed_in_order_and_late_completions_don_t_count():
    lost, other = FakeLane(), FakeLane()
    stream = stream_on(lost)
    for _ in range(4):
        stream.write(0, 8, 0)
    stream.confirm(lost, 1)
    stream.hold()
    assert stream.write(0, 8, 0) == 5 and lost.posted == [1, 2, 3, 4], "taken, not posted"
    assert stream.route(other) == 4 and other.posted == [2, 3, 4, 5]
    assert stream.confirm(lost, 2) is None
    assert [stream.confirm(other, n)[0] for n in (2, 3, 4, 5)] == [2, 3, 4, 5]


def test_a_move_waits_for_the_work_under_way_and_posts_nothing_twice():
    first, second = FakeLane(), FakeLane()
    stream = stream_on(first)
    stream.write(0, 8, 0)
    stream.begin_move()
    stream.write(0, 8, 0)
    assert not stream.drained and second.posted == []
    assert stream.confirm(first, 1) and stream.drained
    stream.finish_move(second)
    assert (first.posted, second.posted) == ([1], [2])


def test_a_move_called_off_goes_on_where_it_was():
    lane = FakeLane()
    stream = stream_on(lane)
    stream.write(0, 8, 0)
    stream.begin_move()
    stream.write(0, 8, 0)
    assert stream.route(lane) == 0 and lane.posted == [1, 2]
    assert stream.confirm(lane, 1) and stream.confirm(lane, 2)


def test_a_completion_out_of_order_confirms_nothing():
    lane = FakeLane()
    stream = stream_on(lane)
    stream.write(0, 8, 0)
    stream.write(0, 8, 0)
    assert stream.confirm(lane, 2) is None and len(stream.entries) == 2


@given(st.lists(st.sampled_from(["write", "confirm", "lose", "move", "finish"]), max_size=60))
def test_confirmed_work_was_posted_on_the_lane_that_confirmed_it_and_comes_in_order(steps):
    lanes = [FakeLane()]
    stream = stream_on(lanes[0], depth=16)
    done: dict[int, int] = {}
    """Lane -> how many of its requests have completed."""
    confirmed: list[int] = []
    for step in steps:
        live = stream.lane or stream.former
        if step == "write":
            stream.write(0, 8, 0)
        elif step == "confirm" and live is not None:
            index = lanes.index(live)
            if done.get(index, 0) < len(live.posted):
                sequence = live.posted[done.get(index, 0)]
                done[index] = done.get(index, 0) + 1
                assert stream.confirm(live, sequence) is not None
                confirmed.append(sequence)
        elif step == "lose":
            stream.hold()
            lanes.append(FakeLane())
            stream.route(lanes[-1])
        elif step == "move":
            stream.begin_move()
        elif step == "finish" and stream.drained:
            lanes.append(FakeLane())
            stream.finish_move(lanes[-1])
    assert confirmed == list(range(1, len(confirmed) + 1))
    for lane in lanes:
        assert lane.posted == sorted(set(lane.posted)), "once on each lane, in order"


def message(number: int, epoch: int = 4) -> bytes:
    return MESSAGE_HEADER.pack(epoch, 2, number) + number.to_bytes(2, "big")


@given(st.lists(st.integers(1, 9), max_size=40))
def test_messages_in_any_order_with_repetitions_are_delivered_once_and_in_order(numbers):
    arrivals, delivered = Arrivals(4), []
    for number in numbers:
        delivered += [int.from_bytes(data, "big") for data in arrivals.take(message(number))]
    assert delivered == list(range(1, len(delivered) + 1))
    missing = next(n for n in range(1, 11) if n not in numbers)
    assert len(delivered) == missing - 1


def test_what_is_no_message_of_this_epoch_is_counted():
    arrivals = Arrivals(4)
    far = MESSAGE_HEADER.pack(4, 0, 1 << 40)
    for strange in (b"", b"short", message(1, epoch=3), message(1)[:-1], far):
        assert arrivals.take(strange) == []
    assert arrivals.strange == 5
    assert arrivals.take(message(1)) and not arrivals.take(message(1)) and arrivals.duplicates == 1
