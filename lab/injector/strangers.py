"""Frames of a stranger: somebody off the path who knows some of what it takes to write into another's memory, not all.

Made from a write that passes by, with a right ICRC; what they would store is recognised wherever it were found. Pure.
"""

from __future__ import annotations

import random

from emul.wire.frame import TRANSPORT_OFFSET, internet_checksum
from emul.wire.headers import Opcode
from emul.wire.icrc import icrc

MARK = b"NOT FROM A FRIEND "
"""Begins what a stranger would store."""
STORED_BYTES = 64
_ETHERNET, _IP_LENGTH, _IP_CHECKSUM, _IP_SOURCE, _UDP_LENGTH = 14, 16, 24, 26, 38
_BTH_BYTES, _RETH_BYTES, _ICRC_BYTES = 12, 16, 4
_STRANGERS_LAST_BYTE = 251
"""Node ids give addresses up to .250."""
_WRITES = (Opcode.RDMA_WRITE_FIRST, Opcode.RDMA_WRITE_ONLY)
_PSN_JUMP = 1 << 20


def spoof_source(frame: bytes, chance: random.Random) -> bytes | None:
    """Knows queue pair, PSN and key, and calls from an address of its own. None for a frame that is no write."""
    forged = _write(frame, 1, None)
    if forged is None:
        return None
    forged[_IP_SOURCE + 3] = _STRANGERS_LAST_BYTE
    return _sealed(forged)


def rkey_guess(frame: bytes, chance: random.Random) -> bytes | None:
    """Calls from the right address with the PSN that may come next, and guesses the key."""
    forged = _write(frame, 1, chance.randrange(1, 1 << 32))
    return None if forged is None else _sealed(forged)


def psn_jump(frame: bytes, chance: random.Random) -> bytes | None:
    """Calls from the right address with the right key, and guesses the PSN."""
    forged = _write(frame, chance.randrange(_PSN_JUMP, 7 * _PSN_JUMP), None)
    return None if forged is None else _sealed(forged)


STRANGERS = {"stranger_source": spoof_source, "stranger_rkey": rkey_guess, "stranger_psn": psn_jump}
"""Actions of rules."""


def _write(frame: bytes, psn_ahead: int, key: int | None) -> bytearray | None:
    """An RDMA WRITE ONLY of the mark to the place that `frame` writes to, without ICRC."""
    reth = TRANSPORT_OFFSET + _BTH_BYTES
    if len(frame) < reth + _RETH_BYTES + _ICRC_BYTES or frame[TRANSPORT_OFFSET] not in _WRITES:
        return None
    forged = bytearray(frame[: reth + _RETH_BYTES])
    forged[TRANSPORT_OFFSET] = Opcode.RDMA_WRITE_ONLY
    forged[TRANSPORT_OFFSET + 1] &= 0xCF  # no padding
    psn = int.from_bytes(frame[TRANSPORT_OFFSET + 9 : TRANSPORT_OFFSET + 12], "big")
    forged[TRANSPORT_OFFSET + 9 : TRANSPORT_OFFSET + 12] = ((psn + psn_ahead) & 0xFFFFFF).to_bytes(3, "big")
    if key is not None:
        forged[reth + 8 : reth + 12] = key.to_bytes(4, "big")
    forged[reth + 12 : reth + 16] = STORED_BYTES.to_bytes(4, "big")
    return forged + (MARK * STORED_BYTES)[:STORED_BYTES]


def _sealed(forged: bytearray) -> bytes:
    """With lengths, header checksum and ICRC as they have to be."""
    length = len(forged) - _ETHERNET + _ICRC_BYTES
    forged[_IP_LENGTH : _IP_LENGTH + 2] = length.to_bytes(2, "big")
    forged[_UDP_LENGTH : _UDP_LENGTH + 2] = (length - 20).to_bytes(2, "big")
    forged[_IP_CHECKSUM : _IP_CHECKSUM + 2] = bytes(2)
    checksum = internet_checksum(bytes(forged[_ETHERNET : _ETHERNET + 20]))
    forged[_IP_CHECKSUM : _IP_CHECKSUM + 2] = checksum.to_bytes(2, "big")
    return bytes(forged) + icrc(bytes(forged[_ETHERNET:]))
