"""From a host's send entry to a request with its memory: what the host may ask for, checked once when it is taken.

The entry is hostile input. A request that cannot be carried out is not refused here, as its turn has not come: it keeps
the status that it will end with, and everything before it is still done.
"""

from __future__ import annotations

from emul.queues import SendEntry
from emul.regions import MemoryRegion, RegionTable
from emul.responder import ATOMIC_BYTES, MESSAGE_BYTES_MAX
from emul.vocabulary import WCStatus, WROpcode
from emul.window import RESPONDED, SendWqe

_OPCODES = {int(opcode): opcode for opcode in WROpcode}
_FETCHING = frozenset({WROpcode.RDMA_READ, WROpcode.ATOMIC_CMP_AND_SWP, WROpcode.ATOMIC_FETCH_AND_ADD})
"""Requests that write into local memory."""
_EIGHT_BYTES = frozenset({WROpcode.ATOMIC_CMP_AND_SWP, WROpcode.ATOMIC_FETCH_AND_ADD, WROpcode.ATOMIC_WRITE})
_NOT_INLINE = _FETCHING | {WROpcode.FLUSH}


def resolve(entry: SendEntry, regions: RegionTable, pd: int, max_rd_atomic: int) -> SendWqe:
    """The request with its memory. Its status is SUCCESS, or LOC_QP_OP_ERR (unknown opcode, a response without a slot
    for it, inline data where there can be none), LOC_PROT_ERR (memory) or LOC_LEN_ERR.
    """
    opcode = _OPCODES.get(entry.opcode)
    if opcode is None or (opcode in RESPONDED and not max_rd_atomic):
        return bad_request(entry, WCStatus.LOC_QP_OP_ERR)
    pieces: list[memoryview] = []
    holders: list[MemoryRegion] = []
    total = 0
    if entry.inline is not None:
        if opcode in _NOT_INLINE:
            return bad_request(entry, WCStatus.LOC_QP_OP_ERR)
        pieces.append(memoryview(entry.inline))
        total = len(entry.inline)
    elif opcode is not WROpcode.FLUSH:
        write = opcode in _FETCHING
        for lkey, addr, length in entry.sges:
            if length == 0:
                continue
            region = regions.local(lkey, addr, length, pd, write=write)
            if region is None:
                return bad_request(entry, WCStatus.LOC_PROT_ERR)
            pieces.append(region.slice(addr, length))
            holders.append(region)
            total += length
    if total > MESSAGE_BYTES_MAX or (opcode in _EIGHT_BYTES and total != ATOMIC_BYTES):
        return bad_request(entry, WCStatus.LOC_LEN_ERR)
    wqe = SendWqe(entry.wr_id, opcode, entry.flags, entry.imm, entry.remote_addr, entry.rkey, pieces, total, holders)
    if opcode is WROpcode.FLUSH:
        wqe.flush_length = entry.sges[0][2] if entry.sges else 0
    elif opcode in _EIGHT_BYTES:
        wqe.compare_add, wqe.swap = entry.compare_add, entry.swap
    return wqe


def bad_request(entry: SendEntry, status: WCStatus) -> SendWqe:
    """A request that does nothing but end with `status`."""
    opcode = _OPCODES.get(entry.opcode, WROpcode.SEND)
    return SendWqe(entry.wr_id, opcode, entry.flags, 0, 0, 0, [], 0, status=status)
