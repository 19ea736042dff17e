"""What the parts of the driver share: who we are, adapters, events for the manager, chores, history, log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ccm import events as ev
from ccm.adapter_port import AdapterPort
from ccm.client import Client, Partner, Region
from ccm.driver.chores import Chores
from ccm.history import HistoryWriter, Kind
from ccm.needs import Needs, NeedsError, client_key
from ccm.peerinfo import OWN_VERSIONS, Versions
from ccm.settings import DEFAULTS, Settings
from emul.clock import MILLISECOND, Instant
from emul.errors import DeviceGone, RDMAError
from emul.memory import Memory
from emul.node_memory import NodeMemory

EXCEPTIONS_MAX = 64
"""A client whose callbacks raised this often loses its sessions."""
SLOW_NS = 20 * MILLISECOND
"""A callback that takes longer is named in the log."""

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
    versions: Versions = OWN_VERSIONS
    """Of the managers' protocol that this node speaks: (least, most)."""
    client_partners: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """By client the partners that it is to have sessions with; of a client that is not there: all."""


class Wiring:
    """Shared by `ccm.driver` and its parts; `now` is that of the present turn."""

    def __init__(
        self, config: DriverConfig, incarnation: int, node: NodeMemory, history: HistoryWriter,
        clients: Sequence[Client], log: Log, *, now: Instant, clock: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.config = config
        self.incarnation = incarnation
        self.node = node
        self._log = log
        self.now = now
        self.chores = Chores()
        self.events: deque[ev.Event] = deque()
        self.ports: list[AdapterPort | None] = []
        self.partners = {number: Partner(number, name) for number, (name, _) in config.partners.items()}
        self.paths = {(number, path.index): path for number, (_, paths) in config.partners.items() for path in paths}
        self.clients = {client_key(client.name): client for client in clients}
        self.client_errors: dict[str, int] = {}
        """How often each client's callbacks raised, and ..."""
        self.last_errors: dict[str, str] = {}
        """... what the last time, and where."""
        self._history = history

    def log(self, word: str, fields: dict[str, object]) -> None:
        """One line; partners have their names there."""
        partner = self.partners.get(fields["partner"]) if "partner" in fields else None  # type: ignore[call-overload]
        self._log(word, fields if partner is None else {**fields, "partner": partner.name})

    def add_partner(self, number: int, name: str, paths: Sequence[PathConfig]) -> None:
        """From now on `number` is a partner."""
        self.partners[number] = Partner(number, name)
        for path in paths:
            self.paths[number, path.index] = path

    def remove_partner(self, number: int) -> None:
        """Nothing is known of it any more."""
        del self.partners[number]
        for key in [key for key in self.paths if key[0] == number]:
            del self.paths[key]

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

    def concerns(self, client: Client, partner: int) -> bool:
        """Whether `client` has anything to do with `partner`: the configuration may have chosen others for it."""
        chosen = self.config.client_partners.get(client.name)
        return chosen is None or partner in chosen

    def call(self, client: Client, callback: Callable[[], None]) -> None:
        """Calls a client; what it raises stays here, and taking long is noted."""
        begun = self.clock() if self.clock is not None else 0
        try:
            callback()
        except (Exception, SystemExit) as error:
            self.on_client_exception(client.name, error)
        if self.clock is not None and self.clock() - begun >= SLOW_NS:
            self.on_slow_client(client.name, self.clock() - begun)

    def on_slow_client(self, name: str, took_ns: int) -> None:
        """A callback held everything up: nobody's sessions, probes or heartbeats went on meanwhile."""
        self.log("client.slow", {"client": name, "ms": round(took_ns / MILLISECOND, 1)})

    def ask(self, client: Client, question: Callable[[], T], otherwise: T) -> T:
        """Asks a client; `otherwise` where it raises."""
        try:
            return question()
        except (Exception, SystemExit) as error:
            self.on_client_exception(client.name, error)
            return otherwise

    def open_session(self, client: Client, partner: Partner) -> None:
        """Asks the client what it needs of a partner, and the manager for a session. Raises NeedsError, and whatever
        the client raises. Of partners that were not chosen for the client it is not asked.
        """
        if not self.concerns(client, partner.id):
            return
        needs: object = client.needs(partner)
        if needs is None:
            return
        if not isinstance(needs, Needs):
            raise NeedsError(f"needs() gave {needs!r:.60}, expected Needs or None")
        exposed = checked_region(client.exposed(partner), "exposed")
        if needs.exposed_bytes != (exposed.length if exposed is not None else 0):
            raise NeedsError(f"{client.name} says {needs.exposed_bytes} exposed bytes and exposes {exposed}")
        self.tell(ev.ClientOpened(partner.id, client.name, needs))

    def on_client_exception(self, name: str, error: BaseException) -> None:
        """A callback raised. Counted and logged; a client that goes on so loses its sessions."""
        count = self.client_errors[name] = self.client_errors.get(name, 0) + 1
        text = self.last_errors[name] = f"{type(error).__name__}: {error}{_place_of(error)}"
        self.log("client.exception", {"client": name, "error": text, "count": count})
        if count == EXCEPTIONS_MAX:
            for partner in self.partners:
                self.tell(ev.ClientClosed(partner, name))


def checked_region(region: object, question: str) -> Region | None:
    """What a client gave for its memory. Raises NeedsError for anything but a run of bytes inside a Memory."""
    if region is None:
        return None
    if not isinstance(region, Region) or not isinstance(region.memory, Memory):
        raise NeedsError(f"{question}() gave {region!r:.60}, expected a Region of a Memory, or None")
    if not (isinstance(region.offset, int) and isinstance(region.length, int)):
        raise NeedsError(f"{question}() gave offset {region.offset!r}, length {region.length!r}, expected bytes")
    if region.offset < 0 or region.length <= 0 or region.offset + region.length > region.memory.length:
        raise NeedsError(
            f"{question}() gave {region.length} bytes from {region.offset} of a memory of {region.memory.length}"
        )
    return region


def _place_of(error: BaseException) -> str:
    """Where it was raised: " at FILE:LINE"."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
