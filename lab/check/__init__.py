"""Checks: what must hold, each a function over what outsiders of the nodes saw.

Knows histories, memory contents, counters and resources (`lab.check.evidence`); imports nothing of the manager but the
layout of its history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emul.compiled import use as _use

_use(__name__, __path__)

from lab.check import messages, mirror, paths, resources, sessions, wire  # noqa: E402 (some may be compiled)
from lab.check.evidence import CheckResult, Evidence  # noqa: E402

Check = Callable[[Evidence, Mapping[str, object]], CheckResult]

CAPTURED = "wire.conformant"
"""Runs where cables were captured."""
CHECKS: Mapping[str, Check] = {
    "sessions.recovered": sessions.recovered,
    "traffic.continued": sessions.continued,
    "session.broken": sessions.broken,
    "alerts.exactly_once": sessions.alerts_exactly_once,
    "mirror.no_committed_loss": mirror.no_committed_loss,
    "messages.delivered": messages.delivered,
    "handshake.ordered": paths.handshake_ordered,
    "fence.before_replay": paths.fence_before_replay,
    "partner.readable": paths.partner_readable,
    "retransmission.seen": paths.retransmission_seen,
    "nothing.leaked": resources.nothing_leaked,
    CAPTURED: wire.conformant,
}
ALWAYS = (
    "alerts.exactly_once", "mirror.no_committed_loss", "messages.delivered", "handshake.ordered", "fence.before_replay",
    "nothing.leaked",
)  # fmt: skip
"""Run in each scenario, listed or not. Not listed and not exercised, they don't make a verdict inconclusive."""


def run_checks(evidence: Evidence, expect: Mapping[str, Mapping[str, object]]) -> list[CheckResult]:
    """The expected checks in the scenario's order, then those that always run. Raises KeyError for an unknown name."""
    results = [CHECKS[name](evidence, parameters) for name, parameters in expect.items()]
    results += [CHECKS[name](evidence, {}) for name in ALWAYS if name not in expect]
    if evidence.wire and CAPTURED not in expect:
        results.append(CHECKS[CAPTURED](evidence, {}))
    return results
