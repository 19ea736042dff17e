"""What a client does wrong stays with it: wrong answers, exceptions, taking long, leaving; and bounds of back-pressure.

Each on two hosts with real adapters; the manager's own clients beside it have to go on as if nothing was.
"""

from __future__ import annotations

import pytest

from ccm.client import Client, Region
from ccm.history import Kind
from ccm.lanes import RECEIVES_SPARE
from ccm.needs import Needs
from emul.clock import MILLISECOND, SECOND, Instant
from emul.memory import Memory
from tests.unit.ccm_hosts import TwoHosts
from tests.unit.test_ccm_hosts import SHIPPED, Talker, load


def both_say(world: TwoHosts, node: int, word: str, client: str) -> list[dict[str, object]]:
    return [fields for event, fields in world.logs[node] if event == word and fields.get("client") == client]


def others_work(world: TwoHosts) -> bool:
    """Mirror and echo (1, 2 in the history) got ready, stayed so, and go on committing."""
    load(world, 0, "nvram-mirror", 512, 4)
    world.run(100 * MILLISECOND)
    status = world.host(0).control({"op": "status"}, world.now)
    broken = [e for node in (0, 1) for e in world.history(node, Kind.ERROR_ALERT) if e.client in (1, 2)]
    ready = {e.client for e in world.history(0, Kind.READY_ALERT)} >= {1, 2}
    return ready and not broken and status["workload"]["nvram-mirror"]["b"]["committed"] > 20


class Odd(Client):
    """Answers questions with what a test gives it."""

    name = "odd"

    def __init__(self, **answers):
        self.answers = answers
        self.times = 0

    def needs(self, partner):
        return self.answers.get("needs", Needs(exposed_bytes=8 if "exposed" in self.answers else 0))

    def source(self, partner):
        return self.answers.get("source")

    def exposed(self, partner):
        return self.answers.get("exposed")

    def next_deadline(self):
        return self.answers.get("next_deadline")

    def on_time(self, now):
        self.times += 1


WRONG = {
    "needs that are a dict": ({"needs": {"vis": 1}}, "needs() gave {'vis': 1}, expected Needs or None"),
    "a source beyond its memory": (
        {"source": Region(Memory.plain(64), 32, 64)}, "source() gave 64 bytes from 32 of a memory of 64"
    ),
    "a source before its memory": ({"source": Region(Memory.plain(64), -8, 8)}, "8 bytes from -8"),
    "a source without bytes": ({"source": Region(Memory.plain(64), 0, 0)}, "source() gave 0 bytes"),
    "a source that is bytes": ({"source": b"12345678"}, "source() gave b'12345678', expected a Region"),
    "a source of half bytes": ({"source": Region(Memory.plain(64), 0, 1.5)}, "length 1.5, expected bytes"),
    "an exposed region beyond its memory": ({"exposed": Region(Memory.plain(64), 60, 8)}, "exposed() gave 8 bytes"),
    "an exposed region of another length": ({"exposed": Region(Memory.plain(64), 0, 16)}, "8 exposed bytes"),
    "a deadline that is text": ({"next_deadline": "soon"}, "next_deadline() gave 'soon', expected an instant"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_client_that_answers_nonsense_is_told_of_and_the_others_go_on(what):
    answers, text = WRONG[what]
    world = TwoHosts(clients=((Odd(**answers),), (Odd(),)), named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.READY_ALERT)) >= 2)
    assert others_work(world)
    told = both_say(world, 0, "client.exception", "odd")
    assert text in str(told[0]["error"])
    found = world.host(0).control({"op": "status"}, world.now)["clients"]["odd"]
    assert found["exceptions"] > 0 and text in found["last_exception"]
    if "next_deadline" not in answers:
        assert not [e for e in world.history(0, Kind.READY_ALERT) if e.client == 4], "no session with such an answer"


