"""Generations of a path: two sides that begin anew at any time end with queue pairs that belong together."""

from __future__ import annotations

import random

import pytest

from ccm.exchange import LaneEntry, PathInfo, ViAddress
from ccm.pairing import Lane, Pairing, Verdict


def test_two_fresh_sides_pair_at_once():
    ours, theirs = Pairing(leads=True), Pairing(leads=False)
    ours.begin()
    theirs.begin()
    assert theirs.on_partner(ours.publish(0, 3)) is Verdict.WAIT, "the one that leads goes first"
    assert ours.on_partner(theirs.publish(0, 3)) is Verdict.PAIRED
    assert theirs.on_partner(ours.publish(0, 3)) is Verdict.PAIRED and theirs.mutual
    assert not ours.mutual, "that the partner has paired is not known yet"
    ours.on_partner(theirs.publish(0, 3))
    assert ours.mutual


def test_a_partner_that_belongs_with_our_former_life_has_to_wait():
    ours = Pairing(leads=True)
    ours.begin()
    ours.begin()
    assert ours.on_partner(PathInfo(7, 1, 0, 3, ())) is Verdict.WAIT and ours.paired_with == 0


def test_a_partner_that_began_anew_breaks_the_pair():
    ours = Pairing(leads=True)
    ours.begin()
    ours.on_partner(PathInfo(1, 1, 0, 3, ()))
    assert ours.on_partner(PathInfo(2, 0, 0, 3, ())) is Verdict.BROKEN


def test_lanes_are_usable_when_both_ends_of_one_epoch_and_pair_are_connected():
    ours = Pairing(leads=True)
    ours.begin()
    entry = LaneEntry(5, 3, 1, 0, 0, 0, (ViAddress(9, 1),))
    ours.lanes[5] = Lane(3, entry, connected=True)
    ours.on_partner(PathInfo(1, 1, 0, 3, (LaneEntry(5, 3, 0, 0, 0, 0, ()),)))
    assert not ours.lane_usable(5, 3), "the partner's end is not ready to receive"
    ours.on_partner(PathInfo(1, 1, 0, 3, (LaneEntry(5, 2, 1, 0, 0, 0, ()),)))
    assert not ours.lane_usable(5, 3), "another epoch"
    ours.on_partner(PathInfo(1, 1, 0, 3, (entry,)))
    assert ours.lane_usable(5, 3)
    assert not ours.lane_usable(5, 4) and not ours.lane_usable(6, 3)


@pytest.mark.parametrize("seed", range(200))
def test_sides_that_begin_anew_at_any_time_converge(seed):
    """Records are states: each side sees the other's latest or an earlier one, in order."""
    chance = random.Random(seed)
    sides = [Pairing(leads=True), Pairing(leads=False)]
    queues: list[list[PathInfo]] = [[], []]

    def begin(index: int) -> None:
        sides[index].begin()
        publish(index)

    def publish(index: int) -> None:
        queues[1 - index].append(sides[index].publish(0, 3))

    def deliver(index: int) -> None:
        before = sides[index].paired_with
        if sides[index].on_partner(queues[index].pop(0)) is Verdict.BROKEN:
            begin(index)
            sides[index].judge()
        if sides[index].paired_with != before:
            publish(index)

    begin(0)
    begin(1)
    for _ in range(chance.randint(0, 12)):
        index = chance.randrange(2)
        if chance.random() < 0.4:
            begin(index)
            sides[index].judge()
            publish(index)
        elif queues[index]:
            deliver(index)
    for _ in range(60):
        for index in (0, 1):
            if queues[index]:
                deliver(index)
    assert not queues[0] and not queues[1], f"seed {seed}: they go on for ever"
    assert sides[0].mutual and sides[1].mutual, f"seed {seed}"
    assert sides[0].paired_with == sides[1].generation and sides[1].paired_with == sides[0].generation
