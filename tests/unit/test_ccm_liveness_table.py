"""What is known of a path's life, in each situation and after each thing that can happen to it.

A cell says until when the path may stay silent (ms; "-": nothing was asked), after an "x" until when its silence is
excused, and "p" where the path has proven lately that it answers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ccm.liveness import PROBE_MOST_NS, Liveness
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND, Instant

NOW = Instant(10 * SECOND)
"""All times are relative to it: when the thing happens."""
MOST_MS = DEFAULTS.limit_most_ns // MILLISECOND
OWN, REMOTE = 70, 500
"""How often the two cards had looked at their ports when that was last read."""


def ms(offset: int) -> Instant:
    return Instant(NOW + offset * MILLISECOND)


def calm() -> Liveness:
    """Answered 4 ms ago."""
    liveness = Liveness(now=ms(-5))
    liveness.on_probe(now=ms(-5))
    liveness.on_answer(now=ms(-4))
    return liveness


def asked() -> Liveness:
    """A probe is under way since 12 ms ago."""
    liveness = Liveness(now=ms(-12))
    liveness.on_probe(now=ms(-12))
    return liveness


def silent() -> Liveness:
    """... and for longer than it may be."""
    liveness = Liveness(now=ms(-20))
    liveness.on_probe(now=ms(-20))
    return liveness


def standing() -> Liveness:
    """The same, and our own card has not looked at its port meanwhile."""
    liveness = silent()
    liveness.on_looks(OWN, REMOTE - 1, ms(-20), now=ms(-19))
    liveness.on_looks(OWN, REMOTE, ms(-10), now=ms(-9))
    return liveness


def running_again() -> Liveness:
    """It did not, and now it does."""
    liveness = silent()
    liveness.on_looks(OWN - 1, REMOTE - 2, ms(-20), now=ms(-19))
    liveness.on_looks(OWN - 1, REMOTE - 1, ms(-15), now=ms(-14))
    liveness.on_looks(OWN, REMOTE, ms(-10), now=ms(-9))
    return liveness


def unknown() -> Liveness:
    """Silent, and nothing is known of the cards."""
    liveness = silent()
    liveness.on_looks(0, 0, ms(-10), now=ms(-9))
    return liveness


def shaken() -> Liveness:
    """The last answer took 18 ms, longer than the least limit."""
    liveness = Liveness(now=ms(-20))
    liveness.on_probe(now=ms(-20))
    liveness.on_answer(now=ms(-2))
    return liveness


def working() -> Liveness:
    """The completion of a probe was lost, and work has completed all the time."""
    liveness = Liveness(now=ms(-1 - PROBE_MOST_NS // MILLISECOND))
    liveness.on_probe(now=ms(-1 - PROBE_MOST_NS // MILLISECOND))
    liveness.on_life(now=ms(-1))
    return liveness


SITUATIONS = (calm, asked, silent, standing, running_again, unknown, shaken, working)


def answered_twice(liveness: Liveness) -> None:
    """Whatever is under way, and one more, are answered at once."""
    for offset in (0, 2):
        if liveness.probe_at is None:
            liveness.on_probe(now=ms(offset))
        liveness.on_answer(now=ms(offset + 1))
    liveness.on_probe(now=ms(4))
    liveness.on_answer(now=ms(5))


INPUTS: dict[str, Callable[[Liveness], object]] = {
    "nothing": lambda live: None,
    "a probe is sent": lambda live: live.on_probe(now=NOW),
    "the answer": lambda live: live.on_answer(now=NOW),
    "two or three answers": answered_twice,
    "work completes on the path": lambda live: live.on_life(now=NOW),
    "work completes on another path": lambda live: live.on_work(now=NOW),
    "both cards look": lambda live: live.on_looks(OWN + 1, REMOTE + 1, NOW, now=NOW),
    "our card stands still": lambda live: live.on_looks(OWN, REMOTE + 1, NOW, now=NOW),
    "the partner's card stands still": lambda live: live.on_looks(OWN + 1, REMOTE, NOW, now=NOW),
    "nothing is known of the cards": lambda live: live.on_looks(0, 0, NOW, now=NOW),
    "looks from before the probe": lambda live: [live.on_looks(OWN, REMOTE, ms(at), now=NOW) for at in (-400, -390)],
    "our process was not run for 10 ms": lambda live: live.credit(10 * MILLISECOND, now=NOW),
    "work completes, and a completion may be lost": lambda live: (live.on_life(now=NOW), live.forget_lost_probe()),
}
TABLE = {
    # calm, asked, silent, standing, running_again, unknown, shaken, working
    "nothing": "- 4 -4 -4x230 -4x7 -4 - 15",
    "a probe is sent": "12 11 11 11 11 11 52 15",
    "the answer": "- - - - - - - -",
    "two or three answers": "-p -p - - - - - -",
    "work completes on the path": "- 16 16 16x230 16x7 16 - 16",
    "work completes on another path": "- 4 -4 -4x230 -4x7 -4 - 15",
    "both cards look": "- 4 -4 -4x16 -4x7 -4 - 15",
    "our card stands still": "- 4 -4 -4x230 -4x230 -4 - 15",
    "the partner's card stands still": "- 4 -4 -4x230 -4x230 -4 - 15",
    "nothing is known of the cards": "- 4 -4 -4x16 -4x7 -4 - 15",
    "looks from before the probe": "- 4 -4 -4x230 -4x7 -4 - 15",
    "our process was not run for 10 ms": "- 14 6 6x230 6x7 6 - 16",
    "work completes, and a completion may be lost": "- 16 16 16x230 16x7 16 - -",
}


def cell(liveness: Liveness) -> str:
    silent_at = liveness.silent_at()
    text = "-" if silent_at is None else str((silent_at - NOW) // MILLISECOND)
    excused = [offset for offset in range(MOST_MS) if liveness.excused(now=ms(offset))]
    if excused and silent_at is not None:
        text += f"x{excused[-1] + 1}"
    return text + "p" * liveness.proven_since(ms(-12))


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_each_cell_of_a_path_s_life(situation: Callable[[], Liveness], what: str) -> None:
    liveness = situation()
    INPUTS[what](liveness)
    assert cell(liveness) == TABLE[what].split()[SITUATIONS.index(situation)]


def test_the_table_has_all_cells() -> None:
    assert set(TABLE) == set(INPUTS) and all(len(row.split()) == len(SITUATIONS) for row in TABLE.values())
