"""`lab down`: ends labs that stay, and removes what killed runs left."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lab.commands._labs import input_error
from lab.errors import EXIT_PASS

if TYPE_CHECKING:
    from lab.fabric.registry import LabRecord

HELP = "end a lab that stays; --all: all of them, and what killed runs left"
_ENGINE_SOCKETS = (Path("/var/run/docker.sock"), Path("/run/docker.sock"))


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("name", metavar="N", nargs="?", help="the lab; may be left out if only one stays")
    everything = "all labs of `lab up` and `lab run --keep`, and what dead labs left; never a run in progress"
    parser.add_argument("--all", action="store_true", help=everything)


def main(args: argparse.Namespace) -> int:
    """Ends them and waits until they are gone; tells what was removed."""
    from lab.fabric import registry

    if args.all and args.name:
        raise input_error("either a lab or --all, not both")
    records = registry.labs()
    chosen = (
        [record for record in records if record.kept or not record.alive] if args.all else [_one(args.name, records)]
    )
    for record in chosen:
        _remove(record)
        print(f"{record.lab_id}: {'ended' if record.alive else 'removed what was left'}")
    for name in _containers([record.lab_id for record in chosen if record.details.get("given")], args.all):
        print(f"{name}: container removed")
    if args.all and not chosen:
        print("no lab to end")
    return EXIT_PASS


def _one(name: str | None, records: list[LabRecord]) -> LabRecord:
    from lab.fabric import registry

    if name is not None:
        named = [record for record in records if record.lab_id == name]
        if named:
            return named[0]
        raise registry.unknown("lab", name, [record.lab_id for record in records], "`lab ps` lists them")
    kept = [record for record in records if record.kept and record.alive]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        raise input_error("no lab stays up (`lab ps` lists all; `lab down --all` removes what dead ones left)")
    raise input_error(f"which one? There is: {', '.join(record.lab_id for record in kept)}")


def _remove(record: LabRecord) -> None:
    from lab.fabric import registry
    from lab.fabric.client import Fabric, FabricGone

    if record.alive:
        try:
            Fabric.attach(record.lab_id).stop()
        except FabricGone:
            Fabric.end_process(record)
    registry.remove_dead(record)


def _containers(lab_ids: list[str], everything: bool) -> list[str]:
    """Removes containers of these labs, or of all dead ones. The SDK is only loaded where there may be an engine."""
    engine_there = "DOCKER_HOST" in os.environ or any(socket.exists() for socket in _ENGINE_SOCKETS)
    if not lab_ids and not (everything and engine_there and os.geteuid() == 0):
        return []
    from lab.docker.nodes import remove_leftovers

    return remove_leftovers(lab_ids)
