"""Judges a capture: takes its frames apart, sorts them into connections, applies the rules of both sides to each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from lab.wire.answers import Answers
from lab.wire.connections import Connection, Flow, Sorter
from lab.wire.exchange import Exchange, View
from lab.wire.findings import RULES, Finding, Findings
from lab.wire.packets import REQUESTS, RESPONSES, Kind, Packet, Unreadable, address_name, parse
from lab.wire.requests import Requests

_CNP_BYTES = 16
_TIMEOUT_UNIT_NS = 4_096
_NO_CONNECTION = "no connection"


@dataclass(frozen=True, slots=True)
class Summary:
    """One connection in figures."""

    name: str
    packets: int
    repetitions: int
    wraps: int
    judged: bool
    """Both directions are in the capture."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a capture showed."""

    frames: int
    packets: int
    lost: int
    """Frames that the capture missed: rules that need all of them were left out."""
    connections: tuple[Summary, ...]
    findings: tuple[Finding, ...]
    total: int
    """All findings, also those that were not kept."""
    exercised: dict[str, int]
    """How often each rule was looked at."""

    @property
    def not_exercised(self) -> list[str]:
        """Rules for which the capture had nothing to look at."""
        return [name for name in RULES if not self.exercised.get(name)]

    def to_json(self) -> dict[str, object]:
        """As `lab analyze --json` prints it."""
        return {
            "frames": self.frames,
            "packets": self.packets,
            "lost": self.lost,
            "connections": [asdict(connection) for connection in self.connections],
            "findings": [
                {
                    "frame": finding.frame, "at_s": finding.at / 1e9, "connection": finding.connection,
                    "rule": finding.rule.name, "source": finding.rule.source, "expected": finding.expected,
                    "found": finding.found,
                }
                for finding in self.findings
            ],
            "findings_total": self.total,
            "exercised": dict(sorted(self.exercised.items())),
            "not_exercised": self.not_exercised,
        }  # fmt: skip


def analyze(frames: Iterable[tuple[int, bytes]], view: View | None = None, *, lost: int = 0) -> Report:
    """Judges frames, each with its time in ns, in the order of their capture."""
    view = view or View()
    findings = Findings()
    sorter = Sorter()
    count = packets = 0
    for count, (at, frame) in enumerate(frames, 1):
        packet = parse(count, at, frame)
        if isinstance(packet, Unreadable):
            if packet.icrc_ok is False and not view.at_senders:
                continue  # damaged on its way
            findings.looked("packet.readable")
            findings.add("packet.readable", count, at, _NO_CONNECTION, "a packet", packet.reason)
        elif packet is not None and _is_sound(packet, view, findings):
            packets += 1
            sorter.add(packet)
    connections = sorter.connections()
    whole = view.complete and not lost
    summaries = [_judge_connection(connection, view, findings, whole=whole) for connection in connections]
    found = tuple(sorted(findings.found, key=lambda finding: finding.frame))
    return Report(count, packets, lost, tuple(summaries), found, findings.total, dict(findings.exercised))


def _is_sound(packet: Packet, view: View, findings: Findings) -> bool:
    """Rules for a packet by itself; False for one that its receiver drops."""
    name = f"{packet.source_name} -> {packet.target_name} QP {packet.qpn:#x}"
    if packet.icrc_ok is False:
        # Where frames may be damaged before the tap, that is nobody's fault.
        if view.at_senders:
            findings.judge("packet.icrc", False, packet, name, "the packet's own ICRC", "another one")
        return False
    if packet.icrc_ok:
        findings.looked("packet.icrc")
    if not findings.judge(
        "packet.readable", packet.payload >= 0, packet, name, f"all of {packet.shape.name}", "fewer bytes"
    ):
        return False
    findings.judge("packet.version", packet.version == 0, packet, name, "version 0", f"version {packet.version}")
    findings.judge(
        "packet.pad", packet.pad == -packet.payload % 4, packet, name, f"{-packet.payload % 4} bytes of padding",
        f"{packet.pad}",
    )  # fmt: skip
    if not packet.shape.payload:
        findings.judge(
            "packet.size", packet.payload == 0, packet, name, f"no payload in {packet.shape.name}",
            f"{packet.payload} bytes",
        )  # fmt: skip
    return packet.version == 0


