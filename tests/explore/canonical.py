"""When two worlds of the explorer are the same: their state without what can't make a difference.

Clocks and durations are dropped: of a timer it counts whether it is armed and which one is next. Sequence numbers are
replaced by their rank. All other fields of the manager's objects count, also ones that are added later.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from ccm.exchange import Record, RecordKind
from emul.clock import Instant
from tests.explore.model import Node, World

ARMED = {
    "close_by", "fence_retry_at", "poll_at", "probe_at", "rebalance_at", "relink_at", "retry_at", "stranded_by",
}  # fmt: skip
"""Instants: None or not is what counts."""
DROPPED = {
    # clocks and measured times
    "since", "up_since", "connect_by", "retry_ns", "hold_down_ns", "rtt_ns", "_answered", "_base_at", "_busy_until",
    "_budget", "_rate", "budget", "_window_at", "_worst_before_ns", "_worst_ns", "_shaken_until", "last_life_at",
    "next_probe_at", "_told_at", "_expected_at", "_looks_at", "_excused_until",
    # only for people
    "reason", "losses", "last_loss", "readies", "breaks", "last_error", "refused", "last_refusal", "steps_taken",
    # the source of sequence numbers, which are ranked; constants; links back
    "_sequence", "needs", "entry_name", "out", "_out", "_handlers",
}  # fmt: skip
SEQUENCES = {"sequence", "seen_sequence"}
_fields: dict[type, list[tuple[str, int]]] = {}


def key(world: World) -> int:
    """A number that equal worlds share. Different ones have different numbers, but for a chance of one in 2^64."""
    ranks = [_ranks(world, node) for node in world.nodes]
    parts = tuple(_node(node, ranks) for node in world.nodes)
    return hash((world.budget, world.cut, parts))


def _ranks(world: World, writer: Node) -> dict[int, int]:
    """Sequence numbers that `writer` has given and that are still somewhere, by their order."""
    found: set[int] = set()
    other = world.nodes[2 - writer.number]
    for link in writer.links.values():
        found |= {rest[0].sequence for what, *rest in link.requests if what == "write"}
        found |= {answer.sequence for answer in link.answers if hasattr(answer, "sequence")}
    for records in (*writer.adrift.values(), writer.outbox.values(), other.inbox.values()):
        found |= {record.sequence for record in records}
    found |= {chore.record.sequence for chore in writer.chores if hasattr(chore, "record")}
    if writer.manager is not None:
        found |= {path.seen_sequence for path in writer.peering.paths.paths}
        found |= {entry.sequence for entry in writer.peering.publisher._entries.values()}
    if other.manager is not None:
        found |= set(other.peering._sequences.values())
    found.discard(0)
    return {sequence: rank for rank, sequence in enumerate(sorted(found), 1)} | {0: 0}


def _node(node: Node, ranks: list[dict[int, int]]) -> tuple[object, ...]:
    own, others = ranks[node.number - 1], ranks[2 - node.number]
    links = tuple(
        (
            path,
            link.connected,
            link.broken,
            tuple((what, *(_value(each, own) for each in rest)) for what, *rest in link.requests),
            tuple(_value(answer, others if hasattr(answer, "record") else own) for answer in link.answers),
        )
        for path, link in sorted(node.links.items())
    )
    manager = None if node.manager is None else _peering(node, own, others)
    return (
        node.incarnation, node.stage, node.wants, node.epoch, manager, links,
        tuple(sorted(node.fences.items())),
        tuple((slot, _record(record, others)) for slot, record in sorted(node.inbox.items())),
        frozenset(node.unread),
        tuple((slot, _record(record, own)) for slot, record in sorted(node.outbox.items())),
        tuple((path, tuple(_record(r, own) for r in records)) for path, records in sorted(node.adrift.items())),
        tuple((path, lanes.epoch, lanes.vis, lanes.remote) for path, lanes in sorted(node.lanes.items())),
        tuple(sorted(node.opened.items())),
        tuple(_value(chore, own) for chore in node.chores),
        tuple(node.news),
        tuple(sorted(node.step.items())), node.ready_epoch, node.open_epoch, frozenset(node.told), frozenset(node.seen),
    )  # fmt: skip


def _peering(node: Node, own: dict[int, int], others: dict[int, int]) -> tuple[object, ...]:
    peering = node.peering
    deadline = peering.next_deadline()
    paths = peering.paths.paths
    due = (
        *(path.next_deadline() == deadline for path in paths),
        peering.sessions.next_deadline() == deadline,
        peering.settling.rebalance_at == deadline,
    )
    better = tuple(peering.paths.has_better(path, now=Instant(node.now)) for path in paths)
    heard = tuple(sorted((kind, index, others[seq]) for (kind, index), seq in peering._sequences.items()))
    return (
        due if deadline is not None else None, better, heard, peering.partner_incarnation, peering.partner_stage,
        tuple(_value(path, own) for path in paths), _value(peering.publisher, own),
        _value(peering.sessions, own), peering.settling.agreement,
        peering.settling.rebalance_at is not None, peering.failover.fence_number,
    )  # fmt: skip


def _record(record: Record, ranks: dict[int, int]) -> tuple[object, ...]:
    return (
        record.kind, record.index, record.writer_incarnation, record.partner_incarnation,
        0 if record.kind is RecordKind.SEEN else ranks[record.sequence], record.body,
    )  # fmt: skip


def _value(value: Any, ranks: dict[int, int]) -> object:
    if value is None or isinstance(value, int | str | Enum | bytes):
        return value
    if isinstance(value, Record):
        return _record(value, ranks)
    if isinstance(value, tuple | list):
        return tuple(_value(each, ranks) for each in value)
    if isinstance(value, dict):
        return tuple((_value(name, ranks), _value(each, ranks)) for name, each in sorted(value.items()))
    if isinstance(value, set):
        return frozenset(value)
    kind = type(value)
    if kind not in _fields:
        _fields[kind] = _field_modes(value)
    parts: list[object] = [kind.__name__]
    for name, mode in _fields[kind]:
        held = getattr(value, name)
        parts.append(_MODES[mode](held, ranks))
    return tuple(parts)


_MODES: list[Callable[[Any, dict[int, int]], object]] = [
    _value, lambda held, ranks: held is not None, lambda held, ranks: ranks.get(held, -1),
]  # fmt: skip
LINKS_BACK = {"PathSet", "Publisher", "SessionSet", "Settling", "Failover"}


def _field_modes(value: object) -> list[tuple[str, int]]:
    names = list(getattr(value, "__dict__", ())) or [name for base in type(value).__mro__ for name in _slots(base)]
    kept = []
    for name in names:
        if name in DROPPED or type(getattr(value, name)).__name__ in LINKS_BACK or callable(getattr(value, name)):
            continue
        kept.append((name, 1 if name in ARMED else 2 if name in SEQUENCES else 0))
    return kept


def _slots(base: type) -> tuple[str, ...]:
    found = base.__dict__.get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)
