"""Each check, proven by a history that holds and by histories that break it once."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import pytest

from ccm.history import Entry, Kind
from emul.clock import MILLISECOND, Instant
from emul.node_memory import Stage
from lab.check import ALWAYS, CHECKS, run_checks
from lab.check.evidence import CheckResult, Evidence, FaultRecord, NodeResources, PathEnd, Session, merge
from lab.check.recovery import percentile, recoveries, stream_numbers
from lab.wire.analyzer import analyze
from tests.helpers.wire_story import Story as WireStory

A, B = 1, 2
MIRROR, ECHO = 1, 2
HALF = 64
RECORD = 16
NAMES = {A: "a", B: "b"}
CUT_PATHS = frozenset({PathEnd(A, B, 0), PathEnd(B, A, 0)})


class Story:
    """Writes a history as two nodes would, and the memory of their cards; times in ms."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.cards = {A: bytearray(2 * HALF), B: bytearray(2 * HALF)}
        self.faults: list[FaultRecord] = []
        self.stopped_at = 1000
        self.resources: dict[int, NodeResources] = {}
        self.leftovers: list[str] = []
        self.counters: dict[int, Mapping[str, int]] = {}

    def note(self, at: float, kind: Kind, node: int, **fields: int) -> None:
        fields.setdefault("incarnation", 1)
        if kind not in (Kind.HOST_STARTED, Kind.STAGE):
            fields.setdefault("partner", B if node == A else A)
        self.entries.append(Entry(Instant(int(at * MILLISECOND)), kind, node, **fields))

    def boot(self, at: float, node: int, incarnation: int = 1) -> None:
        self.note(at, Kind.HOST_STARTED, node, incarnation=incarnation)

    def ready(self, at: float, node: int, epoch: int = 1, client: int = MIRROR) -> None:
        self.note(at, Kind.READY_ALERT, node, client=client, epoch=epoch)

    def error(self, at: float, node: int, epoch: int = 1, client: int = MIRROR) -> None:
        self.note(at, Kind.ERROR_ALERT, node, client=client, epoch=epoch)

    def handshake(self, at: float) -> None:
        for step in (1, 2, 3, 4):
            for node in (A, B):
                self.note(at + step / 10, Kind.HANDSHAKE_STEP, node, extra=step)

    def submit(self, at: float, sequence: int, *, data: bytes | None = None, node: int = A, **fields: int) -> bytes:
        record = data if data is not None else bytes([sequence % 250 + 1]) * RECORD
        offset = sequence * RECORD % HALF
        self.note(
            at, Kind.SUBMITTED, node, client=MIRROR, sequence=sequence, offset=offset, length=RECORD,
            digest=zlib.crc32(record), **fields,
        )  # fmt: skip
        return record

    def commit(self, at: float, sequence: int, record: bytes, *, node: int = A, **fields: int) -> None:
        offset = sequence * RECORD % HALF
        self.note(
            at, Kind.COMMITTED, node, client=MIRROR, sequence=sequence, offset=offset, length=RECORD,
            digest=zlib.crc32(record), **fields,
        )  # fmt: skip

    def store(self, sequence: int, record: bytes, *, node: int = A) -> None:
        """The record arrives on both cards."""
        offset = sequence * RECORD % HALF
        self.cards[node][offset : offset + RECORD] = record
        partner = B if node == A else A
        self.cards[partner][HALF + offset : HALF + offset + RECORD] = record

    def write(self, at: float, sequence: int, **fields: int) -> None:
        """A whole life of a record: submitted, stored, committed 1 ms later."""
        record = self.submit(at, sequence, **fields)
        self.store(sequence, record)
        self.commit(at + 1, sequence, record, **fields)

    def cut(self, at: float, until: float) -> None:
        self.faults.append(
            FaultRecord(1, "cable.cut", "ic0", int(at * MILLISECOND), int(until * MILLISECOND), 1, CUT_PATHS)
        )

    def crash(self, node: int, at: float, until: float) -> None:
        self.faults.append(
            FaultRecord(
                1,
                "host.crash",
                NAMES[node],
                int(at * MILLISECOND),
                int(until * MILLISECOND),
                1,
                nodes=frozenset({node}),
            )
        )

    def evidence(self) -> Evidence:
        return Evidence(
            nodes=NAMES,
            clients={MIRROR: "nvram-mirror", ECHO: "echo"},
            sessions=[Session(A, B, MIRROR), Session(B, A, MIRROR)],
            streams=[Session(A, B, MIRROR), Session(A, B, ECHO)],
            entries=sorted(self.entries, key=lambda entry: entry.at),
            faults=self.faults,
            nvram={node: bytes(card) for node, card in self.cards.items()},
            counters=self.counters,
            resources=self.resources,
            leftovers=self.leftovers,
            stopped_at=self.stopped_at * MILLISECOND,
            close_at=(self.stopped_at + 10) * MILLISECOND,
        )

    def judge(self, name: str, **parameters: object) -> CheckResult:
        return CHECKS[name](self.evidence(), parameters)


