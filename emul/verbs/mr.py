"""Memory regions (pyverbs' `mr`)."""

from __future__ import annotations

from emul.errors import PyverbsUserError
from emul.memory import Memory
from emul.verbs.base import Resource, answered_int, as_int, expect
from emul.verbs.pd import PD


class MR(Resource):
    """A memory region: `length` bytes of its own, of `memory` from `offset`, or, with `address`, of another open region
    of this adapter.

    An adapter is a process of its own and reaches no memory of its host that it was not shown: an `address` outside
    all regions is refused, where a real card would pin the caller's pages.
    """

    def __init__(
        self,
        creator: PD,
        length: int = 0,
        access: int = 0,
        address: int | None = None,
        *,
        memory: Memory | None = None,
        offset: int = 0,
    ) -> None:
        super().__init__()
        self.pd = expect(creator, PD, "an MR's creator")
        self.pd._check_open()
        if as_int(length, "length") <= 0:
            raise PyverbsUserError(f"a region has at least one byte, got {length}")
        if address is not None:
            memory, offset = self._memory_at(as_int(address, "address"), length)
        self.length = length
        self._owns = memory is None
        self.memory = self.pd.context.device.allocate(length, "mr") if memory is None else memory
        self._offset = offset
        request: dict[str, object] = {"op": "reg_mr", "pd": self.pd.number, "access": as_int(access, "access")}
        request |= {"offset": offset, "length": length}
        try:
            reply, _ = self.pd.context.call(request, [self.memory])
        except Exception:
            self._release()
            raise
        self.lkey = answered_int(reply, "lkey")
        self.rkey = answered_int(reply, "rkey")
        self.buf = answered_int(reply, "addr")
        """Its virtual address, the same here and over the wire."""
        self._belongs_to(self.pd)

    @property
    def handle(self) -> int:
        """A number for it."""
        return self.lkey

    def read(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset`."""
        self._check(length, offset)
        start = self._offset + offset
        return bytes(self.memory.buffer[start : start + length])

    def write(self, data: bytes | str, length: int, offset: int = 0) -> None:
        """Stores the first `length` bytes of `data` at `offset`."""
        self._check(length, offset)
        given = data.encode() if isinstance(data, str) else data
        if len(given) < length:
            raise PyverbsUserError(f"{length} bytes are to be written, {len(given)} were given")
        start = self._offset + offset
        self.memory.buffer[start : start + length] = given[:length]

    def slice(self, addr: int, length: int) -> memoryview | None:
        """Its bytes at virtual address `addr`; None where they are not all inside."""
        at = addr - self.buf
        if self.closed or at < 0 or length < 0 or at + length > self.length:
            return None
        return self.memory.buffer[self._offset + at : self._offset + at + length]

    def _memory_at(self, address: int, length: int) -> tuple[Memory, int]:
        for domain in self.pd.context._children:
            for region in domain._children:
                if isinstance(region, MR) and region.slice(address, length) is not None:
                    return region.memory, region._offset + address - region.buf
        raise PyverbsUserError(f"{length} bytes at {address:#x} are in no open region; `memory` shares other bytes")

    def _check(self, length: int, offset: int) -> None:
        plain = type(offset) is int and type(length) is int and not self.closed
        if plain and offset >= 0 and length >= 0 and offset + length <= self.length:
            return  # nearly always: the rest finds out what is wrong
        self._check_open()
        if as_int(offset, "offset") < 0 or as_int(length, "length") < 0 or offset + length > self.length:
            raise PyverbsUserError(f"{length} bytes at {offset} are not inside a region of {self.length}")

    def _destroy(self) -> None:
        # Packets that name its key are refused from now on.
        self.pd.context.call({"op": "dereg_mr", "lkey": self.lkey})

    def _release(self) -> None:
        if self._owns:
            self.memory.close()
