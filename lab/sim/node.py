"""A node in virtual time: its adapters, its memories that survive the host, and the host itself.

The host is the real `ccm.host.Host`. It runs a little after whatever wakes it, now and then a good deal later, as a
process on a busy machine does.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ccm.history import HEADER_BYTES, RECORD_BYTES, HistoryWriter
from ccm.host import Host
from emul.clock import MILLISECOND
from emul.errors import DeviceGone
from emul.local import EmptySlot, LocalDevice
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.verbs import Context
from lab.plan import Plan
from lab.sim.adapter import LOOK_NS, SimAdapter
from lab.sim.pace import Pace
from lab.sim.scheduler import Priority, Scheduler, What
from lab.sim.streams import Streams
from lab.world import HostUnreachable

BOOT_OFFSET_NS = 20 * MILLISECOND
"""Hosts start this far apart at the most."""
HISTORY_RECORDS = 300_000
_STATE = Path("sim")
"""Configurations name files; nothing here opens one."""


class SimNode:
    """One storage system."""

    def __init__(self, name: str, plan: Plan, scheduler: Scheduler, streams: Streams, pace: Pace) -> None:
        node = plan.topology.nodes[name]
        self.name = name
        self.memory = NodeMemory(Memory.plain(NODE_MEMORY_BYTES))
        self.nvram = Memory.plain(node.nvram_bytes)
        self.history = Memory.plain(HEADER_BYTES + HISTORY_RECORDS * RECORD_BYTES)
        self.host: Host | None = None
        """None while the host is down."""
        self.paused = False
        self.journal: list[str] = []
        """Lines of the managers' journal, if the topology wants one."""
        self.present: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config
        """The configuration with those partners alone that are members of the cluster."""
        self.after_turn: Callable[[], None] | None = None
        """Called when the host has run, so that what it wrote can be looked at."""
        self._number = node.id
        self._scheduler = scheduler
        self._streams = streams
        self._pace = pace
        self._config = plan.host_config(name, _STATE, seed=streams.number(f"host/{name}"))
        self._given = dict(self._config)
        self._rng = streams.stream(f"wake/{name}")
        self._boots = 0
        self._woken: list[int] = []
        """Adapters whose completion queues woke the host since its last turn."""
        self._look_everywhere = False
        self._due_at: int | None = None
        """When the planned turn is due, and ..."""
        self._turn_at = -1
        """... when it comes: a process needs a little to wake up, and now and then a good deal."""
        self._events: list[int] = []
        """Moments for which the scheduler has an event, the next one last: it arranges what is to come after it."""
        self._devices: dict[str, LocalDevice | EmptySlot] = {}
        self.adapters = {
            adapter: SimAdapter(
                plan.ports[name, adapter],
                node_id=node.id,
                cluster_keys=(plan.topology.cluster_key, *plan.topology.cluster_keys_accepted),
                node_memory=self.memory,
                scheduler=scheduler,
                rng=partial(_card_stream, streams, f"adapter/{name}.{adapter}"),
                lateness=partial(pace.lateness, streams.stream(f"turns/{name}.{adapter}")),
                wake_host=partial(self._wake_for, index),
            )
            for index, adapter in enumerate(node.adapters)
        }
        self._cards = list(self.adapters.values())

    def power_on(self) -> None:
        """Power comes: boot status, then the adapters; the host begins to boot within BOOT_OFFSET_NS."""
        self.memory.power_on()
        for adapter in self.adapters.values():
            adapter.start()
        self._scheduler.after(LOOK_NS, Priority.ADAPTER, self._look_around)
        offset = int(self._rng.random() * BOOT_OFFSET_NS)
        self._scheduler.after(offset, Priority.HOST, self.boot)

    def _look_around(self) -> None:
        for adapter in self.adapters.values():
            adapter.look()
        self._scheduler.after(LOOK_NS, Priority.ADAPTER, self._look_around)

    def boot(self) -> None:
        """The host starts, in a new incarnation."""
        self._boots += 1
        config = self.present(self._config)
        self.paused = False
        self._devices = {name: self._open(adapter) for name, adapter in self.adapters.items()}
        contexts = [Context(device) for device in self._devices.values()]
        seed = self._streams.number(f"host/{self.name}/{self._boots}")
        history = HistoryWriter(self.history)
        host = Host(
            config, contexts, self.memory, self.nvram, history, seed, reopen=self._reopen,
            journal=self.journal.append if self._config["journal"] else None,
        )  # fmt: skip
        self.host = host
        self._scheduler.trace(What.HOST, self._number, self._boots)
        host.start(self._scheduler.now)
        self._look()
        self.wake()

    def _open(self, adapter: SimAdapter) -> LocalDevice | EmptySlot:
        if adapter.card is None:
            return EmptySlot()
        return LocalDevice(adapter.card, on_doorbell=adapter.on_doorbell, clock=lambda: self._scheduler.now)

    def _reopen(self, index: int) -> Context:
        """A running host's new way to an adapter that was replaced. Raises DeviceGone while its slot is empty."""
        name = list(self.adapters)[index]
        if self.adapters[name].card is None:
            raise DeviceGone(errno.ENODEV, f"no card in slot {name} of {self.name}")
        device = self._devices[name] = self._open(self.adapters[name])
        return Context(device)

    def crash(self) -> None:
        """The host is gone at once; what it owns in the adapters stays until the next one attaches."""
        self.host = None
        self._scheduler.trace(What.HOST, self._number, 0)

    def start_anew(self, **config: object) -> None:
        """Another host is started, with some of its configuration changed (None: as it was); where that is its cluster
        key, with power off and on.
        """
        self.crash()
        self._config = {**self._config, **config} if None not in config.values() else dict(self._given)
        if "cluster_key" in config:
            for adapter in self.adapters.values():
                adapter.die()
                adapter.set_key(str(self._config["cluster_key"]))
                adapter.start()
        self.boot()

    def pause(self) -> None:
        """The host gets no turn any more."""
        self.paused = True

    def resume(self) -> None:
        """It goes on where it was."""
        self.paused = False
        self.wake()

    def lose_adapter(self, name: str) -> None:
        """The card dies; the host's calls into it fail from now on."""
        self.adapters[name].die()
        device = self._devices.get(name)
        if isinstance(device, LocalDevice):
            device.dead = True
        self.wake()

    def replace_adapter(self, name: str) -> None:
        """A new card; a running host opens it when it next looks for one."""
        self.adapters[name].start()
        self.wake()

    def control(self, request: Mapping[str, object]) -> dict[str, object]:
        """One request to the host's control interface. Raises HostUnreachable."""
        if self.host is None or self.paused:
            raise HostUnreachable(f"host {self.name} is {'paused' if self.host else 'down'}")
        reply = self.host.control(dict(request), self._scheduler.now)
        self._look()
        self.wake()
        return reply

    def _wake_for(self, index: int) -> None:
        """An adapter has completions or events for the host."""
        self._woken.append(index)
        if self.host is not None:
            self._plan_turn(self._scheduler.now)

    def has_changed(self) -> bool:
        """Whether queue pairs came or went in the adapters since this was last asked."""
        changed = False
        for adapter in self._cards:
            if adapter.has_changed():
                changed = True
        return changed

    # -- turns --------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: the host looks at everything."""
        self._look_everywhere = True
        if self.host is not None:
            self._plan_turn(self._scheduler.now)

    def _plan_turn(self, due_at: int) -> None:
        """A turn soon after `due_at`; one that is planned for later comes so much earlier."""
        due_at = max(due_at, self._scheduler.now)
        if self._due_at is None or due_at < self._due_at:
            self._due_at = due_at
            pace, rng = self._pace, self._rng
            delay = pace.wake_ns + int(rng.random() * pace.wake_jitter_ns) + pace.lateness(rng)
            self._turn_at = due_at + delay
            self._arrange()

    def _arrange(self) -> None:
        """An event for the planned turn, unless there is one before: most turns are planned anew before they come."""
        events = self._events
        if not events or self._turn_at < events[-1]:
            events.append(self._turn_at)
            self._scheduler.at(self._turn_at, Priority.HOST, self._turn)

    def _turn(self) -> None:
        host, now = self.host, self._scheduler.now
        self._events.pop()
        if now != self._turn_at:
            if self._due_at is not None:
                self._arrange()
            return  # another turn came instead, or this one was planned anew
        self._due_at, self._turn_at = None, -1
        if host is None or self.paused:
            return
        woken, self._woken = self._woken, []
        if self._look_everywhere or self._has_events():
            self._look_everywhere = False
            host.on_wake(now)
        else:
            host.on_completions(woken, now)
        self._look()
        deadline = host.next_deadline()
        if deadline is not None:
            self._plan_turn(deadline)

    def _has_events(self) -> bool:
        """Whether an adapter has asynchronous or connection events for the host."""
        for device in self._devices.values():  # noqa: SIM110 - at each turn, and half as fast as an expression
            if device.waiting:
                return True
        return False

    def _look(self) -> None:
        if self.after_turn is not None:
            self.after_turn()


def _card_stream(streams: Streams, slot: str, generation: int) -> random.Random:
    """Each card that is put into a slot draws its own numbers."""
    return streams.stream(f"{slot}/{generation}")
