"""Partners removed and added by control requests to real hosts on real adapters: nothing is left of who has gone."""

from __future__ import annotations

import pytest

from ccm.history import Kind
from emul.clock import MILLISECOND, SECOND
from tests.unit.ccm_hosts import TwoHosts

CLIENTS = ("nvram-mirror", "echo", "failover-monitor")


def running() -> TwoHosts:
    world = TwoHosts(named=CLIENTS)
    world.boot()
    assert world.run(2 * SECOND, lambda: ready(world) == 6)
    return world


def ready(world: TwoHosts) -> int:
    return sum(len(world.history(node, Kind.READY_ALERT)) for node in range(2))


def ask(world: TwoHosts, node: int, op: str, **more: object) -> dict[str, object]:
    return world.host(node).control({"op": op, **more}, world.now)


def partner(world: TwoHosts, node: int) -> dict[str, object]:
    """What `node` is told of its partner."""
    (only,) = world._config(node)["partners"]
    return only


def remove(world: TwoHosts, *nodes: int) -> None:
    for node in nodes:
        assert ask(world, node, "partner.remove", partner="ab"[1 - node]) == {"ok": True}
    assert world.run(2 * SECOND, lambda: not any(world.host(node).driver.partners for node in nodes))


def test_a_removed_partner_leaves_nothing_behind_and_returns_with_new_epochs():
    world = running()
    epochs = {(e.node, e.client): e.epoch for node in range(2) for e in world.history(node, Kind.READY_ALERT)}
    remove(world, 0, 1)
    world.run(100 * MILLISECOND)
    for node in range(2):
        kinds = [e.kind for e in world.history(node, Kind.SESSION_CLOSED, Kind.ERROR_ALERT)]
        assert kinds == [Kind.SESSION_CLOSED] * 3
        for held in ask(world, node, "resources")["verbs"]:
            left = {what: count for what, count in held.items() if count and what not in ("pd", "pds", "cq", "cqs")}
            assert not left, f"node {node} still holds {left}"
        assert ask(world, node, "status")["partners"] == {}
    for node in range(2):
        assert ask(world, node, "partner.add", partner=partner(world, node)) == {"ok": True}
    assert world.run(3 * SECOND, lambda: ready(world) == 12)
    for node in range(2):
        again = world.history(node, Kind.READY_ALERT)[3:]
        assert all(e.epoch > epochs[e.node, e.client] for e in again)


def test_work_flows_again_with_a_partner_that_was_away():
    world = running()
    remove(world, 0)
    assert ask(world, 0, "partner.add", partner=partner(world, 0)) == {"ok": True}
    assert world.run(3 * SECOND, lambda: ready(world) == 12)
    ask(world, 0, "workload.start", client="nvram-mirror", record=4096, depth=4)
    assert world.run(SECOND, lambda: len(world.history(0, Kind.COMMITTED)) > 20)


def test_the_heartbeat_of_the_host_goes_on_without_partners():
    world = running()
    remove(world, 0, 1)
    beats = world.memories[0].status.heartbeat
    world.run(100 * MILLISECOND)
    assert world.memories[0].status.heartbeat > beats


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "node id 2, name 'b': b has node id 2"),
        ({"name": "c"}, "node id 2, name 'c': b has node id 2"),
        ({"id": 3}, "node id 3, name 'b': b has node id 2"),
        ({"id": 1, "name": "c"}, "this node is a with node id 1"),
        ({"id": 0, "name": "c"}, "an id of 1 ... 511"),
        ({"id": 3, "name": "c", "paths": []}, "expected paths 0 ... 7 of adapters 0 ... 1"),
        ({"id": 3, "name": "c", "paths": [{"index": 0, "adapter": 9, "remote": "10.77.0.3"}]}, "found (PathConfig("),
        ({"id": "x", "name": "c"}, "expected name, id and paths"),
        ({"id": 3, "name": "c", "paths": [{"index": 0}]}, "expected name, id and paths"),
    ],
)
def test_what_can_t_be_a_partner_is_refused_with_the_reason_and_changes_nothing(change, expected):
    world = running()
    reply = ask(world, 0, "partner.add", partner={**partner(world, 0), **change})
    assert expected in str(reply.get("error")), reply
    assert list(ask(world, 0, "status")["partners"]) == ["b"]


def test_who_is_leaving_can_t_be_added_yet_and_a_stranger_can_t_be_removed():
    world = running()
    assert ask(world, 0, "partner.remove", partner="b") == {"ok": True}
    assert "is leaving" in str(ask(world, 0, "partner.add", partner=partner(world, 0))["error"])
    assert "unknown partner 'x', expected one of b" in str(ask(world, 0, "partner.remove", partner="x")["error"])
    assert "expected the name of a partner" in str(ask(world, 0, "partner.remove")["error"])
    assert "expected an object, found None" in str(ask(world, 0, "partner.add")["error"])
