"""The verdict of a run: checks, faults, recoveries and figures, in the form that the contract promises.

Pure: turns an `Outcome` into a `Result` and a `Result` into JSON values. Knows no files and no terminal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from lab.check import run_checks
from lab.check.evidence import NANOSECONDS_PER_MILLISECOND, CheckResult, Evidence, Session
from lab.check.messages import ECHO_CLIENT, lost_messages
from lab.check.mirror import MIRROR_CLIENT, lost_records
from lab.check.recovery import Recovery, StreamNumbers, ms_after, percentile, recoveries, stream_numbers
from lab.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from lab.faults import HARDWARE_FAULTS
from lab.runner import Outcome, Timings
from lab.scenario import At, OnFrame, Scenario, Step

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
EXIT_STATUS: Mapping[str, int] = {PASS: EXIT_PASS, FAIL: EXIT_FAIL, INCONCLUSIVE: EXIT_INCONCLUSIVE}


@dataclass(slots=True)
class Result:
    """A judged run."""

    scenario: Scenario
    topology_name: str
    world: str
    wire: str
    seed: int
    verdict: str
    checks: list[CheckResult]
    recoveries: list[Recovery]
    workload: dict[str, dict[str, float | int]]
    schedule_hash: str
    outcome: Outcome
    report: str | None = None

    @property
    def exit_status(self) -> int:
        """0 pass, 1 fail, 4 inconclusive."""
        return EXIT_STATUS[self.verdict]

    def to_json(self) -> dict[str, object]:
        """The object that `lab run --json` prints."""
        evidence = self.outcome.evidence
        return {
            "scenario": self.scenario.name,
            "topology": self.topology_name,
            "world": self.world,
            "wire": self.wire,
            "seed": self.seed,
            "verdict": self.verdict,
            "checks": [asdict(check) for check in self.checks],
            "faults": [
                {
                    "id": fault.id,
                    "kind": fault.kind,
                    "target": fault.target,
                    "at_ms": _ms(fault.at - evidence.load_at) if fault.at is not None else 0.0,
                    "cleared_ms": _ms(fault.cleared - evidence.load_at) if fault.cleared is not None else None,
                    "fired": fault.fired,
                }
                for fault in evidence.faults
            ],
            "recoveries": [_recovery_json(evidence, recovery) for recovery in self.recoveries],
            "workload": self.workload,
            "timings_ms": timings_json(self.outcome.timings),
            "schedule_hash": self.schedule_hash,
            "report": self.report,
        }


def judge(scenario: Scenario, topology_name: str, world: str, seed: int, outcome: Outcome) -> Result:
    """Runs the checks and decides: fail where one fails, inconclusive where an expected one had nothing to look at or a
    trigger never fired, else pass.
    """
    evidence = outcome.evidence
    checks = run_checks(evidence, scenario.expect)
    checks.append(_orderly(outcome))
    steps = outcome.details.get("steps")
    if isinstance(steps, list):
        checks += [CheckResult(**step) for step in steps]
    checks.append(_fired(evidence))
    verdict = PASS
    if any(check.ok is False for check in checks):
        verdict = FAIL
    elif any(check.ok is None and (check.name in scenario.expect or check.name == "faults.fired") for check in checks):
        verdict = INCONCLUSIVE
    if evidence.suspensions:
        checks = [_doubted(check, evidence) for check in checks]
    return Result(
        scenario, topology_name, world, outcome.wire, seed, verdict, checks, recoveries(evidence),
        workload_numbers(evidence, checks), schedule_hash(scenario, seed, outcome.trace_hash), outcome,
    )  # fmt: skip


def _orderly(outcome: Outcome) -> CheckResult:
    """Each phase of the run ended within its bound."""
    if outcome.troubles:
        return CheckResult("run.orderly", False, 1, "; ".join(outcome.troubles))
    return CheckResult("run.orderly", True, 1, "ready, converged, drained and closed within the bounds")


def _fired(evidence: Evidence) -> CheckResult:
    """Each fault of the schedule happened; a hardware fault also met something."""
    silent = [
        f"{fault.kind} {fault.target}"
        for fault in evidence.faults
        if fault.at is None or (fault.kind in HARDWARE_FAULTS and not fault.fired)
    ]
    if silent:
        return CheckResult(
            "faults.fired", None, len(evidence.faults) - len(silent), f"never fired: {', '.join(silent)}"
        )
    return CheckResult("faults.fired", True, len(evidence.faults), "each fault happened")


TIMED_CHECKS = ("sessions.recovered", "traffic.continued", "session.broken", "run.orderly")
"""Checks with a bound in time: doubtful on a machine that was overloaded."""


def _doubted(check: CheckResult, evidence: Evidence) -> CheckResult:
    if check.name not in TIMED_CHECKS:
        return check
    count, first = len(evidence.suspensions), evidence.suspensions[0]
    detail = f"{check.detail} [the machine was overloaded, {count} times: {first}]"
    return CheckResult(check.name, check.ok, check.exercised, detail)


_LOSS_CHECKS = {MIRROR_CLIENT: "mirror.no_committed_loss", ECHO_CLIENT: "messages.delivered"}


def workload_numbers(evidence: Evidence, checks: Sequence[CheckResult]) -> dict[str, dict[str, float | int]]:
    """Figures by client, over all its streams. What a check found whole isn't searched for losses once more."""
    whole = {client for client, name in _LOSS_CHECKS.items() for check in checks if check.name == name and check.ok}
    by_client: dict[str, list[tuple[Session, StreamNumbers]]] = {}
    for stream in evidence.streams:
        name = evidence.clients[stream.client]
        by_client.setdefault(name, []).append((stream, stream_numbers(evidence, stream)))
    numbers: dict[str, dict[str, float | int]] = {}
    for name, streams in by_client.items():
        latencies = sorted(latency for _, stream in streams for latency in stream.latencies_ns)
        numbers[name] = {
            "committed": sum(stream.committed for _, stream in streams),
            "lost": 0 if name in whole else sum(_lost(evidence, name, session) for session, _ in streams),
            "p50_us": round(percentile(latencies, 50) / 1000, 1),
            "p99_us": round(percentile(latencies, 99) / 1000, 1),
            "longest_gap_ms": _ms(max(stream.gap_ns for _, stream in streams)),
        }
    return numbers


