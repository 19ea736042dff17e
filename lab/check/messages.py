"""Messages between clients: what was acknowledged was delivered, once, in order, as it was sent (check 5)."""

from __future__ import annotations

from collections.abc import Mapping

from ccm.history import Kind
from lab.check.evidence import CheckResult, Evidence, Findings, Session

ECHO_CLIENT = "echo"


def delivered(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """Each acknowledged message of the echo client reached the partner with the bytes that were sent; in an epoch none
    came twice or before an earlier one.
    """
    findings = Findings("messages.delivered")
    for stream in evidence.streams:
        if evidence.clients.get(stream.client) != ECHO_CLIENT:
            continue
        findings.looked(len(evidence.of_session(stream, Kind.COMMITTED)))
        name = evidence.session_name(stream)
        for sequence in lost_messages(evidence, stream):
            findings.problem(f"{name}: message {sequence} was acknowledged and never delivered as sent")
        _judge_order(evidence, findings, stream)
    return findings.result(f"{findings.exercised} acknowledged messages delivered once and in order")


def lost_messages(evidence: Evidence, stream: Session) -> list[int]:
    """Sequences of acknowledged messages that the partner never got with these bytes."""
    receiver = Session(stream.partner, stream.node, stream.client)
    got = {(entry.sequence, entry.digest) for entry in evidence.of_session(receiver, Kind.DELIVERED)}
    submitted = evidence.submitted(stream)
    lost = []
    for commit in evidence.of_session(stream, Kind.COMMITTED):
        digest = submitted.get((commit.incarnation, commit.sequence), commit).digest
        if (commit.sequence, digest) not in got:
            lost.append(commit.sequence)
    return lost


def _judge_order(evidence: Evidence, findings: Findings, stream: Session) -> None:
    """Within an epoch sequences grow at the receiver."""
    receiver = Session(stream.partner, stream.node, stream.client)
    last: dict[int, int] = {}
    for entry in evidence.of_session(receiver, Kind.DELIVERED):
        before = last.get(entry.epoch)
        if before is not None and entry.sequence <= before:
            findings.problem(
                f"{evidence.session_name(stream)}: message {entry.sequence} came after {before} in epoch {entry.epoch}"
            )
        last[entry.epoch] = max(entry.sequence, before or 0)
