"""The four steps of one path: gates, old flags, and pairs of handshakes under any order of events."""

from __future__ import annotations

import random

import pytest

from ccm.exchange import Record, RecordKind, Seen
from ccm.handshake import Handshake, Step

LOADER, FIRMWARE = 2, 1


def flag(writer: int, partner: int, *, index: int = 0, step: int = 1) -> Record:
    return Record(RecordKind.SEEN, index, 2, writer, partner, 1, Seen(step))


def at(step: Step, *, incarnation: int = 5, partner: int = 9) -> Handshake:
    handshake = Handshake(incarnation, 0)
    if step is not Step.READ_STATUS:
        handshake.on_status(LOADER, partner)
    if step in (Step.READ_SEEN, Step.WRITE_KNOWN, Step.DONE):
        handshake.on_written(1)
    if step in (Step.WRITE_KNOWN, Step.DONE):
        handshake.on_seen(flag(partner, incarnation))
    if step is Step.DONE:
        handshake.on_written(2)
    assert handshake.step is step
    return handshake


@pytest.mark.parametrize("step", Step)
def test_each_step_succeeds_only_in_its_turn(step):
    assert at(step).on_status(LOADER, 9) is (step is Step.READ_STATUS)
    assert at(step).on_written(1) is (step is Step.WRITE_SEEN)
    assert at(step).on_seen(flag(9, 5)) is (step is Step.READ_SEEN)
    assert at(step).on_written(2) is (step is Step.WRITE_KNOWN)


def test_read_1_waits_for_a_host():
    handshake = Handshake(5, 0)
    assert not handshake.on_status(FIRMWARE, 9) and handshake.step is Step.READ_STATUS
    assert handshake.on_status(LOADER, 9) and handshake.partner_incarnation == 9


@pytest.mark.parametrize(
    ("writer", "partner", "index"),
    [(8, 5, 0), (9, 4, 0), (9, 6, 0), (9, 5, 1), (9, 0, 0)],
    ids=["older partner", "of our former life", "of a life we never had", "another path", "nobody seen"],
)
def test_an_old_flag_opens_nothing(writer, partner, index):
    handshake = at(Step.READ_SEEN)
    assert not handshake.on_seen(flag(writer, partner, index=index))
    assert handshake.step is Step.READ_SEEN


def test_an_empty_slot_opens_nothing():
    assert not at(Step.READ_SEEN).on_seen(None)


def test_a_later_incarnation_in_the_flag_sends_back_to_read_1():
    handshake = at(Step.READ_SEEN)
    assert not handshake.on_seen(flag(10, 5))
    assert handshake.step is Step.READ_STATUS and handshake.partner_incarnation == 0


@pytest.mark.parametrize("step", [step for step in Step if step is not Step.READ_STATUS])
def test_another_incarnation_on_the_page_begins_the_steps_anew(step):
    handshake = at(step)
    assert handshake.on_status(LOADER, 10)
    assert handshake.step is Step.WRITE_SEEN and handshake.partner_incarnation == 10


class Side:
    """One side with its memory: what its manager would do next, and what a reader would find."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.outbox: Record | None = None
        self.handshake = Handshake(0, 0)
        self.boot()

    def boot(self) -> None:
        self.incarnation += 1
        self.outbox = None
        self.handshake = Handshake(self.incarnation, 0)

    def act(self, other: Side) -> None:
        """One RDMA operation, at once."""
        me = self.handshake
        if me.step is Step.READ_STATUS:
            me.on_status(LOADER, other.incarnation)
        elif me.step is Step.WRITE_SEEN:
            self.outbox = flag(self.incarnation, me.partner_incarnation)
            me.on_written(1)
        elif me.step is Step.READ_SEEN:
            me.on_seen(other.outbox)
        elif me.step is Step.WRITE_KNOWN:
            me.on_written(2)
        elif other.incarnation != me.partner_incarnation:
            me.on_status(LOADER, other.incarnation)  # a heartbeat finds the reboot


@pytest.mark.parametrize("seed", range(200))
def test_any_order_of_steps_and_reboots_ends_in_one_pair_of_incarnations(seed):
    chance = random.Random(seed)
    sides = [Side(), Side()]
    for _ in range(chance.randint(0, 60)):
        index = chance.randrange(2)
        if chance.random() < 0.1:
            sides[index].boot()
        else:
            sides[index].act(sides[1 - index])
        for me, other in (sides, sides[::-1]):
            proven = me.handshake.step in (Step.WRITE_KNOWN, Step.DONE)
            if proven and me.handshake.partner_incarnation == other.incarnation:
                seen = other.outbox
                assert seen is not None and seen.partner_incarnation == me.incarnation, "the partner has really seen me"
    for _ in range(12):
        for index in (0, 1):
            sides[index].act(sides[1 - index])
    for me, other in (sides, sides[::-1]):
        assert me.handshake.step is Step.DONE, f"seed {seed}"
        assert me.handshake.partner_incarnation == other.incarnation, f"seed {seed}"
