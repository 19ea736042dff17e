"""A manager that writes down each call and what it gave.

Lines of JSON. The first of each incarnation is the head: format, node, incarnation, settings, partners, epochs known.
Then one line for each event ("event") or turn of the timers ("time") with its time in ns and the actions that followed,
and one whenever the manager was asked for its next deadline ("asked"), since its lateness counts from there. A line is
written before the actions are carried out, so that the journal of a killed host ends with what it was told last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from ccm import events as ev
from ccm.actions import Action
from ccm.journal.codec import FORMAT, encode
from ccm.manager import Manager
from ccm.peerinfo import OWN_VERSIONS, Versions
from ccm.peering import PartnerConfig
from ccm.settings import DEFAULTS, Settings
from emul.clock import Instant


class JournalledManager(Manager):
    """As Manager; `write` takes the lines, without their ends."""

    def __init__(
        self, node: int, name: str, incarnation: int, partners: Sequence[PartnerConfig],
        known_epoch: Callable[[int], int], versions: Versions = OWN_VERSIONS, settings: Settings = DEFAULTS, *,
        now: Instant, write: Callable[[str], None],
    ) -> None:  # fmt: skip
        epochs = {partner.node: known_epoch(partner.node) for partner in partners}
        super().__init__(node, name, incarnation, partners, epochs.__getitem__, versions, settings, now=now)
        self._write = write
        self._asked = False
        self._put(
            journal=FORMAT, node=node, name=name, incarnation=incarnation, versions=versions, now=now,
            settings=dataclasses.asdict(settings),
            partners=[[partner.node, partner.name, partner.paths, epochs[partner.node]] for partner in partners],
        )  # fmt: skip

    def handle(self, event: ev.Event, *, now: Instant) -> list[Action]:
        """Manager."""
        self._asked = False
        actions = super().handle(event, now=now)
        self._put(now=now, event=encode(event), actions=encode(actions))
        return actions

    def on_time(self, *, now: Instant) -> list[Action]:
        """Manager."""
        self._asked = False
        actions = super().on_time(now=now)
        self._put(now=now, time=True, actions=encode(actions))
        return actions

    def next_deadline(self) -> Instant | None:
        """Manager."""
        if not self._asked:
            self._asked = True
            self._put(asked=True)
        return super().next_deadline()

    def _put(self, **line: object) -> None:
        self._write(json.dumps(line, separators=(",", ":")))
