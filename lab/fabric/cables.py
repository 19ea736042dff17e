"""Cables and switches in the fabric's network namespace: built, cut, restored, silenced, led through the injector.

A cable is two veth pairs. Each has its outer end where the cable ends (the node's namespace under the adapter's name,
or a port of the switch's bridge), and its inner end here; the two inner ends are joined by redirects at their ingress:

    node a: ic0 ==== ic0-0 >--redirect--> ic0-1 ==== ic0 :node b
                           <--redirect--<

Frames take the redirect of the lowest priority number that there is, so a fault is one filter added, and its end that
filter removed: each takes effect between two frames, with no moment in which a frame could go astray. An inner end that
goes down takes the carrier of its outer end with it: a cable that was pulled out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.fabric import netlink
from lab.fabric.netlink import Netlink, Request

DEAD_END, BLACKHOLE, INJECTOR, JOIN = 1, 2, 3, 10
"""Priorities of the redirects: the far end is cut; the direction is silenced; armed; the joint itself."""
_GROUP = 77
"""Interface group of the inner ends, which one message brings up."""
_SINK, _SINK_MTU = 10, 65_535
_FIRST_SWITCH, _FIRST_CABLE, _FIRST_INJECTOR = 100, 2_000, 40_000
_OUTER_INDEX_OFFSET = 100_000
"""Outer ends get high indices: in a container's namespace low ones may be taken."""


@dataclass(slots=True)
class _End:
    """One end: `label` is the node or switch, `index` the inner interface."""

    label: str
    text: str
    index: int
    name: str
    cut: bool = False
    dead_end: bool = False
    silenced: bool = False
    armed: bool = False
    swallowed: int = 0
    """Frames taken by silences that are over."""


@dataclass(slots=True)
class _Cable:
    name: str
    ends: tuple[_End, _End]
    injector: tuple[InjectorPort, InjectorPort] | None = None


@dataclass(frozen=True, slots=True)
class InjectorPort:
    """Where the injector meets one end of a cable: what `label` sends can be read at `tap` while that direction is
    armed, and what is sent on `interface` goes to `label`.
    """

    cable: str
    label: str
    interface: str
    tap: str
    index: int
    """Of the tap's other end, to which armed redirects lead."""


