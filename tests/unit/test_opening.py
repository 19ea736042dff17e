"""`emul.open_adapter` where no adapter comes to be: told, and nothing left behind."""

from __future__ import annotations

import sys
from errno import EINVAL, ENOENT, ETIMEDOUT
from pathlib import Path

import pytest

import emul
from emul.opening import OpenError, open_adapter


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an adapter's directory would be."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def refused(code: int, words: str, **options: float) -> None:
    with pytest.raises(OpenError, match=words) as caught:
        open_adapter("lo", "10.77.0.1", "packet", **options)  # type: ignore[arg-type]
    assert caught.value.errno == code


def test_a_process_that_is_not_ready_in_time_is_ended(place: Path) -> None:
    refused(ETIMEDOUT, "is not ready: it said nothing", ready_timeout_s=0.0)
    assert not list(place.iterdir())


def test_a_process_that_ends_before_it_is_ready_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    refused(EINVAL, "ended before it was ready: it said nothing")
    assert not list(place.iterdir())


def test_a_process_that_cannot_be_started_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    refused(ENOENT, "could not be started")
    assert not list(place.iterdir())


def test_an_address_that_is_none_and_an_interface_that_is_none_are_told(place: Path) -> None:
    with pytest.raises(OpenError, match="no such interface"):
        emul.open_adapter("nosuch0", "10.77.0.1", "packet")
    with pytest.raises(OpenError, match="interface names have 1 to 15"):
        emul.open_adapter("a name that is far too long", "10.77.0.1", "packet")
    assert not list(place.iterdir())
