"""`lab capture` in a lab that stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from lab.cli import main
from lab.errors import EXIT_INPUT, EXIT_PASS
from lab.fabric.client import Fabric
from lab.fabric.readiness import boot_and_wait
from lab.plan import Plan
from lab.topology import Topology

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    plan = Plan(Topology.load("ha-pair"))
    with Fabric.start(plan) as running:
        assert not boot_and_wait(running, plan)
        yield running


def test_frames_of_a_cable_go_to_the_file(fabric: Fabric, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ic0.pcapng"
    assert main(["capture", fabric.lab_id, "ic0", "-o", str(file), "--seconds", "0.5"]) == EXIT_PASS
    frames = sum(1 for _ in RawPcapNgReader(str(file)))
    assert frames > 10
    assert f"{file}: {frames} frames\n" in capsys.readouterr().err


def test_what_vanishes_in_a_blackhole_is_seen_all_the_same(fabric: Fabric, tmp_path: Path) -> None:
    file = tmp_path / "ic1.pcapng"
    fabric.blackhole("ic1")
    try:
        assert main(["capture", fabric.lab_id, "ic1", "-o", str(file), "--seconds", "0.5"]) == EXIT_PASS
    finally:
        fabric.unblackhole("ic1")
    assert sum(1 for _ in RawPcapNgReader(str(file))) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["icO", "-o", "x.pcapng"], 'no cable "icO" (did you mean'),
        (["ic0", "-o", "/nowhere/x.pcapng"], "/nowhere/x.pcapng: can't be written: No such file or directory"),
        (["ic0", "-o", "x.pcapng", "--seconds", "0"], "--seconds: expected more than 0, found 0"),
    ],
)
def test_wrong_arguments_are_told(
    fabric: Fabric, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capture", fabric.lab_id, *arguments]) == EXIT_INPUT
    assert message in capsys.readouterr().err


def test_the_simulator_has_nothing_to_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "cable-cut", "--world", "sim", "--capture", "--report", str(tmp_path)]
    assert main(command) == EXIT_INPUT
    assert "the simulator has no real frames" in capsys.readouterr().err
