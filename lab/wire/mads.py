"""Scapy layers for the management datagrams of connection management, and for rdma_cm's private data.

A datagram has 256 bytes: `MAD` (24), the message's fields, its private data as payload, zeros. Layouts: InfiniBand
specification vol. 1, 13.4.2 (common header) and 12.6 (messages); the header that Linux rdma_cm puts before a REQ's
private data is struct cma_hdr of the kernel's `drivers/infiniband/core/cma.c`.

    .../BTH(dqpn=1)/DETH(qkey=CM_QKEY, sqpn=1)/MAD(tid=7)/CM_REQ(lcommid=1, serviceid=0x1060001)/b"private"
"""

# ruff: noqa: RUF012 - scapy wants plain class attributes

from __future__ import annotations

from scapy.fields import (
    BitEnumField,
    BitField,
    ByteField,
    IPField,
    ShortEnumField,
    ShortField,
    StrFixedLenField,
    XByteField,
    XIntField,
    XLongField,
    XShortField,
)
from scapy.layers.inet6 import IP6Field  # type: ignore[attr-defined]
from scapy.packet import Packet, Raw, bind_layers

from lab.wire.layers import DETH

CM_QKEY = 0x8001_0000
CM_CLASS = 0x07
MAD_BYTES = 256
RDMA_CM_BYTES = 36
CM_ATTRIBUTES = {0x10: "REQ", 0x11: "MRA", 0x12: "REJ", 0x13: "REP", 0x14: "RTU", 0x15: "DREQ", 0x16: "DREP"}
REJECT_REASONS = {
    1: "no QP", 2: "no EEC", 3: "no resources", 4: "timeout", 5: "unsupported", 6: "invalid comm id",
    7: "invalid comm instance", 8: "invalid service id", 9: "invalid transport type", 10: "stale connection",
    11: "RDC absent", 12: "primary GID", 13: "primary LID", 14: "primary SL", 15: "primary traffic class",
    16: "primary hop limit", 17: "primary packet rate", 24: "port redirect", 26: "invalid path MTU",
    27: "insufficient responder resources", 28: "consumer", 29: "RNR count",
}  # fmt: skip
_MESSAGES = {0: "REQ", 1: "REP", 2: "other"}
_MTUS = {1: "256", 2: "512", 3: "1024", 4: "2048", 5: "4096"}


class MAD(Packet):
    """The common header of management datagrams; what stands on it is filled up to 256 bytes."""

    name = "MAD"
    fields_desc = [
        ByteField("basever", 1),
        XByteField("mgmtclass", CM_CLASS),
        ByteField("classver", 2),
        XByteField("method", 3),
        XShortField("status", 0),
        XShortField("classspec", 0),
        XLongField("tid", 0),
        ShortEnumField("attrid", 0, CM_ATTRIBUTES),
        XShortField("resv", 0),
        XIntField("attrmod", 0),
    ]

    def post_build(self, p: bytes, pay: bytes) -> bytes:
        """Filled up with zeros."""
        return (p + pay).ljust(MAD_BYTES, b"\0")

    def hashret(self) -> bytes:
        """Answers carry the transaction of what they answer."""
        return bytes(self.tid.to_bytes(8, "big"))

    def answers(self, other: Packet) -> int:
        """Whether it may be the answer to `other`."""
        if not isinstance(other, MAD) or (self.tid, self.mgmtclass) != (other.tid, other.mgmtclass):
            return 0
        return int(self.payload.answers(other.payload))

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("CM %MAD.attrid%"))


class _Message(Packet):
    ANSWERED: tuple[str, ...] = ()
    """Names of the messages that it answers."""

    def answers(self, other: Packet) -> int:
        """By the communication id that it names as the remote one."""
        return int(other.name in self.ANSWERED and self.getfieldval("rcommid") == other.getfieldval("lcommid"))

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """Private data."""
        return Raw


class CM_REQ(_Message):  # noqa: N801 - scapy's way of naming
    """Request for communication: 140 bytes, then 92 of private data."""

    name = "CM REQ"
    fields_desc = [
        XIntField("lcommid", 0), XIntField("resv1", 0), XLongField("serviceid", 0), XLongField("caguid", 0),
        XIntField("resv2", 0), XIntField("qkey", 0),
        BitField("lqpn", 0, 24), BitField("resources", 1, 8), BitField("leecn", 0, 24), BitField("depth", 1, 8),
        BitField("reecn", 0, 24), BitField("remotetimeout", 14, 5), BitField("transport", 0, 2), BitField("flow", 0, 1),
        BitField("psn", 0, 24), BitField("localtimeout", 14, 5), BitField("retries", 7, 3), XShortField("pkey", 0xFFFF),
        BitEnumField("mtu", 3, 4, _MTUS), BitField("rdc", 0, 1), BitField("rnrretries", 7, 3),
        BitField("cmretries", 7, 4), BitField("srq", 0, 1), BitField("exttransport", 0, 3),
        XShortField("llid", 0xFFFF), XShortField("rlid", 0xFFFF), IP6Field("lgid", "::"), IP6Field("rgid", "::"),
        BitField("flowlabel", 0, 20), BitField("resv3", 0, 6), BitField("rate", 0, 6), ByteField("tclass", 0),
        ByteField("hoplimit", 64), BitField("sl", 0, 4), BitField("subnetlocal", 0, 1), BitField("resv4", 0, 3),
        BitField("acktimeout", 14, 5), BitField("resv5", 0, 3), StrFixedLenField("alternate", b"\0" * 44, 44),
    ]  # fmt: skip

    def answers(self, other: Packet) -> int:
        """It answers nothing."""
        return 0

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """rdma_cm's header where one is there (version 0, an IP version that exists), else plain private data."""
        if len(payload) >= RDMA_CM_BYTES and payload[0] == 0 and payload[1] in (0x40, 0x60):
            return RdmaCm if payload[1] == 0x40 else RdmaCm6
        return Raw

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("CM REQ service %CM_REQ.serviceid% QP %CM_REQ.lqpn% PSN %CM_REQ.psn%"))


