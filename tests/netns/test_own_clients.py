"""A client of one's own in real processes: a run, and a lab that stays, seen through `lab status` and `lab logs`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import run
from tests.helpers.station import wait_for
from tests.netns.test_fabric_commands import Shell, lab

__all__ = ["lab"]
pytestmark = pytest.mark.netns


def session(shell: Shell) -> dict[str, Any]:
    """What node a says of its shared counter."""
    nodes: Any = shell.json("status", "own")["nodes"]
    return next(s for s in nodes["a"]["host"]["partners"]["b"]["sessions"] if s["client"] == "shared-counter")


def test_a_run_has_its_sessions_in_the_verdict() -> None:
    result = run("own-client", world="netns")
    assert result.verdict == "pass", [check for check in result.checks if check.ok is False]
    evidence = result.outcome.evidence
    assert {(s.node, s.partner) for s in evidence.sessions if evidence.clients[s.client] == "shared-counter"} == {
        (1, 2), (2, 1)
    }  # fmt: skip


def test_a_lab_that_stays_shows_closes_and_opens_it(lab: Shell) -> None:
    done = lab("up", "counter-pair", "--name", "own")
    assert done.returncode == 0, done.stderr
    first = session(lab)
    assert first["state"] == "READY"
    wait_for(lambda: "shared-counter.seen" in lab("logs", "own", "b", "host").stdout, "b logs a's counter")
    lines = [json.loads(line) for line in lab("logs", "own", "b", "host", "--json").stdout.splitlines()]
    seen = next(line for line in lines if line["event"] == "shared-counter.seen")
    assert seen["node"] == "b" and seen["partner"] == "a" and seen["value"] % 100 == 0
    done = lab("inject", "own", "client.close", "a", "client=shared-counter")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: session(lab)["state"] == "CLOSED", "closed")
    assert lab("heal", "own").returncode == 0
    wait_for(lambda: session(lab)["state"] == "READY", "open again")
    assert session(lab)["epoch"] > first["epoch"]
    done = lab("inject", "own", "client.close", "a", "client=shared-conter")
    assert done.returncode == 2 and 'a runs no "shared-conter" (did you mean shared-counter?)' in done.stderr
