"""Loss of a path: hold its work, fence it over another path, replay; with no path left, break the sessions.

The order is the point: nothing that was posted on a lost path is posted again before the partner has acknowledged that
nothing of it lands any more, or a late frame could overwrite newer bytes. Without a way to fence there is no replay.
"""

from __future__ import annotations

from ccm import events as ev
from ccm.actions import Action, CloseLanes, DisconnectPeer, HoldPath, NotePathDown, NotePathFenced, RequestFence
from ccm.path import Input, Path, PathState
from ccm.pathset import PathSet
from ccm.publisher import Publisher
from ccm.reasons import Reason
from ccm.sessions import SessionSet
from ccm.settling import Settling
from emul.clock import Instant


class Failover:
    """Takes paths to one partner out of use."""

    def __init__(
        self, paths: PathSet, sessions: SessionSet, publisher: Publisher, settling: Settling, out: list[Action]
    ) -> None:
        self._paths = paths
        self._sessions = sessions
        self._publisher = publisher
        self._settling = settling
        self._out = out
        self._partner = publisher.partner
        self.fence_number = 0
        """Counts fence requests."""

    def on_fence_answered(self, event: ev.FenceAnswered, *, now: Instant) -> None:
        """Nothing of the lost path lands at the partner any more: now, and not before, its work is replayed."""
        path = self._paths.get(event.path)
        if path is None or path.state is not PathState.FENCING or path.fence_number != event.number:
            return
        self._out.append(NotePathFenced(self._partner, path.index, path.fence_target))
        self._leave_fencing(path, now=now)

    def lose(self, path: Path, reason: Reason, *, now: Instant) -> None:
        """Takes a path out of use. A second notice changes nothing."""
        others = [other for other in self._paths.usable() if other is not path]
        was_usable, was_fencing = path.usable, path.state is PathState.FENCING
        if was_fencing and others:
            return
        if not path.take(Input.LOST if others else Input.LOST_ALONE, now=now, reason=reason):
            return
        self._publisher.on_path_lost(path.index)
        if was_usable:
            self._out += [HoldPath(self._partner, path.index), NotePathDown(self._partner, path.index, reason)]
        self._sessions.on_path_lost(path)
        if path.state is not PathState.FENCING:
            self._release(path)
            if not others and (was_usable or was_fencing):
                self._lose_last(now=now)
        else:
            self._start_fence(path, now=now)
        self._settling.settle(now=now)

    def _lose_last(self, *, now: Instant) -> None:
        """No path is left: nothing can be fenced, so nothing is replayed; the sessions break."""
        for other in self._paths.paths:
            if other.state is PathState.FENCING and other.take(Input.LOST_ALONE, now=now, reason=other.reason):
                self._release(other)
            other.hurry(now=now)
        self._sessions.break_all(Reason.NO_PATH, now=now)

    def _start_fence(self, path: Path, *, now: Instant) -> None:
        path.fence_attempts = 0
        path.fence_target = path.pairing.partner_fence_epoch + 1
        self.fence_number += 1
        path.fence_number = self.fence_number
        self.request_fence(path, now=now)

    def request_fence(self, path: Path, *, now: Instant) -> None:
        """Asks over the next path that may carry it; gives the path's work up after `fence_attempts_max`."""
        over = self._paths.fence_carrier(path)
        if over is None or path.fence_attempts >= path.settings.fence_attempts_max:
            self._sessions.give_up(path, Reason.FENCE_UNANSWERED, now=now)
            path.take(Input.FENCED, now=now)
            self._release(path)
            self._settling.settle(now=now)
            return
        path.fence_attempts += 1
        path.fence_retry_at = Instant(now + path.settings.fence_timeout_ns)
        self._out.append(RequestFence(self._partner, over.index, path.index, path.fence_target, path.fence_number))

    def _leave_fencing(self, path: Path, *, now: Instant) -> None:
        self._sessions.reroute(path, now=now)
        path.take(Input.FENCED, now=now)
        self._release(path)
        self._settling.settle(now=now)

    def _release(self, path: Path) -> None:
        """A path that went down gives back what it holds."""
        self.close_lanes(path)
        self._out.append(DisconnectPeer(self._partner, path.index))

    def close_lanes(self, path: Path) -> None:
        """Gives back the path's queue pairs."""
        for client in sorted(path.pairing.lanes):
            self._out.append(CloseLanes(self._partner, path.index, client))
        path.pairing.lanes.clear()
