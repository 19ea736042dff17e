"""What nodes hold, looked at while a run goes on: manifests, keys, virtual interfaces (checks 10, 13, 14 and 15).

`HoldingChecks` is given the same entries as `lab.check.steps` and looks at the emulated hardware and the exchange areas
in the nodes' memory (`Facts`), as a technician with a probe would: what the manager believes is never asked for. Each
check counts what it looked at, and says "not exercised" where there was nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ccm.history import Entry, Kind
from ccm.settings import DEFAULTS, Settings
from lab.check.evidence import NANOSECONDS_PER_MILLISECOND, CheckResult, Findings, Session

LEFT_BOUND_NS = 250 * NANOSECONDS_PER_MILLISECOND
"""What is closed is gone so long after at the latest, in adapters that live, under hosts that run."""
REFUSAL_BOUND_NS = 2_000 * NANOSECONDS_PER_MILLISECOND
"""A side that is refused knows it so long after the other at the latest, while both run and something connects them."""
BY_BYTES = "bytes"
"""Value of the setting `balance`."""
NO_COMMON_VERSION = 10
"""Reason code in the history."""
LOAD_WINDOW_NS = 1_000 * NANOSECONDS_PER_MILLISECOND
LOAD_WINDOWS = 3
"""A share is judged when it was uneven in so many windows, one after the other, and nothing else happened in them."""
LOAD_PACKETS_LEAST = 200
"""In a window on the path that carries most; what is less is no load."""
LOAD_TOLERANCE = 1.3
"""The path that carries most carries at most so much more than it would if one stream were elsewhere."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one node tells another, as it lies in one of their memories."""

    incarnation: int
    """Of the host that wrote it."""
    manifest: bytes
    """What its clients need, as written."""
    digest: int
    """Of both manifests, as the writer holds them."""
    versions: tuple[int, int]
    """(least, most) that the writer speaks; (0, 0): not told."""
    refusal: int


@dataclass(frozen=True, slots=True)
class HeldVi:
    """One end of a virtual interface in an adapter."""

    number: int
    path: int
    card: object
    """The adapter's card, and ..."""
    handle: object
    """... the queue pair in it."""


@dataclass(frozen=True, slots=True)
class HeldLanes:
    """The virtual interfaces of a session on one path, and the key of its memory there; as the host has published
    them.
    """

    path: int
    client: int
    epoch: int
    key: int
    """0: no memory."""
    vis: tuple[HeldVi, ...]
    card: object


class Facts(Protocol):
    """What outsiders see. Nodes and clients by their numbers."""

    def told(self, writer: int, reader: int) -> Told | None:
        """What `writer` tells, in its own memory; None: nothing that can be read."""

    def heard(self, reader: int, writer: int) -> Told | None:
        """The same in the memory of `reader`."""

    def published(self, node: int, partner: int) -> Sequence[HeldLanes]:
        """What `node` has published of its virtual interfaces with `partner`, as far as it is in living adapters."""

    def fresh_vis(self, node: int) -> Sequence[tuple[int, HeldVi]]:
        """Virtual interfaces in the node's adapters that were not there when this was last asked: (partner, VI)."""

    def vis(self, node: int) -> Sequence[tuple[int, HeldVi]]:
        """All in the node's living adapters that its present host made."""

    def has_vi(self, vi: HeldVi) -> bool:
        """Whether it is still there."""

    def has_key(self, card: object, key: int) -> bool:
        """Whether the card still honours the key."""

    def takes(self, vi: HeldVi) -> bool:
        """Whether what its peer sends still lands."""

    def pending(self, vi: HeldVi) -> int:
        """Requests that it has taken and that are not acknowledged."""

    def is_shut(self, node: int, partner: int, vi: HeldVi) -> bool:
        """Whether nothing of `vi` can land at `partner` any more: it is fenced there, or its other end is gone."""

    def sent(self, vi: HeldVi) -> int:
        """Its next PSN."""

    def expected(self, vi: HeldVi) -> int:
        """The PSN of its peer's that it takes next, or took last where it is gone."""

    def fence_of(self, vi: HeldVi) -> int:
        """The fence epoch that it was made with."""

    def strangers_marks(self) -> Sequence[str]:
        """For each frame of a stranger since this was last asked: where its mark was found in memory, or nothing."""

    def fresh_links(self) -> Sequence[tuple[int, str]]:
        """For each well-known connection of somebody with another key since this was last asked, and each attempt at
        one: the node whose firmware was called, and what it opened to the caller, or nothing.
        """

    def awake_since(self, node: int) -> int | None:
        """Since when the node's host runs; None: it is down or stopped."""

    def calm_since(self, *, but_versions: bool = False) -> int | None:
        """Since when no fault is on anywhere (but those of versions, where that is said); None: one is."""


