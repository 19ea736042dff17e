"""Stories of a partner that calls a node's firmware: CM, proof, boot status, exchange area, fence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emul.clock import MILLISECOND, SECOND
from emul.cm import CmEventType, CmId
from emul.errors import RDMAError
from emul.memory import Memory
from emul.node_memory import (
    NODE_MEMORY_BYTES,
    STATUS_READ_BYTES,
    BootStatus,
    NodeMemory,
    Stage,
    fence_slot,
    parse_looks,
)
from emul.vocabulary import SGE, AsyncEvent, EventType, QPAttr, RecvWR, SendWR, WCStatus, WROpcode
from emul.wellknown import (
    MESSAGE_FENCE,
    MESSAGE_FENCED,
    RECEIVE_BYTES,
    SERVICE_ID,
    ConnectReply,
    ConnectRequest,
    FirmwareMessage,
    VersionRefusal,
    proof,
)
from emul.wire.headers import Opcode
from tests.helpers.adapters import KEY, AdapterPair, Party, Seen

CHALLENGE = b"sixteen bytes it"
MAD_ATTRIBUTE = 42 + 12 + 8 + 16  # envelope, BTH, DETH, then the attribute id within the MAD header


class Caller:
    """Node 1's host, which calls node 2's firmware."""

    def __init__(self, pair: AdapterPair, *, key: bytes = KEY, path: int = 0) -> None:
        self.pair = pair
        self.party = Party(pair.contexts[0])
        self.party.qp.to_init(QPAttr())
        self.cm = CmId(self.party.qp)
        self.key = key
        self.path = path
        self.reply: ConnectReply | None = None

    def call(self, service: int = SERVICE_ID, private_data: bytes | None = None) -> list[CmEventType]:
        request = ConnectRequest(1, self.path, 1, CHALLENGE).emit() if private_data is None else private_data
        self.cm.connect(self.pair.address(1), service, request, QPAttr(timeout=10, retry_cnt=2))
        return self.events()

    def establish(self) -> list[CmEventType]:
        assert self.reply is not None
        self.cm.establish(proof(self.key, "caller", self.reply.challenge, 1, 1))
        return self.events()

    def events(self) -> list[CmEventType]:
        self.pair.settle(lambda: bool(self.pair.adapters[0].cm.events), span_ns=SECOND)
        self.pair.settle(span_ns=MILLISECOND)
        events = self.pair.contexts[0].get_cm_events()
        for event in events:
            if event.kind is CmEventType.REPLY:
                self.reply = ConnectReply.parse(event.private_data)
        return [event.kind for event in events]

    def read_status(self) -> BootStatus | WCStatus | None:
        assert self.reply is not None
        mr = self.party.mr
        request = SendWR(1, WROpcode.RDMA_READ, sg=[SGE(mr.buf, 96, mr.lkey)])
        request.set_wr_rdma(self.reply.status_rkey, self.reply.status_addr)
        self.party.qp.post_send(request)
        self.pair.settle(span_ns=400 * MILLISECOND)
        statuses = self.party.statuses()
        return BootStatus.parse(mr.read(96, 0)) if statuses == [WCStatus.SUCCESS] else statuses[0]


def connected(pair: AdapterPair, path: int = 0) -> Caller:
    caller = Caller(pair, path=path)
    assert caller.call() == [CmEventType.REPLY]
    assert caller.establish() == [CmEventType.ESTABLISHED]
    return caller


def test_the_boot_status_is_read_at_every_stage_and_no_host_takes_part() -> None:
    pair = AdapterPair()
    pair.adapters[1].host = None
    caller = connected(pair)
    status = caller.read_status()
    assert isinstance(status, BootStatus)
    assert status.stage is Stage.FIRMWARE
    incarnation = pair.nodes[1].begin_incarnation()
    status = caller.read_status()
    assert isinstance(status, BootStatus)
    assert (status.stage, status.incarnation) == (Stage.LOADER, incarnation)
    pair.nodes[1].enter_stage(Stage.KERNEL)
    pair.nodes[1].beat()
    status = caller.read_status()
    assert isinstance(status, BootStatus)
    assert (status.stage, status.heartbeat) == (Stage.KERNEL, 1)


def test_the_firmware_proves_that_it_knows_the_key() -> None:
    pair = AdapterPair()
    caller = Caller(pair)
    caller.call()
    assert caller.reply is not None
    assert caller.reply.proof == proof(KEY, "firmware", CHALLENGE, 2, caller.reply.incarnation)
    assert caller.reply.proof != proof(KEY, "caller", CHALLENGE, 2, caller.reply.incarnation)


def test_a_caller_with_the_wrong_key_reaches_nothing() -> None:
    pair = AdapterPair()
    caller = Caller(pair, key=b"guessed")
    caller.call()
    caller.establish()
    assert caller.read_status() is WCStatus.RETRY_EXC_ERR
    assert pair.adapters[1].counters()["firmware_links"] == 0
    assert pair.adapters[1].counters()["firmware_refused"] == 1


def test_a_proof_of_an_earlier_connection_is_worth_nothing_in_the_next() -> None:
    pair = AdapterPair()
    first = connected(pair)
    assert first.reply is not None
    again = Caller(pair)
    again.call()
    again.cm.establish(proof(KEY, "caller", first.reply.challenge, 1, 1))  # as it was recorded
    assert again.read_status() is WCStatus.RETRY_EXC_ERR
    assert pair.adapters[1].counters()["firmware_refused"] == 1
    assert isinstance(first.read_status(), BootStatus), "and the connection that is there stays"


def test_what_the_firmware_proves_itself_with_is_no_proof_of_the_caller() -> None:
    """Reflection: the stranger hands the firmware's challenge to a firmware, and gives back what that answers."""
    pair = AdapterPair()
    stranger = Caller(pair)
    stranger.call()
    assert stranger.reply is not None
    for challenge in (CHALLENGE, stranger.reply.challenge):
        reflected = proof(KEY, "firmware", challenge, 1, 1)
        caller = Caller(pair)
        caller.call()
        caller.cm.establish(reflected)
        assert caller.read_status() is WCStatus.RETRY_EXC_ERR


