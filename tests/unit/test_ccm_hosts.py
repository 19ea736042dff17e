"""Two hosts with real adapters under the driver: authentication, contained clients, dead hosts, nothing left behind."""

from __future__ import annotations

import zlib

import pytest

from ccm.client import Client
from ccm.clients.failover_monitor import STALL_NS
from ccm.clients.load import record_is_whole
from ccm.history import Kind
from ccm.needs import Needs
from emul.clock import MILLISECOND, SECOND
from emul.node_memory import Stage
from emul.wire.headers import Opcode
from tests.unit.ccm_hosts import NVRAM_BYTES, TwoHosts

SHIPPED = ("nvram-mirror", "echo")


def sessions(world: TwoHosts, node: int) -> dict[str, dict]:
    partner = world.host(node).control({"op": "status"}, world.now)["partners"]["ba"[node]]
    return {session["client"]: session for session in partner["sessions"]}


def all_ready(world: TwoHosts) -> bool:
    return all(
        host is not None and len(found) == 2 and all(s["state"] == "READY" for s in found.values())
        for node, host in enumerate(world.hosts)
        for found in [sessions(world, node) if host is not None else {}]
    )


def load(world: TwoHosts, node: int, client: str, record: int, depth: int) -> None:
    request = {"op": "workload.start", "client": client, "record": record, "depth": depth, "rate": 2000}
    assert world.host(node).control(request, world.now) == {"ok": True}


def running(**options) -> TwoHosts:
    world = TwoHosts(named=SHIPPED, **options)
    world.boot()
    assert world.run(SECOND, lambda: all_ready(world))
    return world


def test_mirrored_records_are_on_both_cards_and_messages_are_echoed():
    world = running()
    load(world, 0, "nvram-mirror", 4096, 4)
    load(world, 0, "echo", 512, 2)
    world.run(50 * MILLISECOND)
    for node in (0, 1):
        world.host(node).control({"op": "workload.stop"}, world.now)
    outstanding = lambda: world.host(0).workload.outstanding  # noqa: E731
    assert world.run(SECOND, lambda: outstanding() == 0)
    committed = [e for e in world.history(0, Kind.COMMITTED) if e.client == 1]
    assert len(committed) > 20
    for entry in committed:
        own = bytes(world.nvram[0].buffer[entry.offset : entry.offset + entry.length])
        start = NVRAM_BYTES // 2 + entry.offset
        mirrored = bytes(world.nvram[1].buffer[start : start + entry.length])
        assert zlib.crc32(own) == entry.digest and own == mirrored and record_is_whole(mirrored)
    delivered = [(e.sequence, e.digest) for e in world.history(1, Kind.DELIVERED)]
    sent = [(e.sequence, e.digest) for e in world.history(0, Kind.SUBMITTED) if e.client == 2]
    assert delivered == sent, "each once, in order, as it was sent"


def test_work_goes_on_over_the_other_path_and_nothing_is_lost_or_doubled():
    world = running()
    load(world, 0, "nvram-mirror", 4096, 8)
    load(world, 0, "echo", 512, 8)
    world.run(20 * MILLISECOND)
    world.cut(0)
    world.run(20 * MILLISECOND)
    world.cut(0, connected=True)
    world.run(400 * MILLISECOND)
    world.cut(1)
    world.run(20 * MILLISECOND)
    world.host(0).control({"op": "workload.stop"}, world.now)
    assert world.run(SECOND, lambda: world.host(0).workload.outstanding == 0)
    assert not world.history(0, Kind.ERROR_ALERT)
    sequences = [e.sequence for e in world.history(1, Kind.DELIVERED)]
    assert sequences == list(range(1, len(sequences) + 1))
    for client in (1, 2):
        done = [e.sequence for e in world.history(0, Kind.COMMITTED) if e.client == client]
        assert done == list(range(1, len(done) + 1)) and len(done) > 100


def half(world: TwoHosts, node: int, which: int) -> bytes:
    size = NVRAM_BYTES // 2
    return bytes(world.nvram[node].buffer[which * size : (which + 1) * size])


