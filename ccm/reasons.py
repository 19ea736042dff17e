"""Why a path went down, a session broke, or a partner was refused: one list of codes for logs, alerts and history."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Codes are stable: the history and the exchange records carry them."""

    NONE = 0
    CARRIER_LOST = 1
    """The local port has no carrier."""
    COMPLETION_ERROR = 2
    """The adapter gave up on a request: retries exhausted, or the queue pair failed."""
    SILENT = 3
    """Nothing came back on the path for its limit."""
    FENCED_BY_PARTNER = 4
    """The partner took the path down and fenced it."""
    PARTNER_BEGAN_PATH_ANEW = 5
    """The partner made new queue pairs for the path: ours lead nowhere."""
    UNREACHABLE = 6
    """Connecting to the partner's firmware had no answer."""
    REJECTED = 7
    """The partner's firmware refused the connection."""
    WRONG_PROOF = 8
    """The other side does not hold the cluster key, or is another node."""
    WRONG_IDENTITY = 9
    """The other side is not the node that the configuration names."""
    NO_COMMON_VERSION = 10
    """The version ranges of both managers don't meet."""
    NEEDS_DIFFER = 11
    """Both sides have the client, and what it needs differs."""
    PARTNER_LACKS_CLIENT = 12
    NO_PATH = 13
    """The last path of the session is gone: nothing can be fenced, nothing replayed."""
    PARTNER_REBOOTED = 14
    """The partner's host has a new incarnation."""
    PARTNER_HOST_GONE = 15
    """The partner's status page shows no host."""
    PARTNER_BROKE_SESSION = 16
    """The partner is at a higher epoch of this session."""
    VI_FAILED = 17
    """One virtual interface failed while its path lives (receiver not ready, access refused)."""
    CLOSED = 18
    """Closed by its client or by the manager, orderly."""
    CLOSED_BY_PARTNER = 19
    VERBS_FAILED = 20
    """The local adapter refused to make a queue pair or memory region."""
    FENCE_UNANSWERED = 21
    """No fence request was acknowledged in time."""
    HOST_STOPPING = 22
    CLIENT_FAILED = 23
    """A callback of the client raised an exception."""
    DUPLICATE_IDENTITY = 24
    """Two nodes have one node id: the one that came second, with no later incarnation, is refused."""
    PARTNER_REMOVED = 25
    """The partner is no member of the cluster any more."""
    PARTNER_REFUSED = 26
    """The partner's client or card can't give what the session needs; it says so, and tries again by itself."""
    LARGE_PACKETS_LOST = 27
    """Small packets get through and those of the path MTU don't: the next smaller one is tried."""
