"""A node's host: boot stages, clients, the manager with its driver, control requests. Never blocks.

The real loop (`ccm.process`) and the simulator both run it: they wake it when something waits or `next_deadline` has
come. The manager starts with the host, in boot stage LOADER; the clients follow in stage KERNEL, the storage OS later
still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ccm.client import Client, Node, Partner
from ccm.client_code import ClientCode, ClientCodeError
from ccm.clients.echo import Echo
from ccm.clients.failover_monitor import FailoverMonitor
from ccm.clients.nvram_mirror import NvramMirror
from ccm.driver import Driver, DriverConfig, Log, PathConfig
from ccm.history import HistoryWriter, Kind
from ccm.peerinfo import OWN_VERSIONS
from ccm.settings import Settings
from ccm.workload import Workload, WorkloadError
from emul.clock import MILLISECOND, Instant
from emul.errors import RDMAError
from emul.memory import Memory
from emul.node_memory import PARTNERS_MAX, PATHS_MAX, BootStatus, NodeMemory, Stage
from emul.verbs import Context

BEAT_NS = 25 * MILLISECOND
"""How often the host beats on its status page at least. It beats whenever its timers run, so with each probe: every
5 ms while partners have work under way, and an idle host that probes a little more often than this needs no turn for
that alone.
"""
SUSPENDED_NS = 20 * MILLISECOND
"""A loop that is run later than this notes it: timing verdicts of such a run are doubtful."""
NAME_MAX = 64
"""Characters of a partner's name."""
CLIENT_IDS = {NvramMirror.name: 1, Echo.name: 2, FailoverMonitor.name: 3}
"""Numbers in the history; other clients follow in the order of the configuration."""


def _no_log(word: str, fields: dict[str, object]) -> None:
    """Where nobody reads a log."""


