"""Which sessions a topology makes, and on which of them a workload submits. Pure."""

from __future__ import annotations

from lab.check.evidence import Session
from lab.check.mirror import MIRROR_CLIENT
from lab.plan import Plan
from lab.scenario import Scenario


def pairs(plan: Plan) -> list[tuple[str, str]]:
    """Each node with each of its partners, both ways."""
    return [(node, other) for node in plan.topology.nodes for other in plan.partners(node)]


def expected_sessions(plan: Plan) -> list[Session]:
    """Every session that has to be there: of each client that both nodes of a pair run and want with each other. A
    mirror has one partner that it writes to and one that writes to it.
    """
    nodes, names = plan.topology.nodes, plan.topology.client_names
    wanted = {
        (name, client): frozenset(plan.session_partners(name, client))
        for name, node in nodes.items()
        for client in node.clients
    }
    ring = {name: _neighbours(plan, name) for name, node in nodes.items() if MIRROR_CLIENT in node.clients}
    sessions = []
    for node, other in pairs(plan):
        for client in sorted(nodes[node].clients):
            if other not in wanted[node, client]:
                continue
            if client != MIRROR_CLIENT or (other in ring[node] and node in ring[other]):
                sessions.append(Session(plan.node_ids[node], plan.node_ids[other], names.index(client) + 1))
    return sessions


def expected_streams(plan: Plan, scenario: Scenario) -> list[Session]:
    """The sessions on which the scenario's workload submits."""
    names = {number: name for name, number in plan.node_ids.items()}
    streams = []
    for session in expected_sessions(plan):
        client = plan.topology.client_names[session.client - 1]
        if client not in scenario.workload:
            continue
        if client != MIRROR_CLIENT or names[session.partner] == _neighbours(plan, names[session.node])[0]:
            streams.append(session)
    return streams


def _neighbours(plan: Plan, node: str) -> tuple[str, str]:
    """The node whose card mirrors that of `node`, and the one that `node` mirrors: the next and the former in the ring
    of the node and its partners (those that it has chosen), in the order of their ids.
    """
    others = plan.session_partners(node, MIRROR_CLIENT) if plan.is_chosen(MIRROR_CLIENT) else plan.partners(node)
    ring = sorted([node, *others], key=lambda name: plan.node_ids[name])
    place = ring.index(node)
    return ring[(place + 1) % len(ring)], ring[place - 1]
