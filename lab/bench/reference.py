"""What the lab's latency and throughput are held against: the same work done as barely as Python can do it.

    with References() as references:
        references.measure("bare-chain", record_bytes=512, count=2000).percentile(0.5)     # ns

| reference | what one operation is |
|---|---|
| bare-chain | host -> eventfd -> adapter -> port -> adapter (ICRC, copy) -> ACK -> adapter -> eventfd -> host |
| frame-ping-pong | a record in frames to another process and back, over the same kind of port |
| tcp-ping-pong | a record to another process and back over blocking TCP sockets |
| tcp-mirror | asyncio Protocols on both sides: a record is copied into a mapped region here and there, then confirmed |

All block while they wait, as the lab does. Frames carry up to 2048 bytes, as the lab's path MTU over AF_XDP does: 4 KiB
are two frames.
References stay up between calls, so that measurements can be interleaved with those of the lab.
"""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from emul.port.packet import PacketPort
from emul.port.xdp import XdpPort
from emul.wire.frame import Flow, ipv4_bytes
from emul.wire.icrc import crc32
from lab.bench.rig import LEFT_FRAMES, RIGHT_FRAMES, Measured, Rig, RigClient

PAYLOAD_BYTES_MAX = 2048
RECORD_BYTES_MAX = 256 * 1024
DEPTH_MAX = 256
_ENVELOPE, _TRANSPORT = 42, 42
_BTH = struct.Struct("!BBHII")
_RETH = struct.Struct("!QII")
_AETH = struct.Struct("!I")
_HEADERS = _BTH.size + _RETH.size
_WRITE, _WRITE_LAST, _ACKNOWLEDGE = 0x06, 0x08, 0x11
_ONES = crc32(b"\xff" * 8)
_RECORD = struct.Struct("!QI")  # sequence, bytes
_CONFIRMED = struct.Struct("!Q")

Port = XdpPort | PacketPort


class Reference(Protocol):
    """One way of doing the work; lives in the rig process."""

    def run(self, count: int, depth: int) -> Measured:
        """Does `count` operations, `depth` of them under way at once."""


def _envelope(source: str, target: str, rest_bytes: int) -> bytes:
    """The 42 bytes in front of a packet whose transport header and payload have `rest_bytes`, ICRC not counted."""
    flow = Flow(
        source_mac=b"\2\0\0\0\0\1", target_mac=b"\xff" * 6, source=ipv4_bytes(source), target=ipv4_bytes(target),
        source_port=0xC000,
    )  # fmt: skip
    return flow.frame(bytes(_BTH.size), bytes(rest_bytes - _BTH.size))[:_ENVELOPE]


class _Framer:
    """Puts envelopes and checksums around transport headers: as little as the wire needs."""

    def __init__(self, source: str, target: str) -> None:
        self._source, self._target = source, target
        self._envelopes: dict[int, bytes] = {}

    def frame(self, rest: bytes) -> bytes:
        envelope = self._envelopes.get(len(rest))
        if envelope is None:
            envelope = self._envelopes[len(rest)] = _envelope(self._source, self._target, len(rest))
        return b"".join((envelope, rest, crc32(rest, crc32(envelope, _ONES)).to_bytes(4, "little")))


def _intact(frame: bytes) -> bool:
    return crc32(frame[_TRANSPORT:-4], crc32(frame[:_ENVELOPE], _ONES)) == int.from_bytes(frame[-4:], "little")


def _cut(length: int) -> list[tuple[int, int]]:
    """Offsets and lengths of the packets of a record."""
    starts = range(0, length, PAYLOAD_BYTES_MAX)
    return [(start, min(PAYLOAD_BYTES_MAX, length - start)) for start in starts]


def _wait(epoll: select.epoll, port: Port) -> list[bytes]:
    """Blocks until frames come."""
    while True:
        epoll.poll()
        frames = port.receive()
        if frames:
            return frames


def _send_all(port: Port, frames: Sequence[bytes]) -> None:
    taken = port.send(frames)
    while taken < len(frames):
        taken += port.send(frames[taken:])


