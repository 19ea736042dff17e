"""When two states of a node are the same: what it holds without what can't make a difference.

Clocks and durations are dropped: of a timer it counts whether it is armed. Sequence numbers are
compared with others of the same slot alone: so they are numbered anew, 1, 2, ..., in each slot of each writer, when
one has been given or is nowhere any more. All other fields of the manager's objects count, also ones that are added
later.
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

from ccm.actions import WriteRecord
from ccm.exchange import RecordKind
from ccm.path import Path
from ccm.peering import Peering
from tests.explore.copying import fields_of, is_shared
from tests.explore.node import FRESH, Node, Slot

ARMED = {
    "close_by", "fence_retry_at", "poll_at", "probe_at", "rebalance_at", "relink_at", "retry_at", "stranded_by",
    "mend_by", "refused_until",
}  # fmt: skip
"""Instants: None or not is what counts."""
DROPPED = {
    # clocks and measured times
    "since", "up_since", "connect_by", "retry_ns", "hold_down_ns", "rtt_ns", "_answered", "_base_at", "_busy_until",
    "_budget", "_rate", "budget", "_window_at", "_best_before_ns", "_best_ns", "_worst_before_ns", "_worst_ns",
    "_shaken_until", "last_life_at", "next_probe_at", "_told_at", "_expected_at", "_looks_at", "_excused_until",
    "settings", "_settings", "refused_ns", "patience", "spread",
    # only for people
    "reason", "losses", "last_loss", "readies", "breaks", "last_error", "refused", "last_refusal", "steps_taken",
    # the source of sequence numbers, which are numbered anew; constants; links back
    "_sequence", "needs", "entry_name", "out", "_out", "_handlers",
}  # fmt: skip
LINKS_BACK = {"PathSet", "Publisher", "SessionSet", "Settling", "Failover"}

Sequences = frozenset[tuple[Slot, int]]
Numbering = dict[tuple[Slot, int], int]
"""(slot, sequence) -> new sequence."""


class Canon:
    """Numbers what values can't change, so that comparing nodes compares small numbers."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[object, int]] = {}
        self._by_value: dict[object, int] = {}
        self._fields: dict[type, list[tuple[str, bool]]] = {}

    def key(self, node: Node) -> int:
        """A number that equal nodes share. Different ones have different numbers, but for a chance of one in 2^64."""
        return hash((
            node.number, node.incarnation, node.stage, node.wants, node.epoch, node.ready_epoch, node.open_epoch,
            None if node.manager is None else self._peering(node.peering),
            tuple(sorted(node.fences.items())), tuple(sorted(node.outbox.values())),
            tuple([(path, self._value(lanes)) for path, lanes in sorted(node.lanes.items())]),
            tuple(sorted(node.opened.items())), tuple(sorted(node.routes.items())), tuple(sorted(node.moves.items())),
            tuple(map(self._value, node.chores)), tuple(sorted(node.step.items())), frozenset(node.told),
            frozenset(node.seen),
        ))  # fmt: skip

    def _peering(self, peering: Peering) -> object:
        paths, value = peering.paths.paths, self._value
        return (
            *(path.alarm_at() is not None for path in paths), _evidence(paths),
            tuple(sorted(peering._sequences.items())), peering.partner_incarnation, peering.partner_stage,
            *map(value, paths), value(peering.publisher), value(peering.sessions), value(peering.settling.agreement),
            peering.settling.rebalance_at is not None, peering.failover.fence_number,
        )  # fmt: skip

    def _value(self, value: Any) -> object:
        kind = type(value)
        if kind in _PLAIN:
            return value
        found = self._by_id.get(id(value))
        if found is not None:
            return found[1]
        if kind is dict:
            return tuple([(name, self._value(held)) for name, held in sorted(value.items())])
        if kind is list or kind is tuple:
            return tuple(map(self._value, value))
        if kind is set:
            return frozenset(value)
        fields = self._fields.get(kind)
        if fields is None:
            if isinstance(value, Enum | int):
                _PLAIN.add(kind)
                return value
            if is_shared(value):
                return self._number(value)
            fields = self._fields[kind] = _fields(value)
        parts: list[object] = [kind.__name__]
        for name, armed in fields:
            held = getattr(value, name)
            if name == "mended":
                held = len(held)
            parts.append(held is not None if armed else held if type(held) in _PLAIN else self._value(held))
        return tuple(parts)

    def _number(self, value: object) -> int:
        number = self._by_value.setdefault(value, len(self._by_value))
        self._by_id[id(value)] = (value, number)  # held, so that its id stays its own
        return number


