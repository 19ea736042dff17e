"""All sessions with one partner: what the partner says of them, what follows, what is published.

Level-triggered: `advance` compares each session with what is known (partner's epochs and phases, manifests, usable
queue pairs) and takes each step that is due; called again without news it does nothing. Actions are appended to `out`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ccm.actions import (
    Action,
    AlertClosed,
    AlertError,
    AlertReady,
    CloseLanes,
    HoldPath,
    Move,
    NoteRefused,
    OpenLanes,
    RememberEpoch,
    Route,
)  # fmt: skip
from ccm.balance import Carried
from ccm.exchange import EPOCH_MAX, LaneEntry, Manifest, RecordKind, SessionEntry, Sessions
from ccm.needs import Needs, build_manifest, client_key, compare, difference, find_entry, manifests_digest
from ccm.pairing import Lane
from ccm.path import Path
from ccm.pathset import PathSet
from ccm.publisher import Publisher
from ccm.reasons import Reason
from ccm.session import (
    EPOCH_JUMP_MAX,
    MEND_TIMEOUT_NS,
    MENDS_MAX,
    MENDS_WITHIN_NS,
    REFUSED_MOST_NS,
    Phase,
    SessionCore,
    SessionInput,
    SessionState,
)  # fmt: skip
from ccm.settings import DEFAULTS, Settings
from emul.clock import Instant


class SessionSet:
    """Sessions of one partner by client key."""

    def __init__(
        self, publisher: Publisher, paths: PathSet, known_epoch: int, out: list[Action], settings: Settings = DEFAULTS
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._paths = paths
        self._out = out
        self._partner = publisher.partner
        self._highest_epoch = known_epoch
        self.sessions: dict[int, SessionCore] = {}
        self.manifest = Manifest(())
        self.partner_manifest: Manifest | None = None
        self._partner_digest: int | None = None
        self.agreed = False
        """Whether version and identity are agreed: nothing opens before."""

    @property
    def shares_clients(self) -> bool:
        """Whether both sides have a client in common, its session closed or not; before the partner has told, it
        might.
        """
        theirs = self.partner_manifest
        return theirs is None or any(entry.client in self.sessions for entry in theirs.entries)

    # what clients and partner say

    def open(self, name: str, needs: Needs, *, now: Instant) -> None:
        """A client wants a session, or has other needs. Raises NeedsError where the whole set is impossible."""
        wanted = {session.name: session.needs for session in self.sessions.values()}
        manifest = build_manifest(wanted | {name: needs})
        self.manifest = manifest
        client = client_key(name)
        entry = find_entry(manifest, client)
        assert entry is not None
        session = self.sessions.get(client)
        if session is None:
            session = self.sessions[client] = SessionCore(entry, needs, self._settings, now=now)
        elif session.needs != needs:
            session.entry, session.needs = entry, needs
            self._end(session, SessionInput.BROKEN, Reason.NEEDS_DIFFER, now=now)
        if session.state is SessionState.CLOSING:
            self._release(session, now=now)
        if session.take(SessionInput.OPEN, now=now):
            self._propose(session)

    def close(self, name: str, *, now: Instant) -> None:
        """A client no longer wants its session."""
        session = self.sessions.get(client_key(name))
        if session is None:
            return
        session.refused_until = None
        session.take(SessionInput.CLOSE, now=now)

    def on_partner_manifest(self, manifest: Manifest) -> None:
        """The partner's needs, as it published them."""
        self.partner_manifest = manifest

    def on_partner_sessions(self, body: Sessions) -> str:
        """Where the partner stands; gives what of it is refused, in words."""
        self._partner_digest = body.digest
        most = self._highest_epoch + EPOCH_JUMP_MAX
        told = {entry.client: entry for entry in body.entries if entry.epoch <= most}
        far = [entry.epoch for entry in body.entries if entry.epoch > most]
        for session in self.sessions.values():
            entry = told.get(session.client)
            if entry is not None and entry.phase == Phase.REFUSED and session.partner_phase is not Phase.REFUSED:
                text = f"{session.name}: the partner can't provide what the session needs"
                self._out.append(NoteRefused(self._partner, 0, Reason.PARTNER_REFUSED, text))
            session.partner_epoch = entry.epoch if entry is not None else 0
            session.partner_phase = Phase(entry.phase) if entry is not None else None
        return f"session epoch {max(far)}, we are at {self._highest_epoch}" if far else ""

    def forget_partner(self) -> None:
        """The partner's host has another incarnation: what it said is void."""
        self.partner_manifest = None
        self._partner_digest = None
        self.agreed = False
        for session in self.sessions.values():
            session.partner_epoch, session.partner_phase = 0, None

    # what fails

    def break_all(self, reason: Reason, *, now: Instant) -> None:
        """Each session's epoch ends."""
        for session in self.sessions.values():
            self._end(session, SessionInput.BROKEN, reason, now=now)

    def break_one(self, client: int, reason: Reason, *, now: Instant) -> None:
        """One session's epoch ends; the others go on."""
        session = self.sessions.get(client)
        if session is not None:
            self._end(session, SessionInput.BROKEN, reason, now=now)

    def mend(self, client: int, path: Path, *, now: Instant) -> bool:
        """The session's queue pairs on `path` failed while the path lives: they are given back, and what was under way
        on them is held until the partner has parted with its ends (nothing of it lands from then on). False where
        that won't help.
        """
        session, lane = self.sessions.get(client), path.pairing.lanes.get(client)
        if session is None or lane is None or session.state is not SessionState.READY or not lane.remote:
            return False
        session.mended = [at for at in session.mended if now - at < MENDS_WITHIN_NS]
        if len(session.mended) >= MENDS_MAX:
            return False
        session.mended.append(now)
        session.mending[path.index] = lane.remote
        session.mend_by = Instant(now + MEND_TIMEOUT_NS)
        self._give_back(session, path)
        return True

    def on_ends_remade(self, client: int, path: Path, *, now: Instant) -> None:
        """The partner has given back its ends of the session's queue pairs on `path`: ours lead nowhere, and nothing
        that was posted on them lands any more.
        """
        session = self.sessions[client]
        self._give_back(session, path)
        if session.state is SessionState.READY:
            self._reroute_one(session, path.index, now=now)

    def _give_back(self, session: SessionCore, path: Path) -> None:
        del path.pairing.lanes[session.client]
        self._call_off_moves(session, path)
        self._out += [
            HoldPath(self._partner, path.index, session.client),
            CloseLanes(self._partner, path.index, session.client),
        ]

    def _reroute_one(self, session: SessionCore, lost: int, *, now: Instant) -> None:
        """What went over path `lost` goes over another, or waits for the queue pairs that are being made."""
        for vi in [vi for vi, index in sorted(session.routes.items()) if index == lost]:
            path = self._paths.choose(session.client, session.epoch, self._turn(session, vi))
            session.moving.pop(vi, None)
            if path is None:
                del session.routes[vi]
                session.stranded.add(vi)
                session.stranded_by = Instant(now + self._settings.stranded_timeout_ns)
            else:
                session.routes[vi] = path.index
                self._out.append(Route(self._partner, session.client, vi, path.index))

    def refuse_on(self, client: int, path: Path, *, now: Instant) -> None:
        """The session's queue pairs or regions can't be made on `path`, which is well: they are tried again there after
        a while. Where no path has them the session waits as a whole; the others go on.
        """
        session = self.sessions.get(client)
        if session is None or path.pairing.lanes.pop(client, None) is None:
            return
        self._out.append(CloseLanes(self._partner, path.index, client))
        session.bar(path.index, now=now)
        opening = session.state in (SessionState.PREPARING, SessionState.OFFERED)
        if opening and not any(each.proven and client in each.pairing.lanes for each in self._paths.paths):
            session.refused_until = Instant(now + session.refused_ns)
            session.refused_ns = min(2 * session.refused_ns, REFUSED_MOST_NS)
            self._end(session, SessionInput.BROKEN, Reason.VERBS_FAILED, now=now)

    def reroute(self, lost: Path, *, now: Instant) -> None:
        """`lost` is fenced: what went over it goes over another path. Where one has come up and its queue pairs are
        not connected yet, the work waits for them; with no other path the session breaks.
        """
        others = any(path is not lost for path in self._paths.usable())
        for session in self.sessions.values():
            for vi in sorted(session.routes):
                if session.routes.get(vi) != lost.index:
                    continue
                path = self._paths.choose(session.client, session.epoch, self._turn(session, vi))
                session.moving.pop(vi, None)
                if path is None and others:
                    del session.routes[vi]
                    session.stranded.add(vi)
                    session.stranded_by = Instant(now + self._settings.stranded_timeout_ns)
                    continue
                if path is None:
                    self._end(session, SessionInput.BROKEN, Reason.NO_PATH, now=now)
                    break
                session.routes[vi] = path.index
                self._out.append(Route(self._partner, session.client, vi, path.index))

    def give_up(self, lost: Path, reason: Reason, *, now: Instant) -> None:
        """`lost` could not be fenced: sessions with work on it break."""
        for session in self.sessions.values():
            if lost.index in session.routes.values():
                self._end(session, SessionInput.BROKEN, reason, now=now)

    def on_path_lost(self, lost: Path) -> None:
        """A move towards `lost` is called off; the work goes on where it was, unless that path is lost too: what was
        posted there waits for its fence.
        """
        for session in self.sessions.values():
            session.forget_path(lost.index)
            self._call_off_moves(session, lost)

    def _call_off_moves(self, session: SessionCore, lost: Path) -> None:
        for vi in [vi for vi, path in session.moving.items() if path == lost.index]:
            del session.moving[vi]
            former = self._paths.get(session.routes.get(vi, lost.index))
            if former is not None and former is not lost and former.usable and former.index not in session.mending:
                self._out.append(Route(self._partner, session.client, vi, former.index))

    # what goes on

    def advance(self, *, now: Instant) -> bool:
        """Takes the steps that are due; whether there were any."""
        return any([self._advance_one(session, now=now) for session in self.sessions.values()])

    def rebalance(self) -> None:
        """Moves virtual interfaces to the paths where they belong now."""
        for session in self.sessions.values():
            if session.state is not SessionState.READY:
                continue
            for vi, current in sorted(session.routes.items()):
                path = self._paths.choose(session.client, session.epoch, self._turn(session, vi))
                if path is not None and path.index != current and vi not in session.moving:
                    self.move(session.client, vi, path.index)

    def move(self, client: int, vi: int, path: int) -> None:
        """Moves one virtual interface of a READY session to another path that it may go over."""
        self.sessions[client].moving[vi] = path
        self._out.append(Move(self._partner, client, vi, path))

    def carried(self, in_flight: Mapping[tuple[int, int, int], int]) -> list[Carried] | None:
        """The virtual interfaces of all READY sessions with what each carries; None while some are on their way to
        another path. `in_flight`: bytes by (client, epoch, VI).
        """
        found = []
        for session in self.sessions.values():
            if session.state is not SessionState.READY:
                continue
            if session.moving or session.stranded or session.mending:
                return None
            able = tuple(path.index for path in self._paths.candidates(session.client, session.epoch))
            found += [
                Carried(session.client, vi, path, in_flight.get((session.client, session.epoch, vi), 0), able)
                for vi, path in sorted(session.routes.items())
            ]
        return found

    def on_moved(self, client: int, epoch: int, vi: int, path: int) -> None:
        """A move is complete."""
        session = self.sessions.get(client)
        if session is not None and session.epoch == epoch and session.moving.get(vi) == path:
            del session.moving[vi]
            session.routes[vi] = path

    def open_lanes(self, path: Path) -> bool:
        """Asks for the queue pairs that `path` lacks, and gives back those of former epochs."""
        changed = False
        lanes = path.pairing.lanes
        for session in self.sessions.values():
            lane = lanes.get(session.client)
            if lane is not None and (not session.has_lanes or lane.epoch != session.epoch):
                del lanes[session.client]
                self._out.append(CloseLanes(self._partner, path.index, session.client))
                lane, changed = None, True
            barred = path.index in session.mending or path.index in session.refused_on
            if lane is None and session.has_lanes and session.state is not SessionState.CLOSING and not barred:
                lanes[session.client] = Lane(session.epoch)
                changed = True
                self._out.append(
                    OpenLanes(
                        self._partner, path.index, session.client, session.name, session.epoch, session.needs,
                        path.fence_epoch,
                    )
                )  # fmt: skip
        return changed

    def fits(self, remote: LaneEntry) -> bool:
        """Whether the partner's queue pairs are as many as agreed, and its memory is what its manifest says."""
        session = self.sessions.get(remote.client)
        theirs = find_entry(self.partner_manifest, remote.client) if self.partner_manifest is not None else None
        if session is None or theirs is None:
            return False
        return len(remote.vis) == session.needs.vis and remote.length <= theirs.exposed_bytes

    def publish(self) -> None:
        """Puts manifest and session states into the outbox."""
        self._publisher.put(RecordKind.MANIFEST, self.manifest)
        entries = tuple(
            SessionEntry(session.client, session.phase, session.epoch)
            for session in sorted(self.sessions.values(), key=lambda session: session.client)
            if session.epoch
        )
        self._publisher.put(RecordKind.SESSIONS, Sessions(self.digest(), entries))

    def digest(self) -> int:
        """Over both manifests as we hold them; 0 while the partner's is missing."""
        if self.partner_manifest is None:
            return 0
        if self._publisher.node < self._partner:
            return manifests_digest(self.manifest, self.partner_manifest)
        return manifests_digest(self.partner_manifest, self.manifest)

    def why_waiting(self, session: SessionCore) -> str:
        """What a session waits for, where it can be told: needs that differ, a client that the partner has closed."""
        if session.state is SessionState.WAITING and session.partner_phase is Phase.CLOSED:
            return "closed by the partner"
        if session.reason is not Reason.NEEDS_DIFFER or self.partner_manifest is None:
            return ""
        theirs = find_entry(self.partner_manifest, session.client)
        return difference(session.entry, theirs) if theirs is not None else ""

    def next_deadline(self) -> Instant | None:
        """The earliest time at which a closing or stranded session stops waiting."""
        first: Instant | None = None
        for session in self.sessions.values():
            deadline = session.next_deadline()
            if deadline is not None and (first is None or deadline < first):
                first = deadline
        return first

    # inside

    def _advance_one(self, session: SessionCore, *, now: Instant) -> bool:
        if session.state is SessionState.CLOSING:
            return self._advance_closing(session, now=now)
        if session.state is SessionState.CLOSED:
            return False
        if session.partner_epoch > session.epoch and session.partner_phase is not Phase.CLOSED:
            return self._follow(session, now=now)
        if session.has_lanes and session.partner_phase is Phase.CLOSED and session.partner_epoch >= session.epoch:
            return self._end(session, SessionInput.PARTNER_CLOSED, Reason.CLOSED_BY_PARTNER, now=now)
        if session.refused_until is not None:
            if now < session.refused_until:
                return False
            session.refused_until = None
        if session.refused_on and session.unbar(now=now):
            return True
        if session.state is SessionState.WAITING:
            return self._agree(session) and session.take(SessionInput.AGREED, now=now)
        usable = bool(self._paths.candidates(session.client, session.epoch))
        if session.state is SessionState.PREPARING:
            return usable and session.take(SessionInput.USABLE, now=now)
        if session.state is SessionState.OFFERED:
            if not usable:
                return self._end(session, SessionInput.BROKEN, Reason.NO_PATH, now=now)
            return self._partner_ready(session) and self._begin(session, now=now)
        if session.mending and self._advance_mending(session, now=now):
            return True
        return bool(session.stranded) and self._advance_stranded(session, now=now)

    def _advance_mending(self, session: SessionCore, *, now: Instant) -> bool:
        """Whether the partner has parted with its ends of queue pairs that failed: then their work goes on."""
        for index, ends in session.mending.items():
            path = self._paths.get(index)
            assert path is not None
            entry = path.pairing.remote_lane(session.client, session.epoch)
            if entry is None or entry.vis != ends:
                del session.mending[index]
                self._reroute_one(session, index, now=now)
                return True
        if session.mend_by is not None and now >= session.mend_by:
            return self._end(session, SessionInput.BROKEN, Reason.VI_FAILED, now=now)
        return False

    def _advance_stranded(self, session: SessionCore, *, now: Instant) -> bool:
        if self._paths.candidates(session.client, session.epoch):
            for vi in sorted(session.stranded):
                path = self._paths.choose(session.client, session.epoch, self._turn(session, vi))
                assert path is not None
                session.routes[vi] = path.index
                self._out.append(Route(self._partner, session.client, vi, path.index))
            session.stranded.clear()
            return True
        if session.stranded_by is not None and now >= session.stranded_by:
            return self._end(session, SessionInput.BROKEN, Reason.NO_PATH, now=now)
        return False

    def _advance_closing(self, session: SessionCore, *, now: Instant) -> bool:
        told = self._publisher.is_written(RecordKind.SESSIONS) and session.partner_gone_on
        late = session.close_by is not None and now >= session.close_by
        if told or late or self._paths.carrier_of_records() is None:
            self._release(session, now=now)
            return True
        return False

    def _agree(self, session: SessionCore) -> bool:
        """Whether both sides propose the same epoch and hold the same manifests, with equal needs."""
        if not self.agreed or self.partner_manifest is None:
            return False
        session.reason = compare(session.entry, find_entry(self.partner_manifest, session.client))
        if session.partner_phase is Phase.REFUSED:
            session.reason = Reason.PARTNER_REFUSED
        return (
            session.reason is Reason.NONE
            and self._partner_digest == self.digest()
            and session.partner_epoch == session.epoch
            and session.partner_phase in (Phase.PROPOSED, Phase.READY)
        )

    def _partner_ready(self, session: SessionCore) -> bool:
        """Both have told "ready" for this epoch, and the partner surely holds ours."""
        return (
            session.partner_phase is Phase.READY
            and session.partner_epoch == session.epoch
            and self._publisher.is_written(RecordKind.SESSIONS)
        )

    def _begin(self, session: SessionCore, *, now: Instant) -> bool:
        session.take(SessionInput.PARTNER_READY, now=now)
        for vi in range(session.needs.vis):
            path = self._paths.choose(session.client, session.epoch, self._turn(session, vi))
            assert path is not None
            session.routes[vi] = path.index
            self._out.append(Route(self._partner, session.client, vi, path.index))
        session.alerted = True
        session.reason = Reason.NONE
        session.readies += 1
        self._out.append(AlertReady(self._partner, session.client, session.name, session.epoch, session.needs.vis))
        return True

    def _follow(self, session: SessionCore, *, now: Instant) -> bool:
        """The partner is at a higher epoch: ours ends, its epoch is the new proposal."""
        epoch = session.partner_epoch
        if session.state is SessionState.WAITING:
            self._set_epoch(session, epoch)
            return True
        return self._end(session, SessionInput.BROKEN, Reason.PARTNER_BROKE_SESSION, epoch=epoch, now=now)

    def _end(
        self, session: SessionCore, what: SessionInput, reason: Reason, *, now: Instant, epoch: int | None = None
    ) -> bool:
        """The session's epoch is over on this side: one alert if it was ready, a higher epoch (`epoch`) proposed."""
        if session.state is SessionState.CLOSING:
            self._release(session, now=now)
            return True
        if not session.take(what, now=now):
            return False
        session.reason = reason
        if session.alerted:
            session.alerted = False
            alert = AlertClosed if what is SessionInput.PARTNER_CLOSED else AlertError
            if alert is AlertError:
                session.breaks += 1
                session.last_error = reason
            self._out.append(alert(self._partner, session.client, session.name, session.epoch, reason))
        self._drop_lanes(session)
        if epoch is None:
            self._propose(session)
        else:
            self._set_epoch(session, epoch)
        return True

    def _release(self, session: SessionCore, *, now: Instant) -> None:
        session.take(SessionInput.RELEASED, now=now)
        session.close_by = None
        if session.alerted:
            session.alerted = False
            self._out.append(AlertClosed(self._partner, session.client, session.name, session.epoch, Reason.CLOSED))
        self._drop_lanes(session)

    def _drop_lanes(self, session: SessionCore) -> None:
        for path in self._paths.paths:
            if path.pairing.lanes.pop(session.client, None) is not None:
                self._out.append(CloseLanes(self._partner, path.index, session.client))

    def _propose(self, session: SessionCore) -> None:
        self._set_epoch(session, max(self._highest_epoch + 1, session.epoch + 1))

    def _set_epoch(self, session: SessionCore, epoch: int) -> None:
        """Raises the session's epoch. Raises OverflowError at EPOCH_MAX (four billion re-establishments)."""
        if epoch > EPOCH_MAX:
            raise OverflowError(f"session epoch {epoch} beyond {EPOCH_MAX}")
        session.epoch = epoch
        if epoch > self._highest_epoch:
            self._highest_epoch = epoch
            self._out.append(RememberEpoch(self._partner, epoch))

    def _turn(self, session: SessionCore, vi: int) -> int:
        """Position of a virtual interface among those of all sessions, in the order in which they were opened."""
        before = 0
        for other in self.sessions.values():
            if other is session:
                break
            before += other.needs.vis
        return before + vi
