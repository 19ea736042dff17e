"""One side of a small world: a node with what is under way from it and for it, and what can happen to it.

Nodes and sides that were met before are known by a number, and so is what follows from a step of theirs: a manager runs
only once for each of its states and inputs, however many worlds it stands in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.explore import canonical
from tests.explore.bounds import Bounds
from tests.explore.canonical import Numbering, Sequences
from tests.explore.copying import copied
from tests.explore.node import Catalogue, InboxNeeded, Input, Node, Output, Slot, Violation, Write

Request = tuple[Any, ...]
Question = tuple[Any, ...]
Done = tuple[int, tuple[Question, ...], Any]
"""Side afterwards, what must hold at the other side, and what the step brought."""


class Link(NamedTuple):
    """The caller's well-known connection of one path."""

    connected: bool = False
    broken: bool = False
    requests: tuple[Request, ...] = ()
    """Not executed yet."""
    answers: tuple[Input, ...] = ()
    """Executed; the caller does not know."""


class Side(NamedTuple):
    """A node, by number, and what is under way from it and for it."""

    node: int
    links: tuple[Link | None, ...]
    """By path."""
    inbox: tuple[Write, ...]
    unread: frozenset[Slot]
    news: tuple[Input, ...]
    """Asynchronous events of the adapter."""
    adrift: tuple[tuple[Write, ...], ...]
    """By path: writes of connections that ended, which may still land."""
    past: tuple[tuple[Write, ...], ...]
    """By path: writes that were executed; each may land once more when their connection has ended."""
    down: int
    """Bit set of ports whose missing carrier the host knows of."""


class Facts(NamedTuple):
    """What others ask of a node."""

    number: int
    alive: bool
    timers: tuple[int, ...]
    has_chores: bool
    wants: bool
    incarnation: int
    partner_incarnation: int
    stage: int
    outbox: dict[Slot, Write]
    seen: frozenset[tuple[int, int, int]]
    flags_needed: frozenset[tuple[int, int, int]]
    told: frozenset[tuple[int, int, int, int]]
    lanes: dict[int, tuple[object, bool]]
    """Path -> the partner's ends of our queue pairs, and whether they are fenced."""
    moves: tuple[int, ...]
    readiness: Any
    refuses: bool
    own: Sequences
    heard: Sequences


