"""How an adapter's frames are labelled on the way: UDP source port, traffic class, flow label, hop limit."""

from __future__ import annotations

from typing import Final

from emul.neighbours import Route
from emul.qp import QueuePair
from emul.wire.frame import HOP_LIMIT, Flow, make_flow

_FLOW_LABEL: Final = 0xFFFFF


def flow_of(source_mac: bytes, route: Route, qp: QueuePair) -> Flow:
    """The flow of a queue pair's frames over `route`, whose MAC address is known."""
    given, destination = qp.attr.ah_attr.gr, qp.attr.dest_qp_num
    if given is None:
        port, label = source_port(qp.number), qp.number & _FLOW_LABEL
        return flow_to(source_mac, route, port, flow_label=label, destination_qpn=destination)
    # What an application may give, cut to its field's width; a label of zero is for the adapter to choose.
    label = given.flow_label & _FLOW_LABEL or qp.number & _FLOW_LABEL
    return flow_to(
        source_mac, route, source_port(given.flow_label & _FLOW_LABEL or qp.number),
        traffic_class=given.traffic_class & 0xFF, flow_label=label, hop_limit=given.hop_limit & 0xFF or HOP_LIMIT,
        destination_qpn=destination,
    )  # fmt: skip


def flow_to(
    source_mac: bytes, route: Route, port: int, *,
    traffic_class: int = 0, flow_label: int = 0, hop_limit: int = HOP_LIMIT, destination_qpn: int = 0,
) -> Flow:  # fmt: skip
    """A flow from the UDP source port `port` over `route`, whose MAC address is known."""
    assert route.mac is not None
    return make_flow(
        source_mac=source_mac,
        target_mac=route.mac,
        source=route.source,
        target=route.address,
        source_port=port,
        traffic_class=traffic_class,
        flow_label=flow_label,
        hop_limit=hop_limit,
        destination_qpn=destination_qpn,
    )


def source_port(label: int) -> int:
    """The UDP source port for a flow label or QPN: the same for all packets of a conversation, so that switches keep
    them in order, and another one for the next (IBTA annex A17.9.2).
    """
    return 0xC000 | (label ^ label >> 14) & 0x3FFF
