"""A hostile wire: random, mutated and crafted frames against two adapters at work.

LAB_FUZZ_FRAMES sets how many (the nightly session: a million). A failure names the seed of its round; setting
LAB_FUZZ_SEED to it makes that round the first.
"""

from __future__ import annotations

import os
import random

from tests.helpers.hostile import Forger, Victim

FRAMES = int(os.environ.get("LAB_FUZZ_FRAMES", "20000"))
SEED = int(os.environ.get("LAB_FUZZ_SEED", "1"))
FRAMES_PER_ROUND = 40
"""Queue pairs don't live long under such fire; after so many frames they are connected anew."""
ROUNDS_PER_VICTIM = 50


def test_no_frame_crashes_an_adapter_or_writes_where_nobody_may() -> None:
    victim = None
    for number in range(max(1, FRAMES // FRAMES_PER_ROUND)):
        seed = SEED + number
        rng = random.Random(seed)
        if victim is None or number % ROUNDS_PER_VICTIM == 0:
            victim = Victim(seed)
            forger = Forger(victim, rng)
            victim.pair.filter = lambda seen, forger=forger: (forger.learn(seen.frame), [seen.frame])[1]  # type: ignore[misc]
        forger._rng = rng
        try:
            fire(victim, forger, rng)
            victim.check()
            assert victim.works(), "a reset did not free the queue pairs"
        except Exception as error:
            raise AssertionError(f"LAB_FUZZ_SEED={seed - number % ROUNDS_PER_VICTIM}: {error}") from error


def fire(victim: Victim, forger: Forger, rng: random.Random) -> None:
    victim.busy(rng)
    pair = victim.pair
    for _ in range(FRAMES_PER_ROUND):
        adapter = pair.adapters[rng.randrange(2)]
        adapter.on_frame(forger.frame(), now=pair.now)
        if rng.random() < 0.1:
            pair.step()
        if rng.random() < 0.05:
            for each in pair.adapters:
                each.on_time(now=pair.now)
