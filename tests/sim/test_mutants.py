"""What holds the sessions together, taken out by hand: a scenario fails each time, by the check that should see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ccm.failover import Failover
from ccm.history import HistoryWriter, Kind
from ccm.stream import Stream
from emul.node_memory import NodeMemory
from emul.regions import MemoryRegion
from emul.responder import Responder
from emul.window import SendWindow
from lab.api import run
from lab.verdict import Result

pytestmark = pytest.mark.needs_plain
PACKET_BYTES = 2048
"""Of a mirrored record; messages and exchange records are smaller."""
WRITES_BEFORE = 40
SEEDS_TRIED_MAX = 6
"""A mutant may survive a seed in which nothing was under way when the fault came."""


def failing(scenario: str) -> Result:
    """The first run that does not pass."""
    for seed in range(SEEDS_TRIED_MAX):
        result = run(scenario, world="sim", seed=seed)
        if result.verdict != "pass":
            return result
    pytest.fail(f"{scenario} passed with {SEEDS_TRIED_MAX} seeds")


def failed(result: Result) -> set[str]:
    return {check.name for check in result.checks if check.ok is False}


def test_without_retransmission_a_lost_write_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SendWindow, "rewind", lambda self, psn: None)
    assert "retransmission.seen" in failed(failing("write-dropped"))


def test_without_replay_the_work_of_a_lost_path_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    route = Stream.route

    def forgetful(self: Stream, lane: object) -> int:
        waiting, self.entries = self.entries, type(self.entries)()
        count = route(self, lane)  # type: ignore[arg-type]
        self.entries = waiting
        return count

    monkeypatch.setattr(Stream, "route", forgetful)
    assert failed(failing("cable-cut")) & {"run.orderly", "sessions.recovered", "traffic.continued"}


def test_a_replay_that_does_not_wait_for_the_fence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failover, "_start_fence", lambda self, path, *, now: self._leave_fencing(path, now=now))
    assert {"fence.before_replay", "steps.hold"} <= failed(failing("cable-cut"))


def test_a_fence_that_the_firmware_only_pretends_to_raise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeMemory, "raise_fence", lambda self, slot, epoch: None)
    assert {"fence.before_replay", "steps.hold"} <= failed(failing("cable-cut"))


def test_a_card_that_acknowledges_and_does_not_store_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = Responder._store, [0]

    def lossy(self: Responder, region: MemoryRegion, payload: bytes) -> None:
        large = len(payload) >= PACKET_BYTES
        seen[0] += large
        store(self, region, bytes(len(payload)) if large and seen[0] == WRITES_BEFORE else payload)

    monkeypatch.setattr(Responder, "_store", lossy)
    assert {"mirror.no_committed_loss", "steps.hold"} <= failed(failing("write-dropped"))


@pytest.mark.parametrize("kind", [Kind.READY_ALERT, Kind.ERROR_ALERT])
def test_an_alert_that_comes_twice_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    note: Callable[..., None] = HistoryWriter.note

    def twice(self: HistoryWriter, at: int, what: Kind, *rest: int, **fields: int) -> None:
        note(self, at, what, *rest, **fields)
        if what == kind:
            note(self, at, what, *rest, **fields)

    monkeypatch.setattr(HistoryWriter, "note", twice)
    assert {"alerts.exactly_once", "steps.hold"} <= failed(failing("both-cables-cut"))
