"""What the injector does with frames: rules over raw bytes, counted and seeded. Pure: no I/O, no clock, no scapy.

`InjectorCore` sits in the middle of cables, in the injector process and in the simulator alike. `lab.injector`
describes rules and calls. Frames are matched at fixed offsets (`Sight`); whatever is too short or of another kind is
simply seen as less, never an error.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from emul.wire.frame import ETHERTYPE_ARP, ETHERTYPE_IPV4, ROCE_UDP_PORT, TRANSPORT_OFFSET
from emul.wire.headers import Opcode
from emul.wire.mad import Attribute
from lab.injector.strangers import STRANGERS

RULES_MAX = 1024
EVENTS_MAX = 4096
"""Events kept for `events`; the oldest go first and their numbers with them."""
REQUESTS_REMEMBERED_MAX = 4096
"""Request packets remembered until their acknowledgement tells the sender's queue pair; the oldest go first."""
PAIRS_REMEMBERED_MAX = 4096

ACTIONS = ("drop", "corrupt", "duplicate", "observe", "forge_nak_sequence", *STRANGERS)
FORGING = frozenset({"forge_nak_sequence"})
GROUPS: dict[str, frozenset[int]] = {
    "SEND": frozenset({Opcode.SEND_FIRST, Opcode.SEND_ONLY, Opcode.SEND_ONLY_WITH_IMMEDIATE}),
    "RDMA_WRITE": frozenset({Opcode.RDMA_WRITE_FIRST, Opcode.RDMA_WRITE_ONLY, Opcode.RDMA_WRITE_ONLY_WITH_IMMEDIATE}),
    "RDMA_READ": frozenset({Opcode.RDMA_READ_REQUEST}),
}
_CM_NAMES = {f"CM_{attribute.name}": int(attribute) for attribute in Attribute}
_ARP = "ARP"
_LAST_REQUEST = Opcode.RDMA_READ_REQUEST
_ANSWERS = frozenset(range(Opcode.RDMA_READ_RESPONSE_FIRST, Opcode.ACKNOWLEDGE + 1))

# Offsets in a frame.
_ETHERTYPE, _PROTOCOL, _SOURCE, _TARGET, _TARGET_PORT = 12, 23, 26, 30, 36
_FIRST_PAYLOAD = 14
_QPN, _PSN, _BTH_END = TRANSPORT_OFFSET + 5, TRANSPORT_OFFSET + 9, TRANSPORT_OFFSET + 12
_CONGESTION_BYTE = TRANSPORT_OFFSET + 4
"""The one byte of BTH that the ICRC does not cover."""
_SYNDROME = _BTH_END
_MAD = _BTH_END + 8
_MAD_CLASS, _MAD_ATTRIBUTE = _MAD + 1, _MAD + 16
_CM_CLASS = 7
_PROTOCOL_UDP = 17

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
Forge = Callable[[str, bytes, int, int], bytes]
"""(action, request frame, queue pair number of its sender, MSN) -> the frame to send back."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the raw bytes of a frame show; None where it is not that kind of frame. Addresses are four bytes."""

    kind: str
    """Opcode name, "CM_REQ" and so on, "ARP", or "OTHER"."""
    source: bytes | None = None
    target: bytes | None = None
    opcode: int | None = None
    qpn: int | None = None
    psn: int | None = None

    @classmethod
    def of(cls, frame: bytes) -> Sight:
        """Looks at a frame; a truncated or foreign one is "OTHER"."""
        ethertype = int.from_bytes(frame[_ETHERTYPE : _ETHERTYPE + 2], "big")
        if ethertype == ETHERTYPE_ARP:
            return cls(_ARP)
        if ethertype != ETHERTYPE_IPV4 or len(frame) < _TARGET + 4:
            return cls("OTHER")
        source, target = frame[_SOURCE:_TARGET], frame[_TARGET : _TARGET + 4]
        port = int.from_bytes(frame[_TARGET_PORT : _TARGET_PORT + 2], "big")
        if len(frame) < _BTH_END or frame[_PROTOCOL] != _PROTOCOL_UDP or port != ROCE_UDP_PORT:
            return cls("OTHER", source, target)
        opcode = frame[TRANSPORT_OFFSET]
        qpn = int.from_bytes(frame[_QPN : _QPN + 3], "big")
        psn = int.from_bytes(frame[_PSN : _PSN + 3], "big")
        return cls(_kind(frame, opcode), source, target, opcode, qpn, psn)


