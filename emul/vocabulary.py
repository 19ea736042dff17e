"""The words of the verbs: queue pair states, work requests, completions, attributes. Values only, no logic.

Names and numbers are those of libibverbs and pyverbs (rdma-core `libibverbs/verbs.h`, `pyverbs/libibverbs_enums.pxd`),
so that an RDMA engineer reads them without a dictionary; the prefix IBV_ is added by `emul.enums` for ported programs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple, NewType, TypeVar

Psn = NewType("Psn", int)
"""Packet sequence number, 24 bits, modulo arithmetic in `emul.wire.psn`."""
Qpn = NewType("Qpn", int)
"""Queue pair number, 24 bits; 0 and 1 are the management queue pairs."""
Rkey = NewType("Rkey", int)
"""Remote key of a memory region, 32 bits."""


T = TypeVar("T")


def users_own(kind: type[T]) -> type[T]:
    """Marks values that programs fill in as they like, plain numbers included.

    A class with a decorator of its own stays an ordinary one also where this module is compiled, and takes a number
    where an enumeration is due, which a compiled one refuses. What verbs make of it is checked there.
    """
    return kind


class QPType(IntEnum):
    """Kinds of queue pair."""

    RC = 2
    UD = 4


class QPState(IntEnum):
    """States of a queue pair (InfiniBand specification vol. 1, 10.3.1)."""

    RESET = 0
    INIT = 1
    RTR = 2
    RTS = 3
    SQD = 4
    SQE = 5
    ERR = 6


class MTU(IntEnum):
    """Path MTU as verbs encode it; `MTU.MTU_1024.size` is in bytes."""

    MTU_256 = 1
    MTU_512 = 2
    MTU_1024 = 3
    MTU_2048 = 4
    MTU_4096 = 5

    @property
    def size(self) -> int:
        """Payload bytes of a full packet."""
        return 128 << self.value


class AccessFlags(IntFlag):
    """What a memory region or a queue pair permits."""

    NONE = 0
    LOCAL_WRITE = 1
    REMOTE_WRITE = 2
    REMOTE_READ = 4
    REMOTE_ATOMIC = 8
    FLUSH_GLOBAL = 1 << 8
    FLUSH_PERSISTENT = 1 << 9


class WROpcode(IntEnum):
    """What a send work request asks for."""

    RDMA_WRITE = 0
    RDMA_WRITE_WITH_IMM = 1
    SEND = 2
    SEND_WITH_IMM = 3
    RDMA_READ = 4
    ATOMIC_CMP_AND_SWP = 5
    ATOMIC_FETCH_AND_ADD = 6
    SEND_WITH_INV = 9
    FLUSH = 14
    ATOMIC_WRITE = 15


class PlacementType(IntFlag):
    """How far a FLUSH carries what was written (memory placement extensions): readable by all, or safe from a loss of
    power.
    """

    GLOBAL = 1
    PERSISTENT = 2


class Selectivity(IntEnum):
    """What a FLUSH is about: the bytes that it names, or the whole memory region."""

    RANGE = 0
    MR = 1


class WCOpcode(IntEnum):
    """What a completion reports."""

    SEND = 0
    RDMA_WRITE = 1
    RDMA_READ = 2
    COMP_SWAP = 3
    FETCH_ADD = 4
    FLUSH = 8
    ATOMIC_WRITE = 9
    RECV = 128
    RECV_RDMA_WITH_IMM = 129


class WCStatus(IntEnum):
    """How a work request ended (InfiniBand specification vol. 1, 10.10.3)."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13
    REM_ABORT_ERR = 16
    FATAL_ERR = 19
    RESP_TIMEOUT_ERR = 20
    GENERAL_ERR = 21


class WCFlags(IntFlag):
    """What else a completion carries."""

    NONE = 0
    GRH = 1
    WITH_IMM = 2
    WITH_INV = 8


class SendFlags(IntFlag):
    """Options of a send work request."""

    NONE = 0
    FENCE = 1
    SIGNALED = 2
    SOLICITED = 4
    INLINE = 8


class EventType(IntEnum):
    """Asynchronous events of a device (numbers of libibverbs; those from 0x100 are the emulated
    firmware's).
    """

    CQ_ERR = 0
    QP_FATAL = 1
    QP_REQ_ERR = 2
    QP_ACCESS_ERR = 3
    COMM_EST = 4
    SQ_DRAINED = 5
    DEVICE_FATAL = 8
    PORT_ACTIVE = 9
    PORT_ERR = 10
    SRQ_ERR = 14
    SRQ_LIMIT_REACHED = 15
    QP_LAST_WQE_REACHED = 16
    EXCHANGE_WRITTEN = 0x100
    """A partner wrote into its exchange area of this node: `element` is the partner's node id."""
    PATH_FENCED = 0x101
    """A partner raised a fence through this node's firmware: `element` is the fence slot."""
    IDENTITY_REFUSED = 0x102
    """Somebody else called by the name of a connected partner, and was refused: `element` is the fence slot."""
    VERSION_REFUSED = 0x103
    """A caller speaks another version of the well-known service, and was refused: `element` is the fence slot."""