class CM_MRA(_Message):  # noqa: N801
    """Message receipt acknowledgement: the answer takes longer."""

    name = "CM MRA"
    ANSWERED = ("CM REQ", "CM REP")
    fields_desc = [
        XIntField("lcommid", 0), XIntField("rcommid", 0), BitEnumField("message", 0, 2, _MESSAGES),
        BitField("resv1", 0, 6), BitField("timeout", 0, 5), BitField("resv2", 0, 3),
    ]  # fmt: skip


class CM_REJ(_Message):  # noqa: N801
    """Refusal: 84 bytes, then 148 of private data."""

    name = "CM REJ"
    ANSWERED = ("CM REQ", "CM REP")
    fields_desc = [
        XIntField("lcommid", 0), XIntField("rcommid", 0), BitEnumField("message", 0, 2, _MESSAGES),
        BitField("resv1", 0, 6), BitField("infolen", 0, 7), BitField("resv2", 0, 1),
        ShortEnumField("reason", 28, REJECT_REASONS), StrFixedLenField("info", b"\0" * 72, 72),
    ]  # fmt: skip

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("CM REJ %CM_REJ.reason%"))


class CM_REP(_Message):  # noqa: N801
    """Reply to a request: 36 bytes, then 196 of private data."""

    name = "CM REP"
    ANSWERED = ("CM REQ",)
    fields_desc = [
        XIntField("lcommid", 0), XIntField("rcommid", 0), XIntField("qkey", 0),
        BitField("lqpn", 0, 24), BitField("resv1", 0, 8), BitField("leecn", 0, 24), BitField("resv2", 0, 8),
        BitField("psn", 0, 24), BitField("resv3", 0, 8), ByteField("resources", 1), ByteField("depth", 1),
        BitField("ackdelay", 0, 5), BitField("failover", 0, 2), BitField("flow", 0, 1),
        BitField("rnrretries", 7, 3), BitField("srq", 0, 1), BitField("resv4", 0, 4), XLongField("caguid", 0),
    ]  # fmt: skip

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("CM REP QP %CM_REP.lqpn% PSN %CM_REP.psn%"))


class CM_RTU(_Message):  # noqa: N801
    """Ready to use: 8 bytes, then 224 of private data."""

    name = "CM RTU"
    ANSWERED = ("CM REP",)
    fields_desc = [XIntField("lcommid", 0), XIntField("rcommid", 0)]


class CM_DREQ(_Message):  # noqa: N801
    """Request to disconnect: 12 bytes, then 220 of private data."""

    name = "CM DREQ"
    fields_desc = [XIntField("lcommid", 0), XIntField("rcommid", 0), BitField("rqpn", 0, 24), BitField("resv", 0, 8)]


class CM_DREP(_Message):  # noqa: N801
    """Reply to a request to disconnect: 8 bytes, then 224 of private data."""

    name = "CM DREP"
    ANSWERED = ("CM DREQ",)
    fields_desc = [XIntField("lcommid", 0), XIntField("rcommid", 0)]


class RdmaCm(Packet):
    """rdma_cm's header before the consumer's private data of a REQ, addresses IPv4: 36 bytes."""

    name = "rdma_cm"
    fields_desc = [
        ByteField("version", 0), BitField("ipver", 4, 4), BitField("resv", 0, 4), ShortField("port", 0),
        StrFixedLenField("srcpad", b"\0" * 12, 12), IPField("src", "0.0.0.0"),
        StrFixedLenField("dstpad", b"\0" * 12, 12), IPField("dst", "0.0.0.0"),
    ]  # fmt: skip

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("rdma_cm %src%:%port% > %dst%"))


class RdmaCm6(Packet):
    """The same with IPv6 addresses."""

    name = "rdma_cm6"
    fields_desc = [
        ByteField("version", 0), BitField("ipver", 6, 4), BitField("resv", 0, 4), ShortField("port", 0),
        IP6Field("src", "::"), IP6Field("dst", "::"),
    ]  # fmt: skip


CM_MESSAGES = {0x10: CM_REQ, 0x11: CM_MRA, 0x12: CM_REJ, 0x13: CM_REP, 0x14: CM_RTU, 0x15: CM_DREQ, 0x16: CM_DREP}
bind_layers(DETH, MAD, qkey=CM_QKEY, sqpn=1)
for _number, _message in CM_MESSAGES.items():
    bind_layers(MAD, _message, mgmtclass=CM_CLASS, classver=2, attrid=_number)
