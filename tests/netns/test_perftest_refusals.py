"""`python -m emul.perftest` where ends do not fit, and `--self-test` on machines that lack something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.network import DEADLINE_S, Namespace

pytestmark = [pytest.mark.netns, pytest.mark.root]
ROOT = Path(__file__).resolve().parent.parent.parent
PERFTEST = [sys.executable, "-m", "emul.perftest"]
ENDS = (["-d", "left0", "--local", "10.77.0.1"], ["-d", "right0", "--local", "10.77.0.2"])


@pytest.fixture
def place() -> Iterator[Namespace]:
    """A cable with both ends in one namespace."""
    namespace = Namespace()
    with namespace.entered():
        _ip("link", "add", "left0", "mtu", "2200", "type", "veth", "peer", "name", "right0", "mtu", "2200")
        for interface in ("left0", "right0"):
            _ip("link", "set", interface, "up")
    yield namespace
    namespace.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def both(place: Namespace, exchange: Path, server: str, client: str) -> list[tuple[int, str]]:
    """Exit status and complaint of a server and a client with these arguments."""
    commands = (
        [*PERFTEST, *server.split(), *ENDS[0], "--wire", "packet", "--exchange", f"unix:{exchange}"],
        [*PERFTEST, *client.split(), *ENDS[1], "--wire", "packet", f"unix:{exchange}"],
    )
    with place.entered():
        programs = [
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
    ended = []
    for program in programs:
        _, complaint = program.communicate(timeout=2 * DEADLINE_S)
        ended.append((program.returncode, complaint))
    return ended


@pytest.mark.parametrize(
    ("server", "client", "complaint"),
    [
        ("send_lat -s 4", "send_lat -s 8", "the ends differ in sizes: here [8], there [4]"),
        ("send_lat", "send_lat -R", "the ends differ in managed: here True, there False"),
        ("send_lat", "write_lat", "the ends differ in test: here write_lat, there send_lat"),
    ],
)
def test_ends_that_measure_different_things_are_told(
    place: Namespace, tmp_path: Path, server: str, client: str, complaint: str
) -> None:
    ended = both(place, tmp_path / "exchange", server, client)
    assert [status for status, _ in ended] == [1, 1]
    assert complaint in ended[1][1]


def test_queues_that_are_too_deep_for_the_adapter_are_refused_and_it_is_gone(place: Namespace, tmp_path: Path) -> None:
    deep = "send_bw -t 16384 -r 16384 --max-seconds 2"
    assert [status for status, _ in both(place, tmp_path / "a", deep, deep)] != [0, 0]
    ended = both(place, tmp_path / "b", "send_lat -n 5", "send_lat -n 5")
    assert [status for status, _ in ended] == [0, 0], ended


def self_test(*, before: tuple[str, ...], path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PATH": path} if path is not None else {})}
    return subprocess.run(
        [*before, *PERFTEST, "send_lat", "--self-test", "--wire", "packet", "-n", "20"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=6 * DEADLINE_S, check=False,
    )  # fmt: skip


def test_without_root_both_ends_live_in_a_user_namespace() -> None:
    unshare = shutil.which("unshare")
    assert unshare is not None
    done = self_test(before=(unshare, "--user", "--map-user=1000", "--map-group=1000"))
    assert done.returncode == 0, done.stderr
    assert "Transport type : packet" in done.stdout


@pytest.mark.parametrize(
    ("limit", "complaint"),
    [("net", "network namespaces are not allowed here: run it as root")],
)
def test_where_namespaces_are_not_allowed_it_says_so(limit: str, complaint: str) -> None:
    shell = f'echo 0 > /proc/sys/user/max_{limit}_namespaces; exec "$@"'
    done = self_test(before=("unshare", "--user", "--map-root-user", "sh", "-c", shell, "sh"))
    assert done.returncode == 1
    assert complaint in done.stderr


def test_without_iproute2_it_says_what_is_missing(tmp_path: Path) -> None:
    done = self_test(before=(), path=str(tmp_path))
    assert done.returncode == 1
    assert "ip(8) of iproute2 is needed to make the cable" in done.stderr
