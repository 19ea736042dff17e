"""The caller's mistakes: raised at once, state untouched. What the network does wrong is a value, never one of
these.
"""

from __future__ import annotations

import os


class RDMAError(OSError):
    """A verb that was refused, as pyverbs' PyverbsRDMAError: `errno` and a sentence with the figures."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, f"{message} ({os.strerror(code)})")


class DeviceGone(RDMAError):
    """The adapter's process ended or does not answer: the card is dead."""
