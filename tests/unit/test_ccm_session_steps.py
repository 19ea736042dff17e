"""One session and all that its partner can say, or that can happen beside it: what follows in each situation.

The set of sessions is the real one, with one path that is up; what the partner publishes is put where its records go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ccm import actions as ac
from ccm.exchange import LaneEntry, PathInfo, RecordKind, SessionEntry, Sessions, ViAddress
from ccm.needs import Needs, build_manifest, client_key
from ccm.pairing import Lane
from ccm.path import Path, PathState
from ccm.pathset import PathSet
from ccm.publisher import Publisher
from ccm.reasons import Reason
from ccm.session import MEND_TIMEOUT_NS, REFUSED_FIRST_NS, Phase, SessionCore, SessionState
from ccm.sessions import SessionSet
from ccm.settings import DEFAULTS
from emul.clock import SECOND, Instant

CLIENT = client_key("echo")
EPOCH = 5
OURS, THEIRS, ANEW = ((ViAddress(number, 7),) for number in (17, 33, 34))
GENERATION = 3
NOW = Instant(10 * SECOND)
MOST_NS = max(MEND_TIMEOUT_NS, REFUSED_FIRST_NS, DEFAULTS.stranded_timeout_ns, DEFAULTS.close_timeout_ns)
"""No situation waits longer."""


@dataclass
class Side:
    """Our side of one session with node 2."""

    out: list[ac.Action] = field(default_factory=list)
    now: Instant = NOW

    def __post_init__(self) -> None:
        self.path = Path(0, 0, 1, leads=True, now=NOW)
        self.publisher = Publisher(1, 1, 2)
        self.publisher.begin(1)
        self.set = SessionSet(self.publisher, PathSet([self.path]), EPOCH - 1, self.out)
        self.set.agreed = True
        self.set.open("echo", Needs(), now=NOW)
        self.set.on_partner_manifest(build_manifest({"echo": Needs()}))
        self.session: SessionCore = self.set.sessions[CLIENT]
        self.path.state = PathState.UP
        self.path.pairing.generation = self.path.pairing.paired_with = GENERATION

    def partner_says(self, phase: Phase | None, epoch: int = EPOCH) -> None:
        entries = () if phase is None else (SessionEntry(CLIENT, phase, epoch),)
        self.set.on_partner_sessions(Sessions(self.set.digest(), entries))

    def partner_has(self, ends: tuple[ViAddress, ...]) -> None:
        lanes = (LaneEntry(CLIENT, EPOCH, 1, 0, 0, 0, ends),) if ends else ()
        self.path.pairing.on_partner(PathInfo(GENERATION, GENERATION, 0, 3, lanes))

    def connected(self) -> None:
        """Both have the queue pairs of this epoch."""
        self.path.pairing.lanes[CLIENT] = Lane(EPOCH, connecting=True, connected=True, vis=OURS, remote=THEIRS)
        self.partner_has(THEIRS)

    def told(self) -> None:
        """The partner holds what we have published."""
        self.set.publish()
        for write in self.publisher.due(0):
            self.publisher.on_written(write.record.kind, 0, write.record.sequence)

    def settle(self) -> str:
        """What follows, in a word: the state's letter, and the alerts."""
        mark = len(self.out)
        for _ in range(8):
            if not self.set.advance(now=self.now):
                break
        else:
            raise AssertionError("does not settle")
        alerts = {ac.AlertReady: "r", ac.AlertError: "e", ac.AlertClosed: "c"}
        marks = "".join(alerts.get(type(action), "") for action in self.out[mark:])
        higher = "+" * (self.session.epoch > EPOCH)
        held = "m" * bool(self.session.mending) + "s" * bool(self.session.stranded)
        return "CWPORX"[self.session.state] + higher + marks + held


def closed() -> Side:
    side = Side()
    side.set.close("echo", now=NOW)
    return side


def waiting() -> Side:
    return Side()


def refused() -> Side:
    """Its own adapter can't make what it needs; it will try again."""
    side = preparing()
    side.session.state = SessionState.WAITING
    side.session.refused_until = Instant(NOW + REFUSED_FIRST_NS)
    return side


def preparing() -> Side:
    side = Side()
    side.session.state = SessionState.PREPARING
    side.partner_says(Phase.PROPOSED)
    return side


def untold() -> Side:
    """Usable, and the partner is being told that we are ready."""
    side = preparing()
    side.session.state = SessionState.OFFERED
    side.connected()
    return side


def offered() -> Side:
    """It was told."""
    side = untold()
    side.told()
    return side


def ready() -> Side:
    side = offered()
    side.partner_says(Phase.READY)
    assert side.settle() == "Rr"
    return side


def mending() -> Side:
    """Its queue pairs failed, and the partner still has its ends."""
    side = ready()
    assert side.set.mend(CLIENT, side.path, now=NOW)
    return side


def stranded() -> Side:
    """Its path was fenced, and the queue pairs of another are being made."""
    side = ready()
    del side.path.pairing.lanes[CLIENT]
    side.partner_has(())
    side.session.routes.clear()
    side.session.stranded.add(0)
    side.session.stranded_by = Instant(NOW + DEFAULTS.stranded_timeout_ns)
    return side


def closing() -> Side:
    """The client has closed it, and the partner doesn't know yet."""
    side = ready()
    side.set.close("echo", now=NOW)
    side.set.publish()
    return side


SITUATIONS = (closed, waiting, refused, preparing, untold, offered, ready, mending, stranded, closing)


def lose_path(side: Side) -> None:
    side.path.state = PathState.DOWN


