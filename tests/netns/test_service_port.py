"""Hardware faults of adapter processes on a real cable: injected and undone at the service port, unknown to hosts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emul.control import SocketDevice
from emul.errors import DeviceGone, RDMAError
from emul.service_port import ServicePort
from emul.verbs import Context
from emul.vocabulary import WCStatus
from tests.helpers.network import wait_until
from tests.netns.test_adapter_process import RealAdapters, completed, write

pytestmark = [pytest.mark.netns, pytest.mark.root]


@pytest.fixture
def adapters(tmp_path: Path) -> Iterator[RealAdapters]:
    real = RealAdapters(tmp_path, "packet")
    yield real
    real.close()


def service(adapters: RealAdapters, index: int) -> ServicePort:
    return ServicePort(adapters.directory / f"{index}.svc")


def test_a_lost_completion_is_injected_counted_and_undone(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    with service(adapters, 0) as port:
        number = port.inject("cqe_lost", {"count": 1})["id"]
        a.mr.write(b"done", 4)
        a.qp.post_write(1, a.mr.buf, 4, a.mr.lkey, b.mr.buf, b.mr.rkey)
        wait_until(lambda: port.faults()[0]["fired"] == 1, "the fault fires")
        assert b.mr.read(4, 0) == b"done"
        assert a.statuses() == []
        assert [report["id"] for report in port.heal()] == [number]
        assert a.context.counters()["fault_cqe_lost"] == 1
    assert write(a, b, b"and again") == [WCStatus.SUCCESS]


def test_a_hung_card_answers_its_service_port_alone_and_verbs_when_it_goes_on(adapters: RealAdapters) -> None:
    a, b = adapters.parties()
    with service(adapters, 1) as port:
        port.inject("hang")
        a.mr.write(b"patience", 8)
        a.qp.post_write(1, a.mr.buf, 8, a.mr.lkey, b.mr.buf, b.mr.rkey)
        wait_until(lambda: port.faults()[0]["fired"] > 1, "frames are lost")
        answered: list[object] = []
        verb = threading.Thread(target=lambda: answered.append(b.context.query_port(1)))
        verb.start()
        port.heal()
    verb.join()
    assert len(answered) == 1
    assert completed(a) == [WCStatus.SUCCESS]
    assert b.mr.read(8, 0) == b"patience"


def test_a_host_gives_up_a_card_that_hangs_and_finds_it_again_without_waiting(adapters: RealAdapters) -> None:
    b = adapters.attach(1)
    with service(adapters, 1) as port:
        port.inject("hang")
        with pytest.raises(DeviceGone, match="does not answer"):
            b.query_port(1)
        device = SocketDevice(str(adapters.directory / "1.sock"))
        assert not device.answers()
        assert not device.answers()
        port.heal()
        wait_until(device.answers, "the card answers")
    again = Context(device)
    again.attach(1)
    assert again.query_port(1)
    again.close()


def test_a_reset_takes_the_hosts_things_and_the_next_attach_works(adapters: RealAdapters) -> None:
    _, b = adapters.parties()
    with service(adapters, 1) as port:
        port.inject("reset")
        with pytest.raises(DeviceGone):
            b.context.query_port(1)
        again = adapters.attach(1)
        assert not any(again.resources().values())
        contexts = adapters.attach(0), again
        a, b = adapters.parties(contexts=contexts)
        assert write(a, b, b"after the reset") == [WCStatus.SUCCESS]
        assert port.faults() == []


def test_wrong_requests_get_a_sentence(adapters: RealAdapters) -> None:
    adapters.attach(1)
    with service(adapters, 1) as port:
        for fault, parameters, message in (
            ("hnag", {}, "no hardware fault 'hnag' .did you mean 'hang'"),
            ("cqe_delay", {"delay": 3}, "no parameter 'delay' .did you mean 'delay_ns'"),
            ("reset", {"qp": 3}, "it takes none"),
        ):
            with pytest.raises(RDMAError, match=message):
                port.inject(fault, parameters)
        with pytest.raises(RDMAError, match="no fault 12"):
            port.heal(12)
        assert port.faults() == []


def test_a_host_cannot_inject_by_its_own_door(adapters: RealAdapters) -> None:
    adapters.attach(1).close()
    device = SocketDevice(str(adapters.directory / "1.sock"))
    device.attach(2)
    reply, _ = device.call({"op": "inject", "fault": "die"}, [])
    assert reply["message"] == "no verb named 'inject'"
    assert device.call({"op": "query_port"}, [])[0]["state"]
    device.close()


def test_a_stranger_is_not_heard(adapters: RealAdapters) -> None:
    adapters.attach(1)
    path = adapters.directory / "1.svc"
    for place in (path, *list(path.parents)[:3]):
        place.chmod(0o777)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            ServicePort(path).inject("die")
        except RDMAError as error:
            os._exit(7 if "may not inject" in str(error) or isinstance(error, DeviceGone) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with service(adapters, 1) as port:
        assert port.faults() == []
