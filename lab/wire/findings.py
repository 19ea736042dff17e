"""The analyzer's rules by name, what it found against them, and how often it looked.

Sections are those of the InfiniBand specification vol. 1; "A17", "A19" its annexes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lab.wire.packets import Packet

FINDINGS_MAX = 200
"""Findings kept; further ones are counted."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must hold."""

    name: str
    sentence: str
    source: str


_RULES = (
    Rule("packet.readable", "a packet for RoCE's port has a known opcode and all headers of it", "9.2, 9.3"),
    Rule("packet.icrc", "the ICRC is that of the packet", "A17.3.3"),
    Rule("packet.version", "the transport header's version is 0", "9.2"),
    Rule("packet.pad", "the pad count makes the payload a multiple of four bytes", "9.2"),
    Rule("packet.size", "FIRST and MIDDLE carry a path MTU, LAST 1 byte to a path MTU, ONLY at most one", "9.4, 9.5"),
    Rule("packet.port", "the UDP source port of a queue pair never changes", "A17"),
    Rule("message.order", "FIRST, MIDDLE and LAST of one operation follow each other; LAST ends it", "9.4, 9.7.4"),
    Rule("message.length", "an RDMA WRITE carries as many bytes as its RETH says", "9.4.3"),
    Rule("message.ack_request", "an acknowledgement is asked for at a message's end and every 64 packets", "9.7.3"),
    Rule("request.psn", "a new PSN is the next one; a repetition doesn't leave out what isn't acknowledged", "9.7.2"),
    Rule("request.same", "a PSN is sent again as what it was, a READ as its missing rest", "9.7.6"),
    Rule("request.go_back", "what the requester knows to be acknowledged isn't sent again", "9.7.6"),
    Rule("retry.bound", "without any answer a requester gives up after seven repetitions", "9.7.6"),
    Rule("retry.timeout", "without an answer a repetition waits for the local ACK timeout", "9.7.6"),
    Rule("rnr.wait", "after an RNR NAK the requester waits at least the encoded time", "9.7.5.2.8"),
    Rule("rnr.bound", "a request refused for lack of a receive is repeated as often as rnr_retry says", "9.7.5.2.8"),
    Rule("rnr.cause", "each RNR NAK answers a copy of the request that it names, and progress needs another", "9.7.5"),
    Rule("ack.seen", "nothing is acknowledged that hasn't been sent, nor past a gap", "9.7.5"),
    Rule("ack.msn", "the MSN counts the completed messages", "9.7.7"),
    Rule("ack.msn_order", "the MSN never runs back", "9.7.7"),
    Rule("ack.syndrome", "the AETH's syndrome is one that exists, and credits once unlimited stay so", "9.7.5.2"),
    Rule("nak.cause", "a NAK answers a request that has been sent", "9.7.5.2"),
    Rule("nak.once", "a gap is told once", "9.7.5.2"),
    Rule("nak.silence", "after a NAK for a gap nothing from the gap on is answered before it is sent again", "9.7.5"),
    Rule("nak.final", "after a NAK for an error the queue pair is silent", "9.9"),
    Rule("read.response", "READ responses are what was asked for: PSNs, FIRST to LAST, lengths", "9.7.5.1"),
    Rule("read.order", "MIDDLE and LAST follow the response before them", "9.7.5.1"),
    Rule("read.answered", "a READ, atomic, FLUSH or ATOMIC WRITE has its own answer before what follows it", "9.7.5"),
    Rule("atomic.response", "an atomic is acknowledged by its own kind of packet", "9.7.5.1"),
    Rule("atomic.replay", "a repeated atomic is answered with the same original value", "9.4.5"),
    Rule("cnp.cause", "a congestion notification answers a packet that could be marked", "A17"),
    Rule("cnp.form", "a congestion notification has BECN set and 16 reserved bytes", "A17"),
)
RULES: dict[str, Rule] = {rule.name: rule for rule in _RULES}


@dataclass(frozen=True, slots=True)
class Finding:
    """A frame that breaks a rule."""

    rule: Rule
    frame: int
    """Its number in the capture, from 1."""
    at: int
    """ns."""
    connection: str
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"frame {self.frame} at {self.at / 1e9:.6f} s, {self.connection}: {self.rule.name} ({self.rule.sentence};"
            f" {self.rule.source}): expected {self.expected}, found {self.found}"
        )


@dataclass(slots=True)
class Findings:
    """Collects what breaks the rules, and counts what was looked at."""

    found: list[Finding] = field(default_factory=list)
    total: int = 0
    exercised: Counter[str] = field(default_factory=Counter)

    def judge(self, rule: str, holds: bool, packet: Packet, connection: str, expected: str, found: str) -> bool:
        """Counts a look at `rule`; keeps a finding where it doesn't hold. Gives `holds`."""
        self.exercised[rule] += 1
        if not holds:
            self.add(rule, packet.number, packet.at, connection, expected, found)
        return holds

    def looked(self, rule: str) -> None:
        """It holds here."""
        self.exercised[rule] += 1

    def add(self, rule: str, number: int, at: int, connection: str, expected: str, found: str) -> None:
        """Keeps a finding."""
        self.total += 1
        if len(self.found) < FINDINGS_MAX:
            self.found.append(Finding(RULES[rule], number, at, connection, expected, found))
