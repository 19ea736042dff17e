"""The words of the verbs: queue pair states, work requests, completions, attributes. Values only, no logic.

Names and numbers are those of libibverbs and pyverbs (rdma-core `libibverbs/verbs.h`, `pyverbs/libibverbs_enums.pxd`),
so that an RDMA engineer reads them without a dictionary; the prefix IBV_ is added by `emul.enums` for ported programs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple, NewType

Psn = NewType("Psn", int)
"""Packet sequence number, 24 bits, modulo arithmetic in `emul.wire.psn`."""
Qpn = NewType("Qpn", int)
"""Queue pair number, 24 bits; 0 and 1 are the management queue pairs."""
Rkey = NewType("Rkey", int)
"""Remote key of a memory region, 32 bits."""


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


class WROpcode(IntEnum):
    """What a send work request asks for."""

    RDMA_WRITE = 0
    RDMA_WRITE_WITH_IMM = 1
    SEND = 2
    SEND_WITH_IMM = 3
    RDMA_READ = 4


class WCOpcode(IntEnum):
    """What a completion reports."""

    SEND = 0
    RDMA_WRITE = 1
    RDMA_READ = 2
    RECV = 128
    RECV_RDMA_WITH_IMM = 129


class WCStatus(IntEnum):
    """How a work request ended (InfiniBand specification vol. 1, 10.10.3)."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13
    FATAL_ERR = 18


class WCFlags(IntFlag):
    """What else a completion carries."""

    NONE = 0
    WITH_IMM = 2


class SendFlags(IntFlag):
    """Options of a send work request."""

    NONE = 0
    FENCE = 1
    SIGNALED = 2
    SOLICITED = 4


class EventType(IntEnum):
    """Asynchronous events of a device (numbers of libibverbs up to DEVICE_FATAL; the last are the emulated
    firmware's).
    """

    CQ_ERR = 0
    QP_FATAL = 1
    DEVICE_FATAL = 8
    PORT_ACTIVE = 9
    PORT_ERR = 10
    EXCHANGE_WRITTEN = 0x100
    """A partner wrote into its exchange area of this node: `element` is the partner's node id."""
    PATH_FENCED = 0x101
    """A partner raised a fence through this node's firmware: `element` is the fence slot."""


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


@dataclass(slots=True)
class SendWR:
    """A send work request, built as in pyverbs: constructor, then `set_wr_rdma` where the opcode needs it."""

    wr_id: int = 0
    opcode: WROpcode = WROpcode.SEND
    num_sge: int = 0
    imm_data: int = 0
    send_flags: SendFlags = SendFlags.SIGNALED
    sg: list[SGE] | None = None
    rkey: int = 0
    remote_addr: int = 0

    def set_wr_rdma(self, rkey: int, addr: int) -> None:
        """Aims the request at remote memory."""
        self.rkey, self.remote_addr = rkey, addr


@dataclass(slots=True)
class RecvWR:
    """A receive work request."""

    wr_id: int = 0
    num_sge: int = 0
    sg: list[SGE] | None = None


class WC(NamedTuple):
    """A work completion (a tuple, as one is made for each of them: a frozen dataclass takes several times as long)."""

    wr_id: int
    status: WCStatus
    opcode: WCOpcode
    byte_len: int
    qp_num: int
    imm_data: int = 0
    wc_flags: WCFlags = WCFlags.NONE


@dataclass(slots=True)
class QPCap:
    """Sizes of a queue pair."""

    max_send_wr: int = 1
    max_recv_wr: int = 10
    max_send_sge: int = 1
    max_recv_sge: int = 1


@dataclass(frozen=True, slots=True)
class GID:
    """A port's global identifier; over RoCEv2 the IPv4-mapped address: `GID("::ffff:10.77.0.1")` or
    `GID("10.77.0.1")`.
    """

    gid: str


@dataclass(slots=True)
class GlobalRoute:
    """Where a path leads."""

    dgid: GID = field(default_factory=lambda: GID("::"))
    sgid_index: int = 1
    flow_label: int = 0
    hop_limit: int = 64
    traffic_class: int = 0


@dataclass(slots=True)
class AHAttr:
    """Address of the other end."""

    gr: GlobalRoute | None = None
    port_num: int = 1


@dataclass(slots=True)
class QPAttr:
    """Attributes of a queue pair, as `modify_qp` takes and `query_qp` gives them.

    `timeout` is the exponent of 4.096 us x 2^timeout (0 = none); `min_rnr_timer` the encoding of table 45 of the
    specification. `fence_slot` and `fence_epoch` are the emulated adapter's: the responder refuses every writing packet
    once the node's fence epoch of that slot is above this queue pair's. Slot 0 is never fenced.
    """

    qp_state: QPState = QPState.INIT
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
    fence_slot: int = 0
    fence_epoch: int = 0
