"""Scapy as the other end of a connection: it asks with every request opcode, and the adapter answers rightly.

The peer is a script in virtual time. It answers ARP, sends what it was told to, and takes the adapter's answers apart.
"""

from __future__ import annotations

import struct

import pytest
from scapy.contrib.roce import AETH, BTH
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from emul.clock import MILLISECOND, Instant
from emul.vocabulary import GID, SGE, AHAttr, GlobalRoute, QPAttr, QPState, RecvWR, SendWR, WCOpcode, WCStatus, WROpcode
from emul.wire.headers import Opcode, Syndrome
from lab.wire import layers
from lab.wire.analyzer import analyze
from lab.wire.exchange import View
from tests.helpers.adapters import AdapterPair, Party
from tests.helpers.traffic import EVERYTHING

PEER, PEER_MAC, PEER_QPN, PEER_PORT = "10.77.0.9", "02:00:00:00:00:99", 0x1234, 0xC777
ASK_PSN, ANSWER_PSN = 0xFFFFFE, 0x000321
MTU = 1024
STEPS_MAX = 100


class Peer:
    """Scapy opposite adapter 1 of a pair."""

    def __init__(self) -> None:
        self.pair = AdapterPair()
        self.adapter = self.pair.adapters[1]
        self.party = Party(self.pair.contexts[1], access=EVERYTHING)
        self.psn = ASK_PSN
        self.said: list[tuple[int, bytes]] = []
        attr = QPAttr(
            dest_qp_num=PEER_QPN, rq_psn=ASK_PSN, sq_psn=ANSWER_PSN, qp_access_flags=EVERYTHING, max_rd_atomic=4,
            max_dest_rd_atomic=4, ah_attr=AHAttr(gr=GlobalRoute(dgid=GID(PEER))),
        )  # fmt: skip
        self.party.qp.to_rts(attr)
        self.pull()

    def pull(self) -> list[Packet]:
        """What the adapter sends now; ARP is answered on the way."""
        pulled: list[Packet] = []
        for _ in range(STEPS_MAX):
            self.adapter.on_doorbell(now=self.pair.now)
            frames = self.adapter.poll_transmit(now=self.pair.now)
            if not frames:
                return pulled
            for frame in frames:
                seen = Ether(frame)
                if ARP in seen and seen[ARP].op == 1 and seen[ARP].pdst == PEER:
                    answer = ARP(op=2, hwsrc=PEER_MAC, psrc=PEER, hwdst=seen.src, pdst=seen[ARP].psrc)
                    self.adapter.on_frame(bytes(Ether(src=PEER_MAC, dst=seen.src) / answer), now=self.pair.now)
                elif BTH in seen:
                    self._judge(seen, frame)
                    pulled.append(seen)
        raise AssertionError("the adapter never stops sending")

    def _judge(self, seen: Packet, frame: bytes) -> None:
        assert (seen[IP].dst, seen[BTH].dqpn, seen.dst) == (PEER, PEER_QPN, PEER_MAC)
        copy = Ether(frame)
        copy[BTH].icrc = None
        assert bytes(copy) == frame, "its ICRC is scapy's"
        self.said.append((int(self.pair.now), frame))

    def say(self, opcode: int, *parts: Packet, psn: int | None = None, ack: int = 1, data: bytes = b"") -> list[Packet]:
        """Sends one request at the next PSN; gives what the adapter answers."""
        if psn is None:
            psn, self.psn = self.psn, self.psn + 1 & 0xFFFFFF
        packet = (
            Ether(src=PEER_MAC, dst="02:00:00:00:00:01")
            / IP(src=PEER, dst=self.pair.address(1), flags="DF", id=0)
            / UDP(sport=PEER_PORT, dport=4791, chksum=0)
            / BTH(opcode=int(opcode), dqpn=self.party.qp.qp_num, psn=psn, ackreq=ack, padcount=-len(data) % 4)
        )
        for part in parts:
            packet /= part
        if data:
            packet /= Raw(data + bytes(-len(data) % 4))
        frame = bytes(packet)
        self.said.append((int(self.pair.now), frame))
        self.adapter.on_frame(frame, now=self.pair.now)
        answers = self.pull()
        self.pair.now = Instant(self.pair.now + MILLISECOND)
        return answers

    def reth(self, length: int, offset: int = 0) -> Packet:
        return layers.RETH(va=self.party.mr.buf + offset, rkey=self.party.mr.rkey, dlen=length)

    def receive(self, length: int = 4096) -> None:
        self.party.qp.post_recv(RecvWR(7, 1, [SGE(self.party.mr.buf + 8192, length, self.party.mr.lkey)]))

    def judged(self) -> None:
        """Both sides kept the rules."""
        report = analyze(self.said, View(at_senders=True, from_start=True))
        assert report.findings == ()


@pytest.fixture
def peer() -> Peer:
    return Peer()


