"""The journal of real hosts: a manager of another process, another day, does the same again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.topology import Topology

pytestmark = pytest.mark.netns
RUN_TIMEOUT_S = 120


def test_a_journal_of_the_namespaces_is_replayed_to_the_same_actions(tmp_path: Path) -> None:
    source = Topology.load("ha-pair").source
    assert source is not None
    topology = tmp_path / "journalled.yaml"
    topology.write_text(f"{source.read_text(encoding='utf-8')}\njournal: true\n", encoding="utf-8")
    command = [sys.executable, "-m", "lab", "run", "cable-cut", "--topology", str(topology)]
    report = tmp_path / "report"
    ran = subprocess.run(
        [*command, "--report", str(report)], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    journals = sorted(report.glob("nodes/*/journal.log"))
    assert len(journals) == 2, ran.stderr
    again = [sys.executable, "-m", "ccm.journal", "replay", *map(str, journals)]
    done = subprocess.run(again, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the same actions") == 2
