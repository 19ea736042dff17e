"""The verbs, under pyverbs' names and in its modules: what a host does with an adapter.

Fast verbs (post, poll) touch shared rings only; slow ones go over the device's control channel and answer before they
return. Signatures follow rdma-core's pyverbs, module by module (`pyverbs/device.pyx` is `emul.verbs.device`), so that a
program for pyverbs needs its imports changed and little else; everything is also here.
"""

from emul.errors import DeviceGone, PyverbsError, PyverbsRDMAError, PyverbsUserError, RDMAError
from emul.verbs.cq import CQ, CompChannel
from emul.verbs.device import Context, DeliveredEvent, DeviceAttr, PortAttr
from emul.verbs.mr import MR
from emul.verbs.pd import PD
from emul.verbs.qp import QP, QPInitAttr
from emul.verbs.srq import SRQ, SrqAttr, SrqInitAttr
from emul.vocabulary import GID, SGE, WC, AHAttr, GlobalRoute, QPAttr, QPCap, RecvWR, SendWR

__all__ = [
    "CQ", "GID", "MR", "PD", "QP", "SGE", "SRQ", "WC", "AHAttr", "CompChannel", "Context", "DeliveredEvent",
    "DeviceAttr", "DeviceGone", "GlobalRoute", "PortAttr", "PyverbsError", "PyverbsRDMAError", "PyverbsUserError",
    "QPAttr", "QPCap", "QPInitAttr", "RDMAError", "RecvWR", "SendWR", "SrqAttr", "SrqInitAttr",
]  # fmt: skip
