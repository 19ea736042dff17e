"""The driver's part for what is only written down: history, log, epochs, what watching clients are told."""

from __future__ import annotations

from functools import partial

from ccm import actions as ac
from ccm.driver.wiring import Wiring
from ccm.history import Kind
from emul.node_memory import BootStatus, Stage

REFUSALS_MAX = 256
"""So many different refusals are counted; then counting begins anew."""


class Notes:
    """One method for each action that is a note."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._refusals: dict[tuple[int, int, str], int] = {}
        """How often each was told since a path last came up: (partner, path, text)."""

    def remember_epoch(self, action: ac.RememberEpoch) -> None:
        """Into memory that a reboot doesn't lose."""
        self._wiring.node.raise_session_epoch(action.partner, action.epoch)

    def tell_partner_status(self, action: ac.TellPartnerStatus) -> None:
        """History on a change; the clients each time."""
        wiring = self._wiring
        stage, incarnation = Stage(action.stage), action.incarnation
        if action.changed:
            wiring.note(Kind.PARTNER_STATUS, action.partner, sequence=incarnation, extra=stage)
            wiring.log("partner.status", {"partner": action.partner, "stage": stage.name, "incarnation": incarnation})
        status = BootStatus(stage, incarnation, action.progress, action.heartbeat, "")
        partner = wiring.partners[action.partner]
        for client in wiring.clients.values():
            if not wiring.concerns(client, partner.id):
                continue
            wiring.call(client, partial(client.on_partner_status, partner, status, wiring.now))

    def step(self, action: ac.NoteStep) -> None:
        """A step of the handshake."""
        self._wiring.note(
            Kind.HANDSHAKE_STEP, action.partner, offset=action.path, extra=action.step, sequence=action.incarnation
        )

    def path_up(self, action: ac.NotePathUp) -> None:
        """A path carries sessions."""
        self._refusals.clear()  # what comes now is a new story
        self._wiring.note(Kind.PATH_UP, action.partner, extra=action.path)
        self._wiring.log("path.up", {"partner": action.partner, "path": action.path})

    def path_down(self, action: ac.NotePathDown) -> None:
        """It no longer does."""
        self._wiring.note(Kind.PATH_DOWN, action.partner, length=action.reason, extra=action.path)
        self._wiring.log("path.down", {"partner": action.partner, "path": action.path, "reason": action.reason.name})

    def path_fenced(self, action: ac.NotePathFenced) -> None:
        """The partner acknowledged the fence."""
        self._wiring.note(Kind.PATH_FENCED, action.partner, sequence=action.epoch, extra=action.path)
        self._wiring.log("path.fenced", {"partner": action.partner, "path": action.path, "epoch": action.epoch})

    def refused(self, action: ac.NoteRefused) -> None:
        """Something was refused. What is refused again and again is logged the 1st, 2nd, 4th, 8th, ... time."""
        self._wiring.note(Kind.REFUSED, action.partner, offset=action.path, extra=action.reason)
        key = (action.partner, action.path, action.text)
        if key not in self._refusals and len(self._refusals) >= REFUSALS_MAX:
            self._refusals.clear()
        times = self._refusals[key] = self._refusals.get(key, 0) + 1
        if times & (times - 1) == 0:
            fields: dict[str, object] = {"partner": action.partner, "path": action.path, "reason": action.reason.name}
            self._wiring.log("refused", {**fields, "text": action.text, "times": times})
