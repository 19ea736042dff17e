"""The injector process of the real worlds: reads diverted frames, lets the core decide, sends what comes out.

One thread, one epoll. The contract (config, control messages) is in the docstring of `lab.injector`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emul.port.packet import enlarge_buffers
from lab.injector.rules import FORGING, Fired, InjectorCore, Rule
from lab.injector.shaper import Shape, Shaper
from lab.injector.timer import Timer

FRAME_BYTES_MAX = 65_536 + 18
FRAMES_PER_TURN_MAX = 64
MESSAGE_BYTES_MAX = 128 * 1024
"""Of a control message, both ways: below what a SEQPACKET socket takes with the usual buffers."""
EVENTS_PER_REPLY_MAX = 256
"""More are asked for with the next "after"."""
CONNECTIONS_MAX = 32
_BUFFER_BYTES = 8 << 20
_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 20, 23

_log = logging.getLogger("lab.injector")


@dataclass(slots=True)
class _Direction:
    """Frames that enter a cable at one end: where they are read, where they go on, what was seen."""

    cable: str
    source: str
    towards: str
    tap: socket.socket
    out: socket.socket
    shaper: Shaper | None = None
    """Of a shaped cable."""
    frames: int = 0
    dropped: int = 0
    last_at: int | None = None

    def carry(self, frame: bytes, now: int) -> None:
        """Takes a frame along: at once, or when the cable's shape says."""
        if self.shaper is None:
            self.send(frame)
        elif self.shaper.put(frame, now=now) is None:
            self.dropped += 1

    def flush(self, buffer: memoryview) -> int:
        """What waits and what is under way is lost; how many frames."""
        lost = 0 if self.shaper is None else self.shaper.clear()
        with contextlib.suppress(OSError):
            while self.tap.recv_into(buffer):
                lost += 1
        return lost

    def send(self, frame: bytes) -> None:
        try:
            self.out.send(frame)
        except OSError:
            self.dropped += 1  # no carrier, down, or longer than the MTU: lost, as on a cable


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    subscribed: bool = False


@dataclass(slots=True)
class _Wiring:
    """What is open: a cable's two directions, and all of them by the descriptor of their tap."""

    cables: dict[str, tuple[_Direction, _Direction]] = field(default_factory=dict)
    by_tap: dict[int, _Direction] = field(default_factory=dict)
    shaped: list[_Direction] = field(default_factory=list)


