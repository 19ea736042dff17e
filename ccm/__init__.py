"""The cluster connection manager: opens, maintains and closes what a node's clients have with their partners."""

from emul.compiled import use as _use

_use(__name__, __path__)
