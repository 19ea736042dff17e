"""Two real hosts on real adapters in virtual time, with cables that a test can cut: a helper of the ccm tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ccm.client import Client
from ccm.history import HEADER_BYTES, RECORD_BYTES, Entry, HistoryWriter, Kind, read_entries
from ccm.host import Host
from emul.adapter import Adapter, PortFacts
from emul.clock import MICROSECOND, MILLISECOND, SECOND, Instant
from emul.firmware import Identity
from emul.local import LocalDevice
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.verbs import Context
from emul.wire.frame import ipv4_bytes

NVRAM_BYTES = 1 << 20
HISTORY_RECORDS = 20_000
FLIGHT_NS = 5 * MICROSECOND
STEPS_MAX = 400_000
NAMES = ("a", "b")


class TwoHosts:
    """Nodes 0 and 1 (ids 1 and 2), `paths` cables. Hosts are booted by the test."""

    def __init__(
        self, clients: Sequence[Sequence[Client]] = ((), ()), *, paths: int = 2, named: Sequence[str] = (),
        seed: int = 1, keys: tuple[str, str] = ("key", "key"),
        accepted: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()), timed: bool = False,
    ) -> None:  # fmt: skip
        self.late_ns = 0
        """With `timed` the hosts read a clock in the midst of their turns, which is so much ahead of `now`."""
        self._timed = timed
        self.now = Instant(10 * MILLISECOND)
        self.paths = paths
        self.keys = keys
        self.accepted = accepted
        self.carrier = [True] * paths
        self.hosts: list[Host | None] = [None, None]
        self.filter: Callable[[int, int, bytes], bool] = lambda path, sender, frame: True
        """Whether a frame passes (path, sender, frame)."""
        self.logs: list[list[tuple[str, dict[str, object]]]] = [[], []]
        self.memories = [NodeMemory(Memory.plain(NODE_MEMORY_BYTES)) for _ in NAMES]
        self.nvram = [Memory.plain(NVRAM_BYTES) for _ in NAMES]
        self.histories = [Memory.plain(HEADER_BYTES + HISTORY_RECORDS * RECORD_BYTES) for _ in NAMES]
        self._clients = clients
        self._named = named
        self.adapters = [[self._adapter(node, path, seed) for path in range(paths)] for node in range(2)]
        for memory in self.memories:
            memory.power_on()

    def boot(self, *nodes: int) -> None:
        """Boots hosts (both without argument)."""
        for node in nodes or (0, 1):
            contexts = [
                Context(LocalDevice(adapter, on_doorbell=lambda: None, clock=lambda: self.now))
                for adapter in self.adapters[node]
            ]
            log = self.logs[node]
            host = Host(
                self._config(node), contexts, self.memories[node], self.nvram[node],
                HistoryWriter(self.histories[node]), 7 + node, clients=self._clients[node],
                log=lambda word, fields, log=log: log.append((word, fields)),
                clock=(lambda: self.now + self.late_ns) if self._timed else None,
            )  # fmt: skip
            self.hosts[node] = host
            host.start(self.now)

    def run(self, for_ns: int = SECOND, until: Callable[[], bool] = lambda: False) -> bool:
        """Runs until `until` holds; whether it did within `for_ns`."""
        end = self.now + for_ns
        for _ in range(STEPS_MAX):
            if until():
                return True
            if self.now >= end:
                return False
            if not self._step():
                self.now = Instant(min(end, max(self.now, self._nearest())))
        raise AssertionError(f"still busy after {STEPS_MAX} steps")

    def cut(self, path: int, connected: bool = False) -> None:
        """Carrier lost (or found) on both ends of a cable."""
        self.carrier[path] = connected
        for node in range(2):
            self.adapters[node][path].on_carrier(connected)

    def history(self, node: int, *kinds: Kind) -> list[Entry]:
        """What the node's history says."""
        return [entry for entry in read_entries(self.histories[node].buffer) if not kinds or entry.kind in kinds]

    def host(self, node: int) -> Host:
        """A running host."""
        host = self.hosts[node]
        assert host is not None
        return host

    def _step(self) -> bool:
        moved = False
        for node in range(2):
            for path, adapter in enumerate(self.adapters[node]):
                moved |= adapter.on_doorbell(now=self.now)
                for frame in adapter.poll_transmit(now=self.now):
                    moved = True
                    if self.carrier[path] and self.filter(path, node, frame):
                        self.adapters[1 - node][path].on_frame(frame, now=self.now)
        for host in self.hosts:
            if host is not None and not host.stopped:
                host.on_wake(self.now)
        for adapter in (adapter for node in self.adapters for adapter in node):
            moved |= adapter.on_doorbell(now=self.now)  # what a host has just posted is not left until its timers run
        if moved:
            self.now = Instant(self.now + FLIGHT_NS)
        for adapter in (adapter for node in self.adapters for adapter in node):
            deadline = adapter.next_deadline(now=self.now)
            if deadline is not None and deadline <= self.now:
                adapter.on_time(now=self.now)
        return moved

    def _nearest(self) -> int:
        deadlines = [adapter.next_deadline(now=self.now) for node in self.adapters for adapter in node]
        deadlines += [host.next_deadline() for host in self.hosts if host is not None and not host.stopped]
        soonest = min((deadline for deadline in deadlines if deadline is not None), default=self.now + MILLISECOND)
        return max(soonest, self.now + MICROSECOND)

    def _adapter(self, node: int, path: int, seed: int) -> Adapter:
        return Adapter(
            port=PortFacts(bytes([2, 0, 0, 0, path, node]), ipv4_bytes(_address(node, path)), 4200),
            identity=Identity(
                node + 1, path, self.keys[node].encode(), tuple(key.encode() for key in self.accepted[node])
            ),
            node_memory=self.memories[node],
            rng=random.Random(f"{seed}/{node}/{path}"),
            wake_host=lambda: None,
        )

    def _config(self, node: int) -> dict[str, object]:
        return {
            "node": NAMES[node],
            "node_id": node + 1,
            "partners": [
                {
                    "name": NAMES[1 - node],
                    "id": 2 - node,
                    "paths": [
                        {
                            "index": path,
                            "adapter": path,
                            "local": _address(node, path),
                            "remote": _address(1 - node, path),
                        }
                        for path in range(self.paths)
                    ],
                }
            ],
            "clients": list(self._named),
            "boot": {"loader_ns": MILLISECOND, "kernel_ns": MILLISECOND, "storage_os_ns": MILLISECOND},
            "cluster_key": self.keys[node],
            "cluster_keys_accepted": list(self.accepted[node]),
        }


def _address(node: int, path: int) -> str:
    return f"10.77.{path}.{node + 1}"
