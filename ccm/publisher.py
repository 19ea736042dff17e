"""What we publish for one partner: the latest body of each slot, and which of them the partner surely holds.

A body is written over one path at a time. A write that failed, or whose path was lost, is simply due again: the same
record over another path. What was under way on a lost path may still land, on top of a newer record that went over
another one: its slots are written once more when that path's connection has been made anew, as nothing of the old one
lands from then on. (A path that is silent, while another can carry records, is left in the same way; its slots are
written once more when it answers what was asked after that, as all before has landed then.) The same holds for what a
former incarnation of ours may have had under way on any path, and for what was under way for a former incarnation of
the partner. While a write of a slot is under way a newer body waits (one write for each slot and path), so that the
number of writes under way is bounded by the number of slots.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccm.actions import WriteRecord
from ccm.exchange import Body, Record, RecordKind


@dataclass(slots=True)
class _Entry:
    body: Body
    sequence: int
    written: bool = False
    path: int | None = None
    """The path on which it is under way."""
    stale: bool = False
    """A newer body came while it was under way."""


class Publisher:
    """The outbox for one partner."""

    __slots__ = (
        "_adrift", "_entries", "_renewed", "_sequence", "incarnation", "node", "partner", "partner_incarnation",
    )  # fmt: skip

    def __init__(self, node: int, incarnation: int, partner: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.partner = partner
        self.partner_incarnation = 0
        self._sequence = 0
        self._entries: dict[tuple[RecordKind, int], _Entry] = {}
        self._adrift: dict[int, set[tuple[RecordKind, int]]] = {}
        """By path: the slots that a late write on it may still overwrite."""
        self._renewed: set[int] = set()
        """Paths on which nothing of a former incarnation of ours can land any more."""

    def begin(self, partner_incarnation: int) -> None:
        """A (new) incarnation of the partner: nothing that was published counts for it."""
        self.partner_incarnation = partner_incarnation
        for key, entry in self._entries.items():
            if entry.path is not None:
                self._adrift.setdefault(entry.path, set()).add(key)
        self._entries.clear()

    def put(self, kind: RecordKind, body: Body, index: int = 0) -> None:
        """Publishes `body`; nothing happens if it is what the slot says already."""
        key = (kind, index)
        entry = self._entries.get(key)
        if entry is not None and entry.body == body:
            return
        self._sequence += 1
        if entry is None or entry.path is None:
            self._entries[key] = _Entry(body, self._sequence)
        else:
            entry.body, entry.sequence, entry.written, entry.stale = body, self._sequence, False, True

    def due(self, path: int) -> list[WriteRecord]:
        """Writes for all that is due, over `path`."""
        writes = []
        for (kind, index), entry in self._entries.items():
            if entry.written or entry.path is not None:
                continue
            entry.path, entry.stale = path, False
            writes.append(WriteRecord(self.partner, path, self.record(kind, index, entry.body, entry.sequence)))
        return writes

    def record(self, kind: RecordKind, index: int, body: Body, sequence: int = 0) -> Record:
        """`body` under our header for this partner."""
        return Record(kind, index, self.node, self.incarnation, self.partner_incarnation, sequence, body)

    def next_sequence(self) -> int:
        """A sequence number for a record that is written past this publisher (the handshake's)."""
        self._sequence += 1
        return self._sequence

    def skip_to(self, sequence: int) -> None:
        """Numbers up to `sequence` were given already, before the partner left and came back."""
        self._sequence = max(self._sequence, sequence)

    def on_written(self, kind: RecordKind, index: int, sequence: int) -> None:
        """The partner's adapter acknowledged a write."""
        entry = self._entries.get((kind, index))
        if entry is None or entry.path is None:
            return
        entry.path = None
        entry.written = not entry.stale and entry.sequence == sequence

    def on_path_lost(self, path: int) -> bool:
        """Writes under way on `path` are due again, and may land all the same. Whether there were any."""
        lost = [key for key, entry in self._entries.items() if entry.path == path]
        for key in lost:
            self._entries[key].path = None
            self._adrift.setdefault(path, set()).add(key)
        return bool(lost)

    def on_path_anew(self, path: int) -> bool:
        """The connection of `path` is a new one, and answers: what the old one may have overwritten is due again.
        Whether there was anything.
        """
        adrift = self._adrift.pop(path, set())
        if path not in self._renewed:
            self._renewed.add(path)
            adrift.update(self._entries)
        for key in sorted(adrift):
            entry = self._entries.get(key)
            if entry is not None:
                entry.written = False
                entry.stale = entry.path is not None
        return bool(adrift)

    def is_written(self, kind: RecordKind, index: int = 0) -> bool:
        """Whether the partner's inbox holds the latest body."""
        entry = self._entries.get((kind, index))
        return entry is not None and entry.written
