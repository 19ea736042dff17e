"""What a manager wants done: frozen values in the imperative, executed in their order by `ccm.driver`."""

from __future__ import annotations

from dataclasses import dataclass

from ccm.exchange import LaneEntry, Record
from ccm.needs import Needs
from ccm.reasons import Reason


@dataclass(frozen=True, slots=True)
class ConnectPeer:
    """Connect to the partner's firmware on `path`, with a path MTU of `mtu_most` at the most (as verbs encode it; 0:
    the port's): PeerConnected or PeerRefused follows. `patience`: how many attempts before it brought no answer.
    """

    partner: int
    path: int
    mtu_most: int = 0
    patience: int = 0


@dataclass(frozen=True, slots=True)
class ProbePath:
    """Write as much as one packet of the path MTU holds, to see whether it gets through: if not, PeerLost follows."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class DisconnectPeer:
    """Give up the well-known connection of `path`, or the attempt at one; nothing more is heard of it."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class ReadStatus:
    """RDMA READ of the partner's status page: StatusRead, StatusUnreadable or PeerLost follows."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class ReadSeen:
    """RDMA READ of the partner's SEEN record of this path: SeenRead or PeerLost follows."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """Put a record into our outbox and RDMA WRITE it into our inbox at the partner, over `path`: RecordWritten
    follows.
    """

    partner: int
    path: int
    record: Record


@dataclass(frozen=True, slots=True)
class ReadInbox:
    """Look at all slots of our inbox from this partner, also those looked at before: RecordArrived for each record."""

    partner: int


@dataclass(frozen=True, slots=True)
class RequestFence:
    """Ask the partner's firmware, over path `over`, to raise our fence of `path` to `epoch`: FenceAnswered follows."""

    partner: int
    over: int
    path: int
    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class OpenLanes:
    """Make a session's queue pairs (tagged with `fence_epoch`) and memory regions on a path."""

    partner: int
    path: int
    client: int
    name: str
    epoch: int
    needs: Needs
    fence_epoch: int


@dataclass(frozen=True, slots=True)
class ConnectLanes:
    """Connect them with the partner's `remote` ones, packets no larger than `mtu`."""

    partner: int
    path: int
    client: int
    epoch: int
    remote: LaneEntry
    mtu: int


@dataclass(frozen=True, slots=True)
class CloseLanes:
    """Destroy them, after taking what was still received on them."""

    partner: int
    path: int
    client: int


@dataclass(frozen=True, slots=True)
class HoldPath:
    """Post nothing more on the path's virtual interfaces (those of one `client` alone, where it is not 0); what they
    hold unconfirmed stays in the ledgers.
    """

    partner: int
    path: int
    client: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """Send virtual interface `vi` of a session over `path` from now on; unconfirmed work held is posted there, in
    order.
    """

    partner: int
    client: int
    vi: int
    path: int


@dataclass(frozen=True, slots=True)
class Move:
    """As Route, between two living paths: first let the work on the former one complete."""

    partner: int
    client: int
    vi: int
    path: int


@dataclass(frozen=True, slots=True)
class RememberEpoch:
    """Store the highest session epoch with this partner where a reboot doesn't lose it, before anything else."""

    partner: int
    epoch: int


@dataclass(frozen=True, slots=True)
class AlertReady:
    """Tell a client that its partner is ready."""

    partner: int
    client: int
    name: str
    epoch: int
    vis: int


@dataclass(frozen=True, slots=True)
class AlertError:
    """Tell a client that the session of `epoch` is broken; its unconfirmed work is given up."""

    partner: int
    client: int
    name: str
    epoch: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class AlertClosed:
    """Tell a client that the session of `epoch` is closed."""

    partner: int
    client: int
    name: str
    epoch: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class ForgetPartner:
    """All that was held for a partner that left is given back already: nothing more comes of it."""

    partner: int


@dataclass(frozen=True, slots=True)
class TellPartnerStatus:
    """Tell the clients that watch it what the partner's status page says; for the history, `changed` ones count."""

    partner: int
    path: int
    stage: int
    incarnation: int
    progress: int
    heartbeat: int
    changed: bool


@dataclass(frozen=True, slots=True)
class NoteStep:
    """For the history: a step of the handshake succeeded."""

    partner: int
    path: int
    step: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class NotePathUp:
    """For the history."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class NotePathDown:
    """For the history."""

    partner: int
    path: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class NotePathFenced:
    """For the history: the partner acknowledged the fence of `path` at `epoch`."""

    partner: int
    path: int
    epoch: int


@dataclass(frozen=True, slots=True)
class NoteRefused:
    """For the log: something was refused, and why."""

    partner: int
    path: int
    reason: Reason
    text: str


Action = (
    ConnectPeer | ProbePath | DisconnectPeer | ReadStatus | ReadSeen | WriteRecord | ReadInbox | RequestFence
    | OpenLanes | ConnectLanes | CloseLanes | HoldPath | Route | Move | RememberEpoch | AlertReady | AlertError
    | AlertClosed | ForgetPartner | TellPartnerStatus | NoteStep | NotePathUp | NotePathDown | NotePathFenced
    | NoteRefused
)  # fmt: skip
