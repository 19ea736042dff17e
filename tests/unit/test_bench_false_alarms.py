"""The false-alarms benchmark's counting: from histories, status and log to what was taken for a failure."""

from __future__ import annotations

import json
import os

import pytest

from ccm.history import Entry, Kind
from ccm.reasons import Reason
from emul.clock import MILLISECOND, Instant
from lab.bench.false_alarms import Alarms, busy_loops, rows

MIRROR, ECHO = 1, 2


def entry(at_ms: int, kind: Kind, client: int = 0, **fields: int) -> Entry:
    return Entry(Instant(at_ms * MILLISECOND), kind, 1, client=client, **fields)


def status(losses: int, errors: int) -> dict[str, object]:
    paths, sessions = [{"losses": 0}, {"losses": losses}], [{"errors": errors}, {"errors": 0}]
    return {"a": {"partners": {"b": {"paths": paths, "sessions": sessions}}}, "b": {"partners": {}}}


def test_a_quiet_history_holds_no_alarm() -> None:
    alarms = Alarms()
    alarms.take_history(entry(at, Kind.COMMITTED, MIRROR) for at in (1, 2, 40, 41))
    alarms.take_history([entry(5, Kind.PATH_UP), entry(6, Kind.READY_ALERT, MIRROR), entry(9, Kind.SESSION_CLOSED)])
    alarms.take_status(status(2, 1), status(2, 1))
    assert (alarms.paths_down, alarms.sessions_broken, alarms.takeovers) == (0, 0, 0)
    assert (alarms.committed, alarms.longest_gap_ms) == (4, 38.0)
    assert all(row.met for row in rows(alarms, 0, 60.0))


def test_each_path_declared_down_and_each_broken_session_counts_on_either_node() -> None:
    alarms = Alarms()
    for _ in ("a", "b"):
        alarms.take_history(
            [entry(1, Kind.PATH_DOWN, length=Reason.SILENT), entry(2, Kind.ERROR_ALERT, MIRROR),
             entry(2, Kind.ERROR_ALERT, ECHO), entry(3, Kind.SUSPENDED, extra=70 * MILLISECOND)]
        )  # fmt: skip
    assert (alarms.paths_down, alarms.reasons, alarms.sessions_broken) == (2, {"silent": 2}, 4)
    assert (alarms.not_run, alarms.longest_not_run_ms) == (2, 70.0)
    assert [row.met for row in rows(alarms, 7, 60.0)][:3] == [False, False, True]
    assert rows(alarms, 4, 60.0)[0].ratio == 0.5


def test_what_only_the_status_knows_counts_too_and_nothing_counts_twice() -> None:
    alarms = Alarms()
    alarms.take_history([entry(1, Kind.PATH_DOWN, length=Reason.SILENT)])
    alarms.take_status(status(4, 1), status(5, 3))
    assert (alarms.paths_down, alarms.sessions_broken) == (1, 2)


def test_news_of_the_failover_monitor_that_lead_to_a_takeover_count() -> None:
    alarms = Alarms()
    news = [{"event": "monitor", "news": word} for word in ("stage", "stalled", "beating")]
    alarms.take_log([json.dumps(line) for line in (*news, {"event": "suspended", "ms": 3})] + ['{"event": "moni'])
    assert alarms.takeovers == 1
    assert not rows(alarms, 0, 60.0)[2].met


def test_busy_loops_end_whatever_happens() -> None:
    seen: list[int] = []
    with pytest.raises(ValueError, match="in the middle"):
        _fail_in_the_middle(seen)
    assert len(seen) == 2
    for pid in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _fail_in_the_middle(seen: list[int]) -> None:
    with busy_loops(2) as pids:
        seen += pids
        for pid in pids:
            os.kill(pid, 0)
        raise ValueError("in the middle")
