"""perftest's options, and what is wrong with those that were given."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from enum import Enum

from emul.errors import PyverbsUserError
from emul.queues import INLINE_BYTES_MAX, QUEUE_DEPTH_MAX
from emul.vocabulary import MTU

TESTS = tuple(f"{verb}_{kind}" for verb in ("send", "write", "read", "atomic") for kind in ("lat", "bw"))
PORT = 18515
SIZE_MAX = 1 << 23
ITERS_MIN, ITERS_MAX = 5, 100_000_000
ATOMIC_BYTES = 8
OUTSTANDING_MAX = 16
"""READs and atomics in flight, as perftest asks a device for at the most."""


class AtomicType(Enum):
    """Which atomic is measured."""

    FETCH_AND_ADD = "FETCH_AND_ADD"
    CMP_AND_SWAP = "CMP_AND_SWAP"


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be measured, and how."""

    test: str
    server: str | None
    """Where the server's exchange listens: host, or unix:PATH; None on the server."""
    interface: str
    local: str
    wire: str
    exchange: str
    """Where this server's exchange listens."""
    port: int
    sizes: tuple[int, ...]
    iters: int
    duration_s: int
    """0: `iters` decides."""
    tx_depth: int
    rx_depth: int
    mtu: MTU | None
    inline: int
    outstanding: int
    timeout: int
    gid_index: int
    events: bool
    bidirectional: bool
    gbits: bool
    atomic: AtomicType
    self_test: bool
    max_seconds: float
    managed: bool = False
    """Whether connection management connects the queue pairs, or each end its own."""

    @property
    def verb(self) -> str:
        """send, write, read or atomic."""
        return self.test.partition("_")[0]

    @property
    def is_latency(self) -> bool:
        """Whether latency is measured, else bandwidth."""
        return self.test.endswith("_lat")


def parser(prog: str) -> argparse.ArgumentParser:
    """All options."""
    parse = argparse.ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    parse.add_argument("test", choices=TESTS, help="what is measured")
    parse.add_argument("server", nargs="?", help="the server's exchange: host or unix:PATH (none: be the server)")
    parse.add_argument("-d", "--ib-dev", metavar="IFACE", default="", help="interface that the adapter takes")
    parse.add_argument("--local", metavar="ADDRESS", default="", help="the adapter's own address on it")
    parse.add_argument("--wire", default="auto", help="auto, xdp or packet; with --self-test also xdp,packet")
    parse.add_argument("--exchange", default="", help="where a server listens: HOST, HOST:PORT or unix:PATH")
    parse.add_argument("-p", "--port", type=int, default=PORT, help="TCP port of the exchange (default %(default)s)")
    parse.add_argument("-s", "--size", type=_size, help="bytes (default 2 for latency, 65536 for bandwidth)")
    parse.add_argument("-a", "--all", action="store_true", help="all sizes, 2 to 2^23")
    parse.add_argument("-n", "--iters", type=int, help="exchanges (default 1000; 5000 for write and send bandwidth)")
    parse.add_argument("-D", "--duration", type=int, default=0, help="seconds, instead of a number of exchanges")
    parse.add_argument("-t", "--tx-depth", type=int, help="sends in flight (default 128, latency 1)")
    parse.add_argument("-r", "--rx-depth", type=int, default=512, help="receives that are posted")
    parse.add_argument("-m", "--mtu", type=int, help="path MTU: 256, 512, 1024, 2048, 4096 (default the port's)")
    parse.add_argument("-I", "--inline_size", type=int, help="largest message that is sent inline")
    parse.add_argument("-o", "--outs", type=int, default=OUTSTANDING_MAX, help="READs and atomics in flight")
    parse.add_argument("-u", "--qp-timeout", type=int, default=14, help="4.096 us x 2^timeout")
    parse.add_argument("-x", "--gid-index", type=int, default=1, help="index of the port's GID")
    parse.add_argument("-q", "--qp", type=int, default=1, help="queue pairs: 1")
    parse.add_argument("-i", "--ib-port", type=int, default=1, help="port of the device: 1")
    parse.add_argument("-e", "--events", action="store_true", help="sleep on completion events (default: poll first)")
    parse.add_argument("-b", "--bidirectional", action="store_true", help="both ends send (bandwidth)")
    parse.add_argument("-A", "--atomic_type", default="FETCH_AND_ADD", help="FETCH_AND_ADD or CMP_AND_SWAP")
    parse.add_argument("-F", "--CPU-freq", action="store_true", help="accepted: time is read from the system's clock")
    parse.add_argument("-R", "--rdma_cm", action="store_true", help="connect through connection management (emul.cm)")
    parse.add_argument("--report_gbits", action="store_true", help="Gb/s instead of MB/s")
    parse.add_argument(
        "--self-test",
        "--loopback-pair",
        action="store_true",
        help="both ends, on a cable between two namespaces made for it",
    )
    parse.add_argument("--max-seconds", type=float, default=60.0, help="give up when nothing completes for so long")
    return parse


