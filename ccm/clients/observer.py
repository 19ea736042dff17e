"""Who wants to know of a client's work: the load generators, and anything else that drives a client."""

from __future__ import annotations

from typing import Protocol

from ccm.client import Session
from emul.clock import Instant


class Observer(Protocol):
    """Told in the order in which things happen."""

    def on_ready(self, session: Session, now: Instant) -> None:
        """Work may be submitted."""

    def on_committed(self, session: Session, now: Instant) -> None:
        """The oldest unconfirmed work of the session is committed."""

    def on_lost(self, session: Session, now: Instant) -> None:
        """The session's epoch is over: what is unconfirmed stays so."""
