"""An adapter in virtual time: the real `emul.adapter.Adapter`, given its turns by the scheduler.

A turn takes what has arrived, what the host has posted and what is due, then puts what there is to send on the cable.
It comes a little after whatever caused it, as a real card and its process would.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from emul.adapter import FRAMES_PER_PULL_MAX, Adapter, PortFacts
from emul.clock import MILLISECOND, Instant
from emul.firmware import Identity
from emul.hardware_faults import Report
from emul.memory import Memory
from emul.node_memory import NodeMemory
from lab.plan import INTERFACE_MTU, PortPlan
from lab.sim.cable import Cable
from lab.sim.scheduler import Priority, Scheduler

FRAME_NS = 2_000
"""From the arrival of a frame to the turn that handles it."""
DOORBELL_NS = 1_000
PULLS_PER_TURN_MAX = 16
LOOK_NS = 4 * MILLISECOND
"""How often an idle card looks at its carrier, and counts that (`emul.process.CARRIER_INTERVAL_IDLE_NS`)."""


class SimAdapter:
    """One port and its card. `name` is the node's: cables call their ends so."""

    def __init__(
        self,
        port: PortPlan,
        *,
        node_id: int,
        cluster_keys: tuple[str, ...],
        node_memory: NodeMemory,
        scheduler: Scheduler,
        rng: Callable[[int], random.Random],
        lateness: Callable[[], int],
        wake_host: Callable[[], None],
    ) -> None:
        self.name = port.node
        self.port = port
        self.cable: Cable | None = None
        self.card: Adapter | None = None
        """None while the adapter is dead."""
        self._held = -2
        """How many queue pairs there were when `has_changed` was last asked; -1: no card."""
        key, *accepted = (each.encode() for each in cluster_keys)
        self._own_identity = self._identity = Identity(node_id, port.index, key, tuple(accepted))
        self._node_memory = node_memory
        self._scheduler = scheduler
        self._rng = rng
        self._lateness = lateness
        self._wake_host = wake_host
        self._generation = 0
        self._rung = False
        """A doorbell, or a slow verb, since the last turn."""
        self._wanted_at: int | None = None
        """When the planned turn is due, and ..."""
        self._turn_at = -1
        """... when it comes, as a busy machine may be late."""
        self._timer_at: int | None = None
        self._turns = 0
        self._looks = 0
        self._retired: dict[str, int] = {}

    def start(self) -> None:
        """A new card in the slot: nothing of an earlier one is left but its counters."""
        self._generation += 1
        self.card = Adapter(
            port=PortFacts(self.port.mac, bytes(map(int, self.port.address.split("."))), INTERFACE_MTU),
            identity=self._identity,
            node_memory=self._node_memory,
            rng=self._rng(self._generation),
            allocate=lambda length, name: Memory.plain(length),
            release=Memory.close,
            wake_host=self._wake_host,
        )
        self._timer_at = None
        if self.cable is not None:
            self.cable.take(self)  # it came to an empty slot
        self._node_memory.set_adapter_alive(self.port.index, True)
        self.card.on_carrier(self._carrier())
        self._expect_next()

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What it proves itself with, and what else it accepts."""
        return (self._identity.cluster_key, *self._identity.also_accepted)

    def set_key(self, key: str) -> None:
        """The next card in this slot has another cluster key, and accepts no further ones unless it is the usual."""
        own = self._own_identity
        usual = key.encode() == own.cluster_key
        self._identity = own if usual else Identity(own.node_id, own.adapter_index, key.encode())

    def die(self) -> None:
        """The card answers nothing any more; the cable stays plugged in."""
        if self.card is not None:
            self._keep_counters(self.card)
        self.card = None
        self._node_memory.set_adapter_alive(self.port.index, False)

    def counters(self) -> dict[str, int]:
        """Of all cards that have been in this slot."""
        total = dict(self._retired)
        if self.card is not None:
            for name, amount in self.card.counters().items():
                total[name] = total.get(name, 0) + amount
        return total

    # -- hardware faults ----------------------------------------------------------------------------------------------

    def inject(self, fault: str, parameters: Mapping[str, object], *, number: int, seed: int) -> Report:
        """As `Adapter.inject`; an empty slot has nothing to fail."""
        if self.card is None:
            return {}
        report = self.card.inject(fault, parameters, now=self._scheduler.now, number=number, seed=seed)
        self._plan_turn(self._scheduler.now)
        return report

    def heal(self, number: int) -> Report:
        """As `Adapter.heal`; a card that replaced the one with the fault doesn't know it."""
        if self.card is None or not any(report["id"] == number for report in self.card.faults.report()):
            return {}
        healed = self.card.heal(number, now=self._scheduler.now)
        self._plan_turn(self._scheduler.now)
        return healed[0] if healed else self.fault(number)

    def fault(self, number: int) -> Report:
        """The report of a fault; {} where this card doesn't know it."""
        known = self.card.faults.report() if self.card is not None else []
        return next((report for report in known if report["id"] == number), {})

    def has_changed(self) -> bool:
        """Whether queue pairs came or went since this was last asked."""
        card = self.card
        held = -1 if card is None else len(card.queue_pairs())
        if held == self._held:
            return False
        self._held = held
        return True

    def look(self) -> None:
        """An idle card's look around; one whose turn is overdue waits for the machine to run it."""
        if self._wanted_at is None or self._wanted_at >= self._scheduler.now:
            self._count_look()

    def _count_look(self) -> None:
        if self.card is not None and not self.card.faults.hung:
            self._looks += 1
            self._node_memory.set_looks(self.port.index, self._looks)

    # -- what gives it a turn -----------------------------------------------------------------------------------------

    def expect(self, cable: Cable, at: int) -> None:
        """CableEnd."""
        if self._wanted_at is None:  # otherwise the planned turn looks when the next frames come
            self._plan_turn(at + FRAME_NS)

    def on_carrier(self, up: bool) -> None:
        """CableEnd."""
        if self.card is not None:
            self.card.on_carrier(up)
            self._plan_turn(self._scheduler.now)

    def on_doorbell(self) -> None:
        """The host rang, or used a slow verb."""
        if not self._rung:
            self._rung = True
            self._plan_turn(self._scheduler.now + DOORBELL_NS)

    def _plan_turn(self, at: int) -> None:
        """A turn at `at`; one that is planned for later comes so much earlier."""
        if self._wanted_at is None or at < self._wanted_at:
            self._wanted_at = at
            self._turn_at = at + self._lateness()
            self._scheduler.at(self._turn_at, Priority.ADAPTER, self._turn)

    def _turn(self) -> None:
        card, now = self.card, self._scheduler.now
        if now != self._turn_at:
            return  # another turn came instead
        self._wanted_at, self._turn_at = None, -1
        if card is None:
            return
        cable = self.cable
        if cable is not None:
            arrived = cable.take(self)
            if arrived:
                self._take_frames(card, arrived, now)
        if self._rung:
            self._rung = False
            card.on_doorbell(now=now)
        if self._timer_at is not None and self._timer_at <= now:
            self._timer_at = None
            card.on_time(now=now)
        self._transmit(card)
        self._count_look()
        self._plan_timer(card)
        self._expect_next()

    def _expect_next(self) -> None:
        at = self.cable.next_arrival(self) if self.cable is not None else None
        if at is not None:
            self._plan_turn(at + FRAME_NS)

    def _take_frames(self, card: Adapter, arrived: list[bytes], now: Instant) -> None:
        self._turns += 1
        self._node_memory.set_turn(self.port.index, 2 * self._turns - 1)
        for frame in arrived:
            card.on_frame(frame, now=now)
        self._node_memory.set_turn(self.port.index, 2 * self._turns)

    def _transmit(self, card: Adapter) -> None:
        for _ in range(PULLS_PER_TURN_MAX):
            frames = card.poll_transmit(now=self._scheduler.now)
            if not frames:
                return
            if self.cable is not None:
                self.cable.send(self, frames)
            if len(frames) < FRAMES_PER_PULL_MAX:
                return
        self._plan_turn(self._scheduler.now + DOORBELL_NS)  # a long queue: the rest in the next turn

    def _plan_timer(self, card: Adapter) -> None:
        deadline = card.next_deadline(now=self._scheduler.now)
        if deadline is None or (self._timer_at is not None and self._timer_at <= deadline):
            return  # an earlier timer is on its way and will look again
        self._timer_at = deadline
        generation = self._generation
        self._scheduler.at(deadline, Priority.ADAPTER, lambda: self._on_timer(generation, deadline))

    def _on_timer(self, generation: int, at: int) -> None:
        if generation == self._generation and self._timer_at == at:
            self._plan_turn(self._scheduler.now)

    def _carrier(self) -> bool:
        cable = self.cable
        return cable is not None and not cable.unplugged[cable.ends.index(self)]

    def _keep_counters(self, card: Adapter) -> None:
        for name, amount in card.counters().items():
            self._retired[name] = self._retired.get(name, 0) + amount