def options_from(arguments: list[str], prog: str) -> Options:
    """The options. Raises PyverbsUserError where they make no sense; ends the program (2) for unknown ones."""
    given = parser(prog).parse_intermixed_args(arguments)
    latency, verb = given.test.endswith("_lat"), given.test.partition("_")[0]
    _check_plain(given)
    if not given.self_test:
        _check_end(given)
    if given.bidirectional and latency:
        raise PyverbsUserError("-b belongs to bandwidth tests")
    depth = given.tx_depth if given.tx_depth is not None else 1 if latency else 128
    in_range("-t", depth, 1, QUEUE_DEPTH_MAX)
    if latency and depth != 1:
        raise PyverbsUserError("latency is measured with one message in flight: -t 1")
    iters = given.iters if given.iters is not None else 5000 if not latency and verb in ("write", "send") else 1000
    in_range("-n", iters, ITERS_MIN, ITERS_MAX)
    if given.duration and given.iters is not None:
        raise PyverbsUserError("-D and -n are two ways to say when to stop: give one")
    if given.duration and given.all:
        raise PyverbsUserError("-D goes with one size, not with -a")
    if given.duration and given.test == "write_lat":
        raise PyverbsUserError("write_lat has no way to tell the other end that time is up: -n instead of -D")
    sizes = _sizes(given, verb, latency)
    inlines = verb in ("send", "write")
    inline = given.inline_size if given.inline_size is not None else INLINE_BYTES_MAX if latency and inlines else 0
    in_range("-I", inline, 0, INLINE_BYTES_MAX)
    if inline and not inlines:
        raise PyverbsUserError(f"{given.test} sends nothing inline: -I 0")
    if given.atomic_type not in AtomicType.__members__:
        raise PyverbsUserError(f"-A is {' or '.join(AtomicType.__members__)}, got {given.atomic_type!r}")
    return Options(
        given.test, given.server, given.ib_dev, given.local, given.wire, given.exchange, given.port, sizes, iters,
        given.duration, depth, given.rx_depth, mtu_of(given.mtu), inline, given.outs, given.qp_timeout, given.gid_index,
        given.events, given.bidirectional, given.report_gbits, AtomicType[given.atomic_type], given.self_test,
        given.max_seconds, given.rdma_cm,
    )  # fmt: skip


def _check_managed(given: argparse.Namespace) -> None:
    if given.mtu is not None:
        raise PyverbsUserError("-m is not for -R: connection management takes the path MTU of the client's port")


def _check_plain(given: argparse.Namespace) -> None:
    if given.rdma_cm:
        _check_managed(given)
    if given.qp != 1 or given.ib_port != 1:
        raise PyverbsUserError(f"an adapter has port 1 and a test one queue pair, got -i {given.ib_port} -q {given.qp}")
    in_range("-p", given.port, 1, 65_535)
    in_range("-r", given.rx_depth, 2, QUEUE_DEPTH_MAX)
    in_range("-o", given.outs, 1, OUTSTANDING_MAX)
    in_range("-u", given.qp_timeout, 0, 31)
    in_range("-x", given.gid_index, 0, 63)
    in_range("-D", given.duration, 0, 86_400)


def _check_end(given: argparse.Namespace) -> None:
    if not given.ib_dev or not given.local:
        raise PyverbsUserError(
            "an end needs an interface and an address of its own on it: -d eth1 --local 10.77.0.1 (or --self-test)"
        )
    if given.server is not None and given.exchange:
        raise PyverbsUserError("--exchange is the server's; a client is told where that is by its argument")


def _sizes(given: argparse.Namespace, verb: str, latency: bool) -> tuple[int, ...]:
    if verb == "atomic":
        if given.all or given.size not in (None, ATOMIC_BYTES):
            raise PyverbsUserError(f"an atomic has {ATOMIC_BYTES} bytes")
        return (ATOMIC_BYTES,)
    if given.all:
        if given.size is not None:
            raise PyverbsUserError("-a and -s are two ways to say how much: give one")
        return tuple(1 << power for power in range(1, SIZE_MAX.bit_length()))
    size = given.size if given.size is not None else 2 if latency else 65_536
    in_range("-s", size, 1, SIZE_MAX)
    return (size,)


def mtu_of(size: int | None) -> MTU | None:
    """The path MTU of so many bytes. Raises PyverbsUserError."""
    if size is None:
        return None
    for mtu in MTU:
        if mtu.size == size:
            return mtu
    raise PyverbsUserError(f"-m is {', '.join(str(mtu.size) for mtu in MTU)}, got {size}")


def _size(text: str) -> int:
    """A number of bytes, as perftest takes it: 4096, 4K, 1M."""
    match = re.fullmatch(r"(\d+)([kKmM]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected bytes, such as 4096, 4K or 1M, got {text!r}")
    return int(match[1]) << {"": 0, "k": 10, "m": 20}[match[2].lower()]


def in_range(name: str, value: int, least: int, most: int) -> None:
    """Raises PyverbsUserError where an option is out of its range."""
    if not least <= value <= most:
        raise PyverbsUserError(f"{name} must be {least} ... {most}, got {value}")