def test_a_deadline_that_lies_in_the_past_for_ever_costs_a_bounded_part_of_the_time():
    odd = Odd(next_deadline=Instant(0))
    world = TwoHosts(clients=((odd,), (Odd(),)), named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.READY_ALERT)) >= 3)
    before = odd.times
    assert others_work(world)
    assert 50 <= odd.times - before <= 101, "100 ms: once in a millisecond"


QUIT = ("on_boot", "needs", "source", "on_ready", "on_message", "on_completed", "on_time")


@pytest.mark.parametrize("callback", QUIT)
def test_a_client_that_ends_the_program_ends_nothing(callback):
    class Quitter(Talker):
        name = "quitter"

        def next_deadline(self):
            return Instant(0) if callback == "on_time" else None

    def leave(self, *rest):
        raise SystemExit(3)

    setattr(Quitter, callback, leave)
    world = TwoHosts(clients=((Quitter(),), (Quitter(),)), named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.READY_ALERT)) >= 2)
    assert others_work(world)
    assert both_say(world, 0, "client.exception", "quitter")[0]["error"].startswith("SystemExit: 3 at ")


@pytest.mark.parametrize("callback", ["on_error", "on_closed", "on_boot"])
def test_an_exception_at_the_end_of_an_epoch_or_before_the_first_keeps_nothing_from_coming_back(callback):
    class Sulker(Talker):
        name = "sulker"

    def fail(self, *rest):
        raise RuntimeError(callback)

    setattr(Sulker, callback, fail)
    world = TwoHosts(clients=((Sulker(),), (Sulker(),)))
    world.boot()
    readies = lambda: len(world.history(0, Kind.READY_ALERT))  # noqa: E731
    assert world.run(SECOND, lambda: readies() == 1)
    if callback == "on_closed":
        for op in ("client.close", "client.open"):
            assert world.host(0).control({"op": op, "client": "sulker"}, world.now) == {"ok": True}
            world.run(20 * MILLISECOND)
    elif callback == "on_error":
        for path in (0, 1):
            world.cut(path)
        world.run(50 * MILLISECOND)
        for path in (0, 1):
            world.cut(path, connected=True)
    assert world.run(2 * SECOND, lambda: readies() == (1 if callback == "on_boot" else 2))
    assert both_say(world, 0, "client.exception", "sulker")


def test_a_callback_that_takes_long_is_named():
    """Its own time passes: the clock that the driver reads beside the one that turns are given."""

    class Dawdler(Talker):
        name = "dawdler"

        def on_message(self, session, data, now):
            world.late_ns += 50 * MILLISECOND

    world = TwoHosts(clients=((Dawdler(),), (Dawdler(),)), timed=True)
    world.boot()
    assert world.run(SECOND, lambda: bool(both_say(world, 0, "client.slow", "dawdler")))
    assert both_say(world, 0, "client.slow", "dawdler")[0]["ms"] == 50.0


def test_two_clients_of_one_name_are_a_mistake_of_whoever_made_the_host():
    world = TwoHosts(clients=((Talker(), Talker()), ()))
    with pytest.raises(ValueError, match="two clients have the name 'talker'"):
        world.boot(0)


class Hoarder(Client):
    """Sends whenever it may, and counts what it got."""

    name = "hoarder"

    def __init__(self):
        self.sent = self.refused = self.got = self.most = 0
        self.session = None

    def needs(self, partner):
        return Needs(depth=8, message_bytes=64)

    def on_ready(self, session, now):
        self.session = session

    def on_message(self, session, data, now):
        self.got += 1

    def push(self):
        while self.session.send(b"more"):
            self.sent += 1
            self.most = max(self.most, self.session.outstanding)
        self.refused += 1


