"""Virtual interfaces that fail on a living path, clients that can't be provided for: what else runs goes on.

Two real hosts with real adapters; what fails is broken in the card.
"""

from __future__ import annotations

import pytest

from ccm.client import Client, Partner, Region, Session
from ccm.history import Kind
from ccm.lanes import RECEIVES_SPARE, REQUEST_MAX_NS
from ccm.liveness import PROBE_MOST_NS
from ccm.needs import Needs
from ccm.reasons import Reason
from ccm.session import MEND_TIMEOUT_NS, MENDS_MAX, REFUSED_FIRST_NS
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND, Instant
from emul.memory import Memory
from emul.regions import RegionTable
from tests.unit.ccm_hosts import TwoHosts
from tests.unit.test_ccm_hosts import all_ready, half, load, running, sessions

MIRROR, ECHO = "nvram-mirror", "echo"
MESSAGE_REGION_BYTES = (2 * 4 + RECEIVES_SPARE) * 128
"""Of the teller: its message buffers."""


def route(world: TwoHosts, node: int, client: str = MIRROR) -> int:
    return sessions(world, node)[client]["routes"][0]


def fail_vis(world: TwoHosts, node: int, path: int) -> None:
    """All of a host's virtual interfaces on a path go to ERR inside the card."""
    world.adapters[node][path].inject("qp_error", {"qp": "client", "count": 8}, now=world.now)


def broken(world: TwoHosts) -> list[int]:
    return [entry.client for node in (0, 1) for entry in world.history(node, Kind.ERROR_ALERT)]


def committed(world: TwoHosts, node: int, client: int = 1) -> int:
    return sum(entry.client == client for entry in world.history(node, Kind.COMMITTED))


def mirrored(world: TwoHosts) -> bool:
    return half(world, 0, 0) == half(world, 1, 1) and half(world, 1, 0) == half(world, 0, 1)


@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_virtual_interfaces_that_fail_are_made_anew_and_no_client_hears_of_it(paths: int, sides: tuple[int, ...]):
    world = running(paths=paths)
    for node in (0, 1):
        load(world, node, MIRROR, 4096, 4)
        load(world, node, ECHO, 512, 4)
    world.run(100 * MILLISECOND)
    for node in sides:
        fail_vis(world, node, route(world, 0))
    world.run(20 * MILLISECOND)
    before = committed(world, 0), committed(world, 1), committed(world, 0, 2)
    world.run(300 * MILLISECOND)
    assert not broken(world) and not world.history(0, Kind.PATH_DOWN) and not world.history(1, Kind.PATH_DOWN)
    assert world.history(0, Kind.VIS_FAILED) and world.history(1, Kind.VIS_FAILED)
    after = committed(world, 0), committed(world, 1), committed(world, 0, 2)
    assert all(late > early for early, late in zip(before, after, strict=True)), (before, after)
    for node in (0, 1):
        world.host(node).control({"op": "workload.stop"}, world.now)
    world.run(50 * MILLISECOND)
    assert mirrored(world)
    expected = {entry.sequence for entry in world.history(0, Kind.SUBMITTED) if entry.client == 2}
    delivered = [entry.sequence for entry in world.history(1, Kind.DELIVERED)]
    assert sorted(expected) == delivered, "each message once, in order"


def test_virtual_interfaces_that_fail_again_and_again_break_their_session():
    world = running()
    load(world, 0, MIRROR, 4096, 4)
    for _ in range(MENDS_MAX + 1):
        world.run(100 * MILLISECOND)
        assert not broken(world)
        fail_vis(world, 0, route(world, 0))
    assert world.run(SECOND, lambda: bool(broken(world)))
    assert {entry.extra for entry in world.history(0, Kind.ERROR_ALERT)} == {Reason.VI_FAILED}
    assert world.run(SECOND, lambda: all_ready(world)), "and it is re-established"


def test_a_dead_host_parts_with_nothing_so_the_session_breaks_within_the_bound():
    world = running()
    load(world, 0, MIRROR, 4096, 4)
    world.run(100 * MILLISECOND)
    world.hosts[1] = None
    failed_at = world.now
    fail_vis(world, 0, route(world, 0))
    assert world.run(2 * MEND_TIMEOUT_NS, lambda: bool(broken(world)))
    assert MEND_TIMEOUT_NS <= world.now - failed_at < MEND_TIMEOUT_NS + 50 * MILLISECOND
    assert not [entry for entry in world.history(0, Kind.REPLAYED) if entry.at > failed_at], "nothing is posted again"
    world.boot(1)
    assert world.run(2 * SECOND, lambda: all_ready(world))


