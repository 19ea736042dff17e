"""Sessions: did they come back, did the traffic go on, were clients alerted exactly once (checks 9 and 11)."""

from __future__ import annotations

from collections.abc import Mapping

from ccm.history import Kind
from lab.check.evidence import NANOSECONDS_PER_MILLISECOND, CheckResult, Evidence, FaultRecord, Findings, Session
from lab.check.recovery import detection, first_flow, stream_numbers, window_end

RECOVERY_BOUND_NS = 5_000_000_000
"""How long a session may take to come back where the scenario names no bound."""
GAP_BOUND_NS = 2_000_000_000
"""Longest time without a commit that still counts as continued traffic where the scenario names no bound."""


def parameter_ns(parameters: Mapping[str, object], name: str, otherwise: int) -> int:
    """A duration among an expectation's parameters, in ns."""
    value = parameters.get(name, otherwise)
    assert isinstance(value, int), f"{name} should be in ns, got {value!r}"
    return value


def recovered(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """After each fault each stream commits new work within the bound, counted from when the fault was undone (or
    happened, if there is nothing to undo), and all sessions are ready at the end.
    """
    within = parameter_ns(parameters, "within_ns", RECOVERY_BOUND_NS)
    findings = Findings("sessions.recovered")
    slowest = 0
    for fault in evidence.faults:
        if fault.at is None:
            continue
        for session in evidence.streams:
            findings.looked()
            stopped_at = _stopped_at(evidence, fault, session)
            slowest = max(slowest, _judge_recovery(evidence, findings, fault, session, stopped_at, within))
    for session in evidence.sessions:
        if not _is_ready(evidence, session):
            findings.problem(f"{evidence.session_name(session)} was not ready at the end")
    return findings.result(
        f"work flowed again at most {slowest / NANOSECONDS_PER_MILLISECOND:.1f} ms after the heal"
        f" (bound {within / NANOSECONDS_PER_MILLISECOND:.0f} ms)",
        "no fault took effect",
    )


def _stopped_at(evidence: Evidence, fault: FaultRecord, session: Session) -> int:
    """When the stream was last stopped by the fault: the last that its node noticed of it, or the fault itself where it
    noticed nothing (a packet that the adapter sent again).
    """
    assert fault.at is not None
    detected_at = detection(evidence, fault, session)
    if detected_at is None:
        return fault.at
    until = window_end(evidence, fault)
    alerts = [e.at for e in evidence.of_session(session, Kind.ERROR_ALERT) if fault.at <= e.at <= until]
    return max([detected_at, *alerts])


def _judge_recovery(
    evidence: Evidence, findings: Findings, fault: FaultRecord, session: Session, stopped_at: int, within: int
) -> int:
    """Gives how long the recovery took in ns; notes a problem where it did not happen in time."""
    assert fault.at is not None
    healed_at = fault.at if fault.cleared is None else fault.cleared
    commit = first_flow(evidence, session, fault.at, stopped_at)
    name = f"{evidence.session_name(session)} after {fault.kind} {fault.target}"
    if commit is None:
        findings.problem(f"{name}: no commit any more")
        return 0
    took = max(0, commit.at - healed_at)
    if took > within:
        findings.problem(
            f"{name}: {took / NANOSECONDS_PER_MILLISECOND:.1f} ms,"
            f" expected at most {within / NANOSECONDS_PER_MILLISECOND:.0f} ms"
        )
    return took


def _is_ready(evidence: Evidence, session: Session) -> bool:
    """Whether the last alert before the close was "ready"."""
    until = evidence.close_at
    alerts = [
        entry
        for entry in evidence.of_session(session, Kind.READY_ALERT, Kind.ERROR_ALERT)
        if until is None or entry.at <= until
    ]
    return bool(alerts) and alerts[-1].kind == Kind.READY_ALERT


def continued(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """No client is told of an error, and no stream goes longer than the bound without a commit."""
    bound = parameter_ns(parameters, "within_ns", GAP_BOUND_NS)
    findings = Findings("traffic.continued")
    longest = 0
    for session in evidence.sessions:
        for alert in evidence.of_session(session, Kind.ERROR_ALERT):
            if evidence.close_at is None or alert.at < evidence.close_at:
                findings.problem(f"{evidence.session_name(session)} got an error alert at {evidence.ms(alert.at)}")
    for session in evidence.streams:
        numbers = stream_numbers(evidence, session)
        findings.looked(numbers.committed)
        longest = max(longest, numbers.gap_ns)
        if numbers.gap_ns > bound:
            findings.problem(
                f"{evidence.session_name(session)} committed nothing for"
                f" {numbers.gap_ns / NANOSECONDS_PER_MILLISECOND:.1f} ms from {evidence.ms(numbers.gap_at)},"
                f" expected at most {bound / NANOSECONDS_PER_MILLISECOND:.0f} ms"
            )
    return findings.result(
        f"no error alert, longest gap {longest / NANOSECONDS_PER_MILLISECOND:.1f} ms", "nothing was committed"
    )


def broken(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """A session broke after a fault, its client was told, and it came back in a newer epoch, within the bound if one is
    given.
    """
    within = parameter_ns(parameters, "within_ns", 0)
    findings = Findings("session.broken")
    first = min((fault.at for fault in evidence.faults if fault.at is not None), default=None)
    for session in evidence.sessions if first is not None else ():
        alerts = [e for e in evidence.alerts(session) if evidence.close_at is None or e.at < evidence.close_at]
        for index, alert in enumerate(alerts):
            if alert.kind != Kind.ERROR_ALERT or first is None or alert.at < first - evidence.stamp_slack_ns:
                continue
            findings.looked()
            back = next((e for e in alerts[index + 1 :] if e.kind == Kind.READY_ALERT), None)
            name = f"{evidence.session_name(session)}, broken at {evidence.ms(alert.at)}"
            if back is None:
                findings.problem(f"{name}, did not come back")
            elif back.epoch <= alert.epoch:
                findings.problem(f"{name}, came back in epoch {back.epoch} after {alert.epoch}")
            elif within and back.at - alert.at > within:
                findings.problem(f"{name}, came back after {(back.at - alert.at) / NANOSECONDS_PER_MILLISECOND:.1f} ms")
    return findings.result(
        f"{findings.exercised} sessions were reported broken and came back in a newer epoch",
        "no session was reported broken",
    )


def alerts_exactly_once(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """One ready alert for each epoch, then at most one error alert for it; epochs grow, across reboots too; both sides
    end in the same epoch.
    """
    findings = Findings("alerts.exactly_once")
    last_epoch: dict[Session, int] = {}
    for session in evidence.sessions:
        last_epoch[session] = _judge_alerts(evidence, findings, session)
    for session, epoch in last_epoch.items():
        other = Session(session.partner, session.node, session.client)
        if epoch and last_epoch.get(other, 0) not in (0, epoch) and session.node < session.partner:
            findings.problem(
                f"{evidence.session_name(session)} ended in epoch {epoch}, the other side in {last_epoch[other]}"
            )
    return findings.result(f"{findings.exercised} alerts, each once and in its turn")


def _judge_alerts(evidence: Evidence, findings: Findings, session: Session) -> int:
    """Walks one client's alerts; gives the epoch that is ready at the end, 0 for none."""
    name, highest, ready, broken_epochs = evidence.session_name(session), 0, 0, set[int]()
    for entry in evidence.alerts(session):
        if entry.kind == Kind.HOST_STARTED:
            ready = 0  # whoever was told "ready" is gone with the host; epochs must still grow
            continue
        findings.looked()
        when = f"{name}, epoch {entry.epoch} at {evidence.ms(entry.at)}"
        if entry.kind == Kind.READY_ALERT:
            if entry.epoch <= highest:
                findings.problem(f"{when}: a ready alert after one of epoch {highest}")
            if ready:
                findings.problem(f"{when}: a ready alert while epoch {ready} was still ready")
            highest, ready = max(highest, entry.epoch), entry.epoch
        elif entry.kind == Kind.ERROR_ALERT:
            if entry.epoch in broken_epochs:
                findings.problem(f"{when}: a second error alert")
            elif ready != entry.epoch:
                findings.problem(f"{when}: an error alert for an epoch that was not ready")
            broken_epochs.add(entry.epoch)
            ready = 0
        else:
            ready = 0
    return ready
