"""Whatever comes from the wire or stands in a host's queues: it is counted, refused or ignored, and never kills."""

from __future__ import annotations

import random
import struct

import pytest

from emul.clock import MILLISECOND
from emul.queues import DOORBELLS, HEADER_BYTES, SEND_STRIDE
from emul.vocabulary import WCStatus
from emul.wire.frame import ENVELOPE_BYTES
from tests.helpers.adapters import AdapterPair, Party, connect_by_hand

MUTATIONS = 3_000


def with_traffic(seed: int = 0) -> tuple[AdapterPair, Party, Party, list[bytes]]:
    """A connected pair, and the frames that its first write and read put on the cable."""
    pair = AdapterPair(seed=seed)
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b), retry_cnt=7, timeout=10)
    a.qp.post_write(1, a.mr.buf, 3000, a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.settle(span_ns=100 * MILLISECOND)
    assert a.statuses() == [WCStatus.SUCCESS]
    return pair, a, b, [seen.frame for seen in pair.seen]


@pytest.mark.parametrize(
    ("damage", "counter"),
    [
        (lambda f: b"", "rx_truncated"),
        (lambda f: f[:13], "rx_truncated"),
        (lambda f: f[:40], "rx_truncated"),
        (lambda f: f[:-1], "rx_truncated"),
        (lambda f: f[:57], "rx_truncated"),
        (lambda f: f[:-1] + bytes([f[-1] ^ 1]), "rx_icrc_error"),
        (lambda f: f[:70] + bytes([f[70] ^ 1]) + f[71:], "rx_icrc_error"),
        (lambda f: f[:24] + b"\xff\xff" + f[26:], "rx_ip_checksum"),
        (lambda f: f[:12] + b"\x86\xdd" + f[14:], "rx_not_roce"),
        (lambda f: f[:36] + b"\x00\x35" + f[38:], "rx_not_roce"),
        (lambda f: f[:12] + b"\x08\x06" + f[14:], "rx_bad_arp"),
        (lambda f: f[:40] + b"\x12\x34" + f[42:], "rx_udp_checksum"),
    ],
)
def test_damage_is_counted_by_its_kind_and_ignored(damage: object, counter: str) -> None:
    pair, _a, _b, frames = with_traffic()
    write = next(frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[42] == 0x06)
    assert callable(damage)
    pair.adapters[1].on_frame(damage(write), now=pair.now)
    assert pair.adapters[1].counters()[counter] == 1
    assert pair.adapters[1].poll_transmit(now=pair.now) == []


def test_an_oversized_frame_is_no_trouble() -> None:
    pair, _a, _b, frames = with_traffic()
    pair.adapters[1].on_frame(frames[-2] + bytes(70_000), now=pair.now)  # Ethernet padding is allowed, however long
    pair.adapters[1].on_frame(b"\xff" * 70_000, now=pair.now)


def test_garbage_and_mutants_never_kill_and_traffic_goes_on() -> None:
    pair, a, b, frames = with_traffic()
    chance = random.Random(7)
    for _ in range(MUTATIONS):
        frame = bytearray(chance.choice(frames))
        for _ in range(chance.randrange(1, 4)):
            position = chance.randrange(len(frame))
            frame[position] = chance.randrange(256)
        if chance.random() < 0.2:
            del frame[chance.randrange(len(frame)) :]
        for adapter in pair.adapters:
            adapter.on_frame(bytes(frame), now=pair.now)
            adapter.poll_transmit(now=pair.now)
    pair.settle(span_ns=300 * MILLISECOND)
    a.qp.post_write(2, a.mr.buf, 3000, a.mr.lkey, b.mr.buf, b.mr.rkey)
    pair.settle(span_ns=300 * MILLISECOND)
    assert WCStatus.SUCCESS in a.statuses()


def test_valid_frames_with_hostile_headers_change_no_memory_outside_the_region() -> None:
    """The ICRC is made right again, so that every check behind it is reached."""
    from emul.wire.icrc import icrc

    pair, _a, _b, frames = with_traffic()
    chance = random.Random(11)
    guard = bytes(pair.nodes[1].buffer[:8192])
    roce = [frame for frame in frames if frame[12:14] == b"\x08\x00"]
    for _ in range(MUTATIONS):
        frame = bytearray(chance.choice(roce))
        for _ in range(chance.randrange(1, 4)):
            frame[chance.randrange(ENVELOPE_BYTES, min(len(frame), ENVELOPE_BYTES + 40))] = chance.randrange(256)
        frame[-4:] = icrc(bytes(frame[14:-4]))
        for adapter in pair.adapters:
            adapter.on_frame(bytes(frame), now=pair.now)
            adapter.poll_transmit(now=pair.now)
            adapter.on_time(now=pair.now)
    assert bytes(pair.nodes[1].buffer[:8192]) == guard


def test_a_host_that_writes_nonsense_into_its_queues_harms_itself_alone() -> None:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0], depth=8), Party(pair.contexts[1])
    other_a, other_b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b))
    connect_by_hand(pair, (other_a, other_b))
    pair.settle(span_ns=50 * MILLISECOND)
    chance = random.Random(3)
    ring = a.qp._memory.buffer
    for round_number in range(200):
        for slot in range(8):
            start = HEADER_BYTES + slot * SEND_STRIDE
            ring[start : start + SEND_STRIDE] = chance.randbytes(SEND_STRIDE)
            struct.pack_into("<I", ring, start + 44, round_number * 8 + slot + 1)  # the stamp that makes it count
        pair.adapters[0].look_at_all_queues()
        pair.settle(span_ns=MILLISECOND)
    other_a.qp.post_write(1, other_a.mr.buf, 100, other_a.mr.lkey, other_b.mr.buf, other_b.mr.rkey)
    pair.settle(span_ns=100 * MILLISECOND)
    assert other_a.statuses() == [WCStatus.SUCCESS]


