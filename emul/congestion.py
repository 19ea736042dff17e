"""Congestion as a queue pair sees it: packets that a switch marked, and the notifications that they bring about.

IBTA annex A17.9: who receives a packet marked "congestion experienced" sends a congestion notification packet (CNP) to
its sender. What the sender does about it is DCQCN's business (a rate, not a rule of the transport): here it is counted.
"""

from __future__ import annotations

from emul.clock import MICROSECOND, Instant, after
from emul.wire.headers import BTH, P_KEY_FULL, Opcode

CNP_INTERVAL_NS = 50 * MICROSECOND
"""Between two notifications of one queue pair: N of DCQCN (Zhu et al., Congestion Control for Large-Scale RDMA
Deployments, SIGCOMM 2015, section 3.2)."""
CNP_TRAFFIC_CLASS = 48 << 2
"""DSCP 48, which ConnectX cards give them; not ECN-capable, so that nobody marks them."""
CNP_RESERVED = bytes(16)
_BECN = 0x4000_0000


class Congestion:
    """Counters of one queue pair, under the names of Linux mlx5, and when the next notification may leave."""

    __slots__ = ("_next_at", "cnp_handled", "cnp_sent", "marked")

    def __init__(self) -> None:
        self._next_at: Instant | None = None
        self.marked = 0
        self.cnp_sent = 0
        self.cnp_handled = 0

    def on_marked(self, *, now: Instant) -> bool:
        """A marked packet has come; whether a notification is to be sent."""
        self.marked += 1
        if self._next_at is not None and now < self._next_at:
            return False
        self._next_at = after(now, CNP_INTERVAL_NS)
        self.cnp_sent += 1
        return True

    def counters(self) -> dict[str, int]:
        """np: as the one who notifies; rp: as the one who is to react."""
        return {
            "np_ecn_marked_roce_packets": self.marked,
            "np_cnp_sent": self.cnp_sent,
            "rp_cnp_handled": self.cnp_handled,
        }


def cnp_bth(destination_qpn: int) -> bytes:
    """The transport header of a notification for the peer's queue pair."""
    return BTH.pack(Opcode.CNP, 0, P_KEY_FULL, _BECN | destination_qpn, 0)