@dataclass(slots=True)
class _Debt:
    """Something that has to be gone."""

    node: int
    text: str
    due_at: int
    is_there: Callable[[], bool]


@dataclass(slots=True)
class _Load:
    """What the streams towards one partner sent in the present window, and how often it was uneven."""

    paths: tuple[int, ...] = ()
    routes: int = 0
    uneven: int = 0
    psns: dict[tuple[int, int, int], tuple[HeldVi, int]] = field(default_factory=dict)
    """(client, VI, path) -> VI, PSN when the window began."""


class HoldingChecks:
    """The checks of one run."""

    def __init__(self, nodes: dict[int, str], facts: Facts, *, settings: Settings = DEFAULTS) -> None:
        """`settings`: of all the managers."""
        self._balance = settings.balance
        # On a path that is silent nothing can be published until it is given up.
        self._stray_bound_ns = LEFT_BOUND_NS + settings.alone_limit_ns + settings.limit_most_ns
        self._names = nodes
        self._facts = facts
        self._manifests = Findings("manifests.agreed")
        self._keys = Findings("old_keys.dead")
        self._versions = Findings("versions.first")
        self._left = Findings("close.leaves_nothing")
        self._mismatch = Findings("mismatch.told_to_both")
        self._strangers = Findings("strangers.shut_out")
        self._fences = Findings("fence.holds")
        self._whole = Findings("streams.whole")
        self._shares = Findings("load.shared")
        self._known: dict[Session, dict[tuple[int, int, int], HeldLanes]] = {}
        """By session: (epoch, path, first VI's number) of all that was ever seen published."""
        self._open_ends: dict[Session, list[HeldVi]] = {}
        """By session: the partner's ends of virtual interfaces that failed."""
        self._fenced: list[tuple[Entry, HeldVi, int]] = []
        """The partner's ends of a path that was fenced, and the PSN that each then expected."""
        self._debts: list[_Debt] = []
        self._strays: dict[object, tuple[int, int, HeldVi, int]] = {}
        """Virtual interfaces that nobody publishes: node, partner, VI, first seen at."""
        self._refused: dict[tuple[int, int], int] = {}
        """(node, partner) -> when it last said that versions don't meet."""
        self._unanswered: dict[tuple[int, int], int] = {}
        self._loads: dict[tuple[int, int], _Load] = {}
        self._window_at = 0
        self._incarnation: dict[int, int] = {}
        self._routes: dict[tuple[int, int], int] = {}
        """(node, partner) -> how many routes were set: a window in which one was is not judged."""
        self._up: dict[tuple[int, int], set[int]] = {}
        """(node, partner) -> paths that the node says are up."""
        self._handlers: dict[int, Callable[[Entry], None]] = {
            Kind.HOST_STARTED: self._on_started,
            Kind.READY_ALERT: self._on_ready,
            Kind.ERROR_ALERT: self._on_end,
            Kind.SESSION_CLOSED: self._on_end,
            Kind.PATH_UP: self._on_path,
            Kind.PATH_DOWN: self._on_path,
            Kind.PATH_FENCED: self._on_fenced,
            Kind.REFUSED: self._on_refused,
            Kind.ROUTED: self._on_routed,
            Kind.VIS_FAILED: self._on_vis_failed,
        }

    def results(self) -> list[CheckResult]:
        """What was found, as checks of the run."""
        return [
            self._manifests.result(f"{self._manifests.exercised} ready alerts, both sides held the same"),
            self._keys.result(f"{self._keys.exercised} keys of former epochs were dead"),
            self._versions.result(f"{self._versions.exercised} virtual interfaces, each after its version"),
            self._left.result(f"{self._left.exercised} things that were closed were gone"),
            self._mismatch.result(f"{self._mismatch.exercised} refusals, both sides knew why"),
            self._fences.result(f"{self._fences.exercised} fenced ends took nothing more"),
            self._strangers.result(f"{self._strangers.exercised} attempts of strangers changed and opened nothing"),
            self._whole.result(f"{self._whole.exercised} routes, nothing was left on another"),
            self._shares.result(f"{self._shares.exercised} windows with even shares"),
        ]

    def kinds(self) -> frozenset[int]:
        """Of entries that matter here."""
        return frozenset(self._handlers)

    def on_entry(self, entry: Entry) -> None:
        """One more entry of a history."""
        handler = self._handlers.get(entry.kind)
        if handler is not None:
            handler(entry)

    def on_turn(self, node: int, now: int) -> None:
        """The host of `node` has made or destroyed virtual interfaces."""
        for partner, vi in self._facts.fresh_vis(node):
            self._versions.looked()
            wrong = self._disagreement(node, partner)
            if wrong:
                text = f"virtual interface {vi.number} on path {vi.path}, and {wrong}"
                self._versions.problem(self._text(now, node, partner, text))

    def on_time(self, now: int) -> None:
        """Now and then: what has to be gone is gone, and what is there belongs to somebody."""
        self._look_at_debts(now)
        self._look_for_strays(now)
        self._look_at_fences(now)
        self._look_at_refusals(now)
        self._look_for_strangers(now)
        if now - self._window_at >= LOAD_WINDOW_NS:
            self._window_at = now
            for (node, partner), load in self._loads.items():
                self._judge_load(node, partner, load, now)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def _on_started(self, entry: Entry) -> None:
        node = entry.node
        self._incarnation[node] = entry.incarnation
        for session in [session for session in self._known if session.node == node]:
            self._open_ends.pop(session, None)
            del self._known[session]  # the new incarnation has attached: all of it is gone, or is a stray
        for key in [key for key in self._up if key[0] == node]:
            del self._up[key]
        for key in [key for key in self._unanswered if node in key]:
            del self._unanswered[key]
        for key in [key for key in self._refused if key[0] == node]:
            del self._refused[key]

    def _on_path(self, entry: Entry) -> None:
        up = self._up.setdefault((entry.node, entry.partner), set())
        (up.add if entry.kind == Kind.PATH_UP else up.discard)(entry.extra)
        self._learn(entry.node, entry.partner)

    def _up_paths(self, node: int, partner: int) -> tuple[int, ...]:
        """Those that both ends say are up."""
        return tuple(sorted(self._up.get((node, partner), set()) & self._up.get((partner, node), set())))

    def _on_ready(self, entry: Entry) -> None:
        node, partner = entry.node, entry.partner
        session = Session(node, partner, entry.client)
        self._learn(node, partner)
        self._loads.setdefault((node, partner), _Load())
        self._compare_manifests(entry)
        known = self._known.get(session, {})
        for key in [key for key, lanes in known.items() if lanes.epoch < entry.epoch]:
            lanes = known.pop(key)
            if lanes.key:
                self._keys.looked()
                if self._facts.has_key(lanes.card, lanes.key):
                    text = f"ready in epoch {entry.epoch}, the key of epoch {lanes.epoch} opens path {lanes.path}"
                    self._keys.problem(self._text(entry.at, node, partner, text))

    def _compare_manifests(self, entry: Entry) -> None:
        node, partner = entry.node, entry.partner
        mine, theirs = self._facts.told(node, partner), self._facts.heard(node, partner)
        self._manifests.looked()
        wrong = self._disagreement(node, partner)
        if mine is not None and theirs is not None and not wrong:
            if not mine.digest or mine.digest != theirs.digest:
                wrong = f"the sides hold {mine.digest:#x} and {theirs.digest:#x}"
            else:
                wrong = self._compare_memories(node, partner, mine, theirs)
        if wrong:
            self._manifests.problem(self._text(entry.at, node, partner, f"client {entry.client} ready, and {wrong}"))

    def _compare_memories(self, node: int, partner: int, mine: Told, theirs: Told) -> str:
        """What was written is what was meant, as long as the partner's host is still the one that wrote it."""
        if self._incarnation.get(partner) != theirs.incarnation:
            return ""
        meant, got = self._facts.told(partner, node), self._facts.heard(partner, node)
        if meant is not None and meant.digest == theirs.digest and meant.manifest != theirs.manifest:
            return "its memory holds another manifest than its partner has written"
        if got is not None and got.digest == mine.digest and got.manifest != mine.manifest:
            return "its partner's memory holds another manifest than it has written"
        return ""

    def _disagreement(self, node: int, partner: int) -> str:
        """Why the two may have nothing with each other, from what `node` holds; empty where they may."""
        mine, theirs = self._facts.told(node, partner), self._facts.heard(node, partner)
        if mine is None or theirs is None or not mine.versions[1] or not theirs.versions[1]:
            return "no versions were exchanged"
        if mine.refusal or theirs.refusal:
            return f"a side refuses the other, reasons {mine.refusal} and {theirs.refusal}"
        if max(mine.versions[0], theirs.versions[0]) > min(mine.versions[1], theirs.versions[1]):
            return f"versions {mine.versions} and {theirs.versions} don't meet"
        return ""

    def _learn(self, node: int, partner: int) -> None:
        """Remembers what is published now: later it is to be gone."""
        for lanes in self._facts.published(node, partner):
            session = Session(node, partner, lanes.client)
            first = lanes.vis[0].number if lanes.vis else 0
            self._known.setdefault(session, {}).setdefault((lanes.epoch, lanes.path, first), lanes)

    def _on_end(self, entry: Entry) -> None:
        node, partner = entry.node, entry.partner
        self._learn(node, partner)
        held = self._known.get(Session(node, partner, entry.client), {})
        due_at = entry.at + LEFT_BOUND_NS
        for key in [key for key, lanes in held.items() if lanes.epoch <= entry.epoch]:
            lanes = held.pop(key)
            whose = f"client {entry.client}, epoch {lanes.epoch}, path {lanes.path} towards {self._name(partner)}"
            if lanes.key:
                # Its key stays looked at: a later epoch must not become ready while it opens anything.
                held[key] = lanes
                self._debts.append(
                    _Debt(node, f"key of {whose}", due_at, partial(self._facts.has_key, lanes.card, lanes.key))
                )
            for vi in lanes.vis:
                text = f"virtual interface {vi.number} of {whose}"
                self._debts.append(_Debt(node, text, due_at, partial(self._facts.has_vi, vi)))

    def _look_at_debts(self, now: int) -> None:
        if not self._debts or self._debts[0].due_at > now:
            return
        due = [debt for debt in self._debts if debt.due_at <= now]
        self._debts = [debt for debt in self._debts if debt.due_at > now]
        for debt in due:
            if not debt.is_there():
                self._left.looked()
                continue
            awake = self._facts.awake_since(debt.node)
            if awake is None:
                continue  # a dead host's things stay until the next incarnation attaches
            if now - awake < LEFT_BOUND_NS:
                debt.due_at = awake + LEFT_BOUND_NS
                self._debts.append(debt)
                continue
            self._left.looked()
            self._left.problem(f"{self._name(debt.node)} at {_ms(now)}: {debt.text} is still there")
        self._debts.sort(key=lambda debt: debt.due_at)

    def _look_for_strays(self, now: int) -> None:
        """Virtual interfaces in the adapters that the host doesn't publish."""
        for stray, (node, partner, vi, since) in list(self._strays.items()):
            awake = self._facts.awake_since(node)
            if not self._facts.has_vi(vi) or self._is_published(node, partner, vi):
                del self._strays[stray]
            elif awake is not None and now - max(since, awake) > self._stray_bound_ns:
                del self._strays[stray]
                text = f"virtual interface {vi.number} on path {vi.path} belongs to nothing that is published"
                self._left.problem(self._text(now, node, partner, text))

    def look_at_all(self, node: int, now: int) -> None:
        """Something in the node's adapters, or what it publishes, has changed since the last look."""
        published: dict[int, set[object]] = {}
        for partner, vi in self._facts.vis(node):
            if partner not in published:
                lanes = self._facts.published(node, partner)
                published[partner] = {each.handle for one in lanes for each in one.vis}
            self._left.looked()
            if vi.handle not in published[partner]:
                self._strays.setdefault(vi.handle, (node, partner, vi, now))

    def _is_published(self, node: int, partner: int, vi: HeldVi) -> bool:
        return any(each.handle is vi.handle for one in self._facts.published(node, partner) for each in one.vis)

    # -- fences -------------------------------------------------------------------------------------------------------

    def _on_fenced(self, entry: Entry) -> None:
        """The partner has acknowledged it: from here on nothing of the path lands there."""
        self._learn(entry.partner, entry.node)
        for session, known in self._known.items():
            if (session.node, session.partner) == (entry.partner, entry.node):
                ends = [vi for lanes in known.values() if lanes.path == entry.extra for vi in lanes.vis]
                self._fenced += [
                    (entry, vi, self._facts.expected(vi))
                    for vi in ends
                    if self._facts.has_vi(vi) and self._facts.fence_of(vi) < entry.sequence
                ]

    def _look_at_fences(self, now: int) -> None:
        fenced, self._fenced = self._fenced, []
        for entry, vi, expected in fenced:
            self._fences.looked()
            took = (self._facts.expected(vi) - expected) & 0xFFFFFF
            if took:
                text = f"{took} packets landed on path {vi.path} after its fence was acknowledged"
                self._fences.problem(self._text(now, entry.node, entry.partner, text))

    # -- refusals -----------------------------------------------------------------------------------------------------

    def _on_refused(self, entry: Entry) -> None:
        if entry.extra != NO_COMMON_VERSION:
            return
        here, there = (entry.node, entry.partner), (entry.partner, entry.node)
        self._refused[here] = entry.at
        self._unanswered.pop(here, None)
        if there in self._refused:
            self._mismatch.looked()
        else:
            self._unanswered.setdefault(there, entry.at)

    def _look_at_refusals(self, now: int) -> None:
        for (node, partner), since in list(self._unanswered.items()):
            moments = [
                self._facts.awake_since(node),
                self._facts.awake_since(partner),
                self._facts.calm_since(but_versions=True),
            ]
            known = [moment for moment in moments if moment is not None]
            if len(known) == len(moments) and now - max(since, *known) > REFUSAL_BOUND_NS:
                del self._unanswered[node, partner]
                self._mismatch.looked()
                text = "its partner refuses it for its version, and it does not know"
                self._mismatch.problem(self._text(now, node, partner, text))

    def _look_for_strangers(self, now: int) -> None:
        for text in self._facts.strangers_marks():
            self._strangers.looked()
            if text:
                self._strangers.problem(f"{text} at {_ms(now)}")
        for node, text in self._facts.fresh_links():
            self._strangers.looked()
            if text:
                self._strangers.problem(f"{self._name(node)} at {_ms(now)}: {text}")

    # -- streams and shares -------------------------------------------------------------------------------------------

    def _on_vis_failed(self, entry: Entry) -> None:
        """Virtual interfaces failed on a living path: the partner's ends must be gone before anything goes on."""
        session, other = _session(entry), Session(entry.partner, entry.node, entry.client)
        self._learn(entry.partner, entry.node)
        self._open_ends[session] = [
            vi
            for lanes in self._known.get(other, {}).values()
            if (lanes.epoch, lanes.path) == (entry.epoch, entry.extra)
            for vi in lanes.vis
        ]

    def _look_at_ends(self, entry: Entry) -> None:
        session = _session(entry)
        for vi in self._open_ends.pop(session, ()):
            self._whole.looked()
            if self._facts.has_vi(vi) and self._facts.takes(vi):
                text = f"VI {entry.offset} of client {entry.client} goes over path {entry.extra} while the other end"
                text += f" of what failed, {vi.number} on path {vi.path}, still takes writes"
                self._whole.problem(self._text(entry.at, entry.node, entry.partner, text))

    def _on_routed(self, entry: Entry) -> None:
        """A virtual interface sends over another path: nothing of it is under way on the former one, unless that is
        shut at the partner.
        """
        node, partner = entry.node, entry.partner
        self._routes[node, partner] = self._routes.get((node, partner), 0) + 1
        self._learn(node, partner)
        self._look_at_ends(entry)
        self._whole.looked()
        for lanes in self._known.get(Session(node, partner, entry.client), {}).values():
            if lanes.epoch != entry.epoch or lanes.path == entry.extra or entry.offset >= len(lanes.vis):
                continue
            vi = lanes.vis[entry.offset]
            if self._facts.has_vi(vi) and self._facts.pending(vi) and not self._facts.is_shut(node, partner, vi):
                text = (
                    f"VI {entry.offset} of client {entry.client} goes over path {entry.extra} while"
                    f" {self._facts.pending(vi)} requests are under way on path {lanes.path}"
                )
                self._whole.problem(self._text(entry.at, node, partner, text))

    def _judge_load(self, node: int, partner: int, load: _Load, now: int) -> None:
        """One window is over: who sent how much over which path."""
        paths, routes = self._up_paths(node, partner), self._routes.get((node, partner), 0)
        calm = self._facts.calm_since()
        judged = calm is not None and now - calm > 2 * LOAD_WINDOW_NS
        judged = judged and len(paths) > 1 and paths == load.paths and routes == load.routes
        sent: dict[int, dict[tuple[int, int], int]] = {path: {} for path in paths}
        if judged:
            for (client, number, path), (vi, psn) in load.psns.items():
                if path in sent and self._facts.has_vi(vi):
                    sent[path][client, number] = (self._facts.sent(vi) - psn) & 0xFFFFFF
            self._judge_split(node, partner, sent, now)
        judged = judged and self._balance is not False
        uneven = judged and self._is_uneven(sent)
        load.uneven = load.uneven + 1 if uneven else 0
        if judged and max(sum(streams.values()) for streams in sent.values()) >= LOAD_PACKETS_LEAST:
            self._shares.looked()
            if load.uneven == LOAD_WINDOWS:
                shares = {path: sum(streams.values()) for path, streams in sent.items()}
                self._shares.problem(self._text(now, node, partner, f"packets by path: {shares}"))
        load.paths, load.routes = paths, routes
        load.psns = {
            (lanes.client, number, lanes.path): (vi, self._facts.sent(vi))
            for lanes in (self._facts.published(node, partner) if len(paths) > 1 else ())
            for number, vi in enumerate(lanes.vis)
        }

    def _judge_split(self, node: int, partner: int, sent: dict[int, dict[tuple[int, int], int]], now: int) -> None:
        """Without a route in the window each stream has sent over one path alone."""
        carried: dict[tuple[int, int], list[int]] = {}
        for path, streams in sent.items():
            for stream, packets in streams.items():
                if packets:
                    carried.setdefault(stream, []).append(path)
        for (client, number), over in carried.items():
            self._whole.looked()
            if len(over) > 1:
                text = f"VI {number} of client {client} sends over paths {over} at a time"
                self._whole.problem(self._text(now, node, partner, text))

    def _is_uneven(self, sent: dict[int, dict[tuple[int, int], int]]) -> bool:
        """Whether a stream of the path that carries most would be better off on that which carries least: by what they
        send, and where virtual interfaces are only spread by number, by their number as well.
        """
        if max(sum(streams.values()) for streams in sent.values()) < LOAD_PACKETS_LEAST or not _could_be_better(sent):
            return False
        if self._balance == BY_BYTES:
            return True
        return _could_be_better(
            {path: {stream: 1 for stream, packets in streams.items() if packets} for path, streams in sent.items()}
        )

    # -- words --------------------------------------------------------------------------------------------------------

    def _name(self, node: int) -> str:
        return self._names.get(node, str(node))

    def _text(self, at: int, node: int, partner: int, text: str) -> str:
        return f"{self._name(node)}->{self._name(partner)} at {_ms(at)}: {text}"


def _could_be_better(loads: dict[int, dict[tuple[int, int], int]]) -> bool:
    """Whether moving one stream makes the largest share so much smaller that it counts. By path, then by stream."""
    total = {path: sum(streams.values()) for path, streams in loads.items()}
    most, least = max(total, key=lambda path: total[path]), min(total, key=lambda path: total[path])
    better = min(max(total[most] - one, total[least] + one) for one in (0, *loads[most].values()))
    return total[most] > LOAD_TOLERANCE * better


def _session(entry: Entry) -> Session:
    return Session(entry.node, entry.partner, entry.client)


def _ms(at: int) -> str:
    return f"{at / NANOSECONDS_PER_MILLISECOND:.3f} ms"