def acknowledged(answers: list[Packet], psn: int, msn: int) -> None:
    (answer,) = answers
    assert (answer[BTH].opcode, answer[BTH].psn) == (Opcode.ACKNOWLEDGE, psn)
    assert (answer[AETH].syndrome, answer[AETH].msn) == (Syndrome.ACK, msn)


DATA = bytes(range(256)) * 12


@pytest.mark.parametrize("last", ["", "_WITH_IMMEDIATE", "_WITH_INVALIDATE"])
def test_a_send_of_each_sort_is_received(peer: Peer, last: str) -> None:
    extra = peer.party.another_region(64)
    tail = {"": (), "_WITH_IMMEDIATE": (layers.ImmDt(immdata=5),), "_WITH_INVALIDATE": (layers.IETH(rkey=extra.rkey),)}
    peer.receive()
    peer.receive()
    acknowledged(peer.say(Opcode[f"SEND_ONLY{last}"], *tail[last], data=b"hello"), ASK_PSN, 1)
    if last == "_WITH_INVALIDATE":
        tail[last] = (layers.IETH(rkey=peer.party.another_region(64).rkey),)
    assert peer.say(Opcode.SEND_FIRST, ack=0, data=DATA[:MTU]) == []
    assert peer.say(Opcode.SEND_MIDDLE, ack=0, data=DATA[MTU : 2 * MTU]) == []
    acknowledged(peer.say(Opcode[f"SEND_LAST{last}"], *tail[last], data=DATA[2 * MTU : 2 * MTU + 3]), 1, 2)
    first, second = peer.party.completions()
    assert (first.status, first.byte_len, first.opcode) == (WCStatus.SUCCESS, 5, WCOpcode.RECV)
    assert second.byte_len == 2 * MTU + 3
    assert peer.party.mr.read(2 * MTU + 3, 8192) == DATA[: 2 * MTU + 3]
    peer.judged()


@pytest.mark.parametrize("immediate", [False, True])
def test_a_write_of_each_sort_lands(peer: Peer, immediate: bool) -> None:
    suffix, tail = ("_WITH_IMMEDIATE", (layers.ImmDt(immdata=9),)) if immediate else ("", ())
    if immediate:
        peer.receive()
        peer.receive()
    acknowledged(peer.say(Opcode[f"RDMA_WRITE_ONLY{suffix}"], peer.reth(6), *tail, data=b"direct"), ASK_PSN, 1)
    assert peer.party.mr.read(6, 0) == b"direct"
    assert peer.say(Opcode.RDMA_WRITE_FIRST, peer.reth(2 * MTU + 1, 100), ack=0, data=DATA[:MTU]) == []
    assert peer.say(Opcode.RDMA_WRITE_MIDDLE, ack=0, data=DATA[MTU : 2 * MTU]) == []
    acknowledged(peer.say(Opcode[f"RDMA_WRITE_LAST{suffix}"], *tail, data=DATA[2 * MTU : 2 * MTU + 1]), 1, 2)
    assert peer.party.mr.read(2 * MTU + 1, 100) == DATA[: 2 * MTU + 1]
    assert [each.imm_data for each in peer.party.completions()] == ([9, 9] if immediate else [])
    peer.judged()


def test_a_read_is_answered_in_packets_of_the_path_mtu(peer: Peer) -> None:
    peer.party.mr.write(DATA, 2 * MTU + 5)
    answers = peer.say(Opcode.RDMA_READ_REQUEST, peer.reth(2 * MTU + 5))
    assert [answer[BTH].opcode for answer in answers] == [
        Opcode.RDMA_READ_RESPONSE_FIRST, Opcode.RDMA_READ_RESPONSE_MIDDLE, Opcode.RDMA_READ_RESPONSE_LAST,
    ]  # fmt: skip
    assert [answer[BTH].psn for answer in answers] == [0xFFFFFE, 0xFFFFFF, 0]
    assert [answer[AETH].msn for answer in answers if AETH in answer] == [1, 1]
    read = b"".join(bytes(answer[Raw].load) for answer in answers)
    assert read[: 2 * MTU + 5] == DATA[: 2 * MTU + 5]
    assert answers[-1][BTH].padcount == 3
    peer.psn = 1
    (only,) = peer.say(Opcode.RDMA_READ_REQUEST, peer.reth(4))
    assert (only[BTH].opcode, only[BTH].psn, only[AETH].msn) == (Opcode.RDMA_READ_RESPONSE_ONLY, 1, 2)
    peer.judged()


def test_atomics_answer_what_was_there_and_the_same_to_a_repetition(peer: Peer) -> None:
    peer.party.mr.write(struct.pack("=Q", 40), 8)
    target = {"va": peer.party.mr.buf, "rkey": peer.party.mr.rkey}
    (added,) = peer.say(Opcode.FETCH_ADD, layers.AtomicETH(**target, swapadd=2))
    (swapped,) = peer.say(Opcode.COMPARE_SWAP, layers.AtomicETH(**target, swapadd=7, compare=42))
    (again,) = peer.say(Opcode.FETCH_ADD, layers.AtomicETH(**target, swapadd=2), psn=ASK_PSN)
    for answer, original in ((added, 40), (swapped, 42), (again, 40)):
        assert answer[BTH].opcode == Opcode.ATOMIC_ACKNOWLEDGE
        assert answer[AETH].syndrome == Syndrome.ACK
        assert answer[layers.AtomicAckETH].origdata == original
    assert peer.party.mr.read(8, 0) == struct.pack("=Q", 7)
    peer.judged()


