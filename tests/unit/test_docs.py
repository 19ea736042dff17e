"""The documents hold: links lead somewhere, requirements that are named exist, examples are valid, commands exist."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from emul.wire.headers import Opcode
from lab.cli import command_names
from lab.expectations import EXPECTATIONS
from lab.faults import FAULTS
from lab.scenario import Scenario
from lab.topology import Topology
from lab.wire.findings import RULES

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REQUIREMENT = re.compile(r"\b([RHCL])([1-9][0-9]?)\b")


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


def broken_links(document: Path, text: str) -> Iterator[str]:
    """Relative links of a document that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        known = headings(file.read_text(encoding="utf-8")) if file.suffix == ".md" and file.exists() else set()
        if not file.exists() or (anchor and anchor not in known):
            yield target


def headings(text: str) -> set[str]:
    """Anchors of a document's headings, as code forges make them."""
    titles = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def requirements() -> set[str]:
    """The numbers that docs/requirements.md defines."""
    text = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
    return set(re.findall(r"^- \*\*(\w+)\*\* ", text, flags=re.MULTILINE))


def words_of(source: str) -> Iterator[str]:
    """Docstrings and comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    assert not list(broken_links(document, document.read_text(encoding="utf-8")))


def test_a_broken_link_is_found() -> None:
    text = "[a](docs/none.md) [b](README.md#none) [c](https://example.org/none) [d](README.md#ccm-lab)"
    assert list(broken_links(ROOT / "README.md", text)) == ["docs/none.md", "README.md#none"]


def test_requirements_are_numbered_without_a_gap() -> None:
    expected = {
        f"{letter}{number}"
        for letter, last in (("R", 11), ("H", 3), ("C", 3), ("L", 5))
        for number in range(1, last + 1)
    }
    assert requirements() == expected


@pytest.mark.parametrize("package", ["emul", "ccm", "lab", "docs"])
def test_requirements_that_are_named_exist(package: str) -> None:
    known, missing = requirements(), []
    for file in sorted((ROOT / package).rglob("*.md" if package == "docs" else "*.py")):
        text = file.read_text(encoding="utf-8")
        for words in [text] if package == "docs" else words_of(text):
            missing += [f"{named(file)}: {m[0]}" for m in REQUIREMENT.finditer(words) if m[0] not in known]
    assert not missing


def test_a_requirement_that_does_not_exist_is_found() -> None:
    words = list(words_of('"""As R3 says."""\nx = "R99"  # and H9\n'))
    assert [m[0] for text in words for m in REQUIREMENT.finditer(text)] == ["R3", "H9"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_examples_are_valid(document: Path) -> None:
    for block in blocks(document.read_text(encoding="utf-8"), "yaml"):
        if block.startswith("scenario:"):
            Scenario.parse(block, file=named(document))
        elif block.startswith("name:"):
            Topology.parse(block, named(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_exist(document: Path) -> None:
    for block in blocks(document.read_text(encoding="utf-8"), ""):
        for name in re.findall(r"^(?:sudo )?lab ([a-z]+)", block, flags=re.MULTILINE):
            assert name in command_names(), f"{named(document)}: lab {name}"


def test_the_readme_begins_with_its_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("  #")[0].strip() for line in lines[3:5]] == [
        "python3 noxfile.py -s demo",
        "python3 noxfile.py -s tests",
    ]
    assert len(lines) < 100


def test_the_page_on_conformance_has_each_opcode_and_each_rule() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert [opcode.name for opcode in Opcode if f"| {int(opcode):#04x} | {opcode.name} |" not in text] == []
    rows = [f"| {rule.name} | {rule.sentence} | {rule.source} |" for rule in RULES.values()]
    assert [row for row in rows if row not in text] == []


def test_the_catalogue_of_faults_is_whole() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    assert set(rows) == set(FAULTS)
    for name, fault in FAULTS.items():
        assert fault.help in rows[name], name
        assert all(f"`{parameter.name}`" in rows[name] for parameter in fault.parameters), name


def logged_words() -> set[str]:
    """All events that hosts and adapters write into their logs, but those that a client or a fault names."""
    call = re.compile(r'(?:\blog|_log|_tell_end)\(\s*(?:Kind\.\w+, )?"([a-z][a-z_.]*)"')
    sources = [*(ROOT / "ccm").rglob("*.py"), ROOT / "emul" / "process.py"]
    return {word for source in sources for word in call.findall(source.read_text(encoding="utf-8"))}


def test_the_page_on_observing_has_each_event_of_the_logs() -> None:
    text = (ROOT / "docs" / "observing.md").read_text(encoding="utf-8")
    assert len(logged_words()) > 20
    assert [word for word in sorted(logged_words()) if f"`{word}`" not in text] == []


def test_the_page_on_scenarios_has_each_expectation() -> None:
    text = (ROOT / "docs" / "writing-a-scenario.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {expectation.help} |" for name, expectation in EXPECTATIONS.items()]
    assert [row for row in rows if row not in text] == []
