"""perftest's options and columns, without a wire."""

from __future__ import annotations

import socket
import threading

import pytest

from emul import pingpong
from emul.errors import RDMAError
from emul.perftest import command, report
from emul.perftest.exchange import Exchange
from emul.perftest.options import Options, options_from
from emul.vocabulary import MTU

END = ["-d", "eth1", "--local", "10.77.0.1"]


def options(*arguments: str) -> Options:
    """As the command line gives them."""
    return options_from([*arguments, *END], "perftest")


def test_defaults_are_perftests() -> None:
    latency, bandwidth, atomic = options("send_lat"), options("write_bw", "host"), options("atomic_bw")
    assert (latency.sizes, latency.iters, latency.tx_depth, latency.port) == ((2,), 1000, 1, 18515)
    assert (bandwidth.sizes, bandwidth.iters, bandwidth.tx_depth, bandwidth.inline) == ((65_536,), 5000, 128, 0)
    assert (atomic.sizes, atomic.iters, atomic.atomic.value) == ((8,), 1000, "FETCH_AND_ADD")
    assert (latency.server, bandwidth.server) == (None, "host")


def test_sizes_and_mtus() -> None:
    assert options("read_bw", "-s", "4K").sizes == (4096,)
    assert options("read_bw", "-a").sizes == tuple(1 << power for power in range(1, 24))
    assert options("read_bw", "-m", "2048").mtu is MTU.MTU_2048


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("send_lat -b", "-b belongs to bandwidth"),
        ("send_lat -t 5", "-t 1"),
        ("send_bw -t 0", "-t must be 1"),
        ("send_bw -n 2", "-n must be 5"),
        ("send_bw -n 100 -D 5", "give one"),
        ("send_bw -a -D 5", "-D goes with one size"),
        ("write_lat -D 5", "-n instead of -D"),
        ("send_bw -a -s 5", "give one"),
        ("send_bw -s 9M", "-s must be 1"),
        ("atomic_bw -s 16", "an atomic has 8 bytes"),
        ("atomic_bw -A SWAP", "-A is FETCH_AND_ADD or CMP_AND_SWAP"),
        ("read_lat -I 20", "sends nothing inline"),
        ("send_lat -I 999", "-I must be 0"),
        ("send_lat -m 1000", "-m is 256, 512"),
        ("send_lat -q 4", "one queue pair"),
        ("send_lat -R -m 1024", "-m is not for -R"),
        ("send_lat -p 70000", "-p must be 1"),
        ("send_lat host --exchange unix:/x", "--exchange is the server's"),
    ],
)  # fmt: skip
def test_wrong_options_end_with_a_sentence(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*arguments.split(), *END]) == 2
    assert words in capsys.readouterr().err


def test_an_end_needs_an_interface_and_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["send_lat"]) == 2
    assert "-d eth1 --local 10.77.0.1" in capsys.readouterr().err
    assert pingpong.main([]) == 2
    assert "-d eth1 --local 10.77.0.1" in capsys.readouterr().err
    assert pingpong.main(["-l", "3", *END]) == 2
    assert "service level 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["sned_lat"])
    with pytest.raises(SystemExit):
        command.main(["send_bw", "-s", "many"])
    assert command.main(["send_lat", "--self-test", "--wire", "tin"]) == 1
    assert "--wire is one of" in capsys.readouterr().err


def test_rows_stand_under_their_heads() -> None:
    lat = options("send_lat")
    head, row = report.columns(lat), report.latency(2, [2000, 1000, 4000, 3000])
    assert head.split()[:5] == ["#bytes", "#iterations", "t_min[usec]", "t_max[usec]", "t_typical[usec]"]
    assert row.split()[:6] == ["2", "4", "1.00", "4.00", "3.00", "2.50"]
    bw = options("write_bw")
    assert report.columns(bw).endswith("BW average[MB/sec]   MsgRate[Mpps]")
    assert report.bandwidth(bw, 1 << 20, 10, 30.0, 20.0).split() == ["1048576", "10", "30.00", "20.00", "0.000020"]
    gbits = options("write_bw", "--report_gbits")
    assert "BW peak[Gb/sec]" in report.columns(gbits)
    assert report.bandwidth(gbits, 125_000_000, 10, 3.0, 2.0).split()[2:4] == ["3.00", "2.00"]
    timed = options("send_lat", "-D", "3")
    assert "tps average" in report.columns(timed)
    assert report.latency_of_duration(2, 10, 20_000_000, 2).split() == ["2", "10", "1000.00", "500.00"]


def test_the_heading_tells_what_is_measured() -> None:
    facts = {"qpn": 0x11, "psn": 5, "outs": 16, "rkey": 7, "vaddr": 0x7E00, "gid": "0000:" * 5 + "ffff:0a4d:0001"}
    atomic = options("atomic_bw", "-A", "CMP_AND_SWAP", "-b")
    assert "Atomic CMP_AND_SWAP Bidirectional BW Test" in report.header(atomic, 1024, "eth1", "packet")
    text = report.address("local", atomic, dict(facts))
    assert "OUT 0x10 RKey 0x000007 VAddr 0x0000000000007e00" in text
    assert text.endswith("00:00:00:00:00:00:00:00:00:00:255:255:10:77:00:01")
    assert "RKey" not in report.address("local", options("send_bw"), dict(facts))


def test_ends_find_each_other_over_tcp_and_refuse_nonsense() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    served: list[Exchange] = []
    thread = threading.Thread(target=lambda: served.append(Exchange.serve(f"127.0.0.1:{port}", 1, 5.0)))
    thread.start()
    client = Exchange.connect("127.0.0.1", port, 5.0)
    thread.join()
    (server,) = served
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(server.swap({"a": 1})))
    thread.start()
    assert client.swap({"b": 2}) == {"a": 1}
    thread.join()
    assert answers == [{"b": 2}]
    client._connection.sendall(b"hello\n")
    with pytest.raises(RDMAError, match="no perftest of this kind"):
        server.take()
    client.close()
    with pytest.raises(RDMAError, match="has ended"):
        server.take()
    server.close()


def test_an_exchange_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emul.perftest.exchange.CONNECT_TIMEOUT_S", 0.0)
    with pytest.raises(RDMAError, match="no server answers at unix:/nowhere/x"):
        Exchange.connect("unix:/nowhere/x", 1, 1.0)
    with pytest.raises(RDMAError, match="cannot listen at unix:/nowhere/x"):
        Exchange.serve("unix:/nowhere/x", 1, 1.0)