def _evidence(paths: list[Path]) -> tuple[int, ...]:
    """Of each silent path, how many probes of each other one were answered since it was asked."""
    return tuple(
        sum(answered >= path.liveness.probe_at for answered in other.liveness._answered)
        for path in paths
        if path.liveness.probe_at is not None
        for other in paths
        if other is not path
    )


_PLAIN = {int, bool, str, bytes, type(None), frozenset}


def _fields(value: object) -> list[tuple[str, bool]]:
    return [
        (name, name in ARMED)
        for name in fields_of(value)
        if name not in DROPPED
        and type(getattr(value, name)).__name__ not in LINKS_BACK
        and not callable(getattr(value, name))
    ]


# sequence numbers


def own_sequences(node: Node) -> set[tuple[Slot, int]]:
    """Those that the node has given and still holds."""
    found = {(slot, write[2]) for slot, write in node.outbox.items()}
    for chore in node.chores:
        if isinstance(chore, WriteRecord):
            found.add(((int(chore.record.kind), chore.record.index), chore.record.sequence))
    if node.manager is not None:
        peering = node.peering
        found |= {((int(RecordKind.SEEN), path.index), path.seen_sequence) for path in peering.paths.paths}
        found |= {((int(kind), index), entry.sequence) for (kind, index), entry in peering.publisher._entries.items()}
    return found


def heard_sequences(node: Node) -> set[tuple[Slot, int]]:
    """Those of its partner that the node remembers."""
    if node.manager is None:
        return set()
    return {((int(kind), index), sequence) for (kind, index), sequence in node.peering._sequences.items()}


def number_anew(found: Sequences) -> Numbering:
    """The same order of sequence numbers in each slot with small numbers; empty when they are that already."""
    slots: dict[Slot, list[int]] = {}
    for slot, sequence in found:
        if sequence:
            slots.setdefault(slot, []).append(sequence)
    new: Numbering = {}
    changed = False
    for slot, sequences in slots.items():
        for rank, sequence in enumerate(sorted(sequences), 1):
            new[slot, sequence] = rank
            changed |= rank != sequence
    return new if changed else {}


def settle_fresh(node: Node, before: Sequences, written: Sequences) -> Numbering:
    """Numbers what the node has just given, some of it perhaps `written` and given up again: from the highest on that
    it held `before`.
    """
    highest: dict[Slot, int] = {}
    for slot, sequence in before:
        highest[slot] = max(highest.get(slot, 0), sequence)
    new: Numbering = {}
    for slot, sequence in sorted(own_sequences(node) | written):
        if sequence > FRESH:
            new[slot, sequence] = highest[slot] = highest.get(slot, 0) + 1
    if new:
        renumber(node, new, {})
    return new


def renumber(node: Node, own: Numbering, others: Numbering) -> None:
    """Changes the sequence numbers that the node holds."""
    if own:
        node.outbox = {
            slot: (*slot, own.get((slot, write[2]), write[2]), write[3]) for slot, write in node.outbox.items()
        }
        node.chores = [_renumbered(chore, own) for chore in node.chores]
    if node.manager is None:
        return
    peering = node.peering
    if own:
        for path in peering.paths.paths:
            slot = (int(RecordKind.SEEN), path.index)
            path.seen_sequence = own.get((slot, path.seen_sequence), path.seen_sequence)
        for (kind, index), entry in peering.publisher._entries.items():
            entry.sequence = own.get(((int(kind), index), entry.sequence), entry.sequence)
        peering.publisher._sequence = FRESH
    for (kind, index), sequence in peering._sequences.items():
        peering._sequences[kind, index] = others.get(((int(kind), index), sequence), sequence)


def _renumbered(chore: Any, own: Numbering) -> Any:
    if not isinstance(chore, WriteRecord):
        return chore
    record = chore.record
    sequence = own.get(((int(record.kind), record.index), record.sequence), record.sequence)
    return dataclasses.replace(chore, record=dataclasses.replace(record, sequence=sequence))
