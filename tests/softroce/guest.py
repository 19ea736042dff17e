"""A virtual machine with soft-RoCE: QEMU's processor emulation, one interface for the tests, one serial port for words.

The machine boots its kernel directly, has no disk, and its first process starts `agent.py`. It ends with its owner.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from lab.fabric.namespaces import die_with_parent
from tests.softroce.image import Image, cpio_of

MEMORY_MB = 768
ACCELERATOR = os.environ.get("LAB_SOFTROCE_ACCEL", "tcg")
"""Pure emulation works everywhere; "kvm" is many times faster where virtual machines may run."""
PROCESSOR = {"tcg": "qemu64", "kvm": "host"}
BOOT_TIMEOUT_S = 300
ANSWER_TIMEOUT_S = 120
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000
MAC = "02:00:00:00:00:09"
INTERFACE, DEVICE = "eth0", "rxe0"
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for module in {modules}; do modprobe $module 2>/dev/null; done
ip link set lo up
ulimit -l unlimited
/agent.py
echo "init: the agent has ended"
sleep 1000000
"""


class GuestError(Exception):
    """The machine did not start, does not answer, or refused a request."""


def open_tap(name: str) -> int:
    """A tap interface in the calling thread's network namespace, which lives as long as the descriptor."""
    opened = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(opened, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    return opened


class Guest:
    """A running machine. `tap` is the descriptor of its interface's other end. Raises GuestError if it doesn't boot."""

    def __init__(self, image: Image, tap: int, modules: tuple[str, ...]) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="ccm-lab-guest-"))
        self._log = self._directory / "console"
        self._pending = b""
        initrd = self._directory / "initrd"
        with initrd.open("wb") as out:
            for part in image.parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
            agent = Path(__file__).with_name("agent.py").read_bytes()
            out.write(cpio_of({"init": _INIT.format(modules=" ".join(modules)).encode(), "agent.py": agent}))
        ours, theirs = socket.socketpair()
        self._channel = ours
        self._process = self._start(image.kernel, initrd, tap, theirs)
        theirs.close()
        try:
            self.release = str(self._answer(BOOT_TIMEOUT_S))
        except BaseException:
            self.close()
            raise

    def _start(self, kernel: Path, initrd: Path, tap: int, port: socket.socket) -> subprocess.Popen[bytes]:
        offloads = "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_ecn=off"
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [
                    "qemu-system-x86_64", "-machine", f"q35,accel={ACCELERATOR}", "-cpu", PROCESSOR[ACCELERATOR],
                    "-smp", "1", "-m", str(MEMORY_MB), "-nodefaults", "-no-user-config", "-display", "none",
                    "-no-reboot",
                    "-kernel", str(kernel), "-initrd", str(initrd),
                    "-append", "console=ttyS0 quiet loglevel=4 panic=-1 net.ifnames=0 nokaslr edd=off mitigations=off",
                    "-serial", "stdio",
                    "-netdev", f"tap,id=net,fd={tap}", "-device", f"virtio-net-pci,netdev=net,mac={MAC},{offloads}",
                    "-chardev", f"socket,id=words,fd={port.fileno()}",
                    "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=words",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(tap, port.fileno()),
                preexec_fn=_yield_to_others,
            )  # fmt: skip

    def ask(self, request: str, **fields: Any) -> Any:
        """Has the agent carry out `request`. Raises GuestError with the guest's words."""
        self._channel.sendall(json.dumps({"do": request, **fields}).encode() + b"\n")
        return self._answer(ANSWER_TIMEOUT_S + float(fields.get("timeout", 0)) * (request != "connect"))

    def run(self, *command: str) -> str:
        """Standard output of a command in the guest. Raises GuestError where it fails."""
        done = self.ask("run", command=command)
        if done["status"] != 0:
            raise GuestError(f"{' '.join(command)}: status {done['status']}: {done['err'] or done['out']}")
        return str(done["out"])

    def console(self) -> str:
        """The end of what the machine has printed."""
        return self._log.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """Switches it off."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._channel.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answer(self, timeout_s: float) -> Any:
        until = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._channel], [], [], max(0.0, until - time.monotonic()))
            chunk = self._channel.recv(1 << 20) if ready else b""
            if not chunk:
                why = "has ended" if ready else f"is silent for {timeout_s} s"
                raise GuestError(f"the machine {why}; its console:\n{self.console()}")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise GuestError(answer["error"])
        return answer["result"]


def encoded(data: bytes) -> str:
    """Bytes as the agent wants them."""
    return base64.b64encode(data).decode()


def _yield_to_others() -> None:
    die_with_parent(signal.SIGKILL)
    os.nice(10)  # an emulated processor takes a core whole
