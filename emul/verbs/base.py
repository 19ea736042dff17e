"""What all objects of verbs have in common: parents and children, closing, and what a closed one answers.

Closing an object closes its children first, as pyverbs does; closing it again changes nothing. A child that was never
closed is kept by its parents until they close it, so that nothing is left in the adapter by a forgotten reference.
"""

from __future__ import annotations

from contextlib import suppress
from errno import EBUSY
from types import TracebackType
from typing import Self, TypeVar

from emul.errors import DeviceGone, PyverbsUserError, RDMAError

T = TypeVar("T")


class Resource:
    """Something that an adapter holds for its host."""

    def __init__(self) -> None:
        self.closed = False
        self._parents: list[Resource] = []
        self._children: dict[Resource, None] = {}
        self._unacknowledged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close_with_children()

    def close(self) -> None:
        """Gives it back to the adapter, its children first.

        Raises RDMAError, state untouched: EBUSY while events about it are not acknowledged (libibverbs would wait for
        that without an end). Raises DeviceGone where the card is dead; it counts as closed then.
        """
        if self.closed:
            return
        if self._unacknowledged:
            raise RDMAError(EBUSY, f"{self._name()} has {self._unacknowledged} events that are not acknowledged")
        self._close_children()
        try:
            self._destroy()
        except DeviceGone:
            self._forget()
            raise
        self._forget()

    def _close_with_children(self) -> None:
        """Closes it whatever is still to be acknowledged; a dead card is no reason to complain."""
        if self.closed:
            return
        self._close_children()
        with suppress(DeviceGone):  # gone with the card
            self._destroy()
        self._forget()

    def _close_children(self) -> None:
        for child in reversed(list(self._children)):
            child._close_with_children()

    def _abandon(self) -> None:
        """Lets go of what is here, without a word to the adapter: there it stays, or is gone already."""
        for child in reversed(list(self._children)):
            child._abandon()
        self._forget()

    def _forget(self) -> None:
        self.closed = True
        self._release()
        for parent in self._parents:
            parent._children.pop(self, None)

    def _belongs_to(self, *parents: Resource) -> None:
        for parent in parents:
            self._parents.append(parent)
            parent._children[self] = None

    def _destroy(self) -> None:
        """Tells the adapter."""
        raise NotImplementedError

    def _release(self) -> None:
        """Lets go of mappings."""

    def _name(self) -> str:
        return type(self).__name__

    def _check_open(self) -> None:
        if self.closed:
            raise self._closed_error()

    def _closed_error(self) -> PyverbsUserError:
        return PyverbsUserError(f"{self._name()} is closed")


def expect(value: object, kind: type[T], what: str) -> T:
    """`value`, once it is seen to be of `kind`. Raises PyverbsUserError."""
    if not isinstance(value, kind):
        raise PyverbsUserError(f"{what} must be a {kind.__name__}, got {value!r}")
    return value


def as_int(value: object, what: str) -> int:
    """A number that a caller gave. Raises PyverbsUserError."""
    if not isinstance(value, int):
        raise PyverbsUserError(f"{what} must be a number, got {value!r}")
    return int(value)


def answered_int(reply: dict[str, object], name: str) -> int:
    """A number of the adapter's reply."""
    value = reply.get(name)
    if not isinstance(value, int):
        raise PyverbsUserError(f"the adapter answered {value!r} where {name} was due")
    return value
