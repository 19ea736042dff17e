"""perftest's print-outs (linux-rdma/perftest, src/perftest_parameters.h): the same columns, to the same widths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from emul.perftest.options import Options

LINE = "-" * 87
MB = 1 << 20
_TITLES = {"send": "Send", "write": "RDMA_Write", "read": "RDMA_Read", "atomic": "Atomic"}


def header(options: Options, mtu: int, device: str, wire: str) -> str:
    """What is measured, on what."""
    atomic = f" {options.atomic.value}" if options.verb == "atomic" else ""
    way = " Bidirectional" if options.bidirectional else ""
    kind = "Latency" if options.is_latency else "BW"
    lines = [
        LINE,
        f"                    {_TITLES[options.verb]}{atomic}{way} {kind} Test",
        f" Dual-port       : OFF\t\tDevice         : {device}",
        f" Number of qps   : 1\t\tTransport type : {wire}",
        " Connection type : RC\t\tUsing SRQ      : OFF",
        f" TX depth        : {options.tx_depth}",
    ]
    if not options.is_latency:
        lines.append(" CQ Moderation   : 1")
    lines.append(f" Mtu             : {mtu}[B]")
    lines.append(" Link type       : Ethernet")
    lines.append(f" GID index       : {options.gid_index}")
    if options.verb in ("read", "atomic"):
        lines.append(f" Outstand reads  : {options.outstanding}")
    else:
        lines.append(f" Max inline data : {options.inline}[B]")
    lines += [f" rdma_cm QPs\t : {'ON' if options.managed else 'OFF'}", " Data ex. method : Ethernet", LINE]
    return "\n".join(lines)


def address(whose: str, options: Options, facts: dict[str, object]) -> str:
    """One end: `facts` are lid, qpn, psn, outs, rkey, vaddr and gid."""
    qpn, psn, outs, rkey, vaddr = (int(str(facts[name])) for name in ("qpn", "psn", "outs", "rkey", "vaddr"))
    text = f" {whose} address: LID 0000 QPN {qpn:#06x} PSN {psn:#08x}"
    if options.verb in ("read", "atomic"):
        text += f" OUT {outs:#04x}"
    if options.verb != "send":
        text += f" RKey {rkey:#08x} VAddr {vaddr:#018x}"
    octets = bytes.fromhex(str(facts["gid"]).replace(":", ""))
    return f"{text}\n GID: {':'.join(f'{octet:02d}' for octet in octets)}"


def columns(options: Options) -> str:
    """The heads of the columns."""
    if options.is_latency:
        if options.duration_s:
            return " #bytes        #iterations       t_avg[usec]    tps average"
        return (
            " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]"
            "   99% percentile[usec]   99.9% percentile[usec] "
        )
    unit = "Gb/sec" if options.gbits else "MB/sec"
    return f" #bytes     #iterations    BW peak[{unit}]    BW average[{unit}]   MsgRate[Mpps]"


def latency(size: int, samples_ns: Sequence[int]) -> str:
    """A row: what each exchange took, half of it where both ways were measured, in ns."""
    ordered = sorted(samples_ns)
    count = len(ordered)

    def at(share: float) -> float:
        return ordered[min(count - 1, int(count * share))] / 1000

    mean = statistics.fmean(ordered) / 1000
    deviation = statistics.pstdev(ordered) / 1000
    return (
        f" {size:<7d} {count}          {ordered[0] / 1000:<7.2f}        {ordered[-1] / 1000:<7.2f}      {at(0.5):<7.2f}"
        f"  \t       {mean:<7.2f}     \t{deviation:<7.2f}\t\t{at(0.99):<7.2f} \t\t{at(0.999):<7.2f}"
    )


def latency_of_duration(size: int, count: int, elapsed_ns: int, ways: int) -> str:
    """A row of a run that time ended: `ways` messages make an exchange."""
    mean = elapsed_ns / max(1, count) / ways / 1000
    return f" {size:<7d}       {count}            {mean:<7.2f}        {count * 1e9 / max(1, elapsed_ns):<7.2f}"


def bandwidth(options: Options, size: int, count: int, peak: float, average: float) -> str:
    """A row: `peak` and `average` are messages a second."""
    scale = size * 8 / 1e9 if options.gbits else size / MB
    rates = f"{peak * scale:<7.2f}            {average * scale:<7.2f}\t\t   {average / 1e6:<7.6f}"
    return f" {size:<7d}    {count:<10d}       {rates}"
