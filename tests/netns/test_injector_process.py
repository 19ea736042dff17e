"""The injector process between two real interfaces: frames pass in order, rules act, control answers in words.

Diversion is the fabric's business; here a raw socket puts frames where diverted ones come out.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emul.port.packet import PacketPort
from emul.wire import headers
from emul.wire.frame import Accepted, Envelopes, Flow, icrc_matches, ipv4_bytes
from emul.wire.headers import ACK_REQUEST, AETH, BTH, RETH, Opcode, Syndrome
from lab.fabric import netlink
from tests.helpers.network import Namespace, wait_until

A, B = "10.77.0.1", "10.77.0.2"
MAC_A, MAC_B = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"
GROUP = 7
pytestmark = [pytest.mark.netns, pytest.mark.root]


def packet(opcode: Opcode, psn: int, qpn: int, rest: bytes, *, backwards: bool = False) -> bytes:
    macs, addresses = (MAC_A, MAC_B), (ipv4_bytes(A), ipv4_bytes(B))
    if backwards:
        macs, addresses = macs[::-1], addresses[::-1]
    flow = Flow(source_mac=macs[0], target_mac=macs[1], source=addresses[0], target=addresses[1], source_port=0xC000)
    return flow.frame(BTH.pack(opcode, headers.MIGRATION_REQUEST, headers.P_KEY_FULL, qpn, ACK_REQUEST | psn), rest)


def write(psn: int) -> bytes:
    return packet(Opcode.RDMA_WRITE_ONLY, psn, 17, RETH.pack(0, 7, 4) + b"data")


def acknowledgement(psn: int) -> bytes:
    return packet(Opcode.ACKNOWLEDGE, psn, 99, AETH.pack(int(Syndrome.ACK) << 24 | 1), backwards=True)


def psns(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[51:54], "big") for frame in frames]


class Cable:
    """A cable's middle: nodes a and b, the fabric between them, the injector process in it, and its control socket."""

    def __init__(self, directory: Path) -> None:
        self.a, self.b, self.fabric = Namespace(), Namespace(), Namespace()
        ends = ((self.a, "fa", MAC_A, "tapa", "ina"), (self.b, "fb", MAC_B, "tapb", "inb"))
        with self.fabric.entered():
            connection, numbers, requests = netlink.Netlink(), itertools.count(10), []
            for node, name, mac, tap, entry in ends:
                requests += [
                    netlink.node_veth(
                        index=next(numbers), name="ic0", mac=mac, mtu=2200, namespace=node.fd,
                        peer_index=next(numbers), peer_name=name, group=GROUP,
                    ),
                    netlink.plain_veth(
                        index=next(numbers), name=tap, mtu=2200, peer_index=next(numbers), peer_name=entry, group=GROUP
                    ),
                ]  # fmt: skip
            connection.apply([*requests, netlink.group_up(GROUP)])
            connection.close()
        self.ports, self.entries = {}, {}
        for name, node, address, entry in (("a", self.a, A, "ina"), ("b", self.b, B, "inb")):
            node.set_up("ic0", True)
            with node.entered():
                self.ports[name] = PacketPort("ic0", address)
            self.entries[name] = self.fabric.raw_socket(entry)
        path = directory / "injector.sock"
        config = {
            "control": str(path), "addresses": {A: "a", B: "b"}, "seed": 1, "log": None,
            "cables": [{"name": "ic0", "ends": [
                {"node": "a", "interface": "fa", "tap": "tapa"}, {"node": "b", "interface": "fb", "tap": "tapb"},
            ]}],
        }  # fmt: skip
        self.process = self._start(config)
        wait_until(path.exists, "the control socket appears")
        self.path = path
        self.control = self.connect()

    def _start(self, config: dict[str, Any]) -> int:
        child = os.fork()
        if child == 0:
            from lab.fabric import namespaces
            from lab.injector.process import main

            try:
                namespaces.die_with_parent(signal.SIGKILL)
                namespaces.setns(self.fabric.fd, namespaces.CLONE_NEWNET)
                main(config)
                os._exit(0)
            finally:
                os._exit(1)
        return child

    def connect(self) -> socket.socket:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(10)

        def connected() -> bool:
            try:
                control.connect(str(self.path))
            except ConnectionRefusedError:
                return False
            return True

        wait_until(connected, "the control socket is served")
        return control

    def ask(self, **request: Any) -> dict[str, Any]:
        self.control.send(json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(self.control.recv(1 << 20))
        return answer

    def receive(self, name: str, count: int) -> list[bytes]:
        port, frames = self.ports[name], []
        with select.epoll() as epoll:
            epoll.register(port.fileno(), select.EPOLLIN)
            while len(frames) < count:
                assert epoll.poll(5), f"{len(frames)} of {count} frames came to {name}"
                frames += port.receive()
        return frames

    def close(self) -> None:
        try:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        for item in (*self.ports.values(), *self.entries.values(), self.control, self.a, self.b, self.fabric):
            item.close()


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    made = Cable(tmp_path)
    yield made
    made.close()


def test_frames_pass_both_ways_in_order(cable: Cable) -> None:
    forth, back = [write(psn) for psn in range(500)], [acknowledgement(psn) for psn in range(500)]
    for one, other in zip(forth, back, strict=True):
        cable.entries["a"].send(one)
        cable.entries["b"].send(other)
    assert cable.receive("b", 500) == forth
    assert cable.receive("a", 500) == back
    state = cable.ask(op="state")
    assert state["ok"]
    assert {end: seen["frames"] for end, seen in state["cables"]["ic0"].items()} == {"a": 500, "b": 500}
    assert all(seen["dropped"] == 0 and seen["idle_ns"] > 0 for seen in state["cables"]["ic0"].values())


def test_the_third_write_is_dropped_and_told_to_those_who_asked(cable: Cable) -> None:
    listener = cable.connect()
    listener.send(b'{"op": "subscribe"}')
    assert json.loads(listener.recv(1000)) == {"ok": True}
    rule = {"action": "drop", "opcode": "RDMA_WRITE", "source": "a", "target": "b", "nth": 3, "note": "write-dropped"}
    armed = cable.ask(op="arm", rules=[rule])
    assert armed == {"ok": True, "ids": [1], "directions": [["ic0", "a"]]}
    for psn in range(1, 7):
        cable.entries["a"].send(write(psn))
    assert psns(cable.receive("b", 5)) == [1, 2, 4, 5, 6]
    event = json.loads(listener.recv(10_000))["event"]
    assert (event["rule"], event["match"], event["note"]) == (1, 3, "write-dropped")
    assert event["frame"].startswith("RDMA_WRITE_ONLY 10.77.0.1 -> 10.77.0.2 qp 17 psn 3, ")
    fired = cable.ask(op="fired")
    assert (fired["counts"], fired["matched"]) == ({"1": 1}, {"1": 6})
    assert fired["events"] == [event]
    assert cable.ask(op="fired", after=fired["next"])["events"] == []
    assert cable.ask(op="disarm", ids=[1]) == {"ok": True, "directions": []}
    listener.close()


def test_a_nak_built_by_scapy_goes_back_to_the_sender(cable: Cable) -> None:
    armed = cable.ask(op="arm", rules=[{"action": "forge_nak_sequence", "opcode": "RDMA_WRITE", "cables": ["ic0"]}])
    assert armed["directions"] == [["ic0", "a"], ["ic0", "b"]]
    cable.entries["a"].send(write(1))
    assert psns(cable.receive("b", 1)) == [1]
    cable.entries["b"].send(acknowledgement(1))
    assert psns(cable.receive("a", 1)) == [1]
    cable.entries["a"].send(write(2))
    assert cable.receive("b", 1) == [write(2)], "the request itself passes"
    (nak,) = cable.receive("a", 1)
    envelope = Envelopes(ipv4_bytes(A)).accept(nak)
    assert isinstance(envelope, Accepted)
    assert icrc_matches(nak, envelope)
    assert (nak[42], psns([nak]), nak[54]) == (Opcode.ACKNOWLEDGE, [2], Syndrome.NAK_SEQUENCE)
    assert int.from_bytes(nak[47:50], "big") == 99, "a's queue pair, as b's acknowledgement named it"


def test_cables_come_and_go_while_it_runs(cable: Cable) -> None:
    assert cable.ask(op="cables", remove=["ic0"]) == {"ok": True}
    assert cable.ask(op="state")["cables"] == {}
    ends = [{"node": "a", "interface": "fa", "tap": "tapa"}, {"node": "b", "interface": "fb", "tap": "tapb"}]
    assert cable.ask(op="cables", add=[{"name": "again", "ends": ends}]) == {"ok": True}
    cable.entries["a"].send(write(1))
    assert psns(cable.receive("b", 1)) == [1]
    ends[1]["tap"] = "nosuch0"
    refused = cable.ask(op="cables", add=[{"name": "broken", "ends": ends}])
    assert not refused["ok"]
    assert "No such device" in refused["error"]
    assert list(cable.ask(op="state")["cables"]) == ["again"]


def test_a_cut_beyond_the_injector_loses_frames_and_nothing_else(cable: Cable) -> None:
    cable.b.set_up("ic0", False)
    for psn in range(10):
        cable.entries["a"].send(write(psn))
    wait_until(lambda: cable.ask(op="state")["cables"]["ic0"]["a"]["dropped"] == 10, "ten frames are lost")
    cable.b.set_up("ic0", True)
    wait_until(cable.ports["b"].carrier, "the carrier comes back")
    cable.entries["a"].send(write(77))
    assert psns(cable.receive("b", 1)) == [77]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"not json", "JSONDecodeError"),
        (b"[]", "a request is a JSON object"),
        (b'{"op": "dance"}', "no operation 'dance'"),
        (b'{"op": "arm"}', "KeyError"),
        (b'{"op": "arm", "rules": [{"action": "drop"}, {"action": "drop", "cables": ["ic7"]}]}', "no cable 'ic7'"),
        (b'{"op": "arm", "rules": [7]}', "TypeError"),
    ],
)
def test_bad_requests_are_refused_in_words_and_change_nothing(cable: Cable, message: bytes, complaint: str) -> None:
    cable.control.send(message)
    answer = json.loads(cable.control.recv(10_000))
    assert not answer["ok"]
    assert complaint in answer["error"]
    assert cable.ask(op="fired")["counts"] == {}


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM"])
def test_it_ends_when_told_and_takes_its_socket_along(cable: Cable, how: str) -> None:
    if how == "shutdown":
        assert cable.ask(op="shutdown") == {"ok": True}
    else:
        assert cable.ask(op="fired")["counts"] == {}  # it answers: it has got as far as its loop
        os.kill(cable.process, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(cable.process, 0)[1]) == 0
    assert not cable.path.exists()
