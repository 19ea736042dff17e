"""Frames: what crossed the cables follows the InfiniBand specification, as far as it was captured (check 17)."""

from __future__ import annotations

from collections.abc import Mapping

from lab.check.evidence import CheckResult, Evidence, Findings


def conformant(evidence: Evidence, parameters: Mapping[str, object]) -> CheckResult:
    """No packet on a captured cable breaks a rule of the analyzer (lab.wire). Cables on which the lab itself forged
    frames are left out: the adapters answer what the capture doesn't show.
    """
    findings = Findings("wire.conformant")
    notes = []
    for cable, report in evidence.wire.items():
        if report is None:
            notes.append(f"{cable} left out: frames were forged on it")
            continue
        findings.looked(report.packets)
        for finding in report.findings:
            findings.problem(f"{cable}: {finding}")
        findings.problems += report.total - len(report.findings)
        if report.lost:
            notes.append(f"{cable}: {report.lost} frames missing, order not judged")
    connections = sum(len(report.connections) for report in evidence.wire.values() if report is not None)
    told = "; ".join([f"{findings.exercised} packets of {connections} connections by the rules", *notes])
    return findings.result(told, "; ".join(["not exercised: no captured cable (lab run --capture)", *notes]))
