"""File formats as pydantic models, and their errors as problems with line and column.

Models say what a key may hold; this module says it to the user: what was expected, what was found, where, and which
known key an unknown one is nearest to.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from lab import units
from lab.errors import InputError, Problem, did_you_mean
from lab.yaml_tree import Document

Model = TypeVar("Model", bound=BaseModel)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What names a topology or a scenario: it becomes part of file names. The only pattern of the formats, as the message
for a mismatch is written for it."""


class FileModel(BaseModel):
    """A mapping in a file: types are exact (a number is no text, true is no number), unknown keys are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _figure(parse: Callable[[object], int], pattern: str, text: str) -> Any:  # noqa: ANN401
    schema = {"anyOf": [{"type": "string", "pattern": pattern}, {"const": 0}], "description": f"Expected: {text}."}
    return Annotated[int, BeforeValidator(parse), WithJsonSchema(schema)]


if typing.TYPE_CHECKING:
    Duration = int
    Size = int
    Rate = int
else:
    Duration = _figure(units.parse_duration, units.DURATION_PATTERN, units.DURATION_EXAMPLE)
    Size = _figure(units.parse_size, units.SIZE_PATTERN, units.SIZE_EXAMPLE)
    Rate = _figure(units.parse_rate, units.RATE_PATTERN, units.RATE_EXAMPLE)


def validate(model: type[Model], document: Document) -> Model:
    """The document as `model`. Raises InputError with all problems, in the order of the file."""
    plain = document.root.plain()
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        problems = [_problem(model, document, plain, detail) for detail in error.errors(include_url=False)]
    raise InputError.several(in_file_order(problems))


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems sorted by place, each once."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line or 0, problem.column or 0))


def _problem(model: type[BaseModel], document: Document, plain: object, detail: ErrorDetails) -> Problem:
    place = tuple(step for step in detail["loc"] if step != "[key]")
    kind = detail["type"]
    if kind == "extra_forbidden":
        word = str(place[-1])
        known = known_keys(model, place[:-1])
        hint = did_you_mean(word, known) or f" (known: {', '.join(known)})"
        return document.problem(place, f'unknown key "{word}"{hint}', key=True)
    if kind == "missing":
        return document.problem(place[:-1], f'{_named(place[:-1])}the key "{place[-1]}" is missing')
    return document.problem(place, _named(place) + _expected(detail))


def _named(place: tuple[str | int, ...]) -> str:
    words = [str(step) for step in place if isinstance(step, str)]
    return f"{words[-1]}: " if words else ""


def _expected(detail: ErrorDetails) -> str:
    """What was expected and what was found, for one of pydantic's errors."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    shown = units.found(value)
    if kind in ("too_short", "string_too_short") and not value:
        what = "item" if kind == "too_short" else "character"
        return f"expected at least one {what}, found {'an empty ' + shown[2:] if shown.startswith('a ') else shown}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind].format(**context)}, found {shown}"
    if kind in ("literal_error", "enum"):
        words = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        return f"expected {context['expected']}, found {shown}{hint}"
    return f"expected {detail['msg'].removeprefix('Input should be ')}, found {shown}"


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys and values",
    "model_type": "a mapping of keys and values",
    "greater_than": "a figure above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a figure below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "finite_number": "a finite number",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "letters, digits, ., - and _, beginning with a letter or digit",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
}


def known_keys(model: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    """The keys that the mapping at `place` of a file may have; empty where it isn't one of fixed keys."""
    annotation: object = model
    for step in place:
        annotation = _inside(annotation, step)
    found_model = _model_of(annotation)
    return [field.alias or name for name, field in found_model.model_fields.items()] if found_model else []


def _model_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        candidates = (_model_of(argument) for argument in typing.get_args(annotation))
        return next((candidate for candidate in candidates if candidate is not None), None)
    return None


def _inside(annotation: object, step: str | int) -> object:
    """The annotation of what is under `step` of a value with `annotation`."""
    model = _model_of(annotation)
    if model is not None:
        fields = ((field.alias or name, field) for name, field in model.model_fields.items())
        return next((field.annotation for name, field in fields if name == step), None)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType, Annotated):
        inner = (_inside(argument, step) for argument in arguments)
        return next((candidate for candidate in inner if candidate is not None), None)
    if origin is dict and len(arguments) == 2:
        return arguments[1]
    if origin is list and arguments:
        return arguments[0]
    return None