class InjectorProcess:
    """The loop. `run` returns after a shutdown request or SIGTERM; `close` gives everything back."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        forge = _forge_lazily
        self._core = InjectorCore({}, config.get("addresses", {}), seed=int(config.get("seed", 0)), forge=forge)
        if config.get("preload_forge"):
            _load_forge()
        self._wiring = _Wiring()
        self._connections: dict[int, _Connection] = {}
        self._told = 0
        self._running = True
        self._buffer = memoryview(bytearray(FRAME_BYTES_MAX))
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._timer, select.EPOLLIN)
        self._path = Path(config["control"])
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._add_cables(config.get("cables", ()))
        self._listener.listen(CONNECTIONS_MAX)
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)

    def run(self) -> None:
        """Serves taps and control until told to end."""
        stop_read, stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(stop_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        self._epoll.register(stop_read, select.EPOLLIN)
        while self._running:
            for fd, _ in self._epoll.poll():
                direction = self._wiring.by_tap.get(fd)
                if direction is not None:
                    self._pump(direction)
                elif fd == self._timer.fileno():
                    self._timer.take()
                elif fd == stop_read:
                    self._running = False
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd in self._connections:
                    self._serve(self._connections[fd])
            if self._wiring.shaped:
                self._release()
            self._tell_subscribers()
        signal.set_wakeup_fd(-1)
        os.close(stop_read)
        os.close(stop_write)

    def close(self) -> None:
        """Closes taps and sockets, removes the control socket's name."""
        for name in list(self._wiring.cables):
            self._remove_cable(name)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        self._timer.close()
        self._epoll.close()

    def _pump(self, direction: _Direction) -> None:
        """Moves up to FRAMES_PER_TURN_MAX frames from a tap to where the core says, in order."""
        receive, buffer = direction.tap.recv_into, self._buffer
        both = self._wiring.cables[direction.cable]
        with contextlib.suppress(OSError):  # nothing waits any more, or the tap is down
            for _ in range(FRAMES_PER_TURN_MAX):
                frame = bytes(buffer[: receive(buffer)])
                now = time.monotonic_ns()
                direction.frames += 1
                direction.last_at = now
                for output in self._core.on_frame(direction.cable, direction.source, frame, now=now):
                    way = both[0] if both[0].towards == output.towards else both[1]
                    way.carry(output.frame, now)

    def _release(self) -> None:
        """Frames whose time has come leave the shaped cables."""
        now = time.monotonic_ns()
        moments: list[int] = []
        for direction in self._wiring.shaped:
            assert direction.shaper is not None
            for frame in direction.shaper.due(now=now):
                direction.send(frame)
            due_at = direction.shaper.next_at()
            if due_at is not None:
                moments.append(due_at)
        self._timer.set(min(moments, default=None))

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            accepted, _ = self._listener.accept()
            if len(self._connections) >= CONNECTIONS_MAX:
                accepted.close()
                return
            accepted.setblocking(False)
            self._connections[accepted.fileno()] = _Connection(accepted)
            self._epoll.register(accepted, select.EPOLLIN)

    def _serve(self, connection: _Connection) -> None:
        try:
            message = connection.socket.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._drop(connection)
            return
        self._send(connection, self._answer(connection, message))

    def _answer(self, connection: _Connection, message: bytes) -> dict[str, Any]:
        try:
            request = json.loads(message)
            if not isinstance(request, dict):
                raise ValueError("a request is a JSON object")
            return {"ok": True} | self._handle(connection, request)
        except (ValueError, TypeError, KeyError, OSError) as error:
            _log.warning("refused %r: %s", message[:200], error)
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _handle(self, connection: _Connection, request: dict[str, Any]) -> dict[str, Any]:
        operation = request.get("op")
        if operation == "arm":
            return self._arm(request)
        if operation == "disarm":
            self._core.disarm(request["ids"])
            return {"directions": sorted(self._core.directions_armed())}
        if operation == "directions":
            return {"directions": self._directions([Rule.parse(rule) for rule in request["rules"]])}
        if operation == "fired":
            return self._fired(int(request.get("after", 0)))
        if operation == "state":
            return self._state()
        if operation == "cables":
            for name in request.get("remove", ()):
                self._remove_cable(name)
            self._add_cables(request.get("add", ()))
            return {}
        if operation == "flush":
            ways = [way for name in request["cables"] for way in self._wiring.cables[name]]
            return {"lost": sum(way.flush(self._buffer) for way in ways)}
        if operation == "subscribe":
            connection.subscribed = True
            return {}
        if operation == "shutdown":
            self._running = False
            return {}
        raise ValueError(f"no operation {operation!r}")

    def _arm(self, request: dict[str, Any]) -> dict[str, Any]:
        rules = [Rule.parse(rule) for rule in request["rules"]]
        directions = self._directions(rules)
        if any(rule.action in FORGING for rule in rules):
            _load_forge()
        seed = request.get("seed")
        return {"ids": [self._core.arm(rule, seed=seed) for rule in rules], "directions": directions}

    def _directions(self, rules: list[Rule]) -> list[tuple[str, str]]:
        for rule in rules:
            self._core.check(rule)
        return sorted({direction for rule in rules for direction in self._core.directions(rule)})

    def _fired(self, after: int) -> dict[str, Any]:
        events = self._core.events(after)[:EVENTS_PER_REPLY_MAX]
        return {
            "counts": self._core.counts(),
            "matched": self._core.matches(),
            "events": [asdict(event) for event in events],
            "next": events[-1].number if events else after,
            "at": time.monotonic_ns(),
        }

    def _state(self) -> dict[str, Any]:
        now = time.monotonic_ns()
        cables = {
            name: {
                way.source: {
                    "idle_ns": None if way.last_at is None else now - way.last_at,
                    "frames": way.frames,
                    "dropped": way.dropped,
                }
                for way in directions
            }
            for name, directions in self._wiring.cables.items()
        }
        return {"cables": cables, "at": now}

    def _tell_subscribers(self) -> None:
        listeners = [connection for connection in self._connections.values() if connection.subscribed]
        events: list[Fired] = self._core.events(self._told)
        if events:
            self._told = events[-1].number
        for event in events:
            for connection in listeners:
                self._send(connection, {"event": asdict(event)})

    def _send(self, connection: _Connection, message: dict[str, Any]) -> None:
        """A connection whose reader has fallen behind, or gone, is dropped: the cable does not wait for it."""
        try:
            connection.socket.send(json.dumps(message).encode())
        except OSError:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.socket.fileno(), None) is not None:
            self._epoll.unregister(connection.socket)
            connection.socket.close()

    def _add_cables(self, cables: Iterable[Mapping[str, Any]]) -> None:
        for cable in cables:
            name, ends = cable["name"], cable["ends"]
            if name in self._wiring.cables:
                raise ValueError(f"cable {name} is open already")
            self._core.add_cable(name, [end["node"] for end in ends])
            delay_ns, rate_bps = cable.get("delay_ns", 0), cable.get("rate_bps")
            self._open_cable(name, ends, Shape(delay_ns, rate_bps) if delay_ns or rate_bps else None)

    def _open_cable(self, name: str, ends: list[dict[str, str]], shape: Shape | None) -> None:
        opened: list[socket.socket] = []
        try:
            for end in ends:
                opened += (_open_tap(end["tap"]), _open_out(end["interface"]))
        except OSError:
            for item in opened:
                item.close()
            self._core.remove_cable(name)
            raise
        (first_tap, first_out, second_tap, second_out), first, second = opened, ends[0]["node"], ends[1]["node"]
        directions = (
            _Direction(name, first, second, first_tap, second_out),
            _Direction(name, second, first, second_tap, first_out),
        )
        self._wiring.cables[name] = directions
        for direction in directions:
            if shape is not None:
                direction.shaper = Shaper(shape)
                self._wiring.shaped.append(direction)
            self._wiring.by_tap[direction.tap.fileno()] = direction
            self._epoll.register(direction.tap, select.EPOLLIN)

    def _remove_cable(self, name: str) -> None:
        self._core.remove_cable(name)
        for direction in self._wiring.cables.pop(name, ()):
            del self._wiring.by_tap[direction.tap.fileno()]
            if direction.shaper is not None:
                self._wiring.shaped.remove(direction)
            self._epoll.unregister(direction.tap)
            direction.tap.close()
            direction.out.close()