def test_a_path_lost_while_its_virtual_interfaces_are_made_anew_is_fenced_first():
    world = running()
    load(world, 0, MIRROR, 4096, 4)
    world.run(100 * MILLISECOND)
    path = route(world, 0)
    fail_vis(world, 0, path)
    assert world.run(50 * MILLISECOND, lambda: bool(world.history(0, Kind.VIS_FAILED)))
    world.cut(path)
    world.run(100 * MILLISECOND)
    assert not broken(world)
    assert route(world, 0) != path
    world.host(0).control({"op": "workload.stop"}, world.now)
    world.run(50 * MILLISECOND)
    assert mirrored(world)


class Teller(Client):
    """Sends one message when asked, and keeps what comes."""

    name = "teller"

    def __init__(self) -> None:
        self.session: Session | None = None
        self.got: list[bytes] = []

    def needs(self, partner: Partner) -> Needs:
        return Needs(depth=4, message_bytes=64)

    def on_ready(self, session: Session, now: Instant) -> None:
        self.session = session

    def on_message(self, session: Session, data: bytes, now: Instant) -> None:
        self.got.append(data)


def talking() -> tuple[TwoHosts, Teller, Teller, int]:
    tellers = Teller(), Teller()
    world = TwoHosts(((tellers[0],), (tellers[1],)))
    world.boot()
    assert world.run(SECOND, lambda: all(teller.session is not None for teller in tellers))
    world.run(200 * MILLISECOND)
    return world, *tellers, sessions(world, 0)["teller"]["routes"][0]


def test_a_message_whose_completion_was_lost_is_found_though_nothing_follows():
    world, sender, receiver, path = talking()
    assert sender.session is not None
    world.adapters[1][path].inject("cqe_lost", {"side": "receive", "qp": "client"}, now=world.now)
    sender.session.send(b"hello")
    world.run(REQUEST_MAX_NS)
    assert not receiver.got, "it may still be under way as far as the receiver knows"
    world.run(SECOND)
    assert receiver.got == [b"hello"]
    sender.session.send(b"and again")
    world.run(10 * MILLISECOND)
    assert receiver.got == [b"hello", b"and again"]
    assert not broken(world)
    assert [word for word, _ in world.logs[1] if word == "message.untold"]


def test_the_next_completion_shows_that_one_was_lost():
    world, sender, receiver, path = talking()
    assert sender.session is not None
    world.adapters[1][path].inject("cqe_lost", {"side": "receive", "qp": "client", "count": 2}, now=world.now)
    for number in range(5):
        sender.session.send(b"%d" % number)
        world.run(MILLISECOND)
    assert receiver.got == [b"0", b"1", b"2", b"3", b"4"]
    assert not world.history(1, Kind.VIS_FAILED)


@pytest.mark.parametrize("loads", [(MIRROR,), (MIRROR, ECHO)])
def test_a_probe_whose_completion_was_lost_is_repeated_though_work_goes_on(loads: tuple[str, ...]):
    """Work is life, so the path does not fall silent; unasked it would tell nothing of the partner's host any more."""
    world = running(paths=1)
    for name in loads:
        load(world, 0, name, 512, 4)
    world.run(100 * MILLISECOND)
    probe = world.host(0).driver.manager.peerings[2].paths.paths[0].liveness
    world.adapters[0][0].inject("cqe_lost", {"side": "send", "qp": "path"}, now=world.now)
    world.run(50 * MILLISECOND)
    asked_at = probe.probe_at
    assert asked_at is not None and world.now - asked_at > 30 * MILLISECOND, "its answer was lost"
    world.run(PROBE_MOST_NS - 60 * MILLISECOND)
    assert probe.probe_at == asked_at, "its card may still be at it"
    world.run(50 * MILLISECOND)
    assert probe.probe_at is None or world.now - probe.probe_at < 10 * MILLISECOND
    assert probe.proven_since(Instant(world.now - 20 * MILLISECOND))
    for node in (0, 1):
        assert not world.history(node, Kind.PATH_DOWN, Kind.ERROR_ALERT)