@pytest.mark.parametrize("after_ms", [0, 300], ids=["as soon as the carrier is back", "when the path is up again"])
def test_frames_that_were_held_up_before_a_cut_do_not_land_when_the_carrier_is_back(after_ms):
    """The log has gone round meanwhile: what they carry is older than what is there."""
    world = running()
    load(world, 0, "nvram-mirror", 4096, 8)
    world.run(400 * MILLISECOND)
    held: list[tuple[int, bytes]] = []

    def hold(path: int, sender: int, frame: bytes) -> bool:
        mirror = sender == 0 and len(frame) > 500
        if mirror:
            held.append((path, frame))
        return not mirror

    world.filter = hold
    assert world.run(SECOND, lambda: len(held) >= 8)
    [path] = {path for path, _ in held}
    world.filter = lambda path, sender, frame: True
    world.cut(path)
    world.run(200 * MILLISECOND)
    assert not world.history(0, Kind.ERROR_ALERT)
    world.cut(path, connected=True)
    world.run(after_ms * MILLISECOND)
    for _, frame in held:
        world.adapters[1][path].on_frame(frame, now=world.now)
    world.host(0).control({"op": "workload.stop"}, world.now)
    assert world.run(SECOND, lambda: world.host(0).workload.outstanding == 0)
    assert half(world, 0, 0) == half(world, 1, 1), "both cards hold the same log"
    assert any(half(world, 1, 1))


@pytest.mark.parametrize("mute", [0, 1])
def test_a_path_that_works_one_way_only_is_down_on_both_sides(mute):
    world = running()
    load(world, 0, "nvram-mirror", 512, 4)
    world.run(300 * MILLISECOND)
    world.filter = lambda path, sender, frame: (path, sender) != (0, mute)

    def down(node: int) -> bool:
        return any(entry.extra == 0 for entry in world.history(node, Kind.PATH_DOWN))

    assert world.run(SECOND, lambda: down(0) and down(1))
    assert not world.history(0, Kind.ERROR_ALERT) and not world.history(1, Kind.ERROR_ALERT)
    world.filter = lambda path, sender, frame: True
    ups = len(world.history(0, Kind.PATH_UP))
    assert world.run(3 * SECOND, lambda: len(world.history(0, Kind.PATH_UP)) > ups)


def test_a_stranger_without_the_key_gets_no_session_and_the_reason_is_told():
    world = TwoHosts(named=SHIPPED, keys=("right", "wrong"))
    world.boot()
    world.run(SECOND)
    for node in (0, 1):
        assert not world.history(node, Kind.HANDSHAKE_STEP, Kind.READY_ALERT)
        assert "WRONG_PROOF" in {fields.get("reason") for word, fields in world.logs[node] if word == "refused"}
        assert world.memories[node].status.stage is Stage.SERVING


def test_a_partner_with_old_firmware_is_refused_with_both_versions_until_it_is_brought_up_to_date():
    world = TwoHosts(named=SHIPPED)
    for adapter in world.adapters[1]:
        adapter.inject("firmware_old", {"version": 0}, now=world.now)
    world.boot()
    world.run(SECOND)
    told = [fields for word, fields in world.logs[0] if word == "refused"]
    assert {fields["reason"] for fields in told} == {"NO_COMMON_VERSION"}
    assert "speaks version 0" in str(told[0]["text"])
    assert "we speak 1" in str(told[0]["text"])
    assert not world.history(0, Kind.READY_ALERT)
    for adapter in world.adapters[1]:
        adapter.heal(now=world.now)
    assert world.run(3 * SECOND, lambda: bool(world.history(0, Kind.READY_ALERT)))


BTH_AT = 14 + 20 + 8
MAD_ATTRIBUTE_AT = BTH_AT + 12 + 8 + 16
OLD, NEW = "the former key", "the next key"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((OLD,), (OLD, NEW)),
        ((OLD, NEW), (OLD, NEW)),
        ((OLD, NEW), (NEW, OLD)),
        ((NEW, OLD), (NEW, OLD)),
        ((NEW, OLD), (NEW,)),
    ],
    ids=["accept the next", "all accept it", "prove with it", "all prove with it", "forget the former"],
)
def test_the_key_changes_node_by_node_and_sessions_open_at_every_point(first, second):
    """The first key of each is what a node proves itself with, the others are accepted too."""
    world = TwoHosts(named=SHIPPED, keys=(first[0], second[0]), accepted=(first[1:], second[1:]))
    world.boot()
    assert world.run(SECOND, lambda: all(len(world.history(node, Kind.READY_ALERT)) == 2 for node in (0, 1)))


