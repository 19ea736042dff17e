"""Which queue pairs of a path belong together: generations, and the virtual interfaces made in each.

Each side numbers its own life of a path (`generation`), makes queue pairs for it and publishes both together with the
partner's generation that it belongs with (`paired_with`). Rules that converge from any start:

- unpaired, the partner's record belongs to nobody: the side that leads (the lower node id) pairs with it, the other one
  waits, or both would begin anew for ever over records that cross;
- unpaired, the partner's record belongs with our generation: pair with it;
- paired, and the partner's generation is another: our queue pairs lead nowhere, the path is begun anew;
- the partner belongs with an older generation of ours: wait, it will see ours and begin anew.

Holds what was published and what was read; opens and connects nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from ccm.exchange import LaneEntry, PathInfo, ViAddress


class Verdict(Enum):
    """What a partner's record means for our generation."""

    WAIT = auto()
    """It belongs with an older generation of ours, or is not there."""
    PAIRED = auto()
    """Both belong together, as far as we know now."""
    BROKEN = auto()
    """The partner has begun anew: so must we."""


@dataclass(slots=True)
class Lane:
    """Our queue pairs of one session on this path."""

    epoch: int
    entry: LaneEntry | None = None
    """Their addresses, once they exist."""
    connecting: bool = False
    connected: bool = False
    vis: tuple[ViAddress, ...] = ()
    remote: tuple[ViAddress, ...] = ()
    """The partner's ends that they are (being) connected with."""


class Pairing:
    """Generations and lanes of one path."""

    __slots__ = ("generation", "lanes", "leads", "paired_with", "partner", "partner_fence_epoch")

    def __init__(self, *, leads: bool) -> None:
        self.leads = leads
        self.generation = 0
        self.paired_with = 0
        self.partner: PathInfo | None = None
        """The partner's last record of this path, of its present incarnation."""
        self.partner_fence_epoch = 0
        """What the partner's queue pairs of this pairing carry: a fence needs one more."""
        self.lanes: dict[int, Lane] = {}

    def begin(self) -> None:
        """A new generation, without queue pairs."""
        self.generation += 1
        self.paired_with = 0
        self.lanes.clear()

    def forget_partner(self) -> None:
        """The partner's host has another incarnation: what it published is void."""
        self.partner = None

    def on_partner(self, info: PathInfo) -> Verdict:
        """The partner's record arrived."""
        self.partner = info
        return self.judge()

    def judge(self) -> Verdict:
        """Applies the rules to what is known; pairs where they say so."""
        info = self.partner
        if info is None or self.generation == 0:
            return Verdict.WAIT
        if self.paired_with:
            return Verdict.PAIRED if info.generation == self.paired_with else Verdict.BROKEN
        if info.paired_with != self.generation and not (self.leads and info.paired_with == 0):
            return Verdict.WAIT
        self.paired_with = info.generation
        self.partner_fence_epoch = info.fence_epoch
        return Verdict.PAIRED

    @property
    def mutual(self) -> bool:
        """Whether the partner has paired with our generation as well."""
        info = self.partner
        return (
            info is not None
            and self.paired_with != 0
            and info.generation == self.paired_with
            and info.paired_with == self.generation
        )

    @property
    def knows_partner(self) -> bool:
        """Whether the partner's record is there, and of the generation that ours belongs with."""
        return self.partner is not None and self.paired_with != 0 and self.partner.generation == self.paired_with

    def remote_lane(self, client: int, epoch: int) -> LaneEntry | None:
        """The partner's queue pairs of a session, if it has made them for `epoch` and this pairing."""
        if self.partner is None or not self.knows_partner:
            return None
        for entry in self.partner.lanes:
            if entry.client == client and entry.epoch == epoch:
                return entry
        return None

    def lane_usable(self, client: int, epoch: int) -> bool:
        """Whether both sides can send on the session's queue pairs of `epoch`."""
        lane = self.lanes.get(client)
        if lane is None or lane.epoch != epoch or not lane.connected or not self.mutual:
            return False
        remote = self.remote_lane(client, epoch)
        return remote is not None and remote.connected == 1

    def publish(self, fence_epoch: int, mtu: int) -> PathInfo:
        """Our record's body."""
        entries = tuple(
            LaneEntry(
                client,
                lane.epoch,
                int(lane.connected),
                lane.entry.rkey,
                lane.entry.address,
                lane.entry.length,
                lane.vis,
            )
            for client, lane in sorted(self.lanes.items())
            if lane.entry is not None
        )
        return PathInfo(self.generation, self.paired_with, fence_epoch, mtu, entries)
