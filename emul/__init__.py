"""Emulated hardware of a storage node: interconnect adapters, NVRAM card, boot stages.

Usable without `ccm` and `lab`; imports neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emul import compiled as _compiled

if TYPE_CHECKING:
    from emul.verbs import Context

COMPILED = _compiled.use(__name__, __path__)
"""Whether the hot modules run compiled."""


def open_adapter(interface: str, address: str | list[str], wire: str = "auto") -> Context:
    """Starts an adapter on an interface of the current network namespace: see `emul.opening.open_adapter`."""
    from emul import opening  # only who opens one pays for it

    return opening.open_adapter(interface, address, wire)
