"""Captures as files: what others and this lab write is read, what is broken is told; and `lab analyze` on them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapWriter

from lab import cli
from lab.capture import pcapng
from lab.wire.capture_file import read_capture
from tests.helpers.tap import Tap, Weather
from tests.helpers.traffic import Traffic
from tests.helpers.wire_story import MTU, Story

P = 100


def story() -> Story:
    return Story().ask("SEND", P, 4).answer("ACK", P, 1).ask("WRITE", P + 1, 8).answer("ACK", P + 1, 2)


def ours(frames: list[tuple[int, bytes]], *, lost: int = 0, application: str = "ccm-lab") -> bytes:
    """As `lab capture` writes it."""
    blocks = [pcapng.section(application, ["cable ic0"]), pcapng.interface("ic0-0", "sent by a.ic0")]
    blocks += [pcapng.packet(0, at, frame, len(frame), ["dropped"]) for at, frame in frames]
    return b"".join([*blocks, pcapng.statistics(0, 0, len(frames), lost)])


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_a_capture_of_the_lab_is_read_with_time_comments_and_what_it_missed() -> None:
    capture = read_capture(ours(story().frames, lost=3))
    assert [(each.at, each.frame) for each in capture.frames] == story().frames
    assert (capture.at_senders, capture.lost, capture.frames[0].comments) == (True, 3, ("dropped",))
    assert not read_capture(ours([], application="Wireshark")).at_senders


@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_of_either_byte_order_and_resolution_is_read(tmp_path: Path, nano: bool, order: str) -> None:
    file = tmp_path / "one.pcap"
    with PcapWriter(str(file), nano=nano, endianness=order) as writer:
        for at, frame in story().frames:
            packet = Ether(frame)
            packet.time = at / 1e9
            writer.write(packet)
    capture = read_capture(file.read_bytes())
    assert [each.frame for each in capture.frames] == [frame for _, frame in story().frames]
    assert abs(capture.frames[0].at - story().frames[0][0]) < 1000
    assert not capture.at_senders


def test_pcapng_of_scapy_is_read(tmp_path: Path) -> None:
    file = tmp_path / "one.pcapng"
    with PcapNgWriter(str(file)) as writer:
        for _, frame in story().frames:
            writer.write(Ether(frame))
    assert [each.frame for each in read_capture(file.read_bytes()).frames] == [frame for _, frame in story().frames]


def test_big_endian_binary_resolution_and_simple_packets_are_read() -> None:
    def block(kind: int, body: bytes) -> bytes:
        return struct.pack(">II", kind, len(body) + 12) + body + struct.pack(">I", len(body) + 12)

    head = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    interface = block(1, struct.pack(">HHI", 1, 0, 0) + struct.pack(">HHB3xHH", 9, 1, 0x80 | 10, 0, 0))
    packet = block(6, struct.pack(">IIIII", 0, 0, 2048, 4, 4) + b"abcd")
    simple = block(3, struct.pack(">I", 4) + b"efgh")
    capture = read_capture(head + interface + packet + simple + block(0xBAD, b""))
    assert [(each.at, each.frame) for each in capture.frames] == [(2_000_000_000, b"abcd"), (0, b"efgh")]


def test_a_file_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    data = ours(story().frames)
    assert len(read_capture(data[: len(data) - 100]).frames) == 3
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    assert read_capture(head + struct.pack("<IIII", 0, 0, 9, 9) + b"short").frames == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "found nothing"),
        (b"PK\\3\\4" + bytes(40), "expected a pcap or pcapng file"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 113), "found link type 113"),
        (pcapng.section("x") + struct.pack("<IIHHII", 1, 20, 228, 0, 0, 20), "found link type 228"),
        (pcapng.section("x") + pcapng.packet(0, 0, b"", 0), "names interface 0, the file describes 0"),
    ],
)
def test_what_is_no_capture_is_told(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_capture(data)


def test_a_file_with_too_many_frames_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.wire.capture_file.FRAMES_MAX", 3)
    with pytest.raises(ValueError, match="at most 3 frames"):
        read_capture(ours(story().frames))


# -- lab analyze ------------------------------------------------------------------------------------------------------


def test_a_good_capture_is_told_in_a_few_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "good.pcapng", ours(story().frames))
    assert cli.main(["analyze", file, "--from-start"]) == 0
    told = capsys.readouterr().out
    assert "4 frames, 4 RoCEv2 packets, captured at the senders" in told
    assert "10.77.0.1 QP 0x11 <-> 10.77.0.2 QP 0x22: 4 packets, 0 sent again, 0 PSN wraps" in told
    assert "not exercised: " in told
    assert told.endswith("no findings\n")


def test_a_bad_one_names_frame_connection_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = story().ask("SEND", P + 3, 4).answer("ACK", P + 3, 3).frames
    file = written(tmp_path / "bad.pcapng", ours(frames))
    assert cli.main(["analyze", file, "--from-start"]) == 1
    told = capsys.readouterr().out
    assert "frame 5 at 0.001040 s, 10.77.0.1 QP 0x11 <-> 10.77.0.2 QP 0x22: request.psn" in told
    assert "expected PSN 102, or a step back to PSN 102 at the latest, found PSN 103" in told
    assert cli.main(["analyze", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == []
    assert cli.main(["analyze", file, "--json", "--from-start"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(each["frame"], each["rule"]) for each in found["findings"]] == [(5, "request.psn"), (6, "ack.seen")]
    assert found["connections"][0]["packets"] == 6


def test_many_findings_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = Story()
    for number in range(60):
        frames.ask("SEND", P + number, 4, ack=False)
    assert cli.main(["analyze", written(tmp_path / "bad.pcapng", ours(frames.frames))]) == 1
    assert "... and 10 more\n" in capsys.readouterr().out


def test_missing_frames_and_one_direction_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "holes.pcapng", ours(story().frames, lost=1000))
    assert cli.main(["analyze", file]) == 0
    told = capsys.readouterr().out
    assert "1,000 frames are missing" in told
    assert "one direction only" in told


def test_without_packets_nothing_is_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", written(tmp_path / "empty.pcapng", ours([]))]) == 4


def test_what_the_capture_cant_tell_is_taken_from_the_caller(tmp_path: Path) -> None:
    asked = Story().ask("READ", P, length=2 * MTU).ask("SEND", P + 2, 4).answer("ACK", P + 9, 1)
    file = written(tmp_path / "reads.pcapng", ours(asked.frames))
    assert cli.main(["analyze", file, "--from-start"]) == 0
    assert cli.main(["analyze", file, "--from-start", "--mtu", "1024"]) == 1
    hasty = story().ask("SEND", P + 2, 4).wait(1_000_000).ask("SEND", P + 2, 4)
    file = written(tmp_path / "hasty.pcapng", ours(hasty.frames))
    assert cli.main(["analyze", file, "--from-start"]) == 0
    assert cli.main(["analyze", file, "--from-start", "--timeout", "14"]) == 1
    refused = story()
    for _ in range(3):
        refused.ask("SEND", P + 2, 4).answer("ACK", P + 2, 2, 0x2C).wait(1_000_000)
    file = written(tmp_path / "refused.pcapng", ours(refused.frames))
    assert cli.main(["analyze", file, "--from-start", "--reordered"]) == 0
    assert cli.main(["analyze", file, "--from-start", "--rnr-retry", "1"]) == 1
    assert cli.main(["analyze", file, "--from-start", "--rnr-retry", "1", "--tap", "middle"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.pcap"], "nowhere.pcap: can't be read: No such file"),
        ([__file__], "expected a pcap or pcapng file"),
        (["x", "--mtu", "1500"], "--mtu: expected one of 256, 512, 1024, 2048, 4096, found 1500"),
        (["x", "--timeout", "32"], "--timeout: expected 1 to 31, found 32"),
        (["x", "--rnr-retry", "8"], "--rnr-retry: expected 0 to 7, found 8"),
    ],
)
def test_wrong_input_is_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_real_conversation_goes_through_a_file_unharmed(tmp_path: Path) -> None:
    tap: Tap = Traffic(5).play(Weather(5, lose=0.1)).tap
    assert cli.main(["analyze", written(tmp_path / "lossy.pcapng", ours(tap.sent)), "--from-start"]) == 0
