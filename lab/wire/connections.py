"""Which packets belong to one connection.

A packet of a reliable connection names the receiver's queue pair alone. A `Flow` is what goes from one address to one
queue pair of another; two flows make a connection. Connection management (REQ, REP) tells which; else it shows in the
PSNs: what one flow acknowledges, the other has sent.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from lab.wire.packets import (
    CM_QPN,
    MTUS,
    REQUESTS,
    RESPONSES,
    Kind,
    Packet,
    Place,
    address_name,
)

SAMPLES_MAX = 256
"""Answers of a flow that are compared with each flow that may be their cause."""
_MAD_BYTES, _HEADER_BYTES = 256, 24
_CM_CLASS, _ATTRIBUTE_REQ, _ATTRIBUTE_REP = 0x07, 0x10, 0x13
_WORD = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What connection management tells of one side."""

    address: bytes
    qpn: int
    starting_psn: int
    """With which it begins."""
    mtu: int | None = None
    retry_count: int | None = None
    ack_timeout: int | None = None
    """Exponent of 4.096 us."""


@dataclass(slots=True)
class Flow:
    """What one address sent to one queue pair of another, in a capture's order."""

    source: bytes
    target: bytes
    qpn: int
    packets: list[Packet] = field(default_factory=list)
    call: int | None = None
    """The connection as CM knows it."""
    receiver: Endpoint | None = None


@dataclass(slots=True)
class Connection:
    """Two flows that answer each other, or one whose other direction isn't in the capture."""

    flows: tuple[Flow, Flow | None]

    @property
    def name(self) -> str:
        """Both ends, each with its queue pair."""
        there, back = self.flows
        local = f"QP {back.qpn:#x}" if back is not None else "QP ?"
        return f"{address_name(there.source)} {local} <-> {address_name(there.target)} QP {there.qpn:#x}"

    def packets(self) -> list[Packet]:
        """Of both directions, in the capture's order."""
        found = [packet for flow in self.flows if flow is not None for packet in flow.packets]
        return sorted(found, key=lambda packet: packet.number)

    def mtu(self) -> int | None:
        """The path MTU: the size of most FIRST and MIDDLE packets; else what the REQ says; None if nothing tells."""
        sizes: dict[int, int] = defaultdict(int)
        for flow in self.flows:
            for packet in flow.packets if flow is not None else ():
                if packet.shape.place in (Place.FIRST, Place.MIDDLE) and packet.payload in MTUS:
                    sizes[packet.payload] += 1
        if sizes:
            return max(sizes, key=lambda size: sizes[size])
        told = [flow.receiver.mtu for flow in self.flows if flow is not None and flow.receiver is not None]
        return min((mtu for mtu in told if mtu is not None), default=None)

    def needs_mtu(self) -> bool:
        """Whether a READ may have taken more than one PSN."""
        packets = self.packets()
        single = max([MTUS[0], *(packet.payload for packet in packets)])
        return any(packet.shape.kind is Kind.READ and packet.length > single for packet in packets)


