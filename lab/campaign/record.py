"""A recorded schedule (schedule.json of a run's directory): read back into what can be run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import InputError
from lab.expectations import EXPECTATIONS
from lab.faults import FAULTS
from lab.scenario import At, OnFrame, OnSession, Scenario, Step, Trigger, Workload
from lab.topology import Topology

FORMAT = 1
FILE_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Recorded:
    """A schedule as it was run."""

    scenario: Scenario
    topology: Topology
    world: str
    wire: str
    seed: int
    schedule_hash: str
    """"" in a record that has none."""


def load_record(path: Path) -> Recorded:
    """Reads a schedule.json, or the one in a run's directory. Raises InputError with what was expected and found."""
    file = path / "schedule.json" if path.is_dir() else path
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise InputError(str(file), None, None, f"expected at most {FILE_BYTES_MAX} bytes, found more")
        data: object = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(file), None, None, f"can't read this file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(str(file), None, None, f"expected a recorded schedule in UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(str(file), error.lineno, error.colno, f"expected JSON: {error.msg}") from error
    return parse_record(data, str(file))


def parse_record(data: object, file: str = "<record>") -> Recorded:
    """As `load_record`, from what was read."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise InputError(file, None, None, f"expected a recorded schedule of format {FORMAT}, found {found!r}")
    try:
        text = str(data["topology_text"])
        where = Path(str(data.get("topology_directory", "")))
        topology = Topology.parse(text, file, where) if text else Topology.load(str(data["topology"]))
        scenario = _scenario(data)
        seed = data["seed"]
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise TypeError(f"expected a seed of 0 or more, found {seed!r}")
        recorded_hash = str(data.get("schedule_hash", ""))
        world, wire = str(data["world"]), str(data["wire"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(file, None, None, f"this is no whole recorded schedule: {what}") from error
    _check_targets(scenario, topology, file)
    return Recorded(scenario, topology, world, wire, seed, recorded_hash)


def _scenario(data: Mapping[str, Any]) -> Scenario:
    for name in data["expect"]:
        if name not in EXPECTATIONS:
            raise ValueError(f"unknown expectation {name!r}")
    return Scenario(
        name=str(data["scenario"]),
        topology=str(data["topology"]),
        workload={str(client): Workload(**load) for client, load in data["workload"].items()},
        steps=tuple(_step(step) for step in data["steps"]),
        expect={str(name): dict(parameters) for name, parameters in data["expect"].items()},
    )


def _step(data: Mapping[str, Any]) -> Step:
    if data["fault"] not in FAULTS:
        raise ValueError(f"unknown fault {data['fault']!r}")
    duration = data["duration_ns"]
    if duration is not None and (not isinstance(duration, int) or duration < 0):
        raise ValueError(f"expected a duration in ns, found {duration!r}")
    return Step(_trigger(data["trigger"]), str(data["fault"]), data["target"], duration, dict(data["parameters"]))


def _trigger(data: Mapping[str, Any]) -> Trigger:
    makers = {"at": At, "frame": OnFrame, "session": OnSession}
    [(kind, fields)] = data.items()
    if kind not in makers:
        raise ValueError(f"unknown trigger {kind!r}, expected one of {', '.join(makers)}")
    made: Trigger = makers[kind](**fields)
    return made


def _check_targets(scenario: Scenario, topology: Topology, file: str) -> None:
    """A fault's target is there: its run would end in the middle otherwise."""
    for step in scenario.steps:
        node, _, adapter = (step.target or "").partition(".")
        known = (
            step.target is None
            or step.target in topology.cables
            or step.target in topology.nodes
            or topology.has_port(node, adapter)
        )
        if not known:
            raise InputError(file, None, None, f"{step.fault}: topology {topology.name} has no {step.target!r}")
