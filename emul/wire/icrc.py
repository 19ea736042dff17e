"""Invariant CRC of RoCEv2 (IBTA annex A17.3.3).

CRC-32 as in Ethernet over 8 bytes of ones, then the packet from its IP header to the padded payload, with the fields
that a router may change taken as ones: IPv4 TOS, TTL, header checksum, or IPv6 traffic class, flow label, hop limit;
UDP checksum; BTH byte 4. Stored little-endian.
"""

from __future__ import annotations

try:  # several times faster than zlib's on x86 (0.21 us instead of 0.76 us for 2 KiB)
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32", "envelope_seed", "envelope_seed6", "icrc", "masked_bth"]

_LRH_PLACEHOLDER = b"\xff" * 8
BTH_RESERVED_MASK = 0xFF00_0000
"""BTH byte 4 as the CRC sees it, in the word that it shares with the destination QPN."""
_IPV6 = 6


def envelope_seed(ip_udp: bytes) -> int:
    """The CRC's state after the placeholder and the 28 bytes of IPv4 and UDP header: the same for all packets that
    differ in nothing but transport headers and payload.
    """
    masked = b"".join(
        (
            ip_udp[0:1],
            b"\xff",  # TOS
            ip_udp[2:8],
            b"\xff",  # TTL
            ip_udp[9:10],
            b"\xff\xff",  # header checksum
            ip_udp[12:26],
            b"\xff\xff",  # UDP checksum
        )
    )
    return crc32(masked, crc32(_LRH_PLACEHOLDER))


def envelope_seed6(ip_udp: bytes) -> int:
    """The same for IPv6, after 48 bytes (46 will do: the UDP checksum is not looked at)."""
    masked = b"".join(
        (
            b"\x6f\xff\xff\xff",  # version as it is, traffic class and flow label
            ip_udp[4:7],
            b"\xff",  # hop limit
            ip_udp[8:46],
            b"\xff\xff",  # UDP checksum
        )
    )
    return crc32(masked, crc32(_LRH_PLACEHOLDER))


def masked_bth(bth: bytes) -> bytes:
    """The 12 bytes of BTH as the CRC sees them."""
    return bth[:4] + b"\xff" + bth[5:]


def icrc(ip_packet: bytes) -> bytes:
    """The four bytes of ICRC for an IPv4 or IPv6 packet (IP header to padded payload, without the ICRC itself)."""
    if ip_packet[0] >> 4 == _IPV6:
        seed, bth = envelope_seed6(ip_packet[:48]), 48
    else:
        seed, bth = envelope_seed(ip_packet[:28]), 28
    return crc32(ip_packet[bth + 12 :], crc32(masked_bth(ip_packet[bth : bth + 12]), seed)).to_bytes(4, "little")
