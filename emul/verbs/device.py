"""An open adapter: its attributes, port, addresses, asynchronous events and counters (pyverbs' `device`)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from errno import EAGAIN, EINVAL

from emul.cm_events import CmEvent
from emul.device import Device
from emul.enums import AtomicCap, DeviceCapFlags, LinkLayer, NodeType, PortCapFlags, PortState
from emul.errors import PyverbsUserError, RDMAError
from emul.host_context import Reply, Request
from emul.memory import Memory
from emul.verbs.base import Resource, answered_int, as_int
from emul.vocabulary import GID, MTU, AsyncEvent, EventType

NUM_COMP_VECTORS = 1
EVENTS_OF_QP = frozenset(
    {
        EventType.QP_FATAL,
        EventType.QP_REQ_ERR,
        EventType.QP_ACCESS_ERR,
        EventType.COMM_EST,
        EventType.SQ_DRAINED,
        EventType.QP_LAST_WQE_REACHED,
    }
)
EVENTS_OF_SRQ = frozenset({EventType.SRQ_ERR, EventType.SRQ_LIMIT_REACHED})
EVENTS_OF_CQ = frozenset({EventType.CQ_ERR})
EVENTS_OF_FIRMWARE = frozenset({EventType.EXCHANGE_WRITTEN, EventType.PATH_FENCED})


@dataclass(frozen=True, slots=True)
class PortAttr:
    """A port as it is now."""

    state: PortState
    active_mtu: MTU
    max_mtu: MTU = MTU.MTU_4096
    gid_tbl_len: int = 2
    port_cap_flags: int = int(PortCapFlags.CM_SUP | PortCapFlags.IP_BASED_GIDS)
    max_msg_sz: int = 1 << 31
    bad_pkey_cntr: int = 0
    qkey_viol_cntr: int = 0
    pkey_tbl_len: int = 1
    lid: int = 0
    sm_lid: int = 0
    lmc: int = 0
    max_vl_num: int = 1
    sm_sl: int = 0
    subnet_timeout: int = 0
    init_type_reply: int = 0
    active_width: int = 1
    active_speed: int = 32
    phys_state: int = 5
    """5 is link up, 3 disabled."""
    link_layer: LinkLayer = LinkLayer.ETHERNET
    flags: int = 0
    port_cap_flags2: int = 0


@dataclass(frozen=True, slots=True)
class DeviceAttr:
    """What the adapter can do (ibv_device_attr); what it has not is 0."""

    fw_version: str
    node_guid: int
    sys_image_guid: int
    max_qp: int
    max_qp_wr: int
    max_sge: int
    max_sge_rd: int
    max_cq: int
    max_cqe: int
    max_mr: int
    max_pd: int
    max_srq: int
    max_srq_wr: int
    max_srq_sge: int
    max_inline_data: int
    max_mr_size: int = (1 << 32) - 1
    page_size_cap: int = 4096
    vendor_id: int = 0
    vendor_part_id: int = 0
    hw_ver: int = 1
    device_cap_flags: int = int(
        DeviceCapFlags.PORT_ACTIVE_EVENT | DeviceCapFlags.RC_RNR_NAK_GEN | DeviceCapFlags.CURR_QP_STATE_MOD
        | DeviceCapFlags.FLUSH_GLOBAL | DeviceCapFlags.FLUSH_PERSISTENT | DeviceCapFlags.ATOMIC_WRITE
    )  # fmt: skip
    max_qp_rd_atom: int = 128
    max_qp_init_rd_atom: int = 128
    max_res_rd_atom: int = 128 * 4096
    atomic_caps: int = AtomicCap.HCA
    max_ee: int = 0
    max_ee_rd_atom: int = 0
    max_ee_init_rd_atom: int = 0
    max_rdd: int = 0
    max_mw: int = 0
    max_raw_ipv6_qps: int = 0
    max_raw_ethy_qp: int = 0
    max_mcast_grp: int = 0
    max_mcast_qp_attach: int = 0
    max_ah: int = 0
    max_fmr: int = 0
    max_map_per_fmr: int = 0
    max_pkeys: int = 1
    local_ca_ack_delay: int = 15
    phys_port_cnt: int = 1
    node_type: int = NodeType.CA


@dataclass(slots=True)
class DeliveredEvent:
    """An asynchronous event as `Context.get_async_event` hands it over: acknowledge it before what it is about is
    closed.
    """

    event_type: EventType
    element: int
    """Number of the queue pair, completion queue, shared receive queue or port that it is about."""
    _owed_to: Resource | None = field(default=None, repr=False)

    def ack(self) -> None:
        """Done with it; once is enough."""
        if self._owed_to is not None:
            self._owed_to._unacknowledged -= 1
            self._owed_to = None


class Context(Resource):
    """An open adapter.

    `Context(name="eth1@10.77.0.9")` starts one on interface eth1 of the current network namespace, with that address
    of its own, and ends it when it is closed (`emul.open_adapter` has more options). `Context(device)` is a host's way
    to an adapter that runs already; `attach` makes the caller its host.
    """

    def __init__(self, device: Device | None = None, *, name: str | None = None, address: str | None = None) -> None:
        super().__init__()
        if device is None:
            from emul.opening import open_named  # the one verb that touches the world

            if name is None:
                raise PyverbsUserError("a context needs a device or a name, such as eth1@10.77.0.9")
            device = open_named(name, address)
        self.name = name or ""
        self.device = device
        self._events: deque[AsyncEvent] = deque()
        self._by_number: dict[tuple[str, int], Resource] = {}
        if name is not None:
            device.attach(1)

    # -- waiting ------------------------------------------------------------------------------------------------------

    @property
    def num_comp_vectors(self) -> int:
        """Completion vectors, of which there is one."""
        return NUM_COMP_VECTORS

    @property
    def event_fd(self) -> int:
        """Readable when an armed completion queue without a channel, an asynchronous or a connection event waits; -1
        in the simulator.
        """
        return self.device.event_fd

    @property
    def async_fd(self) -> int:
        """Readable while `get_async_event` would not block; -1 in the simulator."""
        return self.device.async_fd

    def descriptors(self) -> list[int]:
        """All descriptors that a host should wait on (also readable when the adapter dies)."""
        return self.device.descriptors()

    def attach(self, incarnation: int) -> None:
        """Becomes the adapter's host; what an earlier incarnation owned is destroyed."""
        self.device.attach(incarnation)

    def clear_event(self) -> None:
        """Resets `event_fd`; call it before looking at what woke."""
        self.device.clear_wake()

    # -- attributes ---------------------------------------------------------------------------------------------------

    def query_device(self) -> DeviceAttr:
        """What the adapter can do."""
        reply = self.call({"op": "query_device"})[0]
        numbers = {name: answered_int(reply, name) for name in _DEVICE_NUMBERS}
        return replace(_NO_DEVICE, fw_version=str(reply.get("fw_version")), **numbers)

    def query_port(self, port_num: int = 1) -> PortAttr:
        """Carrier and active MTU of the port, of which there is one."""
        _check_port(port_num)
        reply = self.call({"op": "query_port"})[0]
        up = reply["state"] == "ACTIVE"
        return PortAttr(
            PortState.ACTIVE if up else PortState.DOWN,
            MTU(answered_int(reply, "active_mtu")),
            MTU(answered_int(reply, "max_mtu")),
            phys_state=5 if up else 3,
        )

    def query_gid(self, port_num: int, index: int) -> GID:
        """A port's address; indices as Linux has them: 0 is RoCE v1's, 1 RoCE v2's, here the same."""
        _check_port(port_num)
        gids = self.call({"op": "query_port"})[0]["gids"]
        assert isinstance(gids, list)
        # Linux lists each address twice; the second of them is RoCE v2's.
        if not 0 <= as_int(index, "index") < 2 * len(gids):
            raise RDMAError(EINVAL, f"port 1 has GIDs 0 ... {2 * len(gids) - 1}, not {index}")
        return GID(str(gids[index // 2]))

    def query_pkey(self, port_num: int, index: int) -> int:
        """A port's partition key: 0xffff, the only one."""
        _check_port(port_num)
        if index != 0:
            raise RDMAError(EINVAL, f"port 1 has P_Key 0, not {index}")
        return 0xFFFF

    def counters(self) -> dict[str, int]:
        """All counters of the adapter: docs/counters.md."""
        return _int_dict(self.call({"op": "query_counters"})[0]["counters"])

    def port_counters(self) -> dict[str, int]:
        """The port's counters under the names that InfiniBand has in sysfs: docs/counters.md."""
        return _int_dict(self.call({"op": "query_counters"})[0]["port"])

    def resources(self) -> dict[str, int]:
        """How many of each kind this host holds."""
        return _int_dict(self.call({"op": "query_counters"})[0]["resources"])

    # -- events -------------------------------------------------------------------------------------------------------

    def get_async_event(self, timeout_ms: int | None = None) -> DeliveredEvent:
        """The next asynchronous event; waits for one, at most `timeout_ms`. Raises RDMAError (EAGAIN) when there is
        none in that time. Events of the emulated firmware are not among them (see `get_async_events`).
        """
        self._check_open()
        while True:
            self._events.extend(self.device.take_events())
            while self._events:
                event = self._events.popleft()
                if event.event_type in EVENTS_OF_FIRMWARE:
                    continue
                owner = self._owner(event)
                if owner is None and event.event_type in EVENTS_OF_QP | EVENTS_OF_SRQ | EVENTS_OF_CQ:
                    continue  # what it was about has been closed
                if owner is not None:
                    owner._unacknowledged += 1
                return DeliveredEvent(event.event_type, event.element, owner)
            if not self.device.wait(None, timeout_ms):
                raise RDMAError(EAGAIN, "no asynchronous event waits")

    def get_async_events(self) -> list[AsyncEvent]:
        """Asynchronous events since the last call, the firmware's too; never blocks, nothing is to be acknowledged."""
        return self.device.take_events()

    def get_cm_events(self) -> list[CmEvent]:
        """Connection events since the last call; never blocks."""
        return self.device.take_cm_events()

    def _owner(self, event: AsyncEvent) -> Resource | None:
        for kinds, name in ((EVENTS_OF_QP, "qp"), (EVENTS_OF_CQ, "cq"), (EVENTS_OF_SRQ, "srq")):
            if event.event_type in kinds:
                return self._by_number.get((name, event.element))
        return None

    # -- the adapter --------------------------------------------------------------------------------------------------

    def call(self, request: Request, memories: list[Memory] | None = None) -> tuple[Reply, list[Memory]]:
        """One slow verb. Raises RDMAError with the adapter's errno and sentence."""
        self._check_open()
        reply, answered = self.device.call(request, memories or [])
        if "errno" in reply:
            raise RDMAError(answered_int(reply, "errno"), f"{request['op']}: {reply.get('message', '')}")
        return reply, answered

    def close(self) -> None:
        """Lets go of the adapter, and of all descriptors and mappings. In the adapter, objects are closed where it was
        opened through a name; a host that attached leaves its queue pairs and regions behind, until another incarnation
        attaches.
        """
        if self.closed:
            return
        try:
            if self.name:
                self._close_children()
            else:
                for child in reversed(list(self._children)):
                    child._abandon()
        finally:
            self.closed = True
            self.device.close()

    def _close_with_children(self) -> None:
        self.close()


_DEVICE_NUMBERS = (
    "node_guid", "sys_image_guid", "max_qp", "max_qp_wr", "max_sge", "max_sge_rd", "max_cq", "max_cqe", "max_mr",
    "max_pd", "max_srq", "max_srq_wr", "max_srq_sge", "max_inline_data",
)  # fmt: skip

_NO_DEVICE = DeviceAttr("", *(0 for _ in _DEVICE_NUMBERS))


def _check_port(port_num: int) -> None:
    if as_int(port_num, "port_num") != 1:
        raise RDMAError(EINVAL, f"an adapter has port 1, not {port_num}")


def _int_dict(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise RDMAError(EINVAL, f"the adapter answered {value!r} where counters were due")
    return {str(name): int(number) for name, number in value.items()}
