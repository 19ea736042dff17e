"""What a client needs of its sessions, and the set of all needs that two managers compare (R5).

Values only. Both sides put the needs of their clients towards each other into a manifest; a session opens where both
have the client and ask for the same, and nothing is ready before both hold the same two manifests.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ccm.exchange import CLIENTS_MAX, NAME_BYTES, VIS_MAX, Manifest, ManifestEntry
from ccm.reasons import Reason

DEPTH_MAX = 1024
"""Most unconfirmed requests on one virtual interface."""
MESSAGE_BYTES_MAX = 64 * 1024


EQUAL_FIELDS = ("name", "version", "service_class", "vis", "depth", "message_bytes")
"""What both sides of a session must ask for alike."""


class NeedsError(ValueError):
    """A client asks for what no session can give; its text has the figures."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one client needs towards one partner.

    `depth`: most unconfirmed requests on each virtual interface, a full one is back-pressure. `message_bytes`: largest
    message, 0 for a client that sends none. `exposed_bytes`: memory that the partner may write (need not be equal on
    both sides). `version`: of the client's own protocol.
    """

    vis: int = 1
    depth: int = 64
    message_bytes: int = 0
    exposed_bytes: int = 0
    service_class: int = 0
    version: int = 1

    def __post_init__(self) -> None:
        for name, least, most in (
            ("vis", 0, VIS_MAX),
            ("depth", 1, DEPTH_MAX),
            ("message_bytes", 0, MESSAGE_BYTES_MAX),
        ):
            if not least <= getattr(self, name) <= most:
                raise NeedsError(f"{name} is {getattr(self, name)}, expected {least} ... {most}")
        if self.exposed_bytes < 0 or self.service_class not in (0, 1):
            raise NeedsError(f"exposed_bytes {self.exposed_bytes}, service_class {self.service_class}: out of range")


def client_key(name: str) -> int:
    """The number that stands for a client on the wire. Raises NeedsError for a name that is empty or over 24 bytes."""
    if not 0 < len(name.encode()) <= NAME_BYTES:
        raise NeedsError(f"client name {name!r}: expected 1 ... {NAME_BYTES} bytes")
    return zlib.crc32(name.encode())


def build_manifest(needs: Mapping[str, Needs]) -> Manifest:
    """The manifest of clients by name. Raises NeedsError for too many clients or two with one key."""
    if len(needs) > CLIENTS_MAX:
        raise NeedsError(f"{len(needs)} clients, at most {CLIENTS_MAX}")
    if len({client_key(name) for name in needs}) != len(needs):
        raise NeedsError(f"two of {sorted(needs)} have one key")
    return Manifest(
        tuple(
            ManifestEntry(
                name, client_key(name), need.version, need.service_class, need.vis, need.depth, need.message_bytes,
                need.exposed_bytes,
            )
            for name, need in sorted(needs.items())
        )
    )  # fmt: skip


def compare(mine: ManifestEntry, theirs: ManifestEntry | None) -> Reason:
    """Why a session can't open, NONE if it can."""
    if theirs is None:
        return Reason.PARTNER_LACKS_CLIENT
    same = all(getattr(mine, name) == getattr(theirs, name) for name in EQUAL_FIELDS)
    return Reason.NONE if same else Reason.NEEDS_DIFFER


def difference(mine: ManifestEntry, theirs: ManifestEntry) -> str:
    """In which fields two entries differ that must be equal, in words: "depth 16 here, 32 there"."""
    return ", ".join(
        f"{name} {getattr(mine, name)} here, {getattr(theirs, name)} there"
        for name in EQUAL_FIELDS
        if getattr(mine, name) != getattr(theirs, name)
    )


def contradiction(manifest: Manifest) -> str:
    """What is wrong with a partner's manifest, in words; empty when nothing is."""
    names: set[str] = set()
    for entry in manifest.entries:
        if not entry.name:
            return "a client without a name"
        if entry.client != client_key(entry.name):
            return f"client {entry.name!r} with key {entry.client:#x}, expected {client_key(entry.name):#x}"
        if entry.name in names:
            return f"client {entry.name!r} twice"
        names.add(entry.name)
    return ""


def find_entry(manifest: Manifest, client: int) -> ManifestEntry | None:
    """The entry of a client's key."""
    return next((entry for entry in manifest.entries if entry.client == client), None)


def manifests_digest(first: Manifest, second: Manifest) -> int:
    """CRC-32 over two manifests, the lower node id's first: the same number on both sides."""
    return zlib.crc32(repr(second.entries).encode(), zlib.crc32(repr(first.entries).encode()))
