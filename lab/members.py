"""A node that leaves the cluster and joins it again: what each host is asked, in any world.

The partners are told first, so that sessions end in order while everybody can still be asked; the node itself is shut
down when they have forgotten it. Whoever boots meanwhile must be told of present members only, which is the world's
business (`Members.absent`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from emul.clock import MILLISECOND
from lab.errors import LabError
from lab.plan import Plan
from lab.world import HostUnreachable

FORGOTTEN_WITHIN_NS = 3_000 * MILLISECOND
"""Partners wait half a second for a member that does not answer, and look at what they hold after that."""
LOOK_NS = 5 * MILLISECOND

Ask = Callable[[str, Mapping[str, object]], Mapping[str, object]]
"""A host's control interface; raises HostUnreachable."""


class Members:
    """Who is a member, and the requests that change that."""

    def __init__(self, plan: Plan, ask: Ask, now: Callable[[], int], advance: Callable[[int], None]) -> None:
        self._plan = plan
        self._ask = ask
        self._now = now
        self._advance = advance
        self.absent: set[str] = set()

    def leave(self, node: str) -> None:
        """All partners of `node` forget it. Raises LabError when one of them does not."""
        self.absent.add(node)
        partners = [other for other in self._plan.partners(node) if other not in self.absent]
        for other in partners:
            self._tell(other, {"op": "partner.remove", "partner": node})
        until = self._now() + FORGOTTEN_WITHIN_NS
        while left := [other for other in partners if node in self._partners(other)]:
            if self._now() >= until:
                raise LabError(f"{', '.join(left)} still know {node} after {FORGOTTEN_WITHIN_NS // MILLISECOND} ms")
            self._advance(self._now() + LOOK_NS)

    def join(self, node: str) -> None:
        """All present nodes get `node` as a partner."""
        self.absent.discard(node)
        for other in self._plan.partners(node):
            if other not in self.absent:
                self._tell(other, {"op": "partner.add", "partner": self._described(other, node)})

    def config_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A host's configuration with the present members alone."""
        partners = [each for each in config["partners"] if each["name"] not in self.absent]
        return {**config, "partners": partners}

    def _described(self, node: str, partner: str) -> dict[str, Any]:
        partners: Any = self._plan.host_config(node, Path())["partners"]
        found: dict[str, Any] = next(each for each in partners if each["name"] == partner)
        return found

    def _tell(self, node: str, request: Mapping[str, object]) -> None:
        with suppress(HostUnreachable):  # one that is down is told when it boots
            reply = self._ask(node, request)
            known = "unknown partner" in str(reply.get("error")) or "has node id" in str(reply.get("error"))
            if "error" in reply and not known:
                raise LabError(f"{node}: {request['op']}: {reply['error']}")

    def _partners(self, node: str) -> Mapping[str, object]:
        try:
            partners = self._ask(node, {"op": "status"}).get("partners", {})
        except HostUnreachable:
            return {}
        assert isinstance(partners, Mapping)
        return partners
