"""A host whose slot has no card, and one whose card dies, in one process with it."""

from __future__ import annotations

import pytest

from emul.errors import DeviceGone, RDMAError
from emul.local import EmptySlot
from emul.verbs import PD, Context, pyverbs_error
from emul.vocabulary import EventType
from tests.helpers.adapters import AdapterPair, Party


def test_a_slot_without_a_card_answers_nothing_and_has_no_news() -> None:
    context = Context(EmptySlot())
    for ask in (lambda: context.attach(1), lambda: PD(context), lambda: context.query_port(1)):
        with pytest.raises(DeviceGone, match="no card in this slot"):
            ask()
    device = context.device
    device.ring(1)
    device.clear_wake()
    assert (device.take_events(), device.take_cm_events(), device.waiting) == ([], [], False)
    assert (device.descriptors(), device.wait(None, 5), len(device.allocate(64, "qp").buffer)) == ([], False, 64)
    context.close()


def test_a_card_that_dies_says_so_once() -> None:
    pair = AdapterPair()
    party = Party(pair.contexts[0])
    device = party.context.device
    device.dead = True
    assert device.waiting
    assert [event.event_type for event in device.take_events()] == [EventType.DEVICE_FATAL]
    assert (device.take_events(), device.take_cm_events(), device.waiting) == ([], [], False)
    with pytest.raises(DeviceGone, match="the adapter is dead"):
        party.context.query_port(1)
    device.ring(party.qp.qp_num)
    assert (device.wait(None, 5), device.descriptors()) == (False, [])
    device.clear_wake()


def test_pyverbs_names_of_errors_are_where_a_program_looks_for_them() -> None:
    assert issubclass(pyverbs_error.PyverbsRDMAError, pyverbs_error.PyverbsError)
    assert issubclass(pyverbs_error.PyverbsUserError, pyverbs_error.PyverbsError)
    assert issubclass(RDMAError, pyverbs_error.PyverbsRDMAError)
