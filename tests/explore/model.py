"""A small world of two real managers whose every next step can be listed: what the explorer branches on.

The managers are the real ones; firmware, memory and network around them are reduced to what can differ:

- each path has one reliable connection in each direction, whose requests are executed at the partner in their order and
  whose answers are taken in their order, each as a step of its own;
- a step may be held up for any time, and timers come in any order, since only a timer that runs advances a clock, and
  that of its own path alone; without a budget for slowness a timer runs only when nothing is under way for its node;
- faults have budgets (tests/explore/bounds.py). Booting, noticing a carrier, plugging in and opening again are always
  possible: so that faults can be over.

What holds in each state is checked against what was really written and executed here, not against the manager's books.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.explore.bounds import AGAIN, BREAK, CLOSE, CRASH, CUT, FREE, LATE, MUTE, REPLAY, SLOW, VI, Bounds
from tests.explore.canonical import number_anew
from tests.explore.node import Node, Violation
from tests.explore.sides import Facts, Request, Side, Sides

STRIDE = 16
"""The place of a step is path + STRIDE x number of requests still executed (break), or number of the write (replay)."""

HEALING_STEPS_MAX = 3_000
"""From any state both sides must be ready after so many steps without a fault, in whatever order they come."""

Label = tuple[str, int, int]
"""A step: what, at which node (0: neither), on which path (or which virtual interface)."""
State = tuple[int, int, int, int]
"""Budget, bit set of cut cables (and, above MUTED, of silent ones), side of node 1, side of node 2: all by number."""
MUTED = 8
ALL = (1 << MUTED) - 1


class Model:
    """All worlds within `bounds`."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.sides = Sides(bounds)
        self._listed: dict[tuple[int, int], list[tuple[Label, int]]] = {}
        self._numberings: dict[tuple[object, object], frozenset[Any]] = {}
        self._budgets: list[tuple[int, ...]] = []
        self._budget_numbers: dict[tuple[int, ...], int] = {}
        self.first: State = (self._budget(bounds.budget()), 0, self.sides.begin(1), self.sides.begin(2))
        if bounds.ready:
            self.first = self.healed(self.first)

    # looking

    def side(self, state: State, number: int) -> Side:
        """A node and what is under way from it."""
        return self.sides.sides[state[1 + number]]

    def node(self, state: State, number: int) -> Node:
        """A copy of a node."""
        return self.sides.node(state[1 + number])

    def facts(self, state: State, number: int) -> Facts:
        """What is known of a node."""
        return self.sides.facts_of(state[1 + number])

    def is_settled(self, state: State) -> bool:
        """Both sides ready in one epoch, each with the other's present incarnation, on queue pairs that belong together
        on every path. With versions that don't meet: both refuse, and have none.
        """
        first, second = self.sides.facts_of(state[2]), self.sides.facts_of(state[3])
        if not self.bounds.meet(first.incarnation, second.incarnation):
            return first.refuses and second.refuses and not first.lanes and not second.lanes
        a, b = first.readiness, second.readiness
        if a is None or b is None or state[1] or a[0] != b[0]:
            return False
        links = (link for side in state[2:] for link in self.sides.sides[side].links)
        if not all(link is not None and link.connected and not link.broken for link in links):
            return False
        if (a[1], b[1]) != (second.incarnation, first.incarnation):
            return False
        return all(
            (path, mine, remote) == (other, back, theirs)
            for (path, mine, remote), (other, theirs, back) in zip(a[2], b[2], strict=True)
        )

    def healed(self, state: State) -> State:
        """Where steps without a fault, taken in turn, lead: to both sides ready, and nothing under way."""
        for turn in range(HEALING_STEPS_MAX):
            free = [step for step in self.steps(state) if step[1] < 0]
            quiet = all(step[0][0] == "timer" for step in free)
            if quiet and self.is_settled(state):
                return state
            state = self.take(state, *free[turn % len(free)])
        raise Violation("the two sides never become ready")

    # what can happen next

    def steps(self, state: State) -> Iterator[tuple[Label, int]]:
        """Each step with the index of the budget that it costs; FREE for none."""
        left, cables = self._budgets[state[0]], state[1]
        for side in state[2:]:
            steps = self._listed.get((side, cables))
            if steps is None:
                steps = self._listed[side, cables] = list(self._side_steps(side, cables))
            for step in steps:
                if step[1] < 0 or left[step[1]]:
                    yield step
        for path in range(self.bounds.paths):
            for what, back, bit, cost in (("cut", "restore", path, CUT), ("mute", "speak", path + MUTED, MUTE)):
                if cables >> bit & 1:
                    yield (back, 0, bit), FREE
                elif left[cost]:
                    yield (what, 0, bit), cost

    def _side_steps(self, number: int, cables: int) -> Iterator[tuple[Label, int]]:
        side = self.sides.sides[number]
        facts = self.sides.facts[side.node]
        who = facts.number
        if not facts.alive:
            yield ("boot", who, -1), FREE
        else:
            yield from self._host_steps(side, facts, cables)
        for path, link in enumerate(side.links):
            if link is None or link.broken or cables >> path & 1:
                continue
            muted = cables >> MUTED + path & 1
            if link.requests and not muted:
                yield ("execute", who, path), FREE
                yield ("again", who, path), AGAIN
            if link.answers and facts.alive and not muted:
                yield ("answer", who, path), FREE
            if (link.requests or link.answers) and facts.alive:
                for executed in range(1 if self.bounds.grain == 2 else len(link.requests) + 1):
                    yield ("break", who, path + executed * STRIDE), FREE if muted else BREAK
        for path, writes in enumerate(side.adrift):
            if writes:
                yield ("late", who, path), LATE
            link = side.links[path]
            if link is None or link.broken:
                for place in range(len(side.past[path])):
                    yield ("replay", who, path + place * STRIDE), REPLAY

    def _host_steps(self, side: Side, facts: Facts, cables: int) -> Iterator[tuple[Label, int]]:
        who = facts.number
        if side.unread:
            yield ("look", who, -1), FREE
        if side.news:
            yield ("notice", who, -1), FREE
        if facts.has_chores:
            yield ("chore", who, -1), FREE
        for vi in facts.moves:
            yield ("moved", who, vi), FREE
        changed = side.down ^ cables & ALL
        for path in range(self.bounds.paths):
            if changed >> path & 1:
                yield ("carrier", who, path), FREE
        busy = bool(side.unread or side.news or facts.has_chores or changed) or any(
            link is not None and (link.requests or link.answers) and not (cables | cables >> MUTED) >> path & 1
            for path, link in enumerate(side.links)
        )
        for timer in facts.timers:
            yield ("timer", who, timer), SLOW if busy else FREE
        if not facts.wants:
            yield ("open", who, -1), FREE
        else:
            yield ("close", who, -1), CLOSE
        for path in facts.lanes:
            yield ("vi", who, path), VI
            yield ("vi", who, path + STRIDE), VI
        yield ("crash", who, -1), CRASH

    def take(self, state: State, label: Label, cost: int) -> State:
        """The state after a step. Raises Violation, and whatever a manager raises."""
        what, who, place = label
        step = Taking(self, state, who)
        if what in _OWN:
            step.mine(*_OWN[what](place, state))
        elif who == 0:
            step.cables ^= 1 << place
        else:
            _CROSSING[what](step, place)
        left = self._budgets[state[0]]
        if cost >= 0:
            left = tuple(each - (index == cost) for index, each in enumerate(left))
        step.forget(late=not left[LATE], past=not left[REPLAY])
        step.check()
        return (self._budget(left), step.cables, *self._numbered_anew(*step.sides))

    def _budget(self, left: tuple[int, ...]) -> int:
        number = self._budget_numbers.setdefault(left, len(self._budgets))
        if number == len(self._budgets):
            self._budgets.append(left)
        return number

    def _numbered_anew(self, first: int, second: int) -> tuple[int, int]:
        """The same two sides with small sequence numbers."""
        sides = self.sides
        (own_1, heard_2), (own_2, heard_1) = sides.live(first), sides.live(second)
        of_1, of_2 = self._numbering(own_1, heard_1), self._numbering(own_2, heard_2)
        if of_1 or of_2:
            first, second = sides.do(first, "renumber", of_1, of_2)[0], sides.do(second, "renumber", of_2, of_1)[0]
        return first, second

    def _numbering(self, own: frozenset[Any], heard: frozenset[Any]) -> frozenset[Any]:
        numbering = self._numberings.get((own, heard))
        if numbering is None:
            numbering = self._numberings[own, heard] = frozenset(number_anew(own | heard).items())
        return numbering


