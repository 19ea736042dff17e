"""What happens to a manager: frozen values in the past tense, made by the driver, taken by
`ccm.manager.Manager.handle`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccm.exchange import Record, ViAddress
from ccm.needs import Needs
from ccm.reasons import Reason


@dataclass(frozen=True, slots=True)
class CarrierLost:
    """The port of local adapter `adapter` lost its carrier."""

    adapter: int


@dataclass(frozen=True, slots=True)
class CarrierFound:
    """It has a carrier again."""

    adapter: int


@dataclass(frozen=True, slots=True)
class PartnerAdded:
    """The cluster has a new member, or one that had left. `paths`: (path index, local adapter index) of each;
    `epoch`: the highest session epoch ever agreed with it.
    """

    partner: int
    name: str
    paths: tuple[tuple[int, int], ...]
    epoch: int


@dataclass(frozen=True, slots=True)
class PartnerRemoved:
    """A member has left the cluster, or is to leave: its sessions are closed in order, then it is forgotten."""

    partner: int


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """The partner's firmware accepted us on `path`, and both proved the cluster key.

    `fence_epoch` is this node's for the path, `mtu` the path MTU of which packets got through, `adapter` the index of
    the partner's adapter in its node (-1: its firmware doesn't tell).
    """

    partner: int
    path: int
    fence_epoch: int
    mtu: int
    adapter: int = -1


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """The attempt to connect ended without a connection. `mtu`: the path MTU of which packets were lost, where that is
    the reason.
    """

    partner: int
    path: int
    reason: Reason
    text: str = ""
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The well-known connection of `path` failed: a request on it ended in error, or the firmware disconnected."""

    partner: int
    path: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class StatusRead:
    """An RDMA READ of the partner's status page succeeded.

    `looks` tells of each adapter of the partner, by its index, how often it had looked at its port when the page was
    read; `own_looks` of each adapter of this node when the answer was found. 0, or none: nothing is known.
    """

    partner: int
    path: int
    stage: int
    incarnation: int
    progress: int
    heartbeat: int
    looks: tuple[int, ...] = ()
    own_looks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusUnreadable:
    """The READ succeeded and what it brought is no status page."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class SeenRead:
    """An RDMA READ of the partner's SEEN record succeeded; None where it holds none."""

    partner: int
    path: int
    record: Record | None


@dataclass(frozen=True, slots=True)
class RecordWritten:
    """The partner's adapter acknowledged the RDMA WRITE of our record."""

    partner: int
    path: int
    kind: int
    index: int
    sequence: int


@dataclass(frozen=True, slots=True)
class RecordArrived:
    """The partner's record was found in our inbox."""

    partner: int
    record: Record


@dataclass(frozen=True, slots=True)
class RecordRefused:
    """What was found in our inbox is no record."""

    partner: int
    reason: str


@dataclass(frozen=True, slots=True)
class FenceAnswered:
    """The partner's firmware acknowledged fence request `number`: nothing of the fenced path lands there any more."""

    partner: int
    path: int
    number: int


@dataclass(frozen=True, slots=True)
class FencedByPartner:
    """The partner raised our fence of `path` to `epoch`."""

    partner: int
    path: int
    epoch: int


@dataclass(frozen=True, slots=True)
class DoubleRefused:
    """Our firmware refused somebody who called by the partner's node id while the partner was connected."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class VersionRefused:
    """Our firmware refused the partner, which speaks another version of the well-known service."""

    partner: int
    path: int


@dataclass(frozen=True, slots=True)
class LifeSeen:
    """A request on a virtual interface of `path` completed successfully at `at` or later."""

    partner: int
    path: int
    at: int


@dataclass(frozen=True, slots=True)
class LanesOpened:
    """Our queue pairs and memory regions for a session on a path exist."""

    partner: int
    path: int
    client: int
    epoch: int
    vis: tuple[ViAddress, ...]
    rkey: int
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class LanesConnected:
    """They are ready to send and receive."""

    partner: int
    path: int
    client: int
    epoch: int


@dataclass(frozen=True, slots=True)
class LanesFailed:
    """They could not be made or connected. `adapter_gone`: the adapter is dead; else it refused these alone."""

    partner: int
    path: int
    client: int
    epoch: int
    text: str
    adapter_gone: bool = False


@dataclass(frozen=True, slots=True)
class ViFailed:
    """A request on a virtual interface ended in error. `path_suspected`: the status (retries exhausted) may be the
    path's. `mendable`: new queue pairs may do better (not so where the partner's client takes no messages, or not such
    ones).
    """

    partner: int
    path: int
    client: int
    epoch: int
    path_suspected: bool
    text: str
    mendable: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """The work of a virtual interface on its former path is complete; it sends over `path` now."""

    partner: int
    client: int
    epoch: int
    vi: int
    path: int


@dataclass(frozen=True, slots=True)
class ViLoad:
    """What a virtual interface had in flight, in bytes: the mean of several looks."""

    client: int
    epoch: int
    vi: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class LoadSeen:
    """A window of time is over: what the virtual interfaces to `partner` had in flight; who is not there had nothing.
    """

    partner: int
    loads: tuple[ViLoad, ...]


@dataclass(frozen=True, slots=True)
class PathAvoided:
    """Somebody wants the path to be left alone while there is another (before work on a cable), or no longer."""

    partner: int
    path: int
    avoided: bool


@dataclass(frozen=True, slots=True)
class ClientOpened:
    """A client wants a session with `partner` and tells what it needs (a second time: what it needs now)."""

    partner: int
    name: str
    needs: Needs


@dataclass(frozen=True, slots=True)
class ClientClosed:
    """A client no longer wants its session with `partner`; its unconfirmed work is finished or given up."""

    partner: int
    name: str


Event = (
    CarrierLost | CarrierFound | PartnerAdded | PartnerRemoved
    | PeerConnected | PeerRefused | PeerLost | StatusRead | StatusUnreadable | SeenRead
    | RecordWritten | RecordArrived | RecordRefused | FenceAnswered | FencedByPartner | DoubleRefused
    | VersionRefused | LifeSeen
    | LanesOpened | LanesConnected | LanesFailed | ViFailed | Moved | LoadSeen | PathAvoided | ClientOpened
    | ClientClosed
)  # fmt: skip
