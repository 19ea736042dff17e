"""What nodes hold, looked at step by step: a run that holds, and one broken thing for each check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ccm.history import Entry, Kind
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND, Instant
from lab.check.holdings import (
    LEFT_BOUND_NS,
    LOAD_WINDOWS,
    NO_COMMON_VERSION,
    REFUSAL_BOUND_NS,
    HeldLanes,
    HeldVi,
    HoldingChecks,
    Told,
)  # fmt: skip

A, B = 1, 2
ECHO = 2
CARD = object()
TOLD = Told(1, b"needs", 77, (1, 2), 0)


def vi(number: int, path: int) -> HeldVi:
    return HeldVi(number, path, CARD, f"qp {number}")


class Outside:
    """What outsiders see, as a test sets it."""

    def __init__(self) -> None:
        self.memory = {(writer, held_by): TOLD for writer in (A, B) for held_by in (A, B)}
        """(who told it, in whose memory)."""
        self.lanes = [HeldLanes(path, ECHO, 1, 100 + path, (vi(10 + path, path),), CARD) for path in (0, 1)]
        self.there = [vi(10, 0), vi(11, 1)]
        self.fresh: list[HeldVi] = []
        self.keys = {100, 101}
        self.under_way: dict[int, int] = {}
        self.shut = False
        self.psns = {10: 0, 11: 0}
        self.marks: list[str] = []
        self.links: list[tuple[int, str]] = []
        self.taken = 0
        self.awake: int | None = 0
        self.calm: int | None = 0

    def told(self, writer: int, reader: int) -> Told | None:
        return self.memory[writer, writer]

    def heard(self, reader: int, writer: int) -> Told | None:
        return self.memory[writer, reader]

    def published(self, node: int, partner: int) -> Sequence[HeldLanes]:
        return self.lanes if node == A else []

    def fresh_vis(self, node: int) -> Sequence[tuple[int, HeldVi]]:
        return [(B, each) for each in self.fresh]

    def vis(self, node: int) -> Sequence[tuple[int, HeldVi]]:
        return [(B, each) for each in self.there]

    def has_vi(self, vi: HeldVi) -> bool:
        return vi in self.there

    def has_key(self, card: object, key: int) -> bool:
        return key in self.keys

    def takes(self, vi: HeldVi) -> bool:
        return not self.shut

    def pending(self, vi: HeldVi) -> int:
        return self.under_way.get(vi.number, 0)

    def is_shut(self, node: int, partner: int, vi: HeldVi) -> bool:
        return self.shut

    def sent(self, vi: HeldVi) -> int:
        return self.psns[vi.number]

    def expected(self, vi: HeldVi) -> int:
        return self.taken

    def fence_of(self, vi: HeldVi) -> int:
        return 3

    def strangers_marks(self) -> Sequence[str]:
        return self.marks

    def fresh_links(self) -> Sequence[tuple[int, str]]:
        return self.links

    def awake_since(self, node: int) -> int | None:
        return self.awake

    def calm_since(self, *, but_versions: bool = False) -> int | None:
        return self.calm


class Story:
    """Two nodes, two paths, one session in epoch 1."""

    def __init__(self) -> None:
        self.outside = Outside()
        self.checks = HoldingChecks({A: "a", B: "b"}, self.outside)
        self.now = 0
        for node in (A, B):
            self.note(Kind.HOST_STARTED, node, incarnation=1)
            for path in (0, 1):
                self.note(Kind.PATH_UP, node, extra=path)
        self.outside.fresh = list(self.outside.there)
        self.checks.on_turn(A, self.now)
        self.outside.fresh = []
        self.note(Kind.READY_ALERT, epoch=1)

    def note(self, kind: Kind, node: int = A, **fields: int) -> None:
        self.now += MILLISECOND
        self.checks.on_entry(Entry(Instant(self.now), kind, node, B if node == A else A, ECHO, **fields))

    def wait(self, duration: int) -> None:
        self.now += duration
        self.checks.look_at_all(A, self.now)
        self.checks.on_time(self.now)

    def break_off(self) -> None:
        self.note(Kind.ERROR_ALERT, epoch=1)
        self.outside.lanes = []

    def second(self, first: int, second: int) -> None:
        """One second in which so many packets go over path 0 and path 1."""
        self.outside.psns[10] += first
        self.outside.psns[11] += second
        self.wait(SECOND)

    def found(self) -> dict[str, str]:
        return {result.name: result.detail for result in self.checks.results() if result.ok is False}

    def not_exercised(self) -> set[str]:
        return {result.name for result in self.checks.results() if result.ok is None}


def test_what_saw_nothing_says_so() -> None:
    checks = HoldingChecks({A: "a", B: "b"}, Outside())
    checks.on_entry(Entry(Instant(1), Kind.STAGE, A))
    checks.on_time(SECOND)
    assert {(result.ok, result.detail) for result in checks.results()} == {(None, "not exercised")}


def test_a_run_in_which_all_is_well() -> None:
    story = Story()
    for _ in range(5):
        story.second(1000, 0)
    story.note(Kind.PATH_FENCED, B, extra=0, sequence=4)
    story.note(Kind.ROUTED, epoch=1, offset=0, extra=1)
    story.break_off()
    story.outside.there, story.outside.keys = [], set()
    story.note(Kind.READY_ALERT, epoch=2)
    for node in (A, B):
        story.note(Kind.REFUSED, node, extra=NO_COMMON_VERSION)
    story.outside.marks, story.outside.links = [""], [(A, "")]
    story.wait(LEFT_BOUND_NS + 1)
    story.wait(REFUSAL_BOUND_NS + SECOND)
    assert not story.found()
    assert not story.not_exercised()


def memory(story: Story, who: int, where: int, **fields: object) -> None:
    told = story.outside.memory[who, where]
    assert told is not None
    story.outside.memory[who, where] = replace(told, **fields)  # type: ignore[arg-type]


def ready(story: Story) -> None:
    story.outside.keys = set()
    story.note(Kind.READY_ALERT, epoch=2)


def another_digest(story: Story) -> None:
    memory(story, B, A, digest=78)
    ready(story)


def another_manifest(story: Story) -> None:
    memory(story, B, A, manifest=b"other needs")
    ready(story)


def lost_on_the_way(story: Story) -> None:
    memory(story, A, B, manifest=b"")
    ready(story)


def nothing_heard(story: Story) -> None:
    story.outside.memory[B, A] = None  # type: ignore[assignment]
    ready(story)


def old_key(story: Story) -> None:
    story.break_off()
    story.note(Kind.READY_ALERT, epoch=2)


def too_early(story: Story, **fields: object) -> None:
    memory(story, B, A, **fields)
    story.outside.fresh = [vi(12, 0)]
    story.checks.on_turn(A, story.now)


def left_behind(story: Story) -> None:
    story.break_off()
    story.outside.keys = set()
    story.wait(LEFT_BOUND_NS + 1)


def left_behind_key(story: Story) -> None:
    story.break_off()
    story.outside.there = []
    story.wait(LEFT_BOUND_NS + 1)


def stray(story: Story) -> None:
    story.outside.there.append(vi(13, 1))
    story.wait(MILLISECOND)
    story.wait(LEFT_BOUND_NS + DEFAULTS.alone_limit_ns + DEFAULTS.limit_most_ns + 1)


def refused_alone(story: Story) -> None:
    story.note(Kind.REFUSED, extra=NO_COMMON_VERSION)
    story.wait(REFUSAL_BOUND_NS + 1)


def split(story: Story) -> None:
    story.outside.under_way[10] = 3
    story.note(Kind.ROUTED, epoch=1, offset=0, extra=1)


def stranger(story: Story, marks: list[str], links: list[tuple[int, str]]) -> None:
    story.outside.marks, story.outside.links = marks, links
    story.checks.on_time(story.now)


def late_frames(story: Story) -> None:
    story.note(Kind.PATH_FENCED, B, extra=0, sequence=4)
    story.outside.taken = 2
    story.wait(MILLISECOND)


def crowd(story: Story) -> None:
    story.outside.lanes = [
        HeldLanes(path, ECHO, 1, 100 + path, (vi(10 + path, path), vi(20 + path, path)), CARD) for path in (0, 1)
    ]
    story.outside.there += [vi(20, 0), vi(21, 1)]
    story.outside.psns |= {20: 0, 21: 0}
    for _ in range(LOAD_WINDOWS + 4):
        story.outside.psns[20] += 800
        story.second(800, 0)


@pytest.mark.parametrize(
    ("breaks", "check", "words"),
    [
        (another_digest, "manifests.agreed", "the sides hold 0x4d and 0x4e"),
        (another_manifest, "manifests.agreed", "its memory holds another manifest"),
        (lost_on_the_way, "manifests.agreed", "its partner's memory holds another manifest"),
        (nothing_heard, "manifests.agreed", "no versions were exchanged"),
        (old_key, "old_keys.dead", "ready in epoch 2, the key of epoch 1 opens path 0"),
        (lambda story: too_early(story, versions=(0, 0)), "versions.first", "no versions were exchanged"),
        (lambda story: too_early(story, versions=(3, 4)), "versions.first", "(1, 2) and (3, 4) don't meet"),
        (lambda story: too_early(story, refusal=10), "versions.first", "a side refuses the other"),
        (left_behind, "close.leaves_nothing", "virtual interface 10 of client 2, epoch 1, path 0 towards b is still"),
        (left_behind_key, "close.leaves_nothing", "key of client 2, epoch 1, path 1 towards b is still there"),
        (stray, "close.leaves_nothing", "virtual interface 13 on path 1 belongs to nothing that is published"),
        (refused_alone, "mismatch.told_to_both", "its partner refuses it for its version"),
        (split, "streams.whole", "goes over path 1 while 3 requests are under way on path 0"),
        (lambda story: [story.second(500, 500) for _ in range(5)], "streams.whole", "over paths [0, 1] at a time"),
        (lambda story: stranger(story, ["NVRAM of b"], []), "strangers.shut_out", "NVRAM of b at"),
        (lambda story: stranger(story, [], [(B, "a link")]), "strangers.shut_out", "b at 7.000 ms: a link"),
        (late_frames, "fence.holds", "2 packets landed on path 0 after its fence"),
        (crowd, "load.shared", "packets by path: {0: 1600, 1: 0}"),
    ],
)
def test_what_must_not_be_is_found(breaks: Callable[[Story], object], check: str, words: str) -> None:
    story = Story()
    assert not story.found()
    breaks(story)
    assert words in story.found().get(check, ""), story.found()


def test_a_dead_host_gives_nothing_back_and_one_that_woke_has_its_time() -> None:
    story = Story()
    story.break_off()
    story.outside.awake = None
    story.wait(LEFT_BOUND_NS + 1)
    assert not story.found()
    story = Story()
    story.break_off()
    story.outside.awake = story.now + LEFT_BOUND_NS
    story.wait(LEFT_BOUND_NS + 1)
    assert not story.found()
    story.wait(2 * LEFT_BOUND_NS)
    assert "close.leaves_nothing" in story.found()


def test_what_a_fenced_path_has_under_way_splits_no_stream() -> None:
    story = Story()
    story.outside.shut = True
    split(story)
    assert not story.found()


def test_shares_are_not_judged_while_something_happens() -> None:
    story = Story()
    story.outside.calm = None
    crowd(story)
    assert not story.found()


@pytest.mark.parametrize(("balance", "finds"), [("vi", False), ("bytes", True)])
def test_two_heavy_streams_together_are_uneven_by_bytes_and_not_by_number(balance: str, finds: bool) -> None:
    story = Story()
    story.checks._balance = balance
    story.outside.lanes = [
        HeldLanes(path, ECHO, 1, 100 + path, tuple(vi(10 * each + path, path) for each in (1, 2, 3, 4)), CARD)
        for path in (0, 1)
    ]
    story.outside.there += [vi(10 * each + path, path) for each in (2, 3, 4) for path in (0, 1)]
    story.outside.psns |= dict.fromkeys((20, 21, 30, 31, 40, 41), 0)
    for _ in range(LOAD_WINDOWS + 4):
        story.outside.psns[20] += 800
        story.outside.psns[31] += 10
        story.outside.psns[41] += 10
        story.second(800, 0)
    assert ("load.shared" in story.found()) is finds


def test_shares_are_not_judged_where_no_balance_is_wanted() -> None:
    story = Story()
    story.checks._balance = False
    crowd(story)
    assert not story.found()


def test_one_stream_alone_cannot_be_shared() -> None:
    story = Story()
    for _ in range(LOAD_WINDOWS + 4):
        story.second(1000, 0)
    assert not story.found()