def test_a_second_caller_of_one_identity_is_rejected_unless_it_is_a_later_incarnation() -> None:
    pair = AdapterPair()
    first = connected(pair)
    for link in pair.adapters[1]._firmware._links.values():
        link.source = b"another address"
    second = Caller(pair)
    assert second.call() == [CmEventType.REJECTED]
    assert pair.contexts[1].get_async_events() == [AsyncEvent(EventType.IDENTITY_REFUSED, fence_slot(1, 0))]
    assert isinstance(first.read_status(), BootStatus), "the one that was there first stays"
    later = Caller(pair)
    assert later.call(private_data=ConnectRequest(1, 0, 2, CHALLENGE).emit()) == [CmEventType.REPLY]


def test_nothing_is_reached_before_the_proof_has_come() -> None:
    pair = AdapterPair()
    caller = Caller(pair)
    caller.call()
    assert caller.reply is not None
    rtu = b"\0\x14"
    pair.filter = lambda seen: [] if seen.frame[MAD_ATTRIBUTE : MAD_ATTRIBUTE + 2] == rtu else [seen.frame]
    caller.cm.establish(proof(KEY, "caller", caller.reply.challenge, 1, 1))  # this RTU never arrives
    assert caller.read_status() is WCStatus.RETRY_EXC_ERR


@pytest.mark.parametrize("lost", [0x10, 0x13, 0x14])
def test_a_lost_request_reply_or_rtu_is_sent_again(lost: int) -> None:
    pair = AdapterPair()
    losses = [lost]

    def lose_once(seen: Seen) -> list[bytes]:
        attribute = int.from_bytes(seen.frame[MAD_ATTRIBUTE : MAD_ATTRIBUTE + 2], "big")
        if seen.opcode == Opcode.UD_SEND_ONLY and losses and attribute == losses[0]:
            losses.pop()
            return []
        return [seen.frame]

    pair.filter = lose_once
    caller = connected(pair)
    assert not losses
    pair.settle(span_ns=100 * MILLISECOND)  # a lost RTU is found when the REP is repeated
    assert isinstance(caller.read_status(), BootStatus)


def test_repeated_messages_open_one_connection() -> None:
    pair = AdapterPair()
    pair.filter = lambda seen: [seen.frame, seen.frame]
    caller = connected(pair)
    assert isinstance(caller.read_status(), BootStatus)
    assert pair.adapters[1].counters()["firmware_links"] == 1


def test_nobody_at_the_other_end_is_unreachable() -> None:
    pair = AdapterPair()
    connected(pair)  # the address is known by now
    pair.filter = lambda seen: []
    assert Caller(pair).call() == [CmEventType.UNREACHABLE]


@pytest.mark.parametrize(
    ("service", "private_data"),
    [
        (SERVICE_ID + 1, None),
        (SERVICE_ID, b""),
        (SERVICE_ID, b"nonsense" * 7),
        (SERVICE_ID, ConnectRequest(0, 0, 1, CHALLENGE).emit()),
        (SERVICE_ID, ConnectRequest(1, 9, 1, CHALLENGE).emit()),
        (SERVICE_ID, ConnectRequest(1, 0, 1, CHALLENGE, version=9).emit()),
    ],
)
def test_a_request_that_makes_no_sense_is_rejected(service: int, private_data: bytes | None) -> None:
    pair = AdapterPair()
    assert Caller(pair).call(service, private_data) == [CmEventType.REJECTED]
    assert pair.adapters[1].counters()["firmware_links"] == 0


