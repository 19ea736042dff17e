"""Copies of a node: a tenth of the time that copy.deepcopy or pickle take, which is what the explorer spends.

Values that can't change are shared; objects, dicts, lists and sets are copied, each once however often it is held.
"""

from __future__ import annotations

import dataclasses
import types
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

_SHARED: set[type] = {
    int, bool, float, str, bytes, type(None), frozenset, tuple, type, types.FunctionType, types.BuiltinFunctionType,
}  # fmt: skip
"""Tuples hold only such values in a manager."""
_names: dict[type, tuple[str, ...]] = {}
Memo = dict[int, Any]


def copied(value: Any, memo: Memo | None = None) -> Any:
    """A copy that nothing done to the original changes, and the other way round."""
    kind = type(value)
    if kind in _SHARED:
        return value
    if memo is None:
        memo = {}
    found = memo.get(id(value))
    if found is not None:
        return found
    copy = _COPIERS.get(kind)
    if copy is not None:
        return copy(value, memo)
    names = _names.get(kind)
    if names is None:
        if is_shared(value):
            _SHARED.add(kind)
            return value
        names = _names[kind] = fields_of(value)
    memo[id(value)] = new = kind.__new__(kind)
    for name in names:
        held = getattr(value, name)
        setattr(new, name, held if type(held) in _SHARED else copied(held, memo))
    return new


def is_shared(value: object) -> bool:
    """Whether the value can't change."""
    return isinstance(value, Enum | int) or (
        dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    )


def fields_of(value: object) -> tuple[str, ...]:
    """Names of all that an object holds."""
    slots = [name for base in type(value).__mro__ for name in _slots(base) if name != "__dict__"]
    return (*slots, *getattr(value, "__dict__", ()))


def _slots(base: type) -> tuple[str, ...]:
    found = base.__dict__.get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _dict(value: dict[Any, Any], memo: Memo) -> dict[Any, Any]:
    memo[id(value)] = new = {}
    for key, held in value.items():
        new[key] = held if type(held) in _SHARED else copied(held, memo)
    return new


def _list(value: list[Any], memo: Memo) -> list[Any]:
    memo[id(value)] = new = []
    new.extend(copied(held, memo) for held in value)
    return new


def _set(value: set[Any], memo: Memo) -> set[Any]:
    memo[id(value)] = new = set(value)
    return new


def _deque(value: deque[Any], memo: Memo) -> deque[Any]:
    memo[id(value)] = new = deque(copied(held, memo) for held in value)
    return new


def _method(value: types.MethodType, memo: Memo) -> types.MethodType:
    return types.MethodType(value.__func__, copied(value.__self__, memo))


_COPIERS: dict[type, Callable[[Any, Memo], Any]] = {
    dict: _dict, list: _list, set: _set, deque: _deque, types.MethodType: _method,
}  # fmt: skip
