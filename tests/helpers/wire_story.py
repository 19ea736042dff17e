"""Captures written by hand, frame by frame, with scapy: what a peer could have sent, right or wrong."""

from __future__ import annotations

from scapy.contrib.roce import AETH, BTH, CNPPadding
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lab.wire import layers
from lab.wire.analyzer import Report, analyze
from lab.wire.exchange import View

ADDRESSES = ("10.77.0.1", "10.77.0.2")
QPNS = (0x11, 0x22)
TICK_NS = 10_000
MTU = 1024
AT_SENDERS = View(at_senders=True, from_start=True)
ACK, RNR, NAK = 0x1F, 0x20, 0x60
OPCODES = {
    "SEND FIRST": 0x00, "SEND MIDDLE": 0x01, "SEND LAST": 0x02, "SEND": 0x04, "SEND IMM": 0x05, "WRITE FIRST": 0x06,
    "WRITE MIDDLE": 0x07, "WRITE LAST": 0x08, "WRITE": 0x0A, "READ": 0x0C, "RESPONSE FIRST": 0x0D,
    "RESPONSE MIDDLE": 0x0E, "RESPONSE LAST": 0x0F, "RESPONSE": 0x10, "ACK": 0x11, "ATOMIC ACK": 0x12, "CAS": 0x13,
    "ADD": 0x14, "FLUSH": 0x1C, "ATOMIC WRITE": 0x1D, "CNP": 0x81,
}  # fmt: skip


class Story:
    """A capture in the making. Side 0 asks, side 1 answers, unless it is said otherwise."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.now = 1_000_000

    def wait(self, duration_ns: int) -> Story:
        """Nothing happens for so long."""
        self.now += duration_ns
        return self

    def put(
        self, opcode: str | int, psn: int, extended: Packet | None = None, size: int = 0, *, side: int = 0,
        ack: bool = False, port: int | None = None, ecn: int = 0, pad: int | None = None, **bth: int,
    ) -> Story:  # fmt: skip
        """One packet with `size` bytes of payload."""
        number = OPCODES[opcode] if isinstance(opcode, str) else opcode
        padding = -size % 4 if pad is None else pad
        frame = (
            Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
            / IP(src=ADDRESSES[side], dst=ADDRESSES[1 - side], flags="DF", id=0, tos=ecn)
            / UDP(sport=port or 0xC000 + side, dport=4791, chksum=0)
            / BTH(opcode=number, dqpn=QPNS[1 - side], psn=psn & 0xFFFFFF, ackreq=int(ack), padcount=padding, **bth)
        )
        if extended is not None:
            frame /= extended
        if size or padding:
            frame /= Raw(bytes(size + padding))
        self.frames.append((self.now, bytes(frame)))
        self.now += TICK_NS
        return self

    def ask(self, opcode: str, psn: int, size: int = 0, *, ack: bool | None = None, **how: int) -> Story:
        """A request; `length`, `va`, `key` of its RETH, `compare` and `swap` of an atomic."""
        length, va, key = how.pop("length", size), how.pop("va", 0x1000), how.pop("key", 7)
        extended: Packet | None = None
        if opcode in ("WRITE FIRST", "WRITE", "READ", "ATOMIC WRITE"):
            extended = layers.RETH(va=va, rkey=key, dlen=length)
        elif opcode == "FLUSH":
            extended = layers.FETH(plt=2) / layers.RETH(va=va, rkey=key, dlen=length)
        elif opcode in ("CAS", "ADD"):
            extended = layers.AtomicETH(va=va, rkey=key, swapadd=1)
        elif opcode == "SEND IMM":
            extended = layers.ImmDt(immdata=1)
        ends = not opcode.endswith(("FIRST", "MIDDLE"))
        return self.put(opcode, psn, extended, size, ack=ends if ack is None else ack, **how)

    def answer(self, opcode: str, psn: int, msn: int = 0, syndrome: int = ACK, size: int = 0, **how: int) -> Story:
        """An answer of side 1."""
        extended: Packet | None = None
        if opcode != "RESPONSE MIDDLE":
            extended = AETH(syndrome=syndrome, msn=msn & 0xFFFFFF)
        if opcode == "ATOMIC ACK":
            extended /= layers.AtomicAckETH(origdata=how.pop("original", 0))
        return self.put(opcode, psn, extended, size, side=1, **how)

    def notify(self, *, becn: int = 1) -> Story:
        """A congestion notification of side 1."""
        return self.put("CNP", 0, CNPPadding(), side=1, becn=becn)

    def judge(self, view: View = AT_SENDERS) -> Report:
        """What the analyzer says."""
        return analyze(self.frames, view)
