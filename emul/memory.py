"""Memory that a host, its adapters and the NVRAM card share.

Sits under everything that is mapped twice. A `Memory` is bytes with, in the real worlds, a file descriptor that another
process can map; in the simulator there is no descriptor. What the bytes mean is known elsewhere.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path

PAGED_FROM_BYTES = 1 << 18
"""Plain memory from this size on is taken page by page; below, the pages would be more trouble than the bytes."""


class Memory:
    """A run of bytes, perhaps shared: `buffer` is a writable memoryview of exactly `length` bytes."""

    __slots__ = ("_mapping", "buffer", "fd", "length", "on_persist")

    def __init__(self, buffer: memoryview, *, fd: int | None, mapping: mmap.mmap | None) -> None:
        self.buffer = buffer
        self.length = len(buffer)
        self.fd = fd
        self._mapping = mapping
        self.on_persist: Callable[[int, int], None] | None = None
        """Carries `length` bytes from `offset` into the persistence domain, where the card that owns the memory has
        one apart from its front."""

    def persist(self, offset: int, length: int) -> None:
        """Makes the bytes outlive a loss of power, as far as this memory can."""
        if self.on_persist is not None:
            self.on_persist(offset, length)

    @classmethod
    def plain(cls, length: int) -> Memory:
        """Zeroed memory of this process alone (the simulator, unit tests). Of much, only what is touched is taken from
        the machine: a node's firmware memory has room for 511 partners, and its history for hours.
        """
        if length < PAGED_FROM_BYTES:
            return cls(memoryview(bytearray(length)), fd=None, mapping=None)
        pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return cls(memoryview(pages), fd=None, mapping=None)

    @classmethod
    def allocate(cls, length: int, name: str = "memory") -> Memory:
        """Zeroed memory behind a memfd, to be passed to another process by its descriptor. Its size is sealed: nobody
        can take bytes away that another process has mapped, which would end that with SIGBUS.
        """
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, length)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls.map(fd, length)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def map_shared(cls, fd: int) -> Memory:
        """Maps what another process gave. Raises OSError for a memfd that its owner could shrink."""
        # A file is taken as it is: whoever may write the node's files can do worse.
        if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("/memfd:"):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls.map(fd)

    @classmethod
    def map(cls, fd: int, length: int | None = None) -> Memory:
        """Maps `fd` (owned from now on). Raises ValueError when the file is shorter than `length`."""
        size = os.fstat(fd).st_size
        wanted = size if length is None else length
        if wanted <= 0 or wanted > size:
            raise ValueError(f"cannot map {wanted} bytes of a file of {size}")
        mapping = mmap.mmap(fd, wanted)
        return cls(memoryview(mapping), fd=fd, mapping=mapping)

    @classmethod
    def bell(cls, fd: int | None = None) -> Memory:
        """No bytes, but a descriptor (an eventfd, a new one where none is given) by which a sleeper is woken."""
        ours = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd
        return cls(memoryview(b""), fd=ours, mapping=None)

    def ring(self) -> None:
        """Wakes who sleeps on this bell."""
        if self.fd is not None:
            os.eventfd_write(self.fd, 1)

    @classmethod
    def open_file(cls, path: Path, length: int) -> Memory:
        """Maps the file at `path`, made or grown (sparse) to `length` bytes: it outlives every process."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(fd).st_size < length:
            os.ftruncate(fd, length)
        return cls.map(fd, length)

    def close(self) -> None:
        """Unmaps and closes. Slices still held elsewhere keep the mapping alive until they go."""
        if self._mapping is not None:
            try:
                self.buffer.release()
                self._mapping.close()
            except BufferError:
                pass  # somebody still looks at a slice: the mapping goes with the last one
            self._mapping = None
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
