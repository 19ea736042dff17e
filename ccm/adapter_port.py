"""One local adapter as the driver uses it: protection domain, one completion queue, who gets which completion."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOMEM

from emul.clock import Instant
from emul.errors import DeviceGone, RDMAError
from emul.verbs import CQ, MR, PD, Context
from emul.vocabulary import WC, AccessFlags

COMPLETIONS_FIRST = 4096
"""Size of the completion queue at first."""
COMPLETIONS_SPARE = 1024
"""Entries for what makes no reservation: the well-known connections, a few requests each."""
OVERCOMMIT_MAX = 512
"""Entries of a session that gets room in a queue that is full of reservations."""
POLL_MAX = 64
"""Completions taken at once."""
POLLS_MAX = 128
"""Rounds of one drain: bounds the time away from timers."""

PIECE_BYTES = 2048
"""What one well-known connection needs of a region for its own use."""
PIECES = 16

Handler = Callable[[WC, Instant], None]


class Piece:
    """A part of a region (as `emul.verbs.MR`, as far as connections need it)."""

    __slots__ = ("_offset", "buf", "lkey", "region")

    def __init__(self, region: MR, offset: int) -> None:
        self.region = region
        self._offset = offset
        self.buf = region.buf + offset
        self.lkey = region.lkey

    def read(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset`."""
        return self.region.read(length, self._offset + offset)

    def write(self, data: bytes, length: int, offset: int = 0) -> None:
        """Stores the first `length` bytes of `data` at `offset`."""
        self.region.write(data, length, self._offset + offset)


class AdapterPort:
    """An adapter with its host's resources. `gone`: its process does not answer; every verb would fail."""

    def __init__(self, index: int, context: Context, incarnation: int) -> None:
        self.index = index
        self.context = context
        self.handlers: dict[int, Handler] = {}
        self.gone = False
        self.let_go = False
        """The manager was told that the adapter is gone, so that nothing is posted there: its context may be closed."""
        self.now = Instant(0)
        self.strays = 0
        """Completions of queue pairs that are no longer there."""
        context.attach(incarnation)
        self.pd = PD(context)
        self.cq = CQ(context, COMPLETIONS_FIRST)
        self._room = COMPLETIONS_FIRST
        self._reserved = COMPLETIONS_SPARE
        self.cq.req_notify()
        facts = context.query_port(1)
        self.mtu = facts.active_mtu
        """The largest path MTU that the port carries."""
        self.had_carrier = facts.state.name == "ACTIVE"
        """When it was opened."""
        self._pieces: list[Piece] = []
        """Free ones."""
        self._taken = 0

    def take_piece(self) -> Piece:
        """PIECE_BYTES of zeros that the adapter may write to; `give_back` them when nothing refers to them any more.
        They come from regions for PIECES of them, as to register a region is a slow verb. Raises RDMAError.
        """
        if not self._pieces:
            region = MR(self.pd, PIECES * PIECE_BYTES, AccessFlags.LOCAL_WRITE)
            self._pieces = [Piece(region, number * PIECE_BYTES) for number in range(PIECES)]
        piece = self._pieces.pop()
        self._taken += 1
        piece.write(bytes(PIECE_BYTES), PIECE_BYTES)
        return piece

    def give_back(self, piece: Piece) -> list[MR]:
        """Nothing of the adapter's refers to it any more; gives the regions that are to be closed with the last."""
        self._pieces.append(piece)
        self._taken -= 1
        if self._taken:
            return []
        regions = {each.lkey: each.region for each in self._pieces}
        self._pieces.clear()
        return list(regions.values())

    def reserve(self, entries: int) -> None:
        """So many completions may wait at once from now on, besides those reserved before: a queue that overran would
        take everybody's with it. Raises RDMAError where the adapter's largest queue can't hold as many; then nothing
        is reserved. Sessions of at most OVERCOMMIT_MAX entries get room even so: in a cluster of hundreds, not all of
        them are full at once.
        """
        wanted = self._reserved + entries
        if wanted > self._room:
            most = self.context.query_device().max_cqe
            if wanted > most and entries > OVERCOMMIT_MAX:
                raise RDMAError(ENOMEM, f"{wanted} completions may wait, the largest queue holds {most}")
            room = min(most, 1 << (wanted - 1).bit_length())
            if room > self._room:
                self.cq.resize(room)
                self.cq.req_notify()
                self._room = room
        self._reserved = wanted

    def release(self, entries: int) -> None:
        """They can't come any more."""
        self._reserved -= entries

    def wake(self, now: Instant) -> None:
        """After a wake-up: arms the queue first, so that nothing that comes while it is emptied is overlooked."""
        if self.gone:
            return
        self.now = now
        self.context.clear_event()
        self.cq.req_notify()
        self.drain()

    def drain(self) -> None:
        """Hands out all completions; none where the way to the adapter is closed already."""
        if self.context.closed:
            return
        handlers, poll = self.handlers, self.cq.poll
        for _ in range(POLLS_MAX):
            count, completions = poll(POLL_MAX)
            for completion in completions:
                handler = handlers.get(completion.qp_num)
                if handler is None:
                    self.strays += 1
                else:
                    handler(completion, self.now)
            if count < POLL_MAX:
                return

    def attempt(self, verb: Callable[[], object]) -> bool:
        """Carries out a verb whose failure changes nothing (giving something back); whether it succeeded."""
        try:
            verb()
        except DeviceGone:
            self.gone = True
            return False
        except RDMAError:
            return False
        return True
