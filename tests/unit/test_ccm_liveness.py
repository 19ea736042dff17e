"""When silence is silence: limits that adapt, and time that is ours."""

from __future__ import annotations

from ccm.liveness import PROBE_MOST_NS, Liveness
from ccm.settings import DEFAULTS
from emul.clock import MILLISECOND, SECOND, Instant

START = Instant(SECOND)


def test_who_did_not_ask_can_t_miss_an_answer():
    liveness = Liveness(now=START)
    assert liveness.silent_at() is None
    liveness.on_probe(now=START)
    assert liveness.silent_at() == START + DEFAULTS.limit_floor_ns


def test_one_probe_is_under_way_at_a_time():
    liveness = Liveness(now=START)
    liveness.on_work(now=START)
    assert liveness.probe_due(now=START)
    liveness.on_probe(now=START)
    assert not liveness.probe_due(now=Instant(START + SECOND))
    liveness.on_answer(now=Instant(START + MILLISECOND))
    assert not liveness.probe_due(now=Instant(START + 2 * MILLISECOND))
    assert liveness.probe_due(now=Instant(START + DEFAULTS.probe_interval_ns))


def test_anything_that_comes_back_is_life():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    liveness.on_life(now=Instant(START + 10 * MILLISECOND))
    assert liveness.silent_at() == START + 10 * MILLISECOND + DEFAULTS.limit_floor_ns


def test_a_long_silence_before_the_probe_counts_only_one_interval():
    liveness = Liveness(now=START)
    late = Instant(START + SECOND)
    liveness.on_probe(now=late)
    assert liveness.silent_at() == late - DEFAULTS.probe_interval_ns + DEFAULTS.limit_floor_ns


def test_time_during_which_we_were_not_run_is_credited():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    woken = Instant(START + 80 * MILLISECOND)
    liveness.credit(75 * MILLISECOND, now=woken)
    assert liveness.silent_at() == START + 75 * MILLISECOND + DEFAULTS.limit_floor_ns


def test_the_limit_follows_the_worst_round_trip_and_forgets_it():
    liveness = Liveness(now=START)

    def round_trip(at: int, rtt: int) -> None:
        liveness.on_probe(now=Instant(at))
        liveness.on_answer(now=Instant(at + rtt))

    round_trip(START, 8 * MILLISECOND)
    assert liveness.limit_ns == DEFAULTS.limit_factor * 8 * MILLISECOND
    liveness.on_probe(now=Instant(START + 10 * MILLISECOND))
    liveness.on_answer(40 * MILLISECOND, now=Instant(START + 52 * MILLISECOND))
    assert liveness.limit_ns == DEFAULTS.limit_factor * 8 * MILLISECOND, "the answer lay there while we were not run"
    round_trip(START + 60 * MILLISECOND, 900 * MILLISECOND)
    assert liveness.limit_ns == DEFAULTS.limit_most_ns
    assert liveness.alone_limit_ns == DEFAULTS.limit_factor * 900 * MILLISECOND
    round_trip(START + DEFAULTS.window_ns + SECOND, MILLISECOND)
    assert liveness.limit_ns == DEFAULTS.limit_most_ns, "the window before still counts"
    round_trip(START + 2 * DEFAULTS.window_ns + 3 * SECOND, MILLISECOND)
    assert liveness.limit_ns == DEFAULTS.limit_floor_ns


def test_idle_partners_are_probed_less_often_and_work_brings_the_busy_rate_back():
    liveness = Liveness(now=START)
    idle_at = Instant(START + DEFAULTS.busy_for_ns)
    liveness.on_probe(now=idle_at)
    liveness.on_answer(now=idle_at)
    assert not liveness.probe_due(now=Instant(idle_at + DEFAULTS.idle_probe_interval_ns - 1))
    liveness.on_work(now=idle_at)
    assert liveness.probe_due(now=Instant(idle_at + DEFAULTS.probe_interval_ns))
    assert not liveness.probe_due(now=Instant(idle_at + DEFAULTS.probe_interval_ns - 1))


MOST_AT = Instant(START + DEFAULTS.limit_most_ns)


def at(ms: int) -> Instant:
    return Instant(START + ms * MILLISECOND)


def test_a_card_that_stands_still_is_no_silent_path():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    liveness.on_looks(70, 500, START, now=at(1))
    assert not liveness.excused(now=at(1)), "one observation shows nothing"
    liveness.on_looks(71, 500, at(5), now=at(6))
    assert liveness.excused(now=at(6)) and liveness.excused(now=Instant(MOST_AT - 1))
    assert not liveness.excused(now=MOST_AT), "a card that hangs stands still for ever"


