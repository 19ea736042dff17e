"""Arithmetic of packet sequence numbers: 24 bits, modulo 2^24 (InfiniBand specification vol. 1, 9.7.2)."""

from __future__ import annotations

from typing import Final

from emul.vocabulary import Psn

PSN_MASK: Final = 0xFFFFFF
_HALF: Final = 0x800000


def psn_add(psn: int, count: int) -> Psn:
    """The PSN `count` packets later (earlier when negative)."""
    return Psn((psn + count) & PSN_MASK)


def psn_distance(later: int, earlier: int) -> int:
    """How many packets `later` is ahead of `earlier`: -2^23 ... 2^23 - 1; negative when it is behind."""
    return ((later - earlier + _HALF) & PSN_MASK) - _HALF