def _kind(frame: bytes, opcode: int) -> str:
    if opcode == Opcode.UD_SEND_ONLY and len(frame) >= _MAD_ATTRIBUTE + 2 and frame[_MAD_CLASS] == _CM_CLASS:
        attribute = int.from_bytes(frame[_MAD_ATTRIBUTE : _MAD_ATTRIBUTE + 2], "big")
        if attribute in _CM_NAMES.values():
            return f"CM_{Attribute(attribute).name}"
    known = Opcode._value2member_map_.get(opcode)
    return known.name if known is not None else f"OPCODE_{opcode:#04x}"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which frames, and what becomes of them; the fields are described in `lab.injector`."""

    action: str
    cables: tuple[str, ...] | None = None
    source: str | None = None
    target: str | None = None
    opcode: str | None = None
    qp: int | None = None
    nth: int = 1
    count: int | None = 1
    probability: float = 1.0
    bit: int | None = None
    longer: int | None = None
    note: str = ""

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Rule:
        """A rule from its JSON form. Raises ValueError that names the key, what was found and what was expected."""
        unknown = set(data) - set(cls.__slots__)
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)} in a rule; it has {sorted(cls.__slots__)}")
        fields = dict(data)
        if fields.get("cables") is not None:
            fields["cables"] = tuple(fields["cables"])
        if "count" not in fields and "probability" in fields and "nth" not in fields:
            fields["count"] = None
        if "action" not in fields:
            raise ValueError(f"a rule needs an action, one of {', '.join(ACTIONS)}")
        rule = cls(**fields)
        rule._check()
        return rule

    def _check(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action is one of {', '.join(ACTIONS)}, got {self.action!r}")
        names = {opcode.name for opcode in Opcode} | set(GROUPS) | set(_CM_NAMES) | {_ARP}
        if self.opcode is not None and self.opcode not in names:
            raise ValueError(f"no opcode {self.opcode!r}")
        if self.nth < 1 or (self.count is not None and self.count < 1):
            raise ValueError(f"nth and count are 1 or more, got {self.nth} and {self.count}")
        if self.longer is not None and self.longer < 0:
            raise ValueError(f"longer is a number of bytes, 0 or more, got {self.longer}")
        if not 0.0 < self.probability <= 1.0:
            raise ValueError(f"probability is above 0 and at most 1, got {self.probability}")

    def selects(self, sight: Sight, length: int) -> bool:
        """Whether kind, queue pair and length in bytes fit; where the frame comes from is the core's to say."""
        if self.longer is not None and length <= self.longer:
            return False
        if self.qp is not None and sight.qpn != self.qp:
            return False
        if self.opcode is None:
            return True
        group = GROUPS.get(self.opcode)
        return sight.kind == self.opcode if group is None else sight.opcode in group


@dataclass(frozen=True, slots=True)
class Output:
    """A frame to be delivered at the end `towards` of `cable` at `at`."""

    cable: str
    towards: str
    frame: bytes
    at: int


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule acted on a frame: event `number` (they count up from 1), the rule's `match`-th match."""

    number: int
    rule: int
    at: int
    action: str
    cable: str
    source: str
    match: int
    frame: str
    note: str


@dataclass(slots=True)
class _Armed:
    id: int
    rule: Rule
    chance: random.Random
    matched: int = 0
    fired: int = 0


def no_forge(action: str, frame: bytes, qpn: int, msn: int) -> bytes:
    """Stands where nobody gave a forge. Raises RuntimeError."""
    raise RuntimeError(f"nothing here can do {action}: give InjectorCore a forge (lab.injector.forge.forge)")


