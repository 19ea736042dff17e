"""Management datagrams of connection management (InfiniBand specification vol. 1, 12.6 and 13.4.2).

256 bytes each: a common header of 24, then the fields of the message, then its private data. REQ, MRA, REJ, REP, RTU,
DREQ and DREP as frozen values with `parse_mad` and `emit`. Private data that was parsed has its full length, filled up
with zeros: the datagram does not say how long it was. Alternate paths, extended transport types and the fields of
datagrams (Q_Key, EE contexts) are sent as zero and not read. Also the header that Linux rdma_cm puts before the private
data of a REQ (kernel `drivers/infiniband/core/cma.c`, struct cma_hdr).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from emul.wire.address import IPV4_ADDRESS_BYTES, address_bytes, gid_bytes

MAD_BYTES = 256
CM_Q_KEY = 0x8001_0000
_HEADER = struct.Struct("!BBBBHHQHHI")
# base version, management class, class version, method, status, class specific, transaction, attribute, reserved,
# modifier
_HEADER_BYTES = 24
_CM_CLASS = 0x07
_CM_CLASS_VERSION = 2
_METHOD_SEND = 0x03

REJECT_INFO_BYTES = 72
"""Room for additional information in a REJ."""
REQ_PRIVATE_BYTES = 92
REP_PRIVATE_BYTES = 196
RTU_PRIVATE_BYTES = 224
REJ_PRIVATE_BYTES = 148
DREQ_PRIVATE_BYTES = 220
DREP_PRIVATE_BYTES = 224
MRA_PRIVATE_BYTES = 222


class Attribute(IntEnum):
    """Attribute ids of the CM class."""

    REQ = 0x0010
    MRA = 0x0011
    REJ = 0x0012
    REP = 0x0013
    RTU = 0x0014
    DREQ = 0x0015
    DREP = 0x0016


class RejectReason(IntEnum):
    """Why a connection is refused (vol. 1, 12.6.7.2); those that are given here."""

    NO_QP = 1
    NO_RESOURCES = 3
    TIMEOUT = 4
    UNSUPPORTED = 5
    INVALID_COMM_ID = 6
    INVALID_SERVICE_ID = 8
    INVALID_TRANSPORT = 9
    STALE_CONNECTION = 10
    INVALID_GID = 12
    INVALID_MTU = 26
    CONSUMER = 28


class Answered(IntEnum):
    """Which message a REJ or MRA is about (vol. 1, 12.6.6 and 12.6.7)."""

    REQ = 0
    REP = 1
    OTHER = 2


RELIABLE_CONNECTION = 0
"""Transport service type of a REQ."""


@dataclass(frozen=True, slots=True)
class Req:
    """Request for communication. Timeouts are exponents of 4.096 us."""

    local_comm_id: int
    service_id: int
    local_qpn: int
    starting_psn: int
    """With which the receiver of this message begins (12.7.31): what its sender expects, not what it sends."""
    local_gid: bytes
    remote_gid: bytes
    path_mtu: int
    """As verbs encode it: 1 (256) ... 5 (4096)."""
    responder_resources: int = 1
    initiator_depth: int = 1
    remote_response_timeout: int = 14
    local_response_timeout: int = 14
    retry_count: int = 7
    rnr_retry_count: int = 7
    max_cm_retries: int = 7
    local_ack_timeout: int = 14
    p_key: int = 0xFFFF
    ca_guid: int = 0
    private_data: bytes = b""
    transport: int = RELIABLE_CONNECTION
    flow_control: int = 0
    """Whether the sender's receive queue gives credits."""
    srq: int = 0
    """Whether the sender's queue pair has a shared receive queue."""
    flow_label: int = 0
    traffic_class: int = 0
    hop_limit: int = 64

    def emit(self, transaction: int) -> bytes:
        """MAD_BYTES bytes. Raises ValueError for more than REQ_PRIVATE_BYTES of private data."""
        fixed = struct.pack(
            "!I4xQQ4xIIIIIHBBHH16s16sIBBBB",
            self.local_comm_id,
            self.service_id,
            self.ca_guid,
            0,
            self.local_qpn << 8 | self.responder_resources,
            self.initiator_depth,
            self.remote_response_timeout << 3 | self.transport << 1 | self.flow_control,
            self.starting_psn << 8 | self.local_response_timeout << 3 | self.retry_count,
            self.p_key,
            self.path_mtu << 4 | self.rnr_retry_count,
            self.max_cm_retries << 4 | self.srq << 3,
            0xFFFF,  # permissive LIDs, and a path that is not subnet local: RoCE is routed by its GIDs
            0xFFFF,
            self.local_gid,
            self.remote_gid,
            self.flow_label << 12,
            self.traffic_class,
            self.hop_limit,
            0,
            self.local_ack_timeout << 3,
        )
        return _emit(Attribute.REQ, transaction, fixed + bytes(44), self.private_data, REQ_PRIVATE_BYTES)

    @classmethod
    def parse_body(cls, body: bytes) -> Req:
        """From the 232 bytes after the common header."""
        (
            comm_id, service_id, guid, _, qpn_resources, depth, remote_timeout, psn_timeout, p_key, mtu_rnr, retries,
            _, _, local_gid, remote_gid, flow_label, traffic_class, hop_limit, _, ack_timeout,
        ) = struct.unpack_from("!I4xQQ4xIIIIIHBBHH16s16sIBBBB", body)  # fmt: skip
        return cls(
            local_comm_id=comm_id,
            service_id=service_id,
            local_qpn=qpn_resources >> 8,
            starting_psn=psn_timeout >> 8,
            local_gid=local_gid,
            remote_gid=remote_gid,
            path_mtu=mtu_rnr >> 4,
            responder_resources=qpn_resources & 0xFF,
            initiator_depth=depth & 0xFF,
            remote_response_timeout=remote_timeout >> 3 & 0x1F,
            local_response_timeout=psn_timeout >> 3 & 0x1F,
            retry_count=psn_timeout & 7,
            rnr_retry_count=mtu_rnr & 7,
            max_cm_retries=retries >> 4,
            local_ack_timeout=ack_timeout >> 3,
            p_key=p_key,
            ca_guid=guid,
            private_data=body[140 : 140 + REQ_PRIVATE_BYTES],
            transport=remote_timeout >> 1 & 3,
            flow_control=remote_timeout & 1,
            srq=retries >> 3 & 1,
            flow_label=flow_label >> 12,
            traffic_class=traffic_class,
            hop_limit=hop_limit,
        )


