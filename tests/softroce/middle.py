"""The cable between the guest and the adapter: raw frames pass through a thread that a test can look and reach into."""

from __future__ import annotations

import os
import select
import socket
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from emul.wire.headers import Opcode
from emul.wire.icrc import icrc

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 263, 20, 23
FRAME_BYTES_MAX = 65_536
SEEN_MAX = 20_000
_HEADERS = {b"\x08\x00": 34, b"\x86\xdd": 54}  # Ethernet with IPv4 (no options), with IPv6
_UDP_PORT = (4791).to_bytes(2, "big")


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame that entered the cable; `sender` is "adapter" or "peer"."""

    sender: str
    frame: bytes

    @property
    def start(self) -> int:
        """Where its BTH begins; -1 for anything that is not RoCEv2."""
        header = _HEADERS.get(self.frame[12:14], 0)
        roce = header and self.frame[header + 2 : header + 4] == _UDP_PORT
        return header + 8 if roce else -1

    @property
    def opcode(self) -> int:
        """Its BTH opcode; -1 for anything that is not RoCEv2."""
        return self.frame[self.start] if self.start >= 0 else -1

    @property
    def qpn(self) -> int:
        """The queue pair that it goes to."""
        return int.from_bytes(self.frame[self.start + 5 : self.start + 8], "big")

    @property
    def psn(self) -> int:
        """Its PSN."""
        return int.from_bytes(self.frame[self.start + 9 : self.start + 12], "big")

    @property
    def syndrome(self) -> int:
        """Syndrome of its AETH; -1 for packets without one."""
        return self.frame[self.start + 12] if self.opcode in (0x0D, 0x0F, 0x10, 0x11, 0x12) else -1

    def __str__(self) -> str:
        if self.start < 0:
            return f"{self.sender:7} not RoCEv2, {len(self.frame)} bytes"
        try:
            name = Opcode(self.opcode).name
        except ValueError:
            name = f"opcode {self.opcode:#x}"
        ask = " AckReq" if self.frame[self.start + 8] & 0x80 else ""
        syndrome = "" if self.syndrome < 0 else f" syndrome {self.syndrome:#04x}"
        msn = ""
        if self.syndrome >= 0:
            msn = f" MSN {int.from_bytes(self.frame[self.start + 13 : self.start + 16], 'big')}"
        return f"{self.sender:7} {name} PSN {self.psn:#08x}{ask}{syndrome}{msn} ({len(self.frame)} bytes)"


def raw_socket(interface: str) -> socket.socket:
    """All frames of an interface of the calling thread's namespace, in and out."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    opened.bind((interface, _ETH_P_ALL))
    opened.setblocking(False)
    return opened


class Middle:
    """Forwards between two raw sockets. `filter` decides what becomes of each RoCEv2 frame: the frames that go on."""

    def __init__(self, adapter: socket.socket, peer: socket.socket) -> None:
        self._sockets = {"adapter": adapter, "peer": peer}
        self._stop, self._stopped = os.pipe()
        self.seen: list[Seen] = []
        self._disturbed: dict[int, str] = {}
        """What became of frames that did not just pass, in words."""
        self.filter: Callable[[Seen], list[bytes]] = pass_on
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="middle")
        self._thread.start()

    def forget(self) -> None:
        """Frames pass again, and what was seen is forgotten."""
        self.filter = pass_on
        self.seen = []
        self._disturbed = {}

    def story(self, last: int = 60) -> str:
        """The latest frames, one a line."""
        return "\n".join(str(seen) + self._disturbed.get(id(seen), "") for seen in self.seen[-last:])

    def close(self) -> None:
        """Cuts the cable; the adapter's socket is closed, the peer's is its owner's."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._sockets["adapter"].close()

    def _run(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._stop, select.POLLIN)
            names = {}
            for name, each in self._sockets.items():
                names[each.fileno()] = name
                poll.register(each.fileno(), select.POLLIN)
            while True:
                for fd, _ in poll.poll():
                    if fd == self._stop:
                        return
                    self._forward(names[fd])
        except BaseException as error:
            self.failure = error
            raise

    def _forward(self, sender: str) -> None:
        out = self._sockets["peer" if sender == "adapter" else "adapter"]
        try:
            seen = Seen(sender, self._sockets[sender].recv(FRAME_BYTES_MAX))
        except BlockingIOError:
            return
        except OSError:
            return  # the interface is going
        frames = [seen.frame]
        if seen.start >= 0:
            frames = self.filter(seen)
            if len(self.seen) < SEEN_MAX:
                self.seen.append(seen)
                if frames != [seen.frame]:
                    passed = ", ".join(str(Seen("then", frame)) for frame in frames)
                    self._disturbed[id(seen)] = f" => {passed or 'lost or held'}"
        for frame in frames:
            try:
                out.send(frame)
            except OSError:
                continue


def with_flush_icrc_of_rxe(inner: Callable[[Seen], list[bytes]]) -> Callable[[Seen], list[bytes]]:
    """A filter that does what `inner` does, and makes each side's FLUSH acceptable to the other.

    rdma_rxe (Linux 6.2 to 7.3 at least) has the transport headers of a FLUSH twice in its ICRC, and drops those that
    have them once, as the specification wants them and as the adapter sends them.
    """

    def mend(seen: Seen) -> list[bytes]:
        frames = inner(seen)
        if seen.opcode != Opcode.FLUSH:
            return frames
        twice = seen.sender == "adapter"
        return [frame[:-4] + _flush_icrc(frame[14:-4], twice=twice) for frame in frames]

    return mend


def _flush_icrc(packet: bytes, *, twice: bool) -> bytes:
    once = icrc(packet)
    return zlib.crc32(packet[28:], int.from_bytes(once, "little")).to_bytes(4, "little") if twice else once


def pass_on(seen: Seen) -> list[bytes]:
    """Every frame goes on as it is."""
    return [seen.frame]
