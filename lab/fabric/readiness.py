"""Starts the hosts of a lab and waits until all sessions are ready, as their clients were told.

Looks at the histories that the hosts write, not at the hosts: waiting costs them nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ccm.history import HEADER_BYTES, RECORD_BYTES, RECORDS_MAX
from emul.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.fabric.client import Fabric
    from lab.plan import Plan

HISTORY_BYTES = HEADER_BYTES + RECORDS_MAX * RECORD_BYTES
READY_MAX_S = 30.0
READY_MAX_PER_NODE_S = 1.0
_POLL_S = 0.005


def ready_bound_s(nodes: int) -> float:
    """How long a lab of `nodes` may take to get all sessions ready before something is wrong."""
    return READY_MAX_S + READY_MAX_PER_NODE_S * nodes


def boot_and_wait(fabric: Fabric, plan: Plan, timeout_s: float | None = None) -> Sequence[str]:
    """Boots all hosts and waits for their sessions. What is still missing at the bound, in words; empty: all ready."""
    from lab.sessions import expected_sessions
    from lab.watcher import Watcher

    nodes = list(plan.topology.nodes)
    memories = {node: Memory.open_file(fabric.history_path(node), HISTORY_BYTES) for node in nodes}
    watcher = Watcher(plan.node_ids, expected_sessions(plan))
    try:
        for node in nodes:
            fabric.start_host(node)
        deadline = time.monotonic() + (ready_bound_s(len(nodes)) if timeout_s is None else timeout_s)
        while time.monotonic() < deadline:
            watcher.poll({node: memory.buffer for node, memory in memories.items()})
            if watcher.all_ready() or _a_host_ended(fabric):
                break
            time.sleep(_POLL_S)
        names = {number: name for name, number in plan.node_ids.items()}
        return [
            f"{names[session.node]} -> {names[session.partner]} {plan.topology.client_names[session.client - 1]}"
            for session in watcher.missing()
        ]
    finally:
        for memory in memories.values():
            memory.close()


def _a_host_ended(fabric: Fabric) -> bool:
    return any(str(event["key"]).endswith("/host") for event in fabric.exits())
