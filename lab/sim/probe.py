"""Looks into the emulated hardware of a simulated run: adapters, keys, exchange areas (lab.check.holdings.Facts).

Reads and touches nothing. What is read again and again is parsed once for each change: a record's header has a sequence
and a checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, cast

from ccm.exchange import (
    HEADER_BYTES,
    Info,
    LaneEntry,
    PathInfo,
    Record,
    RecordKind,
    Sessions,
    parse_record,
    slot_range,
)  # fmt: skip
from ccm.needs import client_key
from emul.adapter import Adapter
from emul.firmware import FirmwareLink
from emul.node_memory import PATHS_MAX, fence_slot
from emul.qp import QueuePair
from emul.vocabulary import QPState
from lab.check.holdings import HeldLanes, HeldVi, Told
from lab.injector.strangers import MARK
from lab.plan import Plan
from lab.sim.node import SimNode

_PLACE = {
    (kind, index): slot_range(kind, index)
    for kind, indices in ((RecordKind.INFO, 1), (RecordKind.MANIFEST, 1), (RecordKind.SESSIONS, 1))
    for index in range(indices)
} | {(RecordKind.PATH, index): slot_range(RecordKind.PATH, index) for index in range(PATHS_MAX)}
_Key = tuple[int, int, bool, RecordKind, int]
"""Node whose memory it is, the other one, whether it is the outbox, kind, index."""


class Calm(Protocol):
    """Facts.calm_since."""

    def __call__(self, *, but_versions: bool = False) -> int | None:
        """As there."""


class Probe:
    """One run's hardware, by node ids."""

    def __init__(
        self,
        plan: Plan,
        nodes: Mapping[int, SimNode],
        *,
        awake_since: Callable[[int], int | None],
        calm_since: Calm,
        now: Callable[[], int],
    ) -> None:
        self._now = now
        self._hung: dict[int, int | None] = {}
        self._strange = self._strange_before = 0
        """Strangers' frames since the last look, and between the two before."""
        self._keys_differ = False
        self._links_met: dict[int, FirmwareLink] = {}
        """Well-known connections that are accounted for (kept, so that their ids stay theirs)."""
        self._nodes = nodes
        self.awake_since = awake_since
        """Facts, as is the next."""
        self.calm_since = calm_since
        names = {number: name for name, number in plan.node_ids.items()}
        self._clients = {client_key(name): number for number, name in enumerate(plan.topology.client_names, 1)}
        self._adapter = {
            (number, partner, path.index): self._nodes[number].adapters[path.local.adapter]
            for number in nodes
            for partner in nodes
            for path in plan.paths(names[number], names[partner])
        }
        self._parsed: dict[_Key, tuple[bytes, Record | None]] = {}
        self._met: dict[tuple[int, str], dict[int, QueuePair]] = {}
        self.young: dict[int, list[tuple[Adapter, QueuePair]]] = {}
        """Queue pairs that were just made, and tagged with nothing yet."""

    # -- lab.check.holdings.Facts -------------------------------------------------------------------------------------

    def told(self, writer: int, reader: int) -> Told | None:
        """Facts."""
        return self._told(writer, reader, outbox=True)

    def heard(self, reader: int, writer: int) -> Told | None:
        """Facts."""
        return self._told(reader, writer, outbox=False)

    def published(self, node: int, partner: int) -> Sequence[HeldLanes]:
        """Facts."""
        found = []
        for path in range(PATHS_MAX):
            adapter = self._adapter.get((node, partner, path))
            card = adapter.card if adapter is not None else None
            record = self._record(node, partner, RecordKind.PATH, path, outbox=True) if card is not None else None
            if card is None or record is None or record.writer_incarnation != self._nodes[node].memory.incarnation:
                continue
            assert isinstance(record.body, PathInfo)
            found += [self._held(card, path, entry) for entry in record.body.lanes if entry.client in self._clients]
        return found

    def fresh_vis(self, node: int) -> Sequence[tuple[int, HeldVi]]:
        """Facts."""
        waiting = self.young.pop(node, [])
        for name, adapter in self._nodes[node].adapters.items():
            card = adapter.card
            if card is None:
                continue
            met, there = self._met.setdefault((node, name), {}), cast(dict[int, QueuePair], card.queue_pairs())
            for number in reversed(there):  # the newest are the last
                qp = there[number]
                if met.get(number) is qp:
                    break
                met[number] = qp
                waiting.append((card, qp))
            if len(met) > 2 * len(there) + 64:
                self._met[node, name] = dict(there)
        fresh, young = [], []
        for card, qp in waiting:
            if qp.state is QPState.RESET and not qp.attr.fence_slot and card.queue_pairs().get(qp.number) is qp:
                young.append((card, qp))
            elif qp.attr.fence_slot:
                fresh.append(_held_vi(card, qp))
        if young:
            self.young[node] = young
        return fresh

    def vis(self, node: int) -> Sequence[tuple[int, HeldVi]]:
        """Facts."""
        return list(self._all_vis(node))

    def _all_vis(self, node: int) -> Iterator[tuple[int, HeldVi]]:
        incarnation = self._nodes[node].memory.incarnation
        for adapter in self._nodes[node].adapters.values():
            card = adapter.card
            if card is None or card.host is None or card.host.incarnation != incarnation:
                continue
            for qp in card.host.qps.values():
                if qp.attr.fence_slot:
                    yield _held_vi(card, qp)

    def has_vi(self, vi: HeldVi) -> bool:
        """Facts."""
        card = cast(Adapter, vi.card)
        return card.queue_pairs().get(vi.number) is vi.handle and self._is_in(card)

    def has_key(self, card: object, key: int) -> bool:
        """Facts."""
        return cast(Adapter, card).regions.get(key) is not None and self._is_in(cast(Adapter, card))

    def takes(self, vi: HeldVi) -> bool:
        """Facts."""
        return cast(QueuePair, vi.handle).state in (QPState.RTR, QPState.RTS)

    def pending(self, vi: HeldVi) -> int:
        """Facts."""
        return cast(int, cast(QueuePair, vi.handle).inspect()["requests"])

    def is_shut(self, node: int, partner: int, vi: HeldVi) -> bool:
        """Facts."""
        adapter = self._adapter.get((partner, node, vi.path))
        card = adapter.card if adapter is not None else None
        if card is None:
            return True
        other = card.queue_pairs().get(cast(QueuePair, vi.handle).attr.dest_qp_num)
        if other is None or other.state not in (QPState.RTR, QPState.RTS):
            return True
        standing = self._nodes[partner].memory.fence_epoch(fence_slot(node, vi.path))
        return standing > other.attr.fence_epoch

    def sent(self, vi: HeldVi) -> int:
        """Facts."""
        return cast(QueuePair, vi.handle).query().sq_psn

    def expected(self, vi: HeldVi) -> int:
        """Facts."""
        return cast(QueuePair, vi.handle).query().rq_psn

    def fence_of(self, vi: HeldVi) -> int:
        """Facts."""
        return cast(QueuePair, vi.handle).attr.fence_epoch

    def note_stranger(self) -> None:
        """A stranger's frame is on its way."""
        self._strange += 1

    def note_keys(self) -> None:
        """A node has another cluster key from now on: who is connected already came with the former one."""
        self._keys_differ = True
        for node in self._nodes.values():
            for adapter in node.adapters.values():
                links = adapter.card.partner_links() if adapter.card is not None else []
                self._links_met.update((id(link), link) for link in links)

    def strangers_marks(self) -> Sequence[str]:
        """Facts: of frames that had the time between two looks to arrive."""
        landed, self._strange_before, self._strange = self._strange_before, self._strange, 0
        if not landed:
            return []
        marked = [
            f"a stranger's bytes are in the {what} of node {number}"
            for number, node in self._nodes.items()
            for what, memory in (("NVRAM", node.nvram), ("node memory", node.memory.memory))
            if MARK in bytes(memory.buffer)
        ]
        return [*marked, *[""] * (landed - len(marked))]

    def fresh_links(self) -> Sequence[tuple[int, str]]:
        """Facts."""
        found: list[tuple[int, str]] = []
        if not self._keys_differ:
            return found
        for number, node in self._nodes.items():
            for adapter in node.adapters.values():
                for link in adapter.card.partner_links() if adapter.card is not None else []:
                    met = id(link) in self._links_met
                    theirs = next(iter(self._nodes[link.partner_id].adapters.values())).keys[0]
                    if met or theirs in adapter.keys:
                        continue
                    if link.proven:
                        self._links_met[id(link)] = link
                    opened = f"node {link.partner_id} is let in with another key" if link.proven else ""
                    found.append((number, opened))
        return found

    # -- inside -------------------------------------------------------------------------------------------------------

    def on_hang(self, node: int, adapter: str, *, until: int | None) -> None:
        """A card hangs, or (`until`) goes on and is opened anew by its host within a moment: till then nobody can give
        anything back.
        """
        card = self._nodes[node].adapters[adapter].card
        if card is not None:
            self._hung[id(card)] = until

    def _is_in(self, card: Adapter) -> bool:
        """Whether a card is in its slot and does what its host wants."""
        if id(card) in self._hung:
            until = self._hung[id(card)]
            if until is None or self._now() < until:
                return False
        return any(adapter.card is card for node in self._nodes.values() for adapter in node.adapters.values())

    def _held(self, card: Adapter, path: int, entry: LaneEntry) -> HeldLanes:
        there = card.queue_pairs()
        vis = [there[each.qp_num] for each in entry.vis if each.qp_num in there]
        return HeldLanes(
            path, self._clients[entry.client], entry.epoch, entry.rkey if entry.length else 0,
            tuple(HeldVi(qp.number, path, card, qp) for qp in vis), card,
        )  # fmt: skip

    def _told(self, holder: int, other: int, *, outbox: bool) -> Told | None:
        info = self._record(holder, other, RecordKind.INFO, outbox=outbox)
        manifest = self._record(holder, other, RecordKind.MANIFEST, outbox=outbox)
        sessions = self._record(holder, other, RecordKind.SESSIONS, outbox=outbox)
        if info is None:
            return None
        assert isinstance(info.body, Info)
        body = info.body
        digest = sessions.body.digest if sessions is not None and isinstance(sessions.body, Sessions) else 0
        text = repr(manifest.body).encode() if manifest is not None else b""
        return Told(info.writer_incarnation, text, digest, (body.version_least, body.version_most), body.refusal)

    def _record(self, holder: int, other: int, kind: RecordKind, index: int = 0, *, outbox: bool) -> Record | None:
        """What stands in one slot of an exchange area; None where that is nothing, or no record."""
        memory = self._nodes[holder].memory
        area = memory.outbox(other) if outbox else memory.inbox(other)
        offset, length = _PLACE[kind, index]
        header, key = bytes(area[offset : offset + HEADER_BYTES]), (holder, other, outbox, kind, index)
        known = self._parsed.get(key)
        if known is None or known[0] != header:
            found = parse_record(area[offset : offset + length], kind, index)
            known = self._parsed[key] = (header, found if isinstance(found, Record) else None)
        return known[1]


def _held_vi(card: Adapter, qp: QueuePair) -> tuple[int, HeldVi]:
    partner, path = divmod(qp.attr.fence_slot, PATHS_MAX)
    return partner, HeldVi(qp.number, path, card, qp)
