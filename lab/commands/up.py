"""`lab up`: a lab that stays."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from lab.errors import EXIT_FAIL, EXIT_PASS

HELP = "start a lab that stays, and wait until its sessions are ready"
MISSING_SHOWN_MAX = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("topology", metavar="TOPOLOGY", help="a file, or the name of one that ships")
    parser.add_argument("--name", metavar="N", help="name of the lab (default: that of the topology)")
    parser.add_argument("--wire", default="auto", choices=("auto", "xdp", "packet"), help="how adapters move frames")
    parser.add_argument("--journal", action="store_true", help="each manager keeps a journal, for `lab journal`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for what hosts draw by chance")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="how long to wait for sessions (default: 30 and 1 for each node)",
    )


def main(args: argparse.Namespace) -> int:
    """Starts everything, tells what there is, leaves it running. Interrupted, it leaves nothing."""
    started = time.perf_counter()
    from lab.fabric.client import Fabric
    from lab.fabric.readiness import boot_and_wait
    from lab.plan import Plan
    from lab.topology import Topology
    from lab.worlds import world_for

    topology = Topology.load(args.topology)
    if args.journal:
        topology = replace(topology, journal=True)
    plan = Plan(topology)
    if world_for(topology) == "docker":
        from lab.docker.fabric import start_fabric
    else:
        start_fabric = Fabric.start
    fabric = start_fabric(plan, args.name or topology.name, args.wire, keep=True, seed=args.seed)
    try:
        booting = time.perf_counter()
        missing = boot_and_wait(fabric, plan, args.timeout)
        ready_ms = (time.perf_counter() - booting) * 1000
    except BaseException:
        fabric.stop()
        raise
    print(describe(fabric, topology.name, ready_ms, (time.perf_counter() - started) * 1000))
    fabric.detach()
    if not missing:
        return EXIT_PASS
    shown = [*missing[:MISSING_SHOWN_MAX], *(["..."] if len(missing) > MISSING_SHOWN_MAX else [])]
    print(f"lab: {len(missing)} sessions are not ready: {', '.join(shown)}", file=sys.stderr)
    print(f"lab: the lab stays up: `lab status {fabric.lab_id}`, `lab logs {fabric.lab_id} NODE`", file=sys.stderr)
    return EXIT_FAIL


def describe(fabric: object, topology: str, ready_ms: float, total_ms: float) -> str:
    """What there is, and the commands that one may want next."""
    from lab.fabric.client import Fabric

    assert isinstance(fabric, Fabric)
    name = fabric.lab_id
    lines = [f"lab {name}: topology {topology}, wire {fabric.wire}"]
    for cable in fabric.describe()["cables"]:
        lines.append(f"  cable {cable['cable']}: {' -- '.join(cable['ends'])}")
    lines.append(
        f"built in {fabric.timings['total']:.0f} ms, sessions ready {ready_ms:.0f} ms later ({total_ms:.0f} ms in all)"
    )
    first = next(iter(fabric.nodes))
    lines.append(f"next: lab status {name}; lab exec {name} {first} -- bash; lab logs {name} {first}; lab down {name}")
    return "\n".join(lines)
