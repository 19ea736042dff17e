"""Emulated hardware of a storage node: interconnect adapters, NVRAM card, boot stages.

Usable without `ccm` and `lab`; imports neither.
"""

from emul import compiled as _compiled

COMPILED = _compiled.use(__name__, __path__)
"""Whether the hot modules run compiled."""
