"""What an operator may set of a manager: intervals, limits and habits, with the values that it has otherwise.

One frozen value, made once for a host and handed down to paths and liveness. Times are ns. The two sides of a pair may
have different ones: each watches for itself, and nothing of them goes over the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emul.clock import MILLISECOND, SECOND


class SettingsError(ValueError):
    """A setting out of its range, or two that contradict each other; `name` is the field to blame."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True, slots=True)
class Settings:
    """Raises SettingsError for what RANGES or the order of two fields forbids."""

    # probes
    probe_interval_ns: int = 5 * MILLISECOND
    """Between two probes of a path."""
    idle_probe_interval_ns: int = 20 * MILLISECOND
    """Between partners that have no work under way: nobody waits there, and probes are most of what an idle node
    costs.
    """
    apart_probe_interval_ns: int = SECOND
    """Between partners that share no client."""
    busy_probes_per_s: int = 800
    """Most probes that a node sends to partners with work under way, over all paths: beyond, their interval stretches.
    Enough for four paths in their usual interval.
    """
    idle_probes_per_s: int = 100
    """To partners without work, handshakes that wait for a partner's host included."""
    apart_probes_per_s: int = 20
    """To partners that it shares no client with."""
    busy_for_ns: int = 200 * MILLISECOND
    """Partners count as busy for so long after something completed between them, on whatever path."""

    # silence
    limit_floor_ns: int = 16 * MILLISECOND
    """Least silence after which a path is given up for another one. Wake-ups of 2-4 ms are common on a loaded machine,
    so a lower limit would raise false alarms.
    """
    limit_most_ns: int = 250 * MILLISECOND
    """Most. On a machine so loaded that answers take a quarter of that, a false alarm costs more than a late one."""
    limit_factor: int = 3
    """Between the two: so many times the worst round trip seen lately."""
    alone_limit_ns: int = 400 * MILLISECOND
    """Limit of a path without a better one."""
    shaken_ns: int = 40 * MILLISECOND
    """A path that itself answered later by limit_floor_ns than it can is no evidence against another one for so long
    after: when everything stalled, lost requests are repeated within a retransmission timeout of the well-known
    connection (34 ms), not all at once.
    """
    window_ns: int = 3 * SECOND
    """The worst round trip of this window and the one before counts."""

    # connecting
    connect_timeout_ns: int = 250 * MILLISECOND
    """An attempt to connect without any answer ends after this time."""
    retry_first_ns: int = 20 * MILLISECOND
    retry_most_ns: int = 250 * MILLISECOND
    """Time between attempts to connect; doubles up to the bound, which bounds the time to notice a healed cable too."""
    refused_retry_ns: int = SECOND
    """After a wrong proof or identity: somebody has to mend that, haste won't."""
    poll_ns: int = 5 * MILLISECOND
    """Time between repetitions of read 1 and read 2 of the handshake."""

    # loss and return
    hold_down_first_ns: int = 50 * MILLISECOND
    hold_down_most_ns: int = 2 * SECOND
    """How long a lost path stays down at least; doubles for a path that was up only shortly (flapping)."""
    steady_ns: int = 2 * SECOND
    """A path that was up for this long is not flapping."""
    fence_timeout_ns: int = 20 * MILLISECOND
    """A fence request without answer is repeated over the next living path after this time."""
    fence_attempts_max: int = 25
    """Then the path's work is given up: its sessions break."""
    failback: bool = True
    """Whether virtual interfaces move back to a path that came up; otherwise it carries what is opened from then on."""
    failback_after_ns: int = 100 * MILLISECOND
    """How long a path must be up again before virtual interfaces move back to it."""
    balance: str | bool = "vi"
    """How virtual interfaces are spread over the paths: `vi` (or True), as many on each; `bytes`, by what they have in
    flight as well; False: all go over the first path that is usable.
    """

    # sessions
    stranded_timeout_ns: int = SECOND
    """How long a session whose path was lost waits for queue pairs on a path that has just come up."""
    close_timeout_ns: int = 500 * MILLISECOND
    """How long a closing side waits for its partner."""

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise SettingsError(name, f"{name} is {value!r}, expected {least} ... {most}")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(name, f"{name} is {getattr(self, name)!r}, expected true or false")
        if type(self.balance) not in (str, bool) or self.balance not in BALANCES:
            raise SettingsError("balance", f"balance is {self.balance!r}, expected vi, bytes, True or False")
        if self.balance == BY_BYTES and not self.failback:
            raise SettingsError("failback", BYTES_NEED_FAILBACK)
        for lower, upper in ORDERED:
            low, high = getattr(self, lower), getattr(self, upper)
            if low > high:
                raise SettingsError(lower, f"{lower} is {low}, more than {upper}, {high}")


_HOUR_NS = 3600 * SECOND
RANGES: Final[dict[str, tuple[int, int]]] = {
    "probe_interval_ns": (MILLISECOND, 10 * SECOND),
    "idle_probe_interval_ns": (MILLISECOND, 10 * SECOND),
    "apart_probe_interval_ns": (MILLISECOND, 60 * SECOND),
    "busy_probes_per_s": (1, 100_000),
    "idle_probes_per_s": (1, 100_000),
    "apart_probes_per_s": (1, 100_000),
    "busy_for_ns": (0, _HOUR_NS),
    "limit_floor_ns": (MILLISECOND, 60 * SECOND),
    "limit_most_ns": (MILLISECOND, 60 * SECOND),
    "limit_factor": (1, 1000),
    "alone_limit_ns": (MILLISECOND, 600 * SECOND),
    "shaken_ns": (0, 60 * SECOND),
    "window_ns": (100 * MILLISECOND, _HOUR_NS),
    "connect_timeout_ns": (10 * MILLISECOND, 60 * SECOND),
    "retry_first_ns": (MILLISECOND, 60 * SECOND),
    "retry_most_ns": (MILLISECOND, _HOUR_NS),
    "refused_retry_ns": (MILLISECOND, _HOUR_NS),
    "poll_ns": (MILLISECOND, 10 * SECOND),
    "hold_down_first_ns": (0, _HOUR_NS),
    "hold_down_most_ns": (0, _HOUR_NS),
    "steady_ns": (0, _HOUR_NS),
    "fence_timeout_ns": (MILLISECOND, 10 * SECOND),
    "fence_attempts_max": (1, 10_000),
    "failback_after_ns": (0, _HOUR_NS),
    "stranded_timeout_ns": (MILLISECOND, 60 * SECOND),
    "close_timeout_ns": (MILLISECOND, 60 * SECOND),
}  # fmt: skip
"""Least and most of each figure. Intervals have no 0: a timer that is always due would keep the host busy for ever."""
SWITCHES: Final = ("failback",)
BY_BYTES: Final = "bytes"
BALANCES: Final = ("vi", BY_BYTES, True, False)
"""What `balance` may be; True is another word for vi."""
BYTES_NEED_FAILBACK: Final = "balance: bytes moves virtual interfaces between living paths, failback: false keeps them"
ORDERED: Final = (
    ("probe_interval_ns", "idle_probe_interval_ns"),
    ("limit_floor_ns", "limit_most_ns"),
    ("limit_floor_ns", "alone_limit_ns"),
    ("retry_first_ns", "retry_most_ns"),
    ("hold_down_first_ns", "hold_down_most_ns"),
)
"""(the one that must not be more, than the other)."""

DEFAULTS: Final = Settings()
