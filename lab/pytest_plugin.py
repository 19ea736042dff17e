"""Labs and simulated runs as pytest fixtures; installed with the package.

    def test_a_cut_is_survived(sim):
        assert sim("cable-cut").verdict == "pass"

    def test_by_hand(lab_factory):
        lab = lab_factory("ha-pair")
        lab.wait_ready()
        lab.cables["ic0"].cut()

Each lab has names, namespaces and directories of its own, so that `pytest -n 8` is safe. The seed of a test stands in
its report; `--lab-seed` repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lab.api import Lab
    from lab.scenario import Scenario
    from lab.topology import Topology
    from lab.verdict import Result


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin."""
    group = parser.getgroup("lab")
    group.addoption("--lab-world", default="netns", help="world of lab_factory: netns (default), sim, docker")
    group.addoption("--lab-wire", default="auto", help="auto (default), xdp or packet")
    group.addoption("--lab-seed", type=int, default=None, help="seed of all labs and simulated runs")


@pytest.fixture
def lab_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test: `--lab-seed`, else a fresh one; shown in the report of a failing test."""
    from lab.api import fresh_seed

    given = request.config.getoption("--lab-seed")
    seed = fresh_seed() if given is None else int(given)
    request.node.add_report_section("setup", "lab", f"seed {seed}: repeat with --lab-seed {seed}")
    return seed


@pytest.fixture
def lab_factory(request: pytest.FixtureRequest, lab_seed: int) -> Iterator[Callable[..., Lab]]:
    """Starts labs: `lab_factory(topology, world=None, wire=None)`. All are taken down when the test ends."""
    from lab.api import Lab

    with ExitStack() as stack:

        def start(topology: Topology | str | Path, *, world: str | None = None, wire: str | None = None) -> Lab:
            config = request.config
            place = world or str(config.getoption("--lab-world"))
            frames = wire or str(config.getoption("--lab-wire"))
            return stack.enter_context(Lab(topology, world=place, wire=frames, seed=lab_seed))

        yield start


@pytest.fixture
def sim(lab_seed: int) -> Callable[..., Result]:
    """Runs a scenario in the simulator: `sim(scenario, seed=None, topology=None)` gives its Result."""
    from lab.api import run

    def play(scenario: Scenario | str | Path, *, seed: int | None = None, topology: Topology | None = None) -> Result:
        return run(scenario, topology=topology, world="sim", seed=lab_seed if seed is None else seed)

    return play
