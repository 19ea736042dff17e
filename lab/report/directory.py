"""Writes the directory of a run. Two runs never share one, also when they begin in the same second."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from ccm.history import Entry, Kind
from lab.check.evidence import Evidence
from lab.errors import InputError
from lab.report.junit import junit_xml
from lab.report.page import page
from lab.topology import Topology
from lab.verdict import Result, schedule_json

RUNS_DIRECTORY = Path("lab-runs")
NAMES_TRIED_MAX = 1000
HISTORY_LINES_MAX = 2_000_000
_REPORTED_PACKAGES = ("ccm-lab", "pyroute2", "scapy", "isal", "pydantic", "PyYAML", "docker")


def new_directory(scenario: str, seed: int, wanted: str | None, *, several: bool = False) -> Path:
    """Makes and gives the directory of one run: `wanted`, under it one for each scenario where there are several, or a
    new one under ./lab-runs. Raises InputError when it can't be made.
    """
    if wanted is not None and not several:
        return _made(Path(wanted))
    parent = RUNS_DIRECTORY if wanted is None else Path(wanted)
    stem = scenario if wanted is not None else f"{scenario}-{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    _made(parent)
    for attempt in range(NAMES_TRIED_MAX):
        path = parent / (stem if attempt == 0 else f"{stem}-{attempt + 1}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(str(path), None, None, f"can't make this directory: {error.strerror}") from error
        return path
    raise InputError(str(parent), None, None, f"{NAMES_TRIED_MAX} directories named {stem} are there already")


def _made(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(str(path), None, None, f"can't make this directory: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise InputError(str(path), None, None, "this directory can't be written")
    return path


def write_report(result: Result, topology: Topology, directory: Path) -> None:
    """Writes all but the logs, which `copy_logs` takes while the nodes' files are there; sets `result.report`."""
    result.report = str(directory)
    evidence = result.outcome.evidence
    _write_json(directory / "result.json", result.to_json())
    text = topology.source.read_text(encoding="utf-8") if topology.source else ""
    _write_json(
        directory / "schedule.json",
        schedule_json(
            result.scenario, text, result.world, result.wire, result.seed, result.schedule_hash, str(topology.directory)
        ),
    )
    with (directory / "history.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(_history_lines(evidence))
    (directory / "junit.xml").write_text(junit_xml(result), encoding="utf-8")
    _write_json(directory / "versions.json", versions(result.outcome.details))
    (directory / "report.html").write_text(page(result, topology), encoding="utf-8")


def copy_logs(logs: Mapping[str, Path], directory: Path) -> None:
    """Copies the nodes' logs as nodes/NODE/NAME.log; a log that is gone is left out."""
    for name, path in logs.items():
        target = directory / "nodes" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            shutil.copyfile(path, target)


def write_lines(texts: Mapping[str, Sequence[str]], directory: Path) -> None:
    """Writes what was never in a file, beside the nodes' logs."""
    for name, lines in texts.items():
        target = directory / "nodes" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def versions(details: Mapping[str, object]) -> dict[str, object]:
    """Of Python, the kernel and the packages that matter."""
    packages = {}
    for name in _REPORTED_PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    uname = platform.uname()
    return {
        "python": sys.version.split()[0],
        "kernel": f"{uname.system} {uname.release}",
        "machine": uname.machine,
        "cpus": os.cpu_count(),
        "packages": packages,
        "world": dict(details),
    }


def _history_lines(evidence: Evidence) -> Iterator[str]:
    """One JSON object for each entry; zeros are left out. `at_ms` counts from the start of the load."""
    for index, entry in enumerate(evidence.entries):
        if index >= HISTORY_LINES_MAX:
            yield json.dumps({"truncated": len(evidence.entries) - index}) + "\n"
            return
        yield json.dumps(history_object(evidence, entry)) + "\n"


def history_object(evidence: Evidence, entry: Entry) -> dict[str, object]:
    """One entry as data, with names for numbers."""
    line: dict[str, object] = {
        "at_ms": round((entry.at - evidence.load_at) / 1e6, 6),
        "kind": Kind(entry.kind).name.lower(),
        "node": evidence.node_name(entry.node),
    }
    if entry.partner:
        line["partner"] = evidence.node_name(entry.partner)
    if entry.client:
        line["client"] = evidence.clients.get(entry.client, entry.client)
    for name in ("incarnation", "epoch", "sequence", "offset", "length", "digest", "extra"):
        value = getattr(entry, name)
        if value or (name == "extra" and entry.kind in (Kind.PATH_DOWN, Kind.PATH_UP, Kind.PATH_FENCED, Kind.REPLAYED)):
            line[name] = value
    return line


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
