"""Draws a schedule of faults for a topology from a seed. Pure.

Each fault draws from a stream of its own, so that one fault more leaves the others as they were. Two faults of the same
sort are never on at the same thing at once (what is cut can't be cut again); everything else may overlap: both cables
cut, a host that crashes while the partner's adapter is dead. Moments come in chains: half of the faults follow the one
before within milliseconds, since what goes wrong goes wrong while something else is being repaired.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from emul.clock import MICROSECOND, MILLISECOND, SECOND
from lab.faults import FAULTS
from lab.scenario import At, Scenario, Step, Workload
from lab.sim.streams import Streams
from lab.topology import Topology

LAST_MOMENT_NS = 8 * SECOND
"""No fault begins later. With the quiet phase a run takes about ten seconds."""
FAULTS_MAX = 12
"""Faults of one schedule; one that flaps counts once."""
SHORTEST_NS = MILLISECOND // 2
LONGEST_NS = 3 * SECOND // 2
"""Faults last so long, evenly over the orders of magnitude."""
FIRST_NS = 20 * MILLISECOND
FLAPS_MAX = 8
MARGIN_NS = 10 * MILLISECOND
"""Between two faults of the same sort at the same thing."""
TRIES_MAX = 8
"""Draws for one fault until it fits beside the others; then it is left out."""
RECORDS_PER_S = {"nvram-mirror": 400, "echo": 100}
"""With two nodes: a thousand requests a second."""
WORKLOAD = {
    "nvram-mirror": Workload(4096, 8, RECORDS_PER_S["nvram-mirror"]),
    "echo": Workload(512, 4, RECORDS_PER_S["echo"]),
}

Busy = tuple[str, int, int]
"""(what a fault occupies, from, until)."""
Maker = Callable[[random.Random, Topology, str, int], list[Step]]
"""(stream, topology, fault, moment) to the steps of one fault."""


def random_scenario(topology: Topology, seed: int, *, world: str = "sim") -> Scenario:
    """The scenario of `seed`: load on all clients that make some, and between one and FAULTS_MAX faults."""
    streams = Streams(seed)
    steps = random_steps(topology, streams, world=world)
    clients = {client for node in topology.nodes.values() for client in node.clients}
    return Scenario(
        name=f"random-{seed}",
        topology=topology.name,
        workload={client: load for client, load in WORKLOAD.items() if client in clients},
        steps=tuple(steps),
        expect={"alerts.exactly_once": {}},
        description=f"{len(steps)} random faults",
    )


def random_steps(topology: Topology, streams: Streams, *, world: str = "sim") -> list[Step]:
    """The faults of one schedule, by their moments."""
    kinds = [kind for kind in _MAKERS if kind in FAULTS and world in FAULTS[kind].worlds]
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    shape = streams.stream("campaign/shape")
    count = 1 + int(shape.random() ** 2 * FAULTS_MAX)
    busy: list[Busy] = []
    steps: list[Step] = []
    moment = 0
    for number in range(count):
        rng = streams.stream(f"campaign/fault/{number}")
        moment = _next_moment(rng, moment)
        for _ in range(TRIES_MAX):
            kind = rng.choices(kinds, weights)[0]
            made = _MAKERS[kind](rng, topology, kind, moment)
            taken = [_occupied(step) for step in made]
            if made and not any(_overlap(one, other) for one in taken for other in busy):
                busy += taken
                steps += made
                break
    return sorted(steps, key=lambda step: (_at(step), step.fault, step.target or ""))


def _next_moment(rng: random.Random, former: int) -> int:
    if rng.random() < 0.5:
        moment = former + _between(rng, SHORTEST_NS, SECOND)
    else:
        moment = int(rng.random() * LAST_MOMENT_NS)
    return min(LAST_MOMENT_NS, FIRST_NS + moment) // MICROSECOND * MICROSECOND


def _between(rng: random.Random, shortest: int, longest: int) -> int:
    """Evenly over the orders of magnitude, in whole microseconds."""
    return int(shortest * (longest / shortest) ** rng.random()) // MICROSECOND * MICROSECOND


def _at(step: Step) -> int:
    assert isinstance(step.trigger, At)
    return step.trigger.at_ns


def _occupied(step: Step) -> Busy:
    """What the fault holds, and from when to when. Cutting a cable and losing its frames are two things."""
    sort = {"cut": "carrier", "cut_one_end": "carrier", "blackhole": "hole", "blackhole_one_way": "hole"}
    family, _, name = step.fault.partition(".")
    what = sort.get(name, "frames") if family == "cable" else family
    end = _at(step) + (step.duration_ns or 0)
    return f"{what} {step.target}", _at(step) - MARGIN_NS, end + MARGIN_NS


def _overlap(one: Busy, other: Busy) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


# -- how each kind is drawn -------------------------------------------------------------------------------------------


def _cable(rng: random.Random, topology: Topology) -> str:
    return rng.choice(sorted(topology.cables))


def _end(rng: random.Random, topology: Topology, cable: str) -> str:
    return rng.choice([end.owner for end in topology.cables[cable].ends])


def _on_cable(rng: random.Random, topology: Topology, kind: str, moment: int) -> list[Step]:
    return [Step(At(moment), kind, _cable(rng, topology), _between(rng, SHORTEST_NS, LONGEST_NS))]


def _at_one_end(rng: random.Random, topology: Topology, kind: str, moment: int) -> list[Step]:
    cable = _cable(rng, topology)
    named = next(parameter.key for parameter in FAULTS[kind].parameters if parameter.required)
    ends: dict[str, int | float | str] = {named: _end(rng, topology, cable)}
    return [Step(At(moment), kind, cable, _between(rng, SHORTEST_NS, LONGEST_NS), ends)]


def _cut_or_flap(rng: random.Random, topology: Topology, kind: str, moment: int) -> list[Step]:
    cable = _cable(rng, topology)
    if rng.random() < 0.7:
        return [Step(At(moment), kind, cable, _between(rng, SHORTEST_NS, LONGEST_NS))]
    steps = []
    for _ in range(rng.randint(2, FLAPS_MAX)):
        down, up = (_between(rng, MILLISECOND, 100 * MILLISECOND) for _ in range(2))
        steps.append(Step(At(moment), kind, cable, down))
        moment += down + up + 2 * MARGIN_NS
    return steps


def _losing(rng: random.Random, topology: Topology, kind: str, moment: int) -> list[Step]:
    chance = round(_between(rng, 1000, 500_000) / 1_000_000, 3) or 0.001
    parameters: dict[str, int | float | str] = {"probability": chance}
    return [Step(At(moment), kind, _cable(rng, topology), _between(rng, SHORTEST_NS, LONGEST_NS), parameters)]


def _on_node(rng: random.Random, topology: Topology, kind: str, moment: int) -> list[Step]:
    return [Step(At(moment), kind, rng.choice(list(topology.nodes)), _between(rng, SHORTEST_NS, LONGEST_NS))]


def _on_port(rng: random.Random, topology: Topology, kind: str, moment: int) -> list[Step]:
    node = rng.choice(list(topology.nodes))
    adapter = rng.choice(topology.nodes[node].adapters)
    duration = _between(rng, SHORTEST_NS, LONGEST_NS) if FAULTS[kind].undone else None
    return [Step(At(moment), kind, f"{node}.{adapter}", duration)]


_MAKERS: dict[str, Maker] = {
    "cable.cut": _cut_or_flap,
    "cable.cut_one_end": _at_one_end,
    "cable.blackhole": _on_cable,
    "cable.blackhole_one_way": _at_one_end,
    "cable.drop": _losing,
    "cable.corrupt": _losing,
    "cable.duplicate": _losing,
    "host.crash": _on_node,
    "host.pause": _on_node,
    "adapter.reset": _on_port,
    "adapter.die": _on_port,
    "adapter.hang": _on_port,
}
_WEIGHTS = {"cable.cut": 3, "cable.blackhole": 2, "host.crash": 2, "adapter.reset": 2, "cable.drop": 2}


def kinds() -> Sequence[str]:
    """The faults that random schedules draw from, where the catalogue has them."""
    return tuple(_MAKERS)
