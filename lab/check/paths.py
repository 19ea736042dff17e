"""Paths and the peer connection: handshake in order, fence before replay, what a partner can read (checks 2, 10)."""

from __future__ import annotations

from collections.abc import Mapping

from ccm.history import Entry, Kind
from emul.node_memory import Stage
from lab.check.evidence import CheckResult, Evidence, Findings, PathEnd

STEPS = (1, 2, 3, 4)
"""Read 1, write 1, read 2, write 2."""


def handshake_ordered(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """Each step of the handshake follows the one before it, step 3 (the partner has seen me) the partner's own step 1,
    and nobody is told "ready" before step 4.
    """
    findings = Findings("handshake.ordered")
    for node in evidence.nodes:
        for partner in evidence.nodes:
            _judge_steps(evidence, findings, node, partner)
    return findings.result(f"{findings.exercised} steps in order")


def _judge_steps(evidence: Evidence, findings: Findings, node: int, partner: int) -> None:
    reached: dict[int, int] = {}
    complete = False
    name = f"{evidence.node_name(node)}->{evidence.node_name(partner)}"
    partner_saw = [e.at for e in evidence.of(partner, Kind.HANDSHAKE_STEP) if e.partner == node and e.extra == 1]
    for entry in evidence.of(node, Kind.HOST_STARTED, Kind.HANDSHAKE_STEP, Kind.READY_ALERT):
        if entry.kind == Kind.HOST_STARTED:
            reached, complete = {}, False
        elif entry.partner != partner:
            continue
        elif entry.kind == Kind.READY_ALERT:
            if not complete:
                findings.problem(f"{name}: ready alert at {evidence.ms(entry.at)} before the handshake was complete")
        else:
            findings.looked()
            path, step = entry.offset, entry.extra
            if step not in STEPS:
                findings.problem(f"{name}: unknown step {step}")
            elif step > reached.get(path, 0) + 1:
                findings.problem(f"{name}: step {step} on path {path} after step {reached.get(path, 0)}")
            if step == 3 and not any(at <= entry.at for at in partner_saw):
                findings.problem(f"{name}: step 3 on path {path} before the partner had read anything")
            reached[path] = step
            complete = complete or step == STEPS[-1]


def fence_before_replay(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """Nothing is posted again before the partner has acknowledged the fence of the path that failed last, and each
    fence that a node was told of stands in its partner's memory.
    """
    findings = Findings("fence.before_replay")
    for node in evidence.nodes:
        for partner in evidence.nodes:
            _judge_fences(evidence, findings, node, partner)
    return findings.result(f"{findings.exercised} replays, each after its fence", "nothing was replayed")


def _judge_fences(evidence: Evidence, findings: Findings, node: int, partner: int) -> None:
    lost: Entry | None = None
    fenced: set[int] = set()
    kinds = (Kind.HOST_STARTED, Kind.PATH_UP, Kind.PATH_DOWN, Kind.PATH_FENCED, Kind.REPLAYED)
    for entry in evidence.of(node, *kinds):
        if entry.kind == Kind.HOST_STARTED:
            lost, fenced = None, set()
        elif entry.partner != partner:
            continue
        elif entry.kind == Kind.PATH_UP:
            if lost is not None and lost.extra == entry.extra:
                lost = None  # a new life of it: what the former had was fenced or given up
        elif entry.kind == Kind.PATH_DOWN:
            lost = entry
            fenced.discard(entry.extra)
        elif entry.kind == Kind.PATH_FENCED:
            fenced.add(entry.extra)
            _judge_standing(evidence, findings, entry)
        else:
            findings.looked()
            if lost is not None and lost.extra not in fenced:
                findings.problem(
                    f"{evidence.node_name(node)}->{evidence.node_name(partner)}: {entry.length} requests posted again"
                    f" on path {entry.extra} at {evidence.ms(entry.at)}, path {lost.extra} was lost at"
                    f" {evidence.ms(lost.at)} and not fenced"
                )


def _judge_standing(evidence: Evidence, findings: Findings, entry: Entry) -> None:
    """Fence epochs only grow, so one that was raised in the run is there at its end."""
    standing = evidence.fences.get(PathEnd(entry.node, entry.partner, entry.extra))
    if standing is not None and standing < entry.sequence:
        findings.problem(
            f"{evidence.node_name(entry.node)} was told that path {entry.extra} is fenced at epoch {entry.sequence},"
            f" in {evidence.node_name(entry.partner)}'s memory stands {standing}"
        )


def partner_readable(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """While a host was down or booting its partner read its boot status by RDMA, before the storage OS was active."""
    findings = Findings("partner.readable")
    restarted = [f for f in evidence.faults if f.at is not None and f.nodes]
    for fault in restarted:
        assert fault.at is not None
        for node in fault.nodes:
            _judge_readable(evidence, findings, node, fault.at)
    return findings.result(
        f"{findings.exercised} boot stages read before the storage OS was active", "no host went down"
    )


def _judge_readable(evidence: Evidence, findings: Findings, node: int, fault_at: int) -> None:
    serving = [e.at for e in evidence.of(node, Kind.STAGE) if e.at > fault_at and e.extra >= Stage.STORAGE_OS]
    until = serving[0] if serving else evidence.stopped_at
    partners = {session.node for session in evidence.sessions if session.partner == node}
    for partner in sorted(partners):
        read = [
            entry
            for entry in evidence.of(partner, Kind.PARTNER_STATUS)
            if entry.partner == node and fault_at < entry.at <= until and entry.extra < Stage.STORAGE_OS
        ]
        findings.looked(len(read))
        if not read:
            findings.problem(
                f"{evidence.node_name(partner)} read nothing of {evidence.node_name(node)} between the fault at"
                f" {evidence.ms(fault_at)} and its storage OS"
            )


LOSING_FAULTS = ("cable.drop", "cable.corrupt", "cable.mtu")
"""After these an adapter has to send again. (What a forged NAK asks for may be acknowledged before it can be sent.)"""
RETRANSMISSION_COUNTERS = ("retransmissions", "retransmitted", "retransmitted_packets", "tx_retransmitted")
"""Names under which an adapter counts packets that it sent again."""


def retransmission_seen(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """An adapter sent something again: the fault met the transport."""
    total = sum(
        amount
        for counters in evidence.counters.values()
        for name, amount in counters.items()
        if name in RETRANSMISSION_COUNTERS
    )
    if total:
        return CheckResult("retransmission.seen", True, total, f"{total} packets sent again")
    lost = sum(fault.fired for fault in evidence.faults if fault.kind in LOSING_FAULTS)
    if lost:
        return CheckResult("retransmission.seen", False, lost, f"{lost} frames were lost, and nothing was sent again")
    return CheckResult("retransmission.seen", None, 0, "no frame was lost, and nothing was sent again")