@dataclass(frozen=True, slots=True)
class Rep:
    """Reply to a request."""

    local_comm_id: int
    remote_comm_id: int
    local_qpn: int
    starting_psn: int
    responder_resources: int = 1
    initiator_depth: int = 1
    target_ack_delay: int = 0
    rnr_retry_count: int = 7
    ca_guid: int = 0
    private_data: bytes = b""
    flow_control: int = 0
    srq: int = 0

    def emit(self, transaction: int) -> bytes:
        """MAD_BYTES bytes."""
        fixed = struct.pack(
            "!IIIIIIBBBBQ",
            self.local_comm_id,
            self.remote_comm_id,
            0,
            self.local_qpn << 8,
            0,
            self.starting_psn << 8,
            self.responder_resources,
            self.initiator_depth,
            self.target_ack_delay << 3 | self.flow_control,
            self.rnr_retry_count << 5 | self.srq << 4,
            self.ca_guid,
        )
        return _emit(Attribute.REP, transaction, fixed, self.private_data, REP_PRIVATE_BYTES)

    @classmethod
    def parse_body(cls, body: bytes) -> Rep:
        """From the 232 bytes after the common header."""
        local, remote, _, qpn, _, psn, resources, depth, delay, rnr, guid = struct.unpack_from("!IIIIIIBBBBQ", body)
        private = body[36 : 36 + REP_PRIVATE_BYTES]
        return cls(
            local_comm_id=local,
            remote_comm_id=remote,
            local_qpn=qpn >> 8,
            starting_psn=psn >> 8,
            responder_resources=resources,
            initiator_depth=depth,
            target_ack_delay=delay >> 3,
            rnr_retry_count=rnr >> 5,
            ca_guid=guid,
            private_data=private,
            flow_control=delay & 1,
            srq=rnr >> 4 & 1,
        )


