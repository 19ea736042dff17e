"""What this machine's kernel can do, tried out: each probe gives None, or what is missing.

Each runs in a child process with private namespaces, which takes everything away with it. Nothing of the machine's own
network is touched.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lab.errors import LabError
from lab.fabric import namespaces

NOBODY = 65534
ANSWER_BYTES_MAX = 4096
_GROUP = 1
_FIRST, _SECOND = 10, 11


def namespaces_problem() -> str | None:
    """Whether a lab can have namespaces at all, as this user."""
    return _in_child(_enter)


def user_namespaces_problem() -> str | None:
    """Whether somebody without privileges may make user namespaces (root tries it as nobody)."""

    def try_it() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        namespaces.enter_user_namespace(mapped=os.geteuid() != NOBODY)
        namespaces.make_private()

    return _in_child(try_it)


def cables_problem() -> str | None:
    """Whether a small fabric can be built: a switch, a cable, joined by redirects."""

    def build() -> None:
        _enter()
        from lab.fabric.cables import Cabling
        from lab.fabric.netlink import Netlink

        node = namespaces.open_namespace("net")
        namespaces.new_network_namespace()
        cable = {
            "name": "probe",
            "ends": [{"node": "a", "adapter": "p0", "mac": "02:00:00:00:00:01"}, {"switch": "probed"}],
        }
        cabling = Cabling(Netlink(), {"a": node}, 2200)
        cabling.build(["probed"], [cable])
        cabling.blackhole("probe")
        cabling.cut("probe")

    return _in_child(build)


def netem_problem() -> str | None:
    """Whether the kernel has the netem queueing discipline."""

    def build() -> None:
        _enter_with_veth()
        from lab.fabric import netlink

        connection = netlink.Netlink()
        connection.apply([netlink.netem(_FIRST, delay_us=1000)])

    return _in_child(build)


def xdp_wire() -> tuple[str | None, str | None]:
    """How AF_XDP works on a veth here ("xdp-native", "xdp-generic"), or None and why it does not."""
    answer = _in_child(_open_xdp_port)
    if answer is not None and answer.startswith("wire "):
        return answer.removeprefix("wire "), None
    return None, answer or "no answer"


def _open_xdp_port() -> str:
    _enter_with_veth()
    from emul.port.xdp import XdpPort

    port = XdpPort("probe0", "10.77.0.1")
    try:
        return f"wire {port.wire}"
    finally:
        port.close()


def _enter() -> None:
    if not namespaces.may_make_namespaces():
        namespaces.enter_user_namespace()
    namespaces.make_private(pid_namespace=False)
    namespaces.prepare_network()


def _enter_with_veth() -> None:
    _enter()
    from lab.fabric import netlink

    connection = netlink.Netlink()
    connection.apply(
        [
            netlink.plain_veth(
                index=_FIRST, name="probe0", mtu=2200, peer_index=_SECOND, peer_name="probe1", group=_GROUP
            ),
            netlink.group_up(_GROUP),
        ]
    )


def _in_child(probe: Callable[[], str | None]) -> str | None:
    """Runs `probe` in a child; its answer, or the error that it ended with."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(probe, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read(ANSWER_BYTES_MAX).decode("utf-8", "replace")
    os.waitpid(child, 0)
    return text or None


def _answer(probe: Callable[[], str | None], writer: int) -> NoReturn:
    text = "the probe crashed"
    try:
        text = probe() or ""
    except LabError as error:
        text = str(error).splitlines()[0]
    except Exception as error:
        text = f"{error}" or type(error).__name__
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        with suppress(OSError):
            os.write(writer, text.encode()[:ANSWER_BYTES_MAX])
        os._exit(0)


def kvm_problem() -> str | None:
    """Whether virtual machines can use the processor's support."""
    device = Path("/dev/kvm")
    if not device.exists():
        return "there is no /dev/kvm"
    return None if os.access(device, os.R_OK | os.W_OK) else "/dev/kvm is not accessible for this user"
