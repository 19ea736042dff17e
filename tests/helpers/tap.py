"""A tap on the cable of an AdapterPair: what crosses it, with virtual time, before and behind what the cable does."""

from __future__ import annotations

import random
from collections.abc import Callable

from lab.wire.analyzer import Report, analyze
from lab.wire.exchange import View
from tests.helpers.adapters import AdapterPair, Seen

AT_SENDERS = View(at_senders=True, from_start=True)


class Tap:
    """Records frames of `pair` as they leave their senders (`sent`), and as they come out of the cable (`passed`)."""

    def __init__(self, pair: AdapterPair) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.passed: list[tuple[int, bytes]] = []
        self._pair = pair
        self.cable: Callable[[Seen], list[bytes]] = lambda seen: [seen.frame]
        """What becomes of each frame."""
        pair.filter = self._filter

    def _filter(self, seen: Seen) -> list[bytes]:
        self.sent.append((int(self._pair.now), seen.frame))
        out = self.cable(seen)
        self.passed += [(int(self._pair.now), frame) for frame in out]
        return out

    def judge(self, view: View = AT_SENDERS) -> Report:
        """The analyzer's report on what was sent."""
        return analyze(self.sent, view)


class Weather:
    """A cable that loses, repeats, holds back and damages, each with its probability, drawn from a seed."""

    def __init__(self, seed: int, *, lose: float = 0, repeat: float = 0, hold: float = 0, damage: float = 0) -> None:
        self._rng = random.Random(f"weather/{seed}")
        self._lose, self._repeat, self._hold, self._damage = lose, repeat, hold, damage
        self._held: list[list[bytes]] = [[], []]

    def __call__(self, seen: Seen) -> list[bytes]:
        """What comes out in the direction of this frame."""
        draw = self._rng.random
        held, self._held[seen.sender] = self._held[seen.sender], []
        if draw() < self._lose:
            return held
        frame = seen.frame
        if draw() < self._damage and seen.opcode >= 0:
            at = self._rng.randrange(42, len(frame))
            frame = frame[:at] + bytes([frame[at] ^ 1 << self._rng.randrange(8)]) + frame[at + 1 :]
        if draw() < self._hold:
            self._held[seen.sender].append(frame)
            return held
        return [frame, *held, *([frame] if draw() < self._repeat else [])]
