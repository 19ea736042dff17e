"""Neighbours: which MAC address an address has, asked for and answered by ARP (RFC 826) or by neighbour discovery
(RFC 4861).

An adapter owns its interface, so no kernel does this for it. A `Route` is shared by all queue pairs that go to one
address; its `mac` is None until the first answer, and frames wait for that. All addresses are on the link: an adapter
knows no router.

A question goes to everybody on the link and says who asks. An adapter keeps what it hears so, and asks for nobody whom
it has heard: in a cluster of N nodes each would otherwise ask for all others, and each question may reach all N.
"""

from __future__ import annotations

from emul.clock import MILLISECOND, SECOND, Instant, after, earliest
from emul.wire.address import IPV4_ADDRESS_BYTES, address_text
from emul.wire.discovery import (
    ALL_NODES,
    UNSPECIFIED,
    Advertisement,
    Solicitation,
    solicited_node,
)
from emul.wire.frame import ARP_REPLY, ARP_REQUEST, Arp

ASK_INTERVAL_NS = 20 * MILLISECOND
ASK_INTERVAL_MAX_NS = SECOND
"""Requests go out after 20, 40, 80 ... ms, and then each second for as long as somebody wants the route."""
ROUTES_MAX = 4096
HEARD_MAX = 4096
"""Addresses that were heard and that nobody has wanted yet; of further ones nothing is kept, they are asked for."""
_GROUP_BIT = 1
"""Of a MAC address's first byte: no card has such an address."""


class Route:
    """The way to one address."""

    __slots__ = ("address", "ask_at", "interval_ns", "mac", "path", "source")

    def __init__(self, address: bytes, source: bytes) -> None:
        self.address = address
        self.source = source
        """The address of ours that its packets come from."""
        self.path = address + source
        """As `Accepted.path` of packets that come back."""
        self.mac: bytes | None = None
        self.ask_at: Instant | None = None
        self.interval_ns = ASK_INTERVAL_NS


class Neighbours:
    """All routes of an adapter with one or more addresses."""

    __slots__ = ("_addresses", "_heard", "_mac", "_routes", "_unresolved", "out")

    def __init__(self, *, mac: bytes, addresses: tuple[bytes, ...]) -> None:
        self._mac = mac
        self._addresses = addresses
        self._routes: dict[bytes, Route] = {}
        self._unresolved: dict[bytes, Route] = {}
        self._heard: dict[bytes, bytes] = {}
        """Where those are who asked for anybody, as long as there is no route to them."""
        self.out: list[bytes] = []
        """Frames to be sent."""

    def source_for(self, address: bytes) -> bytes | None:
        """The own address that goes to `address`: of the same family, and the one that begins most like it, so that a
        link-local peer gets the link-local one. None without an address of that family.
        """
        best: bytes | None = None
        for own in self._addresses:
            if len(own) == len(address) and (best is None or _alike(own, address) > _alike(best, address)):
                best = own
        return best

    def route(self, address: bytes, *, now: Instant) -> Route:
        """The route to `address`; asks for it if nobody has, and it was not heard either. Raises ValueError when
        ROUTES_MAX are known, and for an address of a family that this adapter has none of.
        """
        route = self._routes.get(address)
        if route is None:
            if len(self._routes) >= ROUTES_MAX:
                raise ValueError(f"an adapter knows {ROUTES_MAX} neighbours at the most")
            source = self.source_for(address)
            if source is None:
                own = ", ".join(address_text(each) for each in self._addresses)
                raise ValueError(f"{address_text(address)} is of another family than this adapter's {own}")
            route = self._routes[address] = Route(address, source)
            route.mac = self._heard.pop(address, None)
        if route.mac is None:
            route.interval_ns = ASK_INTERVAL_NS
            self._ask(route, now)
        return route

    def on_arp(self, arp: Arp) -> Route | None:
        """Answers a request for an address of ours and learns from what the sender says of itself; gives the route
        that changed.
        """
        if arp.operation == ARP_REQUEST and arp.target in self._addresses:
            self.out.append(Arp(ARP_REPLY, self._mac, arp.target, arp.sender_mac, arp.sender).emit())
        return self._learn(arp.sender, arp.sender_mac)

    def on_discovery(self, message: Solicitation | Advertisement, sender_mac: bytes) -> Route | None:
        """The same for a message of neighbour discovery that the Ethernet address `sender_mac` sent."""
        if isinstance(message, Advertisement):
            return self._on_advertisement(message)
        if message.target in self._addresses:
            self._answer(message, sender_mac)
        if message.source == UNSPECIFIED or message.mac is None:
            return None
        return self._learn(message.source, message.mac)

    def announce(self) -> None:
        """News for those who know these IPv6 addresses by another MAC address: advertisements that nobody asked for."""
        for address in self._addresses:
            if len(address) != IPV4_ADDRESS_BYTES:
                news = Advertisement(address, ALL_NODES, address, self._mac, solicited=False, override=True)
                self.out.append(news.emit())

    @property
    def asking(self) -> bool:
        """Whether a question waits for its answer."""
        return bool(self._unresolved)

    def deadline(self) -> Instant | None:
        """When a question is to be asked again."""
        if not self._unresolved:
            return None
        return earliest(*(route.ask_at for route in self._unresolved.values()))

    def on_time(self, *, now: Instant) -> None:
        """Asks again where no answer came."""
        for route in self._unresolved.values():
            if route.ask_at is not None and now >= route.ask_at:
                route.interval_ns = min(2 * route.interval_ns, ASK_INTERVAL_MAX_NS)
                self._ask(route, now)

    def _on_advertisement(self, news: Advertisement) -> Route | None:
        route = self._routes.get(news.target)
        if route is None or news.mac is None or (route.mac is not None and not news.override):
            return None  # without override it only says that what is known still holds (RFC 4861, 7.2.5)
        return self._learn(news.target, news.mac)

    def _answer(self, asked: Solicitation, asker_mac: bytes) -> None:
        # Somebody who wants the address himself has none to be answered at: all are told that it is taken.
        unnamed = asked.source == UNSPECIFIED
        reply = Advertisement(
            source=asked.target,
            destination=ALL_NODES if unnamed else asked.source,
            target=asked.target,
            mac=self._mac,
            solicited=not unnamed,
            override=True,
        )
        self.out.append(reply.emit(None if unnamed else asked.mac or asker_mac))

    def _learn(self, address: bytes, mac: bytes) -> Route | None:
        route = self._routes.get(address)
        if route is None:
            self._hear(address, mac)
            return None
        if mac in (route.mac, self._mac) or mac[0] & _GROUP_BIT:
            return None
        route.mac = mac
        route.ask_at = None
        self._unresolved.pop(route.address, None)
        return route

    def _hear(self, address: bytes, mac: bytes) -> None:
        """Somebody told where it is, to whom there is no route yet."""
        if mac == self._mac or mac[0] & _GROUP_BIT or not any(address):
            return
        if address in self._heard or len(self._heard) < HEARD_MAX:
            self._heard[address] = mac

    def _ask(self, route: Route, now: Instant) -> None:
        if len(route.address) == IPV4_ADDRESS_BYTES:
            self.out.append(Arp(ARP_REQUEST, self._mac, route.source, bytes(6), route.address).emit())
        else:
            group = solicited_node(route.address)
            self.out.append(Solicitation(route.source, group, route.address, self._mac).emit())
        route.ask_at = after(now, route.interval_ns)
        self._unresolved[route.address] = route


def _alike(one: bytes, other: bytes) -> int:
    """How many bits both begin with."""
    bits = 8 * len(one)
    return bits - (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_length()