class BareChain:
    """Three processes: this one is the host, two helpers are the adapters."""

    def __init__(self, rig: Rig, record_bytes: int) -> None:
        self._bytes = record_bytes
        self._memory = mmap.mmap(-1, record_bytes)
        self._doorbell, self._completions = os.eventfd(0, 0), os.eventfd(0, 0)
        self._payload = os.urandom(record_bytes)
        interface = rig.join()
        near, far = rig.open_port(rig.left, interface), rig.open_port(rig.right, interface)
        rig.helper(lambda: self._near_adapter(near))
        rig.helper(lambda: self._far_adapter(far))

    def run(self, count: int, depth: int) -> Measured:
        """`depth` has to be 1: the chain is a latency reference."""
        if depth != 1:
            raise ValueError(f"the bare chain does one record at a time, not {depth}")
        samples: array.array[int] = array.array("q")
        begun = time.perf_counter_ns()
        for _ in range(count):
            start = time.perf_counter_ns()
            self._memory[:] = self._payload
            os.eventfd_write(self._doorbell, 1)
            os.eventfd_read(self._completions)
            samples.append(time.perf_counter_ns() - start)
        return Measured(samples, time.perf_counter_ns() - begun)

    def _near_adapter(self, port: Port) -> None:
        """Doorbell: the record goes out in frames. Acknowledgement: the host is woken."""
        framer, psn, packets = _Framer(LEFT_FRAMES, RIGHT_FRAMES), 0, _cut(self._bytes)
        last = len(packets) - 1
        with select.epoll() as epoll:
            epoll.register(self._doorbell, select.EPOLLIN)
            epoll.register(port.fileno(), select.EPOLLIN)
            while True:
                for fd, _ in epoll.poll():
                    if fd != self._doorbell:
                        for frame in port.receive():
                            if _intact(frame):
                                os.eventfd_write(self._completions, 1)
                        continue
                    os.eventfd_read(self._doorbell)
                    frames = []
                    for number, (offset, length) in enumerate(packets):
                        psn = (psn + 1) & 0xFFFFFF
                        opcode = _WRITE_LAST if number == last else _WRITE
                        head = _BTH.pack(opcode, 0, 0xFFFF, 2, psn) + _RETH.pack(offset, 7, length)
                        frames.append(framer.frame(head + self._memory[offset : offset + length]))
                    _send_all(port, frames)

    def _far_adapter(self, port: Port) -> None:
        """Copies what is intact into memory, and acknowledges the last packet of a record."""
        framer, memory, messages = _Framer(RIGHT_FRAMES, LEFT_FRAMES), bytearray(self._bytes), 0
        with select.epoll() as epoll:
            epoll.register(port.fileno(), select.EPOLLIN)
            while True:
                for frame in _wait(epoll, port):
                    if not _intact(frame):
                        continue
                    opcode, _, _, _, psn = _BTH.unpack_from(frame, _TRANSPORT)
                    offset, _, length = _RETH.unpack_from(frame, _TRANSPORT + _BTH.size)
                    start = _TRANSPORT + _HEADERS
                    memory[offset : offset + length] = frame[start : start + length]
                    if opcode == _WRITE_LAST:
                        messages += 1
                        answer = _BTH.pack(_ACKNOWLEDGE, 0, 0xFFFF, 1, psn) + _AETH.pack(messages & 0xFFFFFF)
                        port.send([framer.frame(answer)])


