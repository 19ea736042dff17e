"""YAML with places: a file as plain values, and the line and column of each key and value.

Safe by construction: built from parser events with bounds on size, depth and aliases; no tags, no objects. Scalars
follow YAML 1.2's core rules, so that `on` and `no` are words and 1:30 is no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lab.errors import InputError, Problem
from lab.units import found

FILE_MAX_BYTES = 1 << 20
DEPTH_MAX = 40
VALUES_MAX = 100_000
"""Values of a file, each use of an alias counted with all that it stands for: a file can't grow when it is read."""

Scalar = str | int | float | bool | None
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Scalar] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; both count from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Leaf:
    """A scalar."""

    mark: Mark
    value: Scalar
    size: int = 1

    def plain(self) -> object:
        """The value."""
        return self.value


@dataclass(slots=True)
class Sequence:
    """A list of values."""

    mark: Mark
    items: list[Tree] = field(default_factory=list)
    size: int = 1

    def plain(self) -> object:
        """The value as Python's list."""
        return [item.plain() for item in self.items]


@dataclass(slots=True)
class Mapping:
    """A mapping; keys are text, each there once."""

    mark: Mark
    items: dict[str, Tree] = field(default_factory=dict)
    keys: dict[str, Mark] = field(default_factory=dict)
    size: int = 1

    def plain(self) -> object:
        """The value as Python's dict."""
        return {key: item.plain() for key, item in self.items.items()}


Tree = Leaf | Sequence | Mapping
Place = tuple[str | int, ...]
"""The keys and indices that lead to a value."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read: its name in messages, and its top mapping."""

    file: str
    root: Mapping

    def problem(self, place: Place, message: str, *, key: bool = False) -> Problem:
        """A problem at the value (or the key) that `place` leads to, or at the nearest thing above it that exists."""
        mark = self.mark(place, key=key)
        return Problem(self.file, mark.line, mark.column, message)

    def mark(self, place: Place, *, key: bool = False) -> Mark:
        """Where the value (or the key) that `place` leads to stands."""
        tree: Tree = self.root
        mark = tree.mark
        for depth, step in enumerate(place):
            last = depth == len(place) - 1
            if isinstance(tree, Mapping) and step in tree.items and isinstance(step, str):
                mark = tree.keys[step] if key and last else tree.items[step].mark
                tree = tree.items[step]
            elif isinstance(tree, Sequence) and isinstance(step, int) and 0 <= step < len(tree.items):
                tree = tree.items[step]
                mark = tree.mark
            elif isinstance(tree, Sequence) and isinstance(step, str):
                continue  # A short form (a list) leaves the key out.
            else:
                break
        return mark


def read_document(path: Path, file: str | None = None) -> Document:
    """Reads a YAML file whose top is a mapping. Raises InputError (missing, unreadable, not UTF-8, syntax, bounds)."""
    file = file or str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        what = {FileNotFoundError: "no such file", IsADirectoryError: "expected a file, found a directory"}
        reason = what.get(type(error), f"can't be read: {error.strerror or error}")
        raise InputError(file, None, None, reason) from None
    except ValueError as error:
        raise InputError(found(file), None, None, f"is no file name: {error}") from None
    if len(data) > FILE_MAX_BYTES:
        raise InputError(file, None, None, f"expected at most {FILE_MAX_BYTES} bytes, found more")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        message = f"expected UTF-8, found byte 0x{data[error.start]:02x}"
        raise InputError(file, line, column, message) from None
    return parse_document(text, file)


def parse_document(text: str, file: str) -> Document:
    """As `read_document`, from text."""
    problems: list[Problem] = []
    try:
        root = _Builder(file, problems).build(text)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(file, error) from None
    except yaml.reader.ReaderError as error:
        raise InputError(file, *_place_of(text, error.position), _reader_message(error)) from None
    if problems:
        raise InputError.several(problems)
    if root is None:
        raise InputError(file, 1, 1, "expected a mapping of keys and values, found an empty file")
    if not isinstance(root, Mapping):
        message = f"expected a mapping of keys and values, found {found(root.plain())}"
        raise InputError(file, root.mark.line, root.mark.column, message)
    return Document(file, root)


