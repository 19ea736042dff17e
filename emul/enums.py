"""Every name of `pyverbs.enums` for what the emulated adapter has, with libibverbs' numbers (rdma-core
`libibverbs/verbs.h`, `pyverbs/libibverbs_enums.pxd`).

Where `emul.vocabulary` has the value, the name is that value, so that both ways of writing compare and print alike.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from emul.vocabulary import (
    MTU,
    AccessFlags,
    EventType,
    PlacementType,
    QPState,
    QPType,
    Selectivity,
    SendFlags,
    WCFlags,
    WCOpcode,
    WCStatus,
    WROpcode,
)


class QPAttrMask(IntFlag):
    """Which attributes `QP.modify` is about (ibv_qp_attr_mask)."""

    STATE = 1 << 0
    CUR_STATE = 1 << 1
    EN_SQD_ASYNC_NOTIFY = 1 << 2
    ACCESS_FLAGS = 1 << 3
    PKEY_INDEX = 1 << 4
    PORT = 1 << 5
    QKEY = 1 << 6
    AV = 1 << 7
    PATH_MTU = 1 << 8
    TIMEOUT = 1 << 9
    RETRY_CNT = 1 << 10
    RNR_RETRY = 1 << 11
    RQ_PSN = 1 << 12
    MAX_QP_RD_ATOMIC = 1 << 13
    ALT_PATH = 1 << 14
    MIN_RNR_TIMER = 1 << 15
    SQ_PSN = 1 << 16
    MAX_DEST_RD_ATOMIC = 1 << 17
    PATH_MIG_STATE = 1 << 18
    CAP = 1 << 19
    DEST_QPN = 1 << 20
    RATE_LIMIT = 1 << 25
    FENCE = 1 << 30
    """The emulated adapter's own: `fence_slot` and `fence_epoch`."""


class SrqAttrMask(IntFlag):
    """Which attributes `SRQ.modify` is about (ibv_srq_attr_mask)."""

    MAX_WR = 1
    LIMIT = 2


class PortState(IntEnum):
    """Logical state of a port (ibv_port_state)."""

    NOP = 0
    DOWN = 1
    INIT = 2
    ARMED = 3
    ACTIVE = 4
    ACTIVE_DEFER = 5


class NodeType(IntEnum):
    """Kind of a device (ibv_node_type)."""

    UNKNOWN = -1
    CA = 1
    SWITCH = 2
    ROUTER = 3
    RNIC = 4
    USNIC = 5
    USNIC_UDP = 6


class TransportType(IntEnum):
    """Transport of a device (ibv_transport_type)."""

    UNKNOWN = -1
    IB = 0
    IWARP = 1
    USNIC = 2
    USNIC_UDP = 3


class LinkLayer(IntEnum):
    """What is under the transport."""

    UNSPECIFIED = 0
    INFINIBAND = 1
    ETHERNET = 2


class AtomicCap(IntEnum):
    """Against whom an atomic is atomic (ibv_atomic_cap)."""

    NONE = 0
    HCA = 1
    GLOB = 2


class PortCapFlags(IntFlag):
    """What a port offers (ibv_port_cap_flags): only those that can be told of an Ethernet port."""

    CM_SUP = 1 << 16
    IP_BASED_GIDS = 1 << 26


class DeviceCapFlags(IntFlag):
    """What a device offers (ibv_device_cap_flags): those that the emulated adapter has, or might be asked for."""

    RESIZE_MAX_WR = 1 << 0
    BAD_PKEY_CNTR = 1 << 1
    CURR_QP_STATE_MOD = 1 << 7
    PORT_ACTIVE_EVENT = 1 << 10
    SYS_IMAGE_GUID = 1 << 11
    RC_RNR_NAK_GEN = 1 << 12
    SRQ_RESIZE = 1 << 13
    N_NOTIFY_CQ = 1 << 14
    MEM_WINDOW = 1 << 17
    MEM_MGT_EXTENSIONS = 1 << 21
    FLUSH_GLOBAL = 1 << 38
    FLUSH_PERSISTENT = 1 << 39
    ATOMIC_WRITE = 1 << 40


