"""The control channel between a host and its adapter's process: slow verbs and events over a Unix socket.

One SOCK_SEQPACKET connection; each message is a JSON object, with file descriptors of shared memory beside it
(SCM_RIGHTS). Requests carry "id" and are answered with the same; messages without "id" are events. The data path is not
here: it is in the rings, with one eventfd for each direction to wake a sleeper.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time
from collections import deque
from errno import EINVAL, ENODEV, ETIMEDOUT
from pathlib import Path

from emul.cm_events import CmEvent
from emul.errors import DeviceGone, RDMAError
from emul.host_context import Reply, Request
from emul.memory import Memory
from emul.queues import DoorbellRing
from emul.vocabulary import AsyncEvent, EventType

MESSAGE_BYTES_MAX = 65_536
DESCRIPTORS_MAX = 4
PING_WAIT_MS = 5
STILL_MAX_MS = 400
"""How long a verb waits for an adapter that gives no sign of running at all: it shows itself every 10 ms. One that
wants to run and isn't, as the machine has too much to do, is not dead.
"""
_SLICE_MS = 50
ANSWER_TIMEOUT_MS = 2_000
"""How long a slow verb may take; an adapter that is silent for longer counts as dead."""
STARVED_PATIENCE = 5
"""The time in which its process only waits for a processor counts for so much less."""
CONNECT_PAUSE_S = 0.001


def send_message(channel: socket.socket, message: dict[str, object], fds: list[int]) -> None:
    """Sends one message and the descriptors beside it."""
    socket.send_fds(channel, [json.dumps(message).encode()], fds)


def receive_message(channel: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """The next message; None at the end of the channel. Raises BlockingIOError where none waits on a non-blocking one,
    and ValueError for bytes that are no message (descriptors that came along are closed).
    """
    data, fds, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, DESCRIPTORS_MAX)
    if not data:
        return None
    try:
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise ValueError(f"no message: {error}") from error
    return message, fds


class SocketDevice:
    """An adapter process at the other end of a socket (Device)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._channel.settimeout(ANSWER_TIMEOUT_MS / 1000)
            self._connect(path)
        except OSError as error:
            self._channel.close()
            raise DeviceGone(error.errno or ETIMEDOUT, f"no adapter answers at {path}") from error
        self._peer = _peer_of(self._channel)
        self._poll = select.poll()
        self._poll.register(self._channel.fileno(), select.POLLIN)
        self._events: deque[AsyncEvent] = deque()
        self._cm_events: deque[CmEvent] = deque()
        self._doorbells: DoorbellRing | None = None
        self._memory: Memory | None = None
        self._doorbell_fd = -1
        self._next_id = 1
        self._ping_id = 0
        self._answered = False
        """The first question was answered (`answers`)."""
        self._gone = False
        self.event_fd = -1
        # What is read from the channel while a slow verb waits for its answer makes no channel readable any more: a
        # descriptor of our own tells of it, and one for both is what a host waits on.
        self._queued_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._either = select.epoll()
        self._either.register(self._channel.fileno(), select.EPOLLIN)
        self._either.register(self._queued_fd, select.EPOLLIN)

    def _connect(self, path: str) -> None:
        until = time.monotonic() + ANSWER_TIMEOUT_MS / 1000
        while True:
            try:
                self._channel.connect(path)
                return
            except BlockingIOError:  # others wait to be accepted: their number is bounded
                if time.monotonic() > until:
                    raise
                time.sleep(CONNECT_PAUSE_S)

    def attach(self, incarnation: int) -> None:
        """Device."""
        reply, fds = self._exchange({"op": "attach", "incarnation": incarnation}, [])
        if "errno" in reply:
            raise RDMAError(EINVAL, str(reply.get("message")))
        memory_fd, self._doorbell_fd, self.event_fd = fds
        self._memory = Memory.map(memory_fd)
        self._doorbells = DoorbellRing(self._memory.buffer)

    def call(self, request: Request, memories: list[Memory]) -> tuple[Reply, list[Memory]]:
        """Device."""
        reply, fds = self._exchange(request, [memory.fd for memory in memories if memory.fd is not None])
        return reply, [Memory.map(fd) if os.fstat(fd).st_size else Memory.bell(fd) for fd in fds]

    def ring(self, qp_num: int) -> None:
        """Device."""
        assert self._doorbells is not None
        if self._doorbells.ring(qp_num):
            os.eventfd_write(self._doorbell_fd, 1)

    def take_events(self) -> list[AsyncEvent]:
        """Device; a dead adapter is one DEVICE_FATAL."""
        self._drain()
        if not self._events:
            return []
        events = list(self._events)
        self._events.clear()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._queued_fd)
        return events

    def take_cm_events(self) -> list[CmEvent]:
        """Device."""
        self._drain()
        events = list(self._cm_events)
        self._cm_events.clear()
        return events

    def clear_wake(self) -> None:
        """Device."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.event_fd)

    @property
    def async_fd(self) -> int:
        """Device."""
        return self._either.fileno()

    def wait(self, bell: Memory | None, timeout_ms: int | None) -> bool:
        """Device."""
        if bell is not None and self._gone:
            raise DeviceGone(ENODEV, f"the adapter at {self._path} is dead")
        poll = select.poll()
        poll.register(self._either.fileno(), select.POLLIN)
        if bell is not None and bell.fd is not None:
            poll.register(bell.fd, select.POLLIN)
        end = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while True:
            left = None if end is None else max(0.0, 1000 * (end - time.monotonic()))
            ready = [fd for fd, _ in poll.poll(left)]
            if bell is not None and bell.fd in ready:
                os.eventfd_read(bell.fd)
                return True
            if not ready:
                return False
            if bell is None:
                return True
            self._drain()
            if self._gone:
                raise DeviceGone(ENODEV, f"the adapter at {self._path} is dead")
            # An asynchronous event: it stays for whoever asks for it, and doesn't wake this call again.
            poll.unregister(self._either.fileno())
            poll.register(self._channel.fileno(), select.POLLIN)

    def allocate(self, length: int, name: str) -> Memory:
        """Device."""
        return Memory.allocate(length, name)

    def descriptors(self) -> list[int]:
        """Device."""
        return [self.event_fd] if self._gone else [self.event_fd, self._channel.fileno()]

    def close(self) -> None:
        """Device."""
        self._gone = True
        self._either.close()
        self._channel.close()
        for fd in (self._doorbell_fd, self.event_fd, self._queued_fd):
            if fd >= 0:
                os.close(fd)
        self._doorbell_fd = self.event_fd = self._queued_fd = -1
        if self._memory is not None:
            self._doorbells = None
            self._memory.close()
            self._memory = None

    def _exchange(self, request: Request, fds: list[int]) -> tuple[Reply, list[int]]:
        if self._gone:
            raise DeviceGone(ENODEV, f"the adapter at {self._path} is dead")
        number, self._next_id = self._next_id, self._next_id + 1
        try:
            send_message(self._channel, {**request, "id": number}, fds)
            while True:
                self._await_answer()
                received = receive_message(self._channel)
                if received is None:
                    raise ConnectionResetError(104, "end of channel")
                message, new_fds = received
                if message.get("id") == number:
                    return message, new_fds
                self._take_event(message)
        except OSError as error:
            self._lose()
            raise DeviceGone(error.errno or ETIMEDOUT, f"the adapter at {self._path} does not answer") from error

    def _await_answer(self) -> None:
        """Until something has come. Raises TimeoutError: a card that stands still gets less time than one that is only
        slow, or is not run, as its host must not stand still with it.
        """
        beats, still_ms, left = self._beats(), 0, STARVED_PATIENCE * ANSWER_TIMEOUT_MS // _SLICE_MS
        while left > 0:
            if self._poll.poll(_SLICE_MS):
                return
            before, beats = beats, self._beats()
            waits = _is_runnable(self._peer)
            still_ms = still_ms + _SLICE_MS if beats == before and not waits else 0
            left -= 1 if waits else STARVED_PATIENCE
            if self._doorbells is not None and still_ms >= STILL_MAX_MS:
                break
        raise TimeoutError(ETIMEDOUT, "no answer in time")

    def _beats(self) -> int:
        return self._doorbells.beats() if self._doorbells is not None else 0

    def answers(self) -> bool:
        """Whether the adapter has answered a first question, which the first call asks, without waiting for it longer
        than a few milliseconds. Raises DeviceGone when it has died meanwhile.
        """
        first = self._ping_id == 0
        try:
            if first:
                self._ping_id, self._next_id = self._next_id, self._next_id + 1
                send_message(self._channel, {"op": "ping", "id": self._ping_id}, [])
            self._poll.poll(PING_WAIT_MS if first else 0)
        except OSError:
            self._lose()
        self._drain()
        if self._gone:
            raise DeviceGone(ENODEV, f"the adapter at {self._path} is dead")
        return self._answered

    def _drain(self) -> None:
        if self._gone:
            return
        try:
            while self._poll.poll(0):
                received = receive_message(self._channel)
                if received is None:
                    self._lose()
                    return
                self._take_event(received[0])
        except OSError:
            self._lose()

    def _lose(self) -> None:
        if not self._gone:
            self._gone = True
            self._either.unregister(self._channel.fileno())  # its end would be told for ever
            self._queue(AsyncEvent(EventType.DEVICE_FATAL, 0))

    def _queue(self, event: AsyncEvent) -> None:
        self._events.append(event)
        os.eventfd_write(self._queued_fd, 1)

    def _take_event(self, message: dict[str, object]) -> None:
        if self._ping_id and message.get("id") == self._ping_id:
            self._answered = True
        fields = message.get("event") or message.get("cm_event")
        if not isinstance(fields, list):
            return
        if "event" in message:
            self._queue(AsyncEvent(EventType(fields[0]), fields[1]))
        else:
            self._cm_events.append(CmEvent.from_fields(fields))


def _peer_of(channel: socket.socket) -> int:
    """Number of the process that listens at the other end; 0 where it can't be seen from here."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _is_runnable(pid: int) -> bool:
    """Whether a process waits for nothing but a processor: the machine has too much to do."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return line.rpartition(b")")[2].split()[:1] == [b"R"]
