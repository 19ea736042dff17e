"""Scapy layers for the InfiniBand headers that scapy.contrib.roce lacks, bound to their opcodes both ways.

Importing this module teaches scapy to build and to dissect RETH, AtomicETH, AtomicAckETH, ImmDt, IETH, DETH and FETH,
the AETH of READ responses and atomic acknowledgements, and the names of the opcodes that it doesn't know. Written in
scapy's manner, so that it could be offered there; field names are scapy's (lower case, short). Header layouts:
InfiniBand specification vol. 1, 9.3; FETH from annex A19 (memory placement extensions).

    Ether()/IP()/UDP(dport=4791, chksum=0)/BTH(opcode=opcode("RC", "RDMA_WRITE_ONLY")[0])/RETH(va=0x1000, rkey=7,
    dlen=4)/b"data"
"""

# ruff: noqa: RUF012 - scapy wants plain class attributes

from __future__ import annotations

from typing import Any

from scapy.contrib.roce import AETH, BTH, opcode
from scapy.fields import BitEnumField, FlagsField, IntField, XBitField, XByteField, XIntField, XLongField
from scapy.packet import Packet, bind_bottom_up, bind_layers

SEND_LAST_WITH_INVALIDATE = 0x16
SEND_ONLY_WITH_INVALIDATE = 0x17
FLUSH = 0x1C
ATOMIC_WRITE = 0x1D
ATOMIC_ACKNOWLEDGE = opcode("RC", "ATOMIC_ACKNOWLEDGE")[0]
_MORE_OPCODES = {
    SEND_LAST_WITH_INVALIDATE: "RC_SEND_LAST_WITH_INVALIDATE",
    SEND_ONLY_WITH_INVALIDATE: "RC_SEND_ONLY_WITH_INVALIDATE",
    FLUSH: "RC_FLUSH",
    ATOMIC_WRITE: "RC_ATOMIC_WRITE",
}


class ImmDt(Packet):
    """Immediate data, 4 bytes."""

    name = "ImmDt"
    fields_desc = [XIntField("immdata", 0)]

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("ImmDt %ImmDt.immdata%"))


class IETH(Packet):
    """Invalidate extended transport header, 4 bytes."""

    name = "IETH"
    fields_desc = [XIntField("rkey", 0)]

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("IETH rkey %IETH.rkey%"))


class RETH(Packet):
    """RDMA extended transport header, 16 bytes."""

    name = "RETH"
    fields_desc = [XLongField("va", 0), XIntField("rkey", 0), IntField("dlen", 0)]

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """Immediate data follows in the one opcode that has both."""
        if isinstance(self.underlayer, BTH) and self.underlayer.opcode in _WRITE_ONLY_WITH_IMMEDIATE:
            return ImmDt
        return super().guess_payload_class(payload)

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("RETH va %RETH.va% rkey %RETH.rkey% length %RETH.dlen%"))


class AtomicETH(Packet):
    """Atomic extended transport header, 28 bytes."""

    name = "AtomicETH"
    fields_desc = [XLongField("va", 0), XIntField("rkey", 0), XLongField("swapadd", 0), XLongField("compare", 0)]

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("AtomicETH va %AtomicETH.va% rkey %AtomicETH.rkey%"))


class AtomicAckETH(Packet):
    """Atomic acknowledge extended transport header, 8 bytes; it follows an AETH."""

    name = "AtomicAckETH"
    fields_desc = [XLongField("origdata", 0)]

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("AtomicAckETH original value %AtomicAckETH.origdata%"))


class DETH(Packet):
    """Datagram extended transport header, 8 bytes."""

    name = "DETH"
    fields_desc = [XIntField("qkey", 0), XByteField("resv", 0), XBitField("sqpn", 0, 24)]

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """Immediate data follows in the one opcode that has both."""
        if isinstance(self.underlayer, BTH) and self.underlayer.opcode == _DATAGRAM_WITH_IMMEDIATE:
            return ImmDt
        return super().guess_payload_class(payload)

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("DETH source QP %DETH.sqpn%"))


class FETH(Packet):
    """Flush extended transport header, 4 bytes; a RETH follows."""

    name = "FETH"
    fields_desc = [
        XBitField("resv", 0, 26),
        BitEnumField("sel", 0, 2, {0: "range", 1: "region"}),
        FlagsField("plt", 0, 4, ["global", "persistent"]),
    ]

    def mysummary(self) -> str:
        """For summaries."""
        return str(self.sprintf("FETH %FETH.plt% of %FETH.sel%"))


def _after_aeth(self: Packet, payload: bytes) -> type[Packet]:
    """What follows an AETH: the original value in an atomic acknowledgement, data in a READ response."""
    if isinstance(self.underlayer, BTH) and self.underlayer.opcode == ATOMIC_ACKNOWLEDGE:
        return AtomicAckETH
    return Packet.guess_payload_class(self, payload)


def _name_opcodes() -> None:
    field: Any = next(field for field in BTH.fields_desc if field.name == "opcode")
    for number, name in _MORE_OPCODES.items():
        field.i2s[number] = name
        field.s2i[name] = number


def _bind(layer: type[Packet], transports: tuple[str, ...], *operations: str) -> None:
    # Dissecting only, but for the first one: what scapy builds by itself for `BTH()/LAYER()`.
    for position, (transport, operation) in enumerate((t, o) for t in transports for o in operations):
        bind = bind_layers if position == 0 and layer is not AETH else bind_bottom_up
        bind(BTH, layer, opcode=opcode(transport, operation)[0])


_WRITE_ONLY_WITH_IMMEDIATE = tuple(opcode(name, "RDMA_WRITE_ONLY_WITH_IMMEDIATE")[0] for name in ("RC", "UC"))
_DATAGRAM_WITH_IMMEDIATE = opcode("UD", "SEND_ONLY_WITH_IMMEDIATE")[0]
_name_opcodes()
_bind(RETH, ("RC", "UC"), "RDMA_WRITE_ONLY", "RDMA_WRITE_FIRST", "RDMA_WRITE_ONLY_WITH_IMMEDIATE")
_bind(ImmDt, ("RC", "UC"), "SEND_ONLY_WITH_IMMEDIATE", "SEND_LAST_WITH_IMMEDIATE", "RDMA_WRITE_LAST_WITH_IMMEDIATE")
_bind(AETH, ("RC",), "RDMA_READ_RESPONSE_FIRST", "RDMA_READ_RESPONSE_LAST", "RDMA_READ_RESPONSE_ONLY")
_bind(AETH, ("RC",), "ATOMIC_ACKNOWLEDGE")
_bind(AtomicETH, ("RC",), "COMPARE_SWAP", "FETCH_ADD")
_bind(DETH, ("UD",), "SEND_ONLY", "SEND_ONLY_WITH_IMMEDIATE")
bind_bottom_up(BTH, RETH, opcode=opcode("RC", "RDMA_READ_REQUEST")[0])
bind_bottom_up(BTH, RETH, opcode=ATOMIC_WRITE)
bind_layers(BTH, IETH, opcode=SEND_ONLY_WITH_INVALIDATE)
bind_bottom_up(BTH, IETH, opcode=SEND_LAST_WITH_INVALIDATE)
bind_layers(BTH, FETH, opcode=FLUSH)
bind_layers(FETH, RETH)
setattr(AETH, "guess_payload_class", _after_aeth)  # noqa: B010 - what a patch to scapy.contrib.roce would say in its class
