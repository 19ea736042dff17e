"""Events and actions as JSON values and back: the only definition is that of their dataclasses.

A value becomes {"is": class, field: value, ...}; enums become numbers, tuples lists, nested values the same again.
Reading checks the class, the fields and their types, so that a damaged line is an error with its reason.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
import types
import typing
from enum import Enum
from functools import cache
from typing import Any

from ccm import actions, events, exchange
from ccm.needs import Needs
from emul.compiled import ROOT

FORMAT = 2
"""Version of the journal's format: raised whenever an older reader would misunderstand it."""

_MODULES = (events, actions, exchange)
_CLASSES: dict[str, type] = {
    name: found
    for module in _MODULES
    for name, found in vars(module).items()
    if isinstance(found, type) and dataclasses.is_dataclass(found)
} | {"Needs": Needs}


class JournalError(ValueError):
    """What is wrong with a journal, and in which line."""


def encode(value: object) -> object:
    """A value of the manager as a JSON value."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, tuple | list):
        return [encode(each) for each in value]
    if type(value).__name__ not in _CLASSES:
        raise TypeError(f"{type(value).__name__} is neither event nor action")
    kind: type = type(value)
    return {"is": kind.__name__} | {name: encode(getattr(value, name)) for name in _hints(kind)}


def decode(value: object, wanted: object = object) -> Any:  # noqa: ANN401 - whatever was encoded
    """What `encode` made, as a value of type `wanted`. Raises JournalError."""
    if isinstance(value, dict):
        return _decode_class(value, wanted)
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return _decode_plain_union(value, wanted)
    if isinstance(value, list):
        (item, *_) = typing.get_args(wanted) or (object,)
        return tuple(decode(each, item) for each in value)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        try:
            return wanted(value)
        except ValueError:
            raise JournalError(f"{value!r} is no {wanted.__name__}") from None
    if wanted is not object and not isinstance(value, _plain(wanted)):
        raise JournalError(f"expected {getattr(wanted, '__name__', wanted)}, found {value!r}")
    return value


def _decode_plain_union(value: object, wanted: object) -> Any:  # noqa: ANN401
    kinds = typing.get_args(wanted)
    if value is None and type(None) in kinds:
        return None
    raise JournalError(f"expected one of {', '.join(kind.__name__ for kind in kinds)}, found {value!r}")


def _decode_class(value: dict[str, Any], wanted: object) -> Any:  # noqa: ANN401
    fields = dict(value)
    name = fields.pop("is", None)
    kind = _CLASSES.get(str(name))
    if kind is None:
        raise JournalError(f"unknown kind of event or action: {name!r}")
    if not _allows(wanted, kind):
        raise JournalError(f"expected {getattr(wanted, '__name__', wanted)}, found {name}")
    hints = _hints(kind)
    if set(fields) != set(hints):
        raise JournalError(f"{name} has the fields {', '.join(hints)}, found {', '.join(sorted(fields))}")
    try:
        return kind(**{field: decode(held, hints[field]) for field, held in fields.items()})
    except ValueError as error:
        raise JournalError(f"{name}: {error}") from error


def _allows(wanted: object, kind: type) -> bool:
    if wanted is object:
        return True
    choice = typing.get_args(wanted) or (wanted,)
    return kind in choice


def _plain(wanted: object) -> type:
    plain = getattr(wanted, "__supertype__", wanted)
    return plain if isinstance(plain, type) else object


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a class's fields, from its source: a compiled class keeps `tuple` of a `tuple[int, ...]`, and
    nothing at all of a union.
    """
    module = sys.modules[kind.__module__]
    written = types.SimpleNamespace(__annotations__=_annotations(kind.__module__)[kind.__name__])
    hints = typing.get_type_hints(written, globalns=vars(module))
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _annotations(module: str) -> dict[str, dict[str, str]]:
    """For each class of a module the annotations of its body, as they are written."""
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_bytes())
    return {
        node.name: {
            line.target.id: ast.unparse(line.annotation)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
