"""The simulator's own parts: order of events, named randomness, cables and switches, cards on a cable."""

from __future__ import annotations

import random

import pytest

from emul.clock import MICROSECOND, MILLISECOND
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from lab.plan import PortPlan
from lab.sim.adapter import SimAdapter
from lab.sim.cable import CARRIER_JITTER_NS, CARRIER_NOTICE_NS, Cable, Switch
from lab.sim.pace import CABLE_LONGEST_NS, CABLE_SHORTEST_NS, Pace
from lab.sim.scheduler import Priority, Scheduler, What
from lab.sim.streams import Streams

PACE = Pace()
DELAY_NS = PACE.cable_ns
LONGEST_NS = PACE.cable_ns + PACE.cable_jitter_ns


class Station:
    """Something at the end of a cable that remembers what came."""

    def __init__(self, name: str, scheduler: Scheduler) -> None:
        self.name = name
        self.scheduler = scheduler
        self.got: list[tuple[int, bytes]] = []
        self.carrier: list[tuple[int, bool]] = []

    def expect(self, cable: Cable, at: int) -> None:
        self.scheduler.at(at, Priority.FRAME, lambda: self.look(cable))

    def look(self, cable: Cable) -> None:
        self.got += [(self.scheduler.now, frame) for frame in cable.take(self)]

    def on_carrier(self, up: bool) -> None:
        self.carrier.append((self.scheduler.now, up))

    @property
    def frames(self) -> list[bytes]:
        return [frame for _, frame in self.got]


def cabled(seed: int = 1) -> tuple[Scheduler, Cable, Station, Station]:
    scheduler = Scheduler()
    cable = Cable("ic0", 0, scheduler, random.Random(seed), pace=PACE)
    ends = Station("a", scheduler), Station("b", scheduler)
    for end in ends:
        cable.plug(end)
    return scheduler, cable, *ends


def test_events_run_by_time_then_priority_then_as_planned() -> None:
    scheduler, ran = Scheduler(), []
    scheduler.at(20, Priority.FRAME, lambda: ran.append("late"))
    scheduler.at(10, Priority.HOST, lambda: ran.append("host"))
    scheduler.at(10, Priority.FRAME, lambda: ran.append("first frame"))
    scheduler.at(10, Priority.FRAME, lambda: ran.append("second frame"))
    scheduler.run_until(15)
    assert ran == ["first frame", "second frame", "host"]
    assert scheduler.now == 15
    scheduler.at(3, Priority.FAULT, lambda: ran.append(f"past, at {scheduler.now}"))
    scheduler.run_until(30)
    assert ran[3:] == ["past, at 15", "late"]


def test_a_stream_depends_on_seed_and_name_alone() -> None:
    one = Streams(7)
    first = one.stream("cable/ic0").random()
    one.stream("fault/9").random()
    assert one.stream("cable/ic0").random() == first
    assert Streams(8).stream("cable/ic0").random() != first
    assert one.stream("cable/ic1").random() != first


def test_the_pace_of_seeds_covers_short_and_long_cables() -> None:
    delays = sorted(Pace.drawn(Streams(seed).stream("pace")).cable_ns for seed in range(100))
    assert CABLE_SHORTEST_NS <= delays[0] < 2 * CABLE_SHORTEST_NS
    assert CABLE_LONGEST_NS / 2 < delays[-1] <= CABLE_LONGEST_NS


def test_the_trace_tells_times_and_details_apart() -> None:
    def traced(moment: int, detail: int) -> str:
        scheduler = Scheduler()
        scheduler.run_until(moment)
        scheduler.trace(What.FRAME, 1, detail)
        return scheduler.trace_hash()

    assert traced(5, 1) == traced(5, 1)
    assert len({traced(5, 1), traced(6, 1), traced(5, 2)}) == 3


def test_frames_arrive_in_order_within_the_cables_delay() -> None:
    scheduler, cable, a, b = cabled()
    frames = [bytes([number]) * 60 for number in range(50)]
    for frame in frames:
        cable.send(a, [frame])
        scheduler.run_until(scheduler.now + 100)
    scheduler.run_until(MILLISECOND)
    assert b.frames == frames
    assert a.frames == []
    assert b.got[0][0] <= LONGEST_NS + 100


