"""Connection management as a host uses it: connect a queue pair to a service, agree, part.

The work is done by the adapter (`emul.cm_machine`); events come from `Context.get_cm_events` and name the connection by
`CmId.number`.
"""

from __future__ import annotations

from emul.cm_events import CmEvent, CmEventType
from emul.host_context import attr_to_request
from emul.verbs import QP
from emul.vocabulary import QPAttr

__all__ = ["CmEvent", "CmEventType", "CmId"]


class CmId:
    """One connection of one queue pair, which must be in INIT."""

    def __init__(self, qp: QP) -> None:
        self.qp = qp
        self.number = 0
        """Known after `connect`; 0 before."""

    def connect(self, dgid: str, service_id: int, private_data: bytes, qp_attr: QPAttr) -> None:
        """Asks `dgid` for the service; REPLY, REJECTED or UNREACHABLE follows. `qp_attr` gives timers and path MTU."""
        reply, _ = self.qp.context.call(
            {
                **attr_to_request(qp_attr),
                "op": "cm_connect",
                "qp_num": self.qp.qp_num,
                "dgid": dgid,
                "service_id": service_id,
                "private_data": private_data.hex(),
            }
        )
        number = reply["number"]
        assert isinstance(number, int)
        self.number = number

    def establish(self, private_data: bytes = b"") -> None:
        """Agrees with a REPLY: RTU is sent and the queue pair goes to RTS. Raises RDMAError without one."""
        self._call("cm_establish", private_data)

    def reject(self, private_data: bytes = b"") -> None:
        """Does not agree with a REPLY."""
        self._call("cm_reject", private_data)

    def disconnect(self) -> None:
        """Parts; the queue pair goes to ERR. DISCONNECTED follows."""
        self._call("cm_disconnect", b"")

    def close(self) -> None:
        """Parts if that has not been done, and forgets the connection: no event of it comes any more."""
        if self.number:
            self._call("cm_destroy", b"")
            self.number = 0

    def _call(self, verb: str, private_data: bytes) -> None:
        self.qp.context.call({"op": verb, "number": self.number, "private_data": private_data.hex()})
