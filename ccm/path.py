"""One path to a partner: its states as a table, its timers, and what else belongs to one path.

All that changes a path's state is here. What follows from a change (fence, replay, alerts) is decided in `ccm.partner`
with the help of `ccm.pathset`. An input outside the table raises: it would be a mistake of ours.

    DOWN -> CONNECTING -> HANDSHAKE -> EXCHANGE -> UP <-> SUSPECT
     ^                                              |        |
     +------------------ FENCING <------------------+--------+
"""

from __future__ import annotations

from enum import IntEnum

from ccm.budget import Budget, Rate
from ccm.handshake import Handshake
from ccm.liveness import Liveness
from ccm.pairing import Pairing
from ccm.reasons import Reason
from emul.clock import Instant, earliest


class PathState(IntEnum):
    """States of a path."""

    DOWN = 0
    """Not in use; a new attempt when its retry time has come and the port has a carrier."""
    CONNECTING = 1
    """The well-known connection is being made."""
    HANDSHAKE = 2
    """The four steps are under way, or wait for the partner's host."""
    EXCHANGE = 3
    """Steps done; the partners' queue pairs for this path are not both made yet."""
    UP = 4
    """Carries sessions."""
    SUSPECT = 5
    """Silent, and no other is provably better: work is still posted, since nothing would be won by failing over."""
    FENCING = 6
    """Lost; its unconfirmed work waits until the partner has acknowledged the fence over another path."""


class Input(IntEnum):
    """What can happen to a path."""

    DUE = 0
    """The retry time has come, and there is a carrier."""
    CONNECTED = 1
    REFUSED = 2
    """No connection came about."""
    PROVEN = 3
    """Four steps done."""
    PAIRED = 4
    """Both sides' queue pairs of this generation belong together."""
    SILENT = 5
    """Silent past its limit; no other path is provably better."""
    LIFE = 6
    """Something came back."""
    LOST = 7
    """Carrier loss, completion error, fence by the partner, silence while a better path is up; another can fence it."""
    LOST_ALONE = 8
    """The same with no other path up."""
    FENCED = 9
    """The fence is acknowledged, or there is nothing left to fence for."""
    RESTARTED = 10
    """The partner's host has a new incarnation, or none; the well-known connection lives on."""


_D, _C, _H, _E, _U, _S, _F = PathState
_SAME: dict[PathState, PathState] = {state: state for state in PathState}

TABLE: dict[Input, dict[PathState, PathState]] = {
    Input.DUE: {_D: _C},
    Input.CONNECTED: {_C: _H, _S: _S},
    Input.REFUSED: {_C: _D, _S: _S},
    Input.PROVEN: {_H: _E},
    Input.PAIRED: {_E: _U, _U: _U, _S: _S},
    Input.SILENT: {_U: _S, _S: _S},
    Input.LIFE: _SAME | {_S: _U},
    Input.LOST: _SAME | {_C: _D, _H: _D, _E: _D, _U: _F, _S: _F},
    Input.LOST_ALONE: {state: _D for state in PathState},
    Input.FENCED: {_F: _D},
    Input.RESTARTED: {_D: _D, _C: _C, _H: _H, _E: _H, _U: _H, _S: _H, _F: _D},
}
"""(input, state) -> next state; a missing cell is an input that cannot come in that state."""

PATIENCE_MAX = 4
"""How often the time that an attempt to connect may take is doubled, once after each that brought no answer. Where
everything takes longer than it should, who gives up and begins again only adds to what has to be done.
"""
SPREADS = 8
"""Different spreads: from the second attempt on, times between attempts are longer by up to 7/16, so that the nodes of
a cluster that started together don't stay in step.
"""
UNANSWERED = (Reason.UNREACHABLE, Reason.COMPLETION_ERROR, Reason.SILENT)
"""Why an attempt ends that brought no answer, or began well and then got none."""
HASTELESS = (Reason.WRONG_PROOF, Reason.WRONG_IDENTITY, Reason.DUPLICATE_IDENTITY)


