"""Peer information: which protocol version and capabilities two managers use with each other (R4).

Pure comparison of two INFO records. Without a common version the partner is refused, with the reason told to it in our
own INFO record, so that both sides can say why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from ccm.exchange import PATHS_MAX, Info, Record
from ccm.reasons import Reason

Versions = tuple[int, int]
"""Lowest and highest protocol version."""
OWN_VERSIONS: Versions = (1, 1)


class Capability(IntFlag):
    """What a manager can do beyond the protocol version; used where both have it."""

    NONE = 0
    FIRMWARE_FENCE = 1
    """Its firmware raises fences."""
    VI_MOVE = 2
    """It takes messages that change their path in mid-stream."""


OWN_CAPABILITIES = Capability.FIRMWARE_FENCE | Capability.VI_MOVE


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides use, or why they don't talk."""

    version: int
    capabilities: Capability
    refusal: Reason = Reason.NONE
    text: str = ""


def own_info(name: str, paths: int, versions: Versions = OWN_VERSIONS, refusal: Reason = Reason.NONE) -> Info:
    """Our INFO record's body."""
    return Info(*versions, OWN_CAPABILITIES, min(paths, PATHS_MAX), refusal, name[:32])


def agree(own: Info, record: Record, expected_node: int) -> Agreement:
    """Highest common version and common capabilities, or the refusal."""
    info = record.body
    assert isinstance(info, Info)
    if record.node != expected_node:
        text = f"node id {record.node}, expected {expected_node}"
        return Agreement(0, Capability.NONE, Reason.WRONG_IDENTITY, text)
    version = min(own.version_most, info.version_most)
    if version < max(own.version_least, info.version_least):
        text = (
            f"we speak {own.version_least}-{own.version_most}, {info.name or 'the partner'} speaks "
            f"{info.version_least}-{info.version_most}"
        )
        return Agreement(0, Capability.NONE, Reason.NO_COMMON_VERSION, text)
    return Agreement(version, Capability(own.capabilities & info.capabilities))