class FramePingPong:
    """A record's frames to a helper and back: what the port alone costs."""

    def __init__(self, rig: Rig, record_bytes: int) -> None:
        interface = rig.join()
        self._port, far = rig.open_port(rig.left, interface), rig.open_port(rig.right, interface)
        there, back = _Framer(LEFT_FRAMES, RIGHT_FRAMES), _Framer(RIGHT_FRAMES, LEFT_FRAMES)
        payloads = [bytes(length) for _, length in _cut(record_bytes)]
        self._frames = [there.frame(bytes(_HEADERS) + payload) for payload in payloads]
        answers = [back.frame(bytes(_HEADERS) + payload) for payload in payloads]
        self._epoll = select.epoll()
        self._epoll.register(self._port.fileno(), select.EPOLLIN)
        rig.helper(lambda: self._echo(far, answers))

    def run(self, count: int, depth: int) -> Measured:
        """`depth` has to be 1."""
        if depth != 1:
            raise ValueError(f"a ping-pong has one record under way, not {depth}")
        samples: array.array[int] = array.array("q")
        begun = time.perf_counter_ns()
        for _ in range(count):
            start = time.perf_counter_ns()
            _send_all(self._port, self._frames)
            missing = len(self._frames)
            while missing > 0:
                missing -= len(_wait(self._epoll, self._port))
            samples.append(time.perf_counter_ns() - start)
        return Measured(samples, time.perf_counter_ns() - begun)

    @staticmethod
    def _echo(port: Port, answers: Sequence[bytes]) -> None:
        with select.epoll() as epoll:
            epoll.register(port.fileno(), select.EPOLLIN)
            got = 0
            while True:
                got += len(_wait(epoll, port))
                if got >= len(answers):
                    _send_all(port, answers)
                    got -= len(answers)


class TcpPingPong:
    """A record to a helper and back over TCP, blocking sockets."""

    def __init__(self, rig: Rig, record_bytes: int) -> None:
        self._record = bytes(record_bytes)
        listener, address = rig.listen()
        rig.helper(lambda: self._echo(listener, record_bytes))
        listener.close()
        self._stream = rig.connect(address)

    def run(self, count: int, depth: int) -> Measured:
        """`depth` has to be 1."""
        if depth != 1:
            raise ValueError(f"a ping-pong has one record under way, not {depth}")
        samples: array.array[int] = array.array("q")
        buffer = bytearray(len(self._record))
        begun = time.perf_counter_ns()
        for _ in range(count):
            start = time.perf_counter_ns()
            self._stream.sendall(self._record)
            _read_exactly(self._stream, buffer)
            samples.append(time.perf_counter_ns() - start)
        return Measured(samples, time.perf_counter_ns() - begun)

    @staticmethod
    def _echo(listener: socket.socket, record_bytes: int) -> None:
        stream, _ = listener.accept()
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(record_bytes)
        while True:
            _read_exactly(stream, buffer)
            stream.sendall(buffer)


def _read_exactly(stream: socket.socket, buffer: bytearray) -> None:
    """Fills the buffer. Raises EOFError when the other side has gone."""
    view, got = memoryview(buffer), 0
    while got < len(buffer):
        count = stream.recv_into(view[got:])
        if not count:
            raise EOFError("the other side closed the connection")
        got += count