class InjectorCore:
    """The middle of all cables: rules that are armed, what they have seen, and what becomes of each frame.

    `cables` gives the two end names of each, `addresses` the node that owns each IPv4 address (text); names that own no
    address are switches. Chance is drawn from `seed` and the rule's id, so that rules do not disturb each other.
    """

    def __init__(
        self,
        cables: Mapping[str, Sequence[str]],
        addresses: Mapping[str, str],
        *,
        seed: int = 0,
        forge: Forge = no_forge,
    ) -> None:
        self._ends: dict[str, tuple[str, str]] = {}
        for name, ends in cables.items():
            self.add_cable(name, ends)
        self._nodes_by_address = {bytes(map(int, text.split("."))): node for text, node in addresses.items()}
        self._nodes = frozenset(addresses.values())
        self._seed = seed
        self._forge = forge
        self._armed: dict[int, _Armed] = {}
        self._retired: dict[int, _Armed] = {}
        self._last_id = 0
        self._events: deque[Fired] = deque(maxlen=EVENTS_MAX)
        self._last_event = 0
        self._learning = _QueuePairs()
        self._learns = False

    def add_cable(self, name: str, ends: Sequence[str]) -> None:
        """Makes a cable known. Raises ValueError unless it has two ends with different names."""
        first, second = ends
        if first == second:
            raise ValueError(f"cable {name} has both its ends at {first}")
        self._ends[name] = (first, second)

    def remove_cable(self, name: str) -> None:
        """Forgets a cable; rules that name it match nothing there any more."""
        self._ends.pop(name, None)

    def arm(self, rule: Rule, *, seed: int | None = None, name: str | None = None) -> int:
        """From now on `rule` sees frames; gives its id. What it draws depends on the seed and on `name`, or its id
        where it has none. Raises ValueError for unknown names or too many rules.
        """
        self.check(rule)
        if len(self._armed) >= RULES_MAX:
            raise ValueError(f"{RULES_MAX} rules are armed, which is the most")
        self._last_id += 1
        chance = random.Random(f"{self._seed if seed is None else seed}/{self._last_id if name is None else name}")
        self._armed[self._last_id] = _Armed(self._last_id, rule, chance)
        self._learns = self._learns or rule.action in FORGING
        return self._last_id

    def check(self, rule: Rule) -> None:
        """Raises ValueError where the rule names a cable or node that is not known here."""
        for cable in rule.cables or ():
            if cable not in self._ends:
                raise ValueError(f"no cable {cable!r}; there are {', '.join(sorted(self._ends)) or 'none'}")
        for node in (rule.source, rule.target):
            if node is not None and node not in self._nodes:
                raise ValueError(f"no node {node!r}; there are {', '.join(sorted(self._nodes)) or 'none'}")

    def disarm(self, ids: Iterable[int]) -> None:
        """These rules see no more frames; their counts stay. Unknown and disarmed ids do no harm."""
        for rule_id in ids:
            armed = self._armed.pop(rule_id, None)
            if armed is not None:
                self._retired[rule_id] = armed
        self._learns = any(armed.rule.action in FORGING for armed in self._armed.values())

    def directions(self, rule: Rule) -> set[tuple[str, str]]:
        """The (cable, end where frames enter) that the rule needs to see."""
        wanted: set[tuple[str, str]] = set()
        for cable, ends in self._ends.items():
            if rule.cables is not None and cable not in rule.cables:
                continue
            for entry, other in (ends, ends[::-1]):
                if self._may_enter(rule, entry, other):
                    wanted.add((cable, entry))
                    if rule.action in FORGING:
                        wanted.add((cable, other))
        return wanted

    def directions_armed(self) -> set[tuple[str, str]]:
        """The directions that the armed rules need together."""
        return {direction for armed in self._armed.values() for direction in self.directions(armed.rule)}

    def on_frame(self, cable: str, source: str, frame: bytes, *, now: int) -> list[Output]:
        """A frame entered `cable` at its end `source`; gives what leaves it."""
        ends = self._ends[cable]
        towards = ends[1] if source == ends[0] else ends[0]
        if not self._armed:
            return [Output(cable, towards, frame, now)]
        sight = Sight.of(frame)
        if self._learns:
            self._learning.on_frame(sight, frame)
        passing, copies, back, forth = frame, 1, [], []
        for armed in list(self._armed.values()):
            if not self._concerns(armed.rule, sight, len(frame), cable, source, towards):
                continue
            armed.matched += 1
            if not self._acts(armed):
                continue
            action = armed.rule.action
            if action in FORGING:
                forged = self._forged(action, sight, frame)
                if forged is None:
                    continue
                back.append(forged)
            elif action in STRANGERS:
                strange = STRANGERS[action](frame, armed.chance)
                if strange is None:
                    continue
                forth.append(strange)
            elif action == "drop":
                copies = 0
            elif action == "duplicate":
                copies *= 2
            elif action == "corrupt":
                passing = _flip(passing, self._bit(armed, frame))
            armed.fired += 1
            self._note(armed, cable, source, sight, frame, now)
        outputs = [Output(cable, source, forged, now) for forged in back]
        outputs += [Output(cable, towards, passing, now)] * copies
        return outputs + [Output(cable, towards, strange, now) for strange in forth]

    def counts(self) -> dict[int, int]:
        """How often each rule acted, those disarmed too."""
        return {rule_id: armed.fired for rule_id, armed in sorted((self._retired | self._armed).items())}

    def matches(self) -> dict[int, int]:
        """How many frames each rule matched, whether it acted or not."""
        return {rule_id: armed.matched for rule_id, armed in sorted((self._retired | self._armed).items())}

    def events(self, after: int = 0) -> list[Fired]:
        """Events with numbers above `after`, oldest first, as far as they are kept."""
        return [event for event in self._events if event.number > after]

    def _may_enter(self, rule: Rule, entry: str, other: str) -> bool:
        """Whether frames that the rule means can enter a cable at `entry`."""
        if rule.cables is None and entry not in self._nodes:
            return False
        if rule.source is not None and entry in self._nodes and entry != rule.source:
            return False
        return rule.target is None or other not in self._nodes or other == rule.target

    def _concerns(self, rule: Rule, sight: Sight, length: int, cable: str, source: str, towards: str) -> bool:
        if rule.cables is None:
            # Once for each frame: where it enters the fabric, not again behind a switch.
            if source not in self._nodes:
                return False
        elif cable not in rule.cables:
            return False
        if not rule.selects(sight, length):
            return False
        sender = self._nodes_by_address.get(sight.source, source) if sight.source else source
        receiver = self._nodes_by_address.get(sight.target, towards) if sight.target else towards
        return rule.source in (None, sender) and rule.target in (None, receiver)

    def _acts(self, armed: _Armed) -> bool:
        rule = armed.rule
        if armed.matched < rule.nth or (rule.count is not None and armed.fired >= rule.count):
            return False
        return rule.probability >= 1.0 or armed.chance.random() < rule.probability

    def _forged(self, action: str, sight: Sight, frame: bytes) -> bytes | None:
        known = self._learning.sender(sight)
        return None if known is None else self._forge(action, frame, *known)

    def _bit(self, armed: _Armed, frame: bytes) -> int:
        if armed.rule.bit is not None:
            return armed.rule.bit
        first = TRANSPORT_OFFSET if len(frame) > _BTH_END else _FIRST_PAYLOAD
        byte = armed.chance.randrange(min(first, len(frame) - 1), len(frame))
        if byte == _CONGESTION_BYTE:
            byte += 1  # a flip there would pass the ICRC unseen
        return byte * 8 + armed.chance.randrange(8)

    def _note(self, armed: _Armed, cable: str, source: str, sight: Sight, frame: bytes, now: int) -> None:
        self._last_event += 1
        text = describe(sight, len(frame))
        rule = armed.rule
        self._events.append(
            Fired(self._last_event, armed.id, now, rule.action, cable, source, armed.matched, text, rule.note)
        )