def test_the_host_is_told_when_a_partner_has_written_into_its_inbox() -> None:
    pair = AdapterPair()
    caller = connected(pair)
    assert caller.reply is not None
    mr = caller.party.mr
    mr.write(b"a record", 8)
    caller.party.qp.post_write(1, mr.buf, 8, mr.lkey, caller.reply.inbox_addr + 64, caller.reply.inbox_rkey)
    pair.settle(span_ns=50 * MILLISECOND)
    assert caller.party.statuses() == [WCStatus.SUCCESS]
    assert pair.contexts[1].get_async_events() == [AsyncEvent(EventType.EXCHANGE_WRITTEN, 1)]
    assert bytes(pair.nodes[1].inbox(1)[64:72]) == b"a record"


@pytest.mark.parametrize("target", ["status", "outbox"])
def test_a_partner_writes_nowhere_but_into_its_inbox(target: str) -> None:
    pair = AdapterPair()
    caller = connected(pair)
    assert caller.reply is not None
    mr = caller.party.mr
    addr, rkey = getattr(caller.reply, f"{target}_addr"), getattr(caller.reply, f"{target}_rkey")
    caller.party.qp.post_write(1, mr.buf, 8, mr.lkey, addr, rkey)
    pair.settle(span_ns=50 * MILLISECOND)
    assert caller.party.statuses() == [WCStatus.REM_ACCESS_ERR]


def fence(caller: Caller, epoch: int, number: int, path: int = 0) -> FirmwareMessage | None:
    mr = caller.party.mr
    caller.party.qp.post_recv(RecvWR(50, 1, [SGE(mr.buf + 1000, RECEIVE_BYTES, mr.lkey)]))
    data = FirmwareMessage(MESSAGE_FENCE, path, epoch, number).emit()
    mr.write(data, len(data), 2000)
    caller.party.qp.post_send(SendWR(51, WROpcode.SEND, sg=[SGE(mr.buf + 2000, len(data), mr.lkey)]))
    caller.pair.settle(span_ns=20 * MILLISECOND)
    received = [wc for wc in caller.party.completions() if wc.wr_id == 50]
    return FirmwareMessage.parse(mr.read(received[0].byte_len, 1000)) if received else None


def test_a_fence_rises_for_the_callers_own_path_and_never_falls() -> None:
    pair = AdapterPair()
    caller = connected(pair)
    assert fence(caller, 5, 77, path=1) == FirmwareMessage(MESSAGE_FENCED, 1, 5, 77)
    slot = fence_slot(1, 1)
    assert pair.nodes[1].fence_epoch(slot) == 5
    assert pair.contexts[1].get_async_events() == [AsyncEvent(EventType.PATH_FENCED, slot)]
    assert fence(caller, 3, 78, path=1) == FirmwareMessage(MESSAGE_FENCED, 1, 3, 78)
    assert pair.nodes[1].fence_epoch(slot) == 5
    assert pair.contexts[1].get_async_events() == []  # it was up already: nothing new to tell


def test_a_fence_is_answered_only_when_the_sibling_has_passed_a_frame_boundary() -> None:
    pair = AdapterPair()
    caller = connected(pair)
    node = pair.nodes[1]
    node.set_adapter_alive(1, True)
    node.set_turn(1, 7)  # the sibling is in the middle of a frame
    assert fence(caller, 5, 1) is None
    assert node.fence_epoch(fence_slot(1, 0)) == 5  # it stands already for every frame to come
    node.set_turn(1, 8)
    pair.settle(span_ns=20 * MILLISECOND)
    assert [wc.wr_id for wc in caller.party.completions()] == [50]


def test_a_dead_sibling_is_not_waited_for() -> None:
    pair = AdapterPair()
    caller = connected(pair)
    pair.nodes[1].set_turn(1, 7)
    pair.nodes[1].set_adapter_alive(1, False)
    assert fence(caller, 5, 1) is not None


def test_a_second_connection_of_the_same_path_replaces_the_first_and_old_keys_are_dead() -> None:
    pair = AdapterPair()
    first = connected(pair)
    second = connected(pair)
    assert isinstance(second.read_status(), BootStatus)
    assert first.read_status() is WCStatus.RETRY_EXC_ERR
    assert pair.adapters[1].counters()["firmware_links"] == 1


def test_a_hosts_connections_end_with_its_incarnation_and_its_queue_pairs_before_that_do_not() -> None:
    pair = AdapterPair()
    caller = connected(pair)
    assert pair.contexts[0].resources()["qp"] == 1
    pair.contexts[0].attach(1 + 1)
    assert not any(pair.contexts[0].resources().values())
    again = connected(pair)
    assert isinstance(again.read_status(), BootStatus)
    assert caller.cm.number != again.cm.number


