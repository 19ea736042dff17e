"""The fault catalogue: what each kind of fault is aimed at, what it takes, whether it can be undone, where it exists.

A scenario is checked against this table before anything starts. Adding a kind: a row here, and its doing in each world
that the row names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from emul.fault_kinds import KINDS, FaultKind, FaultParameter, Figure
from lab.parameters import Parameter, ParameterKind

WORLDS = ("sim", "netns", "docker")


class Target(Enum):
    """What a fault is aimed at."""

    CABLE = "cable"
    """A cable, by its name."""
    FRAME = "frame"
    """The frame that the step's trigger matched; with a trigger by time, frames of the cable named as target."""
    NODE = "node"
    """A node, by its name."""
    PORT = "port"
    """An adapter, as NODE.ADAPTER."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    name: str
    target: Target
    help: str
    undone: bool = True
    """Whether it lasts and can be undone (so that a step may say `for`)."""
    parameters: tuple[Parameter, ...] = ()
    worlds: tuple[str, ...] = WORLDS


_FIGURES = {
    Figure.DURATION: ParameterKind.DURATION,
    Figure.NUMBER: ParameterKind.NUMBER,
    Figure.PROBABILITY: ParameterKind.PROBABILITY,
    Figure.WORD: ParameterKind.WORD,
    Figure.QUEUE_PAIRS: ParameterKind.QUEUE_PAIRS,
}


def _parameter(given: FaultParameter) -> Parameter:
    return Parameter(
        given.name, _FIGURES[given.figure], given.help, given.required, given.words, given.least, given.most
    )


def _in_adapter(kind: FaultKind) -> Fault:
    parameters = tuple(_parameter(each) for each in kind.parameters)
    return Fault(f"adapter.{kind.name}", Target.PORT, kind.help, kind.lasting, parameters)


_CLIENT = Parameter("client", ParameterKind.CLIENT, "which of the node's clients", required=True)
_FROM = Parameter("from", ParameterKind.END, "frames that come from this end alone")
_MANY = (
    Parameter("count", ParameterKind.COUNT, "how many frames; 1 where neither this nor probability is given"),
    Parameter("probability", ParameterKind.PROBABILITY, "each matching frame with this chance, drawn from the seed"),
    _FROM,
)
_FAULTS = (
    Fault("cable.cut", Target.CABLE, "the carrier is lost on both ends, and every frame with it"),
    Fault(
        "cable.cut_one_end",
        Target.CABLE,
        "the carrier is lost on one end; the other end sees a good cable into which everything vanishes",
        parameters=(Parameter("end", ParameterKind.END, "the end that loses its carrier", required=True),),
    ),
    Fault("cable.blackhole", Target.CABLE, "frames vanish both ways, the carrier stays"),
    Fault(
        "cable.blackhole_one_way",
        Target.CABLE,
        "frames from one end vanish, the carrier stays",
        parameters=(Parameter("from", ParameterKind.END, "the end whose frames vanish", required=True),),
    ),
    Fault(
        "cable.mtu",
        Target.CABLE,
        "packets larger than `size` vanish, as in a switch between whose ports take less than both ends",
        parameters=(Parameter("size", ParameterKind.SIZE, "largest IP packet that passes", required=True), _FROM),
    ),
    Fault("cable.drop", Target.FRAME, "frames are lost", parameters=_MANY),
    Fault("cable.corrupt", Target.FRAME, "a bit of the frame is flipped; the ICRC tells", parameters=_MANY),
    Fault("cable.duplicate", Target.FRAME, "the frame arrives twice", parameters=_MANY),
    Fault(
        "frame.nak_sequence",
        Target.FRAME,
        "the sender of the frame gets a forged NAK (sequence error) for its PSN",
        undone=False,
    ),
    Fault(
        "frame.spoof_source",
        Target.FRAME,
        "after a write comes another to the same place, with its key and the next PSN, from a stranger's address",
        undone=False,
    ),
    Fault(
        "frame.rkey_guess",
        Target.FRAME,
        "after a write comes another to the same place, from the same address with the next PSN, with a guessed key",
        undone=False,
    ),
    Fault(
        "frame.psn_jump",
        Target.FRAME,
        "after a write comes another to the same place, from the same address with its key, with a guessed PSN",
        undone=False,
    ),
    Fault("host.crash", Target.NODE, "the host process is killed; undone, it boots again"),
    Fault("host.pause", Target.NODE, "the host process is stopped (SIGSTOP); undone, it goes on"),
    Fault(
        "client.close",
        Target.NODE,
        "a client closes its sessions, orderly; undone, it opens them again (suspend and resume)",
        parameters=(_CLIENT,),
    ),
    Fault(
        "client.crash",
        Target.NODE,
        "a client gets no callback any more, and the manager closes its sessions; undone, it is made anew",
        parameters=(_CLIENT,),
    ),
    Fault(
        "operator.remove_member",
        Target.NODE,
        "the node leaves the cluster: its partners close with it and forget it, its host shuts down; undone, it joins "
        "again",
        worlds=("sim", "netns"),
    ),
    Fault("adapter.die", Target.PORT, "the adapter stops for good; undone, it is replaced by a new one"),
    Fault(
        "adapter.reset",
        Target.PORT,
        "the adapter loses its queue pairs and registrations, and comes back by itself",
        undone=False,
    ),
    Fault("adapter.port_up", Target.PORT, "a port that adapter.port_down switched off comes up again", undone=False),
    Fault(
        "operator.version_skew",
        Target.NODE,
        "the node's host is started anew with software that speaks other versions of the managers' protocol",
        parameters=(Parameter("version", ParameterKind.NUMBER, "the only one that it speaks", True, (), 1, 1000),),
        worlds=("sim",),
    ),
    Fault(
        "operator.wrong_key",
        Target.NODE,
        "the node is switched off and on with another cluster key in its cards and its host",
        worlds=("sim",),
    ),
    *(_in_adapter(kind) for kind in KINDS.values()),
)
HARDWARE_FAULTS = {f"adapter.{name}": name for name in KINDS}
"""Faults that the adapter itself does, and their names there (emul.fault_kinds)."""
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _FAULTS}