@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_path_comes_up_whichever_completion_of_its_handshake_is_lost(paths: int, nth: int):
    """First those of the probe of its MTU, then those of the four steps and of the first records."""
    world = TwoHosts(named=(MIRROR, ECHO), paths=paths)
    world.adapters[0][paths - 1].inject("cqe_lost", {"side": "send", "qp": "path", "nth": nth}, now=world.now)
    world.boot()

    def all_up() -> bool:
        ups = [{entry.extra for entry in world.history(node, Kind.PATH_UP)} for node in (0, 1)]
        return ups == [set(range(paths))] * 2

    assert world.run(2 * DEFAULTS.connect_timeout_ns, all_up)
    assert world.run(SECOND, lambda: all_ready(world))


class Greedy(Client):
    """Exposes memory that it does not have, until it is put right."""

    name = "greedy"

    def __init__(self, region: object) -> None:
        self.region = region
        self.readies = 0

    def needs(self, partner: Partner) -> Needs:
        return Needs()

    def source(self, partner: Partner) -> Region | None:
        return self.region  # type: ignore[return-value]

    def on_ready(self, session: Session, now: Instant) -> None:
        self.readies += 1


BAD_REGIONS = {
    "beyond its memory": Region(Memory.plain(4096), 4000, 200),
    "of no bytes": Region(Memory.plain(4096), 0, 0),
    "before its memory": Region(Memory.plain(4096), -64, 32),
    "no memory": Region(None, 0, 10),  # type: ignore[arg-type]
    "no region": "region",
}


@pytest.mark.parametrize("wrong", BAD_REGIONS)
def test_a_client_with_a_bad_region_is_refused_alone_and_both_sides_say_why(wrong: str):
    greedy, good = Greedy(BAD_REGIONS[wrong]), Greedy(None)
    world = TwoHosts(((greedy,), (good,)), named=(MIRROR, ECHO))
    world.boot()

    def others_ready() -> bool:
        return all({entry.client for entry in world.history(node, Kind.READY_ALERT)} >= {1, 2} for node in (0, 1))

    assert world.run(SECOND, others_ready)
    load(world, 0, MIRROR, 4096, 4)
    world.run(200 * MILLISECOND)
    assert (greedy.readies, good.readies) == (0, 0)
    for node, reason in ((0, Reason.VERBS_FAILED), (1, Reason.PARTNER_REFUSED)):
        assert not world.history(node, Kind.PATH_DOWN)
        assert sessions(world, node)["greedy"]["reason"] == reason.name
        told = [fields for word, fields in world.logs[node] if word == "refused"]
        assert any(fields["reason"] == reason.name and "greedy" in str(fields["text"]) for fields in told), told
        assert reason in [entry.extra for entry in world.history(node, Kind.REFUSED)]
    assert not broken(world)
    assert committed(world, 0) > 100
    greedy.region = Region(Memory.plain(4096), 0, 4096)
    assert world.run(4 * REFUSED_FIRST_NS, lambda: (greedy.readies, good.readies) == (1, 1)), "it is tried again"
    assert not broken(world)


def test_a_card_without_room_on_one_path_leaves_the_session_the_other(monkeypatch: pytest.MonkeyPatch):
    tellers = Teller(), Teller()
    world = TwoHosts(((tellers[0],), (tellers[1],)))
    full, register = world.adapters[0][1].regions, RegionTable.register

    def refuse(self: RegionTable, memory: Memory, **rest: object) -> object:
        if self is full and rest.get("length", 0) == MESSAGE_REGION_BYTES:
            raise ValueError("an adapter holds so many regions at the most")
        return register(self, memory, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RegionTable, "register", refuse)
    world.boot()
    assert world.run(SECOND, lambda: all(teller.session is not None for teller in tellers))
    world.run(300 * MILLISECOND)
    assert route(world, 0, "teller") == route(world, 1, "teller") == 0
    assert not broken(world) and not world.history(0, Kind.PATH_DOWN)
    assert any("so many regions" in str(fields.get("text")) for word, fields in world.logs[0] if word == "refused")
    assert tellers[0].session is not None
    tellers[0].session.send(b"over the other path")
    world.run(10 * MILLISECOND)
    assert tellers[1].got == [b"over the other path"]