def _open_tap(interface: str) -> socket.socket:
    """All frames that arrive at `interface`, not those sent there."""
    tap = _packet_socket()
    try:
        tap.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        enlarge_buffers(tap, _BUFFER_BYTES, _BUFFER_BYTES)
        tap.bind((interface, _ETH_P_ALL))
    except OSError:
        tap.close()
        raise
    return tap


def _open_out(interface: str) -> socket.socket:
    """A socket that sends on `interface` and receives nothing (protocol 0)."""
    out = _packet_socket()
    try:
        out.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        enlarge_buffers(out, 0, _BUFFER_BYTES)
        out.bind((interface, 0))
    except OSError:
        out.close()
        raise
    return out


def _packet_socket() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    opened.setblocking(False)
    return opened


def _load_forge() -> None:
    """Imports scapy now (some 0.5 s) rather than when the first frame is to be forged."""
    import lab.injector.forge  # noqa: F401


def _forge_lazily(action: str, frame: bytes, qpn: int, msn: int) -> bytes:
    from lab.injector.forge import forge

    return forge(action, frame, qpn, msn)


def main(config: Mapping[str, Any]) -> None:
    """Runs the injector process as `lab.injector` describes, until it is told to end. Call it in the main thread."""
    if config.get("log"):
        logging.basicConfig(filename=config["log"], level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    process = InjectorProcess(config)
    try:
        process.run()
    finally:
        process.close()