@dataclass(frozen=True, slots=True)
class Rtu:
    """Ready to use."""

    local_comm_id: int
    remote_comm_id: int
    private_data: bytes = b""

    def emit(self, transaction: int) -> bytes:
        """MAD_BYTES bytes."""
        fixed = struct.pack("!II", self.local_comm_id, self.remote_comm_id)
        return _emit(Attribute.RTU, transaction, fixed, self.private_data, RTU_PRIVATE_BYTES)

    @classmethod
    def parse_body(cls, body: bytes) -> Rtu:
        """From the 232 bytes after the common header."""
        local, remote = struct.unpack_from("!II", body)
        return cls(local, remote, body[8 : 8 + RTU_PRIVATE_BYTES])


@dataclass(frozen=True, slots=True)
class Rej:
    """Refusal of a message, as `Answered` numbers it."""

    local_comm_id: int
    remote_comm_id: int
    message: int
    reason: int
    private_data: bytes = b""
    info: bytes = b""
    """Additional reject information: at most REJECT_INFO_BYTES, what they are depends on the reason."""

    def emit(self, transaction: int) -> bytes:
        """MAD_BYTES bytes."""
        if len(self.info) > REJECT_INFO_BYTES:
            raise ValueError(f"REJ carries {REJECT_INFO_BYTES} bytes of information at the most, got {len(self.info)}")
        ids, length = (self.local_comm_id, self.remote_comm_id), len(self.info) << 1
        fixed = struct.pack("!IIBBH72s", *ids, self.message << 6, length, self.reason, self.info)
        return _emit(Attribute.REJ, transaction, fixed, self.private_data, REJ_PRIVATE_BYTES)

    @classmethod
    def parse_body(cls, body: bytes) -> Rej:
        """From the 232 bytes after the common header."""
        local, remote, message, length, reason = struct.unpack_from("!IIBBH", body)
        info = body[12 : 12 + min(length >> 1, REJECT_INFO_BYTES)]
        return cls(local, remote, message >> 6, reason, body[84 : 84 + REJ_PRIVATE_BYTES], info)


@dataclass(frozen=True, slots=True)
class Mra:
    """Message receipt acknowledgement: the answer takes longer, up to 4.096 us x 2^service_timeout."""

    local_comm_id: int
    remote_comm_id: int
    message: int
    service_timeout: int
    private_data: bytes = b""

    def emit(self, transaction: int) -> bytes:
        """MAD_BYTES bytes."""
        fixed = struct.pack(
            "!IIBB", self.local_comm_id, self.remote_comm_id, self.message << 6, self.service_timeout << 3
        )
        return _emit(Attribute.MRA, transaction, fixed, self.private_data, MRA_PRIVATE_BYTES)

    @classmethod
    def parse_body(cls, body: bytes) -> Mra:
        """From the 232 bytes after the common header."""
        local, remote, message, timeout = struct.unpack_from("!IIBB", body)
        return cls(local, remote, message >> 6, timeout >> 3, body[10 : 10 + MRA_PRIVATE_BYTES])


@dataclass(frozen=True, slots=True)
class Dreq:
    """Request to disconnect; `remote_qpn` is the receiver's."""

    local_comm_id: int
    remote_comm_id: int
    remote_qpn: int
    private_data: bytes = b""

    def emit(self, transaction: int) -> bytes:
        """MAD_BYTES bytes."""
        fixed = struct.pack("!III", self.local_comm_id, self.remote_comm_id, self.remote_qpn << 8)
        return _emit(Attribute.DREQ, transaction, fixed, self.private_data, DREQ_PRIVATE_BYTES)

    @classmethod
    def parse_body(cls, body: bytes) -> Dreq:
        """From the 232 bytes after the common header."""
        local, remote, qpn = struct.unpack_from("!III", body)
        return cls(local, remote, qpn >> 8, body[12 : 12 + DREQ_PRIVATE_BYTES])


