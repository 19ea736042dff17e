"""`lab status`: what a manager says of itself after a fault, as a person and as a program see it."""

from __future__ import annotations

import json

from ccm import events as ev
from ccm.needs import Needs
from ccm.reasons import Reason
from emul.clock import MILLISECOND, SECOND
from lab.commands.status import age, mtu_word, render
from tests.unit.ccm_world import World


def after_a_cut_and_a_reboot() -> World:
    world = World(1)
    for node in world.hardware:
        world.boot(node)
    assert world.run(SECOND, world.all_ready)
    world.run(300 * MILLISECOND)
    world.crash(2)
    world.boot(2)
    assert world.run(SECOND, lambda: world.all_ready() and world.paths_up())
    world.cut_cable(1, 2, 0)
    world.run(40 * MILLISECOND)
    return world


def state_of(world: World) -> dict[str, object]:
    host = {"stage": "SERVING", "now_ns": world.now, "partners": world.hardware[1].manager.status()}
    entry = {"adapters": {"ic0": "running"}, "host": host, "error": None}
    return {"lab": "x", "topology": "ha-pair", "wire": "packet", "cables": [], "nodes": {"n1": entry}}


def test_paths_and_sessions_are_shown_with_states_ages_counts_and_last_errors() -> None:
    world = after_a_cut_and_a_reboot()
    text = render(state_of(world))
    [lost] = [line for line in text.splitlines() if "carrier lost" in line]
    assert "down" in lost and " ms " in lost and "2, carrier lost" in lost, text
    echo = next(line for line in text.splitlines() if " echo " in line)
    assert "ready" in echo and "1, partner rebooted" in echo, text


def test_a_pair_fits_80_columns_and_tells_which_adapter_a_path_uses() -> None:
    text = render(state_of(after_a_cut_and_a_reboot()))
    assert max(len(line) for line in text.splitlines()) <= 80, text
    assert next(line for line in text.splitlines() if line.startswith("n1 -> n2  0")).split()[4] == "ic0"


def test_needs_that_differ_are_told_with_both_figures() -> None:
    world = World(1)
    world.boot(2)
    world.needs = {"mirror": Needs(), "echo": Needs(message_bytes=512, depth=16, vis=2)}
    world.boot(1)
    world.run(300 * MILLISECOND)
    text = render(state_of(world))
    assert "waiting: vis 2 here, 1 there, depth 16 here, 64 there" in text
    assert next(line for line in text.splitlines() if " mirror " in line).split()[4] == "ready"


def test_a_session_that_the_partner_has_closed_says_so() -> None:
    world = after_a_cut_and_a_reboot()
    world.give(2, ev.ClientClosed(1, "echo"))
    world.run(300 * MILLISECOND)
    assert "waiting: closed by the partner" in render(state_of(world))


def test_a_refusal_is_shown_with_its_reason() -> None:
    world = World(1)
    world.versions = {1: (1, 1), 2: (2, 2)}
    for node in world.hardware:
        world.boot(node)
    world.run(300 * MILLISECOND)
    assert "no_common_version: we speak 1-1, n2 speaks 2-2" in render(state_of(world))


def test_the_same_for_programs_is_json_and_complete() -> None:
    world = after_a_cut_and_a_reboot()
    partner = json.loads(json.dumps(world.hardware[1].manager.status()))["n2"]
    path, session = partner["paths"][0], partner["sessions"][0]
    assert (path["state"], path["losses"], path["last_loss"]) == ("DOWN", 2, Reason.CARRIER_LOST.name)
    assert world.now - path["since_ns"] <= 40 * MILLISECOND
    assert (session["readies"], session["errors"], session["last_error"]) == (2, 1, Reason.PARTNER_REBOOTED.name)
    assert {"epoch", "since_ns", "reason", "routes", "state"} <= set(session)
    assert {"version", "refused", "last_refusal", "incarnation", "stage"} <= set(partner)


def test_ages_are_told_in_the_unit_that_suits() -> None:
    texts = [age(0, ms * 1_000_000) for ms in (5, 999, 1_000, 119_000, 120_000)]
    assert texts == ["5 ms", "999 ms", "1 s", "119 s", "2 min"]
    assert age(None, 5) == ""


def test_the_path_mtu_is_shown_with_the_one_of_which_packets_are_lost() -> None:
    assert mtu_word({"mtu": 2048, "mtu_lost": 0}) == ""
    assert mtu_word({"mtu": 1024, "mtu_lost": 2048}) == "1024 (2048 is lost)"
    world = after_a_cut_and_a_reboot()
    assert "MTU" not in render(state_of(world)), "only where there is something to tell"
    world.hardware[1].manager.peerings[2].paths.paths[0].mtu_lost = 4
    assert "MTU" in render(state_of(world)) and "(2048 is lost)" in render(state_of(world))
