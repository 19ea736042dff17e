"""The analyzer finds what breaks a rule, and keeps silent over what doesn't.

Each rule has a story that is told twice: once as a good peer would, once with one thing wrong.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emul.clock import MILLISECOND
from lab.wire.analyzer import analyze
from lab.wire.exchange import JUMP_MAX, SETTLING_NS, View
from lab.wire.findings import FINDINGS_MAX, RULES
from lab.wire.requests import UNASKED_MAX
from tests.helpers.tap import Weather
from tests.helpers.traffic import Traffic
from tests.helpers.wire_story import ACK, AT_SENDERS, MTU, NAK, RNR, Story

MS = 1_000_000
MIDDLE = View()
P = 0xFFFFFE
"""Two packets before the wrap: each story crosses it."""


def unknown_opcode(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4)
    s.put(0x1F if bad else "SEND", P + 1, size=4, ack=True)


def damaged(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 8)
    at, frame = s.frames[-1]
    if bad:
        s.frames[-1] = (at, frame[:-6] + b"x" + frame[-5:])


def version(s: Story, bad: bool) -> None:
    s.put("SEND", P, size=4, ack=True, version=int(bad))


def pad(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 8, pad=2 if bad else 0)


def short_first(s: Story, bad: bool) -> None:
    s.ask("SEND FIRST", P, MTU).ask("SEND MIDDLE", P + 1, 512 if bad else MTU).ask("SEND MIDDLE", P + 2, MTU)
    s.ask("SEND LAST", P + 3, 8).answer("ACK", P + 3, 1)


def empty_last(s: Story, bad: bool) -> None:
    s.ask("SEND FIRST", P, MTU).ask("SEND LAST", P + 1, 0 if bad else 1)


def acknowledgement_with_payload(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 1, size=4 * bad)


def atomic_write_of_seven(s: Story, bad: bool) -> None:
    s.ask("ATOMIC WRITE", P, 7 if bad else 8).answer("RESPONSE", P, 1)


def port(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1, 4, port=0xC123 if bad else 0xC000)


def order(s: Story, bad: bool) -> None:
    s.ask("WRITE FIRST", P, MTU, length=MTU + 4).ask("SEND LAST" if bad else "WRITE LAST", P + 1, 4)


def middle_without_first(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND LAST" if bad else "SEND", P + 1, 4)


def write_length(s: Story, bad: bool) -> None:
    s.ask("WRITE FIRST", P, MTU, length=MTU + 8 + 4 * bad).ask("WRITE LAST", P + 1, 8)


def no_ack_request_at_the_end(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4, ack=not bad)


def no_ack_request_for_long(s: Story, bad: bool) -> None:
    s.ask("SEND FIRST", P, MTU)
    for number in range(1, 80):
        s.ask("SEND MIDDLE", P + number, MTU, ack=number == UNASKED_MAX and not bad)


def skipped_psn(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1 + bad, 4)


def resent_from_behind_the_gap(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1, 4).ask("SEND", P + 2, 4)
    s.answer("ACK", P, 0, NAK)
    for number in range(int(bad), 3):
        s.ask("SEND", P + number, 4)


def resent_as_something_else(s: Story, bad: bool) -> None:
    s.ask("WRITE", P, 4).wait(70 * MS).ask("WRITE", P, 4, key=8 if bad else 7)


def read_asked_again_at_the_wrong_address(s: Story, bad: bool) -> None:
    s.ask("READ", P, length=3 * MTU)
    s.answer("RESPONSE FIRST", P, 1, size=MTU).answer("RESPONSE MIDDLE", P + 1, size=MTU)
    s.answer("RESPONSE LAST", P + 2, 1, size=MTU)
    s.ask("READ", P + 1, length=2 * MTU, va=0x1000 if bad else 0x1000 + MTU)
    s.answer("RESPONSE FIRST", P + 1, 1, size=MTU).answer("RESPONSE LAST", P + 2, 1, size=MTU)


def resent_although_known_to_be_there(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1, 4).answer("ACK", P, 1)
    s.wait(70 * MS).ask("SEND", P + 1, 4).wait(70 * MS).ask("SEND", P + 1 - bad, 4)


def endless_repetition(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 1).ask("SEND", P + 1, 4)
    for _ in range(7 + bad):
        s.wait(70 * MS).ask("SEND", P + 1, 4)


def hasty_repetition(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 1).ask("SEND", P + 1, 4)
    s.wait((20 if bad else 70) * MS).ask("SEND", P + 1, 4)


def impatient_after_rnr(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 0, RNR | 12).wait(100_000 if bad else 650_000).ask("SEND", P, 4)


def too_many_after_rnr(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4)
    for _ in range(2 + bad):
        s.answer("ACK", P, 0, RNR | 12).wait(MS).ask("SEND", P, 4)


def rnr_without_request(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 0, RNR | 12)
    if bad:
        s.answer("ACK", P, 0, RNR | 12)


def accepted_after_rnr_without_another_copy(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 0, RNR | 12).wait(MS)
    if not bad:
        s.ask("SEND", P, 4)
    s.answer("ACK", P, 1)


def early_ack(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P + bad, 1).ask("SEND", P + 1, 4).answer("ACK", P + 1, 2)


def wrong_msn(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 1 + bad).ask("SEND", P + 1, 4).answer("ACK", P + 1, 2)


def msn_runs_back(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1, 4).answer("ACK", P, 2).answer("ACK", P, 1 if bad else 2)


def reserved_syndrome(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 1, 0x65 if bad else ACK)


def credits_after_none(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P, 1).answer("ACK", P, 1, 3 if bad else ACK)


def response_with_nak(s: Story, bad: bool) -> None:
    s.ask("READ", P, length=4).answer("RESPONSE", P, 1, NAK if bad else ACK, size=4)


def nak_without_gap(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4)
    if not bad:
        s.ask("SEND", P + 1, 4)
    s.answer("ACK", P, 0, NAK)


def error_for_nothing(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P + bad, 1, NAK | 1)


def rnr_for_nothing(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).answer("ACK", P + bad, 0 + bad, RNR | 12)


def second_nak(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1, 4).ask("SEND", P + 2, 4).answer("ACK", P, 0, NAK)
    if bad:
        s.answer("ACK", P, 0, NAK)
    s.ask("SEND", P, 4)


def acknowledged_past_the_gap(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1, 4).answer("ACK", P, 0, NAK)
    if not bad:
        s.ask("SEND", P, 4)
    s.answer("ACK", P, 1)


def voice_after_the_end(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4).ask("SEND", P + 1, 4).answer("ACK", P, 0, NAK | 2)
    if bad:
        s.answer("ACK", P + 1, 2)


def response_too_long(s: Story, bad: bool) -> None:
    s.ask("READ", P, length=MTU + 4).answer("RESPONSE FIRST", P, 1, size=MTU)
    s.answer("RESPONSE LAST", P + 1, 1, size=4 + 4 * bad)


def response_that_begins_in_the_middle(s: Story, bad: bool) -> None:
    s.ask("READ", P, length=2 * MTU)
    s.answer("RESPONSE MIDDLE" if bad else "RESPONSE FIRST", P, 1, size=MTU).answer("RESPONSE LAST", P + 1, 1, size=MTU)


def response_to_nothing(s: Story, bad: bool) -> None:
    s.ask("READ", P, length=4).answer("RESPONSE", P + bad, 1, size=4)


def response_with_a_hole(s: Story, bad: bool) -> None:
    s.ask("READ", P, length=3 * MTU).answer("RESPONSE FIRST", P, 1, size=MTU)
    if not bad:
        s.answer("RESPONSE MIDDLE", P + 1, size=MTU)
    s.answer("RESPONSE LAST", P + 2, 1, size=MTU)


def flush_without_an_answer(s: Story, bad: bool) -> None:
    s.ask("WRITE", P, 4).ask("FLUSH", P + 1, length=4).ask("WRITE", P + 2, 4).answer("ACK", P, 1)
    if not bad:
        s.answer("RESPONSE", P + 1, 2)
    s.answer("ACK", P + 2, 3)


def read_answered_by_ack(s: Story, bad: bool) -> None:
    s.ask("READ", P, length=4)
    if bad:
        s.answer("ACK", P, 1)
    else:
        s.answer("RESPONSE", P, 1, size=4)


def atomic_answer_to_a_send(s: Story, bad: bool) -> None:
    s.ask("SEND" if bad else "ADD", P).answer("ATOMIC ACK", P, 1)


def changed_atomic(s: Story, bad: bool) -> None:
    s.ask("CAS", P).answer("ATOMIC ACK", P, 1, original=5).wait(70 * MS).ask("CAS", P)
    s.answer("ATOMIC ACK", P, 1, original=6 if bad else 5)


def uncaused_notification(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4, ecn=0 if bad else 2).notify()


def notification_without_becn(s: Story, bad: bool) -> None:
    s.ask("SEND", P, 4, ecn=2).notify(becn=int(not bad))


STORIES: list[tuple[str, Callable[[Story, bool], None]]] = [
    ("packet.readable", unknown_opcode),
    ("packet.icrc", damaged),
    ("packet.version", version),
    ("packet.pad", pad),
    ("packet.size", short_first),
    ("packet.size", empty_last),
    ("packet.size", acknowledgement_with_payload),
    ("packet.size", atomic_write_of_seven),
    ("packet.port", port),
    ("message.order", order),
    ("message.order", middle_without_first),
    ("message.length", write_length),
    ("message.ack_request", no_ack_request_at_the_end),
    ("message.ack_request", no_ack_request_for_long),
    ("request.psn", skipped_psn),
    ("request.psn", resent_from_behind_the_gap),
    ("request.same", resent_as_something_else),
    ("request.same", read_asked_again_at_the_wrong_address),
    ("request.go_back", resent_although_known_to_be_there),
    ("retry.bound", endless_repetition),
    ("retry.timeout", hasty_repetition),
    ("rnr.wait", impatient_after_rnr),
    ("rnr.bound", too_many_after_rnr),
    ("rnr.cause", rnr_without_request),
    ("rnr.cause", accepted_after_rnr_without_another_copy),
    ("ack.seen", early_ack),
    ("ack.msn", wrong_msn),
    ("ack.msn_order", msn_runs_back),
    ("ack.syndrome", reserved_syndrome),
    ("ack.syndrome", credits_after_none),
    ("ack.syndrome", response_with_nak),
    ("nak.cause", nak_without_gap),
    ("nak.cause", error_for_nothing),
    ("nak.cause", rnr_for_nothing),
    ("nak.once", second_nak),
    ("nak.silence", acknowledged_past_the_gap),
    ("nak.final", voice_after_the_end),
    ("read.response", response_too_long),
    ("read.response", response_that_begins_in_the_middle),
    ("read.response", response_to_nothing),
    ("read.order", response_with_a_hole),
    ("read.answered", flush_without_an_answer),
    ("read.answered", read_answered_by_ack),
    ("atomic.response", atomic_answer_to_a_send),
    ("atomic.replay", changed_atomic),
    ("cnp.cause", uncaused_notification),
    ("cnp.form", notification_without_becn),
]
KNOWN = replace(AT_SENDERS, mtu=MTU, ack_timeout_ns=67 * MS, rnr_retry=2)


@pytest.mark.parametrize(("rule", "story"), STORIES, ids=[story.__name__ for _, story in STORIES])
def test_a_good_peer_is_left_alone_and_a_bad_one_found(rule: str, story: Callable[[Story, bool], None]) -> None:
    good, bad = Story(), Story()
    story(good, False)
    story(bad, True)
    assert good.judge(KNOWN).findings == ()
    report = bad.judge(KNOWN)
    assert rule in {finding.rule.name for finding in report.findings}, report.findings
    assert report.total >= 1


def test_each_rule_has_a_story() -> None:
    assert {rule for rule, _ in STORIES} == set(RULES)


# -- where the tap is -------------------------------------------------------------------------------------------------


def test_what_is_lost_before_a_tap_in_the_middle_is_nobodys_fault() -> None:
    story = Story().ask("SEND", P, 4).ask("SEND", P + 1, 4).ask("SEND", P + 2, 4).answer("ACK", P, 0, NAK)
    for number in range(3):
        story.ask("SEND", P + number, 4)
    story.answer("ACK", P + 2, 3)
    del story.frames[0]
    assert story.judge(MIDDLE).findings == ()
    (finding, *_) = story.judge().findings
    assert (finding.rule.name, finding.frame) == ("request.go_back", 4)


def test_a_psn_that_nobody_saw_and_the_responder_acknowledges_is_found_in_the_middle_too() -> None:
    story = Story().ask("SEND", P, 4).answer("ACK", P, 1).wait(2 * SETTLING_NS).ask("SEND", P + 2, 4)
    story.answer("ACK", P + 2, 3)
    (finding,) = story.judge(MIDDLE).findings
    assert (finding.rule.name, finding.frame) == ("ack.seen", 4)
    assert "PSN 16777214" in finding.expected
    assert "frame 4 at" in str(finding)


def test_a_frame_damaged_before_the_tap_is_as_good_as_lost() -> None:
    story = Story().ask("SEND", P, 4)
    at, frame = story.frames[0]
    story.frames.append((at + MS, frame[:-1] + b"?"))
    story.put(0x1F, P)
    at, frame = story.frames[-1]
    story.frames[-1] = (at, frame[:-1] + b"?")
    assert story.judge(MIDDLE).findings == ()
    assert story.judge(MIDDLE).packets == 1
    assert [finding.rule.name for finding in story.judge().findings] == ["packet.icrc", "packet.readable"]


def test_a_capture_that_begins_in_the_middle_takes_the_first_answers_as_they_are() -> None:
    story = Story().ask("SEND MIDDLE", P, MTU).answer("ACK", P + 5, 77).ask("SEND", P + 6, 4).answer("ACK", P + 6, 78)
    story.answer("ACK", P - 3, 70).ask("READ", P - 9, length=4)
    assert story.judge(MIDDLE).findings == ()
    reading = Story().ask("SEND", P, 4).answer("RESPONSE", P + 1, 9, size=4).answer("ATOMIC ACK", P + 2, 10)
    assert reading.judge(MIDDLE).findings == ()
    late = Story().ask("SEND", P, 4).wait(2 * SETTLING_NS).answer("ACK", P + 5, 77)
    assert [finding.rule.name for finding in late.judge(MIDDLE).findings] == ["ack.seen"]


def test_one_direction_alone_is_judged_as_far_as_it_goes() -> None:
    story = Story().ask("WRITE FIRST", P, MTU, length=MTU + 4).ask("WRITE LAST", P + 1, 4)
    report = story.wait(70 * MS).ask("WRITE LAST", P + 1, 4).judge()
    assert report.findings == ()
    assert not report.connections[0].judged
    assert "ack.seen" in report.not_exercised
    answers = Story().answer("ACK", P, 1).answer("ACK", P + 1, 2)
    assert answers.judge().findings == ()
    assert Story().ask("SEND", P, 4).ask("SEND", P + 2, 4).judge().total == 1


def test_a_capture_with_missing_frames_is_judged_packet_by_packet() -> None:
    story = Story().ask("SEND", P, 4).ask("SEND", P + 9, 5, pad=0)
    report = analyze(story.frames, AT_SENDERS, lost=3)
    assert [finding.rule.name for finding in report.findings] == ["packet.pad"]
    assert not report.connections[0].judged


def test_without_the_path_mtu_a_long_read_leaves_a_connection_unjudged() -> None:
    story = Story().ask("READ", P, length=5000).ask("SEND", P + 5, 4).answer("ACK", P + 9, 1)
    assert not story.judge().connections[0].judged
    assert story.judge(replace(AT_SENDERS, mtu=1024)).total == 1
    short = Story().ask("READ", P, length=200).answer("RESPONSE", P, 1, size=200)
    assert short.judge().connections[0].judged
    assert short.judge().findings == ()


def test_queue_pairs_that_are_connected_anew_begin_anew() -> None:
    story = Story().ask("SEND", P, 4).answer("ACK", P, 1).ask("SEND", P + 1, 4).answer("ACK", P + 1, 1, NAK | 2)
    far = P + 2 * JUMP_MAX
    story.ask("SEND", far, 4).answer("ACK", far, 1).ask("SEND", far + 1, 4).answer("ACK", far + 1, 2)
    assert story.judge().findings == ()
    assert "nak.final" not in story.judge().exercised


def test_what_a_frame_cut_short_doesnt_show_isnt_judged() -> None:
    story = Story().ask("SEND", P, 400)
    at, frame = story.frames[0]
    story.frames[0] = (at, frame[:80])
    report = story.judge()
    assert (report.packets, report.findings) == (1, ())
    assert "packet.icrc" in report.not_exercised
    story.frames[0] = (at, frame[:50])
    assert story.judge().findings[0].rule.name == "packet.readable"


def test_what_is_no_rocev2_is_left_alone() -> None:
    frames = [b"", b"x" * 20, bytes(12) + b"\x08\x00" + b"\x45" + bytes(60), bytes(12) + b"\x86\xdd" + bytes(60)]
    at, frame = Story().ask("SEND", P, 4).frames[0]
    frames += [frame[:36] + b"\x00\x35" + frame[38:], frame[:30], frame[:14] + b"\x41" + frame[15:]]
    report = analyze([(0, each) for each in frames])
    assert (report.frames, report.packets, report.findings) == (7, 0, ())


def test_a_tagged_frame_is_read_like_any_other() -> None:
    story = Story().ask("SEND", P, 4)
    at, frame = story.frames[0]
    tagged = frame[:12] + b"\x81\x00\x00\x05" + frame[12:]
    assert analyze([(at, tagged)], AT_SENDERS).exercised["packet.icrc"] == 1


def test_findings_are_kept_up_to_a_bound_and_counted_beyond() -> None:
    story = Story()
    for number in range(10):
        story.ask("SEND", P + number, 4, pad=1)
    story.frames *= FINDINGS_MAX // 10 + 1
    report = story.judge(MIDDLE)
    assert (len(report.findings), report.total) == (FINDINGS_MAX, FINDINGS_MAX + 10)
    assert report.to_json()["findings_total"] == report.total


# -- our adapters -----------------------------------------------------------------------------------------------------

WEATHERS: tuple[dict[str, float], ...] = (
    {},
    {"lose": 0.1},
    {"lose": 0.3},
    {"repeat": 0.1, "hold": 0.1},
    {"lose": 0.05, "repeat": 0.05, "hold": 0.05, "damage": 0.02},
)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32), weather=st.sampled_from(WEATHERS))
def test_the_adapters_break_no_rule_in_any_weather(seed: int, weather: dict[str, float]) -> None:
    tap = Traffic(seed).play(Weather(seed, **weather)).tap
    disorder = any(name in weather for name in ("repeat", "hold"))
    for view, frames in (
        (View(at_senders=True, from_start=True, may_reorder=disorder), tap.sent),
        (View(from_start=True, may_reorder=disorder), tap.passed),
        (View(may_reorder=disorder), tap.sent[len(tap.sent) // 3 :]),
    ):
        assert analyze(frames, view).findings == ()


@pytest.mark.parametrize("seed", [11, 19])
def test_a_refusal_right_after_a_gap_was_told_need_not_be_waited_for(seed: int) -> None:
    """NAK for the gap, then RNR NAK for the packet that came late: the first is under way, and the packet goes out."""
    tap = Traffic(seed).play(Weather(seed, repeat=0.1, hold=0.1)).tap
    assert analyze(tap.sent, replace(AT_SENDERS, may_reorder=True)).findings == ()


def test_all_rules_of_a_lossy_conversation_are_exercised() -> None:
    exercised: set[str] = set()
    for seed in range(12):
        exercised |= set(Traffic(seed).play(Weather(seed, lose=0.15)).tap.judge().exercised)
    left = set(RULES) - exercised
    assert left <= {"retry.timeout", "rnr.bound", "nak.final", "cnp.cause", "cnp.form"}, left


def test_a_pair_that_loses_everything_gives_up_within_the_bound() -> None:
    traffic = Traffic(3)
    traffic.play(Weather(3, lose=0.0), requests=4)
    traffic.play(lambda seen: [] if seen.sender == 0 else [seen.frame], requests=4)
    traffic.pair.settle(span_ns=4000 * MILLISECOND)
    report = traffic.tap.judge(replace(AT_SENDERS, ack_timeout_ns=4_096 << 14))
    assert report.findings == ()
    assert report.exercised["retry.timeout"] >= 7


@pytest.mark.parametrize(
    ("seed", "weather", "attributes"),
    [
        (54, {"lose": 0.1, "damage": 0.3}, {"timeout": 8, "min_rnr_timer": 14, "max_rd_atomic": 8}),
        (43, {"lose": 0.1, "damage": 0.3}, {"timeout": 8, "min_rnr_timer": 14, "max_rd_atomic": 8}),
        (23, {"repeat": 0.1, "hold": 0.1}, {"timeout": 8, "min_rnr_timer": 14, "max_rd_atomic": 8}),
    ],
    ids=["behind an atomic whose answer is missing", "on when an answer came", "sent back by an answer out of order"],
)
def test_a_requester_may_not_know_what_the_tap_knows(
    seed: int, weather: dict[str, float], attributes: dict[str, int]
) -> None:
    """A NAK sends it past an atomic whose answer is lost: what is behind isn't settled in its books. It goes back to
    that atomic, and on when the answer comes, while an RNR NAK is still under way.
    """
    for number in range(seed, seed + 3):
        tap = Traffic(number, **attributes).play(Weather(number, **weather), requests=60).tap
        assert analyze(tap.sent, replace(AT_SENDERS, may_reorder="hold" in weather)).findings == ()


def resealed(frame: bytes) -> bytes:
    """With the ICRC that an IPv4 frame should have."""
    masked = frame[14:15] + b"\xff" + frame[16:22] + b"\xff" + frame[23:24] + b"\xff\xff" + frame[26:40] + b"\xff\xff"
    crc = zlib.crc32(b"\xff" * 8 + masked + frame[42:46] + b"\xff" + frame[47:-4])
    return frame[:-4] + crc.to_bytes(4, "little")


@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 50))
def test_whatever_a_capture_holds_the_analyzer_survives_it(data: st.DataObject, seed: int) -> None:
    frames = list(Traffic(seed).play(Weather(seed, lose=0.1), requests=12).tap.sent)
    for _ in range(data.draw(st.integers(1, 12))):
        number = data.draw(st.integers(0, len(frames) - 1))
        at, frame = frames[number]
        place = data.draw(st.integers(12, max(12, len(frame) - 5)))
        changed = frame[:place] + bytes([data.draw(st.integers(0, 255))]) + frame[place + 1 :]
        kept = data.draw(st.integers(0, len(changed))) if data.draw(st.booleans()) else len(changed)
        frames[number] = (at, resealed(changed)[:kept])
    view = View(
        at_senders=data.draw(st.booleans()), may_reorder=data.draw(st.booleans()), from_start=data.draw(st.booleans()),
        mtu=data.draw(st.sampled_from([None, 256, 4096])), rnr_retry=data.draw(st.sampled_from([None, 0, 7])),
        ack_timeout_ns=data.draw(st.sampled_from([None, 1, 1 << 40])),
    )  # fmt: skip
    report = analyze(frames, view)
    assert report.frames == len(frames)
    assert all(str(finding) for finding in report.findings)


def test_the_helper_seals_as_the_adapters_do() -> None:
    for _, frame in Traffic(1).play(Weather(1), requests=5).tap.sent:
        if frame[12:14] == b"\x08\x00":
            assert resealed(frame) == frame
