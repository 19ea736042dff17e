"""Two and three managers in any order of faults, boots, opens and closes.

Hypothesis looks for the order that breaks them, and shrinks it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ccm import events as ev
from ccm.needs import Needs, client_key
from ccm.session import SessionState
from emul.clock import MILLISECOND, SECOND
from tests.unit.ccm_world import World, check_alerts

EXAMPLES = int(os.environ.get("LAB_STATEFUL_EXAMPLES", "25"))
CONVERGES_WITHIN = 10 * SECOND
PATHS = st.integers(0, 1)
NAMES = st.sampled_from(["mirror", "echo"])


class Managers(RuleBasedStateMachine):
    """`NODES` managers on two paths each."""

    NODES: tuple[int, ...] = (1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.closed: set[tuple[int, int, str]] = set()

    @initialize(seed=st.integers(1, 1000), late=st.booleans())
    def begin(self, seed: int, late: bool) -> None:
        self.world = World(seed, nodes=self.NODES)
        for node in self.NODES[late:]:
            self.world.boot(node)

    def nodes(self, draw: int) -> tuple[int, int]:
        """A pair of nodes."""
        pairs = [(a, b) for a in self.NODES for b in self.NODES if a != b]
        return pairs[draw % len(pairs)]

    @rule(ms=st.sampled_from([0, 1, 4, 20, 90, 400]), us=st.integers(0, 999))
    def time_passes(self, ms: int, us: int) -> None:
        self.world.run(ms * MILLISECOND + us * 1000)

    @rule(pair=st.integers(0, 5), path=PATHS)
    def cable_is_cut_or_plugged_in(self, pair: int, path: int) -> None:
        a, b = self.nodes(pair)
        if self.world.is_cut(a, b, path):
            self.world.restore_cable(a, b, path)
        else:
            self.world.cut_cable(a, b, path)

    @rule(pair=st.integers(0, 5), path=PATHS)
    def cable_falls_silent_or_speaks(self, pair: int, path: int) -> None:
        a, b = self.nodes(pair)
        self.world.silent ^= {(min(a, b), max(a, b), path)}

    @rule(pair=st.integers(0, 5))
    def host_crashes(self, pair: int) -> None:
        node, _ = self.nodes(pair)
        self.world.crash(node)
        self.closed = {entry for entry in self.closed if entry[0] != node}

    @rule(pair=st.integers(0, 5))
    def host_boots(self, pair: int) -> None:
        node, _ = self.nodes(pair)
        self.world.crash(node)
        self.closed = {entry for entry in self.closed if entry[0] != node}
        self.world.boot(node)

    @rule(pair=st.integers(0, 5))
    def partner_is_removed(self, pair: int) -> None:
        node, partner = self.nodes(pair)
        self.world.remove(node, partner)
        self.closed = {entry for entry in self.closed if entry[:2] != (node, partner)}

    @rule(pair=st.integers(0, 5))
    def partner_is_added(self, pair: int) -> None:
        self.world.add(*self.nodes(pair))

    def has(self, node: int, partner: int) -> bool:
        """Whether `node` runs and has `partner` as one."""
        manager = self.world.hardware[node].manager
        return manager is not None and partner in manager.peerings and not manager.peerings[partner].leaving

    @rule(pair=st.integers(0, 5), name=NAMES)
    def client_closes(self, pair: int, name: str) -> None:
        node, partner = self.nodes(pair)
        if self.has(node, partner):
            self.world.give(node, ev.ClientClosed(partner, name))
            self.closed.add((node, partner, name))

    @rule(pair=st.integers(0, 5), name=NAMES)
    def client_opens(self, pair: int, name: str) -> None:
        node, partner = self.nodes(pair)
        self.open(node, partner, name)

    @rule(pair=st.integers(0, 5), name=NAMES, path=PATHS, suspected=st.booleans())
    def virtual_interface_fails(self, pair: int, name: str, path: int, suspected: bool) -> None:
        node, partner = self.nodes(pair)
        if self.has(node, partner):
            epoch = self.world.session(node, partner, name).epoch
            self.world.give(node, ev.ViFailed(partner, path, client_key(name), epoch, suspected, "RNR_RETRY_EXC_ERR"))

    @precondition(lambda self: any(hw.manager for hw in self.world.hardware.values()))
    @invariant()
    def what_is_closed_holds_nothing(self) -> None:
        for node, hardware in self.world.hardware.items():
            for partner, peering in hardware.manager.peerings.items() if hardware.manager else ():
                for session in peering.sessions.sessions.values():
                    if session.state is SessionState.CLOSED:
                        held = [key for key in hardware.lanes if key[0] == partner and key[2] == session.client]
                        assert not held, f"node {node}: {session.name} is closed and holds {held}"

    def open(self, node: int, partner: int, name: str) -> None:
        if self.has(node, partner):
            self.world.give(node, ev.ClientOpened(partner, name, self.needs(name)))
            self.closed.discard((node, partner, name))

    def needs(self, name: str) -> Needs:
        return self.world.needs[name]

    def teardown(self) -> None:
        """No more faults: everything is ready again, with each alert once."""
        world = self.world
        if not world.log and not world._heap:
            return
        world.silent.clear()
        for a, b, path in sorted(world.cut):
            world.restore_cable(a, b, path)
        for node in self.NODES:
            if world.hardware[node].manager is None:
                world.boot(node)
        world.run(SECOND)  # who is leaving has left
        for node, partner in sorted(world.strangers):
            world.add(node, partner)
        for node, partner, name in sorted(self.closed):
            self.open(node, partner, name)
        ready = world.run(CONVERGES_WITHIN, lambda: world.all_ready() and world.paths_up())
        assert ready, f"does not converge: {world.describe()}"
        check_alerts(world)


class ThreeManagers(Managers):
    """Each with two partners."""

    NODES = (1, 2, 3)


OPTIONS = settings(
    max_examples=EXAMPLES, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestTwoManagers = Managers.TestCase
TestTwoManagers.settings = OPTIONS
TestThreeManagers = ThreeManagers.TestCase
TestThreeManagers.settings = OPTIONS
