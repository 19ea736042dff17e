"""The caller's mistakes: raised at once, state untouched. What the network does wrong is a value, never one of
these. Names as in pyverbs, so that a ported program's `except` clauses hold.
"""

from __future__ import annotations

import os
from errno import EINVAL


class PyverbsError(Exception):
    """The root of all errors that verbs raise."""


class RDMAError(PyverbsError, OSError):
    """A verb that was refused, as pyverbs' PyverbsRDMAError: `errno` and a sentence with the figures."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, f"{message} ({os.strerror(code)})")
        self.sentence = message
        """Without what `errno` means."""

    @property
    def error_code(self) -> int:
        """`errno` under pyverbs' name."""
        return self.errno or EINVAL


class PyverbsUserError(RDMAError):
    """Input that never got as far as the adapter; always EINVAL."""

    def __init__(self, message: str) -> None:
        super().__init__(EINVAL, message)


class DeviceGone(RDMAError):
    """The adapter's process ended or does not answer: the card is dead."""


PyverbsRDMAError = RDMAError
