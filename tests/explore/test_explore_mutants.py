"""What holds handshake, sessions, fence and replay together, taken out by hand: the explorer finds it, with the
shortest way there.
"""

from __future__ import annotations

import dataclasses
import os

import pytest

from ccm import handshake as handshakes
from ccm.exchange import Record, Seen
from ccm.failover import Failover
from ccm.handshake import Handshake, Step
from ccm.peering import Peering
from ccm.publisher import Publisher
from ccm.session import SessionInput
from ccm.sessions import SessionSet
from tests.explore.bounds import Bounds
from tests.explore.explorer import explore

STATES_MAX = 60_000


def drop_the_gate(patch: pytest.MonkeyPatch) -> None:
    def on_seen(self: Handshake, record: Record | None) -> bool:
        return self.step is Step.READ_SEEN and self._succeed(Step.READ_SEEN)

    patch.setattr(Handshake, "on_seen", on_seen)


def accept_a_flag_for_a_former_life(patch: pytest.MonkeyPatch) -> None:
    real = Handshake.on_seen

    def on_seen(self: Handshake, record: Record | None) -> bool:
        if record is not None and isinstance(record.body, Seen):
            record = dataclasses.replace(record, partner_incarnation=self.incarnation)
        return real(self, record)

    patch.setattr(Handshake, "on_seen", on_seen)


def accept_a_flag_of_a_former_partner(patch: pytest.MonkeyPatch) -> None:
    real = Handshake.on_seen

    def on_seen(self: Handshake, record: Record | None) -> bool:
        if record is not None and isinstance(record.body, Seen):
            record = dataclasses.replace(record, writer_incarnation=self.partner_incarnation)
        return real(self, record)

    patch.setattr(Handshake, "on_seen", on_seen)


def skip_write_1(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(handshakes.SUCCESSORS, Step.READ_STATUS, Step.READ_SEEN)


def skip_write_2(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(handshakes.SUCCESSORS, Step.READ_SEEN, Step.DONE)


def forget_epochs_at_a_reboot(patch: pytest.MonkeyPatch) -> None:
    real = SessionSet.__init__

    def init(self: SessionSet, publisher, paths, known_epoch, *rest) -> None:
        real(self, publisher, paths, 0, *rest)

    patch.setattr(SessionSet, "__init__", init)


def take_records_of_former_incarnations(patch: pytest.MonkeyPatch) -> None:
    real = Peering.on_record

    def on_record(self: Peering, event, *, now) -> None:
        record = dataclasses.replace(
            event.record, writer_incarnation=self.partner_incarnation, partner_incarnation=self.incarnation
        )
        real(self, dataclasses.replace(event, record=record), now=now)

    patch.setattr(Peering, "on_record", on_record)


def alert_before_the_partner_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionSet, "_partner_ready", lambda self, session: True)


def follow_no_higher_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionSet, "_follow", lambda self, session, *, now: False)


def keep_sessions_of_a_partner_that_rebooted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionSet, "break_all", lambda self, reason, *, now: None)


def propose_the_same_epoch_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionSet, "_propose", lambda self, session: self._set_epoch(session, max(1, session.epoch)))


def break_without_an_alert(patch: pytest.MonkeyPatch) -> None:
    real = SessionSet._end

    def end(self: SessionSet, session, *rest, **named) -> bool:
        session.alerted = False
        return real(self, session, *rest, **named)

    patch.setattr(SessionSet, "_end", end)


def close_without_the_alert(patch: pytest.MonkeyPatch) -> None:
    def release(self: SessionSet, session, *, now) -> None:
        session.take(SessionInput.RELEASED, now=now)
        session.close_by = None
        self._drop_lanes(session)

    patch.setattr(SessionSet, "_release", release)


def replay_before_the_fence(patch: pytest.MonkeyPatch) -> None:
    def start(self: Failover, path, *, now) -> None:
        self._leave_fencing(path, now=now)

    patch.setattr(Failover, "_start_fence", start)


def fence_with_the_epoch_that_is_there_already(patch: pytest.MonkeyPatch) -> None:
    real = Failover.request_fence

    def request(self: Failover, path, *, now) -> None:
        path.fence_target = path.pairing.partner_fence_epoch
        real(self, path, now=now)

    patch.setattr(Failover, "request_fence", request)


def take_a_repeated_request_for_an_answer(patch: pytest.MonkeyPatch) -> None:
    real = Failover.request_fence

    def request(self: Failover, path, *, now) -> None:
        if path.fence_attempts:
            self._leave_fencing(path, now=now)
        else:
            real(self, path, now=now)

    patch.setattr(Failover, "request_fence", request)


def keep_the_sessions_without_a_path(patch: pytest.MonkeyPatch) -> None:
    def lose_last(self: Failover, *, now) -> None:
        for other in self._paths.paths:
            other.hurry(now=now)

    patch.setattr(Failover, "_lose_last", lose_last)


def leave_the_work_on_the_lost_path(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionSet, "reroute", lambda self, lost, *, now: None)


def forget_what_a_lost_path_may_still_bring(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Publisher, "on_path_anew", lambda self, path: False)


CRASH, CLOSE, NOTHING = Bounds(crash=1, ready=True), Bounds(close=1, ready=True), Bounds()
CUT = Bounds(paths=2, cut=1, ready=True)
CUT_SLOWLY = Bounds(paths=2, cut=1, slow=1, ready=True)
MUTANTS = {
    drop_the_gate: (NOTHING, "has never written that it has seen"),
    accept_a_flag_for_a_former_life: (CRASH, "has never written that it has seen"),
    accept_a_flag_of_a_former_partner: (Bounds(crash=1), "has never written that it has seen"),
    skip_write_1: (NOTHING, ""),
    skip_write_2: (NOTHING, "never become ready"),
    forget_epochs_at_a_reboot: (CRASH, "epoch"),
    take_records_of_former_incarnations: (CRASH, ""),
    alert_before_the_partner_is_told: (NOTHING, "has not told"),
    follow_no_higher_epoch: (Bounds(crash=1), "never become ready"),
    keep_sessions_of_a_partner_that_rebooted: (CRASH, ""),
    propose_the_same_epoch_again: (CRASH, "epoch"),
    break_without_an_alert: (CRASH, ""),
    close_without_the_alert: (CLOSE, ""),
    replay_before_the_fence: (CUT, "still takes what path"),
    fence_with_the_epoch_that_is_there_already: (CUT, "still takes what path"),
    take_a_repeated_request_for_an_answer: (CUT_SLOWLY, "still takes what path"),
    keep_the_sessions_without_a_path: (Bounds(cut=1, ready=True), ""),
    leave_the_work_on_the_lost_path: (CUT, ""),
    forget_what_a_lost_path_may_still_bring: (Bounds(break_=1, late=1), "never become ready"),
}


SLOW = (forget_what_a_lost_path_may_still_bring,)
"""For the nightly session: in CI test_a_write_of_a_former_incarnation_that_lands_late fails with it."""
CHOSEN = [mutant for mutant in MUTANTS if mutant not in SLOW or os.environ.get("LAB_EXPLORE") == "deep"]


@pytest.mark.parametrize("mutant", CHOSEN, ids=lambda mutant: mutant.__name__)
def test_the_explorer_finds_each_mutant(monkeypatch, mutant):
    bounds, what = MUTANTS[mutant]
    mutant(monkeypatch)
    found = explore(bounds, STATES_MAX)
    assert found.finding is not None, f"survived {found}"
    print(f"\n{mutant.__name__}, found after {found.states} states:\n{found.finding}")  # noqa: T201 - the figures are asked for
    assert what in found.finding.what
