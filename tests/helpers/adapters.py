"""Two real adapters back to back on a cable that a test can look into, in virtual time.

Testing one side always tests both: there are no mocks, only a cable whose frames a test may take away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from emul.adapter import Adapter, PortFacts
from emul.answers import Answers
from emul.clock import MICROSECOND, MILLISECOND, Instant
from emul.firmware import Identity
from emul.local import LocalDevice
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.verbs import CQ, MR, PD, QP, Context, QPInitAttr
from emul.vocabulary import (
    GID,
    WC,
    AccessFlags,
    AHAttr,
    GlobalRoute,
    QPAttr,
    QPCap,
    QPState,
    WCStatus,
)
from emul.wire.address import address_bytes
from emul.wire.frame import make_flow

KEY = b"a key of the cluster"
ALL_ACCESS = AccessFlags.LOCAL_WRITE | AccessFlags.REMOTE_WRITE | AccessFlags.REMOTE_READ
STEPS_MAX = 100_000
FLIGHT_NS = 5 * MICROSECOND


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame that crossed, or would have crossed, the cable."""

    sender: int
    frame: bytes

    @property
    def opcode(self) -> int:
        """Its BTH opcode; -1 for anything that is not RoCE."""
        if len(self.frame) > 54 and self.frame[12:14] == b"\x08\x00":
            return self.frame[42]
        if len(self.frame) > 74 and self.frame[12:14] == b"\x86\xdd" and self.frame[20] == 17:
            return self.frame[62]
        return -1

    @property
    def psn(self) -> int:
        """Its PSN."""
        place = 71 if self.frame[12:14] == b"\x86\xdd" else 51
        return int.from_bytes(self.frame[place : place + 3], "big")


class AdapterPair:
    """Two adapters, 0 and 1, on one cable. `filter` decides what becomes of each frame: the list that goes on."""

    def __init__(
        self, *, mtu: int = 1500, seed: int = 1, keys: tuple[bytes, bytes] = (KEY, KEY), ipv6: bool = False
    ) -> None:
        self.ipv6 = ipv6
        self.now = Instant(MILLISECOND)
        self.seen: list[Seen] = []
        self.filter: Callable[[Seen], list[bytes]] = lambda seen: [seen.frame]
        self.nodes = [NodeMemory(Memory.plain(NODE_MEMORY_BYTES)) for _ in range(2)]
        self.adapters: list[Adapter] = []
        self.contexts: list[Context] = []
        for index in range(2):
            self.nodes[index].power_on()
            adapter = Adapter(
                port=PortFacts(bytes([2, 0, 0, 0, 0, index]), address_bytes(self.address(index)), mtu),
                identity=Identity(index + 1, 0, keys[index]),
                node_memory=self.nodes[index],
                rng=random.Random(f"{seed}/{index}"),
                wake_host=lambda: None,
            )
            self.adapters.append(adapter)
            device = LocalDevice(adapter, on_doorbell=lambda: None, clock=lambda: self.now)
            context = Context(device)
            context.attach(1)
            self.contexts.append(context)

    def address(self, index: int) -> str:
        """The address of adapter `index`."""
        return f"fd77::{index + 1}" if self.ipv6 else f"10.77.0.{index + 1}"

    def step(self) -> bool:
        """Both take their doorbells and send; False when nothing crossed."""
        crossed = False
        for index, adapter in enumerate(self.adapters):
            adapter.on_doorbell(now=self.now)
            for frame in adapter.poll_transmit(now=self.now):
                crossed = True
                seen = Seen(index, frame)
                self.seen.append(seen)
                for passed in self.filter(seen):
                    self.adapters[1 - index].on_frame(passed, now=self.now)
        self.now = Instant(self.now + FLIGHT_NS)
        return crossed

    def settle(self, until: Callable[[], bool] = lambda: False, *, span_ns: int = 2_000 * MILLISECOND) -> None:
        """Runs until nothing is left to do, `until` holds, or `span_ns` of virtual time are over."""
        end = self.now + span_ns
        for _ in range(STEPS_MAX):
            if until():
                return
            if self.step():
                continue
            deadlines = [adapter.next_deadline(now=self.now) for adapter in self.adapters]
            nearest = min((each for each in deadlines if each is not None), default=None)
            if nearest is None or nearest > end:
                return
            self.now = Instant(max(self.now, nearest))
            for adapter in self.adapters:
                adapter.on_time(now=self.now)
        raise AssertionError(f"still busy after {STEPS_MAX} steps")


def packets_of(answers: Answers) -> list[tuple[int, int, bytes]]:
    """(opcode, PSN, what follows the BTH with its padding) of all that is still to be answered."""
    mac, address = bytes(6), bytes([10, 77, 0, 1])
    flow = make_flow(source_mac=mac, target_mac=mac, source=address, target=address, source_port=0xC000)
    frames = iter(lambda: answers.next_frame(flow), None)
    return [(frame[42], int.from_bytes(frame[51:54], "big"), frame[54:-4]) for frame in frames]


class Party:
    """A host's end of a queue pair: protection domain, one region, one completion queue."""

    def __init__(
        self, context: Context, *, length: int = 65536, depth: int = 64, access: AccessFlags = ALL_ACCESS
    ) -> None:
        self.context = context
        self.pd = PD(context)
        self.access = access
        self.mr = MR(self.pd, length, access)
        self.cq = CQ(context, 4 * depth)
        cap = QPCap(max_send_wr=depth, max_recv_wr=depth)
        self.qp = QP(self.pd, QPInitAttr(cap=cap, scq=self.cq, rcq=self.cq))

    def another_region(self, length: int, access: AccessFlags | None = None) -> MR:
        """One more region in the same domain."""
        return MR(self.pd, length, self.access if access is None else access)

    def completions(self) -> list[WC]:
        """What has completed."""
        return self.cq.poll(256)[1]

    def statuses(self) -> list[WCStatus]:
        """How it has completed."""
        return [completion.status for completion in self.completions()]


def connect_by_hand(
    pair: AdapterPair,
    parties: tuple[Party, Party],
    *,
    only_to: tuple[QPState, QPState] = (QPState.RTS, QPState.RTS),
    **attributes: int,
) -> None:
    """Connects the two queue pairs as an engineer does without CM: each is told number and PSN of the other. `only_to`
    lets one of them stop in RTR.
    """
    psns = (0xFFFFFE, 0x000123)
    for index, party in enumerate(parties):
        attr = QPAttr(
            qp_state=QPState.INIT,
            dest_qp_num=parties[1 - index].qp.qp_num,
            sq_psn=psns[index],
            rq_psn=psns[1 - index],
            qp_access_flags=ALL_ACCESS,
            ah_attr=AHAttr(gr=GlobalRoute(dgid=GID(pair.address(1 - index)))),
        )
        for name, value in attributes.items():
            setattr(attr, name, value)
        if only_to[index] is QPState.RTS:
            party.qp.to_rts(attr)
        else:
            party.qp.to_rtr(attr)
