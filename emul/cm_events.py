"""What a host is told of its connections, and what it and its peer agree on: values only.

Names and numbers of the events are those of librdmacm (rdma-core `librdmacm/rdma_cma.h`, enum rdma_cm_event_type).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from enum import IntEnum


class CmEventType(IntEnum):
    """What has happened to a connection."""

    CONNECT_REQUEST = 4
    """Somebody calls a listener. Say accept or reject."""
    CONNECT_RESPONSE = 5
    """The peer accepted; `private_data` is that of its REP. Say establish or reject."""
    REPLY = 5
    """The same."""
    CONNECT_ERROR = 6
    """It failed on this side: the queue pair could not be moved, or the host took too long (`reason` as in a REJ)."""
    UNREACHABLE = 7
    """No answer."""
    REJECTED = 8
    """The peer refused, or withdrew; `reason` is that of its REJ."""
    ESTABLISHED = 9
    DISCONNECTED = 10
    """Parted; the queue pair is in ERR. `reason` is that of the peer's REJ if it parted with one, else 0."""
    TIMEWAIT_EXIT = 15
    """Nothing of a connection that had been established is under way any more."""


@dataclass(frozen=True, slots=True)
class ConnParam:
    """What one side offers or asks for, under the names of pyverbs (`pyverbs/cmid.pyx`, ConnParam).

    As an answer in an event the numbers are seen from the side that is told: `resources` is what it may have to serve,
    `depth` what it may ask for.
    """

    resources: int = 1
    """READs and atomics of the peer that are served at a time, 0 ... 255."""
    depth: int = 1
    """READs and atomics that are under way to the peer at a time, 0 ... 255."""
    flow_control: int = 0
    retry: int = 7
    """How often the peer is to repeat a request that is not acknowledged, 0 ... 7. Only a caller says so."""
    rnr_retry: int = 7
    """How often the peer is to repeat a request that met no receive, 0 ... 7; 7 is without end."""
    srq: int = 0
    qp_num: int = 0
    """In an event: the peer's queue pair. Of no effect in a call."""


@dataclass(frozen=True, slots=True)
class CmEvent:
    """One event of the connection that the host knows as `number`."""

    kind: CmEventType
    number: int
    private_data: bytes = b""
    """With its full length, filled up with zeros."""
    reason: int = 0
    listener: int = 0
    """CONNECT_REQUEST: the number of the listener that was called."""
    address: bytes = b""
    """CONNECT_REQUEST: where the request came from, four or sixteen bytes. (What the rdma_cm header says of addresses
    is the caller's own word, and is not believed.)"""
    port: int = 0
    """CONNECT_REQUEST to a port: the caller's port."""
    param: ConnParam = ConnParam()

    @property
    def event_type(self) -> CmEventType:
        """`kind`, as pyverbs calls it."""
        return self.kind

    def to_fields(self) -> list[object]:
        """A list that JSON can carry."""
        return [
            int(self.kind), self.number, self.private_data.hex(), self.reason, self.listener, self.address.hex(),
            self.port, list(astuple(self.param)),
        ]  # fmt: skip

    @classmethod
    def from_fields(cls, fields: list[object]) -> CmEvent:
        """The event of such a list. Raises ValueError for anything else."""
        kind, number, private_data, reason, listener, address, port, param = fields
        if not isinstance(param, list):
            raise ValueError(f"connection parameters must be a list, got {param!r}")
        return cls(
            CmEventType(_int(kind)), _int(number), bytes.fromhex(str(private_data)), _int(reason), _int(listener),
            bytes.fromhex(str(address)), _int(port), ConnParam(*(_int(each) for each in param)),
        )  # fmt: skip


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"expected a number, got {value!r}")
    return value
