"""Captures without a kernel: blocks as the ring hands them over, the spool file, and the pcapng made of them."""

from __future__ import annotations

import struct
from pathlib import Path

from scapy.utils import RawPcapNgReader

from lab.capture import pcapng
from lab.capture.ring import frames_in, frames_of
from lab.capture.session import Comment, fault_comments, write_pcapng
from lab.capture.spool import Spool, SpoolWriter
from lab.injector.rules import Sight, describe

SECOND = 1_000_000_000
OFFSET = 1_700_000_000 * SECOND
"""From the clock of the faults to the time of day."""


def block(*frames: tuple[int, bytes]) -> bytes:
    """A block as linux/if_packet.h lays it out, frames as (ns on the clock of the faults, bytes)."""
    body = b""
    for at, data in frames:
        seconds, ns = divmod(at + OFFSET, SECOND)
        padded = data + bytes(-len(data) % 16)
        head = struct.pack("=IIIIIIHH20x", 48 + len(padded), seconds, ns, len(data), len(data), 0, 48, 0)
        body += head + padded
    return struct.pack("=IIIIII24x", 1, 0, 1, len(frames), 48, 48 + len(body)) + body


def spooled(path: Path, *blocks: tuple[int, bytes], bytes_max: int = 1 << 20) -> Path:
    writer = SpoolWriter((path / "spool").open("wb"), bytes_max)
    for end, data in blocks:
        writer.add(end, data)
    writer.close()
    return path / "spool"


def written(path: Path, spool: Path, *comments: Comment) -> tuple[list[bytes], list[list[str]], bytes]:
    """Frames and comments of the pcapng file as scapy reads them, and the file itself."""
    target = path / "out.pcapng"
    write_pcapng(spool, target, "ic0", ("a.ic0", "b.ic0"), comments, OFFSET)
    frames, texts = [], []
    for data, metadata in RawPcapNgReader(str(target)):
        frames.append(data)
        comment = getattr(metadata, "comments", None) or getattr(metadata, "comment", None) or []
        texts.append([text.decode() for text in ([comment] if isinstance(comment, bytes) else comment)])
    return frames, texts, target.read_bytes()


def test_a_block_gives_its_frames_with_time_and_length() -> None:
    data = block((5, b"first frame"), (7, b"second"))
    assert frames_in(data) == 2
    assert [(frame.at - OFFSET, frame.frame) for frame in frames_of(data)] == [(5, b"first frame"), (7, b"second")]


def test_frames_of_both_ends_are_merged_by_time(tmp_path: Path) -> None:
    spool = spooled(tmp_path, (0, block((10, b"a1"), (30, b"a2"))), (1, block((20, b"b1"))), (0, block((40, b"a3"))))
    assert [(end, frame.frame) for end, frame in Spool(spool).frames()] == [
        (0, b"a1"), (1, b"b1"), (0, b"a2"), (0, b"a3"),
    ]  # fmt: skip
    assert written(tmp_path, spool)[0] == [b"a1", b"b1", b"a2", b"a3"]


def test_what_exceeds_the_bound_is_counted_and_told(tmp_path: Path) -> None:
    one = block((10, b"x" * 100))
    spool = spooled(tmp_path, (0, one), (0, one), (1, one), bytes_max=2 * len(one))
    figures = Spool(spool).figures
    assert [(each.seen, each.lost) for each in figures] == [(2, 0), (1, 1)]
    assert pcapng.statistics(1, 10 + OFFSET, 1, 1) in written(tmp_path, spool)[2]


def test_a_spool_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    spool = spooled(tmp_path, (0, block((10, b"kept"))), (0, block((20, b"torn"))))
    whole = spool.read_bytes()
    spool.write_bytes(whole[: len(whole) - 60])
    assert [frame.frame for _, frame in Spool(spool).frames()] == [b"kept"]


def test_what_came_after_the_end_is_left_out_at_both_ends(tmp_path: Path) -> None:
    writer = SpoolWriter((tmp_path / "spool").open("wb"))
    writer.add(0, block((10, b"before")))
    writer.add(1, block((20, b"an answer to what end 0 has not handed over")))
    writer.ended(15 + OFFSET)
    writer.close()
    assert [frame.frame for _, frame in Spool(tmp_path / "spool").frames()] == [b"before"]


def test_a_fault_is_told_at_the_first_frame_after_it(tmp_path: Path) -> None:
    spool = spooled(tmp_path, (0, block((1_000_000, b"before"), (2_000_000, b"after"), (3_000_000, b"later"))))
    _, texts, data = written(tmp_path, spool, Comment(1_500_000, "cut"), Comment(9_000_000, "never seen again"))
    assert texts[0] == []
    assert texts[1] in (["cut (0.5 ms ago)"], [])  # an old scapy reads no comments
    assert b"cut (0.5 ms ago)" in data
    assert b"after this frame: never seen again" in data


def test_a_frame_that_was_acted_on_has_the_comment_itself(tmp_path: Path) -> None:
    frames = [bytes(range(60)), bytes(range(1, 62)), bytes(range(2, 64))]
    spool = spooled(tmp_path, (0, block(*((at * 1000, data) for at, data in enumerate(frames)))))
    acted = Comment(5000, "dropped", describe(Sight.of(frames[1]), len(frames[1])))
    _, _, data = written(tmp_path, spool, acted)
    first, second, third = (data.index(frame) for frame in frames)
    assert first < second < data.index(b"dropped") < third


def test_without_any_frame_the_comments_are_kept_all_the_same(tmp_path: Path) -> None:
    assert b"blackhole" in written(tmp_path, spooled(tmp_path), Comment(5, "blackhole"))[2]


def test_a_cables_fault_is_told_there_and_a_hosts_everywhere() -> None:
    cut = {"target": "ic1", "text": "fault 1: cable.cut ic1", "at": 5, "cleared": 9}
    crash = {"target": "b", "text": "fault 2: host.crash b", "at": 7, "cleared": None}
    told = fault_comments([cut, crash], ["ic0", "ic1"])
    assert [comment.text for comment in told["ic0"]] == ["fault 2: host.crash b"]
    assert [(comment.at, comment.text) for comment in told["ic1"]] == [
        (5, "fault 1: cable.cut ic1"), (9, "fault 1: cable.cut ic1, undone"), (7, "fault 2: host.crash b"),
    ]  # fmt: skip
