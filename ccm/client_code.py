"""Clients of one's own: finds the class that a configuration names, and makes the client.

A reference is `package.module:Class`, looked for where Python looks and in the directories given, or `FILE.py:Class`.
Nothing else is run: no shell, no expression. `python -m ccm.client_code` does the same in a process of its own, so that
whoever checks a configuration is not at the mercy of what the module does when it is imported: it reads a JSON list of
configurations from stdin and writes a list of what is wrong with each ("" for nothing) to stdout.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ccm.client import Client
from ccm.needs import NeedsError, client_key

REFERENCE = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[^:]*\.py):(?P<kind>[A-Za-z_]\w*)", re.ASCII)
EXAMPLE = "package.module:Class or FILE.py:Class"


class ClientCodeError(ValueError):
    """Why a client can't be made, in a sentence."""


@dataclass(frozen=True, slots=True)
class ClientCode:
    """What a configuration says of a client: its name, where its class is, what its constructor is given."""

    name: str
    code: str
    options: Mapping[str, Any]
    path: tuple[str, ...] = ()
    """Directories in which its modules are looked for after those of Python itself."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ClientCode:
        """From its JSON form."""
        path = tuple(str(directory) for directory in config.get("path", ()))
        return cls(str(config["name"]), str(config["code"]), dict(config.get("options", {})), path)

    def load(self) -> type[Client]:
        """Its class. Raises ClientCodeError: what was expected, what was found."""
        match = REFERENCE.fullmatch(self.code)
        if match is None:
            raise ClientCodeError(f'expected {EXAMPLE}, found "{self.code}"')
        module = self._import(match["module"])
        kind = getattr(module, match["kind"], None)
        if kind is None:
            near = [name for name, found in vars(module).items() if _is_client(found) and found is not Client]
            there = ", ".join(near) or "none"
            raise ClientCodeError(f"{match['module']} has no {match['kind']}; clients there: {there}")
        if not _is_client(kind):
            raise ClientCodeError(f"expected a subclass of ccm.Client, found {match['kind']}, {_described(kind)}")
        found: type[Client] = kind
        if found.name != self.name:
            raise ClientCodeError(f'{match["kind"]} calls itself "{found.name}", expected name = "{self.name}"')
        try:
            client_key(self.name)
            inspect.signature(found).bind(**self.options)
        except NeedsError as error:
            raise ClientCodeError(str(error)) from error
        except TypeError as error:
            what = f"{match['kind']}{inspect.signature(found)}"
            raise ClientCodeError(f"{what} can't be made with {_shown(self.options)}: {error}") from error
        return found

    def make(self) -> Client:
        """The client. Raises ClientCodeError, also for whatever its constructor raises."""
        kind = self.load()
        try:
            return kind(**self.options)
        except (Exception, SystemExit) as error:
            raise ClientCodeError(f"making {kind.__name__} failed{place_of(error)}: {worded(error)}") from error

    def _import(self, module: str) -> ModuleType:
        for directory in self.path:
            if directory not in sys.path:
                sys.path.append(directory)
        try:
            return _import_file(module) if module.endswith(".py") else importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise ClientCodeError(f"importing {module} failed{place_of(error)}: {worded(error)}") from error


def _import_file(file: str) -> ModuleType:
    """Once for each file, like any module; what it imports may lie beside it."""
    path = Path(file).resolve()
    name = f"ccm_client_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def place_of(error: BaseException) -> str:
    """Where in the client's code it was raised: " at FILE:LINE"; empty where no code of the client was running."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" at {error.filename}:{error.lineno}"
    machinery = ("<frozen importlib", importlib.__file__, __file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(machinery)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def worded(error: BaseException) -> str:
    """Kind and text of an exception."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_client(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Client)


def _described(found: object) -> str:
    return "another class" if isinstance(found, type) else f"a {type(found).__name__}"


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"


def main() -> int:
    """The check in a process of its own."""
    wrong = []
    for config in json.load(sys.stdin):
        try:
            ClientCode.of(config).load()
        except ClientCodeError as error:
            wrong.append(str(error))
        else:
            wrong.append("")
    sys.stdout.write("\n" + json.dumps(wrong) + "\n")  # after whatever the modules have printed
    return 0


if __name__ == "__main__":
    sys.exit(main())