@pytest.fixture
def story() -> Story:
    """Two nodes that booted, shook hands and told their clients "ready"."""
    begun = Story()
    for node in (A, B):
        begun.boot(0, node)
    begun.handshake(1)
    for node in (A, B):
        begun.ready(2, node)
    return begun


def assert_holds(result: CheckResult, exercised: int) -> None:
    assert result.ok, result
    assert result.exercised == exercised, result


def assert_fails(result: CheckResult, *words: str) -> None:
    assert result.ok is False, result
    for word in words:
        assert word in result.detail, result


def test_what_a_node_wrote_first_happened_first() -> None:
    """A host may stamp with the beginning of a turn that began before the one before it was over."""
    a = [Entry(Instant(at), Kind.DELIVERED, A, sequence=n) for n, at in ((1, 10), (2, 30), (3, 20), (4, 31))]
    b = [Entry(Instant(at), Kind.DELIVERED, B, sequence=n) for n, at in ((1, 5), (2, 25))]
    order = [(entry.node, entry.sequence) for entry in merge([a, b])]
    assert order == [(B, 1), (A, 1), (B, 2), (A, 2), (A, 3), (A, 4)]


# -- alerts -----------------------------------------------------------------------------------------------------------


def test_alerts_in_their_turn_are_good(story: Story) -> None:
    story.error(10, A)
    story.error(11, B)
    story.ready(20, A, epoch=2)
    story.ready(20, B, epoch=2)
    assert_holds(story.judge("alerts.exactly_once"), 6)


def test_a_second_ready_alert_for_an_epoch_is_found(story: Story) -> None:
    story.ready(5, A)
    assert_fails(story.judge("alerts.exactly_once"), "nvram-mirror a->b", "epoch 1")


def test_a_second_error_alert_for_an_epoch_is_found(story: Story) -> None:
    story.error(10, A)
    story.error(11, A), story.error(11, B)
    assert_fails(story.judge("alerts.exactly_once"), "a second error alert")


def test_an_error_alert_for_an_epoch_that_was_never_ready_is_found(story: Story) -> None:
    story.error(10, A, epoch=7)
    assert_fails(story.judge("alerts.exactly_once"), "not ready")


def test_epochs_must_grow_across_a_reboot(story: Story) -> None:
    story.boot(10, B, incarnation=2)
    story.ready(20, B, epoch=1)
    assert_fails(story.judge("alerts.exactly_once"), "b->a", "after one of epoch 1")


def test_a_crashed_host_owes_no_error_alert(story: Story) -> None:
    story.boot(10, B, incarnation=2)
    story.error(11, A)
    story.ready(20, A, epoch=2)
    story.ready(20, B, epoch=2)
    assert story.judge("alerts.exactly_once").ok


def test_both_sides_must_end_in_the_same_epoch(story: Story) -> None:
    story.error(10, A)
    story.ready(20, A, epoch=2)
    assert_fails(story.judge("alerts.exactly_once"), "the other side in 1")


