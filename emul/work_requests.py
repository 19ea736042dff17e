"""From what a host has posted to a request with its memory: what the host may ask for, checked once when it is taken.

The request is hostile input. One that cannot be carried out is not refused here, as its turn has not come: it keeps
the status that it will end with, and everything before it is still done.
"""

from __future__ import annotations

from typing import Final

from emul.regions import MemoryRegion, RegionTable
from emul.responder import ATOMIC_BYTES, MESSAGE_BYTES_MAX
from emul.vocabulary import WCStatus, WROpcode
from emul.wqe import RESPONDED, SendWqe

_OPCODES: Final = frozenset(int(opcode) for opcode in WROpcode)
_FETCHING: Final = frozenset(
    {int(WROpcode.RDMA_READ), int(WROpcode.ATOMIC_CMP_AND_SWP), int(WROpcode.ATOMIC_FETCH_AND_ADD)}
)
"""Requests that write into local memory."""
_EIGHT_BYTES: Final = frozenset(
    {int(WROpcode.ATOMIC_CMP_AND_SWP), int(WROpcode.ATOMIC_FETCH_AND_ADD), int(WROpcode.ATOMIC_WRITE)}
)
_FLUSH: Final = int(WROpcode.FLUSH)
_SEND: Final = int(WROpcode.SEND)
_WRITE: Final = int(WROpcode.RDMA_WRITE)
_NOT_INLINE: Final = _FETCHING | {_FLUSH}


def resolve(wqe: SendWqe, regions: RegionTable, pd: int, max_rd_atomic: int) -> SendWqe:
    """Gives the request its memory. Its status stays None, or becomes LOC_QP_OP_ERR (unknown opcode, a response without
    a slot for it, inline data where there can be none), LOC_PROT_ERR (memory) or LOC_LEN_ERR.
    """
    opcode = wqe.opcode
    if opcode != _WRITE:  # the most frequent one is none of these
        if opcode not in _OPCODES:
            return refuse(wqe, WCStatus.LOC_QP_OP_ERR)
        wqe.responded = opcode in RESPONDED
        if wqe.responded and not max_rd_atomic:
            return refuse(wqe, WCStatus.LOC_QP_OP_ERR)
    if wqe.inline is not None:
        if opcode in _NOT_INLINE:
            return refuse(wqe, WCStatus.LOC_QP_OP_ERR)
        wqe.data = memoryview(wqe.inline)
        wqe.length = len(wqe.inline)
    elif opcode != _FLUSH and not _find_memory(wqe, regions, pd, opcode in _FETCHING):
        return refuse(wqe, WCStatus.LOC_PROT_ERR)
    if wqe.length > MESSAGE_BYTES_MAX or (opcode in _EIGHT_BYTES and wqe.length != ATOMIC_BYTES):
        return refuse(wqe, WCStatus.LOC_LEN_ERR)
    return wqe


def _find_memory(wqe: SendWqe, regions: RegionTable, pd: int, write: bool) -> bool:
    """False where a piece names memory that it may not."""
    if wqe.further:
        return _find_pieces(wqe, regions, pd, write)
    if wqe.size:
        region = regions.local(wqe.lkey, wqe.addr, wqe.size, pd, write=write)
        if region is None:
            return False
        wqe.region = region
        wqe.data = region.slice(wqe.addr, wqe.size)
        wqe.length = wqe.size
    return True


def _find_pieces(wqe: SendWqe, regions: RegionTable, pd: int, write: bool) -> bool:
    pieces: list[memoryview] = []
    holders: list[MemoryRegion] = []
    for lkey, addr, size in ((wqe.lkey, wqe.addr, wqe.size), *wqe.further):
        if size == 0:
            continue
        region = regions.local(lkey, addr, size, pd, write=write)
        if region is None:
            return False
        pieces.append(region.slice(addr, size))
        holders.append(region)
        wqe.length += size
    wqe.regions = holders
    if len(pieces) == 1:
        wqe.data = pieces[0]
    elif pieces:
        wqe.data, wqe.pieces = None, pieces
    return True


def refuse(wqe: SendWqe, status: WCStatus) -> SendWqe:
    """From now on it does nothing but end with `status`."""
    if wqe.opcode not in _OPCODES:
        wqe.opcode = _SEND
    wqe.imm = wqe.remote_addr = wqe.rkey = wqe.length = 0
    wqe.data, wqe.pieces, wqe.region, wqe.regions = b"", (), None, ()
    wqe.responded = wqe.opcode in RESPONDED
    wqe.status = status
    return wqe