class _QueuePairs:
    """Learns which queue pair sends the requests that are meant for another.

    A request names its receiver's queue pair alone. Its acknowledgement (or the first READ response) names the
    sender's, and repeats the request's PSN between the same two addresses: that joins them. Starting PSNs are random
    24-bit numbers, so that two connections of the same pair of ports hardly ever share one at the same time.
    """

    def __init__(self) -> None:
        self._requests: OrderedDict[tuple[bytes, bytes, int], int] = OrderedDict()
        self._senders: OrderedDict[tuple[bytes, int], tuple[int, int]] = OrderedDict()

    def on_frame(self, sight: Sight, frame: bytes) -> None:
        if sight.opcode is None or sight.source is None or sight.target is None:
            return
        assert sight.psn is not None
        assert sight.qpn is not None
        if sight.opcode <= _LAST_REQUEST:
            _remember(self._requests, (sight.source, sight.target, sight.psn), sight.qpn, REQUESTS_REMEMBERED_MAX)
        elif sight.opcode in _ANSWERS and len(frame) >= _SYNDROME + 4:
            receiver = self._requests.pop((sight.target, sight.source, sight.psn), None)
            if receiver is not None and sight.opcode != Opcode.RDMA_READ_RESPONSE_MIDDLE:
                msn = int.from_bytes(frame[_SYNDROME + 1 : _SYNDROME + 4], "big")
                _remember(self._senders, (sight.source, receiver), (sight.qpn, msn), PAIRS_REMEMBERED_MAX)

    def sender(self, sight: Sight) -> tuple[int, int] | None:
        """Queue pair of the request's sender and the last MSN it was told; None while unknown, or for no request."""
        if sight.opcode is None or sight.opcode > _LAST_REQUEST or sight.target is None or sight.qpn is None:
            return None
        return self._senders.get((sight.target, sight.qpn))


def _remember(table: OrderedDict[_Key, _Value], key: _Key, value: _Value, bound: int) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > bound:
        table.popitem(last=False)


def _flip(frame: bytes, bit: int) -> bytes:
    """The frame with one bit turned over; a bit beyond its end counts from its end."""
    changed = bytearray(frame)
    if changed:
        changed[min(bit // 8, len(changed) - 1)] ^= 0x80 >> bit % 8
    return bytes(changed)


def describe(sight: Sight, length: int) -> str:
    """A frame in a few words, for the history: "RDMA_WRITE_LAST 10.77.0.1 -> 10.77.0.2 qp 17 psn 4711, 574 bytes"."""
    words = [sight.kind]
    if sight.source is not None and sight.target is not None:
        words.append(f"{'.'.join(map(str, sight.source))} -> {'.'.join(map(str, sight.target))}")
    if sight.qpn is not None:
        words.append(f"qp {sight.qpn} psn {sight.psn}")
    return f"{' '.join(words)}, {length} bytes"
