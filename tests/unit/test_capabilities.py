"""What a test needs and the machine doesn't have: left out by name, or a failure where LAB_REQUIRE names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STORY = "import pytest\n\n@pytest.mark.needs_vagrant\ndef test_a_machine(): pass\n\ndef test_b(): pass\n"


def outcome(tmp_path: Path, require: str) -> tuple[int, str]:
    """Runs STORY on a machine without any program; the exit status and what pytest told."""
    (tmp_path / "test_story.py").write_text(STORY)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    environment = {**os.environ, "PATH": str(tmp_path), "LAB_REQUIRE": require, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return result.returncode, result.stdout + result.stderr


def test_what_is_missing_is_left_out_and_listed(tmp_path: Path) -> None:
    status, told = outcome(tmp_path, "")
    assert status == 0
    assert "test_story.py: 1 (needs vagrant)" in told
    assert told.splitlines()[-1].startswith("1 passed, 1 skipped")


def test_what_is_required_and_missing_fails(tmp_path: Path) -> None:
    status, told = outcome(tmp_path, "vagrant")
    assert status == 1
    assert "LAB_REQUIRE asks for vagrant: needs vagrant" in told


def test_a_misspelt_requirement_is_refused(tmp_path: Path) -> None:
    status, told = outcome(tmp_path, "vagrnt")
    assert status == 4
    assert "LAB_REQUIRE: unknown vagrnt" in told
