"""The simulated world: the runner's `World` in virtual time.

The seed varies delays, boot offsets, wake-ups and, by a little, the moments of the faults: 200 seeds are 200 schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ccm.history import HistoryFull
from emul.clock import MILLISECOND, SECOND
from lab.errors import LabError
from lab.faults import FAULTS
from lab.injector.rules import InjectorCore, Rule
from lab.injector.strangers import MARK
from lab.members import FORGOTTEN_WITHIN_NS, Members
from lab.plan import Plan
from lab.sim.adapter import SimAdapter
from lab.sim.cable import Cable, Switch
from lab.sim.node import SimNode
from lab.sim.pace import Pace
from lab.sim.scheduler import Scheduler, What
from lab.sim.streams import Streams
from lab.sim.watch import SimWatch
from lab.topology import Cable as CablePlan
from lab.topology import End
from lab.world import (
    Firing,
    HostUnreachable,
    PlannedFault,
    cable_at,
    client_requests,
    firing_of,
    rule_cables,
    rule_of,
)

POLL_NS = 2 * MILLISECOND
FAULT_JITTER_NS = 3 * MILLISECOND
"""A fault comes up to this much later than the schedule says."""
STRANGERS_KEY = "a key that nobody else has"
RATE_MAX_PER_S = 500
"""Records a second of each client on each node: bounds the work of a run, not what is tested."""


class SimWorld:
    """All nodes and cables of a topology in one process and one thread."""

    name = "sim"
    wire = "memory"
    poll_ns = POLL_NS
    rate_max_per_s: int | None = RATE_MAX_PER_S

    def __init__(
        self,
        plan: Plan,
        *,
        wire: str = "auto",
        seed: int = 0,
        keep: bool = False,
        busy: bool = False,
        watched: bool = True,
    ) -> None:
        """`busy` simulates a machine that has too much to do; `watched` looks at each step (lab.check.steps); `wire`
        and `keep` mean nothing here.
        """
        self._plan = plan
        self.scheduler = Scheduler()
        self._streams = Streams(seed)
        self.pace = (Pace.busy if busy else Pace.drawn)(self._streams.stream("pace"))
        self._switches = {name: Switch(name, self.scheduler) for name in plan.topology.switches}
        self.nodes = {
            name: SimNode(name, plan, self.scheduler, self._streams, self.pace) for name in plan.topology.nodes
        }
        self.cables = {
            cable.name: self._lay(number, cable) for number, cable in enumerate(plan.topology.cables.values())
        }
        self._teach_switches()
        self._core: InjectorCore | None = None
        self._rules: dict[int, int] = {}
        self._armed_by: dict[str, set[int]] = {}
        self._firings: dict[int, Firing] = {}
        self._members = Members(plan, self.host, self.now, self.advance)
        for node in self.nodes.values():
            node.present = self._members.config_of
        self._hardware: dict[int, str] = {}
        """Hardware faults by number: in which adapter."""
        self._events_seen = 0
        self.watch = SimWatch(self, plan, busy=busy) if watched else None

    # -- building -----------------------------------------------------------------------------------------------------

    def _lay(self, number: int, plan: CablePlan) -> Cable:
        rng = self._streams.stream(f"cable/{plan.name}")
        cable = Cable(
            plan.name, number, self.scheduler, rng, pace=self.pace, delay_ns=plan.delay_ns, rate_bps=plan.rate_bps
        )
        for end in plan.ends:
            if end.switch:
                self._switches[end.switch].attach(cable)
            else:
                adapter = self._adapter_at(end)
                adapter.cable = cable
                cable.plug(adapter)
        return cable

    def _adapter_at(self, end: End) -> SimAdapter:
        return self.nodes[end.node].adapters[end.adapter]

    def _teach_switches(self) -> None:
        """Each switch learns over which cable each port is reached."""
        for switch in self._switches.values():
            for cable in self._plan.topology.cables.values():
                for near, far in (cable.ends, cable.ends[::-1]):
                    if near.switch == switch.name:
                        for mac in self._behind(far, {switch.name}):
                            switch.learn(mac, self.cables[cable.name])

    def _behind(self, end: End, seen: set[str]) -> list[bytes]:
        """The ports that are reached through this end of a cable."""
        if not end.switch:
            return [self._plan.ports[end.node, end.adapter].mac]
        if end.switch in seen:
            return []
        seen.add(end.switch)
        macs = []
        for cable in self._plan.topology.cables.values():
            for near, far in (cable.ends, cable.ends[::-1]):
                if near.switch == end.switch:
                    macs += self._behind(far, seen)
        return macs

    # -- time and life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Power comes to all nodes."""
        for node in self.nodes.values():
            node.power_on()

    def now(self) -> int:
        """Virtual time."""
        return self.scheduler.now

    def advance(self, until: int) -> None:
        """Runs what happens until then. Raises LabError when a history is full."""
        try:
            self.scheduler.run_until(until)
        except HistoryFull as error:
            seconds = self.scheduler.now / SECOND
            advice = "run less, or at a lower rate"
            raise LabError(f"{error}, full after {seconds:.1f} simulated seconds: {advice}") from error

    def stop(self) -> None:
        """There is nothing outside of this object."""
        self.nodes.clear()
        self.cables.clear()
        self._switches.clear()
        self.scheduler.clear()

    def leftovers(self) -> list[str]:
        """Nothing."""
        return []

    # -- faults -------------------------------------------------------------------------------------------------------

    def apply(self, fault: PlannedFault) -> int:
        """Makes the fault happen, a little after now."""
        if not fault.needs_arming or not fault.by_injector:
            # Named by what it is and not by its number: without another fault this one comes when it came with it.
            jitter = self._streams.stream(f"fault/{_name(fault)}").random()
            self.advance(self.now() + int(jitter * FAULT_JITTER_NS))
        self.scheduler.trace(What.FAULT, fault.id, 1)
        if fault.by_injector:
            self.arm([fault])
        else:
            self._doing(fault)[0]()
            if self.watch is not None:
                lasts = FAULTS[fault.kind].undone
                (self.watch.on_fault if lasts else self.watch.on_passing)(fault, self.now())
        return self.now()

    def clear(self, fault: PlannedFault) -> int:
        """Undoes it."""
        self.scheduler.trace(What.FAULT, fault.id, 0)
        if fault.by_injector:
            self._disarm(fault)
        else:
            self._doing(fault)[1]()
        if self.watch is not None:
            self.watch.on_clear(fault, self.now())
        return self.now()

    def _doing(self, fault: PlannedFault) -> tuple[Callable[[], None], Callable[[], None]]:
        """How a fault of the catalogue is done and undone."""
        target = fault.step.target or ""
        if fault.in_adapter is not None:
            return self._hardware_doing(fault, target)
        family = fault.kind.partition(".")[0]
        doings = {"cable": self._cable_doing, "host": self._host_doing, "adapter": self._adapter_doing}
        doings |= {"client": self._client_doing, "operator": self._operator_doing}
        done = doings[family](fault, target) if family in doings else None
        if done is None:
            raise LabError(f"the world {self.name} can't do {fault.kind}")
        return done

    def _cable_doing(self, fault: PlannedFault, target: str) -> tuple[Callable[[], None], Callable[[], None]] | None:
        cable = self.cables[target]
        named = fault.step.parameters.get("end", fault.step.parameters.get("from"))
        ends = [cable.end_of(str(named))] if named is not None else [0, 1]
        if fault.kind in ("cable.cut", "cable.cut_one_end"):
            return lambda: cable.unplug(ends), lambda: cable.plug_in(ends)
        if fault.kind in ("cable.blackhole", "cable.blackhole_one_way"):
            return lambda: cable.set_blackhole(ends, on=True), lambda: cable.set_blackhole(ends, on=False)
        return None

    def _host_doing(self, fault: PlannedFault, target: str) -> tuple[Callable[[], None], Callable[[], None]] | None:
        node = self.nodes[target]
        return {"host.crash": (node.crash, node.boot), "host.pause": (node.pause, node.resume)}.get(fault.kind)

    def _member_doing(self, fault: PlannedFault, target: str) -> tuple[Callable[[], None], Callable[[], None]]:
        node = self.nodes[target]

        def leave() -> None:
            self._members.leave(target)
            host = node.host
            with suppress(HostUnreachable):
                self.host(target, {"op": "shutdown"})
                until = self.now() + FORGOTTEN_WITHIN_NS
                while host is not None and not host.stopped and self.now() < until:
                    self.advance(self.now() + POLL_NS)
            node.crash()

        def join() -> None:
            self._members.absent.discard(target)
            node.boot()
            self._members.join(target)

        return leave, join

    def _operator_doing(self, fault: PlannedFault, target: str) -> tuple[Callable[[], None], Callable[[], None]]:
        node, version = self.nodes[target], fault.step.parameters.get("version")
        if fault.kind == "operator.version_skew":
            return (lambda: node.start_anew(versions=[version, version])), (lambda: node.start_anew(versions=None))
        if fault.kind == "operator.wrong_key":
            return (lambda: node.start_anew(cluster_key=STRANGERS_KEY)), (lambda: node.start_anew(cluster_key=None))
        return self._member_doing(fault, target)

    def _client_doing(self, fault: PlannedFault, target: str) -> tuple[Callable[[], None], Callable[[], None]]:
        def ask(request: dict[str, object]) -> None:
            with suppress(HostUnreachable):  # a host that is down opens its clients when it boots
                reply = self.host(target, request)
                if "error" in reply:
                    raise LabError(f"{fault.kind} {target}: {reply['error']}")

        done, undone = client_requests(fault)
        return lambda: ask(done), lambda: ask(undone)

    def _adapter_doing(self, fault: PlannedFault, target: str) -> tuple[Callable[[], None], Callable[[], None]] | None:
        name, _, adapter = target.partition(".")
        node = self.nodes[name]

        def lose() -> None:
            node.lose_adapter(adapter)

        def replace() -> None:
            node.replace_adapter(adapter)

        def reset() -> None:
            lose()
            replace()

        def switch_on() -> None:
            for number, at in self._hardware.items():
                if at == target and node.adapters[adapter].fault(number).get("fault") == "port_down":
                    self._heal_hardware(number, target)

        return {
            "adapter.die": (lose, replace),
            "adapter.reset": (reset, lambda: None),
            "adapter.port_up": (switch_on, lambda: None),
        }.get(fault.kind)

    def _hardware_doing(self, fault: PlannedFault, target: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """Faults that the adapter does itself."""
        adapter = self._port(target)
        name = fault.in_adapter
        assert name is not None

        def inject() -> None:
            self._hardware[fault.id] = target
            seed = self._streams.number("hardware")
            self._note_firing(fault.id, adapter.inject(name, fault.step.parameters, number=fault.id, seed=seed))
            if name == "port_down":
                self._set_light(target, on=False)

        return inject, lambda: self._heal_hardware(fault.id, target)

    def _heal_hardware(self, number: int, target: str) -> None:
        adapter = self._port(target)
        was = adapter.fault(number)
        self._note_firing(number, adapter.heal(number))
        if was.get("fault") == "port_down" and was.get("healed_at") is None:
            self._set_light(target, on=True)

    def _set_light(self, target: str, *, on: bool) -> None:
        """A port that is switched off sends no light: the carrier is gone at both ends of its cable."""
        name = cable_at(self._plan, target)
        if name is not None:
            cable = self.cables[name]
            (cable.plug_in if on else cable.unplug)([0, 1])

    def _port(self, target: str) -> SimAdapter:
        node, _, adapter = target.partition(".")
        return self.nodes[node].adapters[adapter]

    def _note_firing(self, number: int, report: Mapping[str, object]) -> None:
        firing = firing_of(report)
        if firing is not None:
            self._firings[number] = firing

    def arm(self, faults: list[PlannedFault]) -> None:
        """Puts the injector's core into the cables concerned, with one rule for each fault."""
        for fault in faults:
            if self.watch is not None:
                self.watch.on_fault(fault, self.now())
            rule = rule_of(self._plan, fault)
            names = rule_cables(self._plan, fault)
            rule.setdefault("cables", names)
            core = self._core = self._core or self._make_core()
            self._rules[fault.id] = core.arm(Rule.parse(rule), name=_name(fault))
            for name in names:
                self._armed_by.setdefault(name, set()).add(fault.id)
                self.cables[name].injector = self._inject

    def _make_core(self) -> InjectorCore:
        cables = {cable.name: [end.owner for end in cable.ends] for cable in self._plan.topology.cables.values()}
        addresses = {port.address: port.node for port in self._plan.ports.values()}
        return InjectorCore(cables, addresses, seed=self._streams.number("injector"), forge=_forge)

    def _disarm(self, fault: PlannedFault) -> None:
        if self._core is None:
            return
        self._core.disarm([self._rules[fault.id]])
        for name, armed in self._armed_by.items():
            armed.discard(fault.id)
            if not armed:
                self.cables[name].injector = None

    def _inject(self, cable: str, source: str, frame: bytes, now: int) -> list[tuple[str, bytes, int]]:
        assert self._core is not None
        outputs = self._core.on_frame(cable, source, frame, now=now)
        if len(outputs) > 1 and self.watch is not None and any(MARK in out.frame for out in outputs):
            self.watch.on_stranger()
        return [(out.towards, out.frame, out.at) for out in outputs]

    def fired(self) -> Mapping[int, Firing]:
        """What the rules met so far, and the hardware faults."""
        for number, target in self._hardware.items():
            self._note_firing(number, self._port(target).fault(number))
        if self._core is None:
            return self._firings
        faults = {rule: fault for fault, rule in self._rules.items()}
        counts = self._core.counts()
        for event in self._core.events(self._events_seen):
            self._events_seen = event.number
            fault = faults[event.rule]
            known = self._firings.get(fault)
            self._firings[fault] = Firing(counts[event.rule], known.first_at if known else event.at, event.at)
        return self._firings

    # -- looking ------------------------------------------------------------------------------------------------------

    def host(self, node: str, request: Mapping[str, object]) -> dict[str, object]:
        """Asks the host."""
        return self.nodes[node].control(request)

    def history(self, node: str) -> memoryview:
        """The node's history."""
        return self.nodes[node].history.buffer

    def nvram(self, node: str) -> memoryview:
        """What the card holds: the card itself, so to be asked when nothing is written to it any more."""
        return self.nodes[node].nvram.buffer.toreadonly()

    def fence_epoch(self, node: str, slot: int) -> int:
        """As the node's memory has it."""
        return self.nodes[node].memory.fence_epoch(slot)

    def counters(self, node: str) -> dict[str, int]:
        """Of all adapters of the node."""
        total: dict[str, int] = {}
        for adapter in self.nodes[node].adapters.values():
            for name, amount in adapter.counters().items():
                total[name] = total.get(name, 0) + amount
        return total

    def trace_hash(self) -> str:
        """Of each frame, carrier change, boot and fault, with its time."""
        return self.scheduler.trace_hash()

    def details(self) -> Mapping[str, object]:
        """How much was simulated, and how fast the hardware was."""
        pace = asdict(self.pace)
        steps = {} if self.watch is None else {"steps": [asdict(result) for result in self.watch.results()]}
        return {**steps, "events": self.scheduler.events, "virtual_ms": self.scheduler.now / MILLISECOND, "pace": pace}

    def logs(self) -> Mapping[str, Path]:
        """None."""
        return {}

    def journals(self) -> Mapping[str, Sequence[str]]:
        """Of the nodes whose topology wants them."""
        return {f"{name}/journal.log": node.journal for name, node in self.nodes.items() if node.journal}


def _name(fault: PlannedFault) -> str:
    return f"{fault.kind}/{fault.target_text()}/{fault.step.trigger}"


def _forge(action: str, frame: bytes, qpn: int, msn: int) -> bytes:
    """The scapy-built frame; imported only when a rule forges, as scapy takes its time."""
    from lab.injector.forge import forge

    return forge(action, frame, qpn, msn)
