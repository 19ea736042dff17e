"""The fault injector in the middle of a cable: what it is told, what it tells, and who drives it.

Modules: `rules` (the pure core: raw-byte selectors, rules, what becomes of a frame), `layers` (scapy layers that
scapy.contrib.roce lacks), `forge` (frames built by scapy), `shaper` and `timer` (slow
cables), `process` (the process of the real worlds). The simulator
drives the same core.

The core
--------
    core = InjectorCore(cables={"ic0": ("a", "b"), ...}, addresses={"10.77.0.1": "a", ...}, seed=7)
    id = core.arm(Rule.parse({...}))          # ValueError says what is wrong with the rule
    outputs = core.on_frame("ic0", "a", frame, now=now)   # frame entered cable ic0 at its end "a"
    core.disarm([id]); core.counts() -> {id: fired}; core.events(after=0) -> list[Fired]

The ends of a cable are names of nodes or of switches. Each Output(cable, towards, frame, at) is a frame to be delivered
at the end `towards` of the cable, at `at` (ns; never before `now`), in the order of the list. A frame that nothing
concerns gives one Output, itself. `core.directions(rule)` gives the set of (cable, end where frames enter) that have to
pass through the core for the rule to work: the driver diverts those and leaves the others alone.

A rule as JSON (all but "action" optional; an unknown key is an error):
    {"action": "drop" | "corrupt" | "duplicate" | "observe" | "forge_nak_sequence"
        | "stranger_source" | "stranger_rkey" | "stranger_psn",
     "cables": [name, ...],    # default: each cable that ends at a node, counted where the frame enters the fabric
     "source": node, "target": node,     # by the frame's IPv4 addresses; frames without (ARP): by the cable's ends
     "opcode": "RDMA_WRITE_LAST" ...     # an opcode; or "SEND", "RDMA_WRITE", "RDMA_READ": the first packet of such a
                                         # message; or "CM_REQ", "CM_REP", ..., "ARP"; default: every frame
     "qp": n,                  # destination queue pair number
     "longer": n,              # only frames of more than so many bytes, Ethernet header and all
     "nth": k,                 # first to act on: the k-th match (1 is the default)
     "count": n | null,        # how often to act; null: no bound; default 1, or no bound beside a probability
     "probability": p,         # chance of each match from the nth on, drawn from the seed
     "bit": n,                 # corrupt: which bit of the frame, counted from its first byte's highest; default: drawn
     "note": text}             # repeated in events
"stranger_..." passes the frame and sends a write of a stranger after it (`strangers`).
"observe" passes the frame and tells (a trigger). "forge_nak_sequence" passes the frame too, and sends its sender a NAK
with a sequence error for the frame's PSN: scapy-built, valid ICRC. The sender's queue pair number stands in no request;
the core learns it from the acknowledgements it sees, so both directions are diverted, and the rule acts on the first
match from the nth on whose number is known.

The process
-----------
`lab.injector.process.main(config)` runs in the fabric namespace until it is told to shut down or gets SIGTERM. It needs
CAP_NET_RAW there, imports emul, lab.injector and, once a forging rule is armed, scapy. config:
    {"control": path of a unix SOCK_SEQPACKET socket (made and listened on by the process; removed at its end),
     "cables": [CABLE, ...] (may be empty: see "cables" below), "addresses": {ipv4: node}, "seed": int,
     "log": path or null, "preload_forge": bool (import scapy at the start: arming a forging rule otherwise stops the
     process for some 0.5 s, which diverted cables notice)}
    CABLE = {"name": str, "ends": [END, END], "delay_ns": int?, "rate_bps": int?}
        With one of the last two the cable is shaped: frames leave it in order, after the time that the rate asks for
        and the delay; what a port's buffer would not hold is dropped (lab.injector.shaper). Both its directions have to
        be diverted for good.
    END = {"node": name of the node or switch at this end,
           "interface": fabric-side interface whose other end leads there,
           "tap": interface on which frames diverted on their way in from that end can be read}
A frame read from ends[0]["tap"] goes out of ends[1]["interface"], and the reverse, in order. All frames are taken from
a tap (no filter by kind), those that the process itself sends excepted. The fabric diverts ingress of
ends[i]["interface"] by redirecting (egress) into the other end of the veth pair whose readable end is the tap.

Control: one JSON object in, one JSON object out, for each message; several connections at once. A reply is
{"ok": true, ...} or {"ok": false, "error": text}. Requests:
    {"op": "cables", "add": [CABLE, ...], "remove": [name, ...]}     opens and closes taps; both keys optional
    {"op": "flush", "cables": [name, ...]}     -> "lost": int: frames that wait or are under way in them are lost (the
        cable was pulled out)
    {"op": "arm", "rules": [RULE, ...], "seed": int?}   -> "ids": [int, ...], "directions": [[cable, end], ...]
        All rules or none. Arm first, then divert the directions: a frame passes unharmed before, and no rule misses one
        after. A rule counts from when its frames are diverted.
    {"op": "directions", "rules": [RULE, ...]}     -> "directions": as above, without arming
    {"op": "disarm", "ids": [int, ...]}     -> "directions": those still needed by the rules that are left
        Disarm, then undo the diversion once "state" shows the direction idle. Taps stay open and are served all the
        time, so that a frame which was under way is not lost. Counts and events of disarmed rules stay readable.
    {"op": "fired", "after": int?}     -> "counts": {id: fired}, "matched": {id: matches}, "events": [EVENT, ...],
        "next": int, "at": ns
        EVENT = {"number", "rule", "at": CLOCK_MONOTONIC ns, "action", "cable", "source", "match", "frame": text,
                 "note"}
        "after" is the "next" of the call before.
    {"op": "subscribe"}     -> then {"event": EVENT} for each event on that connection, as it happens
    {"op": "state"}     -> "cables": {name: {end: {"idle_ns": since the last diverted frame that entered there (null:
        none yet), "frames": n, "dropped": n not sent because the interface refused}}}, "at": ns
    {"op": "shutdown"}     -> replies, then ends
"""

from __future__ import annotations

from lab.injector.rules import Fired, InjectorCore, Output, Rule

__all__ = ["Fired", "InjectorCore", "Output", "Rule"]
