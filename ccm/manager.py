"""The cluster connection manager of one node: routes events to the partner that they are about, and decides nothing.

Events in, lists of actions out; time is given by the caller. The driver executes the actions in their order. Equal
events at equal times give equal actions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from ccm import events as ev
from ccm import membership
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
        self._name = name
        self._versions = versions
        self._budget = Budget(settings)
        self.peerings: dict[int, Peering] = {}
        self._handlers: dict[int, dict[type, Callable[..., None]]] = {}
        self._past: dict[int, membership.Past] = {}
        """Of those that were partners: what still comes of them is late and means nothing."""
        self._dark: set[int] = set()
        """Local adapters without carrier."""
        self._touched: set[int] = set()
        """Partners whose deadline may have moved since `next_deadline` was last asked for."""
        self._due: dict[int, Instant | None] = {}
        self._deadlines: list[tuple[Instant, int]] = []
        """A heap of (deadline, partner); what `_due` does not say any more is out of date."""
        for partner in partners:
            self._add(partner, known_epoch(partner.node), now=now)

    def handle(self, event: ev.Event, *, now: Instant) -> list[Action]:
        """Takes one event. Raises KeyError for a partner that never was one; of a former one nothing counts."""
        if isinstance(event, (ev.CarrierLost, ev.CarrierFound)):
            actions: list[Action] = []
            (self._dark.discard if isinstance(event, ev.CarrierFound) else self._dark.add)(event.adapter)
            self._touched.update(self.peerings)
            for peering in list(self.peerings.values()):
                peering.on_carrier(event.adapter, isinstance(event, ev.CarrierFound), now=now)
                actions += self._take(peering)
            return actions
        if event.partner not in self.peerings and event.partner in self._past:
            if isinstance(event, ev.PartnerAdded):
                self._add_back(event, now=now)
            return []
        if isinstance(event, ev.PartnerAdded):
            if event.partner not in self.peerings:
                self._add(PartnerConfig(event.partner, event.name, event.paths), event.epoch, now=now)
            return []
        peering = self.peerings[event.partner]
        self._touched.add(event.partner)
        if isinstance(event, ev.PartnerRemoved):
            membership.begin_to_leave(peering, now=now)
        else:
            self._handlers[event.partner][type(event)](event, now=now)
        return self._take(peering)

    def knows(self, partner: int) -> bool:
        """Whether it is a partner, or was one."""
        return partner in self.peerings or partner in self._past

    def on_time(self, *, now: Instant) -> list[Action]:
        """Runs the timers that are due; needless calls give no actions."""
        actions: list[Action] = []
        due, deadlines, touched = self._due, self._deadlines, self._touched
        while deadlines and deadlines[0][0] <= now:
            deadline, partner = heapq.heappop(deadlines)
            if due.get(partner) == deadline:
                due[partner] = None
                touched.add(partner)
        for partner in sorted(touched):  # a copy: who leaves is taken out
            peering = self.peerings[partner]
            peering.on_time(now=now)
            actions += self._take(peering)
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
        while deadlines and due.get(deadlines[0][1]) != deadlines[0][0]:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def status(self) -> dict[str, Any]:
        """What `lab status` shows: partners, paths, sessions; values are JSON-able, times are instants in ns."""
        return {peering.partner_name: describe(peering) for peering in self.peerings.values()}

    # members

    def _add(self, partner: PartnerConfig, epoch: int, *, now: Instant) -> Peering:
        peering = Peering(
            self.node, self._name, self.incarnation, partner, epoch, self._versions, self._budget, now=now
        )
        for adapter in self._dark:
            peering.on_carrier(adapter, False, now=now)
        peering.out.clear()
        self.peerings[partner.node] = peering
        self._handlers[partner.node] = _handlers(peering)
        self._due[partner.node] = None
        self._touched.add(partner.node)
        return peering

    def _add_back(self, event: ev.PartnerAdded, *, now: Instant) -> None:
        peering = self._add(PartnerConfig(event.partner, event.name, event.paths), event.epoch, now=now)
        membership.resume(peering, self._past.pop(event.partner))

    def _take(self, peering: Peering) -> list[Action]:
        """What a partner's machines want done, with its departure where that is due."""
        actions = _take_actions(peering)
        if peering.leaving and membership.has_left(peering):
            parting, self._past[peering.partner] = membership.part(peering)
            actions += parting
            for held in (self.peerings, self._handlers, self._due):
                del held[peering.partner]
            self._touched.discard(peering.partner)
        return actions


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
        ev.VersionRefused: peering.on_version_refused,
        ev.LifeSeen: peering.on_life,
        ev.LanesOpened: peering.settling.on_lanes_opened,
        ev.LanesConnected: peering.settling.on_lanes_connected,
        ev.LanesFailed: peering.on_lanes_failed,
        ev.ViFailed: peering.on_vi_failed,
        ev.Moved: peering.on_moved,
        ev.LoadSeen: peering.on_load,
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
                "mtu": _mtu_bytes(path.agreed_mtu),
                "mtu_lost": _mtu_bytes(path.mtu_lost),
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


def _mtu_bytes(mtu: int) -> int:
    """Payload bytes of a full packet, of a path MTU as verbs encode it; 0 for 0."""
    return 128 << mtu if mtu else 0