class Taking:
    """A step of node `who` while it is taken."""

    def __init__(self, model: Model, state: State, who: int) -> None:
        self._all = model.sides
        self._grain = model.bounds.grain
        self.cables = state[1]
        self.sides = list(state[2:])
        self._me, self._other = who - 1, 2 - who

    def mine(self, what: str, *rest: Any) -> Any:
        """Something happens to the node's own side."""
        return self._do(self._me, what, *rest)

    def theirs(self, what: str, *rest: Any) -> Any:
        """Something happens at its partner."""
        return self._do(self._other, what, *rest)

    def _do(self, place: int, what: str, *rest: Any) -> Any:
        self.sides[place], questions, brought = self._all.do(self.sides[place], what, *rest)
        for question in questions:
            self._ask(place, *question)
        return brought

    def execute(self, path: int) -> None:
        """The partner's adapter executes the oldest request, or all that are under way."""
        for _ in range(1 if self._grain == 2 else len(self._requests(path))):
            self._execute_one(path)
        self._look(path)

    def again(self, path: int) -> None:
        """The same, and the oldest one once more when the partner has looked."""
        request = self._requests(path)[0]
        self.execute(path)
        self.theirs("land", path, request)
        self._look(path)

    def break_link(self, place: int) -> None:
        """The connection fails, after some more requests were executed or before."""
        executed, path = divmod(place, STRIDE)
        for _ in range(executed):
            self._execute_one(path)
        self.mine("break", path)

    def answer(self, path: int) -> None:
        """The node takes its oldest answer, or all."""
        self.mine("answer", path, self._grain < 2)

    def late(self, path: int) -> None:
        """A write lands whose connection has ended."""
        self.theirs("write", self.mine("pop adrift", path))

    def replay(self, place: int) -> None:
        """A write lands again whose connection has ended."""
        number, path = divmod(place, STRIDE)
        self.theirs("write", self._all.sides[self.sides[self._me]].past[path][number])

    def forget(self, *, late: bool, past: bool) -> None:
        """Nothing can land late any more: it makes no difference what might have."""
        for place, side in enumerate(self.sides):
            held = self._all.sides[side]
            if (late and any(held.adrift)) or (past and any(held.past)):
                self.sides[place] = self._all.do(side, "forget", late, past)[0]

    def _requests(self, path: int) -> tuple[Request, ...]:
        link = self._all.sides[self.sides[self._me]].links[path]
        assert link is not None
        return link.requests

    def _execute_one(self, path: int) -> None:
        answer = self.theirs("land", path, self.mine("pop", path))
        self.mine("push", path, answer)

    def _look(self, path: int) -> None:
        if self._grain < 2 and self._all.facts_of(self.sides[self._other]).alive:
            if self._all.sides[self.sides[self._other]].unread:
                self.theirs("look")
            while self._all.sides[self.sides[self._other]].news:
                self.theirs("notice")
        if self._grain == 0 and self._all.facts_of(self.sides[self._me]).alive:
            self.answer(path)

    # what must hold

    def _ask(self, place: int, what: str, *rest: Any) -> None:
        other = self._all.facts_of(self.sides[1 - place])
        if what == "seen":
            flag, text = rest
            if flag not in other.seen:
                raise Violation(f"{text}, and node {other.number} has never written that it has seen: {flag}")
        elif what == "told":
            if rest[0] not in other.told:
                raise Violation(f"ready is alerted, and node {other.number} has not told that it is ready: {rest[0]}")
        else:
            path, ends = rest
            remote, fenced = other.lanes.get(path, (None, True))
            if remote == ends and not fenced:
                raise Violation(f"work goes on elsewhere, and node {other.number} still takes what path {path} brings")

    def check(self) -> None:
        """What holds in each state between both sides."""
        first, second = self._all.facts_of(self.sides[0]), self._all.facts_of(self.sides[1])
        for facts, other in ((first, second), (second, first)):
            if not facts.flags_needed <= other.seen:
                lacking = sorted(facts.flags_needed - other.seen)
                raise Violation(f"a path of node {facts.number} is proven, and its partner has not seen it: {lacking}")
            if facts.partner_incarnation > other.incarnation:
                raise Violation(f"node {facts.number} knows incarnation {facts.partner_incarnation}, which never was")

    def __repr__(self) -> str:
        return f"step of node {self._me + 1}"


_OWN: dict[str, Any] = {
    "boot": lambda place, state: ("boot", state[1] & ALL),
    "crash": lambda place, state: ("crash",),
    "look": lambda place, state: ("look",),
    "notice": lambda place, state: ("notice",),
    "carrier": lambda place, state: ("carrier", place),
    "chore": lambda place, state: ("give", ("chore",)),
    "timer": lambda place, state: ("give", ("timer", place)),
    "open": lambda place, state: ("give", ("open",)),
    "close": lambda place, state: ("give", ("close",)),
    "moved": lambda place, state: ("give", ("moved", place)),
    "vi": lambda place, state: ("give", ("vi", place % STRIDE, place >= STRIDE)),
}
"""Steps of one side alone."""
_CROSSING: dict[str, Any] = {
    "execute": Taking.execute,
    "again": Taking.again,
    "answer": Taking.answer,
    "break": Taking.break_link,
    "late": Taking.late,
    "replay": Taking.replay,
}
