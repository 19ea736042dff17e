"""How long each client was without its partner, and what the workload achieved: figures, no judgement.

A fault is noticed by a node when its own history shows a path that crosses the fault taken out of use, a session
reported broken, or (for a host that went down itself) its next start. Work flows again end to end with the first commit
after that which could not have come from before the fault: submitted after it, or posted again since.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ccm.history import Entry, Kind
from lab.check.evidence import NANOSECONDS_PER_MILLISECOND, Evidence, FaultRecord, PathEnd, Session

NOTICED_WITHIN_NS = 1_000 * NANOSECONDS_PER_MILLISECOND
"""What a node notices later than this after a fault is over has another cause."""
_Write = tuple[int, int]
"""Incarnation and sequence: names one write of a stream."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One stream's way through one fault. Times in ns on the scale of the history; None: never."""

    fault: FaultRecord
    session: Session
    detected_at: int
    recovered_at: int | None
    epoch: int


@dataclass(frozen=True, slots=True)
class StreamNumbers:
    """What one stream did between load and stop."""

    session: Session
    committed: int
    latencies_ns: Sequence[int]
    """Sorted."""
    gap_ns: int
    """Longest time without a commit while the workload ran."""
    gap_at: int
    """When that gap began."""


def recoveries(evidence: Evidence) -> list[Recovery]:
    """One entry for each fault that took effect and each stream that noticed it, in the order of the faults."""
    found = []
    for fault in evidence.faults:
        if fault.at is None:
            continue
        for session in evidence.streams:
            recovery = _recovery(evidence, fault, fault.at, session)
            if recovery is not None:
                found.append(recovery)
    return found


def window_end(evidence: Evidence, fault: FaultRecord) -> int:
    """Until when what happens is taken to follow from `fault`: it is over, the manager has had time to notice, and no
    other fault has come.
    """
    assert fault.at is not None
    over = fault.at if fault.cleared is None else fault.cleared
    end = evidence.stopped_at or (evidence.entries[-1].at if evidence.entries else 0)
    later = [other.at for other in evidence.faults if other.at is not None and other.at >= over and other is not fault]
    return min([end, over + NOTICED_WITHIN_NS, *later])


def detection(evidence: Evidence, fault: FaultRecord, session: Session) -> int | None:
    """When `session.node` first noticed `fault` in what touches the partner; None where it never did."""
    assert fault.at is not None
    until = window_end(evidence, fault)
    earliest = fault.at - evidence.stamp_slack_ns
    candidates = [
        max(entry.at, fault.at)
        for entry in evidence.of(session.node, Kind.PATH_DOWN, Kind.ERROR_ALERT, Kind.HOST_STARTED)
        if earliest <= entry.at <= until and _follows_from(fault, session, entry)
    ]
    return min(candidates, default=None)


def _follows_from(fault: FaultRecord, session: Session, entry: Entry) -> bool:
    if entry.kind == Kind.HOST_STARTED:
        return session.node in fault.nodes
    if entry.partner != session.partner:
        return False
    if entry.kind == Kind.ERROR_ALERT:
        return entry.client == session.client
    end = PathEnd(session.node, session.partner, entry.extra)
    return end in fault.paths if fault.paths else bool(fault.nodes & {session.node, session.partner})


def _recovery(evidence: Evidence, fault: FaultRecord, fault_at: int, session: Session) -> Recovery | None:
    detected_at = detection(evidence, fault, session)
    if detected_at is None:
        return None
    until = window_end(evidence, fault)
    breaks = [e.at for e in evidence.of_session(session, Kind.ERROR_ALERT) if fault_at <= e.at <= until]
    broken_at = max([detected_at, *breaks])
    commit = first_flow(evidence, session, fault_at, broken_at)
    if commit is not None:
        return Recovery(fault, session, detected_at, commit.at, commit.epoch)
    epochs = [e.epoch for e in evidence.of_session(session, Kind.READY_ALERT)]
    return Recovery(fault, session, detected_at, None, max(epochs, default=0))


def first_flow(evidence: Evidence, session: Session, fault_at: int, broken_at: int) -> Entry | None:
    """The first commit of the stream from `broken_at` on that was submitted or posted again after `fault_at`."""
    submitted = evidence.submitted(session)
    replayed_at = [e.at for e in evidence.of_session(session, Kind.REPLAYED) if e.at >= fault_at]
    commits = evidence.of_session(session, Kind.COMMITTED)
    start = bisect_left(commits, broken_at, key=lambda entry: entry.at)
    for commit in commits[start:]:
        begun = submitted.get((commit.incarnation, commit.sequence))
        if (begun is not None and begun.at >= fault_at) or (replayed_at and replayed_at[0] <= commit.at):
            return commit
    return None


def stream_numbers(evidence: Evidence, session: Session) -> StreamNumbers:
    """Commits, latencies and the longest gap of one stream, from the start of the load to its stop."""
    submitted: dict[_Write, int] = {}
    for entry in evidence.of_session(session, Kind.SUBMITTED):
        submitted.setdefault((entry.incarnation, entry.sequence), entry.at)
    latencies = []
    commits = evidence.of_session(session, Kind.COMMITTED)
    for commit in commits:
        begun = submitted.get((commit.incarnation, commit.sequence))
        if begun is not None:
            latencies.append(commit.at - begun)
    latencies.sort()
    gap_ns, gap_at = _longest_gap(evidence, [entry.at for entry in commits])
    return StreamNumbers(session, len(commits), latencies, gap_ns, gap_at)


def _longest_gap(evidence: Evidence, commits_at: Sequence[int]) -> tuple[int, int]:
    """From the first commit on, as the time before it is bring-up. All of the load where nothing was committed."""
    if not commits_at:
        return max(0, evidence.stopped_at - evidence.load_at), evidence.load_at
    within = [at for at in commits_at if at < evidence.stopped_at]
    moments = [commits_at[0], *within, max(evidence.stopped_at, commits_at[0])]
    gaps = [(later - earlier, earlier) for earlier, later in pairwise(moments)]
    return max(gaps, key=lambda gap: gap[0])


def percentile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that at least `percent` % of the sorted values don't exceed; 0 for none at all."""
    if not ordered:
        return 0
    return ordered[max(0, (len(ordered) * percent + 99) // 100 - 1)]


def ms_after(fault: FaultRecord, at: int) -> float:
    """`at` in ms since the fault took effect."""
    assert fault.at is not None
    return round((at - fault.at) / NANOSECONDS_PER_MILLISECOND, 3)
