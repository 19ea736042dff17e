"""The adapter as a process of its own: one loop around `Adapter`, a port, a doorbell and the control channel.

Started by the lab's spawner, or by `emul.open_adapter`. It outlives hosts: when a host's channel closes, nothing else
happens. It sleeps at most SLEEP_MAX_NS, so that a lost wake-up costs that and never a hang, and it reads the carrier
itself every CARRIER_INTERVAL_NS, as the kernel's own notice may come hundreds of milliseconds late.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from emul.adapter import FRAMES_PER_PULL_MAX, Adapter, PortFacts
from emul.clock import MICROSECOND, MILLISECOND, Instant
from emul.control import receive_message, send_message
from emul.errors import RDMAError
from emul.firmware import Identity
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.port import FRAMES_PER_TURN_MAX, Port
from emul.port.errors import PortBusy, PortDown, PortError, PortMissing, PortUnsupported
from emul.port.open import open_port
from emul.queues import DoorbellRing
from emul.service_port import ServiceServer
from emul.wire.address import address_bytes

SLEEP_MAX_NS = 10 * MILLISECOND
CARRIER_INTERVAL_NS = MILLISECOND
"""While there is traffic; idle ports are looked at every CARRIER_INTERVAL_IDLE_NS."""
CARRIER_INTERVAL_IDLE_NS = 4 * MILLISECOND
BUSY_FOR_NS = 10 * MILLISECOND
BUSY_FRAMES = 16
"""A port is busy once it has moved so many frames in BUSY_FOR_NS, and for as long after: probes between idle partners,
some frames in 20 ms, are no traffic.
"""
SPIN_NS = 20 * MICROSECOND
"""How long the ring of arriving frames is watched for the answer to what a host just had sent, before sleeping: about
what being woken would cost. Only where another processor can work meanwhile."""
EVENTS_MAX = 16
"""Descriptors that one wake-up tells of; the others follow with the next."""
HOSTS_WAITING_MAX = 4
"""Connections to the control socket that may wait to be accepted."""
CHANNELS_MAX = 16
"""Control connections that are open at once; beyond them the oldest is closed."""
UNANSWERED_MAX = 64
"""Verbs that wait for an adapter that hangs; beyond, they are never answered."""
STOPPED_SIGNAL = signal.SIGTERM


class AdapterProcess:
    """The loop and what it waits on."""

    def __init__(self, config: dict[str, object], port: Port) -> None:
        self._port = port
        self._index = _int(config["adapter_index"])
        path = Path(str(config["node_memory"]))
        self._node = NodeMemory(Memory.open_file(path, NODE_MEMORY_BYTES))
        self._doorbell_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._host_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._facts = _port_facts(config, port)
        accepted = config.get("cluster_keys_accepted", ())
        assert isinstance(accepted, list | tuple)
        self._identity = Identity(
            _int(config["node_id"]), self._index, str(config["cluster_key"]).encode(),
            tuple(str(other).encode() for other in accepted),
        )  # fmt: skip
        self._adapter = self._make_adapter()
        self._listener = _listen(str(config["control"]))
        self._channels: list[socket.socket] = []
        self._host_channel: socket.socket | None = None
        self._epoll = select.epoll()
        for fd in (port.fileno(), self._listener.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        # Each ring of the bell is an edge, so that its descriptor never has to be read.
        self._epoll.register(self._doorbell_fd, select.EPOLLIN | select.EPOLLET)
        self._unanswered: list[tuple[socket.socket, dict[str, object], list[int]]] = []
        """Requests that came while the adapter hung (a hardware fault)."""
        self._service: ServiceServer | None = None
        if config.get("service"):
            own = {"reset": self._reset, "die": self._die}
            self._service = ServiceServer(str(config["service"]), self._epoll, own)
        self.orphaned = False
        """Its owner is gone."""
        self._owner_fd = _watch_owner(config.get("owner_pid"))
        if self._owner_fd >= 0:
            self._epoll.register(self._owner_fd, select.EPOLLIN)
        self._asked = False
        """The last turn sent what the host had posted: an answer is due soon."""
        self._may_spin = port.can_watch and len(os.sched_getaffinity(0)) > 1
        self._carrier_at = 0
        self._carrier: bool | None = None
        self._look_at = 0
        self._looked_at_anyway = (self._doorbell_fd, port.fileno())
        """Descriptors that only wake: the next turn looks at doorbells and port without being told."""
        self._busy_until = 0
        self._counted_since = 0
        self._counted = 0
        self._turn = self._node.turn(self._index) // 2 * 2
        self._looks = 0
        self._unsent: list[bytes] = []
        self.running = True
        self._node.set_adapter_alive(self._index, True)

    def _make_adapter(self) -> Adapter:
        return Adapter(
            port=self._facts,
            identity=self._identity,
            node_memory=self._node,
            # Keys and challenges must not be guessed, also not by a stranger who has collected many challenges.
            rng=random.SystemRandom(),
            wake_host=self._wake_host,
            allocate=Memory.allocate,
            release=Memory.close,
            make_bell=Memory.bell,
            ring_bell=Memory.ring,
        )

    def run(self) -> None:
        """Turns until told to stop."""
        while self.running:
            now = time.monotonic_ns()
            if self._adapter.host is not None and not self._adapter.faults.hung:
                self._adapter.host.doorbells.beat()
            more = self._take_turn(Instant(now))
            self._count_look()
            if not more:
                self._sleep(now)

    def counters(self) -> dict[str, int]:
        """The adapter's counters."""
        return self._adapter.counters()

    def _count_look(self) -> None:
        """For who wonders why this card is silent: the machine does run it. (A card that hangs shows no such sign.)"""
        if not self._adapter.faults.hung:
            self._looks += 1
            self._node.set_looks(self._index, self._looks)

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _take_turn(self, now: Instant) -> bool:
        """Everything that waits, once; whether there is more. (Frames and doorbells that come meanwhile wake who
        sleeps.)
        """
        adapter = self._adapter
        frames = self._port.receive(FRAMES_PER_TURN_MAX)
        if frames:
            # Odd while frames are handled: a fence that rose in another adapter waits until this is even again.
            self._turn += 1
            self._node.set_turn(self._index, self._turn)
            for frame in frames:
                adapter.on_frame(frame, now=now)
            self._turn += 1
            self._node.set_turn(self._index, self._turn)
        rang = adapter.on_doorbell(now=now)
        sent = self._send(now) if rang or frames else 0  # an answer doesn't wait for what the clock wants
        self._asked = rang and sent > 0
        deadline = adapter.next_deadline(now=now)
        if deadline is not None and deadline <= now:
            adapter.on_time(now=now)
        if now >= self._carrier_at:
            self._read_carrier(now)
        if self._unanswered and not adapter.faults.hung:
            self._answer_late()
        if adapter.has_frames():
            sent += self._send(now)
        if frames or sent:
            self._note_traffic(now, len(frames) + sent)
        return len(frames) == FRAMES_PER_TURN_MAX or (sent > 0 and (bool(self._unsent) or adapter.has_frames()))

    def _send(self, now: Instant) -> int:
        frames = self._unsent or self._adapter.poll_transmit(FRAMES_PER_PULL_MAX, now=now)
        if not frames:
            return 0
        taken = self._port.send(frames)
        self._unsent = frames[taken:]
        return taken

    def _note_traffic(self, now: int, moved: int) -> None:
        if now - self._counted_since > BUSY_FOR_NS:
            self._counted_since, self._counted = now, 0
        self._counted += moved
        if self._counted >= BUSY_FRAMES:
            self._busy_until = now + BUSY_FOR_NS

    def _carrier_interval(self, now: int) -> int:
        return CARRIER_INTERVAL_NS if now < self._busy_until else CARRIER_INTERVAL_IDLE_NS

    def _read_carrier(self, now: int) -> None:
        self._carrier = self._port.carrier()
        self._adapter.on_carrier(self._carrier)
        self._carrier_at = now + self._carrier_interval(now)

    # -- sleeping -----------------------------------------------------------------------------------------------------

    def _sleep(self, now: int) -> None:
        doorbells = self._adapter.host.doorbells if self._adapter.host is not None else None
        if doorbells is not None:
            if self._asked and self._may_spin and self._spin(doorbells):
                return
            doorbells.set_sleeping(True)
            if self._adapter.on_doorbell(now=Instant(now)):  # rung just before it could know that it must wake us
                doorbells.set_sleeping(False)
                return
        until = min(self._carrier_at, now + SLEEP_MAX_NS)
        deadline = self._adapter.next_deadline(now=Instant(now))
        if deadline is not None:
            until = min(until, deadline)
        ready = self._wait(now, until, now + SLEEP_MAX_NS if deadline is None else min(deadline, now + SLEEP_MAX_NS))
        if doorbells is not None:
            doorbells.set_sleeping(False)
        if not ready and now >= self._look_at:
            self._look_at = now + SLEEP_MAX_NS
            self._adapter.look_at_all_queues()
        for fd, _ in ready:
            if fd in self._looked_at_anyway:
                continue
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._owner_fd:
                self.orphaned, self.running = True, False
            elif not (self._service and self._service.on_ready(fd, self._adapter)):
                self._on_channel(fd)
        if self._adapter.faults.notes:
            self._log_faults()

    # -- hardware faults ----------------------------------------------------------------------------------------------

    def _log_faults(self) -> None:
        notes = self._adapter.faults.notes
        while notes:
            note = notes.popleft()
            _log(str(note.pop("event")), **note)

    def _reset(self) -> None:
        """The card starts anew: its host, whose channel closes, has lost all that it had here."""
        _log("fault.reset", counters=self.counters())
        for channel in list(self._channels):
            self._close(channel)
        if self._adapter.host is not None:
            self._adapter.host.destroy()
        self._adapter = self._make_adapter()
        self._unsent.clear()
        self._carrier_at = 0

    def _die(self) -> None:
        _log("fault.die")
        self.running = False

    def _answer_late(self) -> None:
        waiting, self._unanswered = self._unanswered, []
        for channel, request, fds in waiting:
            if channel not in self._channels:
                _close_all(fds)
                continue
            try:
                self._answer(channel, request, fds)
            except OSError:
                self._close(channel)

    def _spin(self, doorbells: DoorbellRing) -> bool:
        """Watches for an answer, or more to be sent; whether something came."""
        port_waiting, more_work = self._port.waiting, doorbells.waiting
        until = time.monotonic_ns() + SPIN_NS
        while not (port_waiting() or more_work()):
            if time.monotonic_ns() >= until:
                return False
        return True

    def _wait(self, now: int, until: int, turn_at: int) -> list[tuple[int, int]]:
        """What wakes it. Until something is due at `turn_at`, the carrier alone is read between: an idle adapter wakes
        for that far more often than for all its other duties, and a whole turn costs ten times as much.
        """
        poll, carrier = self._epoll.poll, self._port.carrier
        while True:
            ready = poll(max(0.0, (until - now) / 1e9), EVENTS_MAX)
            now = time.monotonic_ns()
            if ready or now >= turn_at or carrier() is not self._carrier:
                return ready
            self._carrier_at = now + self._carrier_interval(now)
            until = min(turn_at, self._carrier_at)
            self._count_look()

    # -- the host -----------------------------------------------------------------------------------------------------

    def _wake_host(self) -> None:
        os.eventfd_write(self._host_fd, 1)
        if self._host_channel is None:
            return
        host, channel = self._adapter.host, self._host_channel
        try:
            while host is not None and host.events:
                event = host.events[0]
                send_message(channel, {"event": [int(event.event_type), event.element]}, [])
                host.events.pop(0)
            cm = self._adapter.cm
            while cm.events:
                send_message(channel, {"cm_event": cm.events[0].to_fields()}, [])
                cm.events.pop(0)
        except BlockingIOError:
            return  # the host reads slowly: what waits goes out with the next wake-up
        except OSError:
            self._close(channel)

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except OSError as error:
            # No descriptors left, or gone again: the oldest connection makes room, unless there is none.
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._channels:
                self._close(self._channels[0])
            return
        channel.setblocking(False)
        if len(self._channels) >= CHANNELS_MAX:
            self._close(self._channels[0])
        self._channels.append(channel)
        self._epoll.register(channel.fileno(), select.EPOLLIN)

    def _on_channel(self, fd: int) -> None:
        channel = next((each for each in self._channels if each.fileno() == fd), None)
        if channel is None:
            return
        try:
            received = receive_message(channel)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            received = None
        if received is None:
            self._close(channel)  # a host that is gone: its queue pairs go on answering
            return
        if self._adapter.faults.hung and received[0].get("op") != "inspect":
            if len(self._unanswered) < UNANSWERED_MAX:
                self._unanswered.append((channel, *received))
            else:
                _close_all(received[1])
            return
        try:
            self._answer(channel, *received)
        except OSError:
            self._close(channel)

    def _answer(self, channel: socket.socket, request: dict[str, object], fds: list[int]) -> None:
        now = Instant(time.monotonic_ns())
        number = request.get("id")
        if request.get("op") in ("attach", "inspect"):
            for fd in fds:
                os.close(fd)
        if request.get("op") == "attach":
            incarnation = request.get("incarnation")
            if not isinstance(incarnation, int) or not 0 <= incarnation < 1 << 64:
                refusal = {"errno": errno.EINVAL, "message": f"attach: no incarnation: {incarnation!r:.80}"}
                send_message(channel, {**refusal, "id": number}, [])
                return
            host = self._adapter.attach(incarnation)
            self._host_channel = channel
            assert host.memory.fd is not None
            send_message(channel, {"id": number}, [host.memory.fd, self._doorbell_fd, self._host_fd])
            return
        if request.get("op") == "inspect":  # for anybody who looks, host or not
            facts = {"wire": self._port.wire, "port": self._port.counters(), "counters": self.counters()}
            send_message(channel, {**facts, "qps": self._adapter.inspect(), "at": now, "id": number}, [])
            return
        if request.get("op") == "ping":
            send_message(channel, {"id": number}, [])
            return
        memories, failure = [], None
        for fd in fds:
            try:
                memories.append(Memory.map_shared(fd))
            except (ValueError, OSError, OverflowError) as error:
                os.close(fd)
                failure = {"errno": errno.EINVAL, "message": f"{request.get('op')}: {error}"}
        if channel is not self._host_channel:
            failure = {"errno": errno.EPERM, "message": "another host has attached"}
        if failure is not None:
            reply: dict[str, object] = dict(failure)
            answered: list[Memory] = []
        else:
            reply, answered = self._adapter.execute(request, memories, now=now)
        if "errno" in reply or request.get("op") != "reg_mr":  # nothing else keeps memory of the host
            for memory in memories:
                memory.close()
        send_message(channel, {**reply, "id": number}, [m.fd for m in answered if m.fd is not None])

    def _close(self, channel: socket.socket) -> None:
        if channel in self._channels:
            self._channels.remove(channel)
            self._epoll.unregister(channel.fileno())
        if channel is self._host_channel:
            self._host_channel = None
        channel.close()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def main(config: dict[str, object]) -> None:
    """Runs an adapter until SIGTERM.

    `config`: node_id, adapter_index, interface, address (one or a list, IPv4 or IPv6), wire ("auto", "xdp", "packet"),
    control (path of its socket), service (path of the socket for hardware faults; absent: nobody injects any),
    node_memory (path), cluster_key, log (path, or absent for stderr). One that belongs to a program also has owner_pid
    (it ends with that process), ready_fd (where it tells how it stands) and directory (which it removes when its owner
    is gone).
    """
    _redirect_log(config.get("log"))
    try:
        port = open_port(str(config["interface"]), wire=str(config.get("wire", "auto")), addresses=_addresses(config))
        process = AdapterProcess(config, port)
    except (PortError, OSError, ValueError) as error:
        if "ready_fd" not in config:
            raise
        code, message = _refusal(error)
        _log("refused", errno=code, message=message)
        _report(config, {"errno": code, "message": message})
        return

    def stop(number: int, frame: object) -> None:
        process.running = False

    signal.signal(STOPPED_SIGNAL, stop)
    reason = getattr(port, "fallback_reason", None)
    facts = {"wire": port.wire, "mtu": port.mtu, **({"fallback": reason} if reason else {})}
    _log("started", **facts)
    _report(config, facts)
    gc.freeze()
    gc.disable()  # nothing here makes cycles per packet; a collection in mid-burst costs milliseconds
    try:
        process.run()
    finally:
        _log("stopped", counters=process.counters(), port=port.counters())
        port.close()
        if process.orphaned and "directory" in config:
            shutil.rmtree(str(config["directory"]), ignore_errors=True)


