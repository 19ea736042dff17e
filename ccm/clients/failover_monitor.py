"""The failover monitor (C1, in its first form): watches partners' boot status and heartbeat, and reports what changes.

Everything it knows was read by RDMA from the partner's status page, so it sees a host that hangs or boots as well as
one that runs. It takes nothing over yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ccm.client import Client, Partner
from ccm.needs import Needs
from emul.clock import MILLISECOND, Instant, earliest
from emul.node_memory import BootStatus, Stage

STALL_NS = 500 * MILLISECOND
"""A heartbeat that stands still for so long, while the page can be read, is a host that hangs or is dead."""


@dataclass(slots=True)
class View:
    """What is known of one partner."""

    stage: Stage
    incarnation: int
    heartbeat: int
    beat_at: Instant
    read_at: Instant
    stalled: bool = False


class FailoverMonitor(Client):
    """Reports (partner, word, status) to `report`: "stage", "incarnation", "stalled" or "beating"."""

    name: ClassVar[str] = "failover-monitor"

    def __init__(self, report: Callable[[Partner, str, BootStatus], None] | None = None) -> None:
        self.views: dict[int, View] = {}
        self._report = report

    def needs(self, partner: Partner) -> Needs | None:
        """A session without virtual interfaces: only to know that the partner's monitor is there."""
        return Needs(vis=0, depth=1)

    def on_partner_status(self, partner: Partner, status: BootStatus, now: Instant) -> None:
        """Compares with what was read before."""
        view = self.views.get(partner.id)
        if view is None:
            self.views[partner.id] = View(status.stage, status.incarnation, status.heartbeat, now, now)
            self._tell(partner, "stage", status)
            return
        view.read_at = now
        if status.incarnation != view.incarnation:
            view.incarnation, view.heartbeat, view.beat_at = status.incarnation, status.heartbeat, now
            self._tell(partner, "incarnation", status)
        if status.stage is not view.stage:
            view.stage = status.stage
            self._tell(partner, "stage", status)
        if status.heartbeat != view.heartbeat:
            view.heartbeat, view.beat_at = status.heartbeat, now
            if view.stalled:
                view.stalled = False
                self._tell(partner, "beating", status)
        elif not view.stalled and now - view.beat_at >= STALL_NS:
            view.stalled = True
            self._tell(partner, "stalled", status)

    def oldest_beat(self) -> Instant | None:
        """When the partner whose heartbeat is oldest was last seen beating."""
        return earliest(*(view.beat_at for view in self.views.values()))

    def _tell(self, partner: Partner, word: str, status: BootStatus) -> None:
        if self._report is not None:
            self._report(partner, word, status)
