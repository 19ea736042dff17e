"""Load: records that describe themselves, percentiles, rates, and what the history says first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccm.clients.load import RECORD_HEADER_BYTES, Latencies, LoadSpec, MirrorLoad, Origin, RecordMaker, record_is_whole
from ccm.clients.nvram_mirror import NvramMirror, ring_neighbours
from ccm.history import HEADER_BYTES, RECORD_BYTES, HistoryWriter, Kind, read_entries
from emul.clock import SECOND, Instant
from emul.memory import Memory


@given(st.integers(1, 1 << 40), st.integers(RECORD_HEADER_BYTES, 600), st.data())
def test_a_record_is_whole_until_a_byte_of_it_changes(sequence, size, data):
    record = RecordMaker(3, 7, size, seed=1).make(sequence)
    assert len(record) == size and record_is_whole(record)
    damaged = bytearray(record)
    damaged[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not record_is_whole(bytes(damaged))
    assert not record_is_whole(record[:-1])


def test_records_of_neighbouring_sequences_differ_in_their_filler():
    maker = RecordMaker(3, 7, 512, seed=1)
    assert maker.make(1)[RECORD_HEADER_BYTES:] != maker.make(2)[RECORD_HEADER_BYTES:]


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=200), st.sampled_from([50.0, 90.0, 99.0, 100.0]))
def test_a_percentile_is_within_a_step_of_the_real_one(values, percent):
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    rank = max(0, -(-len(values) * percent // 100) - 1)
    real = sorted(values)[int(rank)]
    assert real * 0.99 - 1 <= latencies.percentile(percent) <= real * 1.07 + 1


@pytest.mark.parametrize(
    ("node", "others", "expected"), [(1, [2], (2, 2)), (2, [1, 3, 4], (3, 1)), (4, [1, 2, 3], (1, 3))]
)
def test_cards_are_mirrored_round_the_ring(node, others, expected):
    assert ring_neighbours(node, others) == expected


class FakeStream:
    def __init__(self) -> None:
        self.entries: list[int] = []

    def write(self, source: int, length: int, target: int) -> int:
        self.entries.append(source)
        return len(self.entries)


class FakeSession:
    epoch = 3

    def __init__(self) -> None:
        self.streams = (FakeStream(),)
        self.partner = type("P", (), {"id": 2})()


def mirror_load(**spec):
    history = Memory.plain(HEADER_BYTES + 100 * RECORD_BYTES)
    mirror = NvramMirror(Memory.plain(64 * 1024), 1, [2])
    load = MirrorLoad(
        mirror, 2, LoadSpec(**{"record_bytes": 512, "depth": 4} | spec), Origin(1, 1, 1), HistoryWriter(history), 1,
        now=Instant(0),
    )  # fmt: skip
    mirror.observer = load
    return mirror, load, lambda: list(read_entries(history.buffer))


@pytest.mark.needs_plain
def test_depth_requests_are_under_way_and_each_commit_brings_the_next():
    mirror, load, entries = mirror_load()
    session = FakeSession()
    mirror.on_ready(session, Instant(10))
    assert load.outstanding == 4
    session.streams[0].entries.pop(0)
    mirror.on_completed(session, 1, Instant(1010))
    kinds = [entry.kind for entry in entries()]
    assert kinds == [Kind.SUBMITTED] * 4 + [Kind.COMMITTED, Kind.SUBMITTED]
    assert load.state()["p50_us"] == pytest.approx(1.0, rel=0.07)


@pytest.mark.needs_plain
def test_the_rate_bounds_what_is_submitted():
    mirror, load, _ = mirror_load(rate_per_s=1000, depth=4)
    session = FakeSession()
    mirror.on_ready(session, Instant(SECOND))
    assert load.outstanding == 1 and load.next_deadline() == SECOND + 1_000_000
    load.submit(Instant(SECOND + 1_000_000))
    assert load.outstanding == 2


@pytest.mark.needs_plain
def test_a_lost_session_gives_up_what_is_under_way_and_a_new_one_goes_on_counting():
    mirror, load, entries = mirror_load()
    session = FakeSession()
    mirror.on_ready(session, Instant(10))
    mirror.on_error(session, 0, Instant(20))
    assert (load.outstanding, load.given_up) == (0, 4)
    mirror.on_ready(FakeSession(), Instant(30))
    assert [entry.sequence for entry in entries()] == list(range(1, 9)), "no sequence comes twice in an incarnation"


@pytest.mark.needs_plain
def test_a_stopped_load_submits_nothing_more():
    mirror, load, _ = mirror_load()
    session = FakeSession()
    mirror.on_ready(session, Instant(10))
    load.stop()
    for _ in range(4):
        mirror.on_completed(session, 1, Instant(20))
    assert load.outstanding == 0 and load.committed == 4