@pytest.mark.parametrize(
    ("first", "second"), [((OLD,), (NEW, OLD)), ((OLD,), (NEW,))], ids=["a step left out", "no key in common"]
)
def test_a_key_that_the_partner_was_not_told_of_opens_nothing(first, second):
    world = TwoHosts(named=SHIPPED, keys=(first[0], second[0]), accepted=(first[1:], second[1:]))
    world.boot()
    world.run(SECOND)
    assert not [entry for node in (0, 1) for entry in world.history(node, Kind.READY_ALERT)]
    assert "WRONG_PROOF" in {fields.get("reason") for word, fields in world.logs[0] if word == "refused"}


def test_a_second_node_of_the_same_id_is_refused_and_both_sides_say_why():
    """As if another machine with b's node id, in a later incarnation, were connected to a when b calls."""
    world = TwoHosts(named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: all(len(world.history(node, Kind.READY_ALERT)) == 2 for node in (0, 1)))
    world.hosts[1] = None
    parting = b"\x00\x15"  # DREQ: the other machine does not part
    world.filter = lambda path, sender, frame: not (
        frame[BTH_AT] == Opcode.UD_SEND_ONLY and frame[MAD_ATTRIBUTE_AT : MAD_ATTRIBUTE_AT + 2] == parting
    )
    for adapter in world.adapters[0]:
        for link in adapter._firmware._links.values():
            link.source, link.incarnation = b"elsewhere", 99
    world.boot(1)
    world.run(300 * MILLISECOND)
    for node, text in ((1, "connected there"), (0, "another node called")):
        told = [fields for word, fields in world.logs[node] if word == "refused"]
        assert any(f["reason"] == "DUPLICATE_IDENTITY" and text in str(f["text"]) for f in told), told
    assert len(world.history(1, Kind.READY_ALERT)) == 2, "it got no session"


class Clumsy(Client):
    """Raises in every callback that it gets."""

    name = "clumsy"

    def needs(self, partner):
        return Needs(message_bytes=64)

    def on_ready(self, session, now):
        session.send(b"hello")
        raise RuntimeError("ready")

    def on_message(self, session, data, now):
        raise RuntimeError("message")

    def on_completed(self, session, sequence, now):
        raise RuntimeError("completed")


def test_an_exception_in_a_client_is_counted_and_harms_nobody_else():
    world = TwoHosts(((Clumsy(),), (Clumsy(),)), named=SHIPPED)
    world.boot()
    ready = lambda: len(world.history(0, Kind.READY_ALERT)) == 3  # noqa: E731
    assert world.run(SECOND, ready)
    load(world, 0, "nvram-mirror", 512, 4)
    world.run(20 * MILLISECOND)
    status = world.host(0).control({"op": "status"}, world.now)
    assert status["clients"]["clumsy"]["exceptions"] == 3
    assert status["clients"]["clumsy"]["last_exception"].startswith("RuntimeError: ")
    assert status["workload"]["nvram-mirror"]["b"]["committed"] > 20


class Talker(Client):
    """Sends whenever there is room, and waits for nobody."""

    name = "talker"

    def needs(self, partner):
        return Needs(depth=4, message_bytes=64)

    def on_ready(self, session, now):
        session.send(b"first")

    def on_completed(self, session, sequence, now):
        session.send(b"next")


CALLBACKS = (
    "needs", "source", "exposed", "on_ready", "on_message", "on_completed", "on_partner_status", "on_time",
    "next_deadline",
)  # fmt: skip


@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_client_that_raises_in_one_callback_is_told_of_and_the_others_go_on(callback):
    class Broken(Clumsy):
        name = "broken"

        def on_ready(self, session, now):
            session.send(b"hello")

        def on_message(self, session, data, now):
            pass

        def on_completed(self, session, sequence, now):
            pass

        def next_deadline(self):
            return 0 if callback == "on_time" else None

    def fail(self, *rest):
        raise RuntimeError(callback)

    setattr(Broken, callback, fail)
    world = TwoHosts(clients=((Broken(),), (Broken(),)), named=SHIPPED)
    world.boot()
    others = (1, 2)  # numbers of mirror and echo in the history

    def others_are_ready() -> bool:
        return all({e.client for e in world.history(n, Kind.READY_ALERT)} >= set(others) for n in (0, 1))

    assert world.run(SECOND, others_are_ready)
    world.run(100 * MILLISECOND)
    for node in (0, 1):
        assert world.host(node).driver.client_errors["broken"]["count"] > 0
        told = [fields for word, fields in world.logs[node] if word == "client.exception"]
        assert told and callback in str(told[0]["error"])
        assert not [e for e in world.history(node, Kind.ERROR_ALERT) if e.client in others]