class Host:
    """One incarnation of a host. `config` is what `ccm.process.main` takes; `clients` are added to those it names."""

    def __init__(
        self,
        config: Mapping[str, Any],
        contexts: Sequence[Context],
        node_memory: NodeMemory,
        nvram: Memory,
        history: HistoryWriter,
        seed: int,
        *,
        clients: Sequence[Client] = (),
        log: Log = _no_log,
        reopen: Callable[[int], Context] | None = None,
        clock: Callable[[], int] | None = None,
        journal: Callable[[str], None] | None = None,
    ) -> None:
        self.node_id = int(config["node_id"])
        self.name = str(config["node"])
        self.stopped = False
        """A shutdown was asked for and is complete."""
        self._node = node_memory
        self._history = history
        self._contexts = contexts
        self._log = log
        self._reopen = reopen
        self._clock = clock
        self._journal = journal
        self._seed = seed
        self._config = config
        self._settings = Settings(**config.get("ccm", {}))
        self._nvram = nvram
        self._codes = {str(code["name"]): ClientCode.of(code) for code in config.get("client_code", ())}
        self._ids = dict(CLIENT_IDS)
        for name in (*self._codes, *(client.name for client in clients)):
            self._ids.setdefault(name, len(self._ids) + 1)
        self._chosen = {
            str(name): frozenset(int(number) for number in numbers)
            for name, numbers in config.get("client_partners", {}).items()
        }
        """By client the partners that it is to have sessions with, where not all."""
        self._unmade: dict[str, str] = {}
        """Clients that could not be made, and why."""
        self._crashed: set[str] = set()
        self._clients = self._make_clients(config, clients)
        self._boot = _boot_plan(config.get("boot", {}))
        self._stopping_by: Instant | None = None
        self._beat_at = Instant(0)
        self._deadline: Instant | None = None
        self._driver_at: Instant | None = None
        self.incarnation = 0

    def start(self, now: Instant) -> None:
        """Boot stage LOADER: a new incarnation attaches to the adapters, and the manager begins."""
        self.incarnation = self._node.begin_incarnation()
        self._history.note(now, Kind.HOST_STARTED, self.node_id, incarnation=self.incarnation)
        self._history.note(now, Kind.STAGE, self.node_id, incarnation=self.incarnation, extra=Stage.LOADER)
        self._log("host.started", {"incarnation": self.incarnation})
        self.driver = Driver(
            self._driver_config(), self._contexts, self._node, self._history, list(self._clients.values()),
            self.incarnation, self._seed, self._log, now=now, reopen=self._reopen,
            clock=self._clock, journal=self._journal,
        )  # fmt: skip
        for client in self._clients.values():
            self._boot_client(client, now)
        self.workload = Workload(
            self._clients, self.driver.partners, self.node_id, self.incarnation, self._ids, self._history, self._seed,
            self._chosen,
        )  # fmt: skip
        echo = self._clients.get(Echo.name)
        if isinstance(echo, Echo):
            echo.on_delivered = self.workload.on_delivered
        self._boot = [(Instant(now + at), stage) for at, stage in self._boot]
        self._beat_at = now
        self.driver.start(now)
        self._run_timers(now)

    def on_wake(self, now: Instant) -> None:
        """Looks at everything that may wait: completions, events, timers."""
        late = self._note_lateness(now)
        for index in range(len(self._contexts)):
            self.driver.wake(index, now)
        self.driver.take_events(now)
        if late or self._deadline is None or now >= self._deadline:
            self._run_timers(now, late=late)
        else:
            self._set_deadline()

    def on_completions(self, adapters: Sequence[int], now: Instant) -> None:
        """Only timers and the completion queues of these adapters: the way of each request that a client waits for."""
        late = self._note_lateness(now)
        news = False
        for index in adapters:
            news |= self.driver.wake(index, now)
        if late or self._deadline is None or now >= self._deadline:
            self._run_timers(now, late=late)
        elif news:
            self._set_deadline()

    def next_deadline(self) -> Instant | None:
        """When `on_wake` is wanted even if nothing comes."""
        return self._deadline

    def control(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        """Answers a control request; {"error": text} for one that cannot be met."""
        handler = _CONTROL.get(str(request.get("op")))
        if handler is None:
            return {"error": f"unknown op {request.get('op')!r}, expected one of {', '.join(sorted(_CONTROL))}"}
        try:
            reply = handler(self, request, now)
        except (WorkloadError, RDMAError) as error:
            return {"error": str(error)}
        self._set_deadline()
        return reply

    def begin_shutdown(self, now: Instant) -> None:
        """Closes all sessions; `stopped` is set when both sides know, or after a bounded time."""
        if self._stopping_by is None:
            self._stopping_by = Instant(now + 1000 * MILLISECOND)
            self.workload.stop()
            self.driver.close_all(now)
            self._set_deadline()

    # inside

    def _make_clients(self, config: Mapping[str, Any], more: Sequence[Client]) -> dict[str, Client]:
        clients: dict[str, Client] = {}
        for name in config.get("clients", ()):
            client = self._make_client(str(name))
            if client is not None:
                clients[client.name] = client
        for client in more:
            if client.name in clients:
                raise ValueError(f"two clients have the name {client.name!r}")
            clients[client.name] = client
        return clients

    def _make_client(self, name: str) -> Client | None:
        """None for one whose own code prevents it: that is told, and the others go on. Raises ValueError for a name
        that nothing is known of.
        """
        if name in self._codes:
            try:
                return self._codes[name].make()
            except ClientCodeError as error:
                self._unmade[name] = str(error)
                self._log("client.unmade", {"client": name, "error": str(error)})
                return None
        if name == NvramMirror.name:
            others = [number for number in self._partner_ids() if number in self._chosen.get(name, {number})]
            return NvramMirror(self._nvram, self.node_id, others)
        if name == Echo.name:
            return Echo()
        if name == FailoverMonitor.name:
            return FailoverMonitor(self._report_partner)
        raise ValueError(f"unknown client {name!r}, expected one of {', '.join([*CLIENT_IDS, *self._codes])}")

    def _partner_ids(self) -> list[int]:
        return [int(partner["id"]) for partner in self._config["partners"]]

    def _boot_client(self, client: Client, now: Instant) -> None:
        def log(word: str, fields: dict[str, object]) -> None:
            self._log(f"{client.name}.{word}", fields)

        allocate = Memory.plain if self._nvram.fd is None else Memory.allocate
        node = Node(self.node_id, self.name, self.incarnation, allocate, log)
        self.driver.call(client, lambda: client.on_boot(node, now))

    def _report_partner(self, partner: Partner, word: str, status: BootStatus) -> None:
        self._log(
            "monitor",
            {"partner": partner.name, "news": word, "stage": status.stage.name, "heartbeat": status.heartbeat},
        )

    def _driver_config(self) -> DriverConfig:
        partners = {
            int(partner["id"]): (
                str(partner["name"]),
                tuple(PathConfig(int(p["index"]), int(p["adapter"]), str(p["remote"])) for p in partner["paths"]),
            )
            for partner in self._config["partners"]
        }
        key = str(self._config["cluster_key"]).encode()
        accepted = tuple(str(other).encode() for other in self._config.get("cluster_keys_accepted", ()))
        least, most = self._config.get("versions") or OWN_VERSIONS
        return DriverConfig(
            self.node_id, self.name, key, partners, self._ids, accepted, self._settings, (int(least), int(most)),
            self._chosen,
        )  # fmt: skip

    def _note_lateness(self, now: Instant) -> bool:
        """Whether the loop was held up past a deadline."""
        if self._deadline is None or now - self._deadline < SUSPENDED_NS:
            return False
        late = now - self._deadline
        self._history.note(now, Kind.SUSPENDED, self.node_id, incarnation=self.incarnation, extra=late)
        self._log("suspended", {"ms": late / MILLISECOND})
        return True

    def _run_timers(self, now: Instant, *, late: bool = False) -> None:
        self._node.beat()
        self._beat_at = Instant(now + BEAT_NS)
        while self._boot and now >= self._boot[0][0]:
            self._enter(self._boot.pop(0)[1], now)
        self.workload.on_time(now)
        if late or self._driver_at is None or now >= self._driver_at:
            self.driver.on_time(now)
        self.driver.clients_on_time(now)
        if self._stopping_by is not None and (now >= self._stopping_by or not self.driver.has_sessions()):
            self._stop(now)
        self._set_deadline()

    def _enter(self, stage: Stage, now: Instant) -> None:
        self._node.enter_stage(stage)
        self._history.note(now, Kind.STAGE, self.node_id, incarnation=self.incarnation, extra=stage)
        self._log("stage", {"stage": stage.name})
        if stage is Stage.KERNEL:
            self.driver.open_clients(now)

    def _stop(self, now: Instant) -> None:
        """The host leaves: the status page says so, so that partners needn't guess."""
        if not self.stopped:
            self.stopped = True
            self.driver.shut_down(now)
            self._node.enter_stage(Stage.FIRMWARE)
            self._log("host.stopped", {})

    def _set_deadline(self) -> None:
        self._driver_at = self.driver.next_deadline()
        deadline = self._beat_at
        for other in (
            self._driver_at, self.workload.next_deadline(), self.driver.clients_deadline(),
            self._boot[0][0] if self._boot else None,
        ):  # fmt: skip
            if other is not None and other < deadline:
                deadline = other
        self._deadline = deadline

    # control requests

    def _status(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        stage = self._node.status
        return {
            "node": self.name,
            "incarnation": self.incarnation,
            "stage": stage.stage.name if stage is not None else None,
            "now_ns": now,
            "partners": self.driver.manager.status(),
            "adapters": self.driver.counters(),
            "clients": self._client_states(),
            "workload": self.workload.state(),
        }

    def _client_states(self) -> dict[str, Any]:
        errors = self.driver.client_errors
        states: dict[str, Any] = {}
        for name in (*self._clients, *self._unmade):
            state = "crashed" if name in self._crashed else "running" if name in self._clients else "not made"
            found = errors.get(name, {"count": 0, "last": ""})
            states[name] = {
                "state": state, "exceptions": found["count"], "last_exception": self._unmade.get(name, found["last"]),
                "partners": self._partners_of(name),
            }  # fmt: skip
        return states

    def _partners_of(self, client: str) -> list[str] | None:
        """Names of the partners that were chosen for a client and are members; None: all."""
        if client not in self._chosen:
            return None
        return [partner.name for partner in self.driver.partners.values() if partner.id in self._chosen[client]]

    def _workload_start(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        self.workload.start(str(request.get("client")), request, now)
        return {"ok": True}

    def _workload_stop(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        return {"outstanding": self.workload.stop()}

    def _workload_state(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        return {"clients": self.workload.state()}

    def _close(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        self.driver.close_all(now)
        return {"ok": True}

    def _open(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        self.driver.open_clients(now)
        return {"ok": True}

    def _client_close(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        """{"client": name, "partner": name or left out for all}"""
        client = self._wanted_client(request)
        self.driver.close_client(client, now, self._wanted_partner(request))
        return {"ok": True}

    def _client_open(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        """As client.close; one that has crashed is made anew."""
        name = self._wanted_client(request).name
        if name in self._crashed:
            anew = self._make_client(name)
            if anew is None:
                return {"error": f"{name}: {self._unmade[name]}"}
            self._crashed.discard(name)
            self._replace_client(anew)
            self._boot_client(anew, now)
            self.workload.on_client_anew(name, now)
        self.driver.open_client(self._clients[name], now, self._wanted_partner(request))
        return {"ok": True}

    def _client_crash(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        """{"client": name}: it gets no callback any more, and its sessions are closed; client.open makes it anew."""
        name = self._wanted_client(request).name
        if name not in self._codes and name not in CLIENT_IDS:
            return {"error": f"{name} was not made by this host, which couldn't make it anew"}
        if name not in self._crashed:
            self._log("client.crashed", {"client": name})
            self._crashed.add(name)
            dead: Client = type("Crashed", (Client,), {"name": name, "needs": _needs_nothing})()
            self._replace_client(dead)
            self.workload.on_client_gone(name, now)
            self.driver.close_client(dead, now)
        return {"ok": True}

    def _replace_client(self, client: Client) -> None:
        self._clients[client.name] = client
        self.driver.replace_client(client)
        if isinstance(client, Echo):
            client.on_delivered = self.workload.on_delivered

    def _wanted_client(self, request: Mapping[str, Any]) -> Client:
        name = request.get("client")
        if name not in self._clients:
            known = ", ".join(self._clients) or "none"
            raise WorkloadError(f"unknown client {name!r}, {self.name} runs: {known}")
        return self._clients[str(name)]

    def _wanted_partner(self, request: Mapping[str, Any]) -> int | None:
        name = request.get("partner")
        known = {partner.name: number for number, partner in self.driver.partners.items()}
        if name is not None and name not in known:
            raise WorkloadError(f"unknown partner {name!r}, expected one of {', '.join(known)}")
        return None if name is None else known[str(name)]

    def _partner_add(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        """{"partner": {"name", "id", "paths": [{"index", "adapter", "remote"}]}}, as in the configuration"""
        number, name, paths = new_partner(request.get("partner"), len(self._contexts))
        known = {partner.name: each for each, partner in self.driver.partners.items()}
        if number == self.node_id or name == self.name:
            return {"error": f"node id {number}, name {name!r}: this node is {self.name} with node id {self.node_id}"}
        if number in known.values() or name in known:
            taken = next(f"{each} has node id {own}" for each, own in known.items() if own == number or each == name)
            leaving = number not in self.driver.manager.peerings or self.driver.manager.peerings[number].leaving
            return {"error": f"node id {number}, name {name!r}: {taken}" + (" and is leaving" if leaving else "")}
        opened = self._node.status is not None and self._node.status.stage >= Stage.KERNEL
        self.driver.add_partner(number, name, paths, now, opened=opened)
        return {"ok": True}

    def _partner_remove(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        """{"partner": name}: its sessions are closed in order, then it is no partner any more"""
        number = self._wanted_partner(request)
        if number is None:
            return {"error": "partner: expected the name of a partner, found none"}
        self.driver.remove_partner(number, now)
        return {"ok": True}

    def _path_avoid(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        """{"partner": name, "path": number, "avoid": bool}"""
        wanted, path, avoid = request.get("partner"), request.get("path"), request.get("avoid", True)
        partner = next((each for each in self.driver.partners.values() if each.name == wanted), None)
        if partner is None:
            names = ", ".join(each.name for each in self.driver.partners.values())
            return {"error": f"unknown partner {wanted!r}, expected one of {names}"}
        known = self.driver.manager.peerings[partner.id].paths
        if not isinstance(path, int) or known.get(path) is None:
            return {"error": f"no path {path!r} to {partner.name}, it has {[each.index for each in known.paths]}"}
        if not isinstance(avoid, bool):
            return {"error": f"avoid is true or false, got {avoid!r}"}
        self.driver.avoid_path(partner.id, path, now, avoided=avoid)
        return {"ok": True}

    def _resources(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        self.driver.release()
        return {"verbs": self.driver.resources()}

    def _shutdown(self, request: Mapping[str, Any], now: Instant) -> dict[str, Any]:
        self.begin_shutdown(now)
        return {"ok": True}


_CONTROL: dict[str, Callable[[Host, Mapping[str, Any], Instant], dict[str, Any]]] = {
    "status": Host._status,
    "workload.start": Host._workload_start,
    "workload.stop": Host._workload_stop,
    "workload.state": Host._workload_state,
    "close": Host._close,
    "open": Host._open,
    "client.close": Host._client_close,
    "client.open": Host._client_open,
    "client.crash": Host._client_crash,
    "partner.add": Host._partner_add,
    "partner.remove": Host._partner_remove,
    "path.avoid": Host._path_avoid,
    "resources": Host._resources,
    "shutdown": Host._shutdown,
}


def _needs_nothing(client: Client, partner: Partner) -> None:
    """What a client that has crashed needs."""


def new_partner(given: object, adapters: int) -> tuple[int, str, tuple[PathConfig, ...]]:
    """Node id, name and paths of a partner that is to be added. Raises WorkloadError for what can't be one."""
    try:
        if not isinstance(given, Mapping):
            raise TypeError(f"expected an object, found {given!r:.60}")
        number, name = int(given["id"]), str(given["name"])
        paths = tuple(PathConfig(int(p["index"]), int(p["adapter"]), str(p["remote"])) for p in given["paths"])
    except (KeyError, TypeError, ValueError) as error:
        raise WorkloadError(f"partner: expected name, id and paths (index, adapter, remote): {error!r}") from None
    if not 0 < number < PARTNERS_MAX or not 0 < len(name) <= NAME_MAX:
        raise WorkloadError(f"partner: expected an id of 1 ... {PARTNERS_MAX - 1} and a name, found {number}, {name!r}")
    indices = [path.index for path in paths]
    wrong = [path for path in paths if not 0 <= path.index < PATHS_MAX or not 0 <= path.adapter < adapters]
    if not paths or wrong or len(set(indices)) != len(indices):
        text = f"expected paths 0 ... {PATHS_MAX - 1} of adapters 0 ... {adapters - 1}, found {paths}"
        raise WorkloadError(f"partner {name}: {text}")
    return number, name, paths


def _boot_plan(boot: Mapping[str, Any]) -> list[tuple[Instant, Stage]]:
    """(time since the start, stage entered then)."""
    at, plan = 0, []
    steps = (("loader_ns", Stage.KERNEL), ("kernel_ns", Stage.STORAGE_OS), ("storage_os_ns", Stage.SERVING))
    for duration, following in steps:
        at += int(boot.get(duration, 0))
        plan.append((Instant(at), following))
    return plan