def _judge_connection(connection: Connection, view: View, findings: Findings, *, whole: bool) -> Summary:
    packets = connection.packets()
    _judge_ports(connection, packets, findings)
    exchanges: list[Exchange] = []
    if whole and (connection.mtu() or view.mtu or not connection.needs_mtu()):
        exchanges = _judge_exchanges(connection, packets, view, findings)
        _judge_notifications(connection, packets, view, findings)
    return Summary(
        connection.name, len(packets), sum(exchange.repetitions for exchange in exchanges),
        sum(exchange.wraps for exchange in exchanges), bool(exchanges) and connection.flows[1] is not None,
    )  # fmt: skip


def _judge_ports(connection: Connection, packets: list[Packet], findings: Findings) -> None:
    ports: dict[bytes, int] = {}
    for packet in packets:
        if packet.shape.kind is not Kind.NOTIFICATION:
            first = ports.setdefault(packet.source, packet.source_port)
            findings.judge(
                "packet.port", packet.source_port == first, packet, connection.name, f"source port {first}",
                f"{packet.source_port}",
            )  # fmt: skip


def _judge_exchanges(
    connection: Connection, packets: list[Packet], view: View, findings: Findings
) -> list[Exchange]:
    there, back = connection.flows
    mtu = connection.mtu() or view.mtu
    asked = _exchange(connection, there, back, view, findings, mtu)
    answered = _exchange(connection, back, there, view, findings, mtu)
    exchanges = (asked, answered)
    requesters = tuple(Requests(exchange) for exchange in exchanges)
    responders = tuple(Answers(exchange) for exchange in exchanges)
    for packet in packets:
        side = 0 if (packet.source, packet.qpn) == (there.source, there.qpn) else 1
        kind = packet.shape.kind
        if kind in REQUESTS or kind in RESPONSES:
            # What a side answers are the other one's requests: its NAK for an error ends both of its roles.
            failed = responders[1 - side].failed
            if failed is not None and view.at_senders:
                _judge_silence(failed, packet, exchanges[side], findings)
        if kind in REQUESTS:
            if requesters[side].on_packet(packet):
                responders[0].failed = responders[1].failed = None  # connected anew
        elif kind in RESPONSES:
            responders[1 - side].on_packet(packet)
    return list(exchanges)


def _judge_silence(failed: Packet, packet: Packet, exchange: Exchange, findings: Findings) -> None:
    if packet.shape.kind in REQUESTS and exchange.is_far(packet.psn):
        return
    findings.judge(
        "nak.final", False, packet, exchange.name, f"nothing after the NAK in frame {failed.number}",
        packet.shape.name,
    )  # fmt: skip


def _exchange(
    connection: Connection, requests: Flow | None, answers: Flow | None, view: View, findings: Findings, mtu: int | None
) -> Exchange:
    exchange = Exchange(connection.name, view, findings, mtu, answers_seen=answers is not None)
    # What CM tells of the requester is what it tells of the queue pair that gets the answers.
    told = answers.receiver if answers is not None else None
    if told is not None:
        exchange.begun = True
        if told.retry_count is not None:
            exchange.retry_count = told.retry_count
        if told.ack_timeout:
            exchange.ack_timeout_ns = _TIMEOUT_UNIT_NS << told.ack_timeout
        exchange.restart(told.starting_psn)
    return exchange


def _judge_notifications(connection: Connection, packets: list[Packet], view: View, findings: Findings) -> None:
    """A switch marks only what permits it; a notification where nothing did so has no cause."""
    capable: set[bytes] = set()
    for packet in packets:
        if packet.shape.kind is Kind.NOTIFICATION:
            findings.judge(
                "cnp.form", packet.becn and packet.payload == 0, packet, connection.name,
                f"BECN and {_CNP_BYTES} bytes", f"BECN {int(packet.becn)} and {_CNP_BYTES + packet.payload} bytes",
            )  # fmt: skip
            if not view.may_mark:
                findings.judge(
                    "cnp.cause", packet.target in capable, packet, connection.name,
                    f"a packet with ECN from {address_name(packet.target)} before", "none",
                )  # fmt: skip
        elif packet.ecn:
            capable.add(packet.source)