class Sorter:
    """Takes packets in a capture's order, gives connections."""

    def __init__(self) -> None:
        self._flows: dict[tuple[bytes, bytes, int], Flow] = {}
        self._done: list[Flow] = []
        self._callers: dict[tuple[bytes, int], tuple[int, Endpoint]] = {}
        """(caller's address, its communication id) to the call and what its REQ says."""
        self._accepted: set[int] = set()
        self._calls = 0

    def add(self, packet: Packet) -> None:
        """The next packet."""
        if packet.shape.kind is Kind.DATAGRAM or packet.qpn == CM_QPN:
            self._on_datagram(packet)
            return
        key = (packet.source, packet.target, packet.qpn)
        if key not in self._flows:
            self._flows[key] = Flow(*key)
        self._flows[key].packets.append(packet)

    def connections(self) -> list[Connection]:
        """All that was seen, in the order of their first packets."""
        flows = [flow for flow in [*self._done, *self._flows.values()] if flow.packets]
        found: list[Connection] = []
        waiting: dict[tuple[bytes, bytes], list[Flow]] = defaultdict(list)
        by_call: dict[int, Flow] = {}
        for flow in flows:
            if flow.call is None:
                waiting[flow.source, flow.target].append(flow)
            elif flow.call in by_call:
                found.append(Connection((by_call.pop(flow.call), flow)))
            else:
                by_call[flow.call] = flow
        for flow in by_call.values():
            waiting[flow.source, flow.target].append(flow)
        for source, target in sorted(waiting):
            if source < target or (target, source) not in waiting:
                found += _paired(waiting[source, target], waiting.get((target, source), []))
        return sorted(found, key=lambda connection: min(f.packets[0].number for f in connection.flows if f is not None))

    # -- connection management ----------------------------------------------------------------------------------------

    def _on_datagram(self, packet: Packet) -> None:
        mad = packet.data
        if len(mad) < _MAD_BYTES or mad[1] != _CM_CLASS:
            return
        attribute, body = int.from_bytes(mad[16:18], "big"), mad[_HEADER_BYTES:]
        local, remote = _WORD.unpack_from(body)[0], _WORD.unpack_from(body, 4)[0]
        if attribute == _ATTRIBUTE_REQ:
            self._on_req(packet, local, body)
        elif attribute == _ATTRIBUTE_REP:
            called = self._callers.get((packet.target, remote))
            if called is not None and called[0] not in self._accepted:
                call, caller = called
                self._accepted.add(call)
                # A message names the PSN with which its receiver begins (vol. 1, 12.7.31).
                accepting = Endpoint(packet.source, _word24(body, 12), caller.starting_psn, caller.mtu)
                caller = replace(caller, starting_psn=_word24(body, 20))
                self._begin(caller, accepting, call)
                self._begin(accepting, caller, call)

    def _on_req(self, packet: Packet, comm_id: int, body: bytes) -> None:
        code = body[50] >> 4
        caller = Endpoint(
            packet.source, _word24(body, 32), _word24(body, 44), 128 << code if 1 <= code <= len(MTUS) else None,
            body[47] & 7, body[95] >> 3,
        )  # fmt: skip
        known = self._callers.get((packet.source, comm_id))
        if known is None or known[1] != caller:
            self._calls += 1
            self._callers[packet.source, comm_id] = (self._calls, caller)

    def _begin(self, receiver: Endpoint, sender: Endpoint, call: int) -> None:
        """From now on what goes to this queue pair belongs to this call."""
        key = (sender.address, receiver.address, receiver.qpn)
        before = self._flows.pop(key, None)
        if before is not None:
            self._done.append(before)
        self._flows[key] = Flow(*key, call=call, receiver=receiver)


def _word24(body: bytes, offset: int) -> int:
    return int.from_bytes(body[offset : offset + 3], "big")


def _paired(there: Sequence[Flow], back: Sequence[Flow]) -> Iterable[Connection]:
    """Flows of two addresses, by how many answers of one are to what the other has sent."""
    if len(there) == len(back) == 1:
        return [Connection((there[0], back[0]))]
    sent = {id(flow): _sent(flow) for flow in (*there, *back)}
    scores = sorted(
        (
            (_score(one, sent[id(other)]) + _score(other, sent[id(one)]), -i, -j)
            for i, one in enumerate(there)
            for j, other in enumerate(back)
        ),
        reverse=True,
    )
    taken_there: dict[int, int] = {}
    taken_back: set[int] = set()
    for score, i, j in scores:
        if score > 0 and -i not in taken_there and -j not in taken_back:
            taken_there[-i] = -j
            taken_back.add(-j)
    found = [
        Connection((flow, back[taken_there[position]] if position in taken_there else None))
        for position, flow in enumerate(there)
    ]
    found += [Connection((flow, None)) for position, flow in enumerate(back) if position not in taken_back]
    return found


def _sent(flow: Flow) -> set[int]:
    return {packet.psn for packet in flow.packets if packet.shape.kind in REQUESTS}


def _score(flow: Flow, sent: set[int]) -> int:
    answered = {packet.psn for packet in flow.packets if packet.shape.kind in RESPONSES}
    step = max(1, len(answered) // SAMPLES_MAX)
    return sum(psn in sent for psn in sorted(answered)[::step])
