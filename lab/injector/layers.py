"""Scapy layers for the InfiniBand headers that scapy.contrib.roce lacks, bound to their opcodes both ways.

Importing this module teaches scapy to build and to dissect RETH, AtomicETH, ImmDt, IETH, DETH and the AETH of READ
responses and atomic acknowledgements. Written in scapy's manner, so that it could be offered there; field names are
scapy's (lower case, short). Header layouts: InfiniBand specification vol. 1, 9.3.

    Ether()/IP()/UDP(dport=4791, chksum=0)/BTH(opcode=opcode("RC", "RDMA_WRITE_ONLY")[0])/RETH(va=0x1000, rkey=7,
    dlen=4)/b"data"
"""

# ruff: noqa: RUF012 - scapy wants plain class attributes

from __future__ import annotations

from scapy.contrib.roce import AETH, BTH, opcode
from scapy.fields import IntField, XBitField, XByteField, XIntField, XLongField
from scapy.packet import Packet, bind_layers

_INVALIDATE_OPCODES = (0x16, 0x17)


class ImmDt(Packet):
    """Immediate data, 4 bytes."""

    name = "ImmDt"
    fields_desc = [XIntField("immdata", 0)]


class IETH(Packet):
    """Invalidate extended transport header, 4 bytes."""

    name = "IETH"
    fields_desc = [XIntField("rkey", 0)]


class RETH(Packet):
    """RDMA extended transport header, 16 bytes."""

    name = "RETH"
    fields_desc = [XLongField("va", 0), XIntField("rkey", 0), IntField("dlen", 0)]

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """Immediate data follows in the one opcode that has both."""
        if isinstance(self.underlayer, BTH) and self.underlayer.opcode in _WRITE_ONLY_WITH_IMMEDIATE:
            return ImmDt
        return super().guess_payload_class(payload)


class AtomicETH(Packet):
    """Atomic extended transport header, 28 bytes."""

    name = "AtomicETH"
    fields_desc = [XLongField("va", 0), XIntField("rkey", 0), XLongField("swapadd", 0), XLongField("compare", 0)]


class AtomicAck(Packet):
    """AETH and AtomicAckETH, which always come together: 12 bytes."""

    name = "AtomicAck"
    fields_desc = [XByteField("syndrome", 0), XBitField("msn", 0, 24), XLongField("original", 0)]


class DETH(Packet):
    """Datagram extended transport header, 8 bytes."""

    name = "DETH"
    fields_desc = [XIntField("qkey", 0), XByteField("resv", 0), XBitField("sqpn", 0, 24)]


def _bind(layer: type[Packet], transports: tuple[str, ...], *operations: str) -> None:
    for transport in transports:
        for operation in operations:
            bind_layers(BTH, layer, opcode=opcode(transport, operation)[0])


_WRITE_ONLY_WITH_IMMEDIATE = tuple(opcode(name, "RDMA_WRITE_ONLY_WITH_IMMEDIATE")[0] for name in ("RC", "UC"))
_bind(RETH, ("RC", "UC"), "RDMA_WRITE_FIRST", "RDMA_WRITE_ONLY", "RDMA_WRITE_ONLY_WITH_IMMEDIATE")
_bind(RETH, ("RC",), "RDMA_READ_REQUEST")
_bind(ImmDt, ("RC", "UC"), "SEND_LAST_WITH_IMMEDIATE", "SEND_ONLY_WITH_IMMEDIATE", "RDMA_WRITE_LAST_WITH_IMMEDIATE")
_bind(AETH, ("RC",), "RDMA_READ_RESPONSE_FIRST", "RDMA_READ_RESPONSE_LAST", "RDMA_READ_RESPONSE_ONLY")
_bind(AtomicAck, ("RC",), "ATOMIC_ACKNOWLEDGE")
_bind(AtomicETH, ("RC",), "COMPARE_SWAP", "FETCH_ADD")
_bind(DETH, ("UD",), "SEND_ONLY", "SEND_ONLY_WITH_IMMEDIATE")
for _number in _INVALIDATE_OPCODES:
    bind_layers(BTH, IETH, opcode=_number)
