"""An adapter for one program: a process of its own on an interface of the current network namespace, as long as wanted.

The process ends with `close`, and with the program however that ends: it waits on the program's pidfd. (Not on
PR_SET_PDEATHSIG, which tells of the end of the thread that started it.) Everything that it needs is in a directory of
its own: the control socket, the node's memory, its log.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from errno import EINVAL, ETIMEDOUT
from pathlib import Path

from emul.control import SocketDevice
from emul.errors import DeviceGone, RDMAError
from emul.memory import Memory
from emul.node_memory import NODE_MEMORY_BYTES, NodeMemory
from emul.port.open import WIRES
from emul.verbs import Context

READY_TIMEOUT_S = 15.0
"""How long a new process may take until it answers: an interpreter starts, and XDP is attached."""
STOP_TIMEOUT_S = 2.0
"""How long it may take to give the interface back; after that it is killed, and the kernel does it."""
REPORT_BYTES_MAX = 65_536
LOG_BYTES_SHOWN = 2_000


class OpenError(RDMAError):
    """No adapter could be opened on the interface; nothing was left behind."""


class OwnedDevice(SocketDevice):
    """An adapter process that ends with this device. `wire` tells how it moves frames."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, report: dict[str, object]) -> None:
        self._process = process
        self._directory = directory
        self.wire = str(report.get("wire"))
        self.fallback_reason = report.get("fallback")
        """Why it is not AF_XDP, where "auto" was asked for and that was not to be had."""
        super().__init__(str(directory / "control"))
        self.service_path = directory / "service"
        """Where emul.service_port.ServicePort injects hardware faults into it."""

    @property
    def pid(self) -> int:
        """The adapter's process."""
        return self._process.pid

    def close(self) -> None:
        """Lets go of the adapter and ends its process: the interface is as it was found."""
        super().close()
        stop(self._process, self._directory)


def open_adapter(
    interface: str,
    address: str | list[str],
    wire: str = "auto",
    *,
    ready_timeout_s: float = READY_TIMEOUT_S,
    cluster_key: str | None = None,
) -> Context:
    """Starts an adapter on `interface` of the calling thread's network namespace and gives its verbs context, for
    `with` or to be closed.

    `address` is the adapter's own IPv4 or IPv6 address, or a list of them, which nobody else may have; `wire` is "xdp",
    "packet" or "auto" (AF_XDP where it is to be had). The interface must be up, with an MTU of 320 at the least. As
    root, or with CAP_NET_RAW in the namespace (AF_PACKET; AF_XDP also needs CAP_BPF and CAP_NET_ADMIN).

    Raises OpenError: ENODEV no such interface, ENETDOWN it is down, EINVAL its MTU is too small or an argument is
    wrong, EBUSY another adapter or XDP program has it, EOPNOTSUPP that wire is not to be had, EPERM not allowed,
    ETIMEDOUT.
    """
    device = start(interface, address, wire, ready_timeout_s, cluster_key)
    try:
        return Context(device, name=interface)
    except BaseException:
        device.close()
        raise


def open_named(name: str, address: str | None) -> OwnedDevice:
    """The adapter of `Context(name="eth1@10.77.0.9")`, or of `Context(name="eth1", address="10.77.0.9")`."""
    interface, at, behind = name.partition("@")
    if at and address is None:
        address = behind
    if not address:
        raise OpenError(EINVAL, f"an adapter needs an address of its own: {name}@10.77.0.9, for example")
    return start(interface, address, "auto", READY_TIMEOUT_S, None)


def start(
    interface: str, address: str | list[str], wire: str, ready_timeout_s: float, cluster_key: str | None
) -> OwnedDevice:
    """Starts the process and waits until it answers. Raises OpenError."""
    if wire not in WIRES:
        raise OpenError(EINVAL, f"wire is one of {', '.join(WIRES)}, got {wire!r}")
    directory = Path(tempfile.mkdtemp(prefix="emul-"))
    node = NodeMemory(Memory.open_file(directory / "node", NODE_MEMORY_BYTES))
    node.power_on()
    reading, writing = os.pipe()
    config = {
        "node_id": 1, "adapter_index": 0, "interface": interface, "address": address, "wire": wire,
        "control": str(directory / "control"), "service": str(directory / "service"),
        "node_memory": str(directory / "node"),
        "cluster_key": cluster_key or secrets.token_hex(32), "log": str(directory / "log"),
        "owner_pid": os.getpid(), "ready_fd": writing, "directory": str(directory),
    }  # fmt: skip
    place = directory / "config"
    place.touch(0o600)
    place.write_text(json.dumps(config))
    package = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *os.environ.get("PYTHONPATH", "").split(":")])}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "emul", str(place)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[writing], env=environment,
            start_new_session=True,  # an interrupt from the keyboard is for the program alone
        )  # fmt: skip
    except OSError as error:
        os.close(reading)
        shutil.rmtree(directory, ignore_errors=True)
        raise OpenError(error.errno or EINVAL, f"the adapter's process could not be started: {error}") from error
    finally:
        os.close(writing)
    try:
        report = _await_report(reading, directory, time.monotonic() + ready_timeout_s)
        return OwnedDevice(process, directory, report)
    except BaseException as error:
        stop(process, directory)
        if isinstance(error, DeviceGone):
            raise OpenError(error.error_code, f"{interface}: the adapter ended at once") from error
        raise
    finally:
        os.close(reading)


def stop(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Ends an adapter's process, and removes its directory."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(directory, ignore_errors=True)


def _await_report(reading: int, directory: Path, until: float) -> dict[str, object]:
    told = b""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while not told.endswith(b"\n"):
        if not poll.poll(max(0.0, 1000 * (until - time.monotonic()))):
            raise OpenError(ETIMEDOUT, f"the adapter's process is not ready: {_last_words(directory)}")
        more = os.read(reading, REPORT_BYTES_MAX)
        if not more:
            raise OpenError(EINVAL, f"the adapter's process ended before it was ready: {_last_words(directory)}")
        told += more
    report: dict[str, object] = json.loads(told)
    code = report.get("errno")
    if isinstance(code, int):
        raise OpenError(code, str(report.get("message")))
    return report


def _last_words(directory: Path) -> str:
    try:
        return (directory / "log").read_text()[-LOG_BYTES_SHOWN:].strip() or "it said nothing"
    except OSError:
        return "it said nothing"
