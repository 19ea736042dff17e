"""Guests, one at a time; a cable and an adapter for each wire; a clean start for each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.softroce.image import KERNELS
from tests.softroce.world import Peer, World

COMBINATIONS = [("6.12", "packet"), ("6.12", "xdp"), ("6.1", "packet"), ("newest", "packet")]


def _chosen() -> list[tuple[str, str]]:
    wanted = os.environ.get("LAB_SOFTROCE_KERNELS", ",".join(KERNELS)).split(",")
    unknown = sorted(set(wanted) - set(KERNELS))
    if unknown:
        raise pytest.UsageError(f"LAB_SOFTROCE_KERNELS: unknown {', '.join(unknown)} (known: {', '.join(KERNELS)})")
    return [each for each in COMBINATIONS if each[0] in wanted]


class Guests:
    """The guest that runs; asking for another kernel switches it off."""

    def __init__(self) -> None:
        self._kernel, self._peer = "", None

    def peer(self, kernel: str) -> Peer:
        if self._kernel != kernel:
            self.close()
            self._peer, self._kernel = Peer(kernel), kernel
        assert self._peer is not None
        return self._peer

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer, self._kernel = None, ""


@pytest.fixture(scope="session")
def guests() -> Iterator[Guests]:
    owner = Guests()
    yield owner
    owner.close()


@pytest.fixture(scope="session", params=_chosen(), ids="-".join)
def cable(request: pytest.FixtureRequest, guests: Guests) -> Iterator[World]:
    kernel, wire = request.param
    made = World(guests.peer(kernel), wire)
    yield made
    made.close()


@pytest.fixture
def world(cable: World) -> Iterator[World]:
    cable.new_test()
    yield cable
    sys.stdout.write(f"{cable.guest.release}, {cable.wire}; the last frames:\n{cable.middle.story()}\n")
    if cable.middle.failure is not None:
        raise cable.middle.failure
