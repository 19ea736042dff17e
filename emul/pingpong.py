"""ibv_rc_pingpong on emulated adapters: `python -m emul.pingpong`, with libibverbs' options and output.

As in `emul.perftest`, the adapter owns its interface, so that the ends find each other another way. Over TCP they tell
each other what ibv_rc_pingpong does (rdma-core, libibverbs/examples/rc_pingpong.c), so that it can be the other end;
nothing is said of -s, -n and -m: both have to be given the same.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import signal
import sys
import time
from errno import EPROTO

from emul.errors import PyverbsUserError, RDMAError
from emul.perftest.ends import End
from emul.perftest.exchange import UNIX, Exchange
from emul.perftest.options import ITERS_MAX, PORT, SIZE_MAX, AtomicType, Options, in_range, mtu_of
from emul.perftest.self_test import run_both
from emul.queues import QUEUE_DEPTH_MAX
from emul.vocabulary import RecvWR, SendFlags, SendWR, WCOpcode, WROpcode

PROG = "python -m emul.pingpong"
DONE = b"done\0"
"""The client's last word."""
_WORDS = re.compile(rb"[0-9a-f]{4}:([0-9a-f]{6}):([0-9a-f]{6}):([0-9a-f]{32})\0")


def parser() -> argparse.ArgumentParser:
    """All options."""
    parse = argparse.ArgumentParser(prog=PROG, description=__doc__, allow_abbrev=False)
    parse.add_argument("server", nargs="?", help="the server's exchange: host or unix:PATH (none: be the server)")
    parse.add_argument("-p", "--port", type=int, default=PORT, help="TCP port of the exchange (default %(default)s)")
    parse.add_argument("-d", "--ib-dev", metavar="IFACE", default="", help="interface that the adapter takes")
    parse.add_argument("--local", metavar="ADDRESS", default="", help="the adapter's own address on it")
    parse.add_argument("--wire", default="auto", help="auto, xdp or packet; with --self-test also xdp,packet")
    parse.add_argument("--exchange", default="", help="where a server listens: HOST, HOST:PORT or unix:PATH")
    parse.add_argument("-i", "--ib-port", type=int, default=1, help="port of the device: 1")
    parse.add_argument("-s", "--size", type=int, default=4096, help="size of message (default %(default)s)")
    parse.add_argument("-m", "--mtu", type=int, default=1024, help="path MTU (default %(default)s)")
    parse.add_argument("-r", "--rx-depth", type=int, default=500, help="receives posted at a time (default 500)")
    parse.add_argument("-n", "--iters", type=int, default=1000, help="number of exchanges (default %(default)s)")
    parse.add_argument("-l", "--sl", type=int, default=0, help="service level: 0")
    parse.add_argument("-e", "--events", action="store_true", help="sleep on CQ events (default poll)")
    parse.add_argument("-g", "--gid-idx", type=int, default=1, help="local port gid index (default %(default)s)")
    parse.add_argument("-c", "--chk", action="store_true", help="validate the received buffer")
    parse.add_argument("--self-test", action="store_true", help="both ends, on a cable made for it")
    parse.add_argument("--max-seconds", type=float, default=60.0, help="give up when nothing completes for so long")
    return parse


