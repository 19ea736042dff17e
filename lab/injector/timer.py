"""A descriptor that becomes readable at a moment: epoll's own timeout has steps of a millisecond, which is too coarse
for cables.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress

from emul.clock import SECOND

_CLOCK_MONOTONIC, _TFD_TIMER_ABSTIME = 1, 1
_SETTING = struct.Struct("@qqqq")  # interval and first expiry, each seconds and ns
_libc = ctypes.CDLL(None, use_errno=True)


class Timer:
    """One moment of CLOCK_MONOTONIC at a time. Raises OSError."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        self._at: int | None = None

    def fileno(self) -> int:
        """Readable from the moment on."""
        return self._fd

    def set(self, at: int | None) -> None:
        """From now on it is about `at` in ns (None: about nothing); a moment that has passed is told at once."""
        if at == self._at:
            return
        self._at = at
        seconds, ns = divmod(at or 0, SECOND)
        _checked(_libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, _SETTING.pack(0, 0, seconds, ns), None))

    def take(self) -> None:
        """The moment came: not readable any more, and about nothing."""
        self._at = None
        with suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"timerfd: {os.strerror(number)}")
    return result
