"""The two doors of an adapter's process, for hosts and for faults: who knocks too often, talks nonsense, or goes."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
from collections.abc import Iterator
from errno import EOPNOTSUPP, EPERM
from pathlib import Path

import pytest

from emul import process
from emul.control import SocketDevice, receive_message, send_message
from emul.errors import DeviceGone, RDMAError
from emul.memory import Memory
from emul.process import CHANNELS_MAX, UNANSWERED_MAX
from emul.service_port import CONNECTIONS_MAX, ServicePort
from emul.vocabulary import EventType, WCStatus
from tests.helpers.network import DEADLINE_S, wait_until
from tests.netns.test_adapter_process import RealAdapters, inspected, write

pytestmark = [pytest.mark.netns, pytest.mark.root]
SEVERAL = 3
TIMEOUT_MS = int(1000 * DEADLINE_S)
STRANGER, TOLD = 65534, 7


@pytest.fixture
def adapters(tmp_path: Path) -> Iterator[RealAdapters]:
    real = RealAdapters(tmp_path, "packet")
    yield real
    real.close()


def knock(adapters: RealAdapters, door: str) -> socket.socket:
    """A connection to adapter 0, once that is there."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.settimeout(DEADLINE_S)
    path = str(adapters.directory / f"0.{door}")
    wait_until(lambda: channel.connect_ex(path) == 0, f"somebody listens at {path}")
    return channel


def answer(channel: socket.socket, request: dict[str, object], fds: tuple[int, ...] = ()) -> dict[str, object] | None:
    """None where the adapter has closed the channel."""
    try:
        send_message(channel, request, list(fds))
        received = receive_message(channel)
    except (BrokenPipeError, ConnectionResetError):
        return None
    return received[0] if received is not None else None


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_the_oldest_of_too_many_who_look_makes_room(adapters: RealAdapters) -> None:
    looking = []
    for _ in range(CHANNELS_MAX + SEVERAL):
        looking.append(knock(adapters, "sock"))
        assert answer(looking[-1], {"op": "ping", "id": 1}) == {"id": 1}
    heard = [answer(channel, {"op": "ping", "id": 2}) for channel in looking]
    assert heard == [None] * SEVERAL + [{"id": 2}] * CHANNELS_MAX
    for channel in looking:
        channel.close()


def test_an_adapter_without_descriptors_left_closes_the_oldest_channel(adapters: RealAdapters) -> None:
    oldest = knock(adapters, "sock")
    assert answer(oldest, {"op": "ping", "id": 1}) == {"id": 1}
    limit = resource.prlimit(adapters.pids[0], resource.RLIMIT_NOFILE)
    resource.prlimit(adapters.pids[0], resource.RLIMIT_NOFILE, (3, limit[1]))
    late = knock(adapters, "sock")
    wait_until(lambda: answer(oldest, {"op": "ping", "id": 2}) is None, "it is shown out")
    resource.prlimit(adapters.pids[0], resource.RLIMIT_NOFILE, limit)
    assert answer(late, {"op": "ping", "id": 3}) == {"id": 3}
    oldest.close()
    late.close()


def test_a_host_whose_place_was_taken_has_no_say(adapters: RealAdapters) -> None:
    former = adapters.attach(0, incarnation=1)
    adapters.attach(0, incarnation=2)
    with pytest.raises(RDMAError, match="another host has attached") as refused:
        former.query_port(1)
    assert refused.value.error_code == EPERM


def test_what_cannot_be_mapped_is_refused_and_given_back(adapters: RealAdapters) -> None:
    host = knock(adapters, "sock")
    send_message(host, {"op": "attach", "incarnation": 1, "id": 1}, [])
    received = receive_message(host)
    assert received is not None
    for fd in received[1]:
        os.close(fd)
    before = descriptors(adapters.pids[0])
    for number in range(SEVERAL):
        empty = os.memfd_create("empty")
        told = answer(host, {"op": "reg_mr", "id": number}, (empty,))
        os.close(empty)
        assert told is not None and "errno" in told
    assert descriptors(adapters.pids[0]) == before
    host.close()