def test_our_own_card_is_excused_as_well():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    liveness.on_looks(70, 500, START, now=at(1))
    liveness.on_looks(70, 502, at(5), now=at(6))
    assert liveness.excused(now=at(6))


def test_a_card_that_runs_again_has_its_limit_to_answer_and_not_longer():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    for ms, remote in ((0, 500), (5, 500), (10, 500), (15, 501), (20, 503)):
        liveness.on_looks(70 + ms, remote, at(ms), now=at(ms + 1))
    again = Instant(at(16) + DEFAULTS.limit_floor_ns)
    assert liveness.excused(now=Instant(again - 1)) and not liveness.excused(now=again)


def test_two_cards_that_run_excuse_nothing():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    for ms in range(0, 40, 5):
        liveness.on_looks(70 + ms, 500 + ms, at(ms), now=at(ms + 1))
        assert not liveness.excused(now=at(ms + 1))


def test_cards_of_which_nothing_is_known_excuse_nothing():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    for ms in range(0, 40, 5):
        liveness.on_looks(0, 0, at(ms), now=at(ms + 1))
    assert not liveness.excused(now=at(40)), "a dead card, and one of an older node"


def test_only_what_was_asked_since_the_probe_counts_and_what_is_far_enough_apart():
    liveness = Liveness(now=START)
    liveness.on_probe(now=at(10))
    liveness.on_looks(70, 500, at(2), now=at(11))
    liveness.on_looks(70, 500, at(8), now=at(12))
    assert not liveness.excused(now=at(12)), "asked before the probe"
    liveness.on_looks(70, 500, at(12), now=at(13))
    liveness.on_looks(70, 500, at(13), now=at(14))
    assert not liveness.excused(now=at(14)), "an idle card looks every 4 ms: over a third path came an answer too soon"


def test_an_answer_ends_the_excuse():
    liveness = Liveness(now=START)
    liveness.on_probe(now=START)
    liveness.on_looks(70, 500, START, now=at(1))
    liveness.on_looks(71, 500, at(5), now=at(6))
    liveness.on_answer(now=at(7))
    liveness.on_probe(now=at(8))
    assert not liveness.excused(now=at(8))


def answer(liveness: Liveness, asked_ms: int, took_ms: int) -> None:
    liveness.on_probe(now=at(asked_ms))
    liveness.on_answer(now=at(asked_ms + took_ms))


def test_a_long_path_proves_itself_as_a_short_one_does():
    liveness = Liveness(measured=False, now=START)
    answer(liveness, 0, 20)
    assert not liveness.proven_since(START), "nothing was known of it yet: it might have been held up"
    for asked_ms in (60, 80):
        answer(liveness, asked_ms, 20)
    assert liveness.proven_since(at(60))


def test_an_answer_that_was_held_up_proves_nothing_on_a_long_path_either():
    late_ms = 20 + DEFAULTS.limit_floor_ns // MILLISECOND
    for took_ms, proven in ((late_ms, True), (late_ms + 1, False)):
        liveness = Liveness(now=START)
        for asked_ms in (0, 40):
            answer(liveness, asked_ms, 20)
        answer(liveness, 80, took_ms)
        answer(liveness, 80 + took_ms, 20)
        assert liveness.proven_since(at(80)) is proven


def test_a_path_whose_round_trips_became_longer_proves_itself_once_the_short_ones_are_forgotten():
    liveness = Liveness(now=START)
    answer(liveness, 0, 1)
    proven_at = []
    for asked_ms in range(10, 3 * DEFAULTS.window_ns // MILLISECOND, 40):
        answer(liveness, asked_ms, 30)
        if liveness.proven_since(at(1)):
            proven_at.append(asked_ms * MILLISECOND)
    assert 2 * DEFAULTS.window_ns < proven_at[0] < 2 * DEFAULTS.window_ns + 500 * MILLISECOND


def test_where_answers_take_longer_than_an_interval_the_next_probe_is_due_then_and_not_before():
    liveness = Liveness(now=START)
    liveness.on_work(now=START)
    answer(liveness, 0, 20)
    assert liveness.next_probe_at == at(20), "due earlier, it would look as if we had not been run in time"
    answer(liveness, 20, 25)
    assert liveness.next_probe_at == at(40), "this one was held up for 5 ms, and the other paths may be, too"
    liveness.on_probe(now=at(50))
    liveness.on_life(now=Instant(at(50) + PROBE_MOST_NS + 1))
    liveness.forget_lost_probe()
    assert liveness.next_probe_at == liveness.last_life_at
