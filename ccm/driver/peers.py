"""The driver's part for partners' firmware: well-known connections, exchange areas, fence requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from ccm import actions as ac
from ccm import events as ev
from ccm.adapter_port import AdapterPort
from ccm.driver.wiring import Wiring
from ccm.exchange import SLOTS, Refusal, emit_record, parse_record, slot_range
from ccm.peer_link import PeerIdentity, PeerLink
from ccm.reasons import Reason
from emul.cm import CmEvent
from emul.errors import RDMAError
from emul.node_memory import INBOX_BYTES, fence_slot
from emul.verbs import MR
from emul.vocabulary import AccessFlags

_HEADER_GLANCE = 48
"""Bytes of a slot whose change tells that there is a new record."""
_EMPTY = bytes(INBOX_BYTES)
"""What an outbox holds before anything was published in it."""


class PeerDriver:
    """Connections by (partner, path), outboxes by (adapter, partner)."""

    def __init__(self, wiring: Wiring, rng: random.Random) -> None:
        self._wiring = wiring
        self._rng = rng
        self._links: dict[tuple[int, int], PeerLink] = {}
        self._by_number: dict[tuple[int, int], tuple[int, int]] = {}
        """(adapter, number of the connection there) -> key of the link."""
        self._wanted: dict[tuple[int, int], ac.ConnectPeer] = {}
        """Attempts that were not given up yet: one that is while it waits for its turn is not made. Otherwise its
        answer could be taken for that of the attempt after it, which then goes on over a connection that is closed.
        """
        self._outboxes: dict[tuple[int, int], MR] = {}
        self._glances: dict[int, dict[tuple[int, int], bytes]] = {}
        """By partner: what each slot of its inbox began with when it was last read."""

    def clear_outboxes(self) -> None:
        """A former incarnation's records are nobody's any more."""
        for partner in self._wiring.partners:
            outbox = self._wiring.node.outbox(partner)
            if outbox != _EMPTY:  # so that the memory of partners that were never met is not even touched
                outbox[:] = _EMPTY

    def forget_adapter(self, index: int) -> None:
        """The adapter died: what was registered there is gone."""
        for key in [key for key in self._outboxes if key[0] == index]:
            del self._outboxes[key]

    def on_cm_event(self, index: int, event: CmEvent) -> None:
        """A connection event of adapter `index`."""
        key = self._by_number.get((index, event.number))
        link = self._links.get(key) if key is not None else None
        if key is None or link is None or link.number != event.number:
            return
        epoch = self._wiring.node.fence_epoch(fence_slot(*key))
        try:
            link.on_cm_event(event, epoch)
        except RDMAError as error:
            self._note_refused(error)
            self._wiring.tell(ev.PeerRefused(*key, Reason.VERBS_FAILED, "could not agree with the reply"))

    def scan(self, partner: int) -> None:
        """Looks at the slots of an inbox; what is new becomes events."""
        if partner not in self._wiring.partners:
            return
        inbox = self._wiring.node.inbox(partner)
        glances = self._glances.setdefault(partner, {})
        for kind, slot in SLOTS.items():
            for index in range(slot.count):
                offset = slot.offset + index * slot.stride
                glance = bytes(inbox[offset : offset + _HEADER_GLANCE])
                if glances.get((kind, index)) == glance:
                    continue
                found = parse_record(bytes(inbox[offset : offset + slot.stride]), kind, index)
                if isinstance(found, Refusal):  # perhaps caught in mid-write: looked at again next time
                    self._wiring.tell(ev.RecordRefused(partner, found.reason))
                    continue
                glances[kind, index] = glance
                if found is not None:
                    self._wiring.tell(ev.RecordArrived(partner, found))

    def forget(self, partner: int) -> Iterator[None]:
        """A partner that left: nothing of it is kept, and what was published for it can be read no more."""
        outbox = self._wiring.node.outbox(partner)
        outbox[:] = _EMPTY
        self._glances.pop(partner, None)
        for key in [key for key in self._outboxes if key[1] == partner]:
            port = self._wiring.ports[key[0]]
            region = self._outboxes.pop(key)
            if port is not None and not port.gone:
                port.attempt(region.close)
                yield

    def close(self) -> None:
        """Parts from everybody."""
        for link in self._links.values():
            for _ in link.close():
                pass
        self._links.clear()

    # actions

    def connect_peer(self, action: ac.ConnectPeer) -> None:
        """Queues the attempt."""
        self._wanted[action.partner, action.path] = action
        self._wiring.chores.add(self._connecting(action), now=self._wiring.now)

    def disconnect_peer(self, action: ac.DisconnectPeer) -> None:
        """Nothing more is heard from now on; parting may wait."""
        key = (action.partner, action.path)
        self._wanted.pop(key, None)
        if key in self._links:
            self._links[key].silence()
        self._wiring.chores.add(self._disconnecting(key), now=self._wiring.now, put_off=True)

    def probe_path(self, action: ac.ProbePath) -> None:
        """At once."""
        link = self._link(action.partner, action.path)
        if link is not None:
            self._attempt(link.probe, action.partner, action.path)

    def read_status(self, action: ac.ReadStatus) -> None:
        """At once."""
        link = self._link(action.partner, action.path)
        if link is not None:
            self._attempt(link.read_status, action.partner, action.path)

    def read_seen(self, action: ac.ReadSeen) -> None:
        """At once."""
        link = self._link(action.partner, action.path)
        if link is not None:
            self._attempt(link.read_seen, action.partner, action.path)

    def write_record(self, action: ac.WriteRecord) -> None:
        """Behind the chores: what a record says is gone must be gone, what it says is there must be there."""
        wiring = self._wiring
        if wiring.chores:
            wiring.chores.add(self._writing(action), now=wiring.now)
        else:
            self._write(action)

    def read_inbox(self, action: ac.ReadInbox) -> None:
        """Looks at all slots, also those looked at before."""
        self._glances.pop(action.partner, None)
        self.scan(action.partner)

    def request_fence(self, action: ac.RequestFence) -> None:
        """At once."""
        self._wiring.log("fence.request", {"partner": action.partner, "path": action.path, "over": action.over})
        link = self._link(action.partner, action.over)
        if link is not None:
            ask = partial(link.request_fence, action.path, action.epoch, action.number)
            self._attempt(ask, action.partner, action.over)

    # inside

    def _connecting(self, action: ac.ConnectPeer) -> Iterator[None]:
        wiring, key = self._wiring, (action.partner, action.path)
        if self._wanted.get(key) is not action:
            return
        port = wiring.port_of(*key)
        if port is None:
            wiring.tell(ev.PeerRefused(*key, Reason.VERBS_FAILED, "the adapter is dead"))
            return
        config = wiring.config
        identity = PeerIdentity(
            config.node_id,
            wiring.incarnation,
            config.cluster_key,
            config.also_accepted,
            action.partner,
            action.path,
            wiring.paths[key].remote,
        )
        try:
            outbox = self._outbox(port, action.partner)
            yield
            if self._wanted.get(key) is not action:
                return
            link = self._links[key] = PeerLink(port, identity, wiring.node, outbox, self._rng, wiring.tell)
            yield from link.connect(action.mtu_most, action.patience)
            self._by_number[port.index, link.number] = key
        except RDMAError as error:
            wiring.note_gone(error)
            wiring.tell(ev.PeerRefused(*key, Reason.VERBS_FAILED, str(error)))

    def _disconnecting(self, key: tuple[int, int]) -> Iterator[None]:
        link = self._links.pop(key, None)
        if link is not None:
            number = (self._wiring.paths[key].adapter, link.number)
            if self._by_number.get(number) == key:  # a new card may have given the number to another
                del self._by_number[number]
            yield from link.close()

    def _writing(self, action: ac.WriteRecord) -> Iterator[None]:
        self._write(action)
        return
        yield

    def _write(self, action: ac.WriteRecord) -> None:
        data = emit_record(action.record)
        offset, _ = slot_range(action.record.kind, action.record.index)
        self._wiring.node.outbox(action.partner)[offset : offset + len(data)] = data
        link = self._link(action.partner, action.path)
        if link is not None:
            self._attempt(partial(link.write_record, action.record, len(data)), action.partner, action.path)

    def _outbox(self, port: AdapterPort, partner: int) -> MR:
        """Our outbox for `partner` as a region of one adapter: source of the writes."""
        key = (port.index, partner)
        if key not in self._outboxes:
            node = self._wiring.node
            offset = node.exchange_offset(partner) + INBOX_BYTES
            self._outboxes[key] = MR(port.pd, INBOX_BYTES, AccessFlags.NONE, memory=node.memory, offset=offset)
        return self._outboxes[key]

    def _link(self, partner: int, path: int) -> PeerLink | None:
        """The connection of a path; that there is none is an event. None also for one that has ended."""
        link = self._links.get((partner, path))
        if link is None:
            self._wiring.tell(ev.PeerLost(partner, path, "not connected"))
            return None
        return None if link.silent else link

    def _attempt(self, verb: Callable[[], None], partner: int, path: int) -> None:
        """Carries out a verb on the connection of a path; an adapter that refuses it is an event, not an exception."""
        try:
            verb()
        except RDMAError as error:
            self._note_refused(error)
            self._wiring.tell(ev.PeerLost(partner, path, "not connected"))

    def _note_refused(self, error: RDMAError) -> None:
        self._wiring.note_gone(error)
        self._wiring.log("verb.refused", {"error": str(error)})
