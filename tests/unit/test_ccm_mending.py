"""Virtual interfaces that fail on a living path, clients that can't be provided for: what else runs goes on.

Two real hosts with real adapters; what fails is broken in the card.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOMEM
from itertools import pairwise

import pytest

from ccm.client import Client, Partner, Region, Session
from ccm.history import Kind
from ccm.lanes import QUEUE_SPARE, RECEIVES_SPARE, REQUEST_MAX_NS
from ccm.liveness import PROBE_MOST_NS
from ccm.needs import Needs
from ccm.reasons import Reason
from ccm.session import MEND_TIMEOUT_NS, MENDS_MAX, REFUSED_FIRST_NS
from ccm.settings import DEFAULTS
from emul.adapter import Adapter
from emul.clock import MILLISECOND, SECOND, Instant
from emul.host_context import Request
from emul.memory import Memory
from emul.vocabulary import QPState
from tests.unit.ccm_hosts import TwoHosts
from tests.unit.test_ccm_hosts import all_ready, half, load, running, sessions

MIRROR, ECHO = "nvram-mirror", "echo"
DEPTH = 4
MESSAGE_REGION_BYTES = (2 * DEPTH + RECEIVES_SPARE) * 128
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
        return Needs(depth=DEPTH, message_bytes=64)

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


VERBS: dict[str, Callable[[Request], object]] = {
    "its memory region": lambda asked: asked["op"] == "reg_mr" and asked["length"] == MESSAGE_REGION_BYTES,
    "its queue pair": lambda asked: asked["op"] == "create_qp" and asked["max_send_wr"] == DEPTH + QUEUE_SPARE,
    "fenced": lambda asked: asked["op"] == "create_qp" and any(step["fence_slot"] for step in asked.get("then", ())),
    "connected": lambda asked: asked["op"] == "modify_qp" and asked["qp_state"] == QPState.RTR,
    "ready to send": lambda asked: (
        asked["op"] == "modify_qp" and any(step["qp_state"] == QPState.RTS for step in asked.get("then", ()))
    ),
}
"""What a card may refuse of a session that is to be opened on a path."""


class Obstacle:
    """One verb that one card refuses."""

    def __init__(
        self, world: TwoHosts, node: int, path: int, verb: str, monkeypatch: pytest.MonkeyPatch, errno: int = ENOMEM
    ) -> None:
        self.stands = True
        self.met_at: list[int] = []
        card, execute = world.adapters[node][path], Adapter.execute

        def refuse(each: Adapter, asked: Request, memories: list[Memory], *, now: Instant) -> object:
            if self.stands and each is card and VERBS[verb](asked):
                self.met_at.append(now)
                return {"errno": errno, "message": f"no room: {verb}"}, []
            return execute(each, asked, memories, now=now)

        monkeypatch.setattr(Adapter, "execute", refuse)


@pytest.mark.needs_plain
@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("verb", VERBS)
def test_a_card_that_refuses_a_session_s_verbs_for_a_while_costs_no_path(
    verb: str, node: int, monkeypatch: pytest.MonkeyPatch
):
    """The session lives on the other path, and when that is lost it has this one: what was refused is tried again."""
    tellers = Teller(), Teller()
    world = TwoHosts(((tellers[0],), (tellers[1],)))
    obstacle = Obstacle(world, node, 1, verb, monkeypatch)
    world.boot()
    assert world.run(SECOND, lambda: all(teller.session is not None for teller in tellers))
    world.run(2 * REFUSED_FIRST_NS)
    assert route(world, 0, "teller") == route(world, 1, "teller") == 0
    assert 2 <= len(obstacle.met_at) <= 3 and obstacle.met_at[1] - obstacle.met_at[0] >= REFUSED_FIRST_NS
    told = [fields for word, fields in world.logs[node] if word == "refused"]
    assert any(f"no room: {verb}" in str(fields["text"]) and "teller" in str(fields["text"]) for fields in told), told
    obstacle.stands = False
    world.run(4 * REFUSED_FIRST_NS)
    world.cut(0)
    world.run(50 * MILLISECOND)
    assert route(world, 0, "teller") == route(world, 1, "teller") == 1
    assert tellers[0].session is not None
    tellers[0].session.send(b"over the path that was short of room")
    world.run(10 * MILLISECOND)
    assert tellers[1].got == [b"over the path that was short of room"]
    assert not broken(world)
    for each in (0, 1):
        assert {entry.extra for entry in world.history(each, Kind.PATH_DOWN)} == {0}, "the one that was cut"


@pytest.mark.needs_plain
@pytest.mark.parametrize("verb", VERBS)
def test_a_card_that_goes_on_refusing_is_asked_less_and_less_often(verb: str, monkeypatch: pytest.MonkeyPatch):
    world = TwoHosts(((Teller(),), (Teller(),)))
    obstacle = Obstacle(world, 0, 1, verb, monkeypatch)
    world.boot()
    world.run(40 * SECOND)
    gaps_s = [(later - earlier) // SECOND for earlier, later in pairwise(obstacle.met_at)]
    assert gaps_s == [1, 2, 4, 8, 16]
    assert not broken(world) and not world.history(0, Kind.PATH_DOWN)


@pytest.mark.needs_plain
def test_a_session_that_is_closed_while_a_path_refuses_it_leaves_no_timer(monkeypatch: pytest.MonkeyPatch):
    tellers = Teller(), Teller()
    world = TwoHosts(((tellers[0],), (tellers[1],)))
    obstacle = Obstacle(world, 0, 1, "its queue pair", monkeypatch)
    world.boot()
    assert world.run(SECOND, lambda: bool(obstacle.met_at))
    world.host(0).control({"op": "client.close", "client": "teller"}, world.now)
    world.run(3 * REFUSED_FIRST_NS)
    assert len(obstacle.met_at) == 1 and sessions(world, 0)["teller"]["state"] == "CLOSED"


@pytest.mark.needs_plain
def test_a_session_whose_only_path_refuses_it_waits_and_the_path_stays(monkeypatch: pytest.MonkeyPatch):
    tellers = Teller(), Teller()
    world = TwoHosts(((tellers[0],), (tellers[1],)), named=(MIRROR,), paths=1)
    obstacle = Obstacle(world, 0, 0, "its queue pair", monkeypatch)
    world.boot()
    world.run(2 * SECOND)
    assert tellers[0].session is tellers[1].session is None and obstacle.met_at
    assert world.history(0, Kind.READY_ALERT) and not world.history(0, Kind.PATH_DOWN)
    assert sessions(world, 0)["teller"]["reason"] == Reason.VERBS_FAILED.name
    assert sessions(world, 1)["teller"]["reason"] == Reason.PARTNER_REFUSED.name
    obstacle.stands = False
    assert world.run(4 * SECOND, lambda: tellers[0].session is not None and tellers[1].session is not None)


@pytest.mark.needs_plain
def test_queue_pairs_that_fail_and_can_t_be_made_anew_at_once_cost_no_path(monkeypatch: pytest.MonkeyPatch):
    """They fail on a living path, and the card has no room for new ones: the work goes over the other path."""
    world, sender, receiver, path = talking()
    obstacle = Obstacle(world, 0, path, "its queue pair", monkeypatch)
    world.adapters[0][path].inject("qp_error", {"qp": "client", "count": 8}, now=world.now)
    world.run(100 * MILLISECOND)
    assert obstacle.met_at and route(world, 0, "teller") == 1 - path
    assert sender.session is not None
    sender.session.send(b"by the other way")
    world.run(10 * MILLISECOND)
    assert receiver.got == [b"by the other way"]
    obstacle.stands = False
    world.run(2 * REFUSED_FIRST_NS)
    assert not broken(world) and not world.history(0, Kind.PATH_DOWN) and not world.history(1, Kind.PATH_DOWN)
    status = world.host(0).control({"op": "status"}, world.now)["partners"]["b"]
    assert {entry["state"] for entry in status["paths"]} == {"UP"}
