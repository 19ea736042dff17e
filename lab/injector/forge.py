"""Frames that the injector makes up, built by scapy. Only frames that a rule matched come here; scapy is slow."""

from __future__ import annotations

from scapy.contrib.roce import AETH, BTH, opcode
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from emul.wire.headers import Syndrome
from lab.wire import layers

__all__ = ["forge", "layers", "nak_sequence"]

_ROCE_UDP_PORT = 4791
_SOURCE_PORT_FIRST = 0xC000


def forge(action: str, frame: bytes, qpn: int, msn: int) -> bytes:
    """The frame that `action` sends back to the sender of `frame`, whose queue pair is `qpn`. KeyError for others."""
    return _FORGERIES[action](frame, qpn, msn)


def nak_sequence(frame: bytes, qpn: int, msn: int) -> bytes:
    """A NAK with a sequence error whose expected PSN is that of the request in `frame`: the sender goes back to it.

    `msn` is what the receiver told last. Addresses are those of the request turned round; the ICRC is right.
    """
    request = Ether(frame)
    answer = (
        Ether(src=request.dst, dst=request.src)
        / IP(src=request[IP].dst, dst=request[IP].src, flags="DF", id=0, ttl=64)
        / UDP(sport=_SOURCE_PORT_FIRST | qpn & 0x3FFF, dport=_ROCE_UDP_PORT, chksum=0)
        / BTH(opcode=opcode("RC", "ACKNOWLEDGE")[0], pkey=request[BTH].pkey, migreq=1, dqpn=qpn, psn=request[BTH].psn)
        / AETH(syndrome=int(Syndrome.NAK_SEQUENCE), msn=msn)
    )
    return bytes(answer)


_FORGERIES = {"forge_nak_sequence": nak_sequence}
