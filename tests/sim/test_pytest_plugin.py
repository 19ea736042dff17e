"""The fixtures that come with the package, in a pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
from emul.clock import MILLISECOND, SECOND

def test_a_scenario_in_the_simulator(sim):
    assert sim("write-dropped").verdict == "pass"

def test_a_lab_by_hand(lab_factory):
    lab = lab_factory("ha-pair", world="sim")
    lab.wait_ready()
    lab.cables["ic0"].cut()
    lab.cables["ic1"].cut()
    assert lab.wait(lambda: not lab.ready(), SECOND)
    lab.heal()
    lab.wait_ready()
    lab.hosts["b"].crash()
    lab.wait(lambda: False, 50 * MILLISECOND)
    lab.hosts["b"].boot()
    assert lab.wait(lambda: not lab.ready(), SECOND)
    lab.wait_ready()

def test_that_fails(lab_seed):
    assert lab_seed == "shown"
"""


INSTALLED = """
import importlib.metadata as metadata
print(any(entry.value == "lab.pytest_plugin" for entry in metadata.entry_points(group="pytest11")))
"""


def test_fixtures_run_labs_and_a_failure_shows_its_seed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    asked = subprocess.run([sys.executable, "-c", INSTALLED], capture_output=True, text=True, cwd=ROOT, check=True)
    plugin = [] if asked.stdout.strip() == "True" else ["-p", "lab.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, "--lab-seed", "77"]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert "2 passed" in done.stdout, done.stdout
    assert "1 failed" in done.stdout, done.stdout
    assert "--lab-seed 77" in done.stdout, done.stdout
