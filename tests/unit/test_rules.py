"""Rules of the architecture, checked on the syntax tree of every module: who may import whom, and what pure means.

Each rule is itself proven by a module that breaks it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("emul", "ccm", "lab")

IMPURE = (
    "emul.cm_wait",
    "emul.__main__",
    "emul.compile",
    "emul.compiled",
    "emul.control",
    "emul.memory",
    "emul.opening",
    "emul.perftest",
    "emul.pingpong",
    "emul.port",
    "emul.process",
    "emul.service_port",
    "ccm.client_code",
    "ccm.journal.__main__",
    "ccm.process",
)
"""Modules of emul and ccm that may touch the world; all others are pure. A package stands for what is in it."""
PURE_IN_LAB = (
    "lab.check",
    "lab.drawing",
    "lab.errors",
    "lab.expectations",
    "lab.faults",
    "lab.injector.rules",
    "lab.parameters",
    "lab.plan",
    "lab.scenario",
    "lab.sim",
    "lab.topology",
    "lab.units",
    "lab.verdict",
    "lab.wire",
)
CCM_SHELL = (
    "ccm.adapter_port",
    "ccm.compile",
    "ccm.client",
    "ccm.client_code",
    "ccm.client_session",
    "ccm.clients",
    "ccm.driver",
    "ccm.history",
    "ccm.host",
    "ccm.lanes",
    "ccm.peer_link",
    "ccm.process",
    "ccm.workload",
)
"""What stands between the manager's core and an adapter; the core knows CORE_MAY_KNOW alone."""
CORE_MAY_KNOW = ("emul.clock", "emul.vocabulary", "emul.compiled")
MANAGER_LEDGER = ("ccm.session", "ccm.sessions", "ccm.ledger", "ccm.path", "ccm.pathset", "ccm.stream", "ccm.lanes")
QUEUE_PAIR_PARTS = ("emul.requester", "emul.responder", "emul.completer")
HOME_OF_LIBRARY = {
    "scapy": ("lab",),
    "pyroute2": ("lab.fabric", "lab.netlink"),
    "docker": ("lab.docker",),
    "pydantic": ("lab.validation", "lab.topology_file", "lab.scenario_file", "lab.own_clients", "lab.settings_file"),
}
BANNED_IN_PURE = {
    "asyncio",
    "ctypes",
    "datetime",
    "fcntl",
    "mmap",
    "multiprocessing",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
HARMLESS_IN_OS = {"PathLike", "fspath", "strerror"}
BANNED_CALLS = {"exec", "eval", "input", "open", "print"}


def within(module: str, packages: tuple[str, ...]) -> bool:
    """Whether `module` is one of `packages` or inside one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module that is imported anywhere, with its line; `from a import b` counts a.b too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def direction(module: str, tree: ast.AST) -> Iterator[str]:
    """emul <- ccm <- lab: an arrow may be skipped, never reversed."""
    forbidden = {"emul": ("ccm", "lab", "tests"), "ccm": ("lab", "tests"), "lab": ("tests",)}[module.split(".")[0]]
    for line, name in imports(tree):
        if within(name, forbidden):
            yield f"{module}:{line} imports {name}"


def confinement(module: str, tree: ast.AST) -> Iterator[str]:
    """Large libraries stay where they belong."""
    for line, name in imports(tree):
        home = HOME_OF_LIBRARY.get(name.split(".")[0])
        if home is not None and not within(module, home):
            yield f"{module}:{line} imports {name}, which belongs to {', '.join(home)}"


def independence(module: str, tree: ast.AST) -> Iterator[str]:
    """A checker that shared the manager's ledger, or the adapter's parsers, would share its bugs; the parts of a queue
    pair meet in it alone.
    """
    for line, name in imports(tree):
        if within(module, ("lab.check",)) and within(name, MANAGER_LEDGER):
            yield f"{module}:{line} imports {name}"
        if within(module, ("lab.wire",)) and not within(name, ("lab.wire",)) and within(name, PACKAGES):
            yield f"{module}:{line} imports {name}"
        if module in QUEUE_PAIR_PARTS and within(name, tuple(part for part in QUEUE_PAIR_PARTS if part != module)):
            yield f"{module}:{line} imports {name}"


def core(module: str, tree: ast.AST) -> Iterator[str]:
    """The manager's core knows of the hardware its clock and vocabulary alone, so that a real card fits under it."""
    if module == "ccm" or module.split(".")[0] != "ccm" or within(module, CCM_SHELL):
        return  # the package itself names what users import, and imports none of it
    for line, name in imports(tree):
        if within(name, ("emul",)) and not within(name, CORE_MAY_KNOW):
            yield f"{module}:{line} imports {name}"
        if within(name, CCM_SHELL):
            yield f"{module}:{line} imports {name}"


def is_pure(module: str) -> bool:
    """Whether a module must be pure."""
    return within(module, PURE_IN_LAB) if module.split(".")[0] == "lab" else not within(module, IMPURE)


def purity(module: str, tree: ast.AST) -> Iterator[str]:
    """Pure modules read no clock, draw no unseeded number, and touch neither files, sockets nor processes."""
    if not is_pure(module):
        return
    for line, name in imports(tree):
        if name.split(".")[0] in BANNED_IN_PURE:
            yield f"{module}:{line} imports {name}"
        if name.startswith(("random.", "os.")) and name.split(".")[1] not in {"Random", *HARMLESS_IN_OS}:
            yield f"{module}:{line} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (f"{module}:{node.lineno} {what}" for what in _impure_call(node))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            if (owner == "os" and name not in HARMLESS_IN_OS) or (owner == "random" and name != "Random"):
                yield f"{module}:{node.lineno} uses {owner}.{name}"


def _impure_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called in BANNED_CALLS:
        yield f"calls {called}()"
    if called in ("random.Random", "Random") and not node.args:
        yield "draws an unseeded random number"


RULES: dict[str, Callable[[str, ast.AST], Iterator[str]]] = {
    "direction": direction,
    "confinement": confinement,
    "independence": independence,
    "core": core,
    "purity": purity,
}


def modules() -> dict[str, ast.AST]:
    """All modules of the project by name."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("rule", RULES)
def test_the_project_keeps_the_rule(rule: str) -> None:
    broken = [problem for name, tree in modules().items() for problem in RULES[rule](name, tree)]
    assert not broken, "\n".join([f"{RULES[rule].__doc__}", *broken])


BROKEN = [
    ("direction", "emul.qp", "from ccm.session import Session"),
    ("direction", "emul.qp", "def f():\n    import lab.plan"),
    ("direction", "ccm.manager", "from lab import Topology"),
    ("direction", "lab.plan", "from tests.helpers import station"),
    ("confinement", "emul.wire.frame", "from scapy.contrib.roce import BTH"),
    ("confinement", "ccm.driver", "import scapy"),
    ("confinement", "lab.runner", "from pyroute2 import IPRoute"),
    ("confinement", "lab.fabric.server", "import docker"),
    ("confinement", "lab.topology", "import pydantic"),
    ("independence", "lab.check.mirror", "from ccm.session import Session"),
    ("independence", "lab.check.mirror", "from ccm import sessions"),
    ("independence", "lab.wire.packets", "from emul.wire.headers import Opcode"),
    ("independence", "lab.wire.packets", "from lab.errors import InputError"),
    ("independence", "emul.requester", "from emul.responder import Responder"),
    ("independence", "emul.completer", "import emul.requester"),
    ("core", "ccm.manager", "from emul.verbs import QP"),
    ("core", "ccm.path", "from emul import node_memory"),
    ("core", "ccm.manager", "from ccm.driver import Driver"),
    ("purity", "emul.qp", "import time"),
    ("purity", "emul.qp", "from time import monotonic_ns"),
    ("purity", "ccm.manager", "import asyncio"),
    ("purity", "ccm.manager", "import random\nx = random.random()"),
    ("purity", "ccm.manager", "import random\nx = random.Random()"),
    ("purity", "ccm.manager", "from random import randint"),
    ("purity", "ccm.manager", "import os\nx = os.urandom(4)"),
    ("purity", "lab.sim.world", "import threading"),
    ("purity", "lab.check.mirror", "open('x')"),
    ("purity", "lab.plan", "print('x')"),
]


@pytest.mark.parametrize(("rule", "module", "source"), BROKEN)
def test_the_rule_finds_a_module_that_breaks_it(rule: str, module: str, source: str) -> None:
    assert list(RULES[rule](module, ast.parse(source)))


ALLOWED = [
    ("purity", "emul.process", "import time\nimport socket"),
    ("purity", "emul.port.xdp", "import ctypes"),
    ("purity", "lab.runner", "import time"),
    ("purity", "ccm.manager", "import random\ndef f(draw: random.Random) -> float: return draw.random()"),
    ("purity", "lab.sim.world", "import random\nx = random.Random(7)"),
    ("purity", "emul.errors", "import os\nx = os.strerror(2)"),
    ("core", "ccm.driver", "from emul.verbs import QP"),
    ("core", "ccm.manager", "from emul.clock import Instant"),
    ("direction", "lab.runner", "import ccm.history\nimport emul.clock"),
    ("confinement", "lab.injector.forge", "import scapy"),
    ("independence", "lab.check.mirror", "from ccm.history import Entry"),
    ("independence", "lab.wire.analyzer", "from lab.wire.packets import parse"),
]


@pytest.mark.parametrize(("rule", "module", "source"), ALLOWED)
def test_the_rule_lets_good_modules_be(rule: str, module: str, source: str) -> None:
    assert not list(RULES[rule](module, ast.parse(source)))


def test_every_package_says_that_it_is_typed() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)


def test_every_module_says_what_it_knows() -> None:
    silent = [name for name, tree in modules().items() if isinstance(tree, ast.Module) and not ast.get_docstring(tree)]
    assert not silent
