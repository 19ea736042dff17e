"""The cluster connection manager of one node: routes events to the partner that they are about, and decides nothing.

Events in, lists of actions out; time is given by the caller. The driver executes the actions in their order. Equal
events at equal times give equal actions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from ccm import events as ev
from ccm.actions import Action
from ccm.budget import Budget
from ccm.peerinfo import OWN_VERSIONS, Versions
from ccm.peering import PartnerConfig, Peering
from ccm.settings import DEFAULTS, Settings
from emul.clock import Instant


class Manager:
    """One manager. `known_epoch` gives the highest session epoch ever agreed with a partner, by its node id."""

    def __init__(
        self,
        node: int,
        name: str,
        incarnation: int,
        partners: Sequence[PartnerConfig],
        known_epoch: Callable[[int], int],
        versions: Versions = OWN_VERSIONS,
        settings: Settings = DEFAULTS,
        *,
        now: Instant,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self._budget = budget = Budget(settings)
        self.peerings = {
            partner.node: Peering(
                node, name, incarnation, partner, known_epoch(partner.node), versions, budget, now=now
            )
            for partner in partners
        }
        self._handlers = {partner: _handlers(peering) for partner, peering in self.peerings.items()}
        self._touched: set[int] = set(self.peerings)
        """Partners whose deadline may have moved since `next_deadline` was last asked for."""
        self._due: dict[int, Instant | None] = dict.fromkeys(self.peerings)
        self._deadlines: list[tuple[Instant, int]] = []
        """A heap of (deadline, partner); what `_due` does not say any more is out of date."""

    def handle(self, event: ev.Event, *, now: Instant) -> list[Action]:
        """Takes one event. Raises KeyError for a partner that the configuration does not name."""
        if isinstance(event, (ev.CarrierLost, ev.CarrierFound)):
            actions: list[Action] = []
            self._touched.update(self.peerings)
            for peering in self.peerings.values():
                peering.on_carrier(event.adapter, isinstance(event, ev.CarrierFound), now=now)
                actions += _take_actions(peering)
            return actions
        self._touched.add(event.partner)
        self._handlers[event.partner][type(event)](event, now=now)
        return _take_actions(self.peerings[event.partner])

    def on_time(self, *, now: Instant) -> list[Action]:
        """Runs the timers that are due; needless calls give no actions."""
        actions: list[Action] = []
        due, deadlines, touched = self._due, self._deadlines, self._touched
        while deadlines and deadlines[0][0] <= now:
            deadline, partner = heapq.heappop(deadlines)
            if due[partner] == deadline:
                due[partner] = None
                touched.add(partner)
        for partner in sorted(touched):
            peering = self.peerings[partner]
            peering.on_time(now=now)
            actions += _take_actions(peering)
        return actions

    def next_deadline(self) -> Instant | None:
        """When `on_time` has something to do again."""
        due, deadlines = self._due, self._deadlines
        for partner in self._touched:
            deadline = self.peerings[partner].next_deadline()
            if deadline != due[partner]:
                due[partner] = deadline
                if deadline is not None:
                    heapq.heappush(deadlines, (deadline, partner))
        self._touched.clear()
        while deadlines and due[deadlines[0][1]] != deadlines[0][0]:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def status(self) -> dict[str, Any]:
        """What `lab status` shows: partners, paths, sessions; values are JSON-able, times are instants in ns."""
        return {peering.partner_name: describe(peering) for peering in self.peerings.values()}


def _handlers(peering: Peering) -> dict[type, Callable[..., None]]:
    """Who takes which event."""
    return {
        ev.PeerConnected: peering.on_peer_connected,
        ev.PeerRefused: peering.on_peer_refused,
        ev.PeerLost: peering.on_peer_lost,
        ev.StatusRead: peering.on_status,
        ev.StatusUnreadable: peering.on_status_unreadable,
        ev.SeenRead: peering.on_seen,
        ev.RecordWritten: peering.on_record_written,
        ev.RecordArrived: peering.on_record,
        ev.RecordRefused: peering.on_record_refused,
        ev.FenceAnswered: peering.failover.on_fence_answered,
        ev.FencedByPartner: peering.on_fenced_by_partner,
        ev.DoubleRefused: peering.on_double,
        ev.LifeSeen: peering.on_life,
        ev.LanesOpened: peering.settling.on_lanes_opened,
        ev.LanesConnected: peering.settling.on_lanes_connected,
        ev.LanesFailed: peering.on_lanes_failed,
        ev.ViFailed: peering.on_vi_failed,
        ev.Moved: peering.on_moved,
        ev.PathAvoided: peering.on_avoided,
        ev.ClientOpened: peering.on_client_opened,
        ev.ClientClosed: peering.on_client_closed,
    }


def _take_actions(peering: Peering) -> list[Action]:
    out = peering.out
    if not out:
        return []
    actions = out[:]
    out.clear()  # its parts hold the list itself
    return actions


def describe(peering: Peering) -> dict[str, Any]:
    """The state of everything with one partner."""
    return {
        "id": peering.partner,
        "incarnation": peering.partner_incarnation,
        "stage": peering.partner_stage,
        "version": peering.settling.agreement.version if peering.settling.agreement is not None else None,
        "refused": peering.settling.refused,
        "last_refusal": peering.settling.last_refusal,
        "paths": [
            {
                "index": path.index,
                "adapter": path.adapter,
                "state": path.state.name,
                "since_ns": path.since,
                "reason": path.reason.name,
                "losses": path.losses,
                "last_loss": path.last_loss.name,
                "carrier": path.carrier,
                "avoided": path.avoided,
                "generation": path.pairing.generation,
                "fence_epoch": path.fence_epoch,
                "rtt_ns": path.liveness.rtt_ns,
                "limit_ns": path.liveness.limit_ns,
            }
            for path in peering.paths.paths
        ],
        "sessions": [
            {
                "client": session.name,
                "state": session.state.name,
                "epoch": session.epoch,
                "since_ns": session.since,
                "reason": session.reason.name,
                "detail": peering.sessions.why_waiting(session),
                "readies": session.readies,
                "errors": session.breaks,
                "last_error": session.last_error.name,
                "routes": [session.routes[vi] for vi in sorted(session.routes)],
            }
            for session in peering.sessions.sessions.values()
        ],
    }