class Sides:
    """All sides that were met within `bounds`."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.catalogue = Catalogue()
        self.sides: list[Side] = []
        self.facts: list[Facts] = []
        """Of nodes."""
        self._nodes: list[Node] = []
        self._node_numbers: dict[int, int] = {}
        self._canon = canonical.Canon()
        self._numbers: dict[Side, int] = {}
        self._taken: dict[tuple[Any, ...], tuple[int, tuple[Output, ...], Exception | None]] = {}
        self._done: dict[tuple[Any, ...], Done] = {}
        self._live: list[tuple[Sequences, Sequences]] = []

    def __str__(self) -> str:
        return f"{len(self._nodes)} nodes, {len(self.sides)} sides, managers ran {len(self._taken)} times"

    def begin(self, number: int) -> int:
        """The side of node `number` before its first boot."""
        nothing = ((),) * self.bounds.paths
        node = self._keep_node(Node(number, self.bounds, self.catalogue))
        return self.keep(Side(node, (None,) * self.bounds.paths, (), frozenset(), (), nothing, nothing, 0))

    def facts_of(self, side: int) -> Facts:
        """What is known of its node."""
        return self.facts[self.sides[side].node]

    def node(self, side: int) -> Node:
        """A copy of its node."""
        return self._copy(self.sides[side].node)

    def keep(self, side: Side) -> int:
        """Its number."""
        number = self._numbers.setdefault(side, len(self.sides))
        if number == len(self.sides):
            self.sides.append(side)
            self._live.append(self._find_live(side))
        return number

    def do(self, side: int, step: str, *rest: Any) -> Done:
        """What follows from a step. Raises Violation, and whatever the manager raises."""
        done = self._done.get((side, step, *rest))
        if done is None:
            work = Work(self, self.sides[side])
            brought = STEPS[step](work, *rest)
            done = self._done[side, step, *rest] = (self.keep(work.side()), tuple(work.questions), brought)
        return done

    def live(self, side: int) -> tuple[Sequences, Sequences]:
        """Sequence numbers that are still somewhere at this side: the node's own, and its partner's."""
        return self._live[side]

    def take(self, node: int, inputs: tuple[Input, ...], inbox: tuple[Write, ...]) -> tuple[int, tuple[Output, ...]]:
        """A node's number after some inputs, and what it asks for."""
        found = self._taken.get((node, inputs)) or self._taken.get((node, inputs, inbox))
        if found is None:
            try:
                found = self._taken[node, inputs] = self._take(node, inputs, None)
            except InboxNeeded:
                found = self._taken[node, inputs, inbox] = self._take(node, inputs, inbox)
        if found[2] is not None:
            raise found[2]
        return found[:2]

    def _take(
        self, node: int, inputs: tuple[Input, ...], inbox: tuple[Write, ...] | None
    ) -> tuple[int, tuple[Output, ...], Exception | None]:
        copy = self._copy(node)
        try:
            outputs = copy.take(inputs, inbox)
        except (AssertionError, KeyError) as error:
            return node, (), error
        written = frozenset(
            (output[2][1:3], output[2][3]) for output in outputs if output[0] == "request" and output[2][0] == "write"
        )
        fresh = canonical.settle_fresh(copy, self.facts[node].own, written)
        return self._keep_node(copy), tuple(_numbered(output, fresh) for output in outputs), None

    def renumbered(self, node: int, own: Numbering, others: Numbering) -> int:
        """The node with other sequence numbers."""
        copy = self._copy(node)
        canonical.renumber(copy, own, others)
        return self._keep_node(copy)

    def _copy(self, number: int) -> Node:
        node = self._nodes[number]
        copy: Node = copied(node, {id(self.catalogue): self.catalogue})
        return copy

    def _keep_node(self, node: Node) -> int:
        number = self._node_numbers.setdefault(self._canon.key(node), len(self._nodes))
        if number == len(self._nodes):
            self.facts.append(_facts(node, self.bounds))
            node.outputs = []
            self._nodes.append(node)
        return number

    def _find_live(self, side: Side) -> tuple[Sequences, Sequences]:
        facts = self.facts[side.node]
        own, others = set(facts.own), set(facts.heard)
        for link in side.links:
            if link is not None:
                own |= {(request[1:3], request[3]) for request in link.requests if request[0] == "write"}
                own |= {(answer[2:4], answer[4]) for answer in link.answers if answer[0] == "written"}
        for writes in (*side.adrift, *side.past):
            own |= {(write[:2], write[2]) for write in writes}
        others |= {(write[:2], write[2]) for write in side.inbox}
        return frozenset(own), frozenset(others)


def _facts(node: Node, bounds: Bounds) -> Facts:
    manager, fences = node.manager, node.fences
    return Facts(
        number=node.number,
        alive=manager is not None,
        timers=node.timers(),
        has_chores=bool(node.chores),
        wants=node.wants,
        incarnation=node.incarnation,
        partner_incarnation=0 if manager is None else node.peering.partner_incarnation,
        stage=node.stage,
        outbox=dict(node.outbox),
        seen=frozenset(node.seen),
        flags_needed=node.flags_needed(),
        told=frozenset(node.told),
        lanes={path: (held.remote, held.fence_epoch < fences.get(path, 0)) for path, held in node.lanes.items()},
        moves=tuple(sorted(node.moves)) if bounds.moves else (),
        readiness=node.readiness(),
        refuses=node.refuses(),
        own=frozenset(canonical.own_sequences(node)),
        heard=frozenset(canonical.heard_sequences(node)),
    )