def _place_of(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


def _reader_message(error: yaml.reader.ReaderError) -> str:
    character = error.character
    code = character if isinstance(character, int) else ord(str(character)[:1] or "\0")
    return f"expected printable characters, found U+{code:04X}"


def _syntax_error(file: str, error: yaml.MarkedYAMLError) -> InputError:
    mark = error.problem_mark or error.context_mark
    message = "not valid YAML: " + (error.problem or error.context or "unknown error")
    if error.context and error.problem:
        message += f" ({error.context})"
    return InputError(file, mark.line + 1 if mark else None, mark.column + 1 if mark else None, message)


class _Builder:
    """Turns parser events into a tree. A mapping that waits for a value has its key on `keys`."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.anchors: dict[str, Tree] = {}
        self.open: list[tuple[Sequence | Mapping, str | None]] = []
        self.waiting: list[str | None] = []
        self.root: Tree | None = None
        self.documents = 0
        self.values = 0

    def build(self, text: str) -> Tree | None:
        for event in self._events(text):
            if isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self._stop(event, "expected one document, found a second one")
            elif isinstance(event, yaml.ScalarEvent):
                self._check_tag(event)
                self._place(event, Leaf(_mark(event), _resolve(event)), event.anchor)
            elif isinstance(event, yaml.SequenceStartEvent):
                self._start(event, Sequence(_mark(event)))
            elif isinstance(event, yaml.MappingStartEvent):
                self._start(event, Mapping(_mark(event)))
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                self._end(event)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
        return self.root

    def _events(self, text: str) -> Iterator[yaml.Event]:
        loader = _LOADER(text)
        try:
            while loader.check_event():
                yield loader.get_event()
        finally:
            loader.dispose()

    def _start(self, event: yaml.CollectionStartEvent, tree: Sequence | Mapping) -> None:
        self._check_tag(event)
        if len(self.open) >= DEPTH_MAX:
            self._stop(event, f"expected at most {DEPTH_MAX} levels of nesting, found more")
        if self.open and isinstance(self.open[-1][0], Mapping) and self.waiting[-1] is None:
            self._stop(event, f"expected a word as key, found {found(tree.plain())}")
        self.open.append((tree, event.anchor))
        self.waiting.append(None)

    def _end(self, event: yaml.Event) -> None:
        tree, anchor = self.open.pop()
        self.waiting.pop()
        children = tree.items.values() if isinstance(tree, Mapping) else tree.items
        tree.size = 1 + sum(child.size for child in children)
        self._place(event, tree, anchor)

    def _alias(self, event: yaml.AliasEvent) -> None:
        target = self.anchors.get(event.anchor or "")
        if target is None:
            self._stop(event, f"expected the name of an anchor above, found *{event.anchor}")
        else:
            self._place(event, target, None)

    def _place(self, event: yaml.Event, tree: Tree, anchor: str | None) -> None:
        self.values += tree.size if isinstance(tree, Leaf) or isinstance(event, yaml.AliasEvent) else 1
        if self.values > VALUES_MAX:
            self._stop(event, f"expected at most {VALUES_MAX} values, found more (aliases count in full)")
        if anchor is not None:
            self.anchors[anchor] = tree
        if not self.open:
            self.root = tree
            return
        parent = self.open[-1][0]
        if isinstance(parent, Sequence):
            parent.items.append(tree)
        elif self.waiting[-1] is None:
            self._key(event, parent, tree)
        else:
            key = self.waiting[-1]
            self.waiting[-1] = None
            # The value of a key that was refused has nowhere to go.
            if key in parent.keys and key not in parent.items:
                parent.items[key] = tree

    def _key(self, event: yaml.Event, parent: Mapping, tree: Tree) -> None:
        if not isinstance(tree, Leaf):
            self._stop(event, f"expected a word as key, found {found(tree.plain())}")
        text = event.value if isinstance(event, yaml.ScalarEvent) else str(tree.plain())
        mark = _mark(event)
        self.waiting[-1] = text
        if text in parent.keys:
            first = parent.keys[text]
            message = f'key "{text}" is there twice (first in line {first.line}, column {first.column})'
            self.problems.append(Problem(self.file, mark.line, mark.column, message))
        else:
            parent.keys[text] = mark

    def _check_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self._stop(event, f"expected a value without a tag, found {event.tag}")

    def _stop(self, event: yaml.Event, message: str) -> None:
        mark = _mark(event)
        raise InputError.several([*self.problems, Problem(self.file, mark.line, mark.column, message)])


def _mark(event: yaml.Event) -> Mark:
    start = event.start_mark
    return Mark(start.line + 1, start.column + 1) if start is not None else Mark(1, 1)


def _resolve(event: yaml.ScalarEvent) -> Scalar:
    text: str = event.value
    if event.style or event.tag is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
