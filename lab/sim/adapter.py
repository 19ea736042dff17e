"""An adapter in virtual time: the real `emul.adapter.Adapter`, given its turns by the scheduler.

A turn takes what has arrived, what the host has posted and what is due, then puts what there is to send on the cable.
It comes a little after whatever caused it, as a real card and its process would.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from emul.adapter import FRAMES_PER_PULL_MAX, Adapter, PortFacts
from emul.clock import Instant
from emul.firmware import Identity
from emul.memory import Memory
from emul.node_memory import NodeMemory
from lab.plan import INTERFACE_MTU, PortPlan
from lab.sim.cable import Cable
from lab.sim.scheduler import Priority, Scheduler

FRAME_NS = 2_000
"""From the arrival of a frame to the turn that handles it."""
DOORBELL_NS = 1_000
PULLS_PER_TURN_MAX = 16


class SimAdapter:
    """One port and its card. `name` is the node's: cables call their ends so."""

    def __init__(
        self,
        port: PortPlan,
        *,
        node_id: int,
        cluster_key: str,
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
        self._identity = Identity(node_id, port.index, cluster_key.encode())
        self._node_memory = node_memory
        self._scheduler = scheduler
        self._rng = rng
        self._lateness = lateness
        self._wake_host = wake_host
        self._generation = 0
        self._arrived: list[bytes] = []
        self._turn_planned = False
        self._timer_at: int | None = None
        self._turns = 0
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
        self._arrived.clear()
        self._timer_at = None
        self._node_memory.set_adapter_alive(self.port.index, True)
        self.card.on_carrier(self._carrier())

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

    # -- what gives it a turn -----------------------------------------------------------------------------------------

    def receive(self, cable: Cable, frames: Sequence[bytes]) -> None:
        """CableEnd."""
        if self.card is not None:
            self._arrived.extend(frames)
            self._plan_turn(FRAME_NS)

    def on_carrier(self, up: bool) -> None:
        """CableEnd."""
        if self.card is not None:
            self.card.on_carrier(up)
            self._plan_turn(0)

    def on_doorbell(self) -> None:
        """The host rang, or used a slow verb."""
        self._plan_turn(DOORBELL_NS)

    def _plan_turn(self, delay_ns: int) -> None:
        if not self._turn_planned:
            self._turn_planned = True
            self._scheduler.after(delay_ns + self._lateness(), Priority.ADAPTER, self._turn)

    def _turn(self) -> None:
        self._turn_planned = False
        card, now = self.card, self._scheduler.now
        if card is None:
            return
        if self._arrived:
            self._take_frames(card, now)
        card.on_doorbell(now=now)
        deadline = card.next_deadline(now=now)
        if deadline is not None and deadline <= now:
            card.on_time(now=now)
        self._transmit(card)
        self._plan_timer(card)

    def _take_frames(self, card: Adapter, now: Instant) -> None:
        self._turns += 1
        self._node_memory.set_turn(self.port.index, 2 * self._turns - 1)
        arrived, self._arrived = self._arrived, []
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
        self._plan_turn(DOORBELL_NS)  # a long queue: the rest in the next turn

    def _plan_timer(self, card: Adapter) -> None:
        deadline = card.next_deadline(now=self._scheduler.now)
        if deadline is None or (self._timer_at is not None and self._timer_at <= deadline):
            return  # an earlier timer is on its way and will look again
        self._timer_at = deadline
        generation = self._generation
        self._scheduler.at(deadline, Priority.ADAPTER, lambda: self._on_timer(generation, deadline))

    def _on_timer(self, generation: int, at: int) -> None:
        if generation == self._generation and self._timer_at == at:
            self._timer_at = None
            self._plan_turn(0)

    def _carrier(self) -> bool:
        cable = self.cable
        return cable is not None and not cable.unplugged[cable.ends.index(self)]

    def _keep_counters(self, card: Adapter) -> None:
        for name, amount in card.counters().items():
            self._retired[name] = self._retired.get(name, 0) + amount