def test_parting_takes_everything_back() -> None:
    pair = AdapterPair()
    caller = connected(pair)
    caller.cm.disconnect()
    assert caller.events() == [CmEventType.DISCONNECTED]
    pair.settle(span_ns=3 * SECOND)
    assert pair.adapters[1].counters()["firmware_links"] == 0
    assert len(pair.adapters[1].regions) == 0


@pytest.mark.parametrize("kind", [ConnectRequest, ConnectReply, FirmwareMessage, VersionRefusal])
def test_bytes_that_are_no_message_of_the_well_known_service_are_none(
    kind: type[ConnectRequest | ConnectReply | FirmwareMessage | VersionRefusal],
) -> None:
    assert kind.parse(b"") is None
    assert kind.parse(bytes(7)) is None
    assert kind.parse(bytes(120)) is None


def test_a_reply_of_a_firmware_that_knows_fewer_fields_is_understood() -> None:
    """Where it has nothing to say, the private data of a REP holds zeros."""
    reply = ConnectReply(7, 1, bytes(16), bytes(32), 1, 2, 3, 4, 5, 6, adapter=0, probe_addr=9, probe_rkey=10)
    assert ConnectReply.parse(reply.emit()) == reply
    older = ConnectReply.parse(reply.emit()[:100].ljust(196, b"\0"))
    assert older == replace(reply, adapter=None, probe_addr=0, probe_rkey=0)


@pytest.mark.parametrize(
    "text", [b"nonsense", FirmwareMessage(99, 0, 1, 1).emit(), FirmwareMessage(1, 200, 1, 1).emit()]
)
def test_a_message_that_means_nothing_to_the_firmware_is_counted_and_changes_nothing(text: bytes) -> None:
    pair = AdapterPair()
    caller = connected(pair)
    mr = caller.party.mr
    mr.write(text, len(text), 2000)
    caller.party.qp.post_send(SendWR(51, WROpcode.SEND, num_sge=1, sg=[SGE(mr.buf + 2000, len(text), mr.lkey)]))
    pair.settle(span_ns=20 * MILLISECOND)
    assert caller.party.statuses() == [WCStatus.SUCCESS]
    assert pair.adapters[1].counters()["firmware_refused"] == 1
    assert isinstance(caller.read_status(), BootStatus)


def test_a_partner_that_calls_through_rdma_cms_port_space_is_heard_with_and_without_its_header() -> None:
    """The header is the caller's adapter's doing: what the firmware reads is behind it, or at the beginning."""
    from emul.wire.mad import RDMA_CM_HEADER_BYTES, RdmaCmHeader, Req, gid_of

    pair = AdapterPair()
    firmware = pair.adapters[1]._firmware
    request = ConnectRequest(1, 0, 1, CHALLENGE).emit()
    header = RdmaCmHeader(5, bytes(4), bytes(4)).emit()
    assert len(header) == RDMA_CM_HEADER_BYTES
    for number, private in enumerate((request, header + request)):
        req = Req(1, SERVICE_ID, 0x99, 0, gid_of("10.77.0.1"), gid_of("10.77.0.2"), 3, private_data=private)
        assert hasattr(firmware.on_request(number, req, b"\x0a\x4d\x00\x01", now=pair.now), "qpn")
    assert not firmware.on_established(99, b"", now=pair.now)
    firmware.on_ended(99)  # is not missed


def test_a_caller_that_does_not_agree_with_the_reply_leaves_nothing_behind() -> None:
    pair = AdapterPair()
    caller = Caller(pair)
    assert caller.call() == [CmEventType.REPLY]
    caller.cm.reject(b"not the one I meant")
    assert caller.events() == []
    assert pair.adapters[1].counters()["firmware_links"] == 0
    with pytest.raises(RDMAError, match="no reply to agree with"):
        caller.cm.establish()
    caller.cm.close()
    caller.cm.close()


def test_a_nodes_adapters_tell_on_the_status_page_that_they_look_at_their_ports() -> None:
    node = NodeMemory(Memory.plain(NODE_MEMORY_BYTES))
    node.power_on()
    assert node.looks == ()
    node.set_adapter_alive(0, True)
    node.set_adapter_alive(2, True)
    node.set_looks(2, 7)
    assert node.looks == parse_looks(bytes(node.buffer[:STATUS_READ_BYTES])) == (0, 0, 7)
    node.set_looks(0, 1 << 40)
    node.set_adapter_alive(2, False)
    assert node.looks == (1 << 40,), "a dead card counts nothing"
    assert node.status is not None and node.status.stage is Stage.FIRMWARE