def test_flush_and_atomic_write_are_answered_by_an_empty_read_response(peer: Peer) -> None:
    (flushed,) = peer.say(Opcode.FLUSH, layers.FETH(plt=2), peer.reth(64))
    (written,) = peer.say(Opcode.ATOMIC_WRITE, peer.reth(8, 16), data=b"8 bytes.")
    for answer, psn, msn in ((flushed, 0xFFFFFE, 1), (written, 0xFFFFFF, 2)):
        assert (answer[BTH].opcode, answer[BTH].psn) == (Opcode.RDMA_READ_RESPONSE_ONLY, psn)
        assert answer[AETH].msn == msn
        assert Raw not in answer
    assert peer.party.mr.read(8, 16) == b"8 bytes."
    peer.judged()


def test_a_gap_is_told_once_and_a_duplicate_gets_the_latest_psn(peer: Peer) -> None:
    acknowledged(peer.say(Opcode.RDMA_WRITE_ONLY, peer.reth(4), data=b"abcd"), ASK_PSN, 1)
    peer.psn = 0
    (nak,) = peer.say(Opcode.RDMA_WRITE_ONLY, peer.reth(4), data=b"late")
    assert (nak[BTH].psn, nak[AETH].syndrome) == (0xFFFFFF, Syndrome.NAK_SEQUENCE)
    assert peer.say(Opcode.RDMA_WRITE_ONLY, peer.reth(4), data=b"more") == []
    acknowledged(peer.say(Opcode.RDMA_WRITE_ONLY, peer.reth(4), data=b"gone", psn=0xFFFFFF), 0xFFFFFF, 2)
    acknowledged(peer.say(Opcode.RDMA_WRITE_ONLY, peer.reth(4), data=b"old!", psn=ASK_PSN), 0xFFFFFF, 2)
    assert peer.party.mr.read(4, 0) == b"gone"


def test_without_a_receive_the_answer_is_rnr_and_with_a_wrong_key_an_error(peer: Peer) -> None:
    (refused,) = peer.say(Opcode.SEND_ONLY, data=b"no room")
    assert refused[AETH].syndrome == Syndrome.RNR_NAK | 12
    peer.psn = ASK_PSN
    (nak,) = peer.say(Opcode.RDMA_WRITE_ONLY, layers.RETH(va=0x1000, rkey=1, dlen=4), data=b"evil")
    assert nak[AETH].syndrome == Syndrome.NAK_REMOTE_ACCESS
    assert peer.party.qp.query().qp_state is QPState.ERR
    assert peer.say(Opcode.RDMA_READ_REQUEST, peer.reth(4)) == []


def test_the_adapter_asks_and_scapy_answers(peer: Peer) -> None:
    qp, mr = peer.party.qp, peer.party.mr
    request = SendWR(1, WROpcode.RDMA_READ, sg=[SGE(mr.buf, 8, mr.lkey)])
    request.set_wr_rdma(0xABC, 0x7000)
    qp.post_send(request)
    fetch = SendWR(2, WROpcode.ATOMIC_FETCH_AND_ADD, sg=[SGE(mr.buf + 64, 8, mr.lkey)])
    fetch.set_wr_atomic(0xABC, 0x7008, 5)
    qp.post_send(fetch)
    qp.post_write(3, mr.buf, 4, mr.lkey, 0x7010, 0xABC)
    read, atomic, write = peer.pull()
    assert (read[layers.RETH].va, read[layers.RETH].rkey, read[layers.RETH].dlen) == (0x7000, 0xABC, 8)
    assert (atomic[layers.AtomicETH].va, atomic[layers.AtomicETH].swapadd) == (0x7008, 5)
    psns = [packet[BTH].psn for packet in (read, atomic, write)]
    assert psns == [ANSWER_PSN, ANSWER_PSN + 1, ANSWER_PSN + 2]
    peer.say(Opcode.RDMA_READ_RESPONSE_ONLY, AETH(syndrome=0x1F, msn=1), psn=psns[0], ack=0, data=b"response")
    peer.say(
        Opcode.ATOMIC_ACKNOWLEDGE, AETH(syndrome=0x1F, msn=2), layers.AtomicAckETH(origdata=77), psn=psns[1], ack=0
    )
    peer.say(Opcode.ACKNOWLEDGE, AETH(syndrome=0x1F, msn=3), psn=psns[2], ack=0)
    assert peer.party.statuses() == [WCStatus.SUCCESS] * 3
    assert mr.read(8, 0) == b"response"
    assert mr.read(8, 64) == struct.pack("=Q", 77)
    peer.judged()
