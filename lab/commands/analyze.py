"""`lab analyze`: judges the RoCEv2 connections in a capture by the InfiniBand specification."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lab.commands._labs import input_error
from lab.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS

if TYPE_CHECKING:
    from lab.wire.analyzer import Report
    from lab.wire.exchange import View

HELP = "judge the RoCEv2 connections in a capture (pcap, pcapng) by the InfiniBand specification"
FINDINGS_SHOWN_MAX = 50
_TIMEOUT_MAX = 31
_RNR_RETRY_MAX = 7
_TAPS = ("sender", "middle")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("file", metavar="FILE", help="a pcap or pcapng file with Ethernet frames")
    parser.add_argument(
        "--tap", choices=_TAPS,
        help="where it was captured: each frame as it left its sender, or somewhere between (default: sender for"
        " captures of this lab, else middle; at the sender more can be judged)",
    )  # fmt: skip
    parser.add_argument(
        "--from-start", action="store_true", help="the capture began before the connections did: MSNs count from 0"
    )
    parser.add_argument(
        "--reordered", action="store_true", help="behind the tap frames may have been reordered or repeated"
    )
    parser.add_argument("--mtu", type=int, metavar="BYTES", help="the path MTU, where the capture can't tell")
    parser.add_argument(
        "--timeout", type=int, metavar="EXPONENT",
        help="the local ACK timeout, 4.096 us x 2^EXPONENT, of connections that don't tell theirs by CM",
    )  # fmt: skip
    parser.add_argument("--rnr-retry", type=int, metavar="N", help="how often a refused SEND may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    """Prints what breaks a rule; status 0 where nothing does, 1 where something does, 4 with no RoCEv2 packets."""
    from lab.wire.analyzer import analyze
    from lab.wire.capture_file import read_capture
    from lab.wire.exchange import View
    from lab.wire.packets import MTUS

    if args.mtu is not None and args.mtu not in MTUS:
        raise input_error(f"--mtu: expected one of {', '.join(map(str, MTUS))}, found {args.mtu}")
    if args.timeout is not None and not 1 <= args.timeout <= _TIMEOUT_MAX:
        raise input_error(f"--timeout: expected 1 to {_TIMEOUT_MAX}, found {args.timeout}")
    if args.rnr_retry is not None and not 0 <= args.rnr_retry <= _RNR_RETRY_MAX:
        raise input_error(f"--rnr-retry: expected 0 to {_RNR_RETRY_MAX}, found {args.rnr_retry}")
    try:
        capture = read_capture(Path(args.file).read_bytes())
    except OSError as error:
        raise input_error(f"{args.file}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise input_error(f"{args.file}: {error}") from error
    view = View(
        at_senders=capture.at_senders if args.tap is None else args.tap == "sender",
        may_reorder=args.reordered,
        mtu=args.mtu,
        ack_timeout_ns=None if args.timeout is None else 4_096 << args.timeout,
        rnr_retry=args.rnr_retry,
        from_start=args.from_start,
    )
    report = analyze(((frame.at, frame.frame) for frame in capture.frames), view, lost=capture.lost)
    print(json.dumps(report.to_json(), indent=2) if args.json else _text(report, view))
    if report.total:
        return EXIT_FAIL
    return EXIT_PASS if report.packets else EXIT_INCONCLUSIVE


def _text(report: Report, view: View) -> str:
    tap = "at the senders" if view.at_senders else "in the middle"
    lines = [f"{report.frames:,} frames, {report.packets:,} RoCEv2 packets, captured {tap}"]
    if report.lost:
        lines.append(f"{report.lost:,} frames are missing in the capture: packets were judged, their order was not")
    for connection in report.connections:
        judged = "" if connection.judged else ", one direction only or of unknown path MTU"
        lines.append(
            f"  {connection.name}: {connection.packets:,} packets, {connection.repetitions:,} sent again,"
            f" {connection.wraps} PSN wraps{judged}"
        )
    lines += [str(finding) for finding in report.findings[:FINDINGS_SHOWN_MAX]]
    if report.total > FINDINGS_SHOWN_MAX:
        lines.append(f"... and {report.total - FINDINGS_SHOWN_MAX:,} more")
    if report.not_exercised:
        lines.append(f"not exercised: {', '.join(report.not_exercised)}")
    lines.append(f"{report.total:,} findings" if report.total else "no findings")
    return "\n".join(lines)
