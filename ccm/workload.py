"""The workload of a host: which generators run on which clients, started and asked by control requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccm.client import Client, Partner, Session
from ccm.clients.echo import Echo
from ccm.clients.load import EchoLoad, Load, LoadSpec, MirrorLoad, Origin
from ccm.clients.nvram_mirror import NvramMirror
from ccm.history import HistoryWriter, Kind
from emul.clock import Instant
from emul.wire.icrc import crc32

RECORD_BYTES_MAX = 1 << 20
NOTHING_CHOSEN: Mapping[str, frozenset[int]] = {}


class WorkloadError(ValueError):
    """A control request that cannot be met; its text goes back to the caller."""


class Workload:
    """Generators by (client, partner)."""

    def __init__(
        self, clients: Mapping[str, Client], partners: Mapping[int, Partner], node: int, incarnation: int,
        client_ids: Mapping[str, int], history: HistoryWriter, seed: int,
        chosen: Mapping[str, frozenset[int]] = NOTHING_CHOSEN,
    ) -> None:  # fmt: skip
        """`chosen`: by client the partners that it has sessions with, where not all."""
        self._chosen = chosen
        self._clients = clients
        self._partners = partners
        self._node = node
        self._incarnation = incarnation
        self._ids = client_ids
        self._history = history
        self._seed = seed
        self._loads: dict[tuple[str, int], Load] = {}
        self._names: dict[int, str] = {}
        """Of the partners that there are loads for, also of those that have left."""

    def start(self, client: str, request: Mapping[str, Any], now: Instant) -> None:
        """Starts the load of one client. Raises WorkloadError."""
        spec = _spec(request)
        known = self._clients.get(client)
        if isinstance(known, NvramMirror):
            if known.target in self._partners:
                self._start_mirror(known, known.target, spec, now)
        elif isinstance(known, Echo):
            for partner in self._partners:
                if partner not in self._chosen.get(client, self._partners):
                    continue
                self._start_echo(known, partner, spec, now)
        else:
            raise WorkloadError(f"no load for client {client!r}, there is one for {sorted(self._loadable())}")

    def stop(self) -> int:
        """Submits nothing more; gives how many requests are under way."""
        for load in self._loads.values():
            load.stop()
        return self.outstanding

    @property
    def outstanding(self) -> int:
        """Requests under way."""
        return sum(load.outstanding for load in self._loads.values())

    def state(self) -> dict[str, Any]:
        """Figures by client, then by partner."""
        state: dict[str, Any] = {}
        for (client, partner), load in self._loads.items():
            state.setdefault(client, {})[self._names[partner]] = load.state()
        return state

    def on_time(self, now: Instant) -> None:
        """Submits what the rates allow now."""
        for load in self._loads.values():
            deadline = load.next_deadline()
            if deadline is not None and now >= deadline:
                load.submit(now)

    def next_deadline(self) -> Instant | None:
        """When a rate allows the next request."""
        first: Instant | None = None
        for load in self._loads.values():
            deadline = load.next_deadline()
            if deadline is not None and (first is None or deadline < first):
                first = deadline
        return first

    def on_delivered(self, session: Session, sequence: int, message: bytes, now: Instant) -> None:
        """The echo client got a message: into the history, before it is answered."""
        self._history.note(
            now, Kind.DELIVERED, self._node, session.partner.id, self._ids[Echo.name], self._incarnation, session.epoch,
            sequence, 0, len(message), crc32(message),
        )  # fmt: skip

    def on_client_gone(self, client: str, now: Instant) -> None:
        """It crashed: what its loads had under way is given up."""
        for (name, _), load in self._loads.items():
            if name == client:
                load.on_gone(now)

    def on_client_anew(self, client: str, now: Instant) -> None:
        """Another object took its place: its loads go on there."""
        known = self._clients[client]
        for (name, partner), load in self._loads.items():
            if name == client and isinstance(load, MirrorLoad) and isinstance(known, NvramMirror):
                load.adopt(known)
                known.observer = load
            elif name == client and isinstance(load, EchoLoad) and isinstance(known, Echo):
                load.adopt(known)
                known.observers[partner] = load

    def _loadable(self) -> list[str]:
        return [name for name, client in self._clients.items() if isinstance(client, NvramMirror | Echo)]

    def _start_mirror(self, mirror: NvramMirror, partner: int, spec: LoadSpec, now: Instant) -> None:
        first = self._first_sequence(mirror.name, partner)
        origin = Origin(self._node, self._incarnation, self._ids[mirror.name])
        try:
            load = MirrorLoad(mirror, partner, spec, origin, self._history, self._seed, first, now=now)
        except ValueError as error:
            raise WorkloadError(str(error)) from error
        self._loads[mirror.name, partner] = load
        self._names[partner] = self._partners[partner].name
        mirror.observer = load
        load.start(mirror.session, now)

    def _start_echo(self, echo: Echo, partner: int, spec: LoadSpec, now: Instant) -> None:
        first = self._first_sequence(echo.name, partner)
        origin = Origin(self._node, self._incarnation, self._ids[echo.name])
        try:
            load = EchoLoad(echo, partner, spec, origin, self._history, self._seed + partner, first, now=now)
        except ValueError as error:
            raise WorkloadError(str(error)) from error
        self._loads[echo.name, partner] = load
        self._names[partner] = self._partners[partner].name
        echo.observers[partner] = load
        load.start(echo.sessions.get(partner), now)

    def _first_sequence(self, client: str, partner: int) -> int:
        """Goes on where a former load of this incarnation ended, which must have drained."""
        former = self._loads.get((client, partner))
        if former is None:
            return 1
        if former.outstanding:
            raise WorkloadError(f"the load of {client} runs: {former.outstanding} requests under way")
        return former.next_sequence


def _spec(request: Mapping[str, Any]) -> LoadSpec:
    record, depth, rate = request.get("record"), request.get("depth", 1), request.get("rate")
    if not isinstance(record, int) or not 0 < record <= RECORD_BYTES_MAX:
        raise WorkloadError(f"record must be 1 ... {RECORD_BYTES_MAX} bytes, got {record!r}")
    if not isinstance(depth, int):
        raise WorkloadError(f"depth must be a number, got {depth!r}")
    if rate is not None and (not isinstance(rate, int | float) or rate <= 0):
        raise WorkloadError(f"rate must be above 0 or left out, got {rate!r}")
    return LoadSpec(record, depth, rate)