def _lost(evidence: Evidence, client: str, stream: Session) -> int:
    if client == MIRROR_CLIENT:
        return lost_records(evidence, stream)
    return len(lost_messages(evidence, stream)) if client == ECHO_CLIENT else 0


def schedule_json(
    scenario: Scenario, topology_text: str, world: str, wire: str, seed: int, hashed: str = "", directory: str = ""
) -> dict[str, object]:
    """The run as data: enough to do it again. `topology_text` is the topology's file as it was, `directory` where
    references in it count from, `hashed` the run's schedule_hash.
    """
    return {
        "format": 1,
        "scenario": scenario.name,
        "topology": scenario.topology,
        "topology_text": topology_text,
        "topology_directory": directory,
        "world": world,
        "wire": wire,
        "seed": seed,
        "schedule_hash": hashed,
        "workload": {client: asdict(load) for client, load in scenario.workload.items()},
        "steps": [step_json(step) for step in scenario.steps],
        "expect": scenario.expect,
    }


def step_json(step: Step) -> dict[str, object]:
    """One fault of a schedule as data; times in ns."""
    trigger = step.trigger
    kind = "at" if isinstance(trigger, At) else "frame" if isinstance(trigger, OnFrame) else "session"
    return {
        "trigger": {kind: asdict(trigger)},
        "fault": step.fault,
        "target": step.target,
        "duration_ns": step.duration_ns,
        "parameters": step.parameters,
    }


def schedule_hash(scenario: Scenario, seed: int, trace_hash: str) -> str:
    """Of workload, steps and seed; in the simulator also of all that happened, so that equal hashes mean equal runs."""
    data = {
        "workload": {client: asdict(load) for client, load in sorted(scenario.workload.items())},
        "steps": [step_json(step) for step in scenario.steps],
        "seed": seed,
        "trace": trace_hash,
    }
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=16).hexdigest()


def timings_json(timings: Timings) -> dict[str, float]:
    """In ms."""
    return {
        "bring_up": _ms(timings.bring_up),
        "ready": _ms(timings.ready),
        "run": _ms(timings.run),
        "teardown": _ms(timings.teardown),
    }


def _recovery_json(evidence: Evidence, recovery: Recovery) -> dict[str, object]:
    session, fault = recovery.session, recovery.fault
    end = recovery.recovered_at if recovery.recovered_at is not None else evidence.stopped_at
    return {
        "fault": fault.id,
        "node": evidence.node_name(session.node),
        "partner": evidence.node_name(session.partner),
        "client": evidence.clients[session.client],
        "detected_ms": ms_after(fault, recovery.detected_at),
        "recovered_ms": ms_after(fault, end),
        "epoch": recovery.epoch,
    }


def _ms(duration_ns: int) -> float:
    return round(duration_ns / NANOSECONDS_PER_MILLISECOND, 3)