# -- mirror -----------------------------------------------------------------------------------------------------------


def test_committed_records_on_both_cards_are_good(story: Story) -> None:
    for sequence in range(10):
        story.write(10 + sequence, sequence)
    assert_holds(story.judge("mirror.no_committed_loss"), 8)  # 4 slots on 2 cards


@pytest.mark.parametrize(("node", "half", "where"), [(A, 0, "a's card"), (B, HALF, "b's card")])
def test_a_committed_record_that_is_gone_from_one_card_is_found(story: Story, node: int, half: int, where: str) -> None:
    story.write(10, 0)
    story.write(12, 1)
    story.cards[node][half + RECORD] ^= 1
    assert_fails(story.judge("mirror.no_committed_loss"), where, "record 1", "lost")


def test_an_older_record_that_came_back_is_stale(story: Story) -> None:
    story.write(10, 0)
    story.write(20, 4)  # same slot
    story.store(0, bytes([1]) * RECORD)
    assert_fails(story.judge("mirror.no_committed_loss"), "record 4", "stale")


def test_a_slot_with_a_write_under_way_may_hold_either_or_a_mixture(story: Story) -> None:
    story.write(10, 0)
    later = story.submit(20, 4)
    assert story.judge("mirror.no_committed_loss").ok
    story.store(4, later)
    assert story.judge("mirror.no_committed_loss").ok
    story.cards[B][HALF : HALF + 8] = bytes(8)
    result = story.judge("mirror.no_committed_loss")
    assert result.ok
    assert "in doubt" in result.detail


def test_a_record_of_a_later_incarnation_supersedes_one_with_a_greater_sequence(story: Story) -> None:
    story.write(10, 4)
    story.write(20, 0, incarnation=2)
    assert story.judge("mirror.no_committed_loss").ok
    story.store(4, bytes([5]) * RECORD)
    assert_fails(story.judge("mirror.no_committed_loss"), "incarnation 2", "stale")


def test_bytes_that_nobody_submitted_are_found(story: Story) -> None:
    story.write(10, 0)
    story.cards[B][HALF + 3 * RECORD] = 9
    assert_fails(story.judge("mirror.no_committed_loss"), "b's card", "nobody submitted")


def test_a_commit_without_submission_or_with_other_bytes_or_twice_is_found(story: Story) -> None:
    story.commit(10, 0, b"x" * RECORD)
    assert_fails(story.judge("mirror.no_committed_loss"), "without having been submitted")
    story.entries.pop()
    story.write(10, 0)
    story.commit(12, 0, b"x" * RECORD)
    assert_fails(story.judge("mirror.no_committed_loss"), "committed with other bytes", "committed twice")


def test_a_mirror_without_commits_was_not_exercised(story: Story) -> None:
    assert story.judge("mirror.no_committed_loss").ok is None


# -- messages ---------------------------------------------------------------------------------------------------------


def echo(story: Story, at: float, sequence: int, *, delivered: bool = True, digest: int = 5) -> None:
    story.note(at, Kind.SUBMITTED, A, client=ECHO, epoch=1, sequence=sequence, digest=5)
    if delivered:
        story.note(at + 0.1, Kind.DELIVERED, B, client=ECHO, epoch=1, sequence=sequence, digest=digest)
    story.note(at + 0.2, Kind.COMMITTED, A, client=ECHO, epoch=1, sequence=sequence, digest=5)


def test_messages_delivered_once_are_good(story: Story) -> None:
    echo(story, 10, 1)
    echo(story, 11, 2)
    assert_holds(story.judge("messages.delivered"), 2)


def test_an_acknowledged_message_that_never_came_is_found(story: Story) -> None:
    echo(story, 10, 1)
    echo(story, 11, 2, delivered=False)
    assert_fails(story.judge("messages.delivered"), "message 2", "never delivered")


