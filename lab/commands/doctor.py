"""`lab doctor`: what this machine can do, tried out rather than guessed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

from lab.errors import EXIT_MACHINE, EXIT_PASS, MachineError

HELP = "tell what this machine can do, what that is needed for, and how to get what is missing"
PROGRAM_MAX_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a part of the lab needs. `detail` says what was found, or what is wrong."""

    name: str
    ok: bool
    detail: str
    needed_for: str
    how_to_get: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def main(args: argparse.Namespace) -> int:
    """Tries everything; exit status 3 where not even a lab of namespaces can be had."""
    findings = examine()
    by_name = {finding.name: finding for finding in findings}
    runs = by_name["namespaces"].ok and by_name["cables"].ok
    if args.json:
        print(json.dumps({"lab_runs": runs, "capabilities": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(render(findings, runs))
    return EXIT_PASS if runs else EXIT_MACHINE


def render(findings: list[Finding], runs: bool) -> str:
    """A line for each, and what to do about those that are missing."""
    width = max(len(finding.name) for finding in findings)
    green, red, plain = ("\x1b[32m", "\x1b[31m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")
    lines: list[str] = []
    for finding in findings:
        mark = f"{green}yes{plain}" if finding.ok else f"{red}no {plain}"
        lines.append(f"{finding.name:<{width}}  {mark}  {finding.detail}")
        if not finding.ok:
            lines.append(f"{'':<{width}}       needed for: {finding.needed_for}")
            lines.append(f"{'':<{width}}       to get it:  {finding.how_to_get}")
    wire = next(finding for finding in findings if finding.name == "AF_XDP")
    lines.append("")
    if runs:
        lines.append(f"`lab run` and `lab up` work here, over {'AF_XDP' if wire.ok else 'AF_PACKET'}.")
    else:
        lines.append("Only the simulator (`--world sim`) works here.")
    return "\n".join(lines)


def examine() -> list[Finding]:
    """All findings, in the order of how much depends on them."""
    return [_root(), *_kernel(), _docker(), *_programs(), _kvm(), _state()]


def _root() -> Finding:
    from lab.fabric.namespaces import may_make_namespaces

    root = os.geteuid() == 0
    able = may_make_namespaces()
    who = f"user {os.geteuid()}" if not root else "root" if able else "root without CAP_SYS_ADMIN and CAP_NET_ADMIN"
    return Finding(
        "root", root and able, who, "AF_XDP, nodes in containers", "sudo; in a container, give it --privileged"
    )


def _kernel() -> list[Finding]:
    from lab.fabric import probes

    allow = "sysctl user.max_user_namespaces above 0; on some distributions kernel.unprivileged_userns_clone=1 or " + (
        "kernel.apparmor_restrict_unprivileged_userns=0"
    )
    unprivileged = probes.user_namespaces_problem()
    private = probes.namespaces_problem()
    cables = probes.cables_problem() if private is None else "needs namespaces"
    netem = probes.netem_problem() if private is None else "needs namespaces"
    wire, no_wire = probes.xdp_wire() if private is None else (None, "needs namespaces")
    return [
        Finding("user namespaces", unprivileged is None, unprivileged or "allowed", "labs without root", allow),
        Finding("namespaces", private is None, private or "made", "every world but the simulator", f"root, or {allow}"),
        Finding(
            "cables", cables is None, cables or "built: veth, bridge, clsact, u32, mirred",
            "every world but the simulator",
            "a kernel with CONFIG_VETH, _BRIDGE, _NET_SCH_INGRESS, _NET_CLS_U32 and _NET_ACT_MIRRED",
        ),
        Finding(
            "AF_XDP", wire is not None, wire or no_wire or "", "the fast wire (otherwise AF_PACKET is used)",
            "root, and a kernel from 5.4 on with CONFIG_XDP_SOCKETS",
        ),
        Finding(
            "netem", netem is None, netem or "accepted", "comparing with the kernel's own impairments (sch_netem)",
            "a kernel with CONFIG_NET_SCH_NETEM (modprobe sch_netem)",
        ),
    ]  # fmt: skip


def _docker() -> Finding:
    needed = "nodes with their own root file system, CPU and memory limits (kind: docker)"
    try:
        from lab.docker.engine import Engine

        engine = Engine()
        version = engine.version
        engine.close()
    except MachineError as error:
        return Finding("docker", False, error.missing, needed, error.how_to_get)
    if os.geteuid() != 0:
        return Finding("docker", False, f"engine {version}, but nodes in containers need root", needed, "sudo")
    return Finding("docker", True, f"engine {version}", needed, "")


def _programs() -> list[Finding]:
    wanted = (
        ("tshark", "--version", "reading captures, and tests that judge frames by it", "apt-get install tshark"),
        ("tcpdump", "--version", "capturing a cable by hand", "apt-get install tcpdump"),
        ("vagrant", "--version", "virtual machines as nodes (Vagrantfile)", "developer.hashicorp.com/vagrant/install"),
    )
    return [_program(*each) for each in wanted]


def _program(name: str, option: str, needed_for: str, how_to_get: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, False, "not installed", needed_for, how_to_get)
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=PROGRAM_MAX_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, False, f"{path} does not run: {error}", needed_for, how_to_get)
    first = next(iter((done.stdout or done.stderr).splitlines()), path)
    return Finding(name, done.returncode == 0, first, needed_for, how_to_get)


def _kvm() -> Finding:
    from lab.fabric.probes import kvm_problem

    problem = kvm_problem()
    how = "a processor with virtualisation, switched on, and membership in group kvm"
    return Finding("KVM", problem is None, problem or "/dev/kvm", "virtual machines at usable speed", how)


def _state() -> Finding:
    from lab.fabric.registry import state_is_in_memory, state_roots

    root = state_roots()[0]
    in_memory = state_is_in_memory(root)
    detail = f"{root}{'' if in_memory else ' (on a disk: its write-back shows in latencies)'}"
    how = "a tmpfs of 512 MiB or more at $XDG_RUNTIME_DIR or /dev/shm"
    return Finding("state in memory", in_memory, detail, "steady latencies", how)
