"""Handshake and pairing as tables: each step or situation with each input, all cells."""

from __future__ import annotations

import pytest

from ccm.exchange import PathInfo, Record, RecordKind, Seen
from ccm.handshake import Handshake, Step
from ccm.pairing import Pairing, Verdict

ME, PARTNER, PATH = 5, 9, 1
FIRMWARE, LOADER = 1, 2


def flag(writer: int = PARTNER, partner: int = ME, index: int = PATH) -> Record:
    return Record(RecordKind.SEEN, index, 2, writer, partner, 1, Seen(1))


INPUTS = {
    "page without a host": lambda h: h.on_status(FIRMWARE, PARTNER),
    "page without incarnation": lambda h: h.on_status(LOADER, 0),
    "page of this incarnation": lambda h: h.on_status(LOADER, PARTNER),
    "page of a later one": lambda h: h.on_status(LOADER, PARTNER + 1),
    "page of an earlier one": lambda h: h.on_status(LOADER, PARTNER - 1),
    "write 1 done": lambda h: h.on_written(1),
    "write 2 done": lambda h: h.on_written(2),
    "no flag": lambda h: h.on_seen(None),
    "flag for us": lambda h: h.on_seen(flag()),
    "flag for our former life": lambda h: h.on_seen(flag(partner=ME - 1)),
    "flag for a life to come": lambda h: h.on_seen(flag(partner=ME + 1)),
    "flag of the partner's former life": lambda h: h.on_seen(flag(writer=PARTNER - 1)),
    "flag of the partner's next life": lambda h: h.on_seen(flag(writer=PARTNER + 1)),
    "flag of another path": lambda h: h.on_seen(flag(index=PATH + 1)),
    "the partner's host is lost": lambda h: h.restart(),
}
LETTERS = dict(zip("abcde", Step, strict=True))
HANDSHAKE = {
    # next step after each, from READ_STATUS a, WRITE_SEEN b, READ_SEEN c, WRITE_KNOWN d, DONE e; capital: it succeeded
    "page without a host": "a b c d e",
    "page without incarnation": "a a a a a",
    "page of this incarnation": "B b c d e",
    "page of a later one": "B B B B B",
    "page of an earlier one": "B B B B B",
    "write 1 done": "a C c d e",
    "write 2 done": "a b c E e",
    "no flag": "a b c d e",
    "flag for us": "a b D d e",
    "flag for our former life": "a b c d e",
    "flag for a life to come": "a b c d e",
    "flag of the partner's former life": "a b c d e",
    "flag of the partner's next life": "a b a d e",
    "flag of another path": "a b c d e",
    "the partner's host is lost": "a a a a a",
}


def handshake_at(step: Step) -> Handshake:
    handshake = Handshake(ME, PATH)
    handshake.step = step
    handshake.partner_incarnation = 0 if step is Step.READ_STATUS else PARTNER
    return handshake


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("step", Step)
def test_each_cell_of_the_handshake(step, what):
    expected = HANDSHAKE[what].split()[list(Step).index(step)]
    handshake = handshake_at(step)
    succeeded = bool(INPUTS[what](handshake))
    assert handshake.step is LETTERS[expected.lower()]
    assert succeeded is expected.isupper()
    known = handshake.partner_incarnation
    assert (known == 0) is (handshake.step is Step.READ_STATUS), "an incarnation is known from read 1 on"


@pytest.mark.parametrize("step", [0, 3, -1])
def test_a_write_that_is_no_step_of_the_handshake_is_a_mistake_of_ours(step):
    handshake = handshake_at(Step.WRITE_SEEN)
    with pytest.raises(ValueError, match=r"step 1 or 2"):
        handshake.on_written(step)
    assert handshake.step is Step.WRITE_SEEN


OURS, THEIRS = 4, 7
"""Generations in the table below."""
SITUATIONS = {
    "not begun": lambda: pairing(generation=0),
    "alone, leads": lambda: pairing(leads=True),
    "alone, follows": lambda: pairing(),
    "paired": lambda: pairing(paired_with=THEIRS),
}
RECORDS = {
    "nothing": None,
    "belongs with nobody": PathInfo(THEIRS, 0, 3, 3, ()),
    "belongs with ours": PathInfo(THEIRS, OURS, 3, 3, ()),
    "belongs with our former one": PathInfo(THEIRS, OURS - 1, 3, 3, ()),
    "belongs with one that we never had": PathInfo(THEIRS, OURS + 1, 3, 3, ()),
    "begun anew": PathInfo(THEIRS + 1, 0, 3, 3, ()),
    "begun anew, belongs with ours": PathInfo(THEIRS + 1, OURS, 3, 3, ()),
}
PAIRING = {
    # not begun; alone, leads; alone, follows; paired: W waits, P paired, M paired on both sides, B broken
    "nothing": "W W W W",
    "belongs with nobody": "W P W P",
    "belongs with ours": "W M M M",
    "belongs with our former one": "W W W P",
    "belongs with one that we never had": "W W W P",
    "begun anew": "W P W B",
    "begun anew, belongs with ours": "W M M B",
}
VERDICTS = {"W": (Verdict.WAIT, False), "P": (Verdict.PAIRED, False), "M": (Verdict.PAIRED, True)}
VERDICTS |= {"B": (Verdict.BROKEN, False)}


def pairing(*, leads: bool = False, generation: int = OURS, paired_with: int = 0) -> Pairing:
    made = Pairing(leads=leads)
    made.generation, made.paired_with = generation, paired_with
    return made


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_cell_of_the_pairing(situation, record):
    verdict, mutual = VERDICTS[PAIRING[record].split()[list(SITUATIONS).index(situation)]]
    ours, info = SITUATIONS[situation](), RECORDS[record]
    before = ours.paired_with
    got = ours.judge() if info is None else ours.on_partner(info)
    assert got is verdict
    assert ours.mutual is mutual
    if got is not Verdict.PAIRED:
        assert ours.paired_with == before, "nothing else pairs"
    elif not before:
        assert info is not None
        assert (ours.paired_with, ours.partner_fence_epoch) == (info.generation, info.fence_epoch)


def test_the_tables_have_all_cells():
    assert set(HANDSHAKE) == set(INPUTS) and set(PAIRING) == set(RECORDS)
    assert all(len(row.split()) == len(Step) for row in HANDSHAKE.values())
    assert all(len(row.split()) == len(SITUATIONS) for row in PAIRING.values())