def test_a_message_with_other_bytes_is_found(story: Story) -> None:
    echo(story, 10, 1, digest=6)
    assert_fails(story.judge("messages.delivered"), "message 1")


def test_a_message_that_came_twice_is_found(story: Story) -> None:
    echo(story, 10, 1)
    echo(story, 11, 2)
    story.note(12, Kind.DELIVERED, B, client=ECHO, epoch=1, sequence=2, digest=5)
    assert_fails(story.judge("messages.delivered"), "came after 2")


# -- sessions ---------------------------------------------------------------------------------------------------------


def failover(story: Story, detected: float, resumed: float) -> None:
    """A cut at 100 ms that is healed at 150; both sides lose the path and carry on with the other."""
    story.cut(100, 150)
    story.write(90, 0)
    echo(story, 90, 1)
    for node in (A, B):
        story.note(detected, Kind.PATH_DOWN, node, extra=0)
    story.note(detected + 1, Kind.PATH_FENCED, A, extra=0, sequence=1)
    story.note(detected + 2, Kind.REPLAYED, A, client=MIRROR, extra=1, length=1)
    story.write(resumed, 1)
    echo(story, resumed, 2)


def test_work_that_flows_again_within_the_bound_is_recovered(story: Story) -> None:
    failover(story, 101, 110)
    assert_holds(story.judge("sessions.recovered", within_ns=50 * MILLISECOND), 2)


def test_work_that_flows_too_late_is_found(story: Story) -> None:
    failover(story, 101, 260)
    assert_fails(story.judge("sessions.recovered", within_ns=50 * MILLISECOND), "after cable.cut ic0", "at most 50 ms")


def test_work_that_never_flows_again_is_found(story: Story) -> None:
    failover(story, 101, 110)
    story.entries = [e for e in story.entries if not (e.at > 100 * MILLISECOND and e.kind == Kind.COMMITTED)]
    assert_fails(story.judge("sessions.recovered"), "no commit any more")


def test_a_session_that_is_not_ready_at_the_end_is_found(story: Story) -> None:
    failover(story, 101, 110)
    story.error(300, B)
    assert_fails(story.judge("sessions.recovered"), "b->a was not ready at the end")


def test_without_a_fault_there_was_nothing_to_recover(story: Story) -> None:
    assert story.judge("sessions.recovered").ok is None


def test_recovery_counts_from_the_fault_to_new_work_end_to_end(story: Story) -> None:
    failover(story, 103, 110)
    found = {(r.session.client, r.session.node): r for r in recoveries(story.evidence())}
    assert found[MIRROR, A].detected_at == 103 * MILLISECOND
    assert found[MIRROR, A].recovered_at == 111 * MILLISECOND


def test_a_late_completion_of_old_work_is_no_recovery(story: Story) -> None:
    story.cut(100, 150)
    record = story.submit(99, 0)
    story.note(101, Kind.PATH_DOWN, A, extra=0)
    story.commit(102, 0, record)
    assert [r.recovered_at for r in recoveries(story.evidence()) if r.session.client == MIRROR] == [None]


def test_a_path_that_does_not_cross_the_fault_does_not_detect_it(story: Story) -> None:
    story.cut(100, 150)
    story.note(101, Kind.PATH_DOWN, A, extra=1)
    assert recoveries(story.evidence()) == []


def test_a_path_that_fails_long_after_a_fault_is_over_does_not_detect_it(story: Story) -> None:
    story.stopped_at = 5000
    story.cut(100, 150)
    story.note(3000, Kind.PATH_DOWN, A, extra=0)
    assert recoveries(story.evidence()) == []


def test_traffic_that_continues_is_good_and_a_long_gap_is_found(story: Story) -> None:
    story.stopped_at = 120
    failover(story, 101, 110)
    story.write(118, 2)
    echo(story, 118, 3)
    assert story.judge("traffic.continued", within_ns=50 * MILLISECOND).ok
    assert_fails(story.judge("traffic.continued", within_ns=10 * MILLISECOND), "committed nothing for")


