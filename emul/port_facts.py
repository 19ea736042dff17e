"""What an adapter is told of its port, and what follows from it: the largest path MTU, the card's GUID."""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL

from emul.errors import RDMAError
from emul.vocabulary import MTU
from emul.wire.frame import HEADERS_PER_PACKET_MAX, IPV4_BYTES, IPV6_BYTES


@dataclass(frozen=True, slots=True)
class PortFacts:
    """What the adapter is told of its port."""

    mac: bytes
    address: bytes
    """Four bytes of IPv4 or sixteen of IPv6."""
    mtu: int
    """Largest IP packet in bytes."""
    more: tuple[bytes, ...] = ()
    """Further addresses, of either family."""

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """All of them: the port's GID table."""
        return (self.address, *self.more)


def path_mtu_for(interface_mtu: int, *, ipv6: bool = False) -> MTU:
    """The largest path MTU whose full packets fit an interface MTU (1500 gives 1024, 4200 gives 4096). Raises RDMAError
    where not even 256 does.
    """
    headers = HEADERS_PER_PACKET_MAX + (IPV6_BYTES - IPV4_BYTES if ipv6 else 0)
    fitting = [mtu for mtu in MTU if mtu.size + headers <= interface_mtu]
    if not fitting:
        smallest = MTU.MTU_256.size
        raise RDMAError(
            EINVAL,
            f"interface MTU {interface_mtu} is too small: packets of the smallest path MTU, {smallest}, need "
            f"{smallest + headers}",
        )
    return fitting[-1]


def eui64(mac: bytes) -> int:
    """The GUID that belongs to a MAC address (RFC 4291 appendix A: ff:fe in the middle, universal bit turned)."""
    return int.from_bytes(bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:], "big")
