"""YAML with places: safe, bounded, and exact about where things stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.errors import InputError
from lab.yaml_tree import DEPTH_MAX, FILE_MAX_BYTES, Mark, parse_document, read_document


def problems_of(text: str) -> list[str]:
    with pytest.raises(InputError) as error:
        parse_document(text, "f.yaml")
    return str(error.value).splitlines()


def test_values_and_their_places() -> None:
    document = parse_document("a: 1\nb: [x, {on: 'no'}]\n", "f.yaml")
    assert document.root.plain() == {"a": 1, "b": ["x", {"on": "no"}]}
    assert document.mark(("a",)) == Mark(1, 4)
    assert document.mark(("a",), key=True) == Mark(1, 1)
    assert document.mark(("b", 1, "on")) == Mark(2, 13)
    assert document.mark(("b", 1, "on"), key=True) == Mark(2, 9)


def test_a_place_that_does_not_exist_is_the_nearest_above_it() -> None:
    document = parse_document("a: {b: 1}\n", "f.yaml")
    assert document.mark(("a", "missing")) == Mark(1, 4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("12", 12),
        ("-3", -3),
        ("1.5", 1.5),
        ("'12'", "12"),
        ('"true"', "true"),
    ],
)
def test_scalars_follow_the_core_rules_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_document(f"k: {text}\n", "f.yaml").root.plain() == {"k": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1:1: expected a mapping of keys and values, found an empty file"),
        ("# nothing\n", "f.yaml:1:1: expected a mapping of keys and values, found an empty file"),
        ("- a\n", "f.yaml:1:1: expected a mapping of keys and values, found a list"),
        ("word\n", 'f.yaml:1:1: expected a mapping of keys and values, found "word"'),
        ("a: 1\na: 2\n", 'f.yaml:2:1: key "a" is there twice (first in line 1, column 1)'),
        ("{a: 1}: 2\n", "f.yaml:1:1: expected a word as key, found a mapping"),
        ("a: !!python/object/apply:os.system [x]\n", "f.yaml:1:4: expected a value without a tag, found "),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: expected one document, found a second one"),
        ("a: *b\n", "f.yaml:1:4: expected the name of an anchor above, found *b"),
        ("a: &x [*x]\n", "f.yaml:1:8: expected the name of an anchor above, found *x"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2: not valid YAML: "),
        ("a: b: c\n", "f.yaml:1:5: not valid YAML: "),
        ("a:\n\t- b\n", "f.yaml:2:1: not valid YAML: "),
        ("a: \x00\n", "f.yaml:1:4: "),
        ("a: [" * (DEPTH_MAX + 5), "f.yaml:1:"),
    ],
)
def test_bad_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    assert problems_of(text)[0].startswith(message)


def test_all_duplicate_keys_are_told_at_once() -> None:
    assert len(problems_of("a: 1\na: 2\nb: {c: 1, c: 2}\n")) == 2


def test_an_alias_bomb_is_refused_while_it_is_small() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "values, found more (aliases count in full)" in problems_of("\n".join(lines))[0]


def test_brackets_without_end_do_not_exhaust_the_stack() -> None:
    assert "levels of nesting" in problems_of("a: " + "[" * 500_000)[0]


def test_an_alias_stands_for_what_it_names() -> None:
    document = parse_document("a: &x {k: 1}\nb: *x\n", "f.yaml")
    assert document.root.plain() == {"a": {"k": 1}, "b": {"k": 1}}


def test_unreadable_files(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(InputError) as error:
            read_document(path, "f")
        return str(error.value)

    assert message(tmp_path / "none.yaml") == "f: no such file"
    assert message(tmp_path) == "f: expected a file, found a directory"
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: x\nk: caf\xe9\n")
    assert message(latin) == "f:2:7: expected UTF-8, found byte 0xe9"
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (FILE_MAX_BYTES + 1))
    assert message(large) == f"f: expected at most {FILE_MAX_BYTES} bytes, found more"
    assert "is no file name" in message(Path("a\0b.yaml"))
    wide = tmp_path / "utf16.yaml"
    wide.write_bytes("name: x\n".encode("utf-16"))
    assert "expected UTF-8" in message(wide)


@given(st.text(alphabet="ab:[]{}&*!-#'\"\n \t,|>%@\\\u00e9\x85\ufeff", max_size=60))
def test_any_text_gives_a_document_or_an_input_error(text: str) -> None:
    try:
        parse_document(text, "f.yaml")
    except InputError as error:
        assert error.problems
