"""Queue pairs of a path that is proven: how far they are, what the partner has published, and what follows.

A cell says what is wanted: "o" queue pairs are opened, "c" connected, "x" given back; "n": the partner's are refused;
"u": the path is up. Then what of ours is published: "p" that they are there, "P" that they can send. "-": nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ccm import actions as ac
from ccm import events as ev
from ccm.exchange import LaneEntry, PathInfo, ViAddress
from ccm.path import PathState
from ccm.peerinfo import OWN_VERSIONS
from ccm.settling import Settling
from tests.unit.test_ccm_session_steps import ANEW, CLIENT, EPOCH, GENERATION, NOW, OURS, THEIRS, Side, preparing

REGION = 4096
"""More bytes than the partner's manifest has."""


def settling(side: Side) -> Settling:
    return Settling("n1", OWN_VERSIONS, side.set._paths, side.set, side.publisher, side.out)


def nothing() -> Side:
    side = preparing()
    side.path.state = PathState.EXCHANGE
    return side


def asked_for() -> Side:
    """The adapter was asked for queue pairs."""
    side = nothing()
    assert side.set.open_lanes(side.path)
    return side


def opened() -> Side:
    side = asked_for()
    settling(side).on_lanes_opened(ev.LanesOpened(2, 0, CLIENT, EPOCH, OURS, 0, 0, 0), now=NOW)
    return side


def connecting() -> Side:
    """... with the partner's."""
    side = opened()
    theirs(THEIRS)(side)
    settling(side).settle(now=NOW)
    return side


def connected() -> Side:
    side = connecting()
    settling(side).on_lanes_connected(ev.LanesConnected(2, 0, CLIENT, EPOCH), now=NOW)
    return side


SITUATIONS = (nothing, asked_for, opened, connecting, connected)


def theirs(
    vis: tuple[ViAddress, ...], *, epoch: int = EPOCH, length: int = 0, paired: bool = True
) -> Callable[[Side], None]:
    def publish(side: Side) -> None:
        lanes = (LaneEntry(CLIENT, epoch, 0, 0, 0, length, vis),) if vis else ()
        side.path.pairing.on_partner(PathInfo(GENERATION, GENERATION if paired else 0, 0, 3, lanes))

    return publish


INPUTS: dict[str, Callable[[Side], object]] = {
    "nothing is known": lambda side: side.path.pairing.forget_partner(),
    "it has none": theirs(()),
    "it has them": theirs(THEIRS),
    "it has others": theirs(ANEW),
    "it has those of a former epoch": theirs(THEIRS, epoch=EPOCH - 1),
    "it has too many": theirs(THEIRS + ANEW),
    "its memory is larger than it said": theirs(THEIRS, length=REGION),
    "it has not paired with us yet": theirs(THEIRS, paired=False),
    "the session is over": lambda side: side.set.close("echo", now=NOW),
    "the session is at the next epoch": lambda side: setattr(side.session, "epoch", EPOCH + 1),
    "our queue pairs are ready to send": lambda side: settling(side).on_lanes_connected(
        ev.LanesConnected(2, 0, CLIENT, EPOCH), now=NOW
    ),
    "those of a former epoch are": lambda side: settling(side).on_lanes_connected(
        ev.LanesConnected(2, 0, CLIENT, EPOCH - 1), now=NOW
    ),
    "queue pairs of a former epoch exist": lambda side: settling(side).on_lanes_opened(
        ev.LanesOpened(2, 0, CLIENT, EPOCH - 1, ANEW, 0, 0, 0), now=NOW
    ),
}
WORDS = {
    ac.OpenLanes: "o", ac.ConnectLanes: "c", ac.CloseLanes: "x", ac.NoteRefused: "n", ac.NotePathUp: "u",
}  # fmt: skip
TABLE = {
    # nothing, asked_for, opened, connecting, connected
    "nothing is known": "o - p p P",
    "it has none": "ou u up xo xo",
    "it has them": "ou u cup p P",
    "it has others": "ou u cup xo xo",
    "it has those of a former epoch": "ou u up xo xo",
    "it has too many": "ou u nup xo xo",
    "its memory is larger than it said": "ou u nup p P",
    "it has not paired with us yet": "o - cp p P",
    "the session is over": "- - p p P",
    "the session is at the next epoch": "o xo xo xo xo",
    "our queue pairs are ready to send": "o - p P P",
    "those of a former epoch are": "o - p p P",
    "queue pairs of a former epoch exist": "o - p p P",
}


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_each_cell_of_the_queue_pairs_of_a_path(situation: Callable[[], Side], what: str) -> None:
    assert outcome(situation(), what) == TABLE[what].split()[SITUATIONS.index(situation)]


def outcome(side: Side, what: str) -> str:
    mark = len(side.out)
    INPUTS[what](side)
    settling(side).settle(now=NOW)
    published = "".join("pP"[lane.connected] for lane in side.path.pairing.publish(0, 3).lanes)
    return "".join(WORDS.get(type(action), "") for action in side.out[mark:]) + published or "-"


def test_the_table_has_all_cells() -> None:
    assert set(TABLE) == set(INPUTS) and all(len(row.split()) == len(SITUATIONS) for row in TABLE.values())


@pytest.mark.parametrize("state", PathState)
def test_nothing_is_made_on_a_path_that_is_not_proven(state: PathState) -> None:
    side = nothing()
    theirs(THEIRS)(side)
    side.path.state = state
    mark = len(side.out)
    settling(side).settle(now=NOW)
    made = any(isinstance(action, ac.OpenLanes) for action in side.out[mark:])
    assert made is (state in (PathState.EXCHANGE, PathState.UP, PathState.SUSPECT))
