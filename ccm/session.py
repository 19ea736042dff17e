"""One client's session with one partner, as the manager sees it: states as a table, epochs, alerts due.

    CLOSED -> WAITING -> PREPARING -> OFFERED -> READY
                 ^           |           |         |
                 +-----------+-----------+---------+      broken: a higher epoch is proposed

The epoch is the larger of both sides' proposals: each side publishes its own and takes over a higher one, so both
arrive at the same number however their messages cross. A break proposes one more than the highest epoch that this node
has ever agreed with the partner, which outlives reboots. Ledger and memory of a session are elsewhere (`ccm.stream`).
"""

from __future__ import annotations

from enum import IntEnum

from ccm.exchange import ManifestEntry, ViAddress
from ccm.needs import Needs
from ccm.reasons import Reason
from ccm.settings import DEFAULTS, Settings
from emul.clock import MILLISECOND, SECOND, Instant, earliest


class SessionState(IntEnum):
    """States of a session on this side."""

    CLOSED = 0
    """The client does not want it."""
    WAITING = 1
    """An epoch is proposed; the partner has not proposed the same yet, or lacks the client."""
    PREPARING = 2
    """The epoch is agreed, and both hold the same manifests; queue pairs are being made on the paths."""
    OFFERED = 3
    """Usable on a path; the partner was told "ready"."""
    READY = 4
    """The partner is ready too, and the client has its ready alert."""
    CLOSING = 5
    """The partner was told that we close; what it still has under way may end."""


class Phase(IntEnum):
    """What the exchange says of a session."""

    PROPOSED = 1
    READY = 2
    CLOSED = 3
    REFUSED = 4
    """This side can't make what the session needs: it proposes its epoch when it tries again."""


class SessionInput(IntEnum):
    """What can happen to a session."""

    OPEN = 0
    AGREED = 1
    USABLE = 2
    PARTNER_READY = 3
    BROKEN = 4
    """Path, partner or virtual interface failed, or the partner is at a higher epoch."""
    PARTNER_CLOSED = 5
    CLOSE = 6
    RELEASED = 7
    """The partner knows that we close, or can't be told."""


_C, _W, _P, _O, _R, _X = SessionState

TABLE: dict[SessionInput, dict[SessionState, SessionState]] = {
    SessionInput.OPEN: {_C: _W, _W: _W, _P: _P, _O: _O, _R: _R, _X: _W},
    SessionInput.AGREED: {_W: _P},
    SessionInput.USABLE: {_P: _O},
    SessionInput.PARTNER_READY: {_O: _R},
    SessionInput.BROKEN: {_C: _C, _W: _W, _P: _W, _O: _W, _R: _W, _X: _C},
    SessionInput.PARTNER_CLOSED: {_C: _C, _W: _W, _P: _W, _O: _W, _R: _W, _X: _C},
    SessionInput.CLOSE: {_C: _C, _W: _C, _P: _X, _O: _X, _R: _X, _X: _X},
    SessionInput.RELEASED: {_X: _C},
}
"""(input, state) -> next state; a missing cell is an input that cannot come in that state."""

MEND_TIMEOUT_NS = 500 * MILLISECOND
"""How long virtual interfaces that failed on a living path wait for the partner to part with its ends of them."""
MENDS_MAX = 4
MENDS_WITHIN_NS = 10 * SECOND
"""A session whose virtual interfaces failed so often within that time breaks: it is not the queue pairs."""
REFUSED_FIRST_NS = SECOND
REFUSED_MOST_NS = 16 * SECOND
"""How long a session that its client or card can't provide for waits before it is tried again, on one path or as a
whole; doubles.
"""
EPOCH_JUMP_MAX = 1 << 24
"""How far a partner's epoch may be ahead of the highest that we know. More than re-establishments explain is refused,
or a partner gone mad would use up the numbers for good.
"""