def test_needs_that_no_manifest_can_hold_are_refused_and_the_others_open():
    class Extra(Client):
        def __init__(self, number):
            self.name = f"extra-{number}"

    many = tuple(tuple(Extra(number) for number in range(20)) for _ in range(2))
    world = TwoHosts(clients=many, named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: all(len(world.history(n, Kind.READY_ALERT)) == 16 for n in (0, 1)))
    assert any("at most 16" in str(fields.get("text")) for word, fields in world.logs[0] if word == "refused")


class Pausing(Client):
    """Closes its session when asked, and opens it again."""

    name = "pausing"

    def __init__(self):
        self.session = None
        self.news = []

    def on_ready(self, session, now):
        self.session = session
        self.news.append("ready")

    def on_closed(self, session, reason, now):
        self.news.append("closed")


def test_a_client_suspends_its_session_and_resumes_it():
    pair = Pausing(), Pausing()
    world = TwoHosts(clients=((pair[0],), (pair[1],)))
    world.boot()
    assert world.run(SECOND, lambda: all(client.news == ["ready"] for client in pair))
    first, epoch = pair[0].session, pair[0].session.epoch
    first.close()
    assert world.run(SECOND, lambda: all(client.news == ["ready", "closed"] for client in pair))
    world.run(300 * MILLISECOND)
    assert [client.news for client in pair] == [["ready", "closed"]] * 2, "it stays closed"
    first.open_again()
    assert world.run(SECOND, lambda: all(client.news == ["ready", "closed", "ready"] for client in pair))
    assert pair[0].session.epoch > epoch and not first.alive


def test_work_is_moved_off_a_path_before_its_cable_is_pulled_and_nothing_is_sent_twice():
    world = TwoHosts(named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.READY_ALERT)) == 2)
    load(world, 0, "nvram-mirror", 512, 8)
    load(world, 0, "echo", 256, 4)
    world.run(300 * MILLISECOND)
    for node, partner in ((0, "b"), (1, "a")):
        asked = {"op": "path.avoid", "partner": partner, "path": 0}
        assert world.host(node).control(asked, world.now) == {"ok": True}

    def routes() -> set[int]:
        status = [world.host(node).driver.manager.status() for node in (0, 1)]
        sessions = [session for partners in status for each in partners.values() for session in each["sessions"]]
        return {route for session in sessions for route in session["routes"]}

    assert world.run(SECOND, lambda: routes() == {1})
    world.cut(0)
    world.run(200 * MILLISECOND)
    committed = len(world.history(0, Kind.COMMITTED))
    world.run(50 * MILLISECOND)
    assert len(world.history(0, Kind.COMMITTED)) > committed + 20
    for node in (0, 1):
        assert not world.history(node, Kind.REPLAYED, Kind.ERROR_ALERT)
    world.cut(0, connected=True)
    for node, partner in ((0, "b"), (1, "a")):
        world.host(node).control({"op": "path.avoid", "partner": partner, "path": 0, "avoid": False}, world.now)
    assert world.run(2 * SECOND, lambda: routes() == {0, 1}), "and it comes back"


def test_a_path_that_is_avoided_is_used_all_the_same_when_it_is_the_last():
    world = TwoHosts(named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.READY_ALERT)) == 2)
    world.host(0).control({"op": "path.avoid", "partner": "b", "path": 0}, world.now)
    world.run(100 * MILLISECOND)
    world.cut(1)
    world.run(200 * MILLISECOND)
    assert not world.history(0, Kind.ERROR_ALERT)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"partner": "nobody", "path": 0}, "unknown partner 'nobody', expected one of b"),
        ({"partner": "b", "path": 7}, "no path 7 to b, it has [0, 1]"),
        ({"partner": "b", "path": 0, "avoid": "yes"}, "true or false"),
    ],
)
def test_a_wrong_request_to_avoid_a_path_is_answered_with_what_was_expected(request_, text):
    world = TwoHosts(named=SHIPPED)
    world.boot()
    assert text in world.host(0).control({"op": "path.avoid", **request_}, world.now)["error"]


def test_a_dead_host_s_memory_is_still_written_and_its_messages_break_alone():
    world = TwoHosts(((Talker(),), (Talker(),)), named=("nvram-mirror",))
    world.boot()
    assert world.run(SECOND, lambda: all_ready(world))
    load(world, 0, "nvram-mirror", 4096, 4)
    world.run(20 * MILLISECOND)
    world.hosts[1] = None  # killed: its adapters answer
    world.run(1500 * MILLISECOND)
    broken = world.history(0, Kind.ERROR_ALERT)
    assert {entry.client for entry in broken} == {4}, "messages need a host, mirrored writes don't"
    committed = [e for e in world.history(0, Kind.COMMITTED) if e.client == 1]
    assert committed[-1].at > world.now - 20 * MILLISECOND
    world.boot(1)
    assert world.run(2 * SECOND, lambda: all_ready(world))
    stages = [e.extra for e in world.history(0, Kind.PARTNER_STATUS)]
    assert Stage.LOADER in stages[-4:], "the boot was seen before the storage OS was active"