def test_a_cut_cable_loses_what_is_under_way_and_both_ends_see_it() -> None:
    scheduler, cable, a, b = cabled()
    cable.send(a, [b"under way" * 8])
    scheduler.run_until(DELAY_NS // 2)
    cable.unplug([0, 1])
    cable.send(b, [b"too late" * 8])
    scheduler.run_until(MILLISECOND)
    assert b.frames == a.frames == []
    for end in (a, b):
        [(at, up)] = end.carrier
        assert not up
        assert CARRIER_NOTICE_NS <= at - DELAY_NS // 2 <= CARRIER_NOTICE_NS + CARRIER_JITTER_NS
    cable.plug_in([0, 1])
    cable.send(a, [b"again" * 12])
    scheduler.run_until(2 * MILLISECOND)
    assert b.frames == [b"again" * 12]
    assert [up for _, up in a.carrier] == [False, True]


def test_a_cable_cut_at_one_end_swallows_what_the_other_end_sends() -> None:
    scheduler, cable, a, b = cabled()
    cable.unplug([cable.end_of("a")])
    cable.send(a, [b"x" * 60])
    cable.send(b, [b"y" * 60])
    scheduler.run_until(MILLISECOND)
    assert a.frames == b.frames == []
    assert len(a.carrier) == 1
    assert b.carrier == []


def test_a_blackhole_takes_one_direction_and_leaves_the_carrier() -> None:
    scheduler, cable, a, b = cabled()
    cable.set_blackhole([cable.end_of("a")], on=True)
    cable.send(a, [b"x" * 60])
    cable.send(b, [b"y" * 60])
    scheduler.run_until(MILLISECOND)
    assert (a.frames, b.frames) == ([b"y" * 60], [])
    assert a.carrier == b.carrier == []


def test_a_slow_cable_takes_as_long_as_its_rate_says() -> None:
    scheduler = Scheduler()
    cable = Cable("ic0", 0, scheduler, random.Random(1), pace=PACE, delay_ns=MILLISECOND, rate_bps=8_000_000)
    a, b = Station("a", scheduler), Station("b", scheduler)
    cable.plug(a)
    cable.plug(b)
    cable.send(a, [bytes(1000)])  # a millisecond at a megabyte a second
    scheduler.run_until(5 * MILLISECOND)
    assert 2 * MILLISECOND <= b.got[0][0] <= 2 * MILLISECOND + LONGEST_NS


@pytest.mark.parametrize("at_once", [1, 5, 10])
def test_a_slow_cable_carries_one_frame_after_the_other(at_once: int) -> None:
    scheduler = Scheduler()
    cable = Cable("ic0", 0, scheduler, random.Random(1), pace=PACE, rate_bps=8_000_000)
    a, b = Station("a", scheduler), Station("b", scheduler)
    cable.plug(a)
    cable.plug(b)
    for _ in range(10 // at_once):
        cable.send(a, [bytes(1000)] * at_once)
    scheduler.run_until(20 * MILLISECOND)
    assert len(b.frames) == 10
    for number, (arrived, *_) in enumerate(b.got, start=1):
        assert number * MILLISECOND <= arrived <= number * MILLISECOND + LONGEST_NS
    assert 10 * MILLISECOND <= b.got[-1][0] <= 10 * MILLISECOND + LONGEST_NS
    for _ in range(2000):  # more than a port's buffer holds
        cable.send(a, [bytes(1000)])
    assert 1000 - 60 <= 2000 - cable.lost <= 1000 + 60


def test_a_switch_sends_a_frame_where_its_address_is_and_broadcasts_everywhere_else() -> None:
    scheduler = Scheduler()
    switch = Switch("left", scheduler)
    stations = []
    for number, name in enumerate("abc"):
        cable = Cable(name, number, scheduler, random.Random(number), pace=PACE)
        station = Station(name, scheduler)
        cable.plug(station)
        switch.attach(cable)
        switch.learn(bytes([2, 0, 0, 0, 0, number]), cable)
        stations.append((station, cable))
    (a, from_a), (b, _), (c, _) = stations
    to_c = bytes([2, 0, 0, 0, 0, 2]) + bytes(54)
    from_a.send(a, [to_c])
    from_a.send(a, [b"\xff" * 6 + bytes(54)])
    scheduler.run_until(MILLISECOND)
    assert c.frames == [to_c, b"\xff" * 6 + bytes(54)]
    assert b.frames == [b"\xff" * 6 + bytes(54)]
    assert a.frames == []


def card(scheduler: Scheduler, node: str, number: int, woken: list[str]) -> SimAdapter:
    port = PortPlan(node, "ic0", 0, f"10.77.0.{number}", bytes([2, 0, 0, 0, 0, number]))
    memory = NodeMemory(Memory.plain(NODE_MEMORY_BYTES))
    memory.power_on()
    return SimAdapter(
        port, node_id=number, cluster_keys=("key",), node_memory=memory, scheduler=scheduler,
        rng=lambda generation: random.Random(f"{node}{generation}"), lateness=lambda: 0,
        wake_host=lambda: woken.append(node),
    )  # fmt: skip


def test_real_cards_find_each_other_over_the_cable_and_a_dead_one_is_silent() -> None:
    scheduler, woken = Scheduler(), list[str]()
    cable = Cable("ic0", 0, scheduler, random.Random(1), pace=PACE)
    a, b = card(scheduler, "a", 1, woken), card(scheduler, "b", 2, woken)
    for adapter in (a, b):
        adapter.cable = cable
        cable.plug(adapter)
    for adapter in (a, b):
        adapter.start()
    assert a.card is not None
    host = a.card.attach(1)
    assert host.execute({"op": "query_port"}, [], now=scheduler.now)[0]["state"] == "ACTIVE"
    cable.unplug([0, 1])
    scheduler.run_until(MILLISECOND)
    assert woken == ["a"]
    assert host.execute({"op": "query_port"}, [], now=scheduler.now)[0]["state"] == "DOWN"
    b.die()
    cable.plug_in([0, 1])
    cable.send(a, [b"\xff" * 60])
    scheduler.run_until(scheduler.now + 100 * MICROSECOND)
    assert b.card is None
    assert b.counters()["link_downed"] == 1  # of the card that was there
