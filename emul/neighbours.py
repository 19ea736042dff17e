"""Neighbours: which MAC address an IPv4 address has, asked for and answered by ARP (RFC 826).

An adapter owns its interface, so no kernel does this for it. A `Route` is shared by all queue pairs that go to one
address; its `mac` is None until the first answer, and frames wait for that.
"""

from __future__ import annotations

from emul.clock import MILLISECOND, SECOND, Instant, after, earliest
from emul.wire.frame import ARP_REPLY, ARP_REQUEST, Arp

ASK_INTERVAL_NS = 20 * MILLISECOND
ASK_INTERVAL_MAX_NS = SECOND
"""Requests go out after 20, 40, 80 ... ms, and then each second for as long as somebody wants the route."""
ROUTES_MAX = 4096


class Route:
    """The way to one address."""

    __slots__ = ("address", "ask_at", "interval_ns", "mac", "wanted")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.mac: bytes | None = None
        self.wanted = True
        self.ask_at: Instant | None = None
        self.interval_ns = ASK_INTERVAL_NS


class Neighbours:
    """All routes of an adapter."""

    __slots__ = ("_address", "_mac", "_routes", "_unresolved", "out")

    def __init__(self, *, mac: bytes, address: bytes) -> None:
        self._mac = mac
        self._address = address
        self._routes: dict[bytes, Route] = {}
        self._unresolved: dict[bytes, Route] = {}
        self.out: list[bytes] = []
        """Frames to be sent."""

    def route(self, address: bytes, *, now: Instant) -> Route:
        """The route to `address`; asks for it if nobody has. Raises ValueError when ROUTES_MAX are known."""
        route = self._routes.get(address)
        if route is None:
            if len(self._routes) >= ROUTES_MAX:
                raise ValueError(f"an adapter knows {ROUTES_MAX} neighbours at the most")
            route = self._routes[address] = Route(address)
        if route.mac is None:
            route.interval_ns = ASK_INTERVAL_NS
            self._ask(route, now)
        return route

    def on_arp(self, arp: Arp) -> Route | None:
        """Answers a request for this address and learns from what a known neighbour says; gives the route that
        changed.
        """
        if arp.operation == ARP_REQUEST and arp.target == self._address:
            self.out.append(Arp(ARP_REPLY, self._mac, self._address, arp.sender_mac, arp.sender).emit())
        route = self._routes.get(arp.sender)
        if route is None or route.mac == arp.sender_mac or arp.sender_mac == self._mac:
            return None
        route.mac = arp.sender_mac
        route.ask_at = None
        self._unresolved.pop(route.address, None)
        return route

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

    def _ask(self, route: Route, now: Instant) -> None:
        self.out.append(Arp(ARP_REQUEST, self._mac, self._address, bytes(6), route.address).emit())
        route.ask_at = after(now, route.interval_ns)
        self._unresolved[route.address] = route
