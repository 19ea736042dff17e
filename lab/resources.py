"""The topologies and scenarios that ship: in a checkout, and in an installed package."""

from __future__ import annotations

from pathlib import Path

from lab.errors import InputError, did_you_mean

SUFFIXES = (".yaml", ".yml")


def topologies_directory() -> Path:
    """Where shipped topologies are (scenarios below, in `scenarios`)."""
    checkout = Path(__file__).resolve().parent.parent / "topologies"
    # An installed package may have a stranger's directory of that name beside it in site-packages.
    if (checkout.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return Path(__file__).resolve().parent / "data" / "topologies"


def shipped(kind: str) -> dict[str, Path]:
    """Files that ship by name; `kind` is "topology" or "scenario"."""
    directory = topologies_directory()
    if kind == "scenario":
        directory /= "scenarios"
    return {file.stem: file for file in sorted(directory.glob("*.yaml"))}


def looks_like_path(name: str) -> bool:
    """Whether a user who writes `name` means a file and not the name of one that ships."""
    return "/" in name or name.endswith(SUFFIXES)


def locate(name_or_path: str | Path, kind: str) -> Path:
    """The file that is meant. Raises InputError for a name that doesn't ship."""
    if isinstance(name_or_path, Path) or looks_like_path(name_or_path):
        return Path(name_or_path)
    known = shipped(kind)
    if name_or_path in known:
        return known[name_or_path]
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    hint = did_you_mean(name_or_path, known) or f" ({', '.join(known)})"
    raise InputError(None, None, None, f'no {kind} "{name_or_path}" ships, and there is no such file{hint}')
