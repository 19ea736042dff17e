"""Gives a new manager what a journal says that another one was told, and compares what both wanted done."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ccm import events as ev
from ccm.journal.codec import FORMAT, JournalError, decode, encode
from ccm.manager import Manager
from ccm.peering import PartnerConfig
from ccm.settings import Settings
from emul.clock import Instant


@dataclass
class Replayed:
    """What a replay has seen. `difference`: the first one, in words; empty when all was the same."""

    incarnations: int = 0
    events: int = 0
    turns: int = 0
    actions: int = 0
    difference: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    """The last manager's, as `Manager.status`."""


def replay(lines: Iterable[str]) -> Replayed:
    """Replays a journal until its end or the first difference. Raises JournalError, with the line's number.

    A last line that is cut short (its host was killed) is left out.
    """
    found, manager, torn = Replayed(), None, ""
    for number, text in enumerate(lines, 1):
        if torn:
            raise JournalError(f"line {number - 1}: {torn}")
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            torn = f"not JSON: {error}"
            continue
        try:
            if not isinstance(line, dict):
                raise JournalError(f"expected an object, found {text.strip()[:40]!r}")
            if "journal" in line:
                manager = _begin(line)
                found.incarnations += 1
            elif manager is None:
                raise JournalError("no head: expected a line with the journal's format first")
            else:
                _step(manager, line, found)
        except JournalError as error:
            raise JournalError(f"line {number}: {error}") from error
        if found.difference:
            found.difference = f"line {number}: {found.difference}"
            break
    if manager is None:
        raise JournalError("an empty journal: expected a line with its format first")
    found.status = manager.status()
    return found


def _begin(line: dict[str, Any]) -> Manager:
    if line["journal"] != FORMAT:
        raise JournalError(
            f"format {line['journal']!r}, this is a reader of format {FORMAT}: "
            "the version of ccm-lab that wrote the journal can replay it"
        )
    try:
        partners = [
            PartnerConfig(int(node), str(name), tuple((int(index), int(adapter)) for index, adapter in paths))
            for node, name, paths, _ in line["partners"]
        ]
        epochs = {int(node): int(epoch) for node, _, _, epoch in line["partners"]}
        least, most = line["versions"]
        return Manager(
            int(line["node"]), str(line["name"]), int(line["incarnation"]), partners, epochs.__getitem__,
            (int(least), int(most)), Settings(**line["settings"]), now=Instant(int(line["now"])),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(f"the head is damaged: {error!r}") from error


def _step(manager: Manager, line: dict[str, Any], found: Replayed) -> None:
    if "asked" in line:
        manager.next_deadline()
        return
    if not isinstance(line.get("now"), int) or not isinstance(line.get("actions"), list):
        raise JournalError("expected a time and actions")
    now = Instant(line["now"])
    if "event" in line:
        event = decode(line["event"], ev.Event)
        partner = getattr(event, "partner", None)
        if partner is not None and not manager.knows(partner) and not isinstance(event, ev.PartnerAdded):
            raise JournalError(f"an event of partner {partner}, which the head does not name")
        found.events += 1
        what = type(event).__name__
        actions = manager.handle(event, now=now)
    elif "time" in line:
        found.turns += 1
        what = "a turn of the timers"
        actions = manager.on_time(now=now)
    else:
        raise JournalError(f"expected event, time or asked, found {', '.join(sorted(line))}")
    found.actions += len(actions)
    for wanted, got in _pairs(line["actions"], encode(actions)):
        if wanted != got:
            found.difference = f"after {what} at {now} ns the journal has {wanted}, the replay {got}"
            return


def _pairs(recorded: list[object], now: object) -> Iterable[tuple[object, object]]:
    assert isinstance(now, list)
    for place in range(max(len(recorded), len(now))):
        yield (
            recorded[place] if place < len(recorded) else "no further action",
            now[place] if place < len(now) else "no further action",
        )
