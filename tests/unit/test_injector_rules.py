"""The injector's core: which frames a rule meets, how often it acts, and what leaves the cable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emul.wire import headers
from emul.wire.frame import ARP_REQUEST, Arp, Flow, ipv4_bytes
from emul.wire.headers import ACK_REQUEST, AETH, BTH, RETH, Opcode, Syndrome
from lab.injector.rules import EVENTS_MAX, InjectorCore, Output, Rule, Sight

A, B = "10.77.0.1", "10.77.0.2"
CABLES = {"ic0": ("a", "b"), "ic1": ("a", "b")}
ADDRESSES = {A: "a", B: "b"}


def flow(source: str = A, target: str = B) -> Flow:
    return Flow(
        source_mac=b"\x02\0\0\0\0\x01", target_mac=b"\x02\0\0\0\0\x02", source=ipv4_bytes(source),
        target=ipv4_bytes(target), source_port=0xC001,
    )  # fmt: skip


def packet(opcode: Opcode, psn: int, *, qpn: int = 17, source: str = A, target: str = B, rest: bytes = b"") -> bytes:
    bth = BTH.pack(opcode, headers.MIGRATION_REQUEST, headers.P_KEY_FULL, qpn, ACK_REQUEST | psn)
    return flow(source, target).frame(bth, rest)


def write(psn: int, opcode: Opcode = Opcode.RDMA_WRITE_ONLY, **where: str) -> bytes:
    return packet(opcode, psn, rest=RETH.pack(0x1000, 7, 4) + b"data", **where)


def acknowledgement(psn: int, msn: int, qpn: int = 99) -> bytes:
    rest = AETH.pack(int(Syndrome.ACK) << 24 | msn)
    return packet(Opcode.ACKNOWLEDGE, psn, qpn=qpn, source=B, target=A, rest=rest)


def core(*rules: dict[str, object], seed: int = 1, **more: object) -> InjectorCore:
    made = InjectorCore(CABLES, ADDRESSES, seed=seed, **more)  # type: ignore[arg-type]
    for rule in rules:
        made.arm(Rule.parse(rule))
    return made


def passed(outputs: list[Output], frame: bytes) -> bool:
    return [output.frame for output in outputs] == [frame] and outputs[0].towards == "b"


def test_without_rules_each_frame_passes_once() -> None:
    frame = write(1)
    assert core().on_frame("ic0", "a", frame, now=5) == [Output("ic0", "b", frame, 5)]


def test_the_third_write_from_a_to_b_is_lost_and_only_that_one() -> None:
    injector = core({"action": "drop", "opcode": "RDMA_WRITE", "source": "a", "target": "b", "nth": 3})
    fates = [passed(injector.on_frame("ic0", "a", write(psn), now=psn), write(psn)) for psn in range(1, 7)]
    assert fates == [True, True, False, True, True, True]
    assert injector.counts() == {1: 1}
    assert injector.matches() == {1: 6}
    (event,) = injector.events()
    assert (event.at, event.match, event.cable, event.source) == (3, 3, "ic0", "a")
    assert event.frame.startswith("RDMA_WRITE_ONLY 10.77.0.1 -> 10.77.0.2 qp 17 psn 3, ")
    assert injector.events(after=event.number) == []


def test_a_group_counts_messages_by_their_first_packet() -> None:
    injector = core({"action": "observe", "opcode": "RDMA_WRITE", "count": None})
    for opcode in (Opcode.RDMA_WRITE_FIRST, Opcode.RDMA_WRITE_MIDDLE, Opcode.RDMA_WRITE_LAST, Opcode.RDMA_WRITE_ONLY):
        injector.on_frame("ic0", "a", write(1, opcode), now=0)
    assert injector.matches() == {1: 2}


def test_the_other_direction_the_other_cable_and_the_other_queue_pair_are_left_alone() -> None:
    injector = core({"action": "drop", "cables": ["ic1"], "source": "a", "qp": 18, "count": None})
    assert injector.on_frame("ic1", "b", write(1, source=B, target=A), now=0)
    assert injector.on_frame("ic0", "a", packet(Opcode.SEND_ONLY, 1, qpn=18), now=0)
    assert injector.on_frame("ic1", "a", packet(Opcode.SEND_ONLY, 1, qpn=17), now=0)
    assert not injector.on_frame("ic1", "a", packet(Opcode.SEND_ONLY, 1, qpn=18), now=0)


def test_behind_a_switch_the_sender_is_told_by_its_address_and_each_frame_counts_once() -> None:
    injector = InjectorCore({"up": ("a", "s"), "down": ("s", "b")}, ADDRESSES)
    injector.arm(Rule.parse({"action": "observe", "source": "a", "count": None}))
    injector.arm(Rule.parse({"action": "observe", "source": "a", "cables": ["down"], "count": None}))
    injector.on_frame("up", "a", write(1), now=0)
    injector.on_frame("down", "s", write(1), now=0)
    injector.on_frame("down", "b", write(1, source=B, target=A), now=0)
    assert injector.matches() == {1: 1, 2: 1}


def test_a_corrupt_frame_keeps_its_wrong_icrc() -> None:
    from emul.wire.frame import Accepted, Envelopes, icrc_matches

    frame = write(1)
    for seed in range(200):
        (output,) = core({"action": "corrupt"}, seed=seed).on_frame("ic0", "a", frame, now=0)
        assert sum((x ^ y).bit_count() for x, y in zip(output.frame, frame, strict=True)) == 1
        envelope = Envelopes(ipv4_bytes(B)).accept(output.frame)
        assert isinstance(envelope, Accepted), "the flip is behind the envelope"
        assert not icrc_matches(output.frame, envelope), f"seed {seed}"


def test_the_bit_to_flip_can_be_told() -> None:
    (output,) = core({"action": "corrupt", "bit": 8 * 42}).on_frame("ic0", "a", write(1), now=0)
    assert output.frame[42] == write(1)[42] ^ 0x80


def test_a_duplicate_arrives_twice() -> None:
    frame = write(1)
    outputs = core({"action": "duplicate"}).on_frame("ic0", "a", frame, now=0)
    assert [output.frame for output in outputs] == [frame, frame]


def test_chance_follows_the_seed_and_one_rule_does_not_disturb_another() -> None:
    def fates(*rules: dict[str, object], seed: int) -> list[bool]:
        injector = core(*rules, seed=seed)
        return [bool(injector.on_frame("ic0", "a", write(psn), now=0)) for psn in range(400)]

    lossy: dict[str, object] = {"action": "drop", "probability": 0.25}
    assert fates(lossy, seed=7) == fates(lossy, {"action": "observe", "probability": 0.5}, seed=7)
    assert fates(lossy, seed=7) != fates(lossy, seed=8)
    assert 60 < fates(lossy, seed=7).count(False) < 140


def test_a_forged_nak_waits_until_the_senders_queue_pair_is_known() -> None:
    built: list[tuple[str, bytes, int, int]] = []

    def forge(action: str, frame: bytes, qpn: int, msn: int) -> bytes:
        built.append((action, frame, qpn, msn))
        return b"forged"

    injector = core({"action": "forge_nak_sequence", "opcode": "RDMA_WRITE", "source": "a"}, forge=forge)
    assert passed(injector.on_frame("ic0", "a", write(1), now=0), write(1)), "nobody knows a's queue pair yet"
    injector.on_frame("ic0", "b", acknowledgement(1, msn=5), now=0)
    outputs = injector.on_frame("ic0", "a", write(2), now=0)
    assert outputs == [Output("ic0", "a", b"forged", 0), Output("ic0", "b", write(2), 0)]
    assert built == [("forge_nak_sequence", write(2), 99, 5)]
    assert injector.counts() == {1: 1}
    assert passed(injector.on_frame("ic0", "a", write(3), now=0), write(3)), "once is once"


def test_directions_tell_what_has_to_be_diverted() -> None:
    injector = InjectorCore({"ic0": ("a", "b"), "up": ("a", "s"), "down": ("s", "b")}, ADDRESSES)
    from_a = {"source": "a", "target": "b"}
    assert injector.directions(Rule.parse({"action": "drop", **from_a})) == {("ic0", "a"), ("up", "a")}
    assert injector.directions(Rule.parse({"action": "drop", "cables": ["down"], **from_a})) == {("down", "s")}
    assert injector.directions(Rule.parse({"action": "forge_nak_sequence", "cables": ["ic0"], **from_a})) == {
        ("ic0", "a"), ("ic0", "b"),
    }  # fmt: skip
    assert injector.directions_armed() == set()


def test_a_disarmed_rule_rests_and_keeps_its_count() -> None:
    injector = core({"action": "drop", "count": None})
    injector.on_frame("ic0", "a", write(1), now=0)
    injector.disarm([1, 99])
    assert injector.on_frame("ic0", "a", write(2), now=0)
    assert injector.counts() == {1: 1}


def test_events_are_bounded_and_numbers_go_on() -> None:
    injector = core({"action": "observe", "count": None})
    for psn in range(EVENTS_MAX + 10):
        injector.on_frame("ic0", "a", write(psn), now=psn)
    events = injector.events()
    assert (len(events), events[0].number, events[-1].number) == (EVENTS_MAX, 11, EVENTS_MAX + 10)


def test_arp_and_connection_management_have_names() -> None:
    arp = Arp(ARP_REQUEST, b"\x02" * 6, ipv4_bytes(A), bytes(6), ipv4_bytes(B)).emit()
    injector = core({"action": "drop", "opcode": "ARP"}, {"action": "drop", "opcode": "CM_RTU"})
    assert not injector.on_frame("ic0", "a", arp, now=0)
    from emul.wire.headers import DETH
    from emul.wire.mad import CM_Q_KEY, Rtu

    rtu = packet(Opcode.UD_SEND_ONLY, 1, qpn=1, rest=DETH.pack(CM_Q_KEY, 1) + Rtu(1, 2).emit(3))
    assert Sight.of(rtu).kind == "CM_RTU"
    assert not injector.on_frame("ic0", "a", rtu, now=0)


@given(st.binary(max_size=120))
def test_any_bytes_at_all_are_seen_and_passed(garbage: bytes) -> None:
    injector = core(
        {"action": "observe"}, {"action": "corrupt"}, {"action": "duplicate"},
        {"action": "forge_nak_sequence", "count": None},
    )  # fmt: skip
    outputs = injector.on_frame("ic0", "a", garbage, now=0)
    assert [len(output.frame) for output in outputs] == [len(garbage)] * 2


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({}, "needs an action"),
        ({"action": "explode"}, "action is one of"),
        ({"action": "drop", "opcod": "SEND"}, "unknown keys"),
        ({"action": "drop", "opcode": "RDMA_WRIET"}, "no opcode 'RDMA_WRIET'"),
        ({"action": "drop", "nth": 0}, "nth and count"),
        ({"action": "drop", "probability": 1.5}, "probability"),
    ],
)
def test_a_bad_rule_is_refused_in_words(rule: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Rule.parse(rule)


@pytest.mark.parametrize("rule", [{"cables": ["ic9"]}, {"source": "c"}, {"target": "c"}])
def test_a_rule_for_what_is_not_there_is_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"no (cable|node)"):
        core().arm(Rule.parse({"action": "drop", **rule}))


def test_only_frames_above_a_length_are_met() -> None:
    frame = write(1)
    for longer, gone in ((len(frame) - 1, True), (len(frame), False)):
        injector = core({"action": "drop", "longer": longer, "count": None})
        assert passed(injector.on_frame("ic0", "a", frame, now=0), frame) is not gone
    with pytest.raises(ValueError, match="longer is a number of bytes, 0 or more, got -1"):
        Rule.parse({"action": "drop", "longer": -1})
