"""Two machines on a wire that loses, doubles, delays and reorders: when messages flow again both know the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from emul.clock import MILLISECOND, SECOND
from emul.cm_connection import State
from emul.cm_events import CmEvent, CmEventType
from emul.vocabulary import QPState
from emul.wire.mad import parse_mad
from tests.helpers.cm import FIRMWARE_SERVICE, HERE, SERVICE, THERE, Desk

TROUBLE_NS = 200 * MILLISECOND
"""Trouble of this length, so that nobody has given up: 16 transmissions, the shortest 17 ms apart, take 280."""
E = CmEventType
OVER = {E.REJECTED, E.UNREACHABLE, E.CONNECT_ERROR, E.DISCONNECTED}


@dataclass
class Host:
    """What a program knows of its connections by the events alone."""

    desk: Desk
    requests: list[int] = field(default_factory=list)
    replies: list[int] = field(default_factory=list)
    mine: list[int] = field(default_factory=list)
    established: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    given_up: list[CmEventType] = field(default_factory=list)
    """Ends that nobody asked for."""
    next_qpn: int = 0x100

    def fresh_qpn(self) -> int:
        self.next_qpn += 1
        return self.next_qpn

    def look(self) -> None:
        for event in self.desk.events():
            self.on_event(event)

    def on_event(self, event: CmEvent) -> None:
        number = event.number
        if event.kind is E.TIMEWAIT_EXIT:
            assert number in self.over
            return
        assert number not in self.over, f"{event.kind.name} after the end"
        if event.kind is E.CONNECT_REQUEST:
            self.requests.append(number)
            self.mine.append(number)
        elif event.kind is E.CONNECT_RESPONSE:
            self.replies.append(number)
        elif event.kind is E.ESTABLISHED:
            assert number not in self.established
            self.established.add(number)
        else:
            assert event.kind in OVER
            self.over.add(number)
            if event.kind in (E.UNREACHABLE, E.CONNECT_ERROR):
                self.given_up.append(event.kind)
            self.requests = [each for each in self.requests if each != number]
            self.replies = [each for each in self.replies if each != number]

    def act(self, what: int) -> None:
        """One of the things that a host may do now."""
        self.look()
        desk, verbs = self.desk, what % 8
        if verbs < 2:
            self.mine.append(desk.connect(self.fresh_qpn(), to=self.peer(), at_once=bool(what & 8)))
        elif verbs < 4 and self.requests:
            desk.accept(self.requests.pop(0), self.fresh_qpn())
        elif verbs == 4 and self.replies:
            desk.machine.establish(self.replies.pop(0), b"", now=desk.now)
        elif verbs == 5 and self.requests:
            number = self.requests.pop(0)
            desk.machine.reject(number, b"", now=desk.now)
            self.over.add(number)
        elif verbs == 6 and self.mine:
            number = self.mine[what // 16 % len(self.mine)]
            desk.machine.disconnect(number, now=desk.now)
            self.requests = [each for each in self.requests if each != number]
            self.replies = [each for each in self.replies if each != number]
        elif verbs == 7:
            desk.connect(self.fresh_qpn(), to=self.peer(), service=FIRMWARE_SERVICE, at_once=True)

    def peer(self) -> bytes:
        return THERE if self.desk.address == HERE else HERE

    def finish(self) -> None:
        """Says yes to whatever waits."""
        self.look()
        while self.requests:
            self.desk.accept(self.requests.pop(0), self.fresh_qpn())
        while self.replies:
            self.desk.machine.establish(self.replies.pop(0), b"", now=self.desk.now)


class Wire:
    """What two machines have sent and not got yet."""

    def __init__(self) -> None:
        self.hosts = [Host(Desk(HERE)), Host(Desk(THERE))]
        for host in self.hosts:
            host.desk.machine.listen(SERVICE)
        self.waiting: list[tuple[int, bytes]] = []
        self.trouble_ns = 0

    def collect(self) -> None:
        for index, host in enumerate(self.hosts):
            for target, mad in host.desk.machine.out:
                assert target == self.hosts[1 - index].desk.address
                self.waiting.append((1 - index, mad))
            host.desk.machine.out.clear()

    def deliver(self, position: int, *, keep: bool = False) -> None:
        target, mad = self.waiting[position]
        if not keep:
            del self.waiting[position]
        parsed = parse_mad(mad)
        assert parsed is not None
        desk = self.hosts[target].desk
        desk.machine.on_message(*parsed, self.hosts[1 - target].desk.address, now=desk.now)
        self.collect()

    def pass_time(self, nanoseconds: int) -> None:
        for host in self.hosts:
            host.desk.pass_time(nanoseconds)
        self.collect()

    def trouble(self, kind: int, what: int, *, for_long: bool) -> None:
        """One step: a host acts (0, 1), time passes (2), a message is lost (3), delivered and kept (4), delivered."""
        if kind < 2:
            self.hosts[what & 1].act(what >> 1)
        elif kind == 2:
            span = (what % 2000 if for_long else what % 40) * MILLISECOND
            if for_long or self.trouble_ns + span <= TROUBLE_NS:
                self.trouble_ns += span
                self.pass_time(span)
        elif self.waiting:
            position = what % len(self.waiting)
            if kind == 3:
                del self.waiting[position]
            else:
                self.deliver(position, keep=kind == 4)
        self.collect()

    def calm(self, span_ns: int = 20 * SECOND) -> None:
        """All is delivered in order, hosts say yes, time passes."""
        for _ in range(span_ns // (5 * MILLISECOND)):
            while self.waiting:
                self.deliver(0)
            for host in self.hosts:
                host.finish()
            self.collect()
            self.pass_time(5 * MILLISECOND)
            if not self.waiting and all(host.desk.machine.next_at is None for host in self.hosts):
                break
        for host in self.hosts:
            host.look()

    def standing(self, index: int) -> list[tuple[int, int, int]]:
        """All connections of a machine: its own number, the peer's, in ESTABLISHED."""
        found = []
        for connection in self.hosts[index].desk.machine._table:
            assert connection.state is State.ESTABLISHED, f"{connection.state} after the calm"
            assert self.hosts[index].desk.qps[connection.qpn] is QPState.RTS
            found.append((connection.number, connection.remote_id, connection.remote_qpn))
        return found


