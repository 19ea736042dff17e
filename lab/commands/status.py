"""`lab status`: partners, paths and sessions of a running lab, as its hosts see them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from lab.commands._labs import open_lab, table
from lab.errors import EXIT_PASS

if TYPE_CHECKING:
    from lab.fabric.client import Fabric

HELP = "show partners, paths, sessions and epochs of a running lab"
WATCH_S = 1.0
ASK_MAX_S = 1.0
_CLEAR = "\x1b[H\x1b[2J"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", metavar="N", help="the lab")
    parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout (with --watch: one a line)")


def main(args: argparse.Namespace) -> int:
    """Asks all hosts and prints what they say."""
    from lab.fabric.client import FabricGone

    fabric = open_lab(args.name)
    try:
        while True:
            state = collect(fabric)
            if args.json:
                text = json.dumps(state, indent=None if args.watch else 2)
            else:
                text = (_CLEAR if args.watch and sys.stdout.isatty() else "") + render(state)
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
            if not args.watch:
                return EXIT_PASS
            time.sleep(WATCH_S)
    except FabricGone:
        if not args.watch:
            raise
        sys.stderr.write(f"lab: {fabric.lab_id} has ended\n")
        return EXIT_PASS
    finally:
        fabric.detach()


def collect(fabric: Fabric) -> dict[str, Any]:
    """The fabric's own state, and each host's answer to `status` (None with an `error` where there is none)."""
    from lab.fabric.client import HostSilent

    state = fabric.describe()
    nodes: dict[str, Any] = {}
    running = {str(process["key"]): bool(process["running"]) for process in fabric.processes()}
    for node, adapters in fabric.nodes.items():
        entry: dict[str, Any] = {
            "adapters": {name: "running" if running.get(f"{node}/{name}") else "dead" for name in adapters},
            "host": None,
            "error": None,
        }
        try:
            entry["host"] = fabric.host(node, {"op": "status"}, timeout=ASK_MAX_S)
        except HostSilent as error:
            entry["error"] = str(error)
        nodes[node] = entry
    return {
        "lab": state["lab"],
        "topology": state["topology"],
        "wire": state["wire"],
        "cables": state["cables"],
        "nodes": nodes,
    }


def render(state: dict[str, Any]) -> str:
    """The state as tables."""
    cables = [("CABLE", "ENDS", "STATE")]
    cables += [(cable["cable"], " -- ".join(cable["ends"]), cable_state(cable)) for cable in state["cables"]]
    nodes = [("NODE", "HOST", "ADAPTERS")]
    paths = [("NODE", "PARTNER", "PATH", "STATE", "FOR", "REASON", "LOSSES", "FENCE", "ROUND TRIP")]
    sessions = [("NODE", "PARTNER", "CLIENT", "STATE", "FOR", "EPOCH", "ERRORS", "ROUTES")]
    refusals = [("NODE", "PARTNER", "REFUSED", "THE LAST ONE")]
    for node, entry in state["nodes"].items():
        adapters = ", ".join(f"{name} {word}" for name, word in entry["adapters"].items())
        nodes.append((node, host_word(entry), adapters))
        now_ns = (entry["host"] or {}).get("now_ns")
        for partner, seen in partners_of(entry).items():
            for path in seen.get("paths", ()):
                paths.append((node, partner, *path_cells(path, now_ns)))
            for session in seen.get("sessions", ()):
                sessions.append((node, partner, *session_cells(session, now_ns)))
            if seen.get("refused"):
                refusals.append((node, partner, str(seen["refused"]), str(seen.get("last_refusal", ""))))
    parts = [f"lab {state['lab']}, topology {state['topology']}, wire {state['wire']}", table(cables), table(nodes)]
    parts += [table(rows) for rows in (paths, sessions, refusals) if len(rows) > 1]
    return "\n\n".join(parts)


def cable_state(cable: dict[str, Any]) -> str:
    """One phrase for what is done to a cable."""
    words = [f"{word} at {', '.join(cable[word])}" for word in ("cut", "silenced", "armed") if cable[word]]
    return "; ".join(words) or "whole"


def host_word(entry: dict[str, Any]) -> str:
    """Whether the host answers, and its boot stage where it tells."""
    if entry["host"] is None:
        return "silent"
    stage = entry["host"].get("stage")
    return str(stage).lower().replace("_", " ") if stage is not None else "answers"


def partners_of(entry: dict[str, Any]) -> dict[str, Any]:
    """By name what the host knows of each partner."""
    partners = (entry["host"] or {}).get("partners", {})
    return partners if isinstance(partners, dict) else {}


def age(since_ns: object, now_ns: object) -> str:
    """How long ago something was, in the unit that suits."""
    if not isinstance(since_ns, int) or not isinstance(now_ns, int):
        return ""
    ms = max(0, now_ns - since_ns) // 1_000_000
    if ms < 1_000:
        return f"{ms} ms"
    seconds = ms // 1_000
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def why(count: object, reason: object) -> str:
    """How often, and the last reason."""
    return f"{count}, {str(reason).lower().replace('_', ' ')}" if count else "0"


def path_cells(path: dict[str, Any], now_ns: object = None) -> tuple[str, ...]:
    """Columns for one path."""
    rtt_ns = path.get("rtt_ns")
    reason = str(path.get("reason", "")).lower()
    return (
        str(path.get("index", "?")),
        str(path.get("state", "?")).lower(),
        age(path.get("since_ns"), now_ns),
        "" if reason == "none" else reason.replace("_", " "),
        why(path.get("losses", 0), path.get("last_loss", "")),
        str(path.get("fence_epoch", "?")),
        f"{rtt_ns / 1000:.0f} us" if isinstance(rtt_ns, int | float) and rtt_ns else "",
    )


def session_cells(session: dict[str, Any], now_ns: object = None) -> tuple[str, ...]:
    """Columns for one session."""
    routes = ", ".join(str(route) for route in session.get("routes", ()))
    return (
        str(session.get("client", "?")), str(session.get("state", "?")).lower(), age(session.get("since_ns"), now_ns),
        str(session.get("epoch", "?")), why(session.get("errors", 0), session.get("last_error", "")), routes,
    )  # fmt: skip
