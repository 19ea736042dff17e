"""Addresses of ports: four bytes of IPv4 or sixteen of IPv6, their GIDs and their texts.

Over RoCEv2 a GID is an IPv6 address, or the IPv4-mapped form of an IPv4 address (IBTA annex A17.4.5).
"""

from __future__ import annotations

import ipaddress

IPV4_ADDRESS_BYTES = 4
IPV6_ADDRESS_BYTES = 16
GID_BYTES = 16
_MAPPED = bytes(10) + b"\xff\xff"


def address_bytes(text: str) -> bytes:
    """Four bytes for "10.77.0.1" and its GID "::ffff:10.77.0.1", sixteen for any other IPv6 address. Raises ValueError.

    Refused are the unspecified address and groups: no port has them.
    """
    parsed = ipaddress.ip_address(text)
    if parsed.is_unspecified or parsed.is_multicast:
        raise ValueError(f"{text} is no address of one port")
    return address_of_gid(parsed.packed) if parsed.version == 6 else parsed.packed


def ipv4_bytes(address: str) -> bytes:
    """The four bytes of "10.77.0.1" or of an IPv4-mapped GID "::ffff:10.77.0.1". Raises ValueError."""
    parsed = address_bytes(address)
    if len(parsed) != IPV4_ADDRESS_BYTES:
        raise ValueError(f"{address} is no IPv4-mapped GID")
    return parsed


def address_text(address: bytes) -> str:
    """As people write it."""
    return str(ipaddress.ip_address(address))


def gid_bytes(address: bytes) -> bytes:
    """The sixteen bytes of the GID that belongs to four or sixteen bytes of address."""
    return _MAPPED + address if len(address) == IPV4_ADDRESS_BYTES else address


def gid_text(address: bytes) -> str:
    """That GID as pyverbs writes it: eight groups of four digits."""
    return ipaddress.IPv6Address(gid_bytes(address)).exploded


def address_of_gid(gid: bytes) -> bytes:
    """Four bytes for an IPv4-mapped GID, all sixteen for another one."""
    return gid[12:] if gid[:12] == _MAPPED else gid
