"""Clients' timers: when the next of them is due, and running those that are.

A client's deadline is its own business, and may be wrong: one that lies in the past for ever is run every TICK_MIN_NS
and no more often, so that it costs the host a bounded part of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ccm.client import Client
from ccm.driver.wiring import EXCEPTIONS_MAX, Wiring
from emul.clock import MILLISECOND, Instant, after, earliest

TICK_MIN_NS = MILLISECOND
"""Least time between two calls of one client's `on_time`."""


class TimedClients:
    """Those of the clients that give deadlines."""

    def __init__(self, wiring: Wiring, clients: Sequence[Client]) -> None:
        self._wiring = wiring
        self._not_before: dict[str, Instant] = {}
        self.adopt(clients)

    def adopt(self, clients: Sequence[Client]) -> None:
        """These are the clients from now on."""
        self._clients = [client for client in clients if type(client).next_deadline is not Client.next_deadline]

    def run(self, now: Instant) -> None:
        """Calls those whose deadline has come."""
        for client in self._clients:
            deadline = self._deadline_of(client)
            if deadline is not None and now >= deadline:
                self._not_before[client.name] = after(now, TICK_MIN_NS)
                self._wiring.call(client, partial(client.on_time, now))

    def deadline(self) -> Instant | None:
        """The earliest of all."""
        return earliest(*map(self._deadline_of, self._clients)) if self._clients else None

    def _deadline_of(self, client: Client) -> Instant | None:
        """None also for a client that raises too often: its timers could keep the host busy for ever."""
        wiring = self._wiring
        if wiring.client_errors.get(client.name, 0) >= EXCEPTIONS_MAX:
            return None
        # Anything may come of it: compiled code would stumble over a value that isn't what the annotation promises.
        question: Callable[[], object] = client.next_deadline
        deadline: object = wiring.ask(client, question, None)
        if deadline is None:
            return None
        if not isinstance(deadline, int):
            wiring.on_client_exception(
                client.name, TypeError(f"next_deadline() gave {deadline!r}, expected an instant in ns or None")
            )
            return None
        return max(Instant(deadline), self._not_before.get(client.name, Instant(0)))
