"""All that is between this node and one partner: takes the partner's events, drives connection, handshake and probes.

Each path lives in `ccm.path`, each session in `ccm.session`. What follows once a path is proven is in `ccm.settling`,
what follows from its loss in `ccm.failover`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccm import events as ev
from ccm.actions import (
    Action,
    ConnectPeer,
    DisconnectPeer,
    HoldPath,
    NotePathDown,
    NoteStep,
    ProbePath,
    ReadInbox,
    ReadSeen,
    ReadStatus,
    TellPartnerStatus,
    WriteRecord,
)  # fmt: skip
from ccm.balance import LoadBalance
from ccm.budget import Budget
from ccm.exchange import Info, Manifest, PathInfo, Record, RecordKind, Seen, Sessions
from ccm.failover import Failover
from ccm.handshake import STAGE_LOADER, Step
from ccm.needs import NeedsError, contradiction
from ccm.pairing import Verdict
from ccm.path import Input, Path, PathState
from ccm.pathset import PathSet
from ccm.peerinfo import OWN_VERSIONS, Versions
from ccm.publisher import Publisher
from ccm.reasons import Reason
from ccm.sessions import SessionSet
from ccm.settings import BY_BYTES
from ccm.settling import Settling
from emul.clock import MILLISECOND, Instant, earliest

STATUS_TELL_NS = 20 * MILLISECOND
"""Unchanged boot status is passed on to the clients at most this often."""
CONNECTING_MAX = 12
"""Attempts to connect that are under way at once: a large cluster that starts would otherwise have so many that the
last of them ran out of time before it was begun.
"""
CONNECTING_STRAINED_MAX = (CONNECTING_MAX, 4, 3, 2, 2, 2, 2)
"""The same by the strain of the node (`Budget.strain`): its partners probably are held up, too."""
STRAINED_PATIENCE = (0, 3, 4, 4, 4, 5, 6)
"""The patience that its attempts begin with, by strain: who gives up and begins again only adds to it."""
UNSTRAINED_PATIENCE_MAX = 2
"""Without strain requests are not repeated more patiently than this: a cable that has healed is to be noticed within
some 84 ms."""
LATE_NS = 2 * MILLISECOND
"""A timer run later than this was held up: the time is credited to the paths."""


@dataclass(frozen=True, slots=True)
class PartnerConfig:
    """One partner as the configuration names it: `paths` are (path index, local adapter index)."""

    node: int
    name: str
    paths: tuple[tuple[int, int], ...]


class Peering:
    """This node's side of everything with one partner."""

    def __init__(
        self,
        node: int,
        name: str,
        incarnation: int,
        partner: PartnerConfig,
        known_epoch: int,
        versions: Versions = OWN_VERSIONS,
        budget: Budget | None = None,
        *,
        now: Instant,
    ) -> None:
        """`budget` is the node's, all its partners share it."""
        self.partner = partner.node
        self.budget = budget if budget is not None else Budget()
        self.settings = settings = self.budget.settings
        self.budget.paths += len(partner.paths)
        self.partner_name = partner.name
        self.incarnation = incarnation
        self.out: list[Action] = []
        self.leaving = False
        """The partner is about to be no partner any more (`ccm.membership`)."""
        leads = node < partner.node
        others, spread = len(partner.paths) > 1, 3 * node + 5 * partner.node
        self.paths = PathSet(
            [
                Path(
                    index, adapter, incarnation, self.budget, leads=leads, others=others, spread=spread + index, now=now
                )
                for index, adapter in partner.paths
            ]
        )
        self.publisher = Publisher(node, incarnation, partner.node)
        self.sessions = SessionSet(self.publisher, self.paths, known_epoch, self.out, settings)
        self.settling = Settling(name, versions, self.paths, self.sessions, self.publisher, self.out)
        self.failover = Failover(self.paths, self.sessions, self.publisher, self.settling, self.out)
        self.partner_incarnation = 0
        """The highest incarnation of the partner's host that was read; 0: none yet."""
        self.partner_stage = -1
        self._balance = LoadBalance()
        self._sequences: dict[tuple[RecordKind, int], int] = {}
        self._told_at = now
        self._expected_at: Instant | None = None

    # timers

    def next_deadline(self) -> Instant | None:
        """The earliest time at which `on_time` has something to do."""
        deadline = earliest(
            *(path.next_deadline() for path in self.paths.paths),
            self.sessions.next_deadline(),
            self.settling.rebalance_at,
        )
        self._expected_at = deadline
        return deadline

    def on_time(self, *, now: Instant) -> None:
        """Timers: attempts, polls, probes, silence, fence repetitions, failback. Needless calls do no harm."""
        if self._expected_at is not None and now - self._expected_at > LATE_NS:
            self.budget.note_late(now - self._expected_at, now=now)
            for path in self.paths.paths:
                path.liveness.credit(now - self._expected_at, now=now)
        self._expected_at = None
        probing = any(path.proven and path.liveness.probe_due(now=now) for path in self.paths.paths)
        for path in self.paths.paths:
            self._path_time(path, probing, now=now)
        if self.settling.rebalance_at is not None and now >= self.settling.rebalance_at:
            self.settling.rebalance_at = None
            if self.settling.may_move():
                self.sessions.rebalance()
        closing = self.sessions.next_deadline()
        if closing is not None and now >= closing:
            self.settling.settle(now=now)

    def _path_time(self, path: Path, probing: bool, *, now: Instant) -> None:
        state = path.state
        if state is PathState.DOWN:
            if path.carrier and path.retry_at is not None and now >= path.retry_at:
                self._connect(path, now=now)
        elif state is PathState.CONNECTING:
            if now >= path.connect_by:
                self._refuse(path, Reason.UNREACHABLE, "no answer", now=now)
        elif state is PathState.HANDSHAKE:
            if not path.asks and path.poll_at is not None and now >= path.poll_at:
                self._poll(path, now=now)
            elif path.asks and now >= path.connect_by:
                self.failover.lose(path, Reason.COMPLETION_ERROR, now=now)
        elif state is PathState.FENCING:
            if path.fence_retry_at is not None and now >= path.fence_retry_at:
                self.failover.request_fence(path, now=now)
        else:
            self._watch(path, probing, now=now)

    def _connect(self, path: Path, *, now: Instant) -> None:
        """Begins an attempt, or lets it wait for its turn."""
        strain = self.budget.strain(now=now)
        if self.budget.connecting >= CONNECTING_STRAINED_MAX[strain]:
            path.retry_at = self.budget.waiting_look(now=now)
            return
        path.patience = max(path.patience, STRAINED_PATIENCE[strain])
        path.take(Input.DUE, now=now)
        patience = path.patience if strain else min(path.patience, UNSTRAINED_PATIENCE_MAX)
        self.out.append(ConnectPeer(self.partner, path.index, path.mtu_most, patience))

    def _watch(self, path: Path, probing: bool, *, now: Instant) -> None:
        """Probe and silence of a proven path; `probing`: a probe of this or another path is due."""
        silent_at = path.silent_at()
        if silent_at is not None and now >= silent_at:
            if path.state is PathState.UP and not self.paths.has_better(path, now=now):
                path.take(Input.SILENT, now=now, reason=Reason.SILENT)
                self.settling.settle(now=now)
            else:
                self.failover.lose(path, Reason.SILENT, now=now)
                return
        if path.relink_at is not None and now >= path.relink_at:
            self._relink(path, now=now)
        elif probing and path.liveness.may_go_along(now=now):
            path.liveness.on_probe(now=now, apart=not self.sessions.shares_clients)
            self.out.append(ReadStatus(self.partner, path.index))
        alarm_at = path.alarm_at()
        if alarm_at is not None and now >= alarm_at:
            for each in self.paths.paths:
                each.liveness.on_work(now=now)

    # connection and handshake

    def on_peer_connected(self, event: ev.PeerConnected, *, now: Instant) -> None:
        """The firmware accepted: read 1."""
        path = self.paths.get(event.path)
        if path is None or not path.allows(Input.CONNECTED):
            return
        if path.state is PathState.SUSPECT:
            path.relink_at = path.left_at = None
            self.out.append(ReadStatus(self.partner, path.index))
            return
        # The partner may have fenced the path since the firmware's answer was read; fence epochs never fall.
        path.fence_epoch, path.mtu = max(path.fence_epoch, event.fence_epoch), event.mtu
        path.remote_adapter = event.adapter
        path.take(Input.CONNECTED, now=now)
        self._poll(path, now=now)

    def on_peer_refused(self, event: ev.PeerRefused, *, now: Instant) -> None:
        """No connection: again later."""
        path = self.paths.get(event.path)
        if path is not None and path.state is PathState.CONNECTING:
            if event.reason is Reason.LARGE_PACKETS_LOST:
                path.on_large_packets_lost(event.mtu)
            self._refuse(path, event.reason, event.text, now=now)

    def on_peer_lost(self, event: ev.PeerLost, *, now: Instant) -> None:
        """A request on the well-known connection failed."""
        path = self.paths.get(event.path)
        if path is None:
            return
        if path.usable and path.carrier and not self.paths.has_better(path, now=now):
            self._relink(path, now=now)
        else:
            self.failover.lose(path, Reason.COMPLETION_ERROR, now=now)

    def _relink(self, path: Path, *, now: Instant) -> None:
        """The well-known connection failed, and no path is better: made anew beside the sessions, which may get
        through.
        """
        path.take(Input.SILENT, now=now, reason=Reason.COMPLETION_ERROR)
        if path.liveness.probe_at is None:
            path.liveness.on_probe(now=now)  # the limit of its silence goes on
        self.publisher.on_path_lost(path.index)
        path.relink_at = Instant(now + self.settings.connect_timeout_ns)
        self.out += [DisconnectPeer(self.partner, path.index), ConnectPeer(self.partner, path.index, path.mtu)]

    def on_status(self, event: ev.StatusRead, *, now: Instant) -> None:
        """The status page: a step of the handshake, or an answered probe."""
        path = self.paths.get(event.path)
        if path is None or path.state in (PathState.DOWN, PathState.CONNECTING, PathState.FENCING):
            return
        self._tell_status(event, now=now)
        gone = event.stage < STAGE_LOADER
        if event.incarnation > self.partner_incarnation or (gone and self.partner_incarnation and path.proven):
            self._restart_partner(event.incarnation, gone, now=now)
        if path.state is PathState.HANDSHAKE:
            path.poll_posted = False
            path.on_step(now=now)
            if event.incarnation == self.partner_incarnation and path.handshake.on_status(
                event.stage, event.incarnation
            ):
                self._note_step(path, 1)
                self._write_seen(path, 1, now=now)
            else:
                path.poll_later(now=now)
            return
        asked_at = path.liveness.probe_at
        if asked_at is not None:
            self._pass_looks(event, asked_at, now=now)
        late_ns = max(0, now - self._expected_at) if self._expected_at is not None else 0
        path.liveness.on_answer(late_ns, now=now)
        landed = path.left_at is None or (asked_at is not None and asked_at > path.left_at)
        if path.relink_at is None and landed:
            path.left_at = None
            if self.publisher.on_path_anew(path.index):
                self.settling.settle(now=now)
        self._alive(path, now=now)
        for other in self.paths.paths:
            if other.state is PathState.SUSPECT and self.paths.has_better(other, now=now):
                self.failover.lose(other, other.reason, now=now)

    def _pass_looks(self, event: ev.StatusRead, asked_at: Instant, *, now: Instant) -> None:
        """Tells the other paths what the page and our own say of their cards."""
        for other in self.paths.paths:
            if other.index != event.path and other.liveness.probe_at is not None:
                own, remote = _at(event.own_looks, other.adapter), _at(event.looks, other.remote_adapter)
                other.liveness.on_looks(own, remote, asked_at, now=now)

    def on_status_unreadable(self, event: ev.StatusUnreadable, *, now: Instant) -> None:
        """The page is no status page: the path answers, the handshake waits."""
        path = self.paths.get(event.path)
        if path is None:
            return
        self.settling.refuse(path.index, Reason.NONE, "status page is not readable as one")
        if path.state is PathState.HANDSHAKE:
            path.poll_later(now=now)
        else:
            path.liveness.on_answer(now=now)

    def on_seen(self, event: ev.SeenRead, *, now: Instant) -> None:
        """Read 2."""
        path = self.paths.get(event.path)
        if path is None or path.state is not PathState.HANDSHAKE:
            return
        path.poll_posted = False
        path.on_step(now=now)
        if path.handshake.on_seen(event.record):
            self._note_step(path, 3)
            self._write_seen(path, 2, now=now)
        else:
            path.poll_later(now=now)

    def on_record_written(self, event: ev.RecordWritten, *, now: Instant) -> None:
        """The partner's adapter acknowledged a record."""
        kind = RecordKind(event.kind)
        if kind is not RecordKind.SEEN:
            self.publisher.on_written(kind, event.index, event.sequence)
            self.settling.settle(now=now)
            return
        path = self.paths.get(event.path)
        if path is None or path.state is not PathState.HANDSHAKE or event.sequence != path.seen_sequence:
            return
        path.on_step(now=now)
        if path.handshake.step is Step.WRITE_SEEN and path.handshake.on_written(1):
            self._note_step(path, 2)
            self._poll(path, now=now)
        elif path.handshake.step is Step.WRITE_KNOWN and path.handshake.on_written(2):
            self._note_step(path, 4)
            self._prove(path, now=now)

    def _poll(self, path: Path, *, now: Instant) -> None:
        path.poll_posted = True
        path.asks_now(now=now)
        read = ReadSeen if path.handshake.step is Step.READ_SEEN else ReadStatus
        self.out.append(read(self.partner, path.index))

    def _write_seen(self, path: Path, step: int, *, now: Instant) -> None:
        path.poll_at = None
        path.asks_now(now=now)
        path.seen_sequence = self.publisher.next_sequence()
        record = self.publisher.record(RecordKind.SEEN, path.index, Seen(step), path.seen_sequence)
        self.out.append(WriteRecord(self.partner, path.index, record))

    def _prove(self, path: Path, *, now: Instant) -> None:
        """Four steps done: the exchange begins on this path with a new generation."""
        assert path.handshake.partner_incarnation == self.partner_incarnation
        path.take(Input.PROVEN, now=now)
        path.pairing.begin()
        path.left_at = None
        self.publisher.on_path_anew(path.index)
        self.out.append(ReadInbox(self.partner))
        self.settling.settle(now=now)

    def _note_step(self, path: Path, step: int) -> None:
        self.out.append(NoteStep(self.partner, path.index, step, path.handshake.partner_incarnation))

    def _refuse(self, path: Path, reason: Reason, text: str, *, now: Instant) -> None:
        path.take(Input.REFUSED, now=now, reason=reason)
        self.out.append(DisconnectPeer(self.partner, path.index))
        self.settling.refuse(path.index, reason, text)

    # the partner's host

    def _tell_status(self, event: ev.StatusRead, *, now: Instant) -> None:
        changed = (event.stage, event.incarnation) != (self.partner_stage, self.partner_incarnation)
        if changed or now - self._told_at >= STATUS_TELL_NS:
            self._told_at = now
            self.out.append(
                TellPartnerStatus(
                    self.partner, event.path, event.stage, event.incarnation, event.progress, event.heartbeat, changed
                )
            )
        self.partner_stage = event.stage

    def _restart_partner(self, incarnation: int, gone: bool, *, now: Instant) -> None:
        """The partner's host rebooted, or left: everything agreed with it is void; the connections to its firmware
        live on.
        """
        first = self.partner_incarnation == 0
        self.partner_incarnation = incarnation
        self.settling.agreement = None
        self._sequences.clear()
        reason = Reason.PARTNER_HOST_GONE if gone else Reason.PARTNER_REBOOTED
        self.sessions.forget_partner()
        if not first:
            self.sessions.break_all(reason, now=now)
        self.publisher.begin(incarnation)
        for path in self.paths.paths:
            path.pairing.forget_partner()
            was_usable, was_fencing = path.usable, path.state is PathState.FENCING
            unconnected = path.relink_at is not None  # so there is nothing to begin the handshake on
            path.take(Input.LOST_ALONE if unconnected else Input.RESTARTED, now=now, reason=reason)
            if was_usable:
                self.out += [HoldPath(self.partner, path.index), NotePathDown(self.partner, path.index, reason)]
            self.failover.close_lanes(path)
            if was_fencing or unconnected:
                self.out.append(DisconnectPeer(self.partner, path.index))

    # exchange

    def on_record(self, event: ev.RecordArrived, *, now: Instant) -> None:
        """A record of the partner's; those of other incarnations and older ones than known are not looked at."""
        record = event.record
        if record.node != self.partner:
            self.settling.refuse(0, Reason.WRONG_IDENTITY, f"node id {record.node}, expected {self.partner}")
            return
        if record.kind is RecordKind.SEEN:
            path = self.paths.get(record.index)
            if path is not None and path.state is PathState.HANDSHAKE and not path.asks:
                self._poll(path, now=now)
            return
        key = (record.kind, record.index)
        current = (record.writer_incarnation, record.partner_incarnation) == (
            self.partner_incarnation,
            self.incarnation,
        )
        if not current or record.sequence <= self._sequences.get(key, 0):
            return
        self._sequences[key] = record.sequence
        self._take_record(record, now=now)
        self.settling.settle(now=now)

    def _take_record(self, record: Record, *, now: Instant) -> None:
        body = record.body
        if isinstance(body, Info):
            self.settling.on_info(record)
        elif isinstance(body, Manifest):
            wrong = contradiction(body)
            if wrong:
                self.settling.refuse(0, Reason.NONE, f"the manifest names {wrong}")
            else:
                self.sessions.on_partner_manifest(body)
                self._look_closer(now=now)
        elif isinstance(body, Sessions):
            wrong = self.sessions.on_partner_sessions(body)
            if wrong:
                self.settling.refuse(0, Reason.NONE, wrong)
        elif isinstance(body, PathInfo):
            path = self.paths.get(record.index)
            if path is None:
                self.settling.refuse(record.index, Reason.NONE, f"no path {record.index} in our configuration")
            elif path.pairing.on_partner(body) is Verdict.BROKEN and path.proven:
                self.failover.lose(path, Reason.PARTNER_BEGAN_PATH_ANEW, now=now)

    def on_record_refused(self, event: ev.RecordRefused, *, now: Instant) -> None:
        """Bytes in the inbox that are no record."""
        self.settling.refuse(0, Reason.NONE, event.reason)

    def on_lanes_failed(self, event: ev.LanesFailed, *, now: Instant) -> None:
        """The local adapter refused what one session needs, which is barred from the path then, or it is dead:
        that alone brings the path down.
        """
        path = self.paths.get(event.path)
        lane = path.pairing.lanes.get(event.client) if path is not None else None
        session = self.sessions.sessions.get(event.client)
        name = session.name if session is not None else f"client {event.client:#x}"
        self.settling.refuse(event.path, Reason.VERBS_FAILED, f"{name}: {event.text}")
        if path is None or lane is None or lane.epoch != event.epoch:
            return
        if event.adapter_gone:
            self.failover.lose(path, Reason.VERBS_FAILED, now=now)
        else:
            self.sessions.refuse_on(event.client, path, now=now)
            self.settling.settle(now=now)

    # loss, fence, replay

    def on_carrier(self, adapter: int, up: bool, *, now: Instant) -> None:
        """The carrier of a local port changed."""
        for path in self.paths.paths:
            if path.adapter != adapter:
                continue
            path.carrier = up
            if not up:
                self.failover.lose(path, Reason.CARRIER_LOST, now=now)
            elif path.retry_at is not None:
                path.retry_at = max(path.retry_at, now)

    def on_fenced_by_partner(self, event: ev.FencedByPartner, *, now: Instant) -> None:
        """The partner has given up the path: so do we. Of a former life of the path: nothing."""
        path = self.paths.get(event.path)
        if path is None or event.epoch <= path.fence_epoch:
            return
        if path.proven:
            self.failover.lose(path, Reason.FENCED_BY_PARTNER, now=now)
        path.fence_epoch = event.epoch

    def on_double(self, event: ev.DoubleRefused, *, now: Instant) -> None:
        """Somebody else has the partner's node id: nothing changes, people must know."""
        text = f"another node called as node {self.partner} on path {event.path}"
        self.settling.refuse(event.path, Reason.DUPLICATE_IDENTITY, text)

    def on_version_refused(self, event: ev.VersionRefused, *, now: Instant) -> None:
        """Our card refuses the partner: it knows why, and so must the people on this side."""
        text = f"our card's firmware speaks another version of the well-known service than {self.partner_name}"
        self.settling.refuse(event.path, Reason.NO_COMMON_VERSION, text)

    def on_vi_failed(self, event: ev.ViFailed, *, now: Instant) -> None:
        """A virtual interface failed: with its path, or alone; then its session's queue pairs there are made anew, and
        where that doesn't help the session breaks.
        """
        path = self.paths.get(event.path)
        lane = path.pairing.lanes.get(event.client) if path is not None else None
        if path is None or lane is None or lane.epoch != event.epoch or not path.proven:
            return
        silent_ns = now - path.liveness.last_life_at
        if event.path_suspected and silent_ns > path.liveness.limit_ns:
            self.failover.lose(path, Reason.COMPLETION_ERROR, now=now)
        else:
            if not (event.mendable and self.settling.may_move() and self.sessions.mend(event.client, path, now=now)):
                self.sessions.break_one(event.client, Reason.VI_FAILED, now=now)
            if event.path_suspected:  # probes get through and its work didn't: perhaps only small packets do
                self.out.append(ProbePath(self.partner, path.index))
            self.settling.settle(now=now)

    def on_life(self, event: ev.LifeSeen, *, now: Instant) -> None:
        """Work completed on a virtual interface of the path."""
        path = self.paths.get(event.path)
        if path is not None and path.proven:
            path.liveness.on_life(now=min(now, Instant(event.at)))
            if path.relink_at is None:
                path.liveness.forget_lost_probe()
            self._alive(path, now=now)
        for each in self.paths.paths:
            each.liveness.on_work(now=now)

    def on_avoided(self, event: ev.PathAvoided, *, now: Instant) -> None:
        """A planned switch-over: virtual interfaces move between living paths, so that nothing is posted twice."""
        path = self.paths.get(event.path)
        if path is not None and path.avoided is not event.avoided:
            path.avoided = event.avoided
            if self.settling.may_move():
                self.sessions.rebalance()

    def on_moved(self, event: ev.Moved, *, now: Instant) -> None:
        """A virtual interface sends over another path now."""
        self.sessions.on_moved(event.client, event.epoch, event.vi, event.path)

    def on_load(self, event: ev.LoadSeen, *, now: Instant) -> None:
        """What went over which path lately: a virtual interface moves where the shares are too uneven."""
        if self.settings.balance != BY_BYTES or not self.settling.may_move():
            return
        carried = self.sessions.carried({(load.client, load.epoch, load.vi): load.in_flight for load in event.loads})
        if carried is None:
            self._balance.skip()
            return
        relief = self._balance.on_window(carried, now=now)
        if relief is not None:
            self.sessions.move(relief.client, relief.vi, relief.target)

    def _alive(self, path: Path, *, now: Instant) -> None:
        if path.state is PathState.SUSPECT:
            path.take(Input.LIFE, now=now)

    # clients

    def _look_closer(self, *, now: Instant) -> None:
        """Partners that have just found a client in common are probed at the usual rate."""
        if self.sessions.shares_clients:
            for path in self.paths.paths:
                path.liveness.on_shared(now=now)

    def on_client_opened(self, event: ev.ClientOpened, *, now: Instant) -> None:
        """A client of ours wants a session with this partner; one too many for a manifest is refused."""
        if self.leaving:
            return
        try:
            self.sessions.open(event.name, event.needs, now=now)
        except NeedsError as error:
            self.settling.refuse(0, Reason.NONE, f"client {event.name!r}: {error}")
        self._look_closer(now=now)
        self.settling.settle(now=now)

    def on_client_closed(self, event: ev.ClientClosed, *, now: Instant) -> None:
        """It no longer does."""
        self.sessions.close(event.name, now=now)
        self.settling.settle(now=now)


def _at(looks: tuple[int, ...], adapter: int) -> int:
    """Of one adapter; 0 where nothing is known of it."""
    return looks[adapter] if 0 <= adapter < len(looks) else 0