def _refusal(error: Exception) -> tuple[int, str]:
    """errno and sentence for whoever waits for this process."""
    if isinstance(error, PortUnsupported) and getattr(error.__cause__, "errno", None) in (errno.EPERM, errno.EACCES):
        return errno.EPERM, str(error)
    for kind, code in _PORT_ERRORS:
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, RDMAError):
        return error.error_code, error.sentence
    if isinstance(error, OSError):
        return error.errno or errno.EIO, str(error)
    return errno.EINVAL, str(error)


_PORT_ERRORS = (
    (PortMissing, errno.ENODEV), (PortDown, errno.ENETDOWN), (PortBusy, errno.EBUSY),
    (PortUnsupported, errno.EOPNOTSUPP),
)  # fmt: skip


def _report(config: dict[str, object], facts: dict[str, object]) -> None:
    """Tells whoever started this process, once, how it stands."""
    if "ready_fd" in config:
        fd = _int(config["ready_fd"])
        with contextlib.suppress(BrokenPipeError):
            os.write(fd, json.dumps(facts).encode() + b"\n")
        os.close(fd)


def _addresses(config: dict[str, object]) -> list[str]:
    """What stands under "address": one, or a list of them."""
    given = config["address"]
    return [str(each) for each in given] if isinstance(given, list) else [str(given)]


def _port_facts(config: dict[str, object], port: Port) -> PortFacts:
    first, *more = (address_bytes(each) for each in _addresses(config))
    return PortFacts(port.mac, first, port.mtu, tuple(more))


def _log(event: str, **fields: object) -> None:
    sys.stderr.write(json.dumps({"at_ns": time.monotonic_ns(), "event": event, **fields}) + "\n")
    sys.stderr.flush()


def _redirect_log(path: object) -> None:
    if path is not None:
        fd = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(fd, 2)
        os.close(fd)


def _watch_owner(pid: object) -> int:
    """A descriptor that is readable once the owner has ended; -1 where there is none. Raises ProcessLookupError."""
    if pid is None:
        return -1
    fd = os.pidfd_open(_int(pid))
    if os.getppid() != pid:
        raise ProcessLookupError(errno.ESRCH, "the owner ended before its adapter began")
    return fd


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    Path(path).unlink(missing_ok=True)
    listener.bind(path)
    listener.listen(HOSTS_WAITING_MAX)
    listener.setblocking(False)
    return listener


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"expected a number, got {value!r}")
    return value
