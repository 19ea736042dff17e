"""One port for an interface: a name in the network namespace that is held while a port is open.

Two packet sockets on one interface would both answer for the adapter, and nothing in the kernel would mind. An abstract
UNIX socket name lives in the network namespace, is taken atomically and vanishes with its holder, however that ends.
"""

from __future__ import annotations

import errno
import socket

from emul.port.carrier import Interface
from emul.port.errors import PortBusy


class Lease:
    """Holds `interface` for this process. Raises PortBusy where another port has it."""

    __slots__ = ("_socket",)

    def __init__(self, interface: Interface) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(f"\0ccm-lab/port/{interface.index}")
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortBusy(interface.name, "another port has the interface open") from None

    def release(self) -> None:
        """Lets the next port have the interface."""
        self._socket.close()
