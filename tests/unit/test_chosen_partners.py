"""`partners:` of a topology: which clients have sessions with whom, and every way of saying it wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.drawing import draw
from lab.errors import InputError
from lab.plan import Plan
from lab.schema import topology_schema
from lab.sessions import expected_sessions
from lab.topology import Topology

HEAD = """name: four
defaults: {adapters: [p], nvram: 1MiB, clients: [nvram-mirror, echo]%s}
nodes:
"""
TAIL = """switches: [s]
cables: {ca: [a.p, s], cb: [b.p, s], cc: [c.p, s], cd: [d.p, s]}
"""


def four(defaults: str = "", **nodes: str) -> str:
    """Four nodes at one switch; `nodes` by name: what follows in their line, `defaults` likewise."""
    lines = [f"  {name}: {{{nodes.get(name, '')}}}\n" for name in "abcd"]
    return HEAD % (f", {defaults}" if defaults else "") + "".join(lines) + TAIL


PAIRS = four(
    a="partners: {nvram-mirror: [b], echo: all}", b="partners: {nvram-mirror: [a]}",
    c="partners: {nvram-mirror: [d]}", d="partners: {nvram-mirror: [c]}",
)  # fmt: skip


def sessions(text: str) -> dict[str, set[str]]:
    """By client the sessions that are expected, as "ab": of a with b."""
    plan = Plan(Topology.parse(text))
    names = {number: name for name, number in plan.node_ids.items()}
    found: dict[str, set[str]] = {}
    for session in expected_sessions(plan):
        client = plan.topology.client_names[session.client - 1]
        found.setdefault(client, set()).add(names[session.node] + names[session.partner])
    return found


ALL_TWELVE = {one + other for one in "abcd" for other in "abcd" if one != other}


def test_without_a_word_every_client_has_sessions_with_every_partner() -> None:
    assert sessions(four()) == {
        "echo": ALL_TWELVE,
        "nvram-mirror": {"ab", "ba", "bc", "cb", "cd", "dc", "da", "ad"},
    }
    hosts = [Plan(Topology.parse(four())).host_config(node, Path()) for node in "abcd"]
    assert [host["client_partners"] for host in hosts] == [{}, {}, {}, {}]


def test_two_pairs_that_mirror_to_each_other_and_echo_to_all() -> None:
    assert sessions(PAIRS) == {"echo": ALL_TWELVE, "nvram-mirror": {"ab", "ba", "cd", "dc"}}
    plan = Plan(Topology.parse(PAIRS))
    told = {node: plan.host_config(node, Path())["client_partners"] for node in "abcd"}
    assert told == {
        "a": {"nvram-mirror": [2]}, "b": {"nvram-mirror": [1]}, "c": {"nvram-mirror": [4]}, "d": {"nvram-mirror": [3]}
    }  # fmt: skip


def test_who_takes_all_goes_along_with_those_who_choose() -> None:
    """c and d say nothing: a and b have chosen each other, so the rest is theirs."""
    text = four(a="partners: {nvram-mirror: [b], echo: [c]}", b="partners: {nvram-mirror: [a]}")
    assert sessions(text) == {
        "nvram-mirror": {"ab", "ba", "cd", "dc"},
        "echo": ALL_TWELVE - {"ab", "ba", "ad", "da"},
    }


def test_a_default_holds_for_nodes_that_say_nothing_else() -> None:
    """A star: everybody echoes with the hub alone, and the hub with all."""
    text = four("partners: {echo: [a]}", a="partners: {echo: all}")
    assert sessions(text)["echo"] == {"ab", "ba", "ac", "ca", "ad", "da"}
    text = four("partners: {echo: [a]}", a="partners: {echo: all}", c="clients: [nvram-mirror]")
    assert sessions(text)["echo"] == {"ab", "ba", "ad", "da"}, "of a client that a node doesn't run nothing is meant"


def test_the_ring_of_mirrors_can_be_given_by_neighbours() -> None:
    text = four(
        a="partners: {nvram-mirror: [b, d]}", b="partners: {nvram-mirror: [a, c]}",
        c="partners: {nvram-mirror: [b, d]}", d="partners: {nvram-mirror: [c, a]}",
    )  # fmt: skip
    assert sessions(text)["nvram-mirror"] == sessions(four())["nvram-mirror"]


def test_the_drawing_says_with_whom() -> None:
    assert "nvram-mirror (b), echo" in draw(Topology.parse(PAIRS))


def test_editors_are_told() -> None:
    schema: Any = topology_schema()
    entry = schema["$defs"]["NodeModel"]["properties"]["partners"]
    assert entry["additionalProperties"]["anyOf"][0] == {"const": "all"}
    assert entry["additionalProperties"]["anyOf"][1]["minItems"] == 1


WRONG = {
    "a client that nobody knows": (
        four(a="partners: {echoo: [b]}"), '4:18: unknown client "echoo" (did you mean echo?)',
    ),
    "a client that nobody knows, in defaults": (
        four("partners: {mirror: all}"), '2:82: unknown client "mirror" (did you mean nvram-mirror?)',
    ),
    "a client that the node doesn't run": (
        four(a="clients: [echo], partners: {nvram-mirror: [b]}"),
        "4:35: node a does not run nvram-mirror; it runs: echo",
    ),
    "a node that is not there": (
        four(a="partners: {echo: [b, e]}"), '4:28: echo: no node "e" (nodes: a, b, c, d)',
    ),
    "a node twice": (four(a="partners: {echo: [b, b]}"), '4:28: echo: node "b" is there twice'),
    "the node itself": (
        four(a="partners: {echo: [b, a]}"),
        "4:28: echo: expected partners of a, found a itself (partners: b, c, d)",
    ),
    "the node itself, by the defaults": (
        four("partners: {echo: [a]}"),
        "2:89: echo: expected partners of a, found a itself (partners: b, c, d); give a partners of its own",
    ),
    "nobody": (
        four(a="partners: {echo: []}"),
        "4:24: echo: expected all or a list of nodes, found an empty list (a client that is to have no session is left "
        "out of clients)",
    ),
    "a bare name": (
        four(a="partners: {echo: b}"),
        '4:24: echo: expected all or a list of nodes, found "b"; a single node is written [b]',
    ),
    "a misspelt all": (
        four(a="partners: {echo: al}"),
        '4:24: echo: expected all or a list of nodes, found "al" (did you mean all?); a single node is written [al]',
    ),
    "a number": (four(a="partners: {echo: 2}"), "4:24: echo: expected all or a list of nodes, found 2"),
    "a number in the list": (four(a="partners: {echo: [b, 2]}"), "4:24: echo: expected names of nodes, found 2"),
    "no mapping": (four(a="partners: [b]"), "4:17: partners: expected a mapping of keys and values, found a list"),
    "one side only": (
        four(a="partners: {echo: [b]}", b="partners: {echo: [c]}"),
        "4:25: echo: a names b, but b names c only: a session needs both (add a there, or leave b out here)",
    ),
    "a partner that doesn't run it": (
        four(a="partners: {echo: [b]}", b="clients: [nvram-mirror]"),
        "4:25: echo: node b does not run it; it runs: nvram-mirror",
    ),
    "no cable": (
        PAIRS.replace("[b.p, s]", "[b.p, t]").replace("[d.p, s]", "[d.p, t]").replace("[s]", "[s, t]"),
        "4:33: nvram-mirror: no cable leads from a to b (partners: c)",
    ),
    "mirrors that are no ring": (
        four(a="partners: {nvram-mirror: [b]}", c="partners: {nvram-mirror: [b, d]}"),
        "4:18: nvram-mirror: d would mirror to b, which mirrors a; ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_place(case: str) -> None:
    text, expected = WRONG[case]
    with pytest.raises(InputError) as error:
        Topology.parse(text, "f.yaml")
    if expected.endswith("; "):
        assert str(error.value).startswith(f"f.yaml:{expected}")
    else:
        assert str(error.value).splitlines()[0] == f"f.yaml:{expected}"