class _MirrorServer(asyncio.Protocol):
    """Copies each record into its slot of a mapped region, and confirms its sequence number."""

    def __init__(self, region: mmap.mmap) -> None:
        self._region = region
        self._waiting = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Takes all whole records; their confirmations leave in one write."""
        waiting = self._waiting
        waiting += data
        start, confirmed = 0, []
        while len(waiting) - start >= _RECORD.size:
            sequence, length = _RECORD.unpack_from(waiting, start)
            end = start + _RECORD.size + length
            if len(waiting) < end:
                break
            slot = sequence % DEPTH_MAX * length
            self._region[slot : slot + length] = waiting[start + _RECORD.size : end]
            confirmed.append(_CONFIRMED.pack(sequence))
            start = end
        if start:
            del waiting[:start]
            self._transport.write(b"".join(confirmed))


class _MirrorClient(asyncio.Protocol):
    """Keeps `depth` records under way until `count` are confirmed."""

    def __init__(self, region: mmap.mmap, payload: bytes, count: int, depth: int, done: asyncio.Future[None]) -> None:
        self._region, self._payload, self._count, self._depth, self._done = region, payload, count, depth, done
        self.samples: array.array[int] = array.array("q")
        self._waiting = b""
        self._sent = 0
        self._begun: dict[int, int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Fills the pipeline."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        for _ in range(min(self._depth, self._count)):
            self._submit()

    def data_received(self, data: bytes) -> None:
        """Each confirmation makes room for the next record."""
        data = self._waiting + data
        whole = len(data) - len(data) % _CONFIRMED.size
        self._waiting = data[whole:]
        for (sequence,) in _CONFIRMED.iter_unpack(data[:whole]):
            self.samples.append(time.perf_counter_ns() - self._begun.pop(sequence))
            if self._sent < self._count:
                self._submit()
        if len(self.samples) == self._count and not self._done.done():
            self._done.set_result(None)

    def _submit(self) -> None:
        sequence, payload = self._sent, self._payload
        self._sent += 1
        self._begun[sequence] = time.perf_counter_ns()
        slot = sequence % DEPTH_MAX * len(payload)
        self._region[slot : slot + len(payload)] = payload
        self._transport.write(_RECORD.pack(sequence, len(payload)) + payload)


class TcpMirror:
    """The mirrored write as one would do it over TCP with asyncio."""

    def __init__(self, rig: Rig, record_bytes: int) -> None:
        self._rig = rig
        self._payload = os.urandom(record_bytes)
        self._region = mmap.mmap(-1, record_bytes * DEPTH_MAX)
        listener, self._address = rig.listen()
        rig.helper(lambda: self._answer(listener, record_bytes))
        listener.close()

    def run(self, count: int, depth: int) -> Measured:
        """Any depth up to DEPTH_MAX."""
        if not 0 < depth <= DEPTH_MAX:
            raise ValueError(f"depth is 1 ... {DEPTH_MAX}, got {depth}")
        return asyncio.run(self._mirror(count, depth))

    async def _mirror(self, count: int, depth: int) -> Measured:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        client = _MirrorClient(self._region, self._payload, count, depth, done)
        begun = time.perf_counter_ns()
        transport, _ = await loop.create_connection(lambda: client, sock=self._rig.connect(self._address))
        await done
        elapsed = time.perf_counter_ns() - begun
        transport.close()
        return Measured(client.samples, elapsed)

    @staticmethod
    def _answer(listener: socket.socket, record_bytes: int) -> None:
        async def serve() -> None:
            region = mmap.mmap(-1, record_bytes * DEPTH_MAX)
            server = await asyncio.get_running_loop().create_server(lambda: _MirrorServer(region), sock=listener)
            await server.serve_forever()

        asyncio.run(serve())


REFERENCES: dict[str, Callable[[Rig, int], Reference]] = {
    "bare-chain": BareChain,
    "frame-ping-pong": FramePingPong,
    "tcp-ping-pong": TcpPingPong,
    "tcp-mirror": TcpMirror,
}


class _Server:
    """Runs in the rig process: makes each reference when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int], Reference] = {}
        self._streams = False

    def __call__(self, rig: Rig, request: dict[str, object]) -> Measured:
        name, size = str(request["name"]), int(str(request["record_bytes"]))
        if not self._streams:
            rig.join(addressed=True)
            self._streams = True
        if (name, size) not in self._made:
            self._made[name, size] = REFERENCES[name](rig, size)
        return self._made[name, size].run(int(str(request["count"])), int(str(request["depth"])))


class References:
    """All references in a rig of their own. `wire` is the lab's ("auto", "xdp", "packet"). Raises MachineError."""

    def __init__(self, wire: str = "auto") -> None:
        self._client = RigClient(_Server(), wire)
        self.wire = self._client.wire

    def measure(self, name: str, *, record_bytes: int, count: int, depth: int = 1) -> Measured:
        """Measures `count` operations. The first call for a name and size also sets that reference up.

        Raises ValueError for an unknown name or a size outside 1 ... RECORD_BYTES_MAX; MachineError when it cannot.
        """
        if name not in REFERENCES:
            raise ValueError(f"no reference {name!r}; there are {', '.join(REFERENCES)}")
        if not 0 < record_bytes <= RECORD_BYTES_MAX:
            raise ValueError(f"a record has 1 to {RECORD_BYTES_MAX} bytes, got {record_bytes}")
        return self._client.measure(name=name, record_bytes=record_bytes, count=count, depth=depth)

    def close(self) -> None:
        """Ends the rig."""
        self._client.close()

    def __enter__(self) -> References:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