def later(ns: int) -> Callable[[Side], None]:
    def wait(side: Side) -> None:
        side.now = Instant(side.now + ns)

    return wait


def needs_differ(side: Side) -> None:
    side.set.on_partner_manifest(build_manifest({"echo": Needs(depth=2)}))
    side.partner_says(Phase.PROPOSED)


INPUTS: dict[str, Callable[[Side], object]] = {
    "nothing": lambda side: None,
    "it has no such session": lambda side: side.partner_says(None),
    **{
        f"{phase.name.lower()}, {word} epoch": lambda side, phase=phase, off=off: side.partner_says(phase, EPOCH + off)  # type: ignore[misc]
        for phase in Phase
        for word, off in (("former", -1), ("same", 0), ("later", 1))
    },
    "it needs something else": needs_differ,
    "it holds other manifests": lambda side: side.set.on_partner_sessions(
        Sessions(side.set.digest() + 1, (SessionEntry(CLIENT, Phase.PROPOSED, EPOCH),))
    ),
    "its ends are gone": lambda side: side.partner_has(()),
    "it has made its ends anew": lambda side: side.partner_has(ANEW),
    "both ends are connected": Side.connected,
    "it has read what we say": Side.told,
    "it has read it, and closes too": lambda side: (side.told(), side.partner_says(Phase.CLOSED)),
    "the path is lost": lose_path,
    "time passes": later(MEND_TIMEOUT_NS - 1),
    "more time passes": later(MOST_NS),
}
TABLE = {
    # closed, waiting, refused, preparing, untold, offered, ready, mending, stranded, closing
    "nothing": "C W W P O O R Rm Rs X",
    "it has no such session": "C W W P O O R Rm Rs X",
    "proposed, former epoch": "C W W P O O R Rm Rs X",
    "proposed, same epoch": "C P W P O O R Rm Rs X",
    "proposed, later epoch": "C P+ W+ P+ P+ P+ P+e P+e P+e X",
    "ready, former epoch": "C W W P O O R Rm Rs X",
    "ready, same epoch": "C P W P O Rr R Rm Rs X",
    "ready, later epoch": "C P+ W+ P+ P+ P+ P+e P+e P+e X",
    "closed, former epoch": "C W W P O O R Rm Rs X",
    "closed, same epoch": "C W W W+ W+ W+ W+c W+c W+c X",
    "closed, later epoch": "C W W W+ W+ W+ W+c W+c W+c X",
    "refused, former epoch": "C W W P O O R Rm Rs X",
    "refused, same epoch": "C W W P O O R Rm Rs X",
    "refused, later epoch": "C W+ W+ W+ W+ W+ W+e W+e W+e X",
    "it needs something else": "C W W P O O R Rm Rs X",
    "it holds other manifests": "C W W P O O R Rm Rs X",
    "its ends are gone": "C W W P W+ W+ R Rs Rs X",
    "it has made its ends anew": "C W W P O O R Rs Rs X",
    "both ends are connected": "C W W O O O R Rm R X",
    "it has read what we say": "C W W P O O R Rm Rs X",
    "it has read it, and closes too": "C W W W+ W+ W+ W+c W+c W+c Cc",
    "the path is lost": "C W W P W+ W+ R Rm Rs Cc",
    "time passes": "C W W P O O R Rm Rs X",
    "more time passes": "C W P P O O R W+e W+e Cc",
}
"""State: Closed Waiting Preparing Offered Ready X closing; "+" with a higher epoch; alerts: ready, error, closed; then
"m", "s": work waits for ends that failed, or for queue pairs.
"""


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_each_cell_of_a_session_s_steps(situation: Callable[[], Side], what: str) -> None:
    side = situation()
    INPUTS[what](side)
    assert side.settle() == TABLE[what].split()[SITUATIONS.index(situation)]


def test_the_table_has_all_cells() -> None:
    assert set(TABLE) == set(INPUTS) and all(len(row.split()) == len(SITUATIONS) for row in TABLE.values())


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_what_is_published_in_each_situation(situation: Callable[[], Side]) -> None:
    side = situation()
    phases = {"closed": 3, "waiting": 1, "refused": 4, "preparing": 1, "closing": 3}
    assert side.session.phase == phases.get(situation.__name__, 2)
    side.told()
    assert side.publisher.is_written(RecordKind.SESSIONS)


def test_a_session_that_is_mended_or_stranded_says_over_which_path_it_goes_on() -> None:
    for side in (mending(), stranded()):
        mark = len(side.out)
        side.partner_has(())
        side.set.advance(now=NOW)
        assert 0 in side.session.stranded and not side.session.routes, "its queue pairs are being made"
        side.connected()
        side.set.advance(now=NOW)
        assert side.session.routes == {0: 0} and not side.session.stranded
        assert any(isinstance(action, ac.Route) for action in side.out[mark:])


def test_a_partner_that_refuses_is_the_reason_why_it_waits() -> None:
    side = waiting()
    side.partner_says(Phase.REFUSED)
    assert side.settle() == "W" and side.session.reason is Reason.PARTNER_REFUSED


def test_the_reason_of_a_break_is_told() -> None:
    reasons = {}
    late = "more time passes"
    for situation, what in ((mending, late), (stranded, late), (ready, "ready, later epoch")):
        side = situation()
        INPUTS[what](side)
        side.settle()
        reasons[situation.__name__] = next(each.reason for each in side.out if isinstance(each, ac.AlertError))
    assert reasons == {
        "mending": Reason.VI_FAILED, "stranded": Reason.NO_PATH, "ready": Reason.PARTNER_BROKE_SESSION,
    }  # fmt: skip