def test_what_was_asked_of_a_hung_card_is_bounded_and_forgotten_with_who_asked(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    with ServicePort(adapters.directory / "0.svc") as port:
        port.inject("hang")
        before = descriptors(adapters.pids[0])
        asking = knock(adapters, "sock")
        with Path(os.devnull).open("rb") as something:
            for number in range(UNANSWERED_MAX + SEVERAL):
                send_message(asking, {"op": "reg_mr", "id": number}, [something.fileno()])
        # The card's processor stands still, but who looks at its state sees it.
        wait_until(lambda: descriptors(adapters.pids[0]) == before + 1 + UNANSWERED_MAX, "no more than so many wait")
        asking.close()
        wait_until(lambda: descriptors(adapters.pids[0]) == before + UNANSWERED_MAX, "the end is seen")
        port.heal()
        wait_until(lambda: descriptors(adapters.pids[0]) == before, "what they brought is given back")
    assert write(a, b, b"afterwards") == [WCStatus.SUCCESS]


def test_a_reset_card_starts_anew_and_a_dead_one_is_gone(adapters: RealAdapters) -> None:
    context = adapters.attach(0)
    with ServicePort(adapters.directory / "0.svc") as port:
        assert port.inject("reset")["fault"] == "reset"
        with pytest.raises(DeviceGone):
            context.query_port(1)
        assert inspected(adapters, 0)["qps"] == [], "the firmware alone"
        adapters.attach(0, incarnation=2)
        with contextlib.suppress(DeviceGone):
            port.inject("die")
        wait_until(lambda: _ended(adapters.pids[0]), "its end")
        with pytest.raises(DeviceGone, match=r"ended|does not answer"):
            port.faults()
    with pytest.raises(DeviceGone, match="no adapter listens"):
        ServicePort(adapters.directory / "0.svc")


def _ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_nonsense_at_the_service_port_gets_a_sentence_or_the_door(adapters: RealAdapters) -> None:
    adapters.attach(0)
    channel = knock(adapters, "svc")
    for request, words in (
        ({"op": "explode"}, "no request 'explode'; there are inject, heal and faults"),
        ({"op": "inject", "fault": "hang", "parameters": [1]}, "parameters: expected an object"),
        ({"op": "heal", "number": -1}, "number: expected a whole number, found -1"),
        ({"op": "inject", "fault": "hang", "seed": True}, "expected a whole number, found True"),
    ):
        told = answer(channel, dict(request))
        assert told is not None and words in str(told["message"])
    assert (answer(channel, {"op": "explode"}) or {})["errno"] == EOPNOTSUPP
    channel.send(b"\xff no JSON")
    assert channel.recv(100) == b"", "who speaks no JSON is shown out"
    channel.close()
    with ServicePort(adapters.directory / "0.svc") as port:
        assert port.faults() == []


def test_the_oldest_of_too_many_at_the_service_port_makes_room(adapters: RealAdapters) -> None:
    adapters.attach(0)
    ports = []
    for _ in range(CONNECTIONS_MAX + 1):
        ports.append(ServicePort(adapters.directory / "0.svc"))
        assert ports[-1].faults() == []
    with pytest.raises(DeviceGone, match=r"ended|does not answer"):
        ports[0].faults()
    assert ports[-1].faults() == []
    for port in ports:
        port.close()


def test_a_stranger_who_finds_the_door_is_told_and_injects_nothing(adapters: RealAdapters) -> None:
    """The socket's mode keeps strangers out; should somebody open it, the adapter looks itself."""
    adapters.attach(0)
    adapters.directory.chmod(0o711)
    (adapters.directory / "0.svc").chmod(0o666)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(adapters.directory)  # its parents let nobody through
            os.setuid(STRANGER)
            ServicePort("0.svc").inject("die")
        except RDMAError as error:
            os._exit(TOLD if f"user {STRANGER} may not inject faults here" in str(error) else 1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == TOLD
    with ServicePort(adapters.directory / "0.svc") as port:
        assert port.faults() == []


def test_a_host_hears_of_the_death_of_its_adapter_wherever_it_waits(adapters: RealAdapters) -> None:
    context = adapters.attach(0)
    device = context.device
    assert isinstance(device, SocketDevice)
    with ServicePort(adapters.directory / "0.svc") as port, contextlib.suppress(DeviceGone):
        port.inject("die")
    assert select.select([device.async_fd], [], [], DEADLINE_S)[0], "it is told"
    for ask in (lambda: context.query_port(1), device.answers):
        with pytest.raises(DeviceGone):
            ask()


def test_a_boot_without_a_number_is_refused(adapters: RealAdapters) -> None:
    knock(adapters, "sock").close()
    device = SocketDevice(str(adapters.directory / "0.sock"))
    with pytest.raises(RDMAError, match="no incarnation: -1"):
        device.attach(-1)
    device.attach(1)
    device.close()
    with pytest.raises(DeviceGone, match="is dead"):
        device.call({"op": "query_port"}, [])


def test_news_do_not_end_a_wait_for_a_bell_and_the_death_of_the_card_does(adapters: RealAdapters) -> None:
    device = adapters.attach(0).device
    assert isinstance(device, SocketDevice)
    bell = Memory.bell()
    adapters.cable.right.set_up("right0", False)

    def told() -> bool:
        assert not device.wait(bell, 20), "nobody has rung"
        return bool(select.select([device.async_fd], [], [], 0)[0])

    wait_until(told, "the carrier's end is told")
    assert not device.wait(bell, 20)
    bell.ring()
    assert device.wait(bell, TIMEOUT_MS)
    assert EventType.PORT_ERR in [event.event_type for event in device.take_events()]
    with ServicePort(adapters.directory / "0.svc") as port, contextlib.suppress(DeviceGone):
        port.inject("die")
    for _ in range(2):
        with pytest.raises(DeviceGone, match="is dead"):
            device.wait(bell, TIMEOUT_MS)
    bell.close()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"adapter_index": "first"}, ValueError, "expected a number, got 'first'"),
        ({"interface": "nowhere0"}, process.PortMissing, "nowhere0"),
        ({"owner_pid": 1}, ProcessLookupError, "the owner ended before its adapter began"),
    ],
)
def test_a_configuration_that_cannot_be_had_is_told(
    adapters: RealAdapters, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    adapters.attach(0)
    config: dict[str, object] = {
        "node_id": 1, "adapter_index": 0, "interface": "lo", "address": "10.77.0.9", "wire": "packet", "control":
        str(adapters.directory / "x.sock"), "node_memory": str(adapters.directory / "x.mem"), "cluster_key": "k",
    }  # fmt: skip
    with adapters.cable.left.entered(), pytest.raises(error, match=words):
        process.main({**config, **changes})