class SessionCore:
    """State of one session; `client` is the client's key."""

    __slots__ = (
        "_settings", "alerted", "breaks", "client", "close_by", "entry", "epoch", "last_error", "mend_by", "mended",
        "mending", "moving", "name", "needs", "partner_epoch", "partner_phase", "readies", "reason", "refusals_on",
        "refused_ns", "refused_on", "refused_until", "routes", "since", "state", "stranded", "stranded_by",
    )  # fmt: skip

    def __init__(
        self, entry: ManifestEntry, needs: Needs, settings: Settings = DEFAULTS, *, now: Instant
    ) -> None:  # fmt: skip
        self._settings = settings
        self.client = entry.client
        self.name = entry.name
        self.entry = entry
        self.needs = needs
        self.state = SessionState.CLOSED
        self.since = now
        self.epoch = 0
        self.partner_epoch = 0
        self.partner_phase: Phase | None = None
        self.alerted = False
        """The client has had a ready alert for this epoch and neither an error alert nor a close notice since."""
        self.reason = Reason.NONE
        """Why it last broke, or does not open."""
        self.readies = 0
        """How often its client was told "ready", and ..."""
        self.breaks = 0
        """... "error" after that, and ..."""
        self.last_error = Reason.NONE
        """... why the last time."""
        self.routes: dict[int, int] = {}
        """VI -> path, while READY."""
        self.moving: dict[int, int] = {}
        """VI -> the path that it is about to move to."""
        self.stranded: set[int] = set()
        """VIs whose path is lost and fenced, while the queue pairs of the next one are still being made."""
        self.stranded_by: Instant | None = None
        """How long they wait."""
        self.close_by: Instant | None = None
        self.mending: dict[int, tuple[ViAddress, ...]] = {}
        """Path -> the partner's ends there that must be gone before what was under way may be posted again."""
        self.mend_by: Instant | None = None
        """How long that may take."""
        self.mended: list[Instant] = []
        """When virtual interfaces failed lately."""
        self.refused_on: dict[int, Instant] = {}
        """Path on which this epoch's queue pairs could not be made -> when they are tried again, and ..."""
        self.refusals_on: dict[int, int] = {}
        """... how often they could not."""
        self.refused_until: Instant | None = None
        """When it is tried again."""
        self.refused_ns = REFUSED_FIRST_NS

    def take(self, what: SessionInput, *, now: Instant) -> bool:
        """Goes where the table says; whether the state changed. Raises KeyError for a cell that is not there."""
        following = TABLE[what][self.state]
        if following is self.state:
            return False
        self.state, self.since = following, now
        if following is SessionState.CLOSING:
            self.close_by = Instant(now + self._settings.close_timeout_ns)
        if following not in (SessionState.READY, SessionState.CLOSING):
            self.routes.clear()
            self.moving.clear()
            self.stranded.clear()
            self.mending.clear()
        if following in (SessionState.WAITING, SessionState.CLOSED, SessionState.CLOSING):
            self.refused_on.clear()
            self.refusals_on.clear()
        if following is SessionState.READY:
            self.refused_ns = REFUSED_FIRST_NS
        return True

    def bar(self, path: int, *, now: Instant) -> None:
        """Its queue pairs can't be made on `path` just now."""
        times = self.refusals_on.get(path, 0)
        wait_ns = REFUSED_FIRST_NS << times
        if wait_ns < REFUSED_MOST_NS:
            self.refusals_on[path] = times + 1
        self.refused_on[path] = Instant(now + min(wait_ns, REFUSED_MOST_NS))

    def unbar(self, *, now: Instant) -> bool:
        """Whether there is a path on which they are to be tried again."""
        due = [path for path, until in self.refused_on.items() if now >= until]
        for path in due:
            del self.refused_on[path]
        return bool(due)

    def forget_path(self, path: int) -> None:
        """It is lost: what could not be made there is tried anew when it comes back."""
        self.mending.pop(path, None)  # the fence of the whole path, or the end of the session, follows
        self.refused_on.pop(path, None)
        self.refusals_on.pop(path, None)

    def next_deadline(self) -> Instant | None:
        """When it stops waiting for something: for its partner's word, for queue pairs, for leave to try again."""
        return earliest(
            self.close_by if self.state is SessionState.CLOSING else None,
            self.stranded_by if self.stranded else None,
            self.mend_by if self.mending else None,
            self.refused_until,
            min(self.refused_on.values()) if self.refused_on else None,
        )

    @property
    def has_lanes(self) -> bool:
        """Whether queue pairs exist, or should, for its epoch."""
        return self.state in (SessionState.PREPARING, SessionState.OFFERED, SessionState.READY, SessionState.CLOSING)

    @property
    def phase(self) -> Phase:
        """What we publish."""
        if self.state in (SessionState.CLOSED, SessionState.CLOSING):
            return Phase.CLOSED
        if self.refused_until is not None:
            return Phase.REFUSED
        return Phase.READY if self.state in (SessionState.OFFERED, SessionState.READY) else Phase.PROPOSED

    @property
    def partner_gone_on(self) -> bool:
        """Whether the partner is not, or no longer, at our epoch with queue pairs of it."""
        return self.partner_phase is None or self.partner_phase is Phase.CLOSED or self.partner_epoch != self.epoch
