"""Congestion: a switch marks packets, their receiver notifies the sender, the sender counts and is silent."""

from __future__ import annotations

import pytest

from emul.clock import MILLISECOND, SECOND
from emul.congestion import CNP_INTERVAL_NS
from emul.vocabulary import WCStatus
from emul.wire.headers import Opcode
from tests.helpers.adapters import AdapterPair, Party, Seen, connect_by_hand

each_family = pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
ECT, CE = 2, 3


def marked(frame: bytes, bits: int) -> bytes:
    """As a switch passes it on: ECN bits set, over IPv4 the header checksum made right."""
    from emul.wire.frame import internet_checksum

    if frame[12:14] == b"\x86\xdd":
        return frame[:15] + bytes([frame[15] & 0xCF | bits << 4]) + frame[16:]
    header = frame[14:15] + bytes([frame[15] & 0xFC | bits]) + frame[16:24] + bytes(2) + frame[26:34]
    return frame[:14] + header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:] + frame[34:]


class Scene:
    """A connected pair; adapter 0 writes, and the switch marks what it sends."""

    def __init__(self, *, ipv6: bool = False, bits: int = CE, both: bool = False) -> None:
        self.pair = AdapterPair(ipv6=ipv6)
        self.a, self.b = Party(self.pair.contexts[0]), Party(self.pair.contexts[1])
        connect_by_hand(self.pair, (self.a, self.b), timeout=10)
        self.pair.settle(span_ns=50 * MILLISECOND)
        self.pair.filter = lambda seen: [
            marked(seen.frame, bits) if seen.opcode >= 0 and (both or seen.sender == 0) else seen.frame
        ]

    def write(self, length: int = 100) -> None:
        self.a.qp.post_write(1, self.a.mr.buf, length, self.a.mr.lkey, self.b.mr.buf, self.b.mr.rkey)
        self.pair.settle(span_ns=SECOND)
        assert self.a.statuses() == [WCStatus.SUCCESS]

    def notifications(self) -> list[Seen]:
        return [seen for seen in self.pair.seen if seen.opcode == Opcode.CNP]

    def counters(self, index: int) -> dict[str, int]:
        party = (self.a, self.b)[index]
        qp = self.pair.adapters[index]._qps[party.qp.qp_num]
        total = self.pair.adapters[index].counters()
        names = ("np_ecn_marked_roce_packets", "np_cnp_sent", "rp_cnp_handled")
        assert {name: total[name] for name in names} == {name: qp.counters()[name] for name in names}
        return {name: total[name] for name in names} | {"rx_unexpected": total.get("rx_unexpected", 0)}


@each_family
def test_a_marked_packet_is_notified_to_its_sender(ipv6: bool) -> None:
    scene = Scene(ipv6=ipv6)
    scene.write()
    (notification,) = scene.notifications()
    start = 62 if ipv6 else 42
    transport = notification.frame[start:-4]
    assert notification.sender == 1
    assert transport[:5] == bytes([0x81, 0, 0xFF, 0xFF, 0x40]), "P_Key, BECN"
    assert int.from_bytes(transport[5:8], "big") == scene.a.qp.qp_num
    assert transport[8:] == bytes(4 + 16)
    traffic_class = (
        (notification.frame[14] << 8 | notification.frame[15]) >> 4 & 0xFF if ipv6 else notification.frame[15]
    )
    assert traffic_class == 48 << 2
    assert scene.counters(1) == {
        "np_ecn_marked_roce_packets": 1, "np_cnp_sent": 1, "rp_cnp_handled": 0, "rx_unexpected": 0
    }  # fmt: skip
    assert scene.counters(0) == {
        "np_ecn_marked_roce_packets": 0, "np_cnp_sent": 0, "rp_cnp_handled": 1, "rx_unexpected": 0
    }  # fmt: skip


@pytest.mark.parametrize("bits", [0, 1, ECT])
def test_packets_that_met_no_congestion_bring_nothing_about(bits: int) -> None:
    scene = Scene(bits=bits)
    scene.write()
    assert scene.notifications() == []
    assert scene.counters(1)["np_ecn_marked_roce_packets"] == 0


def test_a_burst_is_one_notification_in_each_interval() -> None:
    scene = Scene()
    begin = scene.pair.now
    for _ in range(10):
        scene.write(5000)
    span = scene.pair.now - begin
    assert scene.counters(1)["np_ecn_marked_roce_packets"] == 50
    assert 1 <= len(scene.notifications()) <= 1 + span // CNP_INTERVAL_NS
    before = len(scene.notifications())
    scene.pair.now = type(scene.pair.now)(scene.pair.now + CNP_INTERVAL_NS)
    scene.write()
    assert len(scene.notifications()) == before + 1


def test_notifications_that_are_marked_themselves_bring_no_storm() -> None:
    scene = Scene(both=True)
    scene.write(3000)
    sent = [sum(seen.sender == index for seen in scene.notifications()) for index in range(2)]
    assert sent == [1, 1], "one for the data, one for the acknowledgement"
    counted = [scene.counters(index) for index in range(2)]
    assert [each["rp_cnp_handled"] for each in counted] == [1, 1]
    assert counted[0]["np_ecn_marked_roce_packets"] == 1, "the notification that it got is not among them"


def test_a_forged_packet_that_is_marked_is_not_notified() -> None:
    scene = Scene()
    scene.write()
    before = len(scene.notifications())
    write = next(seen.frame for seen in scene.pair.seen if seen.opcode == Opcode.RDMA_WRITE_ONLY)
    adapter = scene.pair.adapters[1]
    for damage in (write[:60] + bytes([write[60] ^ 1]) + write[61:], write[:-1] + bytes([write[-1] ^ 1])):
        adapter.on_frame(marked(damage, CE), now=scene.pair.now)
    scene.pair.settle(span_ns=50 * MILLISECOND)
    assert len(scene.notifications()) == before
    assert adapter.counters()["rx_icrc_error"] == 2


def test_the_count_of_a_queue_pair_that_is_gone_stays_in_the_adapters() -> None:
    scene = Scene()
    scene.write()
    scene.b.qp.close()
    assert scene.pair.adapters[1].counters()["np_cnp_sent"] == 1
