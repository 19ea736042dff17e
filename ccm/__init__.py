"""The cluster connection manager: opens, maintains and closes what a node's clients have with their partners.

Who writes a client finds here what it takes: `from ccm import Client, Needs, Region`.
"""

from typing import TYPE_CHECKING

from emul.compiled import use as _use

_use(__name__, __path__)

if TYPE_CHECKING:
    from ccm.client import Client, Node, Partner, Region, Session
    from ccm.needs import Needs
    from ccm.reasons import Reason

__all__ = ["Client", "Needs", "Node", "Partner", "Reason", "Region", "Session"]
_HOMES = {"Needs": "ccm.needs", "Reason": "ccm.reasons"}


def __getattr__(name: str) -> object:
    """Looked up when it is asked for: the manager's core is imported without the shell around it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "ccm.client")), name)
