"""`lab capture`: writes what crosses a cable of a running lab into a file for Wireshark."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lab.commands._labs import input_error, open_lab
from lab.errors import EXIT_PASS

HELP = "capture a cable of a lab into a pcapng file, until Ctrl-C"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", metavar="N", help="the lab")
    parser.add_argument("cable", metavar="CABLE", help="one of its cables")
    parser.add_argument("-o", "--output", metavar="FILE.pcapng", required=True, help="the file; it is replaced")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after this time (default: at Ctrl-C)")


def main(args: argparse.Namespace) -> int:
    """Captures until interrupted; then writes the file, with what the injector did meanwhile as packet comments."""
    from lab.capture.session import CableCaptures, injector_comments
    from lab.fabric.registry import unknown

    if args.seconds is not None and not args.seconds > 0:
        raise input_error(f"--seconds: expected more than 0, found {args.seconds:g}")
    target = Path(args.output)
    fabric = open_lab(args.name)
    try:
        if args.cable not in fabric.cables:
            raise unknown("cable", args.cable, fabric.cables)
        try:
            target.touch()
        except OSError as error:
            raise input_error(f"{target}: can't be written: {error.strerror}") from error
        captures = CableCaptures(fabric, [args.cable])
        try:
            begun = time.monotonic_ns()
            captures.start()
            sys.stderr.write(f"capturing {args.cable} of {fabric.lab_id}; Ctrl-C ends it\n")
            _wait(args.seconds)
            captures.stop()
            comments = [c for c in injector_comments(fabric).get(args.cable, ()) if c.at >= begun]
            frames, lost = captures.write(args.cable, target, comments)
        finally:
            captures.close()
    finally:
        fabric.detach()
    words = f", {lost:,} more were lost: the disk or this machine was too slow, or the capture too long" if lost else ""
    sys.stderr.write(f"{target}: {frames:,} frames{words}\n")
    return EXIT_PASS


def _wait(seconds: float | None) -> None:
    """Until then, or until Ctrl-C or SIGTERM, which are how a capture ends."""
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        while deadline is None or time.monotonic() < deadline:
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            time.sleep(max(0.0, min(3600.0, left)))
    except KeyboardInterrupt:
        return
