"""Transport headers of RoCEv2 and the opcodes that say which of them a packet carries.

BTH 12 bytes, RETH 16, AETH 4, DETH 8, ImmDt 4, AtomicETH 28, AtomicAckETH 8, IETH 4, FETH 4 (InfiniBand specification
vol. 1, 9.2-9.4; FLUSH and ATOMIC WRITE from annex A19). All big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

BTH_BYTES: Final = 12
RETH_BYTES: Final = 16
AETH_BYTES: Final = 4
DETH_BYTES: Final = 8
IMM_BYTES: Final = 4
ATOMIC_ETH_BYTES: Final = 28
ATOMIC_ACK_ETH_BYTES: Final = 8
ICRC_BYTES: Final = 4
P_KEY_FULL: Final = 0xFFFF
P_KEY_LIMITED: Final = 0x7FFF
ACK_REQUEST: Final = 0x8000_0000

BTH: Final = struct.Struct("!BBHII")
"""opcode; SE, MigReq, padcount, TVer; P_Key; FECN/BECN/reserved and destination QPN; AckReq and PSN."""
RETH: Final = struct.Struct("!QII")
"""virtual address, R_Key, DMA length."""
AETH: Final = struct.Struct("!I")
"""syndrome (8 bits) and MSN (24 bits)."""
DETH: Final = struct.Struct("!II")
"""Q_Key, source QPN (24 bits)."""
IMM: Final = struct.Struct("!I")
"""immediate data; the IETH (R_Key to invalidate) and the FETH (placement type bits 0-3, selectivity bits 4-5) have the
same shape."""
ATOMIC_ETH: Final = struct.Struct("!QIQQ")
"""virtual address, R_Key, swap or add data, compare data."""
ATOMIC_ACK_ETH: Final = struct.Struct("!Q")
"""the value that was there before."""

SOLICITED_EVENT: Final = 0x80
MIGRATION_REQUEST: Final = 0x40
PAD_SHIFT: Final = 4


class Opcode(IntEnum):
    """BTH opcodes of the reliable connection (0x00-0x1f), CNP and the one datagram opcode that CM uses."""

    SEND_FIRST = 0x00
    SEND_MIDDLE = 0x01
    SEND_LAST = 0x02
    SEND_LAST_WITH_IMMEDIATE = 0x03
    SEND_ONLY = 0x04
    SEND_ONLY_WITH_IMMEDIATE = 0x05
    RDMA_WRITE_FIRST = 0x06
    RDMA_WRITE_MIDDLE = 0x07
    RDMA_WRITE_LAST = 0x08
    RDMA_WRITE_LAST_WITH_IMMEDIATE = 0x09
    RDMA_WRITE_ONLY = 0x0A
    RDMA_WRITE_ONLY_WITH_IMMEDIATE = 0x0B
    RDMA_READ_REQUEST = 0x0C
    RDMA_READ_RESPONSE_FIRST = 0x0D
    RDMA_READ_RESPONSE_MIDDLE = 0x0E
    RDMA_READ_RESPONSE_LAST = 0x0F
    RDMA_READ_RESPONSE_ONLY = 0x10
    ACKNOWLEDGE = 0x11
    ATOMIC_ACKNOWLEDGE = 0x12
    COMPARE_SWAP = 0x13
    FETCH_ADD = 0x14
    SEND_LAST_WITH_INVALIDATE = 0x16
    SEND_ONLY_WITH_INVALIDATE = 0x17
    FLUSH = 0x1C
    ATOMIC_WRITE = 0x1D
    CNP = 0x81
    UD_SEND_ONLY = 0x64


class Place(IntEnum):
    """Where in its message a packet stands."""

    FIRST = 0
    MIDDLE = 1
    LAST = 2
    ONLY = 3


class Syndrome(IntEnum):
    """AETH syndromes: acknowledgement (unlimited credits) and the negative ones (vol. 1, 9.7.5.2.1)."""

    ACK = 0x1F
    RNR_NAK = 0x20
    """The low five bits are the RNR timer code."""
    NAK_SEQUENCE = 0x60
    NAK_INVALID_REQUEST = 0x61
    NAK_REMOTE_ACCESS = 0x62
    NAK_REMOTE_OPERATION = 0x63


# RNR NAK timer field in microseconds (InfiniBand specification vol. 1, table 45: code 0 is 655.36 ms).
RNR_TIMER_US = (
    655360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920,
    2560, 3840, 5120, 7680, 10240, 15360, 20480, 30720, 40960, 61440, 81920, 122880,
    163840, 245760, 327680, 491520,
)  # fmt: skip


def rnr_timer_ns(code: int) -> int:
    """The wait that an RNR NAK's five-bit `code` asks for."""
    return RNR_TIMER_US[code & 0x1F] * 1_000


def ack_timeout_ns(exponent: int) -> int | None:
    """The local ACK timeout: 4.096 us x 2^exponent (1 ... 31); 0 means that there is none."""
    return 4_096 << exponent if exponent else None
