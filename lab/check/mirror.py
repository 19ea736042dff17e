"""Mirrored data: the memory of both sides against the history (checks 1 and 5).

For each slot of a writer's log the history tells which write was committed last and which were still under way after
it. The bytes found must be the committed record, or one that was submitted later; anything else was lost, is stale, or
was invented. A slot holds a mixture only where a later write was under way at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from ccm.history import Entry, Kind
from emul.wire.icrc import crc32
from lab.check.evidence import CheckResult, Evidence, Findings, Session

MIRROR_CLIENT = "nvram-mirror"
BLOCK_BYTES = 65_536
_BLANK = bytes(BLOCK_BYTES)
_Order = tuple[int, int]
"""Incarnation, sequence: later writes of a stream are greater."""


@dataclass(slots=True)
class Slot:
    """What the history says of one place in a writer's log."""

    offset: int
    length: int = 0
    committed: _Order | None = None
    writes: dict[_Order, Entry] = field(default_factory=dict)

    def acceptable(self) -> dict[int, _Order]:
        """Digest to write, of all that may stand there."""
        floor = self.committed or (0, 0)
        return {entry.digest: order for order, entry in self.writes.items() if order >= floor}

    def in_doubt(self) -> bool:
        """Whether a write later than the last committed one was submitted."""
        floor = self.committed
        return any(floor is None or order > floor for order in self.writes)


class Found(Enum):
    """What a slot holds."""

    WHOLE = "whole"
    UNTOUCHED = "untouched"
    TORN = "torn, a later write was under way"
    LOST = "lost"
    STALE = "stale"
    INVENTED = "invented"


def slots_of(evidence: Evidence, stream: Session) -> dict[int, Slot]:
    """The slots of one writer's log by their offset."""
    slots: dict[int, Slot] = {}
    for entry in evidence.of_session(stream, Kind.SUBMITTED):
        slot = slots.setdefault(entry.offset, Slot(entry.offset))
        slot.length = max(slot.length, entry.length)
        slot.writes[entry.incarnation, entry.sequence] = entry
    for entry in evidence.of_session(stream, Kind.COMMITTED):
        order = (entry.incarnation, entry.sequence)
        slot_of = slots.get(entry.offset)
        if slot_of is not None and order in slot_of.writes:
            slot_of.committed = max(slot_of.committed or order, order)
    return slots


def examine(slot: Slot, half: memoryview) -> Found:
    """Compares one slot with the bytes of the half of a card that should hold it."""
    digests: dict[int, int] = {}
    floor, older = slot.committed or (0, 0), False
    for order, entry in slot.writes.items():
        digest = digests.get(entry.length)
        if digest is None:
            digest = digests[entry.length] = crc32(half[slot.offset : slot.offset + entry.length])
        if digest == entry.digest:
            if order >= floor:
                return Found.WHOLE
            older = True
    if older and slot.committed is not None:
        return Found.STALE
    untouched = _is_blank(half[slot.offset : slot.offset + slot.length])
    if slot.committed is None and untouched:
        return Found.UNTOUCHED
    if slot.in_doubt():
        return Found.TORN
    return Found.LOST


def invented(slots: Mapping[int, Slot], half: memoryview) -> int | None:
    """The offset of the first byte that nobody submitted, None where there is none."""
    at = 0
    for offset in sorted(slots):
        if not _is_blank(half[at:offset]):
            return at
        at = max(at, offset + slots[offset].length)
    return None if _is_blank(half[at:]) else at


def _is_blank(view: memoryview) -> bool:
    """Whether all bytes are zero; compares block by block, as a card has megabytes."""
    return all(
        bytes(view[at : at + BLOCK_BYTES]) == _BLANK[: min(BLOCK_BYTES, len(view) - at)]
        for at in range(0, len(view), BLOCK_BYTES)
    )


def no_committed_loss(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """Each committed record is whole on both cards, or overwritten by a later write of the same slot; nothing stale,
    nothing invented.
    """
    findings = Findings("mirror.no_committed_loss")
    torn = 0
    for stream in evidence.streams:
        if evidence.clients.get(stream.client) != MIRROR_CLIENT:
            continue
        slots = slots_of(evidence, stream)
        _judge_unsubmitted(evidence, findings, stream)
        for node, half in _halves(evidence, stream):
            torn += _judge_half(evidence, findings, stream, slots, node, half)
    doubt = f", {torn} slots in doubt with a write under way" if torn else ""
    return findings.result(f"{findings.exercised} slots with committed records compared on both cards{doubt}",
                           "no mirrored write was committed")  # fmt: skip


def lost_records(evidence: Evidence, stream: Session) -> int:
    """How many of the stream's committed records are not, or no longer, where they should be."""
    slots = slots_of(evidence, stream)
    lost = set()
    for _, half in _halves(evidence, stream):
        for slot in slots.values():
            if slot.committed is not None and examine(slot, half) in (Found.LOST, Found.STALE):
                lost.add(slot.offset)
    return len(lost)


def _halves(evidence: Evidence, stream: Session) -> list[tuple[int, memoryview]]:
    """The writer's own log and the partner's mirror of it, with the node whose card it is."""
    halves = []
    for node, second in ((stream.node, False), (stream.partner, True)):
        card = evidence.nvram.get(node)
        if card is None:
            continue
        view, middle = memoryview(card), len(card) // 2
        halves.append((node, view[middle:] if second else view[:middle]))
    return halves


def _judge_half(
    evidence: Evidence, findings: Findings, stream: Session, slots: dict[int, Slot], node: int, half: memoryview
) -> int:
    """Gives the number of slots in doubt that are torn."""
    torn = 0
    where = f"{evidence.session_name(stream)} on {evidence.node_name(node)}'s card"
    for slot in slots.values():
        findings.looked(slot.committed is not None)
        found = examine(slot, half)
        if found in (Found.LOST, Found.STALE):
            incarnation, sequence = slot.committed or (0, 0)
            findings.problem(
                f"{where}: record {sequence} of incarnation {incarnation} at offset {slot.offset} is {found.value}"
            )
        torn += found == Found.TORN
    at = invented(slots, half)
    if at is not None:
        findings.problem(f"{where}: bytes from offset {at} on that nobody submitted")
    return torn


def _judge_unsubmitted(evidence: Evidence, findings: Findings, stream: Session) -> None:
    """A commit needs a submission of the same bytes, and happens once."""
    submitted = evidence.submitted(stream)
    seen: set[_Order] = set()

    def problem(commit: Entry, text: str) -> None:
        name = f"{evidence.session_name(stream)}, record {commit.sequence} of incarnation {commit.incarnation}"
        findings.problem(f"{name} was committed {text}")

    for commit in evidence.of_session(stream, Kind.COMMITTED):
        order = (commit.incarnation, commit.sequence)
        if order not in submitted:
            problem(commit, "without having been submitted")
        elif submitted[order].digest != commit.digest:
            problem(commit, "with other bytes than submitted")
        if order in seen:
            problem(commit, "twice")
        seen.add(order)
