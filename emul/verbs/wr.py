"""Work requests (pyverbs' `wr`), and how chains of them are posted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from errno import EINVAL, ENOMEM
from typing import TypeVar

from emul.errors import PyverbsUserError, RDMAError
from emul.queues import RECEIVE_SGES_MAX, ReceiveRing
from emul.verbs.base import expect
from emul.vocabulary import SGE, RecvWR, SendWR

CHAIN_MAX = 16_384
"""Requests in one chain: as many as the deepest queue holds."""
W = TypeVar("W", SendWR, RecvWR)


def chain(first: W, kind: type[W]) -> Iterator[W]:
    """The requests of a chain. Raises PyverbsUserError for anything else in it, or when it does not end."""
    request: W | None = expect(first, kind, "wr")
    for _ in range(CHAIN_MAX):
        if request is None:
            return
        yield request
        request = None if request.next_wr is None else expect(request.next_wr, kind, "next_wr")
    raise PyverbsUserError(f"a chain has {CHAIN_MAX} requests at the most")


def pieces(wr: SendWR | RecvWR, pieces_max: int) -> list[SGE]:
    """Its pieces of memory: `num_sge` of `sg`, or all of `sg` where `num_sge` is 0. Raises RDMAError (EINVAL)."""
    sges = wr.sg or []
    if not 0 <= wr.num_sge <= len(sges):
        raise RDMAError(EINVAL, f"num_sge is {wr.num_sge}, {len(sges)} pieces are given")
    if wr.num_sge:
        sges = sges[: wr.num_sge]
    if len(sges) > pieces_max:
        raise RDMAError(EINVAL, f"a request has {pieces_max} pieces at the most, got {len(sges)}")
    for sge in sges:
        if not (0 <= sge.length < 1 << 32 and 0 <= sge.addr < 1 << 64 and 0 <= sge.lkey < 1 << 32):
            raise RDMAError(EINVAL, f"no piece of memory: {sge}")
    return sges


def copy_request(source: W, target: W | None) -> None:
    """Tells a caller which request it was."""
    if target is not None:
        for each in fields(source):
            setattr(target, each.name, getattr(source, each.name))


def post_receives(ring: ReceiveRing, name: str, wr: RecvWR, bad_wr: RecvWR | None) -> None:
    """Posts a chain of buffers: see `QP.post_recv`."""
    for request in chain(wr, RecvWR):
        try:
            if not ring.post(check_id(request.wr_id), pieces(request, RECEIVE_SGES_MAX)):
                raise RDMAError(ENOMEM, f"receive queue of {name} is full")
        except RDMAError:
            copy_request(request, bad_wr)
            raise


def check_id(wr_id: int) -> int:
    """A work request's id has 64 bits. Raises RDMAError (EINVAL)."""
    if not (isinstance(wr_id, int) and 0 <= wr_id < 1 << 64):
        raise RDMAError(EINVAL, f"wr_id must be 0 ... {(1 << 64) - 1}, got {wr_id!r}")
    return wr_id


__all__ = ["SGE", "RecvWR", "SendWR"]
