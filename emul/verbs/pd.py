"""Protection domains (pyverbs' `pd`)."""

from __future__ import annotations

from emul.verbs.base import Resource, answered_int, expect
from emul.verbs.device import Context


class PD(Resource):
    """A protection domain: closing it closes its queue pairs, regions and shared receive queues."""

    def __init__(self, creator: Context) -> None:
        super().__init__()
        self.context = expect(creator, Context, "a PD's creator")
        self.number = answered_int(self.context.call({"op": "alloc_pd"})[0], "pd")
        self._belongs_to(self.context)

    def _destroy(self) -> None:
        self.context.call({"op": "dealloc_pd", "pd": self.number})
