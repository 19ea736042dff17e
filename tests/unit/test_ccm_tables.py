"""State tables of paths and sessions: each cell, and what happens in a cell that is not there."""

from __future__ import annotations

import pytest

from ccm import path as paths
from ccm import session as sessions
from ccm.exchange import ManifestEntry
from ccm.needs import Needs
from ccm.path import Input, Path, PathState
from ccm.reasons import Reason
from ccm.session import Phase, SessionCore, SessionInput, SessionState
from ccm.settings import DEFAULTS
from emul.clock import SECOND, Instant

PATHS = {
    # one column for each state:  DOWN CONNECTING HANDSHAKE EXCHANGE UP SUSPECT FENCING; "-" cannot come
    Input.DUE: "C - - - - - -",
    Input.CONNECTED: "- H - - - S -",
    Input.REFUSED: "- D - - - S -",
    Input.PROVEN: "- - E - - - -",
    Input.PAIRED: "- - - U U S -",
    Input.SILENT: "- - - - S S -",
    Input.LIFE: "D C H E U U F",
    Input.LOST: "D D D D F F F",
    Input.LOST_ALONE: "D D D D D D D",
    Input.FENCED: "- - - - - - D",
    Input.RESTARTED: "D C H H H H D",
}
LETTERS = dict(zip("DCHEUSF", PathState, strict=True))
SESSIONS = {
    # CLOSED WAITING PREPARING OFFERED READY CLOSING
    SessionInput.OPEN: "W W P O R W",
    SessionInput.AGREED: "- P - - - -",
    SessionInput.USABLE: "- - O - - -",
    SessionInput.PARTNER_READY: "- - - R - -",
    SessionInput.BROKEN: "C W W W W C",
    SessionInput.PARTNER_CLOSED: "C W W W W C",
    SessionInput.CLOSE: "C C X X X X",
    SessionInput.RELEASED: "- - - - - C",
}
SESSION_LETTERS = dict(zip("CWPORX", SessionState, strict=True))
NOW = Instant(SECOND)


def path_in(state: PathState) -> Path:
    path = Path(0, 0, 1, leads=True, now=NOW)
    path.state = state
    return path


@pytest.mark.parametrize("what", Input)
@pytest.mark.parametrize("state", PathState)
def test_each_cell_of_the_path_table(what, state):
    expected = PATHS[what].split()[state]
    path = path_in(state)
    if expected == "-":
        assert not path.allows(what)
        with pytest.raises(KeyError):
            path.take(what, now=NOW)
        assert path.state is state, "a mistake of ours leaves the state as it was"
        return
    changed = path.take(what, now=Instant(NOW + 5), reason=Reason.SILENT)
    assert path.state is LETTERS[expected]
    assert changed is (path.state is not state)
    assert path.since == (NOW + 5 if changed else NOW)


def test_no_input_is_missing_from_the_tables():
    assert set(paths.TABLE) == set(Input) == set(PATHS)
    assert set(sessions.TABLE) == set(SessionInput) == set(SESSIONS)


@pytest.mark.parametrize("what", SessionInput)
@pytest.mark.parametrize("state", SessionState)
def test_each_cell_of_the_session_table(what, state):
    expected = SESSIONS[what].split()[state]
    session = SessionCore(ManifestEntry("echo", 1, 1, 0, 1, 64, 0, 0), Needs(), now=NOW)
    session.state = state
    if expected == "-":
        with pytest.raises(KeyError):
            session.take(what, now=NOW)
        return
    changed = session.take(what, now=NOW)
    assert session.state is SESSION_LETTERS[expected]
    assert changed is (session.state is not state)


def test_what_a_session_publishes_in_each_state():
    phases = [Phase.CLOSED, Phase.PROPOSED, Phase.PROPOSED, Phase.READY, Phase.READY, Phase.CLOSED]
    session = SessionCore(ManifestEntry("echo", 1, 1, 0, 1, 64, 0, 0), Needs(), now=NOW)
    for state, phase in zip(SessionState, phases, strict=True):
        session.state = state
        assert session.phase is phase


def test_attempts_come_less_often_up_to_a_bound():
    path, waits = path_in(PathState.CONNECTING), []
    for _ in range(8):
        path.state = PathState.CONNECTING
        path.take(Input.REFUSED, now=NOW, reason=Reason.UNREACHABLE)
        waits.append(path.retry_at - NOW)
    assert waits[0] == DEFAULTS.retry_first_ns and waits[-1] == DEFAULTS.retry_most_ns and waits == sorted(waits)


def test_a_flapping_path_is_held_down_longer_and_a_steady_one_is_forgiven():
    path, waits = path_in(PathState.UP), []
    for _ in range(8):
        path.state, path.up_since = PathState.FENCING, NOW
        path.take(Input.FENCED, now=NOW)
        waits.append(path.retry_at - NOW)
    assert waits == sorted(waits) and waits[-1] == DEFAULTS.hold_down_most_ns
    path.state, path.up_since = PathState.FENCING, Instant(NOW - DEFAULTS.steady_ns)
    path.take(Input.FENCED, now=NOW)
    assert path.retry_at - NOW == DEFAULTS.hold_down_first_ns
