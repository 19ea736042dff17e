"""Which build of the hot modules a benchmark measures."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from emul import compiled
from lab.bench import benches, build
from lab.commands import bench


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The commands that would have been run; each of them ends as `EXIT` says."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, EXIT[0])

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv(compiled.PLAIN_VARIABLE, raising=False)
    compiled.is_current.cache_clear()
    EXIT[0] = 0
    yield commands
    compiled.is_current.cache_clear()


EXIT = [0]


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(compiled, "MANIFEST", compiled.Path(str(tmp_path)) / "none")


def test_the_benchmarks_of_the_hot_path_want_it_compiled() -> None:
    assert {name for name, each in benches().items() if each.compiled} >= {"latency", "throughput"}


@pytest.mark.usefixtures("nothing_built")
def test_what_is_not_compiled_is_compiled_once_and_measured_by_a_new_process(asked: list[list[str]]) -> None:
    assert bench._wants_other_build(False, True)
    assert [command[-1] for command in asked] == ["lab.compile"]


@pytest.mark.usefixtures("nothing_built")
def test_without_a_compiler_plain_python_is_measured_and_the_row_says_so(asked: list[list[str]]) -> None:
    EXIT[0] = 3
    assert not bench._wants_other_build(False, True)
    assert build() == "plain Python"


@pytest.mark.usefixtures("nothing_built")
def test_other_benchmarks_compile_nothing(asked: list[list[str]]) -> None:
    assert not bench._wants_other_build(False, False)
    assert asked == []


@pytest.mark.usefixtures("nothing_built")
def test_plain_python_can_be_asked_for(asked: list[list[str]]) -> None:
    assert not bench._wants_other_build(True, True)
    assert asked == []
