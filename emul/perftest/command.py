"""`python -m emul.perftest`: runs one end, or both on a cable of their own."""

from __future__ import annotations

import signal
import sys

from emul.errors import RDMAError
from emul.perftest import bandwidth, latency, report
from emul.perftest.ends import End
from emul.perftest.exchange import Exchange
from emul.perftest.options import Options, options_from
from emul.perftest.self_test import run_both

PROG = "python -m emul.perftest"


def main(arguments: list[str]) -> int:
    """Exit status: 0, 1 when it failed, 2 for wrong options."""
    try:
        options = options_from(arguments, PROG)
    except RDMAError as error:
        sys.stderr.write(f"{PROG}: {getattr(error, 'sentence', error)}" + "\n")
        return 2
    try:
        return run_both("emul.perftest", arguments, options.wire) if options.self_test else run_end(options)
    except RDMAError as error:
        sys.stderr.write(f" {error.sentence}" + "\n")
        return 1
    except KeyboardInterrupt:
        return 130


def run_end(options: Options) -> int:
    """One end: the server where no server is named."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # the adapter is not left behind
    if options.server is None:
        _say(f"\n{'*' * 36}\n* Waiting for client to connect... *\n{'*' * 36}")
        exchange = Exchange.serve(options.exchange, options.port, options.max_seconds)
    else:
        exchange = Exchange.connect(options.server, options.port, options.max_seconds)
    with End(options, exchange) as end:
        mine = end.connect()
        _say(report.header(options, end.mtu.size, options.interface, end.wire))
        _say(report.address("local", options, mine))
        _say(report.address("remote", options, end.remote))
        _say(report.LINE)
        _say(report.columns(options))
        measure = latency.measure if options.is_latency else bandwidth.measure
        for size in options.sizes:
            row = measure(end, size)
            if row:
                _say(row)
        _say(report.LINE)
        end.barrier()
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()  # who reads along sees each row as it is measured
