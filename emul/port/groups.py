"""Ethernet groups that a port listens to: a card passes up no frame of a group that nobody has joined.

An address of IPv6 is asked for at a group (RFC 4861), and news go to all nodes; the kernel joins for itself alone, and
not at all where IPv6 is off. IPv4 needs none of this: ARP is broadcast. The numbers are those of linux/if_packet.h.
"""

from __future__ import annotations

import socket
import struct

from emul.port.filters import Addresses, parse_addresses
from emul.wire.address import IPV4_ADDRESS_BYTES
from emul.wire.discovery import ALL_NODES, group_mac, solicited_node

_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _MULTICAST = 263, 1, 0
_MEMBERSHIP = struct.Struct("=iHH8s")  # interface index, kind, address bytes, address


def groups_of(addresses: Addresses) -> list[bytes]:
    """The Ethernet addresses of the groups for a port's IPv6 addresses, each once."""
    own = [each for each in parse_addresses(addresses) or () if len(each) != IPV4_ADDRESS_BYTES]
    return sorted({group_mac(group) for each in own for group in (solicited_node(each), ALL_NODES)})


def join(opened: socket.socket, interface_index: int, addresses: Addresses) -> None:
    """Joins them for as long as the packet socket `opened` lives. Raises OSError."""
    for group in groups_of(addresses):
        opened.setsockopt(
            _SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _MEMBERSHIP.pack(interface_index, _MULTICAST, len(group), group)
        )