class Work:
    """A side while something happens to it."""

    def __init__(self, sides: Sides, side: Side) -> None:
        self._sides = sides
        self.node = side.node
        self.links = list(side.links)
        self.inbox = {write[:2]: write for write in side.inbox}
        self.unread = set(side.unread)
        self.news = list(side.news)
        self.adrift = list(side.adrift)
        self.past = list(side.past)
        self.down = side.down
        self.questions: list[Question] = []

    def side(self) -> Side:
        """As a value."""
        inbox = tuple(sorted(self.inbox.values()))
        rest = tuple(self.adrift), tuple(self.past), self.down
        return Side(self.node, tuple(self.links), inbox, frozenset(self.unread), tuple(self.news), *rest)

    @property
    def facts(self) -> Facts:
        """Of the node as it is now."""
        return self._sides.facts[self.node]

    # what the host does

    def give(self, *inputs: Input) -> None:
        """Inputs of the node, in order, with all events that follow at once."""
        while inputs:
            self.node, outputs = self._sides.take(self.node, inputs, tuple(sorted(self.inbox.values())))
            self._refused: list[Input] = []
            for output in outputs:
                self._carry_out(*output)
            inputs = tuple(self._refused)

    def _carry_out(self, what: str, *rest: Any) -> None:
        if what == "request":
            path, request = rest
            link = self.links[path]
            if link is None and request[0] != "write":
                raise Violation(f"{request} on path {path}, which has no connection")
            if link is None or (not link.connected and not link.broken):
                self._refused.append(("lost", path))
            elif not link.broken:
                self.links[path] = link._replace(requests=(*link.requests, request))
        elif what == "connect":
            self._end(rest[0])
            self.links[rest[0]] = Link(requests=(("connect",),))
        elif what == "disconnect":
            self._end(rest[0])
        elif what == "news":
            self.news.append(rest[0])
        elif what == "looked":
            self.unread.clear()
        else:
            assert what == "ask"
            self.questions.append(rest)

    def _end(self, path: int) -> None:
        link = self.links[path]
        if link is not None:
            self._set_adrift(path, link)
            self.links[path] = None

    def _set_adrift(self, path: int, link: Link) -> None:
        if self._sides.bounds.late:
            self.adrift[path] += tuple(request[1:] for request in link.requests if request[0] == "write")

    def boot(self, cut: int) -> None:
        """Queue pairs of the former incarnation are gone."""
        for path in range(len(self.links)):
            self._end(path)
        self.unread, self.news, self.down = set(self.inbox), [], cut
        self.give(("boot", cut))

    def crash(self) -> None:
        """Queue pairs stay, and what was posted on them is executed."""
        self.unread, self.news, self.down = set(), [], 0
        self.give(("crash",))

    def look(self) -> None:
        """The host reads what is new in its inbox, and what its adapter tells."""
        slots, self.unread = sorted(self.unread), set()
        self.give(*(("record", *self.inbox[slot]) for slot in slots))

    def notice(self) -> None:
        """The host takes an event of its adapter."""
        self.give(self.news.pop(0))

    def carrier(self, path: int) -> None:
        """The host notices that a carrier has come or gone."""
        self.down ^= 1 << path
        self.give(("carrier", path, not self.down >> path & 1))

    def answer(self, path: int, every: bool) -> None:
        """The host takes the oldest answer, or all."""
        first = True
        while (link := self.links[path]) is not None and link.answers and (every or first):
            first, (answer, *rest) = False, link.answers
            self.links[path] = link._replace(answers=tuple(rest), connected=link.connected or answer[0] == "connected")
            self.give(answer)

    def break_link(self, path: int) -> None:
        """The connection fails; answers are lost."""
        link = self.links[path]
        assert link is not None
        self._set_adrift(path, link)
        self.links[path] = Link(link.connected, broken=True)
        self.give(("lost", path) if link.connected else ("unreachable", path))

    # what the network does

    def pop(self, path: int) -> Request:
        """The oldest request leaves to be executed."""
        link = self.links[path]
        assert link is not None
        request, *rest = link.requests
        self.links[path] = link._replace(requests=tuple(rest))
        if request[0] == "connect":
            self.adrift[path] = self.past[path] = ()
        elif request[0] == "write" and self._sides.bounds.replay:
            self.past[path] = tuple(sorted({*self.past[path], request[1:]}))
        return request

    def push(self, path: int, answer: Input) -> None:
        """An answer is on its way."""
        link = self.links[path]
        assert link is not None
        self.links[path] = link._replace(answers=(*link.answers, answer))

    def land(self, path: int, request: Request) -> Input:
        """The partner's request is executed in this node's memory; gives the answer."""
        what, *rest = request
        facts = self.facts
        if what == "connect":
            return ("connected", path)
        if what == "status":
            return ("status", path, facts.stage, facts.incarnation)
        if what == "seen":
            return ("seen", path, facts.outbox.get(SEEN[path]))
        if what == "fence":
            fenced, epoch, number = rest
            self.give(("raise", fenced, epoch))
            return ("answered", fenced, number)
        self.write(tuple(rest))  # type: ignore[arg-type]
        return ("written", path, *rest[:3])

    def write(self, write: Write) -> None:
        """Into the inbox."""
        self.inbox[write[:2]] = write
        if self.facts.alive:
            self.unread.add(write[:2])

    def pop_adrift(self, path: int) -> Write:
        """The oldest write that is under way on no connection."""
        write, *rest = self.adrift[path]
        self.adrift[path] = tuple(rest)
        return write

    def forget(self, late: bool, past: bool) -> None:
        """What was under way on ended connections will never land."""
        nothing = [()] * len(self.links)
        self.adrift = nothing if late else self.adrift
        self.past = list(nothing) if past else self.past

    def renumber(self, own: frozenset[Any], others: frozenset[Any]) -> None:
        """Other sequence numbers, in the same order."""
        mine, theirs = dict(own), dict(others)
        self.node = self._sides.renumbered(self.node, mine, theirs)
        self.inbox = {slot: _renumbered(write, theirs) for slot, write in self.inbox.items()}
        for path, link in enumerate(self.links):
            self.adrift[path] = tuple(_renumbered(write, mine) for write in self.adrift[path])
            self.past[path] = tuple(sorted(_renumbered(write, mine) for write in self.past[path]))
            if link is not None:
                self.links[path] = link._replace(
                    requests=tuple(
                        ("write", *_renumbered(request[1:], mine)) if request[0] == "write" else request
                        for request in link.requests
                    ),
                    answers=tuple(
                        (*answer[:4], mine.get((answer[2:4], answer[4]), answer[4]))
                        if answer[0] == "written"
                        else answer
                        for answer in link.answers
                    ),
                )


def _numbered(output: Output, fresh: Numbering) -> Output:
    """What a node asks for, with the sequence numbers that it was given."""
    if fresh and output[0] == "request" and output[2][0] == "write":
        return ("request", output[1], ("write", *_renumbered(output[2][1:], fresh)))
    return output


def _renumbered(write: Any, numbering: Numbering) -> Any:
    return (*write[:2], numbering.get((write[:2], write[2]), write[2]), write[3])


SEEN = [(1, path) for path in range(8)]
STEPS: dict[str, Callable[..., Any]] = {
    "give": Work.give,
    "boot": Work.boot,
    "crash": Work.crash,
    "look": Work.look,
    "notice": Work.notice,
    "carrier": Work.carrier,
    "answer": Work.answer,
    "break": Work.break_link,
    "pop": Work.pop,
    "push": Work.push,
    "land": Work.land,
    "write": Work.write,
    "pop adrift": Work.pop_adrift,
    "forget": Work.forget,
    "renumber": Work.renumber,
}
