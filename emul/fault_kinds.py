"""The adapter's hardware faults: their names, what each does, what undoing it means, and what it takes.

One table for whoever injects: the adapter checks requests against it, the lab makes its catalogue of it. Keys carry
their unit (`delay_ns`); how a person writes "5ms" is the lab's matter. Pure data and its validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from errno import EINVAL

from emul.clock import MILLISECOND, SECOND
from emul.errors import RDMAError
from emul.wellknown import PROTOCOL_VERSION

DURATION_MAX_NS = 3600 * SECOND
COUNT_MAX = 1_000_000
ROLES = ("all", "client", "path", "firmware")
"""Queue pairs by their part: `client` are the host's own, connected by hand (a storage manager's sessions), `path`
those that its connection management connected (the manager's way to the partner's firmware), `firmware` the adapter's
own ends of such connections."""
Value = int | float | str


class Figure(Enum):
    """What a parameter's value is."""

    DURATION = "ns"
    NUMBER = "a whole number"
    PROBABILITY = "above 0, at most 1"
    WORD = "one of a few words"
    QUEUE_PAIRS = "a role or a queue pair's number"


@dataclass(frozen=True, slots=True)
class FaultParameter:
    """One parameter."""

    name: str
    figure: Figure
    help: str
    default: Value | None = None
    required: bool = False
    least: int = 1
    most: int = COUNT_MAX
    words: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name with the unit last."""
        return self.name + "_ns" if self.figure is Figure.DURATION else self.name

    def check(self, value: object) -> Value:
        """The value, if it may be one. Raises ValueError with what was expected and found."""
        if self.figure is Figure.PROBABILITY:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ValueError(f"expected {self.figure.value}, found {value!r}")
            return float(value)
        if self.figure is Figure.WORD:
            if not isinstance(value, str) or value not in self.words:
                raise ValueError(f"expected one of {', '.join(self.words)}, found {value!r}")
            return value
        if self.figure is Figure.QUEUE_PAIRS:
            return check_queue_pairs(value)
        most = DURATION_MAX_NS if self.figure is Figure.DURATION else self.most
        if isinstance(value, bool) or not isinstance(value, int) or not self.least <= value <= most:
            unit = " ns" if self.figure is Figure.DURATION else ""
            raise ValueError(f"expected {self.least} ... {most}{unit}, found {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of hardware fault."""

    name: str
    help: str
    undo: str
    """What undoing it means; "" for one that is over as soon as it has happened."""
    parameters: tuple[FaultParameter, ...] = ()

    @property
    def lasting(self) -> bool:
        """Whether it stays until it is undone, has met what it may meet, or its time is over."""
        return bool(self.undo)


def check_queue_pairs(value: object) -> int | str:
    """A role, or a queue pair number of 24 bits. Raises ValueError."""
    if value in ROLES and isinstance(value, str):
        return value
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise ValueError(f"expected {', '.join(ROLES)} or a queue pair's number, found {value!r}")
    return value


def _which(default: str, what: str) -> FaultParameter:
    roles = ", ".join(ROLES)
    return FaultParameter("qp", Figure.QUEUE_PAIRS, f"of which queue pairs {what}: {roles}, or a number", default)


def _nth(what: str) -> FaultParameter:
    return FaultParameter("nth", Figure.NUMBER, f"the first {what} to be met, counted from the moment of injection", 1)


def _count(what: str, default: int | None) -> FaultParameter:
    rest = "" if default is not None else "; all where it isn't given"
    return FaultParameter("count", Figure.NUMBER, f"how many {what}{rest}", default)