class GIDType(IntEnum):
    """What a GID is good for (ibv_gid_type of `ibv_query_gid_ex`)."""

    IB = 0
    ROCE_V1 = 1
    ROCE_V2 = 2


IBV_QPT_RC = QPType.RC
IBV_QPT_UD = QPType.UD

IBV_QPS_RESET = QPState.RESET
IBV_QPS_INIT = QPState.INIT
IBV_QPS_RTR = QPState.RTR
IBV_QPS_RTS = QPState.RTS
IBV_QPS_SQD = QPState.SQD
IBV_QPS_SQE = QPState.SQE
IBV_QPS_ERR = QPState.ERR

IBV_MTU_256 = MTU.MTU_256
IBV_MTU_512 = MTU.MTU_512
IBV_MTU_1024 = MTU.MTU_1024
IBV_MTU_2048 = MTU.MTU_2048
IBV_MTU_4096 = MTU.MTU_4096

IBV_ACCESS_LOCAL_WRITE = AccessFlags.LOCAL_WRITE
IBV_ACCESS_REMOTE_WRITE = AccessFlags.REMOTE_WRITE
IBV_ACCESS_REMOTE_READ = AccessFlags.REMOTE_READ
IBV_ACCESS_REMOTE_ATOMIC = AccessFlags.REMOTE_ATOMIC
IBV_ACCESS_FLUSH_GLOBAL = AccessFlags.FLUSH_GLOBAL
IBV_ACCESS_FLUSH_PERSISTENT = AccessFlags.FLUSH_PERSISTENT

IBV_WR_RDMA_WRITE = WROpcode.RDMA_WRITE
IBV_WR_RDMA_WRITE_WITH_IMM = WROpcode.RDMA_WRITE_WITH_IMM
IBV_WR_SEND = WROpcode.SEND
IBV_WR_SEND_WITH_IMM = WROpcode.SEND_WITH_IMM
IBV_WR_RDMA_READ = WROpcode.RDMA_READ
IBV_WR_ATOMIC_CMP_AND_SWP = WROpcode.ATOMIC_CMP_AND_SWP
IBV_WR_ATOMIC_FETCH_AND_ADD = WROpcode.ATOMIC_FETCH_AND_ADD
IBV_WR_SEND_WITH_INV = WROpcode.SEND_WITH_INV
IBV_WR_FLUSH = WROpcode.FLUSH
IBV_WR_ATOMIC_WRITE = WROpcode.ATOMIC_WRITE

IBV_SEND_FENCE = SendFlags.FENCE
IBV_SEND_SIGNALED = SendFlags.SIGNALED
IBV_SEND_SOLICITED = SendFlags.SOLICITED
IBV_SEND_INLINE = SendFlags.INLINE

IBV_WC_SUCCESS = WCStatus.SUCCESS
IBV_WC_LOC_LEN_ERR = WCStatus.LOC_LEN_ERR
IBV_WC_LOC_QP_OP_ERR = WCStatus.LOC_QP_OP_ERR
IBV_WC_LOC_PROT_ERR = WCStatus.LOC_PROT_ERR
IBV_WC_WR_FLUSH_ERR = WCStatus.WR_FLUSH_ERR
IBV_WC_MW_BIND_ERR = WCStatus.MW_BIND_ERR
IBV_WC_BAD_RESP_ERR = WCStatus.BAD_RESP_ERR
IBV_WC_LOC_ACCESS_ERR = WCStatus.LOC_ACCESS_ERR
IBV_WC_REM_INV_REQ_ERR = WCStatus.REM_INV_REQ_ERR
IBV_WC_REM_ACCESS_ERR = WCStatus.REM_ACCESS_ERR
IBV_WC_REM_OP_ERR = WCStatus.REM_OP_ERR
IBV_WC_RETRY_EXC_ERR = WCStatus.RETRY_EXC_ERR
IBV_WC_RNR_RETRY_EXC_ERR = WCStatus.RNR_RETRY_EXC_ERR
IBV_WC_REM_ABORT_ERR = WCStatus.REM_ABORT_ERR
IBV_WC_FATAL_ERR = WCStatus.FATAL_ERR
IBV_WC_RESP_TIMEOUT_ERR = WCStatus.RESP_TIMEOUT_ERR
IBV_WC_GENERAL_ERR = WCStatus.GENERAL_ERR

