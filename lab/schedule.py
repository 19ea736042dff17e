"""The faults of a run: when each is due, what became of it. Decides when; the world does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ccm.history import Kind
from lab.check.evidence import FaultRecord, Session
from lab.faults import FAULTS
from lab.plan import Plan
from lab.scenario import At, OnSession, Step
from lab.world import Firing, PlannedFault, World, touched

_SESSION_STATES = {Kind.READY_ALERT: "ready", Kind.ERROR_ALERT: "broken", Kind.SESSION_CLOSED: "closed"}

Tell = Callable[[str, str, int], None]
"""(phase, text, when)."""


@dataclass(slots=True)
class _Scheduled:
    """A fault and where it stands; moments in ns on the world's scale."""

    fault: PlannedFault
    at: int | None = None
    cleared: int | None = None
    clear_at: int | None = None
    """When it is due to be undone; None: at the end of the fault phase, or never."""

    @property
    def pending(self) -> bool:
        """Whether it has yet to happen, or to be undone at its time."""
        return self.at is None or (self.clear_at is not None and self.cleared is None)


class Schedule:
    """All faults of a run. Nothing happens before `begin`."""

    def __init__(self, plan: Plan, world: World, steps: Sequence[Step], tell: Tell) -> None:
        self._plan = plan
        self._clients = plan.topology.client_names
        self._world = world
        self._tell = tell
        self._entries = [_Scheduled(PlannedFault(index + 1, step)) for index, step in enumerate(steps)]
        self._load_at: int | None = None
        self._armed = False
        """Whether there are faults that wait for frames."""
        self.goes_on = bool(self._entries)
        """Whether a fault has yet to happen, or to be undone at its time."""
        self._next: int | None = None
        """See `next_moment`: worked out where something changes, as it is asked for at each look around."""

    def begin(self, load_at: int) -> None:
        """The load begins: moments count from here, and rules that wait for frames are armed."""
        self._load_at = load_at
        armed = [entry.fault for entry in self._entries if entry.fault.needs_arming]
        self._armed = bool(armed)
        self._look_ahead()
        self._world.arm(armed)

    @property
    def last_moment_ns(self) -> int:
        """The latest trigger by time, from the start of the load."""
        triggers = [entry.fault.step.trigger for entry in self._entries]
        return max((trigger.at_ns for trigger in triggers if isinstance(trigger, At)), default=0)

    def next_moment(self) -> int | None:
        """When something is due by time; None where nothing is."""
        return self._next

    def _look_ahead(self) -> None:
        """What is due next, after a change."""
        self.goes_on = any(entry.pending for entry in self._entries)
        moments = [entry.clear_at for entry in self._entries if entry.clear_at is not None and entry.cleared is None]
        for entry in self._entries:
            due = self._due_at(entry)
            if due is not None:
                moments.append(due)
        self._next = min(moments, default=None)

    def poll(self) -> None:
        """Applies and undoes what is due now."""
        now = self._world.now()
        if not self._armed and (self._next is None or now < self._next):
            return
        fired = self._world.fired() if self._armed else {}
        for entry in self._entries:
            due = self._due_at(entry)
            if due is not None and due <= now:
                self._apply(entry)
            elif entry.at is None and entry.fault.id in fired:
                self._on_fired(entry, fired[entry.fault.id])
            elif entry.clear_at is not None and entry.cleared is None and entry.clear_at <= now:
                self._clear(entry)

    def on_alert(self, kind: Kind, session: Session, node: str) -> None:
        """A client on `node` was told something of its session."""
        state = _SESSION_STATES.get(kind)
        if state is None or self._load_at is None:
            return
        for entry in self._entries:
            trigger = entry.fault.step.trigger
            if entry.at is None and isinstance(trigger, OnSession) and trigger.state == state:
                client_fits = trigger.client in (None, self._clients[session.client - 1])
                if client_fits and trigger.node in (None, node):
                    self._apply(entry)

    def paused(self, node: str, begun: int, until: int) -> bool:
        """Whether a fault of ours stopped the host of `node` in that time: the machine was not at fault then."""
        return any(
            entry.fault.kind == "host.pause"
            and entry.fault.step.target == node
            and entry.at is not None
            and entry.at <= until
            and (entry.cleared is None or begun <= entry.cleared)
            for entry in self._entries
        )

    def undo_all(self) -> None:
        """The end of the fault phase: everything that is still on and can be undone is."""
        for entry in self._entries:
            if entry.at is not None and entry.cleared is None and FAULTS[entry.fault.kind].undone:
                self._clear(entry)

    def records(self) -> list[FaultRecord]:
        """What became of each fault."""
        fired = self._world.fired()
        records = []
        for entry in self._entries:
            fault, reached = entry.fault, touched(self._plan, entry.fault)
            firing = fired.get(fault.id)
            counted = fault.by_injector or fault.in_adapter is not None
            count = int(entry.at is not None)
            if counted and (firing is not None or fault.in_adapter is not None):
                count = firing.count if firing is not None else 0
            records.append(
                FaultRecord(
                    fault.id, fault.kind, fault.target_text(), entry.at, entry.cleared, count,
                    frozenset(reached.paths), frozenset(reached.nodes), fault.by_injector,
                )
            )  # fmt: skip
        return records

    def _due_at(self, entry: _Scheduled) -> int | None:
        trigger = entry.fault.step.trigger
        if entry.at is not None or self._load_at is None or not isinstance(trigger, At):
            return None
        return self._load_at + trigger.at_ns

    def _on_fired(self, entry: _Scheduled, firing: Firing) -> None:
        """An armed rule met its frame: either that was the fault, or it is the moment for it."""
        if entry.fault.by_injector:
            self._note_begun(entry, firing.first_at)
        else:
            self._apply(entry)

    def _apply(self, entry: _Scheduled) -> None:
        self._note_begun(entry, self._world.apply(entry.fault))

    def _note_begun(self, entry: _Scheduled, at: int) -> None:
        entry.at = at
        if entry.fault.step.duration_ns is not None:
            entry.clear_at = at + entry.fault.step.duration_ns
        self._look_ahead()
        self._tell("fault", f"{entry.fault.kind} {entry.fault.in_words()}", at)

    def _clear(self, entry: _Scheduled) -> None:
        entry.cleared = self._world.clear(entry.fault)
        self._look_ahead()
        self._tell("heal", f"{entry.fault.kind} {entry.fault.in_words()} undone", entry.cleared)