_CHANCE = FaultParameter("probability", Figure.PROBABILITY, "each of them with this chance, drawn from the seed")
_SIDE = FaultParameter(
    "side", Figure.WORD, "completions of sends, of receives, or of both", "both", words=("send", "receive", "both")
)
_HELD_UNTIL = "what is held back comes at once, in order"
_KINDS = (
    FaultKind(
        "hang",
        "the card stops between two frames: it takes no frame, doorbell or verb, sends nothing, and keeps its carrier",
        "it goes on where it was; frames that came meanwhile are lost",
    ),
    FaultKind(
        "slow",
        "everything that comes in, frames and doorbells, is handled late, in its order",
        "what waits is handled at once, in order",
        (FaultParameter("delay", Figure.DURATION, "how late", required=True),),
    ),
    FaultKind(
        "port_down",
        "the port is switched off: the host gets PORT_ERR, no frame comes in or goes out, queue pairs stay",
        "the port comes up again (PORT_ACTIVE)",
    ),
    FaultKind(
        "qp_error",
        "a queue pair goes to ERR by an error inside the card: QP_FATAL, what was posted is flushed; the peer hears "
        "nothing",
        "",
        (_which("client", "the first that is connected"), _count("queue pairs", 1)),
    ),
    FaultKind(
        "retry_exhausted",
        "a queue pair ends with RETRY_EXC_ERR as if its peer were silent: the answer that should have completed a "
        "request is not seen",
        "no further queue pair ends so; those that did stay in ERR",
        (_which("client", "any with a request in flight"), _nth("answer"), _count("queue pairs", 1)),
    ),
    FaultKind(
        "cq_overrun",
        "a completion queue is lost as by an overrun: CQ_ERR, and all its queue pairs go to ERR",
        "",
        (_which("client", "the first that is connected; its send queue's completion queue is meant"),),
    ),
    FaultKind(
        "cqe_delay",
        "completions are written late; all of a completion queue stay in their order",
        _HELD_UNTIL,
        (
            FaultParameter("delay", Figure.DURATION, "how late", required=True),
            _which("all", "the completions"), _SIDE, _nth("completion"), _count("completions", None), _CHANCE,
        ),
    ),
    FaultKind(
        "cqe_reorder",
        "a completion is written after the one that follows it: of another queue pair of the same completion queue "
        "(across), or of the same queue pair (within), which no host may expect",
        _HELD_UNTIL,
        (
            FaultParameter("scope", Figure.WORD, "what may overtake", "across", words=("across", "within")),
            FaultParameter("delay", Figure.DURATION, "after which it is written in any case", MILLISECOND),
            _which("all", "the completions"), _SIDE, _nth("completion"), _count("completions", 1), _CHANCE,
        ),
    ),
    FaultKind(
        "cqe_lost",
        "a completion is never written; what it would have told is done",
        "no more are lost; those that were stay lost",
        (_which("client", "the completions"), _SIDE, _nth("completion"), _count("completions", 1), _CHANCE),
    ),
    FaultKind(
        "doorbell_lost",
        "a doorbell is not heard: the work is found with the next one, or when the card next looks by itself (10 ms)",
        "doorbells are heard; the card looks at all queues at once",
        (_which("all", "the doorbells"), _nth("doorbell"), _count("doorbells", 1), _CHANCE),
    ),
    FaultKind(
        "dma_stall",
        "the card does not get at the host's memory for its peers: their requests wait, in order, and with them all "
        "acknowledgements",
        "what waits is carried out at once, in order",
        (
            FaultParameter("delay", Figure.DURATION, "each request waits so long; without it, until the fault ends"),
            _which("all", "the requests"),
        ),
    ),
    FaultKind(
        "dma_corrupt",
        "bits flip between the card and memory: what arrived well (its ICRC is right) is stored wrong",
        "no more bits flip; what was stored stays as it is",
        (
            FaultParameter("bits", Figure.NUMBER, "flipped bits in one packet's payload", 1, most=64),
            _which("client", "the packets with payload"), _nth("packet"), _count("packets", 1), _CHANCE,
        ),
    ),
    FaultKind(
        "stale_rkey",
        "the card's translation cache goes on honouring keys that are deregistered from now on: peers that use them "
        "still reach the memory",
        "the stale keys are dead",
    ),
    FaultKind(
        "mr_deregister_in_flight",
        "the region that a peer's request names loses its key while the request is carried out",
        "no further region is hit; a key that died stays dead",
        (_which("client", "the requests"), _nth("RDMA READ or WRITE"), _count("regions", 1)),
    ),
    FaultKind(
        "qpn_reuse",
        "the next queue pair gets the number of the one destroyed last",
        "numbers are again not used twice in a row",
    ),
    FaultKind(
        "psn_wrap",
        "connections that connection management makes here begin just before the end of the PSN range",
        "new connections begin anywhere again",
        (FaultParameter("first", Figure.NUMBER, "their first PSN", 0xFFFFF0, least=0, most=0xFFFFFF),),
    ),
    FaultKind(
        "atomic_duplicate",
        "an atomic request is carried out twice; its answer tells what the first time found",
        "atomics are carried out once",
        (_which("all", "the atomics"), _nth("atomic"), _count("atomics", 1)),
    ),
    FaultKind(
        "firmware_old",
        "the firmware speaks an older version of the well-known service: new connections from partners are refused "
        "(reason: version), those that exist stay",
        "the firmware speaks its version again",
        (
            FaultParameter(
                "version", Figure.NUMBER, "the version that it speaks", PROTOCOL_VERSION - 1, least=0, most=0xFFFF
            ),
        ),
    ),
)
KINDS: Mapping[str, FaultKind] = {kind.name: kind for kind in _KINDS}
DURATION = FaultParameter("for", Figure.DURATION, "after which it is undone by itself")
"""What each lasting fault takes as well."""


def kind_named(name: object) -> FaultKind:
    """Raises RDMAError with the nearest name."""
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise RDMAError(EINVAL, f"no hardware fault {name!r}{nearest(name, KINDS)}")
    return kind


def parameters_of(kind: FaultKind, given: Mapping[str, object]) -> dict[str, Value]:
    """All parameters by key, defaults included. Raises RDMAError for an unknown one, a wrong value, a missing one."""
    known = {parameter.key: parameter for parameter in kind.parameters}
    if kind.lasting:
        known[DURATION.key] = DURATION
    values: dict[str, Value] = {p.key: p.default for p in kind.parameters if p.default is not None}
    for key, value in given.items():
        if key not in known:
            takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
            raise RDMAError(EINVAL, f"{kind.name}: no parameter {key!r}{nearest(key, known) or takes}")
        try:
            values[key] = known[key].check(value)
        except ValueError as error:
            raise RDMAError(EINVAL, f"{kind.name}: {key}: {error}") from None
    for parameter in kind.parameters:
        if parameter.required and parameter.key not in values:
            raise RDMAError(EINVAL, f"{kind.name}: the parameter {parameter.key!r} is missing ({parameter.help})")
    return values


def nearest(word: object, known: Iterable[str]) -> str:
    """" (did you mean ...?)", or nothing."""
    close = get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
