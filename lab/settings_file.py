"""The `ccm:` block of a topology file: the manager's settings, their ranges and orders checked with line and column.

Its keys are the fields of `ccm.settings.Settings`, durations without their `_ns`: `probe_interval: 10ms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema

from ccm.settings import BALANCES, BY_BYTES, BYTES_NEED_FAILBACK, DEFAULTS, ORDERED, RANGES, Settings
from lab import units
from lab.errors import Problem, did_you_mean
from lab.validation import Duration, FileModel
from lab.yaml_tree import Document

BLOCK = "ccm"
_NS = "_ns"


def _parse_balance(value: object) -> str | bool:
    """`true` means `vi`. Raises ValueError."""
    if value is True:
        return "vi"
    if value is False or (isinstance(value, str) and value in BALANCES):
        return value
    hint = did_you_mean(value, ["vi", BY_BYTES]) if isinstance(value, str) else ""
    raise ValueError(f"expected vi, bytes, true (vi) or false, found {units.found(value)}{hint}")


Balance = Annotated[str | bool, BeforeValidator(_parse_balance), WithJsonSchema({"enum": list(BALANCES)})]


class SettingsModel(FileModel):
    """Settings of the connection managers: intervals, limits and habits."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    probe_interval: Duration = DEFAULTS.probe_interval_ns
    """Between two probes of a path whose partners work."""
    idle_probe_interval: Duration = DEFAULTS.idle_probe_interval_ns
    """Between two probes where no work is under way."""
    apart_probe_interval: Duration = DEFAULTS.apart_probe_interval_ns
    """Between two probes of partners that share no client."""
    busy_probes_per_s: int = DEFAULTS.busy_probes_per_s
    """Most probes that a node sends in a second to partners that work."""
    idle_probes_per_s: int = DEFAULTS.idle_probes_per_s
    """Most that it sends to those that don't, handshakes that wait included."""
    apart_probes_per_s: int = DEFAULTS.apart_probes_per_s
    """Most that it sends to partners that it shares no client with."""
    busy_for: Duration = DEFAULTS.busy_for_ns
    """How long partners count as busy after the last completion."""
    limit_floor: Duration = DEFAULTS.limit_floor_ns
    """Least silence after which a path is given up for a better one."""
    limit_most: Duration = DEFAULTS.limit_most_ns
    """Most silence after which it is."""
    limit_factor: int = DEFAULTS.limit_factor
    """Between the two: so many times the worst round trip seen lately."""
    alone_limit: Duration = DEFAULTS.alone_limit_ns
    """Silence after which a path without a better one is given up."""
    shaken: Duration = DEFAULTS.shaken_ns
    """How long a path that has just answered late itself is no evidence against another one."""
    window: Duration = DEFAULTS.window_ns
    """The worst round trip of this window and the one before counts."""
    connect_timeout: Duration = DEFAULTS.connect_timeout_ns
    """How long an attempt to connect (up to sixteen times as long after failures), or a step of it, waits."""
    retry_first: Duration = DEFAULTS.retry_first_ns
    """Before the second attempt to connect; doubles with each further one."""
    retry_most: Duration = DEFAULTS.retry_most_ns
    """Longest time between attempts to connect."""
    refused_retry: Duration = DEFAULTS.refused_retry_ns
    """Before the next attempt after a wrong proof or identity."""
    poll: Duration = DEFAULTS.poll_ns
    """Between repetitions of read 1 and read 2 of the handshake."""
    hold_down_first: Duration = DEFAULTS.hold_down_first_ns
    """How long a lost path stays down at least; doubles while it flaps."""
    hold_down_most: Duration = DEFAULTS.hold_down_most_ns
    """The bound of that."""
    steady: Duration = DEFAULTS.steady_ns
    """A path that was up for this long is not flapping."""
    fence_timeout: Duration = DEFAULTS.fence_timeout_ns
    """After which a fence request is repeated over another path."""
    fence_attempts_max: int = DEFAULTS.fence_attempts_max
    """Fence requests before the path's sessions break."""
    failback: bool = DEFAULTS.failback
    """Whether sessions move back to a path that came up."""
    failback_after: Duration = DEFAULTS.failback_after_ns
    """How long it must be up before they do."""
    balance: Balance = DEFAULTS.balance
    """Sessions are spread over the paths by number (vi) or by bytes in flight, too; false: all use the first one."""
    stranded_timeout: Duration = DEFAULTS.stranded_timeout_ns
    """How long a session waits for queue pairs on a path that has just come up."""
    close_timeout: Duration = DEFAULTS.close_timeout_ns
    """How long a closing side waits for its partner."""


def key_of(field: str) -> str:
    """What a field of Settings is called in a file."""
    return field.removesuffix(_NS)


def shown(field: str, value: int | str) -> str:
    """A value of a field, as a file has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return units.format_duration(value) if field.endswith(_NS) else str(value)


def settings_of(model: SettingsModel) -> Settings:
    """The block as the manager takes it. Raises SettingsError where `problems` finds something."""
    return Settings(**{field: getattr(model, key_of(field)) for field in Settings.__dataclass_fields__})


def problems(document: Document, model: SettingsModel) -> Iterator[Problem]:
    """What is out of range, or contradicts another setting."""
    outside = set()
    for field, (least, most) in RANGES.items():
        value = getattr(model, key_of(field))
        if not least <= value <= most:
            outside.add(field)
            text = f"expected {shown(field, least)} to {shown(field, most)}, found {shown(field, value)}"
            yield document.problem((BLOCK, key_of(field)), f"{key_of(field)}: {text}")
    if model.balance == BY_BYTES and not model.failback:
        yield document.problem((BLOCK, "failback"), f"failback: expected true, found false: {BYTES_NEED_FAILBACK}")
    for lower, upper in ORDERED:
        low, high = getattr(model, key_of(lower)), getattr(model, key_of(upper))
        if low > high and not outside & {lower, upper}:
            named = key_of(lower) if key_of(lower) in model.model_fields_set else key_of(upper)
            text = f"{key_of(lower)} is {shown(lower, low)}, more than {key_of(upper)}, {shown(upper, high)}"
            yield document.problem((BLOCK, named), text)