IBV_WC_SEND = WCOpcode.SEND
IBV_WC_RDMA_WRITE = WCOpcode.RDMA_WRITE
IBV_WC_RDMA_READ = WCOpcode.RDMA_READ
IBV_WC_COMP_SWAP = WCOpcode.COMP_SWAP
IBV_WC_FETCH_ADD = WCOpcode.FETCH_ADD
IBV_WC_FLUSH = WCOpcode.FLUSH
IBV_WC_ATOMIC_WRITE = WCOpcode.ATOMIC_WRITE
IBV_WC_RECV = WCOpcode.RECV
IBV_WC_RECV_RDMA_WITH_IMM = WCOpcode.RECV_RDMA_WITH_IMM

IBV_WC_GRH = WCFlags.GRH
IBV_WC_WITH_IMM = WCFlags.WITH_IMM
IBV_WC_WITH_INV = WCFlags.WITH_INV

IBV_EVENT_CQ_ERR = EventType.CQ_ERR
IBV_EVENT_QP_FATAL = EventType.QP_FATAL
IBV_EVENT_QP_REQ_ERR = EventType.QP_REQ_ERR
IBV_EVENT_QP_ACCESS_ERR = EventType.QP_ACCESS_ERR
IBV_EVENT_COMM_EST = EventType.COMM_EST
IBV_EVENT_SQ_DRAINED = EventType.SQ_DRAINED
IBV_EVENT_DEVICE_FATAL = EventType.DEVICE_FATAL
IBV_EVENT_PORT_ACTIVE = EventType.PORT_ACTIVE
IBV_EVENT_PORT_ERR = EventType.PORT_ERR
IBV_EVENT_SRQ_ERR = EventType.SRQ_ERR
IBV_EVENT_SRQ_LIMIT_REACHED = EventType.SRQ_LIMIT_REACHED
IBV_EVENT_QP_LAST_WQE_REACHED = EventType.QP_LAST_WQE_REACHED

IBV_FLUSH_GLOBAL = PlacementType.GLOBAL
IBV_FLUSH_PERSISTENT = PlacementType.PERSISTENT

IBV_FLUSH_RANGE = Selectivity.RANGE
IBV_FLUSH_MR = Selectivity.MR

IBV_QP_STATE = QPAttrMask.STATE
IBV_QP_CUR_STATE = QPAttrMask.CUR_STATE
IBV_QP_EN_SQD_ASYNC_NOTIFY = QPAttrMask.EN_SQD_ASYNC_NOTIFY
IBV_QP_ACCESS_FLAGS = QPAttrMask.ACCESS_FLAGS
IBV_QP_PKEY_INDEX = QPAttrMask.PKEY_INDEX
IBV_QP_PORT = QPAttrMask.PORT
IBV_QP_QKEY = QPAttrMask.QKEY
IBV_QP_AV = QPAttrMask.AV
IBV_QP_PATH_MTU = QPAttrMask.PATH_MTU
IBV_QP_TIMEOUT = QPAttrMask.TIMEOUT
IBV_QP_RETRY_CNT = QPAttrMask.RETRY_CNT
IBV_QP_RNR_RETRY = QPAttrMask.RNR_RETRY
IBV_QP_RQ_PSN = QPAttrMask.RQ_PSN
IBV_QP_MAX_QP_RD_ATOMIC = QPAttrMask.MAX_QP_RD_ATOMIC
IBV_QP_ALT_PATH = QPAttrMask.ALT_PATH
IBV_QP_MIN_RNR_TIMER = QPAttrMask.MIN_RNR_TIMER
IBV_QP_SQ_PSN = QPAttrMask.SQ_PSN
IBV_QP_MAX_DEST_RD_ATOMIC = QPAttrMask.MAX_DEST_RD_ATOMIC
IBV_QP_PATH_MIG_STATE = QPAttrMask.PATH_MIG_STATE
IBV_QP_CAP = QPAttrMask.CAP
IBV_QP_DEST_QPN = QPAttrMask.DEST_QPN
IBV_QP_RATE_LIMIT = QPAttrMask.RATE_LIMIT

