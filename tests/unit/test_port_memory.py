"""The port without an interface keeps the promises of a real one."""

from __future__ import annotations

import select

from emul.port import Port
from emul.port.memory import MemoryPort

FRAME = bytes(range(60))


def test_two_ends_exchange_frames_in_order() -> None:
    left, right = MemoryPort.pair()
    port: Port = left
    assert port.send([FRAME, FRAME[::-1]]) == 2
    assert right.receive() == [FRAME, FRAME[::-1]]
    assert left.receive() == []
    assert (left.counters()["tx_frames"], right.counters()["rx_frames"]) == (2, 2)


def test_the_descriptor_is_readable_while_frames_wait() -> None:
    left, right = MemoryPort.pair(with_event=True)
    with select.epoll() as epoll:
        epoll.register(right.fileno(), select.EPOLLIN)
        assert epoll.poll(0) == []
        left.send([FRAME] * 3)
        assert right.receive(1) == [FRAME]
        assert epoll.poll(0) != [], "two still wait"
        right.receive()
        assert epoll.poll(0) == []
    left.close()
    right.close()
    right.close()


def test_without_carrier_frames_are_lost_and_counted() -> None:
    left, right = MemoryPort.pair()
    left.set_carrier(False)
    assert left.send([FRAME]) == 1
    left.set_carrier(True)
    right.set_carrier(False)
    assert left.send([FRAME]) == 1
    right.set_carrier(True)
    assert right.receive() == []
    assert left.counters()["tx_dropped"] == 1
    assert right.counters()["rx_dropped"] == 1


def test_too_many_waiting_and_too_long_are_dropped_and_counted() -> None:
    left, right = MemoryPort.pair(waiting_max=2, mtu=100)
    assert left.send([FRAME, bytes(115), bytes(114), FRAME]) == 4
    assert right.receive() == [FRAME, bytes(114)]
    assert left.counters()["tx_dropped"] == 1
    assert right.counters()["rx_dropped"] == 1


def test_one_end_alone_gives_its_frames_to_the_cable() -> None:
    sent: list[bytes] = []
    port = MemoryPort(b"\x02" * 6, sent.append)
    port.send([FRAME])
    port.deliver(FRAME[::-1])
    assert (sent, port.receive(), port.fileno()) == ([FRAME], [FRAME[::-1]], -1)