def options_from(given: argparse.Namespace) -> Options:
    """The options as perftest has them. Raises PyverbsUserError."""
    if given.ib_port != 1 or given.sl != 0:
        raise PyverbsUserError(f"an adapter has port 1 and service level 0, got -i {given.ib_port} -l {given.sl}")
    in_range("-p", given.port, 1, 65_535)
    in_range("-s", given.size, 1, SIZE_MAX)
    in_range("-r", given.rx_depth, 1, QUEUE_DEPTH_MAX - 1)
    in_range("-n", given.iters, 1, ITERS_MAX)
    in_range("-g", given.gid_idx, 0, 63)
    if not given.self_test and not (given.ib_dev and given.local):
        raise PyverbsUserError("an end needs an interface and an address: -d eth1 --local 10.77.0.1 (or --self-test)")
    return Options(
        "send_lat", given.server, given.ib_dev, given.local, given.wire, given.exchange, given.port, (given.size,),
        given.iters, 0, 1, given.rx_depth, mtu_of(given.mtu), 0, 1, 14, given.gid_idx, given.events, False, False,
        AtomicType.FETCH_AND_ADD, given.self_test, given.max_seconds,
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Exit status: 0, 1 when it failed, 2 for wrong options."""
    given = parser().parse_intermixed_args(arguments)
    try:
        options = options_from(given)
    except RDMAError as error:
        sys.stderr.write(f"{PROG}: {error.sentence}\n")
        return 2
    try:
        if options.self_test:
            return run_both("emul.pingpong", arguments, options.wire)
        return run_end(options, check=given.chk)
    except RDMAError as error:
        sys.stderr.write(f"{error.sentence}\n")
        return 1


def run_end(options: Options, *, check: bool) -> int:
    """One end: the server where no server is named."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # the adapter is not left behind
    if options.server is None:
        exchange = Exchange.serve(options.exchange, options.port, options.max_seconds)
    else:
        exchange = Exchange.connect(options.server, options.port, options.max_seconds)
    with End(options, exchange) as end:
        size, first = options.sizes[0], options.server is not None
        end.mr.write(bytes(number % 128 + 1 for number in range(size)), size, end.source)
        end.post_receives(options.rx_depth, size)
        mine = _connect(end, first=first)
        _say(f"  local address:  {_address(mine)}\n  remote address: {_address(end.remote)}")
        begun = time.perf_counter()
        _play(end, size, first=first)
        seconds = time.perf_counter() - begun
        exchange.part()  # the other end may still wait for the last acknowledgement
        octets = 2 * size * options.iters
        _say(f"{octets} bytes in {seconds:.2f} seconds = {octets * 8 / 1e6 / seconds:.2f} Mbit/sec")
        _say(f"{options.iters} iters in {seconds:.2f} seconds = {seconds * 1e6 / options.iters:.2f} usec/iter")
        if check and end.mr.read(size, end.target) != end.mr.read(size, end.source):
            raise PyverbsUserError("invalid data arrived")
    return 0


def _connect(end: End, *, first: bool) -> dict[str, object]:
    """Swaps facts with the other end and connects the queue pairs; gives our own. The server's is connected before it
    answers, as the client sends at once.
    """
    options, exchange = end.options, end.exchange
    if (options.server or options.exchange).startswith(UNIX):
        mine = end.connect()
        end.barrier()
        return mine
    mine = end.facts()
    words = words_for(mine)
    if first:
        exchange.tell_bytes(words)
    theirs = facts_in(exchange.take_bytes(len(words)))
    end.join({**theirs, "outs": options.outstanding, "mtu": int(end.mtu)})
    if first:
        exchange.tell_bytes(DONE)
    else:
        exchange.tell_bytes(words)
        exchange.take_bytes(len(DONE))
    return mine


def words_for(facts: dict[str, object]) -> bytes:
    """LID, queue pair number, PSN and GID as ibv_rc_pingpong tells them: hexadecimal, with the zero at the end."""
    gid = ipaddress.IPv6Address(str(facts["gid"])).packed.hex()
    return f"0000:{int(str(facts['qpn'])):06x}:{int(str(facts['psn'])):06x}:{gid}".encode() + b"\0"


def facts_in(words: bytes) -> dict[str, object]:
    """qpn, psn and gid of such words. Raises RDMAError (EPROTO)."""
    found = _WORDS.fullmatch(words)
    if found is None:
        raise RDMAError(EPROTO, f"the other end is no ibv_rc_pingpong: expected LID:QPN:PSN:GID, found {words[:80]!r}")
    gid = bytes.fromhex(found[3].decode())
    if not any(gid):
        raise RDMAError(EPROTO, "the other end has told no GID: ibv_rc_pingpong needs -g with the index of one")
    return {"qpn": int(found[1], 16), "psn": int(found[2], 16), "gid": ipaddress.IPv6Address(gid).exploded}


def _play(end: End, size: int, *, first: bool) -> None:
    iters = end.options.iters
    request = SendWR(2, WROpcode.SEND, 1, 0, [end.source_piece(size)], SendFlags.SIGNALED)
    buffer = RecvWR(1, 1, [end.target_piece(size)])
    sent = received = completed = 0
    while received < iters or completed < iters:
        # The client begins, and each end answers what it has got.
        while sent < min(iters, received + first) and sent == completed:
            end.qp.post_send(request)
            sent += 1
        for completion in end.completions():
            if completion.opcode & WCOpcode.RECV:
                received += 1
                end.qp.post_recv(buffer)
            else:
                completed += 1


def _address(facts: dict[str, object]) -> str:
    gid = ipaddress.IPv6Address(str(facts["gid"]))
    text = f"::ffff:{gid.ipv4_mapped}" if gid.ipv4_mapped else str(gid)
    return f"LID 0x0000, QPN {int(str(facts['qpn'])):#08x}, PSN {int(str(facts['psn'])):#08x}, GID {text}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
