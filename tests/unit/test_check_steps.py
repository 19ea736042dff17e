"""The step-wise checks: a history that holds, and one broken line for each of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest

from ccm.history import Entry, Kind
from emul.clock import MILLISECOND, SECOND, Instant
from emul.node_memory import Stage
from lab.check.evidence import PathEnd, Session
from lab.check.steps import LOOK_BACK, ONE_WAY_BOUND_NS, SERVICE_BOUND_NS, UPS_MAX, StepChecks

A, B = 1, 2
MIRROR, ECHO = 1, 2
RECORD = b"record!!" * 2
HALF = 2048


class Outside:
    """What outsiders see, as a test sets it."""

    def __init__(self) -> None:
        self.cards = {A: bytearray(2 * HALF), B: bytearray(2 * HALF)}
        self.standing: dict[PathEnd, int] = {}
        self.quiet: int | None = None
        self.mute: int | None = None

    def card(self, node: int) -> memoryview:
        return memoryview(self.cards[node])

    def standing_fence(self, end: PathEnd) -> int:
        return self.standing.get(end, 0)

    def quiet_since(self, end: PathEnd) -> int | None:
        return self.quiet

    def mute_since(self, end: PathEnd) -> int | None:
        return self.mute

    def awake_since(self, node: int) -> int | None:
        return 0


class Story:
    """Two nodes that boot, shake hands on two paths, and are ready in epoch 1."""

    def __init__(self) -> None:
        self.outside = Outside()
        sessions = [Session(A, B, MIRROR), Session(B, A, MIRROR)]
        self.checks = StepChecks({A: "a", B: "b"}, sessions, self.outside)
        self.now = 0

    def note(self, kind: Kind, node: int = A, **fields: int) -> None:
        self.now += MILLISECOND
        fields.setdefault("incarnation", 1)
        if kind not in (Kind.HOST_STARTED, Kind.STAGE):
            fields.setdefault("partner", B if node == A else A)
        self.checks.on_entry(Entry(Instant(self.now), kind, node, **fields))

    def begin(self) -> Story:
        for node in (A, B):
            self.note(Kind.HOST_STARTED, node)
            self.note(Kind.STAGE, node, extra=Stage.LOADER)
            self.note(Kind.STAGE, node, extra=Stage.KERNEL)
        for path in (0, 1):
            for step in (1, 2, 3, 4):
                for node in (A, B):
                    self.note(Kind.HANDSHAKE_STEP, node, extra=step, offset=path)
            for node in (A, B):
                self.note(Kind.PATH_UP, node, extra=path)
        for node in (A, B):
            self.note(Kind.READY_ALERT, node, client=MIRROR, epoch=1)
        return self

    def write(self, sequence: int, *, stored: bool = True, epoch: int = 1) -> dict[str, int]:
        offset = sequence * len(RECORD) % HALF
        if stored:
            self.outside.cards[A][offset : offset + len(RECORD)] = RECORD
            self.outside.cards[B][HALF + offset : HALF + offset + len(RECORD)] = RECORD
        fields = {
            "client": MIRROR, "epoch": epoch, "sequence": sequence, "offset": offset, "length": len(RECORD),
            "digest": zlib.crc32(RECORD),
        }  # fmt: skip
        self.note(Kind.SUBMITTED, **fields)
        return fields

    def lose(self, path: int = 0) -> None:
        self.note(Kind.PATH_DOWN, extra=path, length=1)


def fence(story: Story, epoch: int, standing: int) -> None:
    story.outside.standing[PathEnd(A, B, 0)] = standing
    story.note(Kind.PATH_FENCED, extra=0, sequence=epoch)


def test_a_run_in_which_all_is_well() -> None:
    story = Story().begin()
    for sequence in range(1, 12):
        story.note(Kind.COMMITTED, **story.write(sequence))
    under_way = story.write(12)
    story.lose()
    fence(story, 1, 1)
    story.note(Kind.REPLAYED, client=MIRROR, length=1, extra=1)
    story.note(Kind.COMMITTED, **under_way)
    story.note(Kind.ERROR_ALERT, client=MIRROR, epoch=1)
    story.note(Kind.ERROR_ALERT, B, client=MIRROR, epoch=1)
    story.note(Kind.READY_ALERT, client=MIRROR, epoch=2)
    story.note(Kind.SESSION_CLOSED, client=MIRROR, epoch=2)
    assert story.checks.result().ok, story.checks.broken


def commit_twice(story: Story) -> None:
    fields = story.write(1)
    story.note(Kind.COMMITTED, **fields)
    story.note(Kind.COMMITTED, **fields)


def commit_out_of_order(story: Story) -> None:
    story.write(1)
    story.note(Kind.COMMITTED, **story.write(2))


def commit_after_the_end(story: Story) -> None:
    fields = story.write(1)
    story.note(Kind.ERROR_ALERT, client=MIRROR, epoch=1)
    story.note(Kind.COMMITTED, **fields)


def lose_a_record_later(story: Story) -> None:
    story.note(Kind.COMMITTED, **story.write(1))
    story.outside.cards[B][HALF + len(RECORD)] ^= 1
    for sequence in range(2, LOOK_BACK + 2):
        story.note(Kind.COMMITTED, **story.write(sequence))


def deliver(story: Story, sequence: int) -> None:
    story.note(Kind.DELIVERED, B, client=ECHO, epoch=1, sequence=sequence, digest=5)


def deliver_twice(story: Story) -> None:
    story.note(Kind.READY_ALERT, B, client=ECHO, epoch=1)
    deliver(story, 1)
    deliver(story, 1)


def flap(story: Story) -> None:
    for _ in range(UPS_MAX + 1):
        story.note(Kind.PATH_DOWN, extra=0)
        story.note(Kind.PATH_UP, extra=0)


def false_alarm(story: Story) -> None:
    story.outside.quiet = 0
    story.now = 3 * SECOND
    story.lose()


def one_way(story: Story) -> None:
    story.outside.mute = 10
    story.checks.on_time(10 + ONE_WAY_BOUND_NS)
    assert not story.checks.broken
    story.checks.on_time(11 + ONE_WAY_BOUND_NS)


def no_service(story: Story) -> None:
    story.outside.quiet = 0
    story.note(Kind.ERROR_ALERT, client=MIRROR, epoch=1)
    story.checks.on_time(story.now + SERVICE_BOUND_NS)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (lambda story: story.note(Kind.HOST_STARTED, A), "an incarnation that is not newer"),
        (lambda story: story.note(Kind.STAGE, extra=Stage.LOADER), "boot stage"),
        (lambda story: story.note(Kind.HANDSHAKE_STEP, offset=2, extra=2), "step 2 on path 2 after step 0"),
        (lambda story: story.note(Kind.PATH_UP, extra=0), "up twice"),
        (lambda story: story.note(Kind.PATH_UP, extra=5), "up before its handshake"),
        (lambda story: story.lose(5), "down that was not up"),
        (flap, "times in a second"),
        (false_alarm, "nothing had touched it"),
        (lambda story: fence(story, 2, 1), "fenced at 2, and 1 stands there"),
        (lambda story: (fence(story, 1, 1), fence(story, 1, 1)), "epoch that is not newer"),
        (lambda story: (story.lose(), story.note(Kind.REPLAYED, client=MIRROR)), "before path 0 was fenced"),
        (lambda story: story.note(Kind.READY_ALERT, client=MIRROR, epoch=2), "while epoch 1 was ready"),
        (lambda story: story.note(Kind.READY_ALERT, client=ECHO, epoch=0), "after one of 0"),
        (lambda story: story.note(Kind.ERROR_ALERT, client=MIRROR, epoch=2), "an error alert of epoch 2"),
        (lambda story: story.note(Kind.ERROR_ALERT, client=ECHO, epoch=1), "ready is 0"),
        (commit_twice, "the oldest under way is None"),
        (commit_out_of_order, "2 committed, the oldest under way is (1, 1)"),
        (commit_after_the_end, "committed in epoch 1, ready is 0"),
        (lambda story: story.note(Kind.COMMITTED, **(story.write(1) | {"digest": 7})), "with other bytes"),
        (lambda story: story.note(Kind.COMMITTED, **story.write(1, stored=False)), "is not on the own card"),
        (lose_a_record_later, "record 1 is not on the partner's card"),
        (lambda story: (story.write(2), story.write(1)), "submitted 1 after 2"),
        (deliver_twice, "message 1 delivered after 1"),
        (lambda story: deliver(story, 1), "a message in epoch 1, ready is 0"),
        (one_way, "carries nothing or one way only"),
        (no_service, "no session of client 1 though it could"),
    ],
)
def test_what_must_not_be_is_found(breaks: Callable[[Story], object], words: str) -> None:
    story = Story().begin()
    assert not story.checks.broken
    breaks(story)
    assert any(words in problem for problem in story.checks.broken), story.checks.broken
    assert story.checks.result().ok is False


def test_the_two_sides_are_ready_in_one_epoch() -> None:
    story = Story().begin()
    story.note(Kind.ERROR_ALERT, client=MIRROR, epoch=1)
    story.note(Kind.READY_ALERT, client=MIRROR, epoch=2)
    assert "ready in epoch 2, the partner in 1" in story.checks.broken[0]


def test_step_three_follows_the_partners_first() -> None:
    story = Story()
    for step in (1, 2, 3):
        story.note(Kind.HANDSHAKE_STEP, A, extra=step)
    assert "before the partner had read anything" in story.checks.broken[0]


def test_a_reboot_begins_anew_and_epochs_grow_across_it() -> None:
    story = Story().begin()
    story.note(Kind.HOST_STARTED, A, incarnation=2)
    for step in (1, 2, 3, 4):
        story.note(Kind.HANDSHAKE_STEP, A, extra=step, incarnation=2)
    story.note(Kind.READY_ALERT, client=MIRROR, epoch=1, incarnation=2)
    assert ["a ready alert of epoch 1 after one of 1" in problem for problem in story.checks.broken] == [True]


def test_a_busy_machine_is_not_judged_by_time() -> None:
    story = Story()
    story.checks = StepChecks({A: "a"}, [Session(A, B, MIRROR)], story.outside, busy=True)
    story.begin()
    false_alarm(story)
    story.outside.mute = 0
    story.checks.on_time(60 * SECOND)
    assert not story.checks.broken
