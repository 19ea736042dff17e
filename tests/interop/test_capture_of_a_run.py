"""A capture of a real run, judged by tshark and scapy: nothing malformed, each ICRC right, the faults told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from scapy.contrib.roce import BTH
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader

from lab.api import run
from lab.scenario import Scenario

SCENARIO = """
scenario: captured
topology: ha-pair
workload: {nvram-mirror: {record: 4KiB, depth: 2, rate: 100/s}}
steps:
  - {on: {frame: {opcode: RDMA_WRITE_LAST, from: a, nth: 3}}, fault: cable.drop}
  - {at: 200ms, fault: cable.cut, target: ic1, for: 100ms}
expect:
  mirror.no_committed_loss: {}
"""
TSHARK_MAX_S = 120

pytestmark = [pytest.mark.alone, pytest.mark.netns, pytest.mark.needs_tshark]


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("captured")
    (directory / "captured.yaml").write_text(SCENARIO, encoding="utf-8")
    result = run(Scenario.load(directory / "captured.yaml"), report=directory / "run", capture=True)
    assert result.verdict == "pass", result.to_json()
    (judged,) = [check for check in result.checks if check.name == "wire.conformant"]
    assert judged.ok, judged.detail
    assert judged.exercised > 100
    return {file.stem: file for file in sorted((directory / "run" / "cables").glob("*.pcapng"))}


def tshark(file: Path, *arguments: str) -> list[str]:
    command = ["tshark", "-r", str(file), "--disable-protocol", "rpcordma", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TSHARK_MAX_S)
    return done.stdout.splitlines()


def test_both_cables_are_captured_and_tshark_finds_nothing_malformed(captures: dict[str, Path]) -> None:
    assert list(captures) == ["ic0", "ic1"]
    for file in captures.values():
        assert len(tshark(file, "-Y", "infiniband")) > 100
        assert tshark(file, "-Y", "_ws.malformed") == []
        assert tshark(file, "-Y", "!infiniband && !arp") == []


def test_scapy_computes_each_checksum_as_it_was_sent(captures: dict[str, Path]) -> None:
    for file in captures.values():
        checked = 0
        for data, _ in RawPcapNgReader(str(file)):
            frame = Ether(data)
            if BTH in frame:
                frame[BTH].icrc = None
                assert bytes(frame) == data, frame.show(dump=True)
                checked += 1
        assert checked > 100


def test_faults_are_comments_at_the_frames_that_they_concern(captures: dict[str, Path]) -> None:
    told = {name: commented(file) for name, file in captures.items()}
    dropped = [(text, about) for texts in told.values() for text, about in texts if "drop" in text]
    assert len(dropped) == 1
    assert dropped[0][0].startswith("fault 1: drop (match 3 from a)")
    assert "Write Last" in dropped[0][1]
    cut = [text for text, _ in told["ic1"] if "cable.cut" in text]
    assert "fault 2: cable.cut ic1" in cut[0]
    assert not [text for text, _ in told["ic0"] if "cable.cut" in text]


def commented(file: Path) -> list[tuple[str, str]]:
    """Comments, and what tshark says of the frame that has them."""
    fields = ("-Y", "frame.comment", "-T", "fields", "-e", "frame.comment", "-e", "_ws.col.Info")
    return [(text, about) for text, _, about in (line.partition("\t") for line in tshark(file, *fields))]