class Path:
    """State of one path; `index` is its number, `adapter` the local adapter's index."""

    __slots__ = (
        "adapter", "avoided", "budget", "carrier", "connect_by", "fence_attempts", "fence_epoch", "fence_number",
        "fence_retry_at", "fence_target", "handshake", "hold_down_ns", "index", "last_loss", "left_at", "liveness",
        "losses", "mtu", "mtu_lost", "mtu_most", "others", "pairing", "patience", "poll_at", "poll_posted", "reason",
        "relink_at", "remote_adapter", "retry_at", "retry_ns", "seen_sequence", "settings", "since", "slowest_ns",
        "spread", "state", "up_since",
    )  # fmt: skip

    def __init__(
        self, index: int, adapter: int, incarnation: int, budget: Budget | None = None, *, leads: bool,
        others: bool = True, spread: int = 0, now: Instant,
    ) -> None:  # fmt: skip
        """`others`: whether there are further paths to the partner; `spread`: any number, differs between paths."""
        self.budget = budget if budget is not None else Budget()
        self.settings = self.budget.settings
        self.others = others
        self.index = index
        self.adapter = adapter
        self.remote_adapter = -1
        """The partner's adapter at the other end, by its index there; -1 while unknown."""
        self.carrier = True
        self.avoided = False
        """Carries nothing while another path can: work is about to be done on it."""
        self.state = PathState.DOWN
        self.since = now
        self.up_since = now
        self.reason = Reason.NONE
        self.losses = 0
        """How often it was taken out of use, and ..."""
        self.last_loss = Reason.NONE
        """... why the last time."""
        self.handshake = Handshake(incarnation, index)
        self.liveness = Liveness(self.budget, now=now)
        self.pairing = Pairing(leads=leads)
        self.connect_by = now
        """By when the connection is made, or the request of the handshake that is under way has its answer."""
        self.patience = 0
        """How often in a row an attempt to connect brought no answer, PATIENCE_MAX at the most: as often its time is
        doubled."""
        self.spread = spread % SPREADS
        self.mtu = 1
        """The path MTU, as verbs encode it, of which our packets get through."""
        self.mtu_most = 0
        """The largest one that is tried; 0: the port's."""
        self.mtu_lost = 0
        """The one of which packets were lost when the path was last connected; 0: of none."""
        self.fence_epoch = 0
        """This node's fence epoch of the path: our queue pairs carry it."""
        self.fence_target = 0
        """The fence epoch that we ask the partner for, while FENCING."""
        self.fence_number = 0
        self.fence_attempts = 0
        self.fence_retry_at: Instant | None = None
        self.retry_at: Instant | None = now
        self.retry_ns = self.settings.retry_first_ns
        self.hold_down_ns = self.settings.hold_down_first_ns
        self.poll_at: Instant | None = None
        self.poll_posted = False
        """A read of the handshake is under way."""
        self.slowest_ns = 0
        """The longest time that an answer in this handshake took."""
        self.relink_at: Instant | None = None
        """While SUSPECT and without well-known connection: when to try (again) to make it anew."""
        self.left_at: Instant | None = None
        """While SUSPECT or just after: when records under way on it were sent over another path as well. An answer to
        what was asked before that doesn't show that nothing of them lands any more.
        """
        self.seen_sequence = 0
        """Sequence of the SEEN record under way."""

    def take(self, what: Input, *, now: Instant, reason: Reason = Reason.NONE) -> bool:
        """Goes where the table says; whether the state changed. Raises KeyError for a cell that is not there."""
        former = self.state
        following = TABLE[what][former]
        if what is Input.RESTARTED and following is PathState.HANDSHAKE:
            # Also in mid-handshake: the steps under way name an incarnation that is no more.
            self.poll_at, self.poll_posted, self.relink_at = now, False, None
            self.handshake.restart()
        if following is former:
            return False
        if self.usable and following not in (PathState.UP, PathState.SUSPECT):
            self.losses += 1
            self.last_loss = reason
        self.state, self.since = following, now
        self.budget.connecting += (following is PathState.CONNECTING) - (former is PathState.CONNECTING)
        if what is not Input.FENCED:
            self.reason = reason
        if following is PathState.UP and former is not PathState.SUSPECT:
            self.up_since, self.patience = now, 0
        elif following is PathState.CONNECTING:
            self.connect_by = Instant(now + (self.settings.connect_timeout_ns << self.patience))
        elif following is PathState.EXCHANGE:
            self.liveness = Liveness(self.budget, measured=False, slowest_ns=self.slowest_ns, now=now)
        elif following is PathState.DOWN:
            self._go_down(former, now=now, reason=reason)
        elif following is PathState.HANDSHAKE and former is PathState.CONNECTING:
            self.poll_at, self.poll_posted, self.slowest_ns = now, False, 0
            self.handshake.restart()
        return True

    def allows(self, what: Input) -> bool:
        """Whether the table has a cell for `what` in this state."""
        return self.state in TABLE[what]

    @property
    def usable(self) -> bool:
        """Whether sessions may post on it."""
        return self.state in (PathState.UP, PathState.SUSPECT)

    @property
    def agreed_mtu(self) -> int:
        """The smaller of ours and the partner's, as far as that is known: what queue pairs are connected with."""
        partner = self.pairing.partner
        return self.mtu if partner is None else min(self.mtu, partner.mtu)

    @property
    def proven(self) -> bool:
        """Whether the four steps are done, so that records may be written over it."""
        return self.state in (PathState.EXCHANGE, PathState.UP, PathState.SUSPECT)

    def next_deadline(self) -> Instant | None:
        """When something has to be looked at."""
        if self.state is PathState.DOWN:
            return self.retry_at if self.carrier else None
        if self.state is PathState.HANDSHAKE:
            return self.connect_by if self.asks else self.poll_at
        if self.state is PathState.FENCING:
            return self.fence_retry_at
        if self.state is PathState.CONNECTING:
            return self.connect_by
        probe_at = self.liveness.next_probe_at if self.liveness.probe_at is None else None
        return earliest(self.silent_at(), probe_at, self.relink_at, self.alarm_at())

    def alarm_at(self) -> Instant | None:
        """When the other paths had better be looked at, as this one does not answer as it used to."""
        return self.liveness.alarm_at() if self.others else None

    def silent_at(self) -> Instant | None:
        """When the silence of a proven path has a consequence: suspicion or loss."""
        eager = self.state is PathState.UP
        return self.liveness.silent_at() if eager else self.liveness.silent_alone_at()

    @property
    def asks(self) -> bool:
        """While in the handshake: whether a read or write of it is under way."""
        return self.poll_posted or self.poll_at is None

    def asks_now(self, *, now: Instant) -> None:
        """A read or write of the handshake was posted. Its completion may be lost, and nothing else would tell."""
        self.connect_by = Instant(now + (self.settings.connect_timeout_ns << self.patience))

    def on_step(self, *, now: Instant) -> None:
        """What `asks_now` told of was answered."""
        asked_at = self.connect_by - (self.settings.connect_timeout_ns << self.patience)
        self.slowest_ns = max(self.slowest_ns, now - asked_at)

    def poll_later(self, *, now: Instant) -> None:
        """The read of the handshake brought nothing: again, when its turn comes."""
        self.poll_posted = False
        self.poll_at = self.budget.turn(Rate.IDLE, now=now, after_ns=self.settings.poll_ns)

    def on_large_packets_lost(self, mtu: int) -> None:
        """Packets of `mtu` don't get through: the next attempt is made with the next smaller path MTU; below the
        smallest one with the port's again.
        """
        self.mtu_lost, self.mtu_most = mtu, max(0, mtu - 1)

    def hurry(self, *, now: Instant) -> None:
        """No path is left, so holding this one down would only prolong the outage."""
        if self.state is PathState.DOWN and self.retry_at is not None:
            self.retry_at = min(self.retry_at, Instant(now + self.settings.retry_first_ns))

    def _go_down(self, former: PathState, *, now: Instant, reason: Reason) -> None:
        self.handshake.restart()
        self.poll_at = self.relink_at = None
        self.fence_retry_at = None
        if former in (PathState.CONNECTING, PathState.HANDSHAKE, PathState.EXCHANGE) and reason in UNANSWERED:
            self.patience = max(self.patience, min(PATIENCE_MAX, self.patience + 1))
        if reason is Reason.LARGE_PACKETS_LOST:
            wait = self.settings.retry_first_ns
        elif former in (PathState.CONNECTING, PathState.HANDSHAKE):
            wait = self.settings.refused_retry_ns if reason in HASTELESS else self.retry_ns
            if self.retry_ns > self.settings.retry_first_ns:
                wait += wait * self.spread // (2 * SPREADS)
            self.retry_ns = min(2 * self.retry_ns, self.settings.retry_most_ns)
        else:
            steady = now - self.up_since >= self.settings.steady_ns
            longer_ns = min(2 * self.hold_down_ns, self.settings.hold_down_most_ns)
            self.hold_down_ns = self.settings.hold_down_first_ns if steady else longer_ns
            wait = self.hold_down_ns
            self.mtu_most = self.mtu_lost = 0  # it may come back over another cable
            self.retry_ns = self.settings.retry_first_ns
        self.retry_at = self.budget.turn(Rate.IDLE, now=now, after_ns=wait)
