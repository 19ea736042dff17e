"""The memory that belongs to a node's firmware: boot status, fences, counters that survive, exchange areas.

One file for each node, mapped by its host and by each of its adapters; it outlives them all, as the table in
docs/architecture.md tells. Knows where things are and which of them grow only; what the exchange areas carry is the
manager's business.

Layout (offsets in bytes, integers little-endian):

    0                 boot status page, 4 KiB: read by partners over RDMA at every boot stage
    LOOKS_OFFSET      of it: for each adapter a u64, how often it has looked at its port; 0: no adapter, or a dead one
    FENCES_OFFSET     fence epochs, one u64 for each slot (partner id x PATHS_MAX + path)
    ADAPTERS_OFFSET   adapters' slots of 64 bytes: turn counter (odd while a frame is handled), alive
    COUNTERS_OFFSET   incarnation, then one u64 session epoch for each partner id: persistent
    EXCHANGE_OFFSET   one exchange area for each partner id: inbox (the partner writes), then outbox (it reads)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from emul.memory import Memory

PARTNERS_MAX: Final = 512
"""Node ids are 1 ... PARTNERS_MAX - 1."""
PATHS_MAX: Final = 8
"""Paths to one partner are 0 ... PATHS_MAX - 1; both ends number them alike."""
ADAPTERS_MAX: Final = 16

STATUS_BYTES: Final = 4096
FENCES_OFFSET: Final = STATUS_BYTES
FENCE_SLOTS: Final = PARTNERS_MAX * PATHS_MAX
FENCES_BYTES: Final = FENCE_SLOTS * 8
ADAPTERS_OFFSET: Final = FENCES_OFFSET + FENCES_BYTES
ADAPTERS_BYTES: Final = ADAPTERS_MAX * 64
COUNTERS_OFFSET: Final = ADAPTERS_OFFSET + ADAPTERS_BYTES
COUNTERS_BYTES: Final = 8 + PARTNERS_MAX * 8
EXCHANGE_OFFSET: Final = (COUNTERS_OFFSET + COUNTERS_BYTES + 4095) & ~4095
INBOX_BYTES: Final = 16 * 1024
EXCHANGE_BYTES: Final = 2 * INBOX_BYTES
NODE_MEMORY_BYTES: Final = EXCHANGE_OFFSET + PARTNERS_MAX * EXCHANGE_BYTES

STATUS_MAGIC = 0x43434D53
STATUS_VERSION = 1
_STATUS = struct.Struct("<IHHQQQ64s")
# magic, version, stage, incarnation, progress, heartbeat, last error
LOOKS_OFFSET = 128
_LOOKS_BYTES = 8 * ADAPTERS_MAX
STATUS_READ_BYTES = LOOKS_OFFSET + _LOOKS_BYTES
"""How much of the page a partner reads for its heartbeat: 256 bytes, one packet at every path MTU."""
_LOOKS = tuple(struct.Struct(f"<{count}Q") for count in range(ADAPTERS_MAX + 1))
_STAGE_OFFSET, _INCARNATION_OFFSET, _PROGRESS_OFFSET, _HEARTBEAT_OFFSET, _ERROR_OFFSET = 6, 8, 16, 24, 32
LAST_ERROR_BYTES = 64


class Stage(IntEnum):
    """Boot stages of a node, in their order."""

    OFF = 0
    """No power."""
    FIRMWARE = 1
    """Adapters answer; no host process yet."""
    LOADER = 2
    """The host process has started, and the manager with it."""
    KERNEL = 3
    STORAGE_OS = 4
    SERVING = 5


_STAGES = frozenset(int(stage) for stage in Stage)


@dataclass(frozen=True, slots=True)
class BootStatus:
    """The boot status page as a partner reads it."""

    stage: Stage
    incarnation: int
    progress: int
    heartbeat: int
    last_error: str

    @classmethod
    def parse(cls, data: bytes | memoryview) -> BootStatus | None:
        """The page's fields; None for bytes that are no boot status (another node's memory is hostile input)."""
        figures = status_figures(data)
        if figures is None:
            return None
        stage, incarnation, progress, heartbeat = figures
        text = _STATUS.unpack_from(data)[-1].rstrip(b"\0").decode("utf-8", "replace")
        return cls(Stage(stage), incarnation, progress, heartbeat, text)


def status_figures(data: bytes | memoryview) -> tuple[int, int, int, int] | None:
    """(stage, incarnation, progress, heartbeat) of a status page; None for bytes that are none."""
    if len(data) < _STATUS.size:
        return None
    magic, version, stage, incarnation, progress, heartbeat, _ = _STATUS.unpack_from(data)
    if magic != STATUS_MAGIC or version != STATUS_VERSION or stage not in _STAGES:
        return None
    return stage, incarnation, progress, heartbeat


def parse_looks(data: bytes | memoryview) -> tuple[int, ...]:
    """From STATUS_READ_BYTES of a status page: how often each adapter of the node has looked at its port, by its index,
    up to the last one that there is. Only whether a number has changed means something; 0 is no living adapter.
    """
    looks = bytes(data[LOOKS_OFFSET:STATUS_READ_BYTES]).rstrip(b"\0")
    return _LOOKS[(len(looks) + 7) // 8].unpack_from(data, LOOKS_OFFSET)


def fence_slot(partner_id: int, path: int) -> int:
    """The fence slot of `path` from `partner_id`. Raises ValueError outside 1 ... 511 and 0 ... 7."""
    if not 0 < partner_id < PARTNERS_MAX or not 0 <= path < PATHS_MAX:
        raise ValueError(f"no fence slot for partner {partner_id}, path {path}")
    return partner_id * PATHS_MAX + path


class NodeMemory:
    """Accessors over a node's firmware memory."""

    __slots__ = ("_words", "buffer", "memory")

    def __init__(self, memory: Memory) -> None:
        if memory.length < NODE_MEMORY_BYTES:
            raise ValueError(f"node memory needs {NODE_MEMORY_BYTES} bytes, got {memory.length}")
        self.memory = memory
        self.buffer = memory.buffer
        self._words = memory.buffer[:EXCHANGE_OFFSET].cast("Q")

    def power_on(self, first_incarnation: int = 0) -> None:
        """What power brings: a fresh status page at stage FIRMWARE. Persistent counters stay."""
        incarnation = max(self.incarnation, first_incarnation)
        self._put(COUNTERS_OFFSET, incarnation)
        self.buffer[:STATUS_READ_BYTES] = bytes(STATUS_READ_BYTES)
        _STATUS.pack_into(self.buffer, 0, STATUS_MAGIC, STATUS_VERSION, Stage.FIRMWARE, incarnation, 0, 0, b"")

    @property
    def status(self) -> BootStatus | None:
        """The status page, None before the first power-on."""
        return BootStatus.parse(self.buffer[:STATUS_BYTES])

    def begin_incarnation(self) -> int:
        """Counts one boot of the host; gives the new incarnation, stage LOADER, heartbeat and progress 0."""
        incarnation = self.incarnation + 1
        self._put(COUNTERS_OFFSET, incarnation)
        _STATUS.pack_into(self.buffer, 0, STATUS_MAGIC, STATUS_VERSION, Stage.LOADER, incarnation, 0, 0, b"")
        return incarnation

    def enter_stage(self, stage: Stage) -> None:
        """The host (never the firmware) enters a boot stage; progress grows by one."""
        struct.pack_into("<H", self.buffer, _STAGE_OFFSET, stage)
        self._put(_PROGRESS_OFFSET, self._get(_PROGRESS_OFFSET) + 1)

    def beat(self) -> None:
        """The host shows that it runs. The firmware never calls this, or a hung host would look alive."""
        self._put(_HEARTBEAT_OFFSET, self._get(_HEARTBEAT_OFFSET) + 1)

    def set_last_error(self, text: str) -> None:
        """Leaves the host's last error on the status page (cut to 64 bytes of UTF-8)."""
        struct.pack_into(f"{LAST_ERROR_BYTES}s", self.buffer, _ERROR_OFFSET, text.encode()[:LAST_ERROR_BYTES])

    @property
    def incarnation(self) -> int:
        """The host's last incarnation, persistent."""
        return self._get(COUNTERS_OFFSET)

    def session_epoch(self, partner_id: int) -> int:
        """The highest session epoch ever agreed with `partner_id`, persistent."""
        return self._get(COUNTERS_OFFSET + 8 + 8 * partner_id)

    def raise_session_epoch(self, partner_id: int, epoch: int) -> None:
        """Remembers `epoch`; a lower one than known changes nothing."""
        self._put(COUNTERS_OFFSET + 8 + 8 * partner_id, max(epoch, self.session_epoch(partner_id)))

    def fence_epoch(self, slot: int) -> int:
        """The fence epoch of `slot`: a queue pair tagged with a lower one may not write."""
        return self._get(FENCES_OFFSET + 8 * slot)

    def raise_fence(self, slot: int, epoch: int) -> None:
        """Raises `slot` to `epoch`; fences never fall."""
        self._put(FENCES_OFFSET + 8 * slot, max(epoch, self.fence_epoch(slot)))

    def turn(self, adapter: int) -> int:
        """The turn counter of an adapter: odd while it handles a frame."""
        return self._get(ADAPTERS_OFFSET + 64 * adapter)

    def set_turn(self, adapter: int, turn: int) -> None:
        """Written by the adapter before and after each batch of frames."""
        self._put(ADAPTERS_OFFSET + 64 * adapter, turn)

    def adapter_alive(self, adapter: int) -> bool:
        """Whether the adapter's process runs, as its spawner knows."""
        return self._get(ADAPTERS_OFFSET + 64 * adapter + 8) != 0

    def set_adapter_alive(self, adapter: int, alive: bool) -> None:
        """Set by the adapter when it starts, cleared by whoever reaps it: then it looks at nothing any more."""
        self._put(ADAPTERS_OFFSET + 64 * adapter + 8, int(alive))
        self._put(LOOKS_OFFSET + 8 * adapter, 0)

    def set_looks(self, adapter: int, looks: int) -> None:
        """Written by the adapter each time it has looked at everything that may wait for it: partners and its own host
        tell by it a card that the machine doesn't run from a silent path.
        """
        self._put(LOOKS_OFFSET + 8 * adapter, looks)

    @property
    def looks(self) -> tuple[int, ...]:
        """As `parse_looks` of this node's own page."""
        return parse_looks(self.buffer)

    @staticmethod
    def exchange_offset(partner_id: int) -> int:
        """Where the exchange area of `partner_id` begins: its inbox, then its outbox."""
        return EXCHANGE_OFFSET + partner_id * EXCHANGE_BYTES

    def inbox(self, partner_id: int) -> memoryview:
        """Where `partner_id` writes its records for this node: INBOX_BYTES."""
        start = self.exchange_offset(partner_id)
        return self.buffer[start : start + INBOX_BYTES]

    def outbox(self, partner_id: int) -> memoryview:
        """What this node publishes for `partner_id` to read: INBOX_BYTES."""
        start = self.exchange_offset(partner_id) + INBOX_BYTES
        return self.buffer[start : start + INBOX_BYTES]

    def _get(self, offset: int) -> int:
        return self._words[offset >> 3]

    def _put(self, offset: int, value: int) -> None:
        self._words[offset >> 3] = value
