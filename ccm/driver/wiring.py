"""What the parts of the driver share: who we are, adapters, events for the manager, chores, history, log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ccm import events as ev
from ccm.adapter_port import AdapterPort
from ccm.client import Client, Partner
from ccm.driver.chores import Chores
from ccm.history import HistoryWriter, Kind
from ccm.needs import NeedsError, client_key
from ccm.settings import DEFAULTS, Settings
from emul.clock import Instant
from emul.errors import DeviceGone, RDMAError
from emul.node_memory import NodeMemory

EXCEPTIONS_MAX = 64
"""A client whose callbacks raised this often loses its sessions."""

T = TypeVar("T")
Log = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class PathConfig:
    """One path as the configuration names it."""

    index: int
    adapter: int
    remote: str


@dataclass(frozen=True, slots=True)
class DriverConfig:
    """Who this node is, and who its partners are."""

    node_id: int
    name: str
    cluster_key: bytes
    partners: Mapping[int, tuple[str, tuple[PathConfig, ...]]]
    client_ids: Mapping[str, int]
    """Client name -> number in the history."""
    also_accepted: tuple[bytes, ...] = ()
    """Further cluster keys that partners may prove themselves with, while the cluster changes its key."""
    settings: Settings = DEFAULTS


class Wiring:
    """Shared by `ccm.driver` and its parts; `now` is that of the present turn."""

    def __init__(
        self, config: DriverConfig, incarnation: int, node: NodeMemory, history: HistoryWriter,
        clients: Sequence[Client], log: Log, *, now: Instant,
    ) -> None:  # fmt: skip
        self.config = config
        self.incarnation = incarnation
        self.node = node
        self.log = log
        self.now = now
        self.chores = Chores()
        self.events: deque[ev.Event] = deque()
        self.ports: list[AdapterPort | None] = []
        self.partners = {number: Partner(number, name) for number, (name, _) in config.partners.items()}
        self.paths = {(number, path.index): path for number, (_, paths) in config.partners.items() for path in paths}
        self.clients = {client_key(client.name): client for client in clients}
        self.client_errors: dict[str, int] = {}
        self._history = history

    def tell(self, event: ev.Event) -> None:
        """Queues an event for the manager."""
        self.events.append(event)

    def set_now(self, now: Instant) -> None:
        """Time has passed."""
        self.now = now
        for port in self.ports:
            if port is not None:
                port.now = now

    def port_of(self, partner: int, path: int) -> AdapterPort | None:
        """The living adapter of a path."""
        port = self.ports[self.paths[partner, path].adapter]
        return None if port is None or port.gone else port

    def note_gone(self, error: RDMAError) -> None:
        """A verb was refused: if the adapter is dead, finds out which one."""
        if not isinstance(error, DeviceGone):
            return
        for port in self.ports:
            if port is not None and not port.gone:
                port.attempt(port.context.query_port)

    def note(
        self, kind: Kind, partner: int, client: int = 0, *, epoch: int = 0, sequence: int = 0, offset: int = 0,
        length: int = 0, extra: int = 0,
    ) -> None:  # fmt: skip
        """One line of the history; `client` is a key."""
        number = self.config.client_ids[self.clients[client].name] if client else 0
        self._history.note(
            self.now, kind, self.config.node_id, partner, number, self.incarnation, epoch, sequence, offset, length, 0,
            extra,
        )  # fmt: skip

    def call(self, client: Client, callback: Callable[[], None]) -> None:
        """Calls a client; what it raises stays here."""
        try:
            callback()
        except Exception as error:
            self.on_client_exception(client.name, error)

    def ask(self, client: Client, question: Callable[[], T], otherwise: T) -> T:
        """Asks a client; `otherwise` where it raises."""
        try:
            return question()
        except Exception as error:
            self.on_client_exception(client.name, error)
            return otherwise

    def open_session(self, client: Client, partner: Partner) -> None:
        """Asks the client what it needs of a partner, and the manager for a session. Raises NeedsError, and whatever
        the client raises.
        """
        needs = client.needs(partner)
        if needs is None:
            return
        exposed = client.exposed(partner)
        if needs.exposed_bytes != (exposed.length if exposed is not None else 0):
            raise NeedsError(f"{client.name} says {needs.exposed_bytes} exposed bytes and exposes {exposed}")
        self.tell(ev.ClientOpened(partner.id, client.name, needs))

    def on_client_exception(self, name: str, error: Exception) -> None:
        """A callback raised. Counted and logged; a client that goes on so loses its sessions."""
        count = self.client_errors[name] = self.client_errors.get(name, 0) + 1
        self.log("client.exception", {"client": name, "error": repr(error), "count": count})
        if count == EXCEPTIONS_MAX:
            for partner in self.partners:
                self.tell(ev.ClientClosed(partner, name))
