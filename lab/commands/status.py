"""`lab status`: partners, paths and sessions of a running lab, as its hosts see them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from emul.node_memory import Stage
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
    """The state as tables, as narrow as they can be: in a pair with short names no wider than 80 columns."""
    tables: list[list[tuple[str, ...]]] = [
        [("CABLE", "ENDS", "STATE"), *((c["cable"], " -- ".join(c["ends"]), cable_state(c)) for c in state["cables"])],
        [("NODE", "HOST", "BOOT", "ADAPTERS")],
        [("NODE", "SEES", "HOST", "BOOT", "VERSION", "REFUSED", "THE LAST ONE")],
        [("PATH", "NO", "OVER", "STATE", "FOR", "LOSSES", "FENCE", "MTU", "RTT", "LIMIT")],
        [("SESSION", "CLIENT", "STATE", "FOR", "EPOCH", "ERRORS", "ROUTES")],
        [("CARD", "CARRIER", "SENT", "RECEIVED", "REPEATED", "TIMEOUTS", "NAKS", "DROPPED")],
        [("NODE", "CLIENT", "STATE", "WITH", "EXCEPTIONS", "THE LAST ONE")],
    ]
    _, nodes, partners, paths, sessions, cards, clients = tables
    for node, entry in state["nodes"].items():
        host = entry["host"] or {}
        names = list(entry["adapters"])
        adapters = ", ".join(f"{name} {word}" for name, word in entry["adapters"].items())
        nodes.append((node, host_word(entry), str(host.get("incarnation", "")), adapters))
        for partner, seen in partners_of(entry).items():
            way = f"{node} -> {partner}"
            partners.append((node, partner, *partner_cells(seen)))
            paths += [(way, *path_cells(path, names, host.get("now_ns"))) for path in seen.get("paths", ())]
            sessions += [(way, *session_cells(each, host.get("now_ns"))) for each in seen.get("sessions", ())]
        found_cards = zip(names, host.get("adapters", ()), strict=False)
        cards += [(f"{node}.{name}", *card_cells(card)) for name, card in found_cards]
        for client, found in host.get("clients", {}).items():
            if found["exceptions"] or found["state"] != "running" or found.get("partners") is not None:
                clients.append((node, *client_cells(client, found)))
    head = f"lab {state['lab']}, topology {state['topology']}, wire {state['wire']}"
    return "\n\n".join([head, *(table(_without_empty(rows)) for rows in tables if len(rows) > 1)])


def _without_empty(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the columns in which nothing stands."""
    filled = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    return [tuple(row[column] for column in filled) for row in rows]


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


def words(name: object) -> str:
    """A state or a reason as people write it; "" for none."""
    text = str(name).lower().replace("_", " ")
    return "" if text == "none" else text


def why(count: object, reason: object) -> str:
    """How often, and the last reason."""
    return f"{count}, {words(reason)}" if count else "0"


def mtu_word(path: dict[str, Any]) -> str:
    """The path MTU that a path has settled for, and which one lost its packets; "" where none did."""
    return f"{path.get('mtu')} ({path['mtu_lost']} is lost)" if path.get("mtu_lost") else ""


def partner_cells(seen: dict[str, Any]) -> tuple[str, ...]:
    """Columns for what is known of a partner's host, and what of it was refused."""
    stage, refused = seen.get("stage"), seen.get("refused")
    named = words(Stage(stage).name) if isinstance(stage, int) and stage in list(Stage) else "never seen"
    return (
        named, str(seen.get("incarnation") or ""), str(seen.get("version") or ""), str(refused or ""),
        str(seen.get("last_refusal", "")) if refused else "",
    )  # fmt: skip


def path_cells(path: dict[str, Any], adapters: list[str], now_ns: object = None) -> tuple[str, ...]:
    """Columns for one path."""
    number, adapter = path.get("index", "?"), path.get("adapter")
    over = adapters[adapter] if isinstance(adapter, int) and adapter < len(adapters) else ""
    state = words(path.get("state", "?")) + (", avoided" if path.get("avoided") else "")
    return (
        str(number), over, state, age(path.get("since_ns"), now_ns),
        why(path.get("losses", 0), path.get("last_loss", "")), str(path.get("fence_epoch", "?")),
        mtu_word(path),
        _figure(path.get("rtt_ns"), 1000, "us"), _figure(path.get("limit_ns"), 1_000_000, "ms"),
    )  # fmt: skip


def _figure(ns: object, unit_ns: int, unit: str) -> str:
    return f"{ns / unit_ns:.0f} {unit}" if isinstance(ns, int | float) and ns else ""


def session_cells(session: dict[str, Any], now_ns: object = None) -> tuple[str, ...]:
    """Columns for one session; one that is not ready says why."""
    routes = ", ".join(str(route) for route in session.get("routes", ()))
    state, reason = words(session.get("state", "?")), words(session.get("reason", "none"))
    detail = session.get("detail") or reason
    if state not in ("ready", "closed") and detail:
        state = f"{state}: {detail}"
    return (
        str(session.get("client", "?")), state, age(session.get("since_ns"), now_ns),
        str(session.get("epoch", "?")), why(session.get("errors", 0), session.get("last_error", "")), routes,
    )  # fmt: skip


def client_cells(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Columns for one client: its state, the partners that were chosen for it, and what it raised."""
    chosen, count = found.get("partners"), found["exceptions"]
    partners = "" if chosen is None else ", ".join(chosen) or "none"
    return (name, words(found["state"]), partners, str(count or ""), found["last_exception"])


_DROPPED = (
    "rx_icrc_error", "rx_bad_header", "rx_truncated", "rx_not_roce", "rx_bad_arp", "rx_bad_mad", "rx_no_qp",
    "rx_wrong_source", "rx_unexpected",
)  # fmt: skip


def card_cells(card: dict[str, Any]) -> tuple[str, ...]:
    """Columns for one adapter's counters (docs/counters.md), as its host reads them."""
    if card.get("gone"):
        return ("gone", *[""] * 6)
    counters = card.get("counters", {})
    sums = [("sent_pkts",), ("rcvd_pkts",), ("retransmitted",), ("timeouts",), ("rcvd_nak", "sent_nak"), _DROPPED]
    return (
        "yes" if card.get("carrier") else "no",
        *(f"{sum(counters.get(name, 0) for name in names):,}" for names in sums),
    )
