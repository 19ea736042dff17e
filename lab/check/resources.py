"""Nothing leaked: verbs resources, descriptors and threads after the close, processes and namespaces after the end
(check 13).
"""

from __future__ import annotations

from collections.abc import Mapping

from lab.check.evidence import CheckResult, Evidence, Findings, NodeResources

DESCRIPTORS_SLACK = 4
"""Descriptors that a process may open for itself between two looks (a log, a control connection)."""


def nothing_leaked(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """After the orderly close sessions hold nothing, faults left no descriptor or thread behind, and after the teardown
    no process, namespace or interface is there.
    """
    findings = Findings("nothing.leaked")
    for node, resources in evidence.resources.items():
        _judge_node(findings, evidence.node_name(node), resources)
    for leftover in evidence.leftovers:
        findings.problem(f"left after the teardown: {leftover}")
    return findings.result(f"{findings.exercised} counts of resources as before")


def _judge_node(findings: Findings, name: str, resources: NodeResources) -> None:
    for what, amount in sorted(resources.closed.items()):
        before = resources.ready.get(what)
        if before is None:
            continue
        findings.looked()
        slack = DESCRIPTORS_SLACK if what == "fds" else 0
        if amount > before + slack:
            findings.problem(f"{name}: {amount} {what} after the close, {before} when the sessions were first ready")
