"""Random numbers by name: each consumer draws from a stream of its own, all derived from one seed.

A stream is made from seed and name alone, so that one more cable, node or fault leaves what the others draw as it was.
"""

from __future__ import annotations

import hashlib
import random


class Streams:
    """The random streams of one run."""

    __slots__ = ("seed",)

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, name: str) -> random.Random:
        """A generator that depends on the seed and `name` only."""
        return random.Random(self.number(name))

    def number(self, name: str) -> int:
        """64 bits that depend on the seed and `name` only: a seed for a part that makes its own generator."""
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")
