"""Clients of the user's own in a topology: what a file may say of them, and whether their classes are what they should.

`client_code:` gives names to classes. A name that is not given there may come from an installed package, which
registers its class as an entry point of the group `ccm.clients`. The code is looked at in a process of its own, so that
a module that ends its process, or never returns, is a message and nothing worse.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import Field

from ccm.client_code import EXAMPLE, REFERENCE
from ccm.exchange import NAME_BYTES
from ccm.needs import client_key
from lab import units
from lab.errors import Problem
from lab.topology import CLIENTS, OwnClient
from lab.validation import FileModel
from lab.yaml_tree import Document

BLOCK = "client_code"
ENTRY_POINTS = "ccm.clients"
IMPORT_MAX_S = 20
"""A module that isn't imported in this time doesn't get to be a client."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*", re.ASCII)
_OPTION_TYPES = (str, int, float, bool)


class ClientCodeModel(FileModel):
    """Where a client's class is, and what its constructor is given. Short form: the reference alone."""

    code: str = Field(min_length=1)
    options: dict[str, object] = Field(default_factory=dict)


def from_short_form(value: object) -> object:
    """A reference alone is a mapping with nothing else."""
    return {"code": value} if isinstance(value, str) else value


def own_clients(
    given: Mapping[str, ClientCodeModel], wanted: Sequence[str], directory: Path | None
) -> dict[str, OwnClient]:
    """By name; `wanted` are the clients that nodes run, `directory` is where references to files count from."""
    base = (directory or Path()).resolve()
    found = {name: OwnClient(name, _absolute(model.code, base), dict(model.options)) for name, model in given.items()}
    strange = [name for name in dict.fromkeys(wanted) if name not in CLIENTS and name not in found]
    if strange:
        installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
        found |= {name: OwnClient(name, installed[name], {}) for name in strange if name in installed}
    path = tuple(dict.fromkeys([str(base), *(str(Path(entry).resolve()) for entry in sys.path)]))
    return {name: OwnClient(client.name, client.code, client.options, path) for name, client in found.items()}


def problems(
    document: Document, given: Mapping[str, ClientCodeModel], clients: Mapping[str, OwnClient]
) -> list[Problem]:
    """What is wrong with the names, the references, and then with the code."""
    found = [problem for name in given for problem in _check_entry(document, name, given[name])]
    keys: dict[int, str] = {client_key(name): name for name in CLIENTS}
    for name in given if not found else ():
        other = keys.setdefault(client_key(name), name)
        if other != name:
            found.append(document.problem((BLOCK, name), f'"{name}" and "{other}" have one key: rename one', key=True))
    return found or _check_code(document, list(clients.values()))


def _check_entry(document: Document, name: str, model: ClientCodeModel) -> Iterator[Problem]:
    if name in CLIENTS:
        text = f'client "{name}" comes with the manager: expected another name for your own'
        yield document.problem((BLOCK, name), text, key=True)
    elif not _NAME.fullmatch(name) or len(name) > NAME_BYTES:
        rule = f"at most {NAME_BYTES} letters, digits, - and _, beginning with a letter"
        yield document.problem((BLOCK, name), f"client name: expected {rule}, found {units.found(name)}", key=True)
    place = (BLOCK, name, "code") if "code" in _keys(document, name) else (BLOCK, name)
    if not REFERENCE.fullmatch(model.code):
        yield document.problem(place, f"client {name}: expected {EXAMPLE}, found {units.found(model.code)}")
    for option, value in model.options.items():
        if value is not None and not isinstance(value, _OPTION_TYPES):
            text = f"option {option}: expected text, a number, true or false, found {units.found(value)}"
            yield document.problem((BLOCK, name, "options", option), text)


def _keys(document: Document, name: str) -> Mapping[str, Any]:
    plain = document.root.plain()
    entry = plain.get(BLOCK, {}).get(name) if isinstance(plain, dict) else None
    return entry if isinstance(entry, dict) else {}


def _check_code(document: Document, clients: Sequence[OwnClient]) -> list[Problem]:
    if not clients:
        return []
    found = []
    for client, wrong in zip(clients, _ask([client.config() for client in clients]), strict=True):
        if wrong:
            found.append(document.problem((BLOCK, client.name), f"client {client.name}: {wrong}"))
    return found


def _ask(configs: Sequence[Mapping[str, object]]) -> list[str]:
    """What `ccm.client_code` says of each, asked one by one where their modules don't get along with the asking."""
    root = str(Path(__file__).resolve().parents[1])
    program = f"import sys; sys.path.insert(0, {root!r}); from ccm.client_code import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", program]
    try:
        done = subprocess.run(
            command, input=json.dumps(configs), capture_output=True, text=True, timeout=IMPORT_MAX_S, check=False
        )
        answers = json.loads(done.stdout.rsplit("\n", 2)[-2])
        return [str(answer) for answer in answers]
    except subprocess.TimeoutExpired:
        trouble = f"importing it took more than {IMPORT_MAX_S} s"
    except (ValueError, IndexError):
        last = done.stderr.strip().rsplit("\n", 1)[-1]
        trouble = f"importing it ended the process with status {done.returncode}" + (f": {last}" if last else "")
    return [trouble] if len(configs) == 1 else [answer for config in configs for answer in _ask([config])]


def _absolute(code: str, base: Path) -> str:
    """A reference to a file with its whole path."""
    module, colon, kind = code.rpartition(":")
    return f"{(base / module).resolve()}{colon}{kind}" if module.endswith(".py") else code
