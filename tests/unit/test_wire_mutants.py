"""Adapters that are broken on purpose: for each way of misbehaving the analyzer names the rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from emul import answers, completer, requester, responder, window
from emul import wqe as requests
from emul.clock import MILLISECOND
from emul.vocabulary import MTU, WROpcode
from emul.wire import frame
from emul.wire.headers import Opcode
from emul.wire.psn import psn_add
from tests.helpers.adapters import Seen
from tests.helpers.tap import AT_SENDERS, Weather
from tests.helpers.traffic import Traffic

pytestmark = pytest.mark.needs_plain
SEEDS_MAX = 12
LOSSY = {"lose": 0.15}
Patch = pytest.MonkeyPatch


def never_asks(patch: Patch) -> None:
    patch.setattr(requester, "ACK_REQUEST", 0)


def asks_too_rarely(patch: Patch) -> None:
    patch.setattr(requester, "ACK_REQUEST_EVERY", 1000)


def skips_a_psn(patch: Patch) -> None:
    add = window.SendWindow.add

    def broken(self: window.SendWindow, wqe: requests.SendWqe) -> None:
        add(self, wqe)
        self.next_psn = psn_add(self.next_psn, 1)

    patch.setattr(window.SendWindow, "add", broken)


def goes_back_too_little(patch: Patch) -> None:
    rewind = window.SendWindow.rewind
    patch.setattr(window.SendWindow, "rewind", lambda self, psn: rewind(self, psn_add(psn, 1)))


def sends_again_what_is_acknowledged(patch: Patch) -> None:
    patch.setattr(window.SendWindow, "settle", lambda self, wqe, packets: False)

    def first(self: window.SendWindow) -> int:
        return self.wqes[0].first_psn if self.wqes else self.next_psn

    patch.setattr(window.SendWindow, "oldest_psn", first)


def doesnt_wait_for_the_receiver(patch: Patch) -> None:
    patch.setattr(completer, "rnr_timer_ns", lambda code: 1)


def never_gives_up(patch: Patch) -> None:
    def retry(self: completer.Completer, psn: int, now: Any) -> None:
        self._window.rewind(psn)
        self.deadline = completer.after(now, self._timeout_ns or 0)

    patch.setattr(completer.Completer, "_retry", retry)


def asks_for_the_rest_of_a_read_from_its_beginning(patch: Patch) -> None:
    request = requester.Requester._request

    def broken(self: requester.Requester, wqe: requests.SendWqe) -> tuple[int, bytes]:
        received, wqe.received = wqe.received, 0
        try:
            return request(self, wqe)
        finally:
            wqe.received = received

    patch.setattr(requester.Requester, "_request", broken)


def acknowledges_too_early(patch: Patch) -> None:
    tell = answers.Answers.acknowledge
    patch.setattr(answers.Answers, "acknowledge", lambda self, psn, *rest: tell(self, psn_add(psn, 1), *rest))


def counts_messages_wrongly(patch: Patch) -> None:
    tell = answers.Answers.acknowledge
    patch.setattr(answers.Answers, "acknowledge", lambda self, psn, how, msn: tell(self, psn, how, msn + 1))


def tells_each_packet_behind_a_gap(patch: Patch) -> None:
    tell = responder.Responder._tell_once

    def broken(self: responder.Responder, syndrome: int) -> None:
        self._nak_sent = False
        tell(self, syndrome)

    patch.setattr(responder.Responder, "_tell_once", broken)


def accepts_what_is_behind_a_gap(patch: Patch) -> None:
    on_request = responder.Responder.on_request

    def broken(self: responder.Responder, opcode: int, psn: int, *rest: Any) -> None:
        if 0 < psn - self.epsn < 4:
            self.answers.acknowledge(self.epsn, 0x60, self.msn)
            self.epsn = psn
        on_request(self, opcode, psn, *rest)

    patch.setattr(responder.Responder, "on_request", broken)


def gives_longer_responses(patch: Patch) -> None:
    respond = answers.Answers.respond

    def broken(self: answers.Answers, region: Any, buffer: memoryview, psn: int, msn: int, **how: bool) -> None:
        respond(self, region, memoryview(bytes(buffer) + b"more"), psn, msn, **how)

    patch.setattr(answers.Answers, "respond", broken)


def leaves_out_the_middle(patch: Patch) -> None:
    response = answers.Answers._response

    def broken(self: answers.Answers, job: answers.ReadJob, flow: frame.Flow) -> bytes:
        packet = response(self, job, flow)
        if packet[42] == Opcode.RDMA_READ_RESPONSE_MIDDLE:
            return response(self, job, flow)
        return packet

    patch.setattr(answers.Answers, "_response", broken)


def does_a_repeated_atomic_again(patch: Patch) -> None:
    answer = answers.Answers.answer_atomic

    def broken(self: answers.Answers, psn: int, msn: int, original: int, *, repeated: bool = False) -> None:
        answer(self, psn, msn, original + repeated, repeated=repeated)

    patch.setattr(answers.Answers, "answer_atomic", broken)


def answers_a_flush_like_a_write(patch: Patch) -> None:
    respond = answers.Answers.respond

    def broken(self: answers.Answers, region: Any, buffer: memoryview, psn: int, msn: int, **how: bool) -> None:
        if len(buffer):
            respond(self, region, buffer, psn, msn, **how)
        else:
            self.acknowledge(psn, 0x1F, msn)

    patch.setattr(answers.Answers, "respond", broken)


def pads_wrongly(patch: Patch) -> None:
    patch.setattr(requester, "PAD_SHIFT", 5)


def sends_less_than_the_path_mtu(patch: Patch) -> None:
    add = window.SendWindow.add

    def broken(self: window.SendWindow, wqe: requests.SendWqe) -> None:
        if wqe.length > 1500 and not wqe.responded:
            wqe.data = memoryview(bytes(wqe.data)[:-4])
        add(self, wqe)

    patch.setattr(window.SendWindow, "add", broken)


def miscomputes_the_icrc(patch: Patch) -> None:
    crc32 = frame.crc32
    patch.setattr(frame, "crc32", lambda data, seed=0: crc32(data, seed) ^ (len(data) == 8))


def goes_on_after_the_end(patch: Patch) -> None:
    fail = responder.Responder._fail

    def broken(self: responder.Responder, syndrome: Any) -> None:
        fail(self, syndrome)
        self.refusal = None

    patch.setattr(responder.Responder, "_fail", broken)


def takes_each_timer_for_a_moment(patch: Patch) -> None:
    patch.setattr(completer, "ack_timeout_ns", lambda exponent: 1_000_000)


def some_of_all(traffic: Traffic, weather: dict[str, float]) -> None:
    """Work of every kind, both ways."""
    traffic.play(Weather(traffic.seed, **weather), requests=30)


def a_long_write(traffic: Traffic, weather: dict[str, float]) -> None:
    """More packets than may go without being asked for an acknowledgement."""
    traffic.post(WROpcode.RDMA_WRITE, traffic.a, traffic.b, length=30_000)
    traffic.pair.settle()


def silence(traffic: Traffic, weather: dict[str, float]) -> None:
    """A conversation; then nothing from one side arrives."""
    traffic.play(Weather(traffic.seed), requests=4)
    traffic.tap.cable = lambda seen: [] if seen.sender == 0 else [seen.frame]
    traffic.post(WROpcode.RDMA_WRITE, traffic.a, traffic.b, length=8)
    traffic.pair.settle(span_ns=1500 * MILLISECOND)


def a_wrong_key(traffic: Traffic, weather: dict[str, float]) -> None:
    """A write that is refused, with more behind it, and reads the other way."""
    for rkey in (traffic.b.mr.rkey, 0xBAD, traffic.b.mr.rkey, traffic.b.mr.rkey):
        traffic.a.qp.post_write(1, traffic.a.mr.buf, 8, traffic.a.mr.lkey, traffic.b.mr.buf, rkey)
    traffic.pair.settle()
    traffic.post(WROpcode.RDMA_READ, traffic.b, traffic.a, length=8)
    traffic.pair.settle()


def a_gap_then_silence(traffic: Traffic, weather: dict[str, float]) -> None:
    """The fifth packet of a message is lost, and all of what is sent again after the NAK."""
    sent = 0

    def lose(seen: Seen) -> list[bytes]:
        nonlocal sent
        sent += seen.sender == 0
        return [] if seen.sender == 0 and (sent == 5 or 9 < sent < 15) else [seen.frame]

    traffic.play(Weather(traffic.seed), requests=0)
    traffic.tap.cable = lose
    traffic.post(WROpcode.RDMA_WRITE, traffic.a, traffic.b, length=9000)
    traffic.pair.settle()


def no_receive(traffic: Traffic, weather: dict[str, float]) -> None:
    """A SEND for which there is no receive for a while."""
    traffic.post(WROpcode.SEND, traffic.a, traffic.b, length=8, receive=False)
    traffic.pair.settle(span_ns=MILLISECOND)
    traffic.receive(traffic.b)
    traffic.pair.settle()


PROVOKED: dict[Callable[[Patch], None], Callable[[Traffic, dict[str, float]], None]] = {
    asks_too_rarely: a_long_write,
    doesnt_wait_for_the_receiver: no_receive,
    never_gives_up: silence,
    takes_each_timer_for_a_moment: silence,
    goes_on_after_the_end: a_wrong_key,
    sends_again_what_is_acknowledged: a_gap_then_silence,
}
VIEW = replace(AT_SENDERS, ack_timeout_ns=4_096 << 14)

MUTANTS: list[tuple[str, Callable[[Patch], None], dict[str, float]]] = [
    ("message.ack_request", never_asks, {}),
    ("message.ack_request", asks_too_rarely, {}),
    ("request.psn", skips_a_psn, {}),
    ("request.psn", goes_back_too_little, LOSSY),
    ("request.go_back", sends_again_what_is_acknowledged, LOSSY),
    ("rnr.wait", doesnt_wait_for_the_receiver, {}),
    ("retry.bound", never_gives_up, {"lose": 1.0}),
    ("retry.timeout", takes_each_timer_for_a_moment, {"lose": 1.0}),
    ("request.same", asks_for_the_rest_of_a_read_from_its_beginning, LOSSY),
    ("ack.seen", acknowledges_too_early, {}),
    ("ack.msn", counts_messages_wrongly, {}),
    ("nak.once", tells_each_packet_behind_a_gap, LOSSY),
    ("nak.silence", accepts_what_is_behind_a_gap, LOSSY),
    ("nak.final", goes_on_after_the_end, {}),
    ("read.response", gives_longer_responses, {}),
    ("read.order", leaves_out_the_middle, {}),
    ("atomic.replay", does_a_repeated_atomic_again, LOSSY),
    ("read.answered", answers_a_flush_like_a_write, {}),
    ("message.length", pads_wrongly, {}),
    ("message.length", sends_less_than_the_path_mtu, {}),
    ("packet.icrc", miscomputes_the_icrc, {}),
]


@pytest.mark.parametrize(("rule", "mutant", "weather"), MUTANTS, ids=[mutant.__name__ for _, mutant, _ in MUTANTS])
def test_a_broken_adapter_is_found(
    rule: str, mutant: Callable[[Patch], None], weather: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[str] = set()
    for seed in range(SEEDS_MAX):
        with monkeypatch.context() as patch:
            mutant(patch)
            traffic = Traffic(seed, path_mtu=MTU.MTU_256 if mutant is asks_too_rarely else MTU.MTU_1024)
            with contextlib.suppress(AssertionError, IndexError, ValueError):  # what it does to itself is its matter
                PROVOKED.get(mutant, some_of_all)(traffic, weather)
        found |= {finding.rule.name for finding in traffic.tap.judge(VIEW).findings}
        if rule in found:
            return
    pytest.fail(f"{rule} was not among {sorted(found)}")


@pytest.mark.parametrize("provoke", [some_of_all, a_long_write, silence, a_wrong_key, a_gap_then_silence, no_receive])
def test_the_same_situations_with_whole_adapters_are_clean(
    provoke: Callable[[Traffic, dict[str, float]], None],
) -> None:
    for seed in range(3):
        mtu = MTU.MTU_256 if provoke is a_long_write else MTU.MTU_1024
        traffic = Traffic(seed, path_mtu=mtu)
        provoke(traffic, LOSSY)
        assert traffic.tap.judge(VIEW).findings == ()