def test_traffic_that_stops_for_good_is_a_gap_to_the_end(story: Story) -> None:
    story.write(10, 0)
    echo(story, 10, 1)
    assert_fails(story.judge("traffic.continued", within_ns=500 * MILLISECOND), "committed nothing for 989.0 ms")


def test_an_error_alert_is_no_continued_traffic(story: Story) -> None:
    failover(story, 101, 110)
    story.error(105, A)
    assert_fails(story.judge("traffic.continued"), "error alert")


def test_broken_sessions_come_back_in_a_newer_epoch(story: Story) -> None:
    assert story.judge("session.broken").ok is None
    story.cut(100, 150)
    story.error(101, A)
    story.error(101, B)
    assert_fails(story.judge("session.broken"), "did not come back")
    story.ready(160, A, epoch=2)
    story.ready(160, B, epoch=2)
    assert_holds(story.judge("session.broken"), 2)
    assert_fails(story.judge("session.broken", within_ns=20 * MILLISECOND), "after 59.0 ms")


# -- handshake, fence, boot status ------------------------------------------------------------------------------------


def test_the_steps_of_the_handshake_in_order_are_good(story: Story) -> None:
    assert_holds(story.judge("handshake.ordered"), 8)


def test_a_skipped_step_is_found(story: Story) -> None:
    story.note(10, Kind.HANDSHAKE_STEP, A, extra=1, offset=1)
    story.note(11, Kind.HANDSHAKE_STEP, A, extra=3, offset=1)
    assert_fails(story.judge("handshake.ordered"), "step 3 on path 1 after step 1")


def test_ready_before_the_handshake_is_complete_is_found(story: Story) -> None:
    story.boot(50, B, incarnation=2)
    story.note(51, Kind.HANDSHAKE_STEP, B, extra=1)
    story.ready(52, B, epoch=2)
    assert_fails(story.judge("handshake.ordered"), "b->a", "before the handshake was complete")


def test_being_seen_by_a_partner_that_has_not_looked_is_found() -> None:
    story = Story()
    story.boot(0, A)
    story.boot(0, B)
    for step in (1, 2, 3):
        story.note(step, Kind.HANDSHAKE_STEP, A, extra=step)
    assert_fails(story.judge("handshake.ordered"), "before the partner had read")


def test_a_replay_after_the_fence_is_good(story: Story) -> None:
    failover(story, 101, 110)
    assert_holds(story.judge("fence.before_replay"), 1)


def test_a_replay_without_fence_is_found(story: Story) -> None:
    story.note(100, Kind.PATH_DOWN, A, extra=0)
    story.note(101, Kind.REPLAYED, A, client=MIRROR, extra=1, length=3)
    story.note(102, Kind.PATH_FENCED, A, extra=0)
    assert_fails(story.judge("fence.before_replay"), "3 requests posted again on path 1", "not fenced")


def test_a_fence_that_does_not_stand_in_the_partners_memory_is_found(story: Story) -> None:
    failover(story, 101, 110)
    evidence = story.evidence()
    evidence.fences = {PathEnd(A, B, 0): 0}
    assert_fails(CHECKS["fence.before_replay"](evidence, {}), "fenced at epoch 1", "stands 0")


def test_a_fence_of_an_earlier_failure_does_not_count(story: Story) -> None:
    failover(story, 101, 110)
    story.note(200, Kind.PATH_UP, A, extra=0)
    story.note(300, Kind.PATH_DOWN, A, extra=0)
    story.note(301, Kind.REPLAYED, A, client=MIRROR, extra=1, length=1)
    assert_fails(story.judge("fence.before_replay"), "path 0")


def test_boot_status_read_before_the_storage_os_is_good(story: Story) -> None:
    story.crash(B, 100, 150)
    story.boot(150, B, incarnation=2)
    story.note(155, Kind.PARTNER_STATUS, A, extra=Stage.LOADER, sequence=2)
    story.note(200, Kind.STAGE, B, extra=Stage.STORAGE_OS)
    assert_holds(story.judge("partner.readable"), 1)