IBV_SRQ_MAX_WR = SrqAttrMask.MAX_WR
IBV_SRQ_LIMIT = SrqAttrMask.LIMIT

IBV_PORT_NOP = PortState.NOP
IBV_PORT_DOWN = PortState.DOWN
IBV_PORT_INIT = PortState.INIT
IBV_PORT_ARMED = PortState.ARMED
IBV_PORT_ACTIVE = PortState.ACTIVE
IBV_PORT_ACTIVE_DEFER = PortState.ACTIVE_DEFER

IBV_NODE_UNKNOWN = NodeType.UNKNOWN
IBV_NODE_CA = NodeType.CA
IBV_NODE_SWITCH = NodeType.SWITCH
IBV_NODE_ROUTER = NodeType.ROUTER
IBV_NODE_RNIC = NodeType.RNIC
IBV_NODE_USNIC = NodeType.USNIC
IBV_NODE_USNIC_UDP = NodeType.USNIC_UDP

IBV_TRANSPORT_UNKNOWN = TransportType.UNKNOWN
IBV_TRANSPORT_IB = TransportType.IB
IBV_TRANSPORT_IWARP = TransportType.IWARP
IBV_TRANSPORT_USNIC = TransportType.USNIC
IBV_TRANSPORT_USNIC_UDP = TransportType.USNIC_UDP

IBV_LINK_LAYER_UNSPECIFIED = LinkLayer.UNSPECIFIED
IBV_LINK_LAYER_INFINIBAND = LinkLayer.INFINIBAND
IBV_LINK_LAYER_ETHERNET = LinkLayer.ETHERNET

IBV_ATOMIC_NONE = AtomicCap.NONE
IBV_ATOMIC_HCA = AtomicCap.HCA
IBV_ATOMIC_GLOB = AtomicCap.GLOB

IBV_PORT_CM_SUP = PortCapFlags.CM_SUP
IBV_PORT_IP_BASED_GIDS = PortCapFlags.IP_BASED_GIDS

IBV_DEVICE_RESIZE_MAX_WR = DeviceCapFlags.RESIZE_MAX_WR
IBV_DEVICE_BAD_PKEY_CNTR = DeviceCapFlags.BAD_PKEY_CNTR
IBV_DEVICE_CURR_QP_STATE_MOD = DeviceCapFlags.CURR_QP_STATE_MOD
IBV_DEVICE_PORT_ACTIVE_EVENT = DeviceCapFlags.PORT_ACTIVE_EVENT
IBV_DEVICE_SYS_IMAGE_GUID = DeviceCapFlags.SYS_IMAGE_GUID
IBV_DEVICE_RC_RNR_NAK_GEN = DeviceCapFlags.RC_RNR_NAK_GEN
IBV_DEVICE_SRQ_RESIZE = DeviceCapFlags.SRQ_RESIZE
IBV_DEVICE_N_NOTIFY_CQ = DeviceCapFlags.N_NOTIFY_CQ
IBV_DEVICE_MEM_WINDOW = DeviceCapFlags.MEM_WINDOW
IBV_DEVICE_MEM_MGT_EXTENSIONS = DeviceCapFlags.MEM_MGT_EXTENSIONS
IBV_DEVICE_FLUSH_GLOBAL = DeviceCapFlags.FLUSH_GLOBAL
IBV_DEVICE_FLUSH_PERSISTENT = DeviceCapFlags.FLUSH_PERSISTENT
IBV_DEVICE_ATOMIC_WRITE = DeviceCapFlags.ATOMIC_WRITE

IBV_GID_TYPE_IB = GIDType.IB
IBV_GID_TYPE_ROCE_V1 = GIDType.ROCE_V1
IBV_GID_TYPE_ROCE_V2 = GIDType.ROCE_V2