@dataclass(frozen=True, slots=True)
class Drep:
    """Reply to a request to disconnect."""

    local_comm_id: int
    remote_comm_id: int
    private_data: bytes = b""

    def emit(self, transaction: int) -> bytes:
        """MAD_BYTES bytes."""
        fixed = struct.pack("!II", self.local_comm_id, self.remote_comm_id)
        return _emit(Attribute.DREP, transaction, fixed, self.private_data, DREP_PRIVATE_BYTES)

    @classmethod
    def parse_body(cls, body: bytes) -> Drep:
        """From the 232 bytes after the common header."""
        local, remote = struct.unpack_from("!II", body)
        return cls(local, remote, body[8 : 8 + DREP_PRIVATE_BYTES])


Message = Req | Rep | Rtu | Rej | Mra | Dreq | Drep
_PARSERS: dict[int, Callable[[bytes], Message]] = {
    Attribute.REQ: Req.parse_body,
    Attribute.REP: Rep.parse_body,
    Attribute.RTU: Rtu.parse_body,
    Attribute.REJ: Rej.parse_body,
    Attribute.MRA: Mra.parse_body,
    Attribute.DREQ: Dreq.parse_body,
    Attribute.DREP: Drep.parse_body,
}


def parse_mad(data: bytes) -> tuple[int, Message] | None:
    """Transaction id and message; None for anything but a whole CM message that is known here. What is reserved in it
    is not looked at. Never raises.
    """
    if len(data) != MAD_BYTES:
        return None
    base, management, version, method, _, _, transaction, attribute, _, _ = _HEADER.unpack_from(data)
    if (base, management, version, method) != (1, _CM_CLASS, _CM_CLASS_VERSION, _METHOD_SEND):
        return None
    parse = _PARSERS.get(attribute)
    return None if parse is None else (transaction, parse(data[_HEADER_BYTES:MAD_BYTES]))


def _emit(attribute: Attribute, transaction: int, fixed: bytes, private: bytes, private_bytes: int) -> bytes:
    if len(private) > private_bytes:
        raise ValueError(
            f"{attribute.name} carries {private_bytes} bytes of private data at the most, got {len(private)}"
        )
    header = _HEADER.pack(1, _CM_CLASS, _CM_CLASS_VERSION, _METHOD_SEND, 0, 0, transaction, attribute, 0, 0)
    return (header + fixed + private).ljust(MAD_BYTES, b"\0")


PS_TCP_SERVICE = 0x0106_0000
"""Service ids of rdma_cm's TCP port space are this | port (Linux `cma.c`, rdma_get_service_id)."""
_RDMA_CM_HEADER = struct.Struct("!BBH16s16s")
RDMA_CM_HEADER_BYTES = _RDMA_CM_HEADER.size
_RDMA_CM_VERSION = 0


def port_of(service_id: int) -> int | None:
    """The port that a service id of rdma_cm's TCP port space stands for; None for all other service ids."""
    return service_id & 0xFFFF if service_id & ~0xFFFF == PS_TCP_SERVICE else None


@dataclass(frozen=True, slots=True)
class RdmaCmHeader:
    """What Linux rdma_cm puts before the consumer's private data in a REQ: 36 bytes. Both addresses have four bytes
    (IPv4) or both sixteen (IPv6); `port` is the caller's.
    """

    port: int
    source: bytes
    target: bytes

    def emit(self) -> bytes:
        """RDMA_CM_HEADER_BYTES bytes; an IPv4 address stands in the last four of its sixteen."""
        version = 4 if len(self.source) == IPV4_ADDRESS_BYTES else 6
        source, target = self.source.rjust(16, b"\0"), self.target.rjust(16, b"\0")
        return _RDMA_CM_HEADER.pack(_RDMA_CM_VERSION, version << 4, self.port, source, target)

    @classmethod
    def parse(cls, data: bytes) -> RdmaCmHeader | None:
        """None where the data does not begin with an rdma_cm header of version 0 for IPv4 or IPv6."""
        if len(data) < RDMA_CM_HEADER_BYTES:
            return None
        version, ip_version, port, source, target = _RDMA_CM_HEADER.unpack_from(data)
        if version != _RDMA_CM_VERSION or ip_version >> 4 not in (4, 6):
            return None
        start = 12 if ip_version >> 4 == 4 else 0
        return cls(port, source[start:], target[start:])


def gid_of(address: str) -> bytes:
    """The 16 bytes of the GID of `address`: IPv6 as it is, IPv4 mapped. Raises ValueError."""
    return gid_bytes(address_bytes(address))
