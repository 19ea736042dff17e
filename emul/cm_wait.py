"""Sleeping until an adapter has something to tell: the only part of connection management that touches the world."""

from __future__ import annotations

import select

from emul.verbs import Context


def sleep_until_told(context: Context, timeout_ms: int | None) -> bool:
    """Sleeps until a wake-up of the adapter comes; False when `timeout_ms` are over (None: no end), and at once where
    there is nothing to wait on (the simulator). A wake-up may turn out to be about something else. Raises DeviceGone
    when the adapter is dead.
    """
    descriptors = [fd for fd in context.descriptors() if fd >= 0]
    if not descriptors:
        return False
    if len(descriptors) == 1:  # the channel is gone, and with it what would wake us: the next verb says so
        context.query_port(1)
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    ready = poll.poll(timeout_ms)
    context.clear_event()
    return bool(ready)