@dataclass(frozen=True, slots=True)
class AsyncEvent:
    """One asynchronous event; `element` is the QP number, port number, partner id or fence slot that it is about."""

    event_type: EventType
    element: int


@dataclass(frozen=True, slots=True)
class SGE:
    """One piece of local memory."""

    addr: int
    length: int
    lkey: int


@users_own
@dataclass(slots=True)
class SendWR:
    """A send work request, built as in pyverbs: constructor, then `set_wr_rdma` where the opcode needs it."""

    wr_id: int = 0
    opcode: WROpcode = WROpcode.SEND
    num_sge: int = 0
    imm_data: int = 0
    sg: list[SGE] | None = None
    send_flags: SendFlags = SendFlags.SIGNALED
    next_wr: SendWR | None = None
    rkey: int = 0
    remote_addr: int = 0
    compare_add: int = 0
    swap: int = 0
    flush_length: int = 0

    def set_wr_rdma(self, rkey: int, addr: int) -> None:
        """Aims the request at remote memory."""
        self.rkey, self.remote_addr = rkey, addr

    def set_wr_atomic(self, rkey: int, addr: int, compare_add: int, swap: int = 0) -> None:
        """Aims an atomic at eight bytes of remote memory: what it compares with or adds, and what it swaps in."""
        self.rkey, self.remote_addr, self.compare_add, self.swap = rkey, addr, compare_add, swap

    def set_wr_flush(
        self,
        rkey: int,
        addr: int,
        length: int,
        placement: PlacementType = PlacementType.PERSISTENT,
        selectivity: Selectivity = Selectivity.RANGE,
    ) -> None:
        """Aims a FLUSH at `length` bytes of remote memory, or at their whole region."""
        self.rkey, self.remote_addr, self.flush_length = rkey, addr, length
        self.imm_data = int(placement) | int(selectivity) << 4


@users_own
@dataclass(slots=True)
class RecvWR:
    """A receive work request."""

    wr_id: int = 0
    num_sge: int = 0
    sg: list[SGE] | None = None
    next_wr: RecvWR | None = None


class WC(NamedTuple):
    """A work completion (a tuple, as one is made for each of them: a frozen dataclass takes several times as long)."""

    wr_id: int
    status: WCStatus
    opcode: WCOpcode
    byte_len: int
    qp_num: int
    imm_data: int = 0
    wc_flags: WCFlags = WCFlags.NONE

    # What verbs have besides; an adapter of RoCE leaves it empty.
    vendor_err: int = 0
    src_qp: int = 0
    pkey_index: int = 0
    slid: int = 0
    sl: int = 0
    dlid_path_bits: int = 0


@users_own
@dataclass(slots=True)
class QPCap:
    """Sizes of a queue pair."""

    max_send_wr: int = 1
    max_recv_wr: int = 10
    max_send_sge: int = 1
    max_recv_sge: int = 1
    max_inline_data: int = 0


@dataclass(frozen=True, slots=True)
class GID:
    """A port's global identifier; over RoCEv2 the IPv4-mapped address: `GID("::ffff:10.77.0.1")` or
    `GID("10.77.0.1")`.
    """

    gid: str


@users_own
@dataclass(slots=True)
class GlobalRoute:
    """Where a path leads."""

    dgid: GID = field(default_factory=lambda: GID("::"))
    flow_label: int = 0
    sgid_index: int = 1
    hop_limit: int = 64
    traffic_class: int = 0


@users_own
@dataclass(slots=True)
class AHAttr:
    """Address of the other end; over Ethernet only the global route counts, with or without `is_global`."""

    dlid: int = 0
    sl: int = 0
    src_path_bits: int = 0
    static_rate: int = 0
    is_global: int = 0
    port_num: int = 1
    gr: GlobalRoute | None = None


@users_own
@dataclass(slots=True)
class QPAttr:
    """Attributes of a queue pair, as `modify_qp` takes and `query_qp` gives them.

    `timeout` is the exponent of 4.096 us x 2^timeout (0 = none); `min_rnr_timer` the encoding of table 45 of the
    specification. `fence_slot` and `fence_epoch` are the emulated adapter's: the responder refuses every writing packet
    once the node's fence epoch of that slot is above this queue pair's. Slot 0 is never fenced.
    """

    qp_state: QPState = QPState.INIT
    cur_qp_state: QPState = QPState.RESET
    port_num: int = 1
    path_mtu: MTU = MTU.MTU_1024
    dest_qp_num: int = 0
    rq_psn: int = 0
    sq_psn: int = 0
    qp_access_flags: AccessFlags = AccessFlags.NONE
    ah_attr: AHAttr = field(default_factory=AHAttr)
    max_rd_atomic: int = 1
    max_dest_rd_atomic: int = 1
    min_rnr_timer: int = 12
    timeout: int = 14
    retry_cnt: int = 7
    rnr_retry: int = 7
    en_sqd_async_notify: int = 0
    sq_draining: int = 0
    pkey_index: int = 0
    cap: QPCap | None = None
    fence_slot: int = 0
    fence_epoch: int = 0
