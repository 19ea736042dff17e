"""The clients that come with the manager, and the load that a lab puts on them."""

from emul.compiled import use as _use

_use(__name__, __path__)