def in_trouble(seed: int, steps: int, *, for_long: bool) -> Wire:
    """A wire after so many steps of a seed (fewer steps of the same seed are the beginning of the same story)."""
    wire, chance = Wire(), random.Random(seed)
    for _ in range(steps):
        wire.trouble(chance.randrange(8), chance.randrange(1 << 12), for_long=for_long)
    return wire


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 150))
def test_when_messages_flow_again_both_are_established_or_neither(seed: int, steps: int) -> None:
    wire = in_trouble(seed, steps, for_long=False)
    wire.calm()
    here, there = wire.standing(0), wire.standing(1)
    assert sorted((number, remote) for number, remote, _ in here) == sorted(
        (remote, number) for number, remote, _ in there
    )
    for index, host in enumerate(wire.hosts):
        numbers = {number for number, _, _ in wire.standing(index)}
        assert host.established - host.over <= numbers  # no host believes in a connection that is gone
        assert host.given_up == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 150))
def test_whatever_happened_before_parting_leaves_nothing_behind(seed: int, steps: int) -> None:
    """Also where one side gave up: the other finds out at the latest when it parts."""
    wire = in_trouble(seed, steps, for_long=True)
    wire.calm()
    for host in wire.hosts:
        for connection in host.desk.machine._table:
            host.desk.machine.disconnect(connection.number, now=host.desk.now)
    wire.collect()
    wire.calm()
    for host in wire.hosts:
        assert host.desk.machine.connections() == 0
        assert host.desk.machine.awaited == {}
        assert host.established <= host.over
        assert QPState.RTS not in host.desk.qps.values()


def test_the_tests_wire_really_loses() -> None:
    wire = Wire()
    wire.hosts[0].act(8)
    wire.collect()
    wire.trouble(3, 0, for_long=False)
    assert wire.waiting == []
    wire.calm()
    assert len(wire.standing(0)) == 1
