"""All paths to one partner: which is better, which carries records, which carries a virtual interface.

Questions only; nothing here changes a path.
"""

from __future__ import annotations

from collections.abc import Sequence

from ccm.path import Path, PathState
from emul.clock import Instant


class PathSet:
    """The paths by their index; numbered alike on both sides."""

    __slots__ = ("_by_index", "paths")

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._by_index = {path.index: path for path in paths}

    def get(self, index: int) -> Path | None:
        """The path of that number."""
        return self._by_index.get(index)

    def has_better(self, path: Path, *, now: Instant) -> bool:
        """Whether another path is up and has answered since `path` was last asked, so that failing over would help;
        not while the silence is only that of a card which the machine does not run.
        """
        asked_at = path.liveness.probe_at
        if asked_at is None or path.liveness.excused(now=now):
            return False
        return any(
            other is not path and other.state is PathState.UP and other.liveness.proven_since(asked_at)
            for other in self.paths
        )

    def usable(self) -> list[Path]:
        """Paths on which sessions may post."""
        return [path for path in self.paths if path.usable]

    def carrier_of_records(self) -> Path | None:
        """The path over which exchange records go: the healthiest of those that are proven."""
        order = (PathState.UP, PathState.EXCHANGE, PathState.SUSPECT)
        for state in order:
            for path in self.paths:
                if path.state is state:
                    return path
        return None

    def fence_carrier(self, lost: Path) -> Path | None:
        """Over which path the fence of `lost` is asked for; another one with each attempt, where there are several."""
        choice = [path for path in self.paths if path is not lost and path.usable]
        up = [path for path in choice if path.state is PathState.UP]
        choice = up or choice
        return choice[lost.fence_attempts % len(choice)] if choice else None

    def candidates(self, client: int, epoch: int) -> list[Path]:
        """Paths on which a session's queue pairs of `epoch` are usable; those that are to be avoided, and those under
        suspicion, only where there are no others.
        """
        able = [path for path in self.paths if path.usable and path.pairing.lane_usable(client, epoch)]
        able = [path for path in able if not path.avoided] or able
        return [path for path in able if path.state is PathState.UP] or able

    def choose(self, client: int, epoch: int, turn: int) -> Path | None:
        """The path of a virtual interface. `turn` (client's position + VI) spreads the interfaces over the paths,
        where the settings want that.
        """
        able = self.candidates(client, epoch)
        if not able:
            return None
        return able[turn % len(able)] if able[0].settings.balance else able[0]