def test_more_doorbells_than_the_ring_holds_lose_no_work() -> None:
    pair = AdapterPair()
    a, b = Party(pair.contexts[0]), Party(pair.contexts[1])
    connect_by_hand(pair, (a, b))
    pair.settle(span_ns=50 * MILLISECOND)
    host = pair.adapters[0].host
    assert host is not None
    for _ in range(DOORBELLS + 100):
        pair.contexts[0].device.ring(0x123456)
    a.qp.post_write(1, a.mr.buf, 100, a.mr.lkey, b.mr.buf, b.mr.rkey)
    for _ in range(DOORBELLS):
        pair.contexts[0].device.ring(0x123456)
    pair.settle(span_ns=100 * MILLISECOND)
    assert a.statuses() == [WCStatus.SUCCESS]


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "fly"},
        {"op": "create_qp"},
        {"op": "create_qp", "pd": 99, "send_cq": 1, "recv_cq": 1, "max_send_wr": 1, "max_recv_wr": 1},
        {"op": "create_cq", "cqe": 0},
        {"op": "create_cq", "cqe": 10**9},
        {"op": "create_cq", "cqe": "many"},
        {"op": "modify_qp", "qp_num": 5, "qp_state": 77},
        {"op": "reg_mr", "pd": 1, "access": 7, "offset": 0, "length": 10},
        {"op": "cm_connect", "qp_num": 1},
        {"op": "cm_establish", "number": 1, "private_data": "zz"},
        {},
    ],
)
def test_a_slow_verb_that_makes_no_sense_is_refused_with_a_sentence(request_: dict[str, object]) -> None:
    pair = AdapterPair()
    reply, _ = pair.adapters[0].execute(dict(request_), [], now=pair.now)
    assert isinstance(reply["errno"], int)
    assert reply["message"]
    assert not any(pair.contexts[0].resources().values())


def test_mutants_of_connection_management_kill_nothing_and_connections_are_made_all_the_same() -> None:
    """MADs as they are and with bytes changed, with foreign Q_Keys and senders; the ICRC is made right again."""
    from emul.cm import CmEventType
    from emul.wire.icrc import icrc
    from tests.unit.test_cm_stories import connected

    pair = AdapterPair()
    server, _accepted, client, calling = connected(pair)
    calling.disconnect()
    assert client.kinds(MILLISECOND * 5) == [CmEventType.DISCONNECTED]
    mads = [seen for seen in pair.seen if seen.opcode == 0x64]
    assert {int.from_bytes(seen.frame[78:80], "big") for seen in mads} >= {0x10, 0x13, 0x14, 0x15, 0x16}
    chance = random.Random(5)
    for _ in range(MUTATIONS):
        seen = chance.choice(mads)
        frame = bytearray(seen.frame)
        for _ in range(chance.randrange(4)):
            frame[chance.randrange(42, len(frame) - 4)] = chance.randrange(256)
        if chance.random() < 0.1:
            frame[54:58] = chance.randbytes(4)
        frame[-4:] = icrc(bytes(frame[14:-4]))
        pair.adapters[1 - seen.sender].on_frame(bytes(frame), now=pair.now)
        pair.adapters[1 - seen.sender].poll_transmit(now=pair.now)
    counters = [adapter.counters() for adapter in pair.adapters]
    assert all(each["rx_bad_mad"] > 0 and each["cm_ignored"] > 0 for each in counters)
    assert all(each["cm_connections"] < 1024 for each in counters)
    pair.settle(span_ns=20_000 * MILLISECOND)
    assert [adapter.counters()["cm_connections"] for adapter in pair.adapters] == [0, 0]
    server.kinds(), client.kinds()
    client.caller().connect()
    pair.settle(span_ns=5 * MILLISECOND)
    server.next().id.accept()
    assert client.kinds() == [CmEventType.ESTABLISHED]
