"""Opens the best port that an interface and this machine allow."""

from __future__ import annotations

from emul.port.errors import PortUnsupported
from emul.port.filters import Addresses
from emul.port.packet import PacketPort
from emul.port.xdp import XdpPort

WIRES = ("auto", "xdp", "packet")


def open_port(interface: str, wire: str = "auto", addresses: Addresses = None) -> XdpPort | PacketPort:
    """Opens `interface` of the current network namespace for the adapter that owns `addresses`.

    `wire` "xdp" is AF_XDP or an error, "packet" is AF_PACKET, "auto" is AF_XDP where it is to be had and AF_PACKET
    where not; the port's `fallback_reason` then tells why (also why it is "xdp-generic" and not "xdp-native"), and is
    None where nothing fell back. Raises PortMissing, PortDown, PortBusy, PortUnsupported; ValueError for another
    `wire` and for bad addresses.
    """
    if wire not in WIRES:
        raise ValueError(f"wire is one of {', '.join(WIRES)}, got {wire!r}")
    if wire == "packet":
        return PacketPort(interface, addresses)
    try:
        return XdpPort(interface, addresses)
    except PortUnsupported as error:
        if wire == "xdp":
            raise
        port = PacketPort(interface, addresses)
        port.fallback_reason = str(error)
        return port