def test_boot_status_read_only_when_serving_is_found(story: Story) -> None:
    story.crash(B, 100, 150)
    story.boot(150, B, incarnation=2)
    story.note(200, Kind.STAGE, B, extra=Stage.STORAGE_OS)
    story.note(205, Kind.PARTNER_STATUS, A, extra=Stage.SERVING, sequence=2)
    assert_fails(story.judge("partner.readable"), "a read nothing of b")


def test_a_lost_frame_that_nobody_sent_again_is_found(story: Story) -> None:
    story.faults.append(FaultRecord(1, "cable.drop", "ic0", 5, None, 1, counts_frames=True))
    assert_fails(story.judge("retransmission.seen"), "1 frames were lost")


def test_retransmissions_are_counted(story: Story) -> None:
    assert story.judge("retransmission.seen").ok is None
    story.counters = {A: {"retransmissions": 2, "rx_frames": 9}}
    assert_holds(story.judge("retransmission.seen"), 2)


# -- leaks and figures ------------------------------------------------------------------------------------------------


def test_resources_as_before_are_good_and_a_leak_is_found(story: Story) -> None:
    story.resources = {A: NodeResources({"qp": 6, "fds": 20}, {}, {"qp": 2, "fds": 20})}
    assert story.judge("nothing.leaked").ok
    story.resources = {A: NodeResources({"qp": 6, "fds": 20}, {}, {"qp": 7, "fds": 40})}
    assert_fails(story.judge("nothing.leaked"), "7 qp after the close", "40 fds")


def test_what_is_left_after_the_teardown_is_found(story: Story) -> None:
    story.leftovers = ["process 4711 (adapter a.ic0)"]
    assert_fails(story.judge("nothing.leaked"), "4711")


def test_numbers_of_a_stream(story: Story) -> None:
    story.stopped_at = 50
    for at in (10, 12, 14, 40):
        story.write(at, at)
    numbers = stream_numbers(story.evidence(), Session(A, B, MIRROR))
    assert numbers.committed == 4
    assert numbers.latencies_ns == [MILLISECOND] * 4
    assert (numbers.gap_ns, numbers.gap_at) == (26 * MILLISECOND, 15 * MILLISECOND)


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (99, 4), (1, 1), (100, 4)])
def test_percentiles_are_values_that_were_measured(percent: int, expected: int) -> None:
    assert percentile([1, 2, 3, 4], percent) == expected
    assert percentile([], percent) == 0


def test_captured_cables_are_judged_and_forged_ones_left_out(story: Story) -> None:
    evidence = story.evidence()
    assert "wire.conformant" not in [result.name for result in run_checks(evidence, {})]
    assert CHECKS["wire.conformant"](evidence, {}).ok is None
    good = WireStory().ask("SEND", 5, 4).answer("ACK", 5, 1)
    evidence.wire = {"ic0": good.judge(), "ic1": None}
    (result,) = [result for result in run_checks(evidence, {}) if result.name == "wire.conformant"]
    assert (result.ok, result.exercised) == (True, 2)
    assert "ic1 left out" in result.detail
    evidence.wire = {"ic0": good.ask("SEND", 9, 4).judge()}
    assert_fails(CHECKS["wire.conformant"](evidence, {}), "ic0: frame 3", "request.psn")
    evidence.wire = {"ic0": analyze(good.frames, lost=7)}
    assert "7 frames missing" in CHECKS["wire.conformant"](evidence, {}).detail


def test_what_always_runs_does_so_once_and_after_the_expected_ones(story: Story) -> None:
    results = run_checks(story.evidence(), {"nothing.leaked": {}, "session.broken": {}})
    names = [result.name for result in results]
    assert names[:2] == ["nothing.leaked", "session.broken"]
    assert sorted(names) == sorted({"session.broken", *ALWAYS})
