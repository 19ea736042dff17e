"""Follows the histories of a run while they grow: who is ready, who was told what, whether work flows.

Reads only what is new. Of a busy workload it skips the writes themselves, which are looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ccm.history import Entry, Kind, count_entries, new_entries, read_entries
from lab.check.evidence import Session


@dataclass(slots=True)
class Watcher:
    """The state of all sessions as their clients were told it."""

    node_ids: Mapping[str, int]
    sessions: Sequence[Session]
    ready: dict[Session, int] = field(default_factory=dict)
    """Sessions that are ready now, with their epoch."""
    incarnation: dict[int, int] = field(default_factory=dict)
    """Node id to its host's incarnation."""
    _next: dict[str, int] = field(default_factory=dict)

    def poll(self, histories: Mapping[str, memoryview]) -> list[Entry]:
        """Reads what is new on all nodes; gives the alerts, path changes and starts among it, by time."""
        news: list[Entry] = []
        for node, buffer in histories.items():
            entries, self._next[node] = new_entries(buffer, self._next.get(node, 0))
            if entries:
                news += entries
        if len(news) > 1:
            news.sort(key=lambda entry: entry.at)
        for entry in news:
            self._take(entry)
        return news

    def all_ready(self) -> bool:
        """Whether each session that has to be there is ready."""
        return all(session in self.ready for session in self.sessions)

    def missing(self) -> list[Session]:
        """Those that are not ready."""
        return [session for session in self.sessions if session not in self.ready]

    def _take(self, entry: Entry) -> None:
        session = Session(entry.node, entry.partner, entry.client)
        if entry.kind == Kind.READY_ALERT:
            self.ready[session] = entry.epoch
        elif entry.kind in (Kind.ERROR_ALERT, Kind.SESSION_CLOSED):
            self.ready.pop(session, None)
        elif entry.kind == Kind.HOST_STARTED:
            self.incarnation[entry.node] = entry.incarnation
            for other in [known for known in self.ready if known.node == entry.node]:
                del self.ready[other]


@dataclass(slots=True)
class FlowWatch:
    """Waits until each stream has committed something that was submitted at or after `since`."""

    streams: Sequence[Session]
    since: int
    flowing: set[Session] = field(default_factory=set)
    _submitted: set[tuple[Session, int, int]] = field(default_factory=set)
    _next: dict[str, int] = field(default_factory=dict)

    def begin(self, histories: Mapping[str, memoryview]) -> None:
        """What is written until now doesn't count."""
        self._next = {node: count_entries(buffer) for node, buffer in histories.items()}

    def poll(self, histories: Mapping[str, memoryview]) -> bool:
        """Reads what is new; whether all streams flow."""
        wanted = set(self.streams)
        for node, buffer in histories.items():
            for entry in read_entries(buffer, self._next.get(node, 0)):
                self._next[node] = self._next.get(node, 0) + 1
                session = Session(entry.node, entry.partner, entry.client)
                if session in wanted and entry.at >= self.since:
                    self._take(entry, session)
        return len(self.flowing) == len(wanted)

    def _take(self, entry: Entry, session: Session) -> None:
        name = (session, entry.incarnation, entry.sequence)
        if entry.kind == Kind.SUBMITTED:
            self._submitted.add(name)
        elif entry.kind == Kind.COMMITTED and name in self._submitted:
            self._submitted.discard(name)
            self.flowing.add(session)
