"""libibverbs' own ibv_rc_pingpong in the guest plays against a queue pair of the emulated adapter."""

from __future__ import annotations

import ipaddress

import pytest

from tests.helpers.network import wait_until
from tests.softroce.guest import DEVICE
from tests.softroce.world import OurEnd, World

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.needs_softroce]
PORT = 18_515
SIZE, ITERATIONS = 4096, 200
OUR_PSN = 0xFFFFD0
PATH_MTU = 1024
"""The program's default."""


class Partner:
    """What it has told of itself: enough to be connected to."""

    def __init__(self, words: str) -> None:
        _, qpn, psn, gid = words.rstrip("\0").split(":")
        self.qpn, self.psn = int(qpn, 16), int(psn, 16)
        self.gid = str(ipaddress.IPv6Address(bytes.fromhex(gid)))


def words(end: OurEnd) -> str:
    """LID, queue pair number, PSN and GID, as it reads them from its socket, with the zero at the end."""
    return f"0000:{end.qpn:06x}:{OUR_PSN:06x}:{ipaddress.IPv6Address(end.gid).packed.hex()}\0"


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_rc_pingpong_plays_with_us(world: World, family: int) -> None:
    ours, _ = world.ends(family=family)
    command = ["ibv_rc_pingpong", "-d", DEVICE, "-g", str(world.peer.gid_index[family]), "-p", str(PORT)]
    world.guest.ask("start", name="pingpong", command=[*command, "-n", str(ITERATIONS), "-s", str(SIZE)])
    listens = ["sh", "-c", f"grep -q ':{PORT:04X} [0-9A-F:]* 0A' /proc/net/tcp /proc/net/tcp6"]
    wait_until(lambda: world.guest.ask("run", command=listens)["status"] == 0, "it listens")
    mine = words(ours)
    theirs = Partner(world.guest.ask("say", port=PORT, text=mine, answer_bytes=len(mine)))
    ours.connect(theirs, OUR_PSN, theirs.psn, PATH_MTU)
    ours.recv(SIZE, SIZE, wr_id=1)
    world.guest.ask("say", port=PORT, text="done\0", answer_bytes=0)
    for _ in range(ITERATIONS):
        ours.send("SEND", SIZE, wr_id=2)
        done = ours.poll(2)
        assert sorted((d.wr_id, d.status) for d in done) == [(1, "SUCCESS"), (2, "SUCCESS")]
        ours.recv(SIZE, SIZE, wr_id=1)
    end = world.guest.ask("finish", name="pingpong", timeout=20)
    assert end["status"] == 0, end["out"]
    assert f"{ITERATIONS} iters in" in end["out"]
