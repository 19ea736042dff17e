"""Memory regions: what an adapter may touch, under which key, and how.

One table for an adapter. Every access, local or remote, comes through `local` or `remote`; nothing else in the adapter
turns an address into bytes.
"""

from __future__ import annotations

import random

from emul.memory import Memory
from emul.vocabulary import AccessFlags, Rkey

REGIONS_MAX = 65_536
ADDRESS_FIRST = 0x7E00_0000_0000
"""Where virtual addresses begin; regions of one adapter never overlap."""
_PAGE = 4096
_LOCAL_WRITE = int(AccessFlags.LOCAL_WRITE)
_REMOTE = int(AccessFlags.REMOTE_READ | AccessFlags.REMOTE_WRITE | AccessFlags.REMOTE_ATOMIC)


class MemoryRegion:
    """`length` bytes of `memory`, known to the network as address `addr` under `key` (lkey and rkey are the same
    number).
    """

    __slots__ = ("access", "addr", "buffer", "key", "length", "memory", "offset", "pd", "valid", "watcher")

    def __init__(
        self,
        *,
        pd: int,
        addr: int,
        key: Rkey,
        buffer: memoryview,
        access: AccessFlags,
        memory: Memory,
        watcher: int,
        offset: int = 0,
    ) -> None:
        self.pd = pd
        self.addr = addr
        self.key = key
        self.buffer = buffer
        self.length = len(buffer)
        self.access = int(access)
        self.memory = memory
        self.watcher = watcher
        """Partner id that EXCHANGE_WRITTEN tells after each whole write, 0 for none."""
        self.offset = offset
        """Where in `memory` it begins."""
        self.valid = True
        """False once its key is dead: who still holds the region (a READ being answered, a request being sent) must
        look at it before each packet."""

    def slice(self, addr: int, length: int) -> memoryview:
        """The bytes at `addr`; the caller has checked that they lie inside."""
        offset = addr - self.addr
        return self.buffer[offset : offset + length]

    def flush(self, addr: int, length: int, *, persistent: bool) -> None:
        """Makes `length` bytes at `addr` readable by all, or safe from a loss of power; the caller has checked them."""
        if persistent:
            self.memory.persist(self.offset + addr - self.addr, length)


class RegionTable:
    """All regions of an adapter by key."""

    __slots__ = ("_by_key", "_next_address", "_rng", "_stale", "keeps_stale", "stale_uses")

    def __init__(self, rng: random.Random) -> None:
        self._by_key: dict[int, MemoryRegion] = {}
        self._rng = rng
        self._next_address = ADDRESS_FIRST + rng.randrange(1 << 24) * _PAGE
        self._stale: dict[int, MemoryRegion] = {}
        self.keeps_stale = False
        """A hardware fault: peers still reach what is deregistered."""
        self.stale_uses = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def register(
        self,
        memory: Memory,
        *,
        pd: int,
        access: AccessFlags,
        offset: int = 0,
        length: int | None = None,
        watcher: int = 0,
    ) -> MemoryRegion:
        """Makes `length` bytes of `memory` from `offset` reachable under a fresh, unpredictable key.

        Raises ValueError when they do not lie inside the memory or the table is full.
        """
        wanted = memory.length - offset if length is None else length
        if offset < 0 or wanted <= 0 or offset + wanted > memory.length:
            raise ValueError(f"{wanted} bytes from {offset} are not inside a memory of {memory.length}")
        if len(self._by_key) >= REGIONS_MAX:
            raise ValueError(f"an adapter holds {REGIONS_MAX} regions at the most")
        key = self._fresh_key()
        region = MemoryRegion(
            pd=pd,
            addr=self._next_address,
            key=key,
            buffer=memory.buffer[offset : offset + wanted],
            access=access,
            memory=memory,
            watcher=watcher,
            offset=offset,
        )
        self._next_address += (wanted + 2 * _PAGE - 1) // _PAGE * _PAGE  # a page between neighbours stays unmapped
        self._by_key[key] = region
        return region

    def deregister(self, key: int) -> None:
        """Forgets a key; packets that name it are refused from now on. An unknown key changes nothing."""
        region = self._by_key.pop(key, None)
        if region is None:
            return
        if self.keeps_stale:
            self._stale[key] = region
        else:
            region.valid = False

    def forget_stale(self) -> None:
        """Keys that had outlived their registration are dead."""
        for region in self._stale.values():
            region.valid = False
        self._stale.clear()

    def can_invalidate(self, rkey: int, pd: int) -> bool:
        """Whether a peer may kill this key: a region of the same domain that had been opened to peers at all."""
        region = self._by_key.get(rkey)
        return region is not None and region.pd == pd and bool(region.access & _REMOTE)

    def invalidate(self, rkey: int) -> None:
        """A peer kills a key (`can_invalidate` has permitted it); the region's owner still has to deregister it."""
        self.deregister(rkey)

    def get(self, key: int) -> MemoryRegion | None:
        """The region under `key`."""
        return self._by_key.get(key)

    def local(self, lkey: int, addr: int, length: int, pd: int, *, write: bool) -> MemoryRegion | None:
        """The region of a work request's SGE, None where the key, the domain, the bounds or the access don't permit
        it.
        """
        region = self._by_key.get(lkey)
        if region is None or region.pd != pd or (write and not region.access & _LOCAL_WRITE):
            return None
        offset = addr - region.addr
        return region if offset >= 0 and length >= 0 and offset + length <= region.length else None

    def remote(self, rkey: int, addr: int, length: int, pd: int, access: int) -> MemoryRegion | None:
        """The region that a packet from the wire may touch, None where anything forbids it."""
        region = self._by_key.get(rkey)
        if region is None:
            region = self._stale.get(rkey)
            if region is None:
                return None
            self.stale_uses += 1
        if region.pd != pd or region.access & access != access:
            return None
        offset = addr - region.addr
        return region if offset >= 0 and offset + length <= region.length else None

    def _fresh_key(self) -> Rkey:
        key = self._rng.randrange(1, 1 << 32)
        while key in self._by_key or key in self._stale:
            key = self._rng.randrange(1, 1 << 32)
        return Rkey(key)
