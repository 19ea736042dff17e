"""`python -m emul.pingpong` over TCP: with another of its kind, and with an end that speaks as ibv_rc_pingpong does."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import emul
from emul.verbs import GID, SGE, AHAttr, GlobalRoute, QPAttr
from emul.vocabulary import MTU, RecvWR, SendWR, WCStatus, WROpcode
from tests.helpers.network import DEADLINE_S, Namespace, wait_until
from tests.netns.test_open_adapter import ACCESS, Player

pytestmark = [pytest.mark.netns, pytest.mark.root]
ROOT = Path(__file__).resolve().parent.parent.parent
PORT, PSN = 18_515, 0x12_3456
ITERATIONS, SIZE = 30, 3000
WORDS_BYTES = len("0000:000000:000000:") + 32 + 1
OURS, THEIRS = "10.77.0.1", "10.77.0.2"


@pytest.fixture
def place() -> Iterator[Namespace]:
    """A cable with both ends in one namespace, and loopback for what the ends tell each other."""
    namespace = Namespace()
    with namespace.entered():
        for command in ("link set lo up", "link add left0 mtu 2200 type veth peer name right0 mtu 2200"):
            subprocess.run(["ip", *command.split()], check=True)
        for interface in ("left0", "right0"):
            subprocess.run(["ip", "link", "set", interface, "up"], check=True)
    yield namespace
    namespace.close()


def pingpong(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "emul.pingpong", "-d", "left0", "--local", OURS, "--wire", "packet", *arguments]
    command += ["-n", str(ITERATIONS), "-s", str(SIZE), "--max-seconds", str(DEADLINE_S)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Partner(Player):
    """The other end, by hand: what it tells and hears is bytes."""

    def __init__(self) -> None:
        super().__init__(emul.open_adapter("right0", THEIRS, "packet"))

    def words(self) -> bytes:
        gid = ipaddress.IPv6Address(str(self.context.query_gid(1, 1).gid)).packed.hex()
        return f"0000:{self.qp.qp_num:06x}:{PSN:06x}:{gid}\0".encode()

    def join(self, words: bytes) -> None:
        _, qpn, psn, gid = words.rstrip(b"\0").decode().split(":")
        route = AHAttr(gr=GlobalRoute(dgid=GID(str(ipaddress.IPv6Address(bytes.fromhex(gid))))), is_global=1)
        self.qp.to_rts(
            QPAttr(
                dest_qp_num=int(qpn, 16), rq_psn=int(psn, 16), sq_psn=PSN, ah_attr=route, path_mtu=MTU.MTU_1024,
                qp_access_flags=ACCESS,
            )
        )  # fmt: skip

    def play(self, *, first: bool) -> None:
        piece = [SGE(self.mr.buf, SIZE, self.mr.lkey)]
        for _ in range(ITERATIONS):
            if first:
                self.qp.post_send(SendWR(2, WROpcode.SEND, 1, 0, piece))
            assert self.status() is WCStatus.SUCCESS
            if first:
                assert self.status() is WCStatus.SUCCESS
            self.qp.post_recv(RecvWR(1, 1, piece))
            if not first:
                self.qp.post_send(SendWR(2, WROpcode.SEND, 1, 0, piece))
                assert self.status() is WCStatus.SUCCESS

    def receive_one(self) -> None:
        self.qp.post_recv(RecvWR(1, 1, [SGE(self.mr.buf, SIZE, self.mr.lkey)]))


def heard(channel: socket.socket, count: int) -> bytes:
    told = channel.recv(count, socket.MSG_WAITALL)
    assert len(told) == count
    return told


def finished(program: subprocess.Popen[str]) -> str:
    out, errors = program.communicate(timeout=2 * DEADLINE_S)
    assert program.returncode == 0, errors
    return out


def test_it_serves_a_client_of_the_other_kind(place: Namespace) -> None:
    with place.entered(), pingpong("--exchange", "127.0.0.1") as program:
        partner = Partner()
        partner.receive_one()
        channel = socket.socket()
        channel.settimeout(DEADLINE_S)
        wait_until(lambda: channel.connect_ex(("127.0.0.1", PORT)) == 0, "it listens")
        channel.sendall(partner.words())
        partner.join(heard(channel, WORDS_BYTES))
        channel.sendall(b"done\0")
        channel.close()  # as the other kind does
        partner.play(first=True)
        out = finished(program)
        partner.context.close()
    assert f"{ITERATIONS} iters in" in out
    assert f"PSN {PSN:#08x}, GID ::ffff:{THEIRS}" in out


def test_it_is_the_client_of_a_server_of_the_other_kind(place: Namespace) -> None:
    with place.entered(), socket.create_server(("127.0.0.1", PORT)) as listener:
        listener.settimeout(DEADLINE_S)
        with pingpong("127.0.0.1") as program:
            partner = Partner()
            partner.receive_one()
            channel, _ = listener.accept()
            partner.join(heard(channel, WORDS_BYTES))
            channel.sendall(partner.words())
            assert heard(channel, 5) == b"done\0"
            channel.close()
            partner.play(first=False)
            assert f"{2 * SIZE * ITERATIONS} bytes in" in finished(program)
            partner.context.close()


def test_two_of_its_kind_play_over_tcp(place: Namespace) -> None:
    there = ["-d", "right0", "--local", THEIRS, "-c", "-e"]
    at = "127.0.0.1:2000"
    with place.entered(), pingpong("--exchange", at) as server, pingpong(*there, at) as client:
        for program in (client, server):
            assert f"{ITERATIONS} iters in" in finished(program)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (b"x" * WORDS_BYTES, "no ibv_rc_pingpong: expected LID:QPN:PSN:GID, found b'xxx"),
        (b"0000:000011:000001:" + b"0" * 32 + b"\0", "has told no GID: ibv_rc_pingpong needs -g"),
        (b"0000:0000", "the other end has ended"),
    ],
)
def test_what_is_no_address_is_told(place: Namespace, words: bytes, complaint: str) -> None:
    with place.entered(), socket.create_server(("127.0.0.1", PORT)) as listener:
        listener.settimeout(DEADLINE_S)
        with pingpong("127.0.0.1") as program:
            channel, _ = listener.accept()
            heard(channel, WORDS_BYTES)
            channel.sendall(words)
            channel.close()
            _, errors = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 1
    assert complaint in errors
