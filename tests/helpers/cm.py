"""Connection machines without adapters: queue pairs are states in a dictionary, the wire is a list."""

from __future__ import annotations

import random

from emul.clock import MILLISECOND, Instant
from emul.cm_events import CmEvent, CmEventType
from emul.cm_machine import Accept, ConnectionMachine, Reject, State
from emul.vocabulary import MTU, QPAttr, QPState
from emul.wire.address import gid_bytes
from emul.wire.mad import Message, RejectReason, Req, parse_mad

HERE, THERE = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
SERVICE = 0x1234_5678
FIRMWARE_SERVICE = 0x9ABC
FIRMWARE_QPN = 0x500


class Desk:
    """One machine with its surroundings: a `QpControl`, and an `Acceptor` that takes FIRMWARE_SERVICE."""

    def __init__(self, address: bytes = HERE, *, seed: int = 1, mtu: MTU = MTU.MTU_1024) -> None:
        self.now = Instant(MILLISECOND)
        self.address = address
        self.mtu = mtu
        self.qps: dict[int, QPState] = {}
        self.refuses: set[QPState] = set()
        """States into which no queue pair goes."""
        self.proves = True
        self.firmware_qpn = FIRMWARE_QPN
        self.ended: list[int] = []
        self._psns = random.Random(f"psn/{seed}/{address.hex()}")
        self.machine = ConnectionMachine(
            source_for=lambda peer: address if len(peer) == len(address) else None,
            gids=frozenset({gid_bytes(address)}),
            guid=int.from_bytes(address, "big"),
            rng=random.Random(f"{seed}/{address.hex()}"),
            acceptor=self,
            control=self,
        )

    # QpControl

    def path_mtu_max(self) -> MTU:
        return self.mtu

    def ready_to_receive(self, qpn: int, attr: QPAttr, address: bytes, *, now: Instant) -> bool:
        return self._move(qpn, QPState.RTR)

    def ready_to_send(self, qpn: int, attr: QPAttr, *, now: Instant) -> bool:
        return self._move(qpn, QPState.RTS)

    def broken(self, qpn: int, *, now: Instant) -> None:
        if qpn in self.qps:
            self.qps[qpn] = QPState.ERR

    def fresh_psn(self) -> int:
        return self._psns.randrange(1 << 24)

    def _move(self, qpn: int, state: QPState) -> bool:
        if state in self.refuses:
            return False
        self.qps[qpn] = state
        return True

    # Acceptor

    def on_request(self, number: int, req: Req, source: bytes, *, now: Instant) -> Accept | Reject:
        if req.service_id != FIRMWARE_SERVICE:
            return Reject(RejectReason.INVALID_SERVICE_ID)
        self.firmware_qpn += 1
        self.qps[self.firmware_qpn] = QPState.INIT
        return Accept(self.firmware_qpn, 0x321, b"from the firmware")

    def on_established(self, number: int, private_data: bytes, *, now: Instant) -> bool:
        return self.proves

    def on_ended(self, number: int) -> None:
        self.ended.append(number)

    # what a test does with it

    def connect(self, qpn: int = 0x11, *, to: bytes = THERE, service: int = SERVICE, at_once: bool = False) -> int:
        self.qps[qpn] = QPState.INIT
        return self.machine.connect(qpn, to, service, b"", QPAttr(timeout=8), at_once=at_once, now=self.now)

    def accept(self, number: int, qpn: int = 0x22) -> None:
        self.qps[qpn] = QPState.INIT
        self.machine.accept(number, qpn, b"welcome", QPAttr(), now=self.now)

    def deliver(self, message: Message, *, source: bytes = THERE, transaction: int = 5) -> None:
        self.machine.on_message(transaction, message, source, now=self.now)

    def sent(self) -> list[Message]:
        found = [parse_mad(mad) for _, mad in self.machine.out]
        self.machine.out.clear()
        return [each[1] for each in found if each is not None]

    def events(self) -> list[CmEvent]:
        events, self.machine.events = self.machine.events, []
        return events

    def kinds(self) -> list[CmEventType]:
        return [event.kind for event in self.events()]

    def pass_time(self, nanoseconds: int) -> None:
        """Step by step, as a driver does."""
        end = Instant(self.now + nanoseconds)
        while (at := self.machine.next_at) is not None and at <= end:
            self.now = Instant(max(self.now, at))
            self.machine.on_time(now=self.now)
        self.now = end

    def state(self, number: int) -> State | None:
        return self.machine.state(number)