def test_a_receiver_that_is_not_run_stops_the_sender_at_its_depth_and_gets_everything_later():
    ours, theirs = Hoarder(), Hoarder()
    world = TwoHosts(clients=((ours,), (theirs,)))
    world.boot()
    assert world.run(SECOND, lambda: ours.session is not None and theirs.session is not None)
    asleep, world.hosts[1] = world.hosts[1], None  # its adapter lives
    for _ in range(50):
        ours.push()
        world.run(MILLISECOND)
    assert ours.most == 8 and ours.refused == 50
    assert ours.sent <= 8 + 8 + RECEIVES_SPARE, "what the ledger holds, and what receives were posted for"
    assert theirs.got == 0
    world.hosts[1] = asleep
    assert world.run(SECOND, lambda: theirs.got == ours.sent and not ours.session.outstanding)
    ours.push()
    assert ours.most == 8 and world.run(SECOND, lambda: theirs.got == ours.sent)
    assert not world.history(0, Kind.ERROR_ALERT)


def test_what_is_no_number_or_no_bytes_is_refused_and_leaves_the_ledger_as_it_was():
    ours, theirs = Hoarder(), Hoarder()
    world = TwoHosts(clients=((ours,), (theirs,)))
    world.boot()
    assert world.run(SECOND, lambda: ours.session is not None)
    with pytest.raises(TypeError, match=r"bytes.* got str"):
        ours.session.send("text")
    with pytest.raises(TypeError, match=r"got (0\.5|float)"):
        ours.session.write(0.5, 8, 0)
    with pytest.raises(ValueError, match="message of 65 bytes, at most 64"):
        ours.session.send(bytes(65))
    assert ours.session.outstanding == 0


class Greedy(Client):
    """Fills all of the largest session that there is."""

    name = "greedy"

    def __init__(self, vis=8, depth=1024):
        self.memory = Memory.plain(64)
        self.session = None
        self.size = (vis, depth)
        self.done = 0

    def needs(self, partner):
        return Needs(vis=self.size[0], depth=self.size[1], exposed_bytes=64)

    def source(self, partner):
        return Region(self.memory, 0, 64)

    exposed = source

    def on_ready(self, session, now):
        self.session = session

    def on_completed(self, session, sequence, now):
        self.done += 1


def test_a_client_that_fills_its_ledgers_while_the_host_sleeps_overruns_nobody_s_completions():
    """8,192 completions wait for the host; the adapter's queue grew with what the session might need."""
    ours, theirs = Greedy(), Greedy()
    world = TwoHosts(clients=((ours,), (theirs,)), named=SHIPPED, paths=1)
    world.boot()
    assert world.run(SECOND, lambda: ours.session is not None)
    posted = sum(1 for vi in range(8) for _ in range(1024) if ours.session.write(0, 8, 0, vi))
    assert posted == 8192 and not ours.session.write(0, 8, 0)
    asleep, world.hosts[0] = world.hosts[0], None
    world.run(20 * MILLISECOND)
    world.hosts[0] = asleep
    assert world.run(SECOND, lambda: ours.done == posted)
    assert not world.history(0, Kind.ERROR_ALERT, Kind.PATH_DOWN) and others_work(world)


@pytest.mark.needs_plain
def test_needs_beyond_what_the_adapter_has_cost_that_client_its_session_and_nobody_else_s(monkeypatch):
    ours, theirs = Greedy(), Greedy()
    monkeypatch.setattr("emul.host_context.QUEUE_DEPTH_MAX", 8192)  # of adapters that are smaller than ours
    world = TwoHosts(clients=((ours,), (theirs,)), named=SHIPPED)
    world.boot()
    assert world.run(SECOND, lambda: len(world.history(0, Kind.READY_ALERT)) >= 2)
    assert others_work(world) and ours.session is None
    partner = world.host(0).control({"op": "status"}, world.now)["partners"]["b"]
    reasons = {session["client"]: session["reason"] for session in partner["sessions"]}
    assert reasons["greedy"] == "VERBS_FAILED"
    assert "8 VIs of depth 1024 are too much for adapter " in partner["last_refusal"]
    assert "completions may wait, the largest queue holds 8192" in partner["last_refusal"]
