"""Steps that follow from what is known: queue pairs, paths that come up, sessions, and what the partner is told.

Level-triggered: `settle` repeats until nothing moves, then everything that is due goes out. Called without news it does
nothing.
"""

from __future__ import annotations

from ccm import events as ev
from ccm.actions import Action, ConnectLanes, NotePathUp, NoteRefused
from ccm.exchange import Info, LaneEntry, Record, RecordKind
from ccm.path import Input, Path, PathState
from ccm.pathset import PathSet
from ccm.peerinfo import Agreement, Capability, Versions, agree, own_info
from ccm.publisher import Publisher
from ccm.reasons import Reason
from ccm.sessions import SessionSet
from emul.clock import Instant

SETTLE_ROUNDS_MAX = 16
"""A round takes each machine at most one step; no chain of steps is longer."""


class Settling:
    """What both sides agree on, and how far each path and session has come with it."""

    def __init__(
        self,
        name: str,
        versions: Versions,
        paths: PathSet,
        sessions: SessionSet,
        publisher: Publisher,
        out: list[Action],
    ) -> None:
        self.agreement: Agreement | None = None
        self.refused = 0
        self.last_refusal = ""
        self.rebalance_at: Instant | None = None
        """When virtual interfaces may move to a path that came up."""
        self._name = name
        self._versions = versions
        self._paths = paths
        self._sessions = sessions
        self._publisher = publisher
        self._partner = publisher.partner
        self._out = out

    def on_info(self, record: Record) -> None:
        """The partner's peer information (R4)."""
        info = record.body
        assert isinstance(info, Info)
        self.agreement = agree(own_info(self._name, len(self._paths.paths), self._versions), record, self._partner)
        self._sessions.agreed = not self.agreement.refusal and not info.refusal
        if self.agreement.refusal:
            self.refuse(0, self.agreement.refusal, self.agreement.text)

    def may_move(self) -> bool:
        """Whether virtual interfaces may change their path in mid-stream: both sides can take that."""
        return self.agreement is not None and Capability.VI_MOVE in self.agreement.capabilities

    def refuse(self, path: int, reason: Reason, text: str) -> None:
        """Counts and logs a refusal."""
        self.refused += 1
        self.last_refusal = f"{reason.name.lower()}: {text}" if reason else text
        self._out.append(NoteRefused(self._partner, path, reason, text))

    def settle(self, *, now: Instant) -> None:
        """Level-triggered steps until nothing moves, then everything that is due goes out."""
        for _ in range(SETTLE_ROUNDS_MAX):
            moved = [self._sessions.advance(now=now)]
            moved += [self._advance_path(path, now=now) for path in self._paths.paths]
            self._publish()  # in each round: "ready" must have been told before it is acted upon
            if not any(moved):
                break
        else:
            raise AssertionError(f"sessions with partner {self._partner} do not settle")
        carrier = self._paths.carrier_of_records()
        if carrier is not None:
            self._leave_silent(carrier, now=now)
            self._out += self._publisher.due(carrier.index)

    def _leave_silent(self, carrier: Path, *, now: Instant) -> None:
        """What is under way on a silent path is due again over `carrier`: perhaps it is what makes that one usable."""
        for path in self._paths.paths:
            if path is not carrier and path.state is PathState.SUSPECT and self._publisher.on_path_lost(path.index):
                path.left_at = now

    def _advance_path(self, path: Path, *, now: Instant) -> bool:
        """Queue pairs of a proven path: open, connect; up when both sides have paired."""
        if not path.proven:
            return False
        pairing = path.pairing
        pairing.judge()
        moved = self._sessions.open_lanes(path)
        for client, lane in sorted(pairing.lanes.items()):
            remote = pairing.remote_lane(client, lane.epoch)
            if lane.remote and pairing.knows_partner and (remote is None or remote.vis != lane.remote):
                self._sessions.on_ends_remade(client, path, now=now)
                moved = True
                continue
            if lane.entry is None or lane.connecting or remote is None or pairing.partner is None:
                continue
            lane.connecting = moved = True
            if self._sessions.fits(remote):
                lane.remote = remote.vis
                self._out.append(ConnectLanes(self._partner, path.index, client, lane.epoch, remote, path.agreed_mtu))
            else:
                self.refuse(path.index, Reason.NEEDS_DIFFER, f"{len(remote.vis)} VIs, {remote.length} bytes offered")
        if path.state is PathState.EXCHANGE and pairing.mutual:
            path.take(Input.PAIRED, now=now)
            self._out.append(NotePathUp(self._partner, path.index))
            if path.settings.failback:
                self.rebalance_at = Instant(now + path.settings.failback_after_ns)
            moved = True
        return moved

    def _publish(self) -> None:
        if not self._publisher.partner_incarnation or self._paths.carrier_of_records() is None:
            return
        refusal = self.agreement.refusal if self.agreement is not None else Reason.NONE
        info = own_info(self._name, len(self._paths.paths), self._versions, refusal)
        self._publisher.put(RecordKind.INFO, info)
        self._sessions.publish()
        for path in self._paths.paths:
            if path.proven:
                self._publisher.put(RecordKind.PATH, path.pairing.publish(path.fence_epoch, path.mtu), path.index)

    def on_lanes_opened(self, event: ev.LanesOpened, *, now: Instant) -> None:
        """Our queue pairs exist: their addresses are published."""
        path = self._paths.get(event.path)
        lane = path.pairing.lanes.get(event.client) if path is not None else None
        if lane is not None and lane.epoch == event.epoch:
            lane.vis = event.vis
            lane.entry = LaneEntry(event.client, event.epoch, 0, event.rkey, event.address, event.length, event.vis)
            self.settle(now=now)

    def on_lanes_connected(self, event: ev.LanesConnected, *, now: Instant) -> None:
        """They are ready to send: so the partner is told."""
        path = self._paths.get(event.path)
        lane = path.pairing.lanes.get(event.client) if path is not None else None
        if lane is not None and lane.epoch == event.epoch and lane.connecting:
            lane.connected = True
            self.settle(now=now)
