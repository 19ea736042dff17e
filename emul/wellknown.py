"""The well-known connection: what a partner and a node's firmware say to each other when, and after, it is made.

A manager connects one queue pair on each path to its partner's firmware by IB CM (REQ, REP, RTU) at SERVICE_ID. The
firmware answers whether a host runs or not. Private data carries identity, challenge and proof (R11), and where the
boot status page and the exchange area are; afterwards the queue pair reads and writes those, and SENDs fence requests.
Values with parse and emit; no state.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

SERVICE_PORT = 0xCC4D
SERVICE_ID = 0x0106_0000 | SERVICE_PORT
"""As rdma_cm numbers services of its TCP port space, so that an rdma_cm program can call (Linux `cma.c`,
cma_get_service_id)."""
PROTOCOL_VERSION = 1
CHALLENGE_BYTES = 16
PROOF_BYTES = 32
_MAGIC = 0x43434D57

_REQUEST = struct.Struct("<IHHHHQ16s")
_REPLY = struct.Struct("<IHHQ16s32sQIQIQIHQI")
_MESSAGE = struct.Struct("<IHHQQ")
_REFUSAL = struct.Struct("<IHH")
MESSAGE_BYTES = _MESSAGE.size
RECEIVE_BYTES = 64
"""Size of the receive buffers that both ends post on the well-known connection."""
PROBE_BYTES = 4096
"""Size of the area that partners may write to find out whether packets of a path MTU get through: the largest one."""
RECEIVES_POSTED = 8
"""How many of them each end keeps posted."""


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """Private data of REQ: who calls, over which path, and a challenge for the other side."""

    node_id: int
    path: int
    incarnation: int
    challenge: bytes
    version: int = PROTOCOL_VERSION

    def emit(self) -> bytes:
        """34 + 2 bytes, fits a REQ (92, of which rdma_cm's header takes 36)."""
        return _REQUEST.pack(_MAGIC, self.version, self.node_id, self.path, 0, self.incarnation, self.challenge)

    @classmethod
    def parse(cls, data: bytes) -> ConnectRequest | None:
        """None for anything that is not a connect request."""
        if len(data) < _REQUEST.size:
            return None
        magic, version, node_id, path, _, incarnation, challenge = _REQUEST.unpack_from(data)
        if magic != _MAGIC:
            return None
        return cls(node_id, path, incarnation, challenge, version)


@dataclass(frozen=True, slots=True)
class ConnectReply:
    """Private data of REP: the firmware's identity and proof, its challenge, and what it lets the caller reach."""

    node_id: int
    incarnation: int
    challenge: bytes
    proof: bytes
    status_addr: int
    status_rkey: int
    inbox_addr: int
    """Where the caller may write (its inbox at this node)."""
    inbox_rkey: int
    outbox_addr: int
    """Where the caller may read what this node publishes for it."""
    outbox_rkey: int
    adapter: int | None = None
    """Index of the answering adapter in its node; None: the firmware doesn't tell (the field came later, and those who
    don't know it leave or find zeros there).
    """
    probe_addr: int = 0
    probe_rkey: int = 0
    """Where the caller may write PROBE_BYTES that nobody reads; a key of 0: nowhere."""
    version: int = PROTOCOL_VERSION

    def emit(self) -> bytes:
        """114 bytes, fits a REP (196). The adapter's index is sent as index + 1."""
        return _REPLY.pack(
            _MAGIC, self.version, self.node_id, self.incarnation, self.challenge, self.proof, self.status_addr,
            self.status_rkey, self.inbox_addr, self.inbox_rkey, self.outbox_addr, self.outbox_rkey,
            0 if self.adapter is None else self.adapter + 1, self.probe_addr, self.probe_rkey,
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> ConnectReply | None:
        """None for anything that is not a connect reply."""
        if len(data) < _REPLY.size:
            return None
        (
            magic, version, node, boot, challenge, answer, status, status_key, inbox, inbox_key, outbox, outbox_key,
            card, probe, probe_key,
        ) = _REPLY.unpack_from(data)  # fmt: skip
        if magic != _MAGIC:
            return None
        return cls(
            node, boot, challenge, answer, status, status_key, inbox, inbox_key, outbox, outbox_key,
            card - 1 if card else None, probe, probe_key, version,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class VersionRefusal:
    """Private data of REJ: the firmware speaks `version` and no other."""

    version: int

    def emit(self) -> bytes:
        """8 bytes, fits a REJ (148)."""
        return _REFUSAL.pack(_MAGIC, self.version, 0)

    @classmethod
    def parse(cls, data: bytes) -> VersionRefusal | None:
        """None for anything that is not such a refusal."""
        if len(data) < _REFUSAL.size:
            return None
        magic, version, why = _REFUSAL.unpack_from(data)
        return cls(version) if magic == _MAGIC and why == 0 else None


@dataclass(frozen=True, slots=True)
class IdentityRefusal:
    """Private data of REJ: node `node_id` is connected on this path from another address."""

    node_id: int

    def emit(self) -> bytes:
        """8 bytes, fits a REJ (148)."""
        return _REFUSAL.pack(_MAGIC, self.node_id, 1)

    @classmethod
    def parse(cls, data: bytes) -> IdentityRefusal | None:
        """None for anything that is not such a refusal."""
        if len(data) < _REFUSAL.size:
            return None
        magic, node_id, why = _REFUSAL.unpack_from(data)
        return cls(node_id) if magic == _MAGIC and why == 1 else None


def proof(key: bytes, role: str, challenge: bytes, node_id: int, incarnation: int) -> bytes:
    """HMAC-SHA256 over role, challenge and the prover's identity.

    `role` is "firmware" or "caller": bound in, so that a challenge sent back to its author proves nothing (reflection).
    """
    text = role.encode() + challenge + struct.pack("<HQ", node_id, incarnation)
    return hmac.new(key, text, hashlib.sha256).digest()


def proof_matches(expected: bytes, got: bytes) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(expected, got)


def any_proof_matches(
    keys: tuple[bytes, ...], role: str, challenge: bytes, node_id: int, incarnation: int, got: bytes
) -> bool:
    """Whether `got` is a proof with one of `keys`; takes as long with the first as with the last."""
    return any([proof_matches(proof(key, role, challenge, node_id, incarnation), got) for key in keys])


MESSAGE_FENCE = 1
"""Raise my fence slot of `path` to `epoch`."""
MESSAGE_FENCED = 2
"""The slot of `path` is at `epoch` or above, and no sibling adapter still handles a frame it let through before."""


@dataclass(frozen=True, slots=True)
class FirmwareMessage:
    """A SEND on the well-known connection, 24 bytes: `kind`, `path`, `epoch`, and a number that the answer repeats."""

    kind: int
    path: int
    epoch: int
    number: int

    def emit(self) -> bytes:
        """MESSAGE_BYTES bytes."""
        return _MESSAGE.pack(_MAGIC, self.kind, self.path, self.epoch, self.number)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> FirmwareMessage | None:
        """None for anything that is not such a message."""
        if len(data) < _MESSAGE.size:
            return None
        magic, kind, path, epoch, number = _MESSAGE.unpack_from(data)
        return cls(kind, path, epoch, number) if magic == _MAGIC else None
