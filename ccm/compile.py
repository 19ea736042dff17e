"""Compiles the hot modules of manager and adapter together: `python -m ccm.compile` (see `emul.compiled`)."""

from __future__ import annotations

import sys

from emul.compile import main
from emul.compiled import MODULES as ADAPTER_MODULES

MODULES = tuple(
    f"ccm/{name}"
    for name in (
        "actions", "adapter_port", "balance", "budget", "client_session", "clients/echo", "clients/load",
        "clients/nvram_mirror", "driver/chores", "driver/driver", "driver/loads", "driver/notes", "driver/peers",
        "driver/sessions", "driver/timed", "driver/wiring", "events", "exchange", "failover", "handshake", "history",
        "host", "journal/recorder", "lanes", "liveness", "manager", "membership", "pairing", "path", "pathset",
        "peer_link", "peering", "publisher", "session", "sessions", "settling", "stream", "workload",
    )
)  # fmt: skip
"""What runs for each write, probe and event of a session. Not `settings`: compiled, it takes what no file could."""

if __name__ == "__main__":
    sys.exit(main((*ADAPTER_MODULES, *MODULES)))
