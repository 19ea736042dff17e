"""A partner that comes and goes while the manager runs: orderly leave, what is kept of it, and its return.

A partner that is to leave is first closed with in order, as long as it can be told; then its connections are given up
and nothing of it is held. What outlives it is small: the highest session epoch (in the node's memory, `RememberEpoch`)
and how far our own numbering for it has come. A partner that returns within the same incarnations would otherwise take
our new records for old ones, and our new queue pairs for those that it knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccm.actions import Action, DisconnectPeer, ForgetPartner, NotePathDown
from ccm.path import PathState
from ccm.peering import Peering
from ccm.reasons import Reason
from ccm.session import SessionState
from emul.clock import Instant


@dataclass(frozen=True, slots=True)
class Past:
    """Where our numbering for a former partner stood."""

    sequence: int
    """Of records."""
    fence_number: int
    generations: tuple[tuple[int, int], ...]
    """(path, generation)."""


def begin_to_leave(peering: Peering, *, now: Instant) -> None:
    """Closes all sessions; from now on none is opened. Each gets its close notice, at the latest after the bound of an
    orderly close.
    """
    peering.leaving = True
    for session in peering.sessions.sessions.values():
        peering.sessions.close(session.name, now=now)
    peering.settling.settle(now=now)


def has_left(peering: Peering) -> bool:
    """Whether nothing is open any more with a partner that is to leave."""
    return peering.leaving and all(
        session.state is SessionState.CLOSED for session in peering.sessions.sessions.values()
    )


def part(peering: Peering) -> tuple[list[Action], Past]:
    """What gives back the rest of what is held for it, and what is kept."""
    actions: list[Action] = []
    for path in peering.paths.paths:
        if path.usable:
            actions.append(NotePathDown(peering.partner, path.index, Reason.PARTNER_REMOVED))
        if path.state is not PathState.DOWN or path.relink_at is not None:
            actions.append(DisconnectPeer(peering.partner, path.index))
    peering.budget.paths -= len(peering.paths.paths)
    peering.budget.connecting -= sum(path.state is PathState.CONNECTING for path in peering.paths.paths)
    actions.append(ForgetPartner(peering.partner))
    past = Past(
        peering.publisher.next_sequence(),
        peering.failover.fence_number,
        tuple((path.index, path.pairing.generation) for path in peering.paths.paths),
    )
    return actions, past


def resume(peering: Peering, past: Past) -> None:
    """Goes on counting where `past` ended."""
    peering.publisher.skip_to(past.sequence)
    peering.failover.fence_number = past.fence_number
    for index, generation in past.generations:
        path = peering.paths.get(index)
        if path is not None:
            path.pairing.generation = generation
