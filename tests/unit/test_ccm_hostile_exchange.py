"""What a partner may put into the exchange area: any bytes, and well-formed records that say anything.

Nothing of it may stop our manager, open what was not agreed, or keep an honest partner out afterwards.
"""

from __future__ import annotations

import dataclasses
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccm import actions as ac
from ccm.exchange import (
    CLIENTS_MAX,
    EPOCH_MAX,
    HEADER_BYTES,
    NAME_BYTES,
    SLOTS,
    VIS_MAX,
    Info,
    LaneEntry,
    Manifest,
    ManifestEntry,
    PathInfo,
    Record,
    RecordKind,
    Refusal,
    SessionEntry,
    Sessions,
    ViAddress,
    emit_record,
    parse_record,
    slot_range,
)
from ccm.needs import Needs, client_key
from ccm.reasons import Reason
from emul.clock import MILLISECOND, SECOND
from tests.unit.ccm_world import World, check_alerts

FUZZ = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
KEYS = st.sampled_from([client_key("mirror"), client_key("echo"), 0, 7])
EPOCHS = st.sampled_from([1, 2, 3, 1000, EPOCH_MAX - 1, EPOCH_MAX])


def fields_of(kind: type, **given: st.SearchStrategy) -> st.SearchStrategy:
    """Values of a record's dataclass: every field within its own range, some as given."""
    strategies = dict(given)
    for field in dataclasses.fields(kind):
        meta = field.metadata
        if field.name in strategies:
            continue
        if "item" in meta:
            strategies[field.name] = st.lists(ITEMS[meta["item"]], max_size=min(3, meta["most"])).map(tuple)
        elif "text" in meta:
            strategies[field.name] = st.sampled_from(["", "mirror", "echo", "someone"])
        else:
            width = {"H": 16, "I": 32, "Q": 64}[meta["form"]]
            most = meta["most"] if meta["most"] is not None else (1 << width) - 1
            strategies[field.name] = st.sampled_from(sorted({meta["least"], meta["least"] + 1, most // 2, most}))
    return st.builds(kind, **strategies)


ITEMS: dict[type, st.SearchStrategy] = {}
ITEMS[ViAddress] = fields_of(ViAddress)
ITEMS[ManifestEntry] = fields_of(ManifestEntry, client=KEYS)
ITEMS[SessionEntry] = fields_of(SessionEntry, client=KEYS, epoch=EPOCHS)
ITEMS[LaneEntry] = fields_of(LaneEntry, client=KEYS, epoch=EPOCHS)
BODIES = st.one_of(
    fields_of(Info).map(lambda body: (RecordKind.INFO, 0, body)),
    fields_of(Manifest).map(lambda body: (RecordKind.MANIFEST, 0, body)),
    fields_of(Sessions).map(lambda body: (RecordKind.SESSIONS, 0, body)),
    st.tuples(st.just(RecordKind.PATH), st.integers(0, 7), fields_of(PathInfo)),
)


def converged(world: World) -> bool:
    return world.all_ready() and world.paths_up()


def started(seed: int = 1) -> World:
    world = World(seed)
    for node in world.hardware:
        world.boot(node)
    assert world.run(SECOND, lambda: converged(world))
    return world


def put(world: World, kind: RecordKind, index: int, data: bytes) -> None:
    """Bytes into node 1's inbox from node 2, and node 1 looks."""
    me = world.hardware[1]
    offset, size = slot_range(kind, index)
    me.inboxes[2][offset : offset + size] = data[:size].ljust(size, b"\0")
    world._scan(me, 2, kind, index, me.life)


def say(world: World, kind: RecordKind, index: int, body: object, sequence: int) -> None:
    """A well-formed record of node 2's present incarnation."""
    incarnations = world.hardware[2].incarnation, world.hardware[1].incarnation
    put(world, kind, index, emit_record(Record(kind, index, 2, *incarnations, sequence, body)))


def becomes_ready_with_an_honest_partner(world: World) -> None:
    world.crash(2)
    world.boot(2)
    assert world.run(10 * SECOND, lambda: converged(world)), world.describe()
    check_alerts(world)


@FUZZ
@given(lies=st.lists(BODIES, min_size=1, max_size=4))
def test_any_well_formed_record_leaves_the_manager_working(lies):
    world = started()
    for number, (kind, index, body) in enumerate(lies, 1_000):
        say(world, kind, index, body, number)
        world.run(30 * MILLISECOND)
    becomes_ready_with_an_honest_partner(world)


@FUZZ
@given(
    kind=st.sampled_from(RecordKind), cut=st.integers(0, 600), flips=st.lists(st.integers(0, 8 * 600), max_size=4),
    noise=st.binary(max_size=80),
)  # fmt: skip
def test_any_bytes_are_a_record_or_refused_with_a_reason(kind, cut, flips, noise):
    world = _RUNNING
    offset, size = slot_range(kind)
    data = bytearray(world.hardware[1].inboxes[2][offset : offset + size])
    for bit in flips:
        data[bit // 8 % size] ^= 1 << bit % 8
    data = data[: min(cut, size)] + noise
    refused = world.hardware[1].manager.peerings[2].settling.refused
    mark = len(world.log)
    put(world, kind, 0, bytes(data))
    found = parse_record(bytes(data[:size]).ljust(size, b"\0"), kind, 0)
    if isinstance(found, Refusal):
        assert found.reason
        assert world.hardware[1].manager.peerings[2].settling.refused == refused + 1
    forbidden = (ac.OpenLanes, ac.AlertReady, ac.NotePathUp)
    assert not [action for _, node, action in world.log[mark:] if node == 1 and isinstance(action, forbidden)]


_RUNNING = started(3)


@pytest.mark.parametrize("epoch", [EPOCH_MAX, EPOCH_MAX - 1, 1 << 30])
def test_an_epoch_out_of_all_proportion_is_refused_and_not_followed(epoch):
    """Following it would use up the numbers: our next break would have none left, also after reboots."""
    world = started()
    before = world.hardware[1].epochs[2]
    say(world, RecordKind.SESSIONS, 0, Sessions(1, (SessionEntry(client_key("echo"), 1, epoch),)), 1_000)
    world.run(50 * MILLISECOND)
    assert world.hardware[1].epochs[2] <= before + 2
    assert "epoch" in world.hardware[1].manager.peerings[2].settling.last_refusal
    becomes_ready_with_an_honest_partner(world)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([("mirror", None), ("mirror", None)], "twice"),
        ([("mirror", 7)], "key"),
        ([("", None)], "name"),
    ],
    ids=["two clients of one name", "a key that isn't the name's", "no name"],
)
def test_a_manifest_that_contradicts_itself_is_refused(entries, text):
    world = started()
    body = Manifest(
        tuple(ManifestEntry(name, key or (client_key(name) if name else 5), 1, 0, 1, 64, 0, 0) for name, key in entries)
    )
    held = world.hardware[1].manager.peerings[2].sessions.partner_manifest
    say(world, RecordKind.MANIFEST, 0, body, 1_000)
    assert text in world.hardware[1].manager.peerings[2].settling.last_refusal
    assert world.hardware[1].manager.peerings[2].sessions.partner_manifest == held


def test_needs_out_of_range_are_refused_before_anything_is_told():
    for wrong in ({"vis": -1}, {"vis": 9}, {"depth": 0}, {"message_bytes": 1 << 20}, {"exposed_bytes": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Needs(**wrong)
    assert Reason(0) is Reason.NONE
    assert all(slot.count for slot in SLOTS.values())


def too_many_clients() -> bytes:
    """A manifest of one client more than there may be, with a right checksum."""
    entries = tuple(
        ManifestEntry(name, client_key(name), 1, 0, 1, 64, 0, 0) for name in (f"client-{n}" for n in range(CLIENTS_MAX))
    )
    record = Record(RecordKind.MANIFEST, 0, 2, 1, 1, 1_000, Manifest(entries))
    return resealed(emit_record(record), HEADER_BYTES, (CLIENTS_MAX + 1).to_bytes(2, "little"))


def resealed(data: bytes, offset: int, piece: bytes) -> bytes:
    """`data` with `piece` at `offset` and its checksum made right again."""
    changed = data[:offset] + piece + data[offset + len(piece) :]
    checksum = zlib.crc32(changed[:12] + bytes(4) + changed[16:])
    return changed[:12] + checksum.to_bytes(4, "little") + changed[16:]


def manifest(**fields: int) -> bytes:
    """A manifest of one client with whatever fields."""
    entry = ManifestEntry("echo", client_key("echo"), 1, 0, 1, 64, 512, 0)
    whole = emit_record(Record(RecordKind.MANIFEST, 0, 2, 1, 1, 1_000, Manifest((entry,))))
    at = HEADER_BYTES + 2 + NAME_BYTES + 4
    for name, value in fields.items():
        place = {"vis": at + 4, "depth": at + 6, "message_bytes": at + 8}[name]
        whole = resealed(whole, place, value.to_bytes(4 if name == "message_bytes" else 2, "little"))
    return whole


REFUSED = {
    "too many clients": (too_many_clients, "entries is 17"),
    "more virtual interfaces than there may be": (lambda: manifest(vis=VIS_MAX + 1), "vis is 9"),
    "a negative number of them": (lambda: manifest(vis=0xFFFF), "vis is 65535"),
    "a negative depth": (lambda: manifest(depth=0xFFFF), "depth is 65535"),
    "messages larger than any": (lambda: manifest(message_bytes=0xFFFF_FFFF), "message_bytes is 4294967295"),
    "a version to come": (lambda: resealed(manifest(), 4, b"\x02\x00"), "record version 2, expected 1"),
    "truncated": (lambda: manifest()[:60], "checksum"),
    "a length that is not there": (lambda: resealed(manifest(), 8, b"\xff\xff"), "length 65535"),
    "a wrong checksum": (lambda: manifest()[:-1] + b"\x01", "checksum"),
}


@pytest.mark.parametrize("story", REFUSED)
def test_a_bad_manifest_is_refused_with_the_reason_and_opens_nothing(story):
    data, reason = REFUSED[story]
    world = started()
    sessions = world.hardware[1].manager.peerings[2].sessions
    held, mark = sessions.partner_manifest, len(world.log)
    put(world, RecordKind.MANIFEST, 0, data())
    world.run(30 * MILLISECOND)
    assert reason in world.hardware[1].manager.peerings[2].settling.last_refusal
    assert sessions.partner_manifest == held
    forbidden = (ac.OpenLanes, ac.ConnectLanes, ac.AlertReady, ac.AlertError)
    assert not [action for _, node, action in world.log[mark:] if node == 1 and isinstance(action, forbidden)]
    becomes_ready_with_an_honest_partner(world)