@dataclass(slots=True)
class Cabling:
    """All cables of a lab. `netlink` belongs to the fabric's namespace; `namespaces` maps nodes to descriptors."""

    netlink: Netlink
    namespaces: Mapping[str, int]
    mtu: int
    _cables: dict[str, _Cable] = field(default_factory=dict)
    _injector_ports: int = 0
    _has_sink: bool = False

    def build(self, switches: Sequence[str], cables: Sequence[Mapping[str, Any]]) -> None:
        """Makes switches and cables, all up and joined. Raises NetlinkError."""
        self.netlink.apply(self._plan(switches, cables))

    def warm_up(self) -> None:
        """Encodes a cable of each kind for nobody: the first time takes ten times as long as the next (200 us)."""
        switch, node = {"switch": "s"}, {"node": "n", "adapter": "a", "mac": "02:00:00:00:00:00"}
        Cabling(self.netlink, {"n": 0}, self.mtu)._plan(["s"], [{"name": "c", "ends": [node, switch]}])

    def _plan(self, switches: Sequence[str], cables: Sequence[Mapping[str, Any]]) -> list[Request]:
        bridges = {name: _FIRST_SWITCH + number for number, name in enumerate(switches)}
        requests: list[Request] = []
        labels: list[Request] = []
        for name, index in bridges.items():
            requests.append(
                netlink.bridge(index=index, name=_short(name, f"switch{index - _FIRST_SWITCH}", labels, index))
            )
        for number, cable in enumerate(cables):
            requests += self._new_cable(number, cable, bridges, labels)
        requests.append(netlink.group_up(_GROUP))
        for made in self._cables.values():
            requests += [netlink.clsact(end.index) for end in made.ends]
        for made in self._cables.values():
            near, far = made.ends
            requests.append(netlink.redirect(near.index, far.index, JOIN))
            requests.append(netlink.redirect(far.index, near.index, JOIN))
        return [*requests, *labels]

    def _new_cable(
        self, number: int, cable: Mapping[str, Any], bridges: Mapping[str, int], labels: list[Request]
    ) -> list[Request]:
        ends: list[_End] = []
        requests: list[Request] = []
        for side, end in enumerate(cable["ends"]):
            index = _FIRST_CABLE + 2 * number + side
            inner = _short(f"{cable['name']}-{side}", f"cable{number}-{side}", labels, index)
            outer = index + _OUTER_INDEX_OFFSET
            if end.get("switch"):
                label = text = end["switch"]
                requests.append(
                    netlink.bridge_veth(
                        index=outer, name=f"port{index - _FIRST_CABLE}", mtu=self.mtu, master=bridges[label],
                        peer_index=index, peer_name=inner, group=_GROUP,
                    )
                )  # fmt: skip
            else:
                label, text = end["node"], f"{end['node']}.{end['adapter']}"
                requests.append(
                    netlink.node_veth(
                        index=outer, name=end["adapter"], mac=bytes.fromhex(end["mac"].replace(":", "")), mtu=self.mtu,
                        namespace=self.namespaces[label], peer_index=index, peer_name=inner, group=_GROUP,
                    )
                )  # fmt: skip
            ends.append(_End(label, text, index, inner))
        self._cables[cable["name"]] = _Cable(cable["name"], (ends[0], ends[1]))
        return requests

    def cut(self, cable: str, end: str | None = None) -> int:
        """Pulls out one end or both; the moment in ns. Cutting what is cut changes nothing."""
        return self._set_cut(cable, end, cut=True)

    def restore(self, cable: str, end: str | None = None) -> int:
        """Plugs in again what `cut` pulled out; the moment in ns."""
        return self._set_cut(cable, end, cut=False)

    def _set_cut(self, cable: str, end: str | None, *, cut: bool) -> int:
        self._need_sink()
        ends = self._cables[cable].ends
        changed = [mine for mine in ends if mine.cut != cut and _is(mine, end)]
        for mine in changed:
            mine.cut = cut
        requests: list[Request] = []
        freed: list[Request] = []
        # An end that keeps its carrier while the other is out: its frames go nowhere. Led to an interface that is down
        # they would do so, too, but with a line in the kernel's log for each.
        for mine, other in (ends, ends[::-1]):
            dead_end = other.cut and not mine.cut
            if dead_end and not mine.dead_end:
                requests.append(netlink.redirect(mine.index, _SINK, DEAD_END))
            elif mine.dead_end and not dead_end:
                freed.append(netlink.remove_redirect(mine.index, DEAD_END))
            mine.dead_end = dead_end
        requests += [netlink.set_up(mine.index, up=not cut) for mine in changed]
        return self._now_apply([*requests, *freed])

    def blackhole(self, cable: str, source: str | None = None) -> int:
        """Frames from `source` (None: both ends) vanish in the cable, the carrier stays; the moment in ns."""
        self._need_sink()
        requests: list[Request] = []
        for end in self._cables[cable].ends:
            if _is(end, source) and not end.silenced:
                end.silenced = True
                requests.append(netlink.redirect(end.index, _SINK, BLACKHOLE))
        return self._now_apply(requests)

    def unblackhole(self, cable: str, source: str | None = None) -> int:
        """Ends `blackhole`; the moment in ns."""
        requests: list[Request] = []
        for end in self._cables[cable].ends:
            if _is(end, source) and end.silenced:
                end.silenced = False
                end.swallowed += self.netlink.redirected_frames(end.index, BLACKHOLE)
                requests.append(netlink.remove_redirect(end.index, BLACKHOLE))
        return self._now_apply(requests)

    def swallowed(self, cable: str) -> int:
        """How many frames silences of this cable have taken so far, both directions."""
        return sum(
            end.swallowed + (self.netlink.redirected_frames(end.index, BLACKHOLE) if end.silenced else 0)
            for end in self._cables[cable].ends
        )

    def injector_ports(self, cable: str) -> tuple[InjectorPort, InjectorPort]:
        """The injector's two interfaces at this cable, made at the first call. Nothing leads to them yet."""
        made = self._cables[cable]
        if made.injector is None:
            made.injector = (self._injector_port(made, 0), self._injector_port(made, 1))
        return made.injector

    def _injector_port(self, cable: _Cable, side: int) -> InjectorPort:
        number = self._injector_ports
        self._injector_ports += 1
        end = cable.ends[side]
        tap_index = _FIRST_INJECTOR + 2 * number
        port = InjectorPort(cable.name, end.label, end.name, f"tap{number}", tap_index + 1)
        self.netlink.apply(
            [
                netlink.plain_veth(
                    index=tap_index, name=port.tap, mtu=self.mtu, peer_index=port.index,
                    peer_name=f"armed{number}", group=_GROUP,
                ),
                netlink.set_up(port.index, up=True),
            ]
        )  # fmt: skip
        return port

    def arm(self, cable: str, source: str | None = None) -> int:
        """Frames from `source` (None: both ends) go through the injector from now on; the moment in ns."""
        ports = self.injector_ports(cable)
        requests: list[Request] = []
        for end, port in zip(self._cables[cable].ends, ports, strict=True):
            if _is(end, source) and not end.armed:
                end.armed = True
                requests.append(netlink.redirect(end.index, port.index, INJECTOR))
        return self._now_apply(requests)

    def disarm(self, cable: str, source: str | None = None) -> int:
        """Frames take the joint again; the moment in ns. What the injector still holds should have left before."""
        requests: list[Request] = []
        for end in self._cables[cable].ends:
            if _is(end, source) and end.armed:
                end.armed = False
                requests.append(netlink.remove_redirect(end.index, INJECTOR))
        return self._now_apply(requests)

    def _need_sink(self) -> None:
        """Makes the interface where frames vanish, at the first fault that needs it: its far end is read by nobody."""
        if not self._has_sink:
            made = netlink.plain_veth(
                index=_SINK, name="sink", mtu=_SINK_MTU, peer_index=_SINK + 1, peer_name="sink-drain", group=_GROUP
            )
            self.netlink.apply([made, netlink.set_up(_SINK + 1, up=True)])
            self._has_sink = True

    def describe(self) -> list[dict[str, object]]:
        """Each cable's ends and state, for people and JSON."""
        return [
            {
                "cable": cable.name,
                "ends": [end.text for end in cable.ends],
                "interfaces": [end.name for end in cable.ends],
                "cut": [end.text for end in cable.ends if end.cut],
                "silenced": [end.text for end in cable.ends if end.silenced],
                "armed": [end.text for end in cable.ends if end.armed],
            }
            for cable in self._cables.values()
        ]

    def names(self) -> list[str]:
        """The names of all cables."""
        return list(self._cables)

    def check(self, cable: str, end: str | None = None) -> str | None:
        """What is wrong with these names, None if nothing."""
        if cable not in self._cables:
            return f'no cable "{cable}"; there is: {", ".join(self._cables)}'
        ends = self._cables[cable].ends
        if end is not None and not any(_is(mine, end) for mine in ends):
            return f'cable "{cable}" has no end at "{end}"; its ends: {", ".join(mine.text for mine in ends)}'
        return None

    def _now_apply(self, requests: list[Request]) -> int:
        """The moment just before the kernel hears of it: nothing that it causes can be earlier."""
        at = time.monotonic_ns()
        if requests:
            self.netlink.apply(requests)
        return at


def _is(end: _End, name: str | None) -> bool:
    """Whether `name` (node, switch, node.adapter, or None for any) means this end."""
    return name is None or name in (end.label, end.text)


def _short(name: str, fallback: str, labels: list[Request], index: int) -> str:
    """`name` where the kernel takes it as an interface name, else `fallback` with `name` as its second name."""
    try:
        netlink.check_name(name)
    except ValueError:
        labels.append(netlink.alternative_name(index, name))
        return fallback
    return name
