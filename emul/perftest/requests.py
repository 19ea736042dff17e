"""The work request that a test posts again and again."""

from __future__ import annotations

from emul.perftest.ends import End
from emul.perftest.options import AtomicType
from emul.vocabulary import SendFlags, SendWR, WROpcode

_OPCODES = {"send": WROpcode.SEND, "write": WROpcode.RDMA_WRITE, "read": WROpcode.RDMA_READ}
_ATOMICS = {
    AtomicType.FETCH_AND_ADD: WROpcode.ATOMIC_FETCH_AND_ADD, AtomicType.CMP_AND_SWAP: WROpcode.ATOMIC_CMP_AND_SWP,
}  # fmt: skip


def request_for(end: End, size: int, *, last: bool = False) -> SendWR:
    """A signaled request of `size` bytes, inline where that is wanted; `last`: a SEND that says that none follows."""
    options = end.options
    flags = SendFlags.SIGNALED
    if options.verb in ("send", "write") and size <= options.inline:
        flags |= SendFlags.INLINE
    opcode = _ATOMICS[options.atomic] if options.verb == "atomic" else _OPCODES[options.verb]
    request = SendWR(1, WROpcode.SEND_WITH_IMM if last else opcode, 1, int(last), [end.source_piece(size)], flags)
    if options.verb == "atomic":
        request.set_wr_atomic(end.number("rkey"), end.number("vaddr"), 1, 0)
    elif options.verb != "send":
        request.set_wr_rdma(end.number("rkey"), end.number("vaddr"))
    return request