def test_a_dead_path_is_fenced_through_the_other_one_while_the_host_is_dead():
    world = running()
    load(world, 0, "nvram-mirror", 4096, 4)
    world.run(200 * MILLISECOND)
    world.hosts[1] = None
    route = sessions(world, 0)["nvram-mirror"]["routes"][0]
    world.cut(route)
    world.run(50 * MILLISECOND)
    assert [e.extra for e in world.history(0, Kind.PATH_FENCED)] == [route]
    assert not world.history(0, Kind.ERROR_ALERT)
    assert world.history(0, Kind.COMMITTED)[-1].at > world.now - 10 * MILLISECOND


def test_after_the_close_only_the_well_known_connections_are_left():
    world = TwoHosts(named=SHIPPED)
    world.boot()
    bare = world.run(SECOND, lambda: len(world.history(0, Kind.PATH_UP)) == 2) and world.host(0).driver.resources()
    assert world.run(SECOND, lambda: all_ready(world))
    load(world, 0, "echo", 512, 4)
    world.run(30 * MILLISECOND)
    held = world.host(0).driver.resources()
    world.host(0).control({"op": "close"}, world.now)
    assert world.run(SECOND, lambda: all(len(world.history(n, Kind.SESSION_CLOSED)) == 2 for n in (0, 1)))
    world.run(50 * MILLISECOND)
    for node in (0, 1):
        left = world.host(node).control({"op": "resources"}, world.now)["verbs"]
        assert all(each["qp"] == 1 for each in left), "one well-known connection for each path"
        assert all(each["mr"] <= before["mr"] for each, before in zip(left, held, strict=True))
    assert bare
    world.host(0).control({"op": "open"}, world.now)
    world.host(1).control({"op": "open"}, world.now)
    assert world.run(SECOND, lambda: all_ready(world))
    epochs = [e.epoch for e in world.history(0, Kind.READY_ALERT) if e.client == 1]
    assert epochs == sorted(set(epochs)) and len(epochs) == 2


def test_a_shutdown_tells_the_partner_and_leaves_the_stage():
    world = running()
    world.host(0).control({"op": "shutdown"}, world.now)
    assert world.run(2 * SECOND, lambda: world.host(0).stopped)
    world.run(100 * MILLISECOND)
    assert world.memories[0].status.stage is Stage.FIRMWARE
    assert not world.history(1, Kind.ERROR_ALERT), "closed, not broken"
    assert len(world.history(1, Kind.SESSION_CLOSED)) == 2
    assert [e.extra for e in world.history(1, Kind.PARTNER_STATUS)][-1] == Stage.FIRMWARE


def test_the_failover_monitor_reports_a_host_that_stands_still():
    world = TwoHosts(named=("failover-monitor",))
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.READY_ALERT)) == 1)
    world.hosts[1] = None
    world.run(STALL_NS + 100 * MILLISECOND)
    news = [fields["news"] for word, fields in world.logs[0] if word == "monitor"]
    assert news[-1] == "stalled" and "stage" in news
    world.boot(1)
    world.run(100 * MILLISECOND)
    news = [fields["news"] for word, fields in world.logs[0] if word == "monitor"]
    assert "incarnation" in news and "beating" in news


def test_bad_control_requests_are_answered_with_what_was_expected():
    world = running()
    host = world.host(0)
    assert "unknown op 'nonsense'" in host.control({"op": "nonsense"}, world.now)["error"]
    for request, word in (
        ({"client": "nobody", "record": 512}, "no load for client"),
        ({"client": "echo", "record": 0}, "record must be"),
        ({"client": "echo", "record": 5000}, "a message has"),
        ({"client": "nvram-mirror", "record": 512, "depth": 0}, "depth must be"),
        ({"client": "nvram-mirror", "record": 512, "rate": -1}, "rate must be"),
        ({"client": "nvram-mirror", "record": 1 << 19, "depth": 8}, "records fit the log"),
    ):
        assert word in host.control({"op": "workload.start", **request}, world.now)["error"]
