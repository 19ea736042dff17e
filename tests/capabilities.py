"""What this machine can do, as far as tests ask: each probe gives None, or what is missing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emul import compiled
from tests.softroce.image import missing_programs

PROBE_TIMEOUT_S = 20
LARGE_FRAMES_KERNEL = (6, 6)
_NAMESPACE_PROBE = """
import ctypes, sys
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWNS = 0x10000000, 0x40000000, 0x20000000, 0x20000
flags = CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | int(sys.argv[1]) * CLONE_NEWUSER
sys.exit(ctypes.CDLL(None, use_errno=True).unshare(flags) != 0)
"""


@dataclass(frozen=True, slots=True)
class Capability:
    """A name for LAB_REQUIRE, the marker of tests that need it, and the probe."""

    marker: str
    probe: Callable[[], str | None]


def required() -> set[str]:
    """The capabilities that LAB_REQUIRE names."""
    return {name.strip() for name in os.environ.get("LAB_REQUIRE", "").split(",") if name.strip()}


@functools.cache
def missing(name: str) -> str | None:
    """What is missing for capability `name`; None where it is there. Probed once."""
    return CAPABILITIES[name].probe()


def _root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _netns() -> str | None:
    as_user = "0" if os.geteuid() == 0 else "1"
    command = [sys.executable, "-c", _NAMESPACE_PROBE, as_user]
    result = subprocess.run(command, check=False, capture_output=True, timeout=PROBE_TIMEOUT_S)
    return None if result.returncode == 0 else "needs root or user namespaces to make network namespaces"


def _docker() -> str | None:
    command = shutil.which("docker")
    if command is None:
        return "needs docker"
    try:
        result = subprocess.run([command, "info"], check=False, capture_output=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"docker engine did not answer within {PROBE_TIMEOUT_S} s"
    return None if result.returncode == 0 else "needs a docker engine that answers"


def _softroce() -> str | None:
    if os.environ.get("LAB_SOFTROCE") != "1":
        return "runs in a virtual machine, for minutes: nox -s softroce"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun for a virtual machine's interface"
    return missing_programs()


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"needs {name}"


def _large_frames() -> str | None:
    major, minor, *_ = os.uname().release.split(".")
    has = (int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)) >= LARGE_FRAMES_KERNEL
    return None if has else "needs Linux 6.6 for frames in several buffers over AF_XDP"


def _plain() -> str | None:
    return "replaces what is compiled: CCM_LAB_PLAIN=1" if compiled.is_current() else None


CAPABILITIES: dict[str, Capability] = {
    "root": Capability("root", _root),
    "netns": Capability("netns", _netns),
    "docker": Capability("needs_docker", _docker),
    "tshark": Capability("needs_tshark", _program("tshark")),
    "tcpdump": Capability("needs_tcpdump", _program("tcpdump")),
    "softroce": Capability("needs_softroce", _softroce),
    "large-frames": Capability("needs_large_frames", _large_frames),
    "vagrant": Capability("needs_vagrant", _program("vagrant")),
    "plain": Capability("needs_plain", _plain),
}
