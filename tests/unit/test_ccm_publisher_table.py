"""What becomes of a record on its way to the partner, and of a fence that is asked for: each situation, each input."""

from __future__ import annotations

import pytest

from ccm.exchange import Manifest, RecordKind, SessionEntry, Sessions
from ccm.publisher import Publisher

KIND, OURS, OTHER = RecordKind.SESSIONS, 0, 1
"""The slot looked at; the path on which it is under way, and another one."""
OLD, NEW = Sessions(1, ()), Sessions(2, (SessionEntry(7, 1, 1),))


def published(*, sent: bool = False, newer: bool = False, held: bool = False) -> Publisher:
    publisher = Publisher(1, 1, 2)
    publisher.begin(1)
    publisher.on_path_anew(OURS)
    publisher.on_path_anew(OTHER)
    publisher.put(KIND, OLD)
    if sent or newer or held:
        publisher.due(OURS)
    if newer:
        publisher.put(KIND, NEW)
    if held:
        publisher.on_written(KIND, 0, 1)
    return publisher


SITUATIONS = {
    "due": lambda: published(),
    "under way": lambda: published(sent=True),
    "under way, and a newer one waits": lambda: published(newer=True),
    "held by the partner": lambda: published(held=True),
}
INPUTS = {
    "the same again": lambda p: p.put(KIND, NEW if p._entries[KIND, 0].body == NEW else OLD),
    "another": lambda p: p.put(KIND, Sessions(3, ())),
    "acknowledged": lambda p: p.on_written(KIND, 0, 1),
    "another slot acknowledged": lambda p: p.on_written(RecordKind.MANIFEST, 0, 1),
    "its path is lost": lambda p: p.on_path_lost(OURS),
    "another path is lost": lambda p: p.on_path_lost(OTHER),
    "its path is lost and made anew": lambda p: (p.on_path_lost(OURS), p.on_path_anew(OURS)),
    "the partner has another incarnation": lambda p: p.begin(2),
}
LETTERS = {(True, False, False): "d", (False, True, False): "u", (False, True, True): "n", (False, False, False): "h"}
PUBLISHER = {
    # due d, under way u, under way and a newer one waits n, held h; nothing is published -
    "the same again": "d u n h",
    "another": "d n n d",
    "acknowledged": "d h d h",
    "another slot acknowledged": "d u n h",
    "its path is lost": "d d d h",
    "another path is lost": "d u n h",
    "its path is lost and made anew": "d d d h",
    "the partner has another incarnation": "- - - -",
}


def situation(publisher: Publisher) -> str:
    entry = publisher._entries.get((KIND, 0))
    if entry is None:
        return "-"
    under_way = entry.path is not None
    return LETTERS[not under_way and not entry.written, under_way, under_way and entry.stale]


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("name", SITUATIONS)
def test_each_cell_of_the_publisher(name, what):
    publisher = SITUATIONS[name]()
    expected = PUBLISHER[what].split()[list(SITUATIONS).index(name)]
    INPUTS[what](publisher)
    assert situation(publisher) == expected
    assert publisher.is_written(KIND) is (expected == "h")
    assert bool(publisher.due(OTHER)) is (expected == "d"), "what is due goes out, and nothing else"


def test_what_may_land_late_is_written_once_more_when_the_path_is_anew():
    publisher = published(sent=True)
    publisher.on_path_lost(OURS)
    [again] = publisher.due(OTHER)
    publisher.on_written(KIND, 0, again.record.sequence)
    assert publisher.is_written(KIND)
    assert publisher.on_path_anew(OURS), "the one that was under way may have come last"
    assert [write.record for write in publisher.due(OTHER)] == [again.record]
    publisher.put(RecordKind.MANIFEST, Manifest(()))
    assert not publisher.on_path_anew(OURS), "once"
