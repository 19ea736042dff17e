"""What can be wrong with an interface when a port is opened on it. An open port never raises for the network's sake."""

from __future__ import annotations


class PortError(Exception):
    """A port could not be opened; the message names the interface, what was found and what was expected."""

    def __init__(self, interface: str, message: str) -> None:
        super().__init__(f"{interface}: {message}")
        self.interface = interface
        self.message = message


class PortMissing(PortError):
    """There is no such interface in this network namespace."""


class PortDown(PortError):
    """The interface is administratively down."""


class PortBusy(PortError):
    """Another port, or another XDP program, holds the interface."""


class PortUnsupported(PortError):
    """The kernel, the interface or the user's rights do not allow that wire; another wire may do."""
