"""Topology files: the two that ship, and every way of getting one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import InputError
from lab.topology import End, Topology

GOOD = """\
name: pair
nodes:
  a: {adapters: [ic0, ic1], nvram: 1MiB, clients: [nvram-mirror]}
  b: {adapters: [ic0, ic1], boot: {loader: 20ms, storage-os: 1s}}
cables:
  ic0: [a.ic0, b.ic0]
  ic1: {ends: [a.ic1, b.ic1], delay: 2ms, rate: 1gbit}
"""


def message(text: str) -> str:
    """What a user is told about `text`."""
    with pytest.raises(InputError) as error:
        Topology.parse(text, "f.yaml")
    return str(error.value)


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} is there {GOOD.count(old)} times"
    return GOOD.replace(old, new)


def test_a_good_file_becomes_values() -> None:
    topology = Topology.parse(GOOD)
    a, b = topology.nodes.values()
    assert (a.id, a.kind, a.adapters, a.nvram_bytes, a.clients) == (
        1,
        "netns",
        ("ic0", "ic1"),
        1 << 20,
        ("nvram-mirror",),
    )
    assert (b.id, b.nvram_bytes, b.clients) == (2, 16 << 20, ("nvram-mirror", "echo"))
    assert (b.boot.loader_ns, b.boot.kernel_ns, b.boot.storage_os_ns) == (20_000_000, 50_000_000, 1_000_000_000)
    assert topology.cables["ic0"].ends == (End("a", "ic0"), End("b", "ic0"))
    assert not topology.cables["ic0"].shaped
    assert (topology.cables["ic1"].delay_ns, topology.cables["ic1"].rate_bps) == (2_000_000, 10**9)


def test_defaults_hold_for_nodes_that_say_nothing_else() -> None:
    text = "name: x\ndefaults: {adapters: [p0], nvram: 1MiB, clients: []}\nnodes: {a: , b: {nvram: 2MiB}}\n"
    topology = Topology.parse(text)
    assert [(node.adapters, node.nvram_bytes, node.clients) for node in topology.nodes.values()] == [
        (("p0",), 1 << 20, ()),
        (("p0",), 2 << 20, ()),
    ]


def test_the_shipped_topologies() -> None:
    pair, quad = Topology.load("ha-pair"), Topology.load("quad-switched")
    assert (len(pair.nodes), len(pair.cables), len(pair.switches)) == (2, 2, 0)
    assert (len(quad.nodes), len(quad.cables), len(quad.switches)) == (4, 8, 2)
    assert all(len(node.adapters) == 2 for node in (*pair.nodes.values(), *quad.nodes.values()))


WRONG = {
    "missing node": (
        changed("[a.ic0, b.ic0]", "[a.ic0, c.ic0]"),
        'f.yaml:6:16: cable ic0: no node "c" (nodes: a, b)',
    ),
    "missing adapter": (
        changed("[a.ic0, b.ic0]", "[a.ic0, b.ic5]"),
        'f.yaml:6:16: cable ic0: node b has no adapter "ic5" (did you mean ic1?); it has ic0, ic1',
    ),
    "node without adapter": (
        changed("[a.ic0, b.ic0]", "[a.ic0, b]"),
        'f.yaml:6:16: cable ic0: expected NODE.ADAPTER or a switch, found "b"; node b has ic0, ic1',
    ),
    "missing switch": (
        changed("[a.ic0, b.ic0]", "[a.ic0, s0]"),
        'f.yaml:6:16: cable ic0: no switch "s0"; other ends are written NODE.ADAPTER',
    ),
    "one end": (changed("[a.ic0, b.ic0]", "[a.ic0]"), "f.yaml:6:8: cable ic0: expected two ends, found 1"),
    "three ends": (
        changed("ends: [a.ic1, b.ic1]", "ends: [a.ic1, b.ic1, b.ic0]"),
        "f.yaml:7:15: cable ic1: expected two ends, found 3",
    ),
    "no ends": (changed("ends: [a.ic1, b.ic1], ", ""), 'f.yaml:7:8: ic1: the key "ends" is missing'),
    "port used twice": (
        changed("[a.ic1, b.ic1]", "[a.ic0, b.ic1]"),
        "f.yaml:7:16: cable ic1: port a.ic0 is used by cable ic0 already",
    ),
    "cable from a node to itself": (
        changed("[a.ic0, b.ic0]", "[a.ic0, a.ic1]"),
        "f.yaml:6:16: cable ic0: expected ends at two different nodes or switches, found a twice",
    ),
    "bad size": (
        changed("nvram: 1MiB", "nvram: 16 parsecs"),
        'f.yaml:3:36: nvram: expected a size such as 16MiB (B, KiB, MiB, GiB, kB, MB, GB), found "16 parsecs"',
    ),
    "size without unit": (
        changed("nvram: 1MiB", "nvram: 1048576"),
        "f.yaml:3:36: nvram: expected a size such as 16MiB (B, KiB, MiB, GiB, kB, MB, GB), "
        "found 1048576 without a unit",
    ),
    "size out of bounds": (
        changed("nvram: 1MiB", "nvram: 4KiB"),
        "f.yaml:3:36: nvram: expected 64KiB to 4GiB, found 4KiB",
    ),
    "size that is no whole number of pages": (
        changed("nvram: 1MiB", "nvram: 100001B"),
        "f.yaml:3:36: nvram: expected a multiple of 8KiB (two halves of whole pages), found 100001B",
    ),
    "true for a size": (
        changed("nvram: 1MiB", "nvram: true"),
        "f.yaml:3:36: nvram: expected a size such as 16MiB (B, KiB, MiB, GiB, kB, MB, GB), found true",
    ),
    "unknown key in a node": (
        changed("nvram: 1MiB", "nvarm: 1MiB"),
        'f.yaml:3:29: unknown key "nvarm" (did you mean nvram?)',
    ),
    "unknown key at the top": (
        GOOD + "cabels: {}\n",
        'f.yaml:8:1: unknown key "cabels" (did you mean cables?)',
    ),
    "unknown key in a cable": (
        changed("delay: 2ms", "dellay: 2ms"),
        'f.yaml:7:31: unknown key "dellay" (did you mean delay?)',
    ),
    "unknown key near nothing": (
        changed("boot: {loader: 20ms", "boot: {zzz: 20ms"),
        'f.yaml:4:36: unknown key "zzz" (known: loader, kernel, storage-os)',
    ),
    "merge key": (changed("nvram: 1MiB", "<<: {}"), 'f.yaml:3:29: unknown key "<<" '),
    "duplicate node": (
        changed("  b: {adapters", "  a: {adapters"),
        'f.yaml:4:3: key "a" is there twice (first in line 3, column 3)',
    ),
    "duplicate adapter": (
        changed("{adapters: [ic0, ic1], boot", "{adapters: [ic0, ic0], boot"),
        'f.yaml:4:23: adapter "ic0" is there twice',
    ),
    "interface name too long": (
        changed("{adapters: [ic0, ic1], boot", "{adapters: [ic0, ic1, interconnect-two], boot"),
        'f.yaml:4:28: adapter name "interconnect-two" has 16 characters, the kernel\'s limit for interfaces is 15',
    ),
    "reserved interface name": (
        changed("{adapters: [ic0, ic1], boot", "{adapters: [ic0, ic1, lo], boot"),
        'f.yaml:4:28: adapter name "lo" is reserved by the kernel',
    ),
    "node name with odd characters": (
        GOOD.replace("  b: {", '  "b/../c": {'),
        'f.yaml:4:3: node name: expected letters, digits, - and _, beginning with a letter, found "b/../c"',
    ),
    "node name too long": (
        changed("  b: {", f"  {'b' * 33}: {{"),
        f'f.yaml:4:3: node name "{"b" * 33}" has 33 characters, at most 32',
    ),
    "cable name with a blank": (
        changed("  ic0: [a", "  'ic 0': [a"),
        'f.yaml:6:3: cable name: expected letters, digits, - and _, beginning with a letter, found "ic 0"',
    ),
    "unknown client": (
        changed("[nvram-mirror]", "[nvram-miror]"),
        'f.yaml:3:52: unknown client "nvram-miror" (did you mean nvram-mirror?)',
    ),
    "client twice": (changed("[nvram-mirror]", "[echo, echo]"), 'f.yaml:3:58: client "echo" is there twice'),
    "unknown kind": (
        changed("nvram: 1MiB", "kind: dokcer"),
        "f.yaml:3:35: kind: expected 'netns', 'docker' or 'vm', found \"dokcer\" (did you mean docker?)",
    ),
    "image without container": (
        changed("nvram: 1MiB", "image: debian"),
        "f.yaml:3:29: an image needs kind: docker or vm",
    ),
    "no adapters": (
        changed("{adapters: [ic0, ic1], boot", "{adapters: [], boot"),
        "f.yaml:4:17: adapters: expected at least one item, found an empty list",
    ),
    "adapters as a word": (
        changed("{adapters: [ic0, ic1], boot", "{adapters: ic0, boot"),
        'f.yaml:4:17: adapters: expected a list, found "ic0"',
    ),
    "adapter as a number": (
        changed("{adapters: [ic0, ic1], boot", "{adapters: [0, ic1], boot"),
        "f.yaml:4:18: adapters: expected text, found 0",
    ),
    "delay below the resolution": (
        changed("delay: 2ms", "delay: 10us"),
        "f.yaml:7:38: delay: expected at least 1ms (the resolution of a shaped cable), found 10us",
    ),
    "negative delay": (
        changed("delay: 2ms", "delay: -2ms"),
        'f.yaml:7:38: delay: expected a duration such as 500ms (ns, us, ms, s, min), found "-2ms", which is negative',
    ),
    "rate of nothing": (changed("rate: 1gbit", "rate: 0bit"), "f.yaml:7:49: rate: expected at least 1mbit, found 0bit"),
    "fraction of no core": (
        changed("nvram: 1MiB", "cpus: 0"),
        "f.yaml:3:35: cpus: expected a figure above 0, found 0",
    ),
    "too little memory": (
        changed("nvram: 1MiB", "memory: 1MiB"),
        "f.yaml:3:37: memory: expected at least 64MiB, found 1MiB",
    ),
    "no name": (changed("name: pair\n", ""), 'f.yaml:1:1: the key "name" is missing'),
    "no nodes": ("name: x\nnodes: {}\n", "f.yaml:2:8: nodes: expected at least one item, found an empty mapping"),
    "nodes as a list": (
        "name: x\nnodes: [a, b]\n",
        "f.yaml:2:8: nodes: expected a mapping of keys and values, found a list",
    ),
    "empty key": (
        "name: x\nnodes: {a: {clients: []}}\ncluster_key: ''\n",
        'f.yaml:3:14: cluster_key: expected at least one character, found ""',
    ),
    "switch named as a node": (GOOD + "switches: [a]\n", 'f.yaml:8:12: switch "a" has the name of a node'),
    "switch twice": (GOOD + "switches: [s, s]\n", 'f.yaml:8:15: switch "s" is there twice'),
    "loop of switches": (
        GOOD.replace("cables:\n", "switches: [s, t]\ncables:\n  up: [s, t]\n  up2: [t, s]\n"),
        "f.yaml:8:3: cable up2 closes a loop of switches",
    ),
    "clients without a cable": (
        GOOD.replace("cables:\n", "  c: {}\ncables:\n"),
        "f.yaml:5:3: node c runs clients, but no cable leads from it to another node",
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_told_with_its_place(text: str, expected: str) -> None:
    assert message(text).startswith(expected)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = changed("[a.ic0, b.ic0]", "[a.ic0]").replace("[nvram-mirror]", "[none]").replace("  b: {", "  b b: {")
    places = [line.split(": ")[0] for line in message(text).splitlines()]
    assert places == ["f.yaml:3:52", "f.yaml:4:3", "f.yaml:6:8", "f.yaml:7:23"]


def test_an_unknown_name_suggests_what_ships() -> None:
    with pytest.raises(InputError) as error:
        Topology.load("ha-piar")
    assert str(error.value) == 'no topology "ha-piar" ships, and there is no such file (did you mean ha-pair?)'


def test_a_path_that_leads_nowhere() -> None:
    with pytest.raises(InputError) as error:
        Topology.load("nowhere/x.yaml")
    assert str(error.value) == "nowhere/x.yaml: no such file"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    assert Topology.load(file) == Topology.load(str(file))
    assert Topology.load(file).source == file
