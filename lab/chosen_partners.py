"""`partners:` of a node: with which partners each of its clients has sessions. What is wrong with it, and what follows.

nodes:
  a: {clients: [nvram-mirror, echo], partners: {nvram-mirror: [b], echo: all}}

What is not said is `all`: whoever is reached, runs the client too, and has not chosen others. Of two nodes either both
name the other one, or one of them says `all`: a session needs both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ccm.clients.nvram_mirror import NvramMirror, ring_neighbours
from lab import units
from lab.errors import Problem, did_you_mean
from lab.plan import Plan
from lab.topology import Node
from lab.yaml_tree import Document, Place

KEY = "partners"
ALL = "all"
Choices = Mapping[str, Sequence[str] | None]
"""Client -> names of nodes; None: all."""


def parse_choice(value: object) -> list[str] | None:
    """`all` (None) or a list of names of nodes. Raises ValueError with what was expected and found."""
    expected = f"{ALL} or a list of nodes"
    if value == ALL:
        return None
    if isinstance(value, str):
        hint = did_you_mean(value, [ALL])
        raise ValueError(f"expected {expected}, found {units.found(value)}{hint}; a single node is written [{value}]")
    if not isinstance(value, list):
        raise ValueError(f"expected {expected}, found {units.found(value)}")
    if not value:
        raise ValueError(
            f"expected {expected}, found an empty list (a client that is to have no session is left out of clients)"
        )
    strange = next((name for name in value if not isinstance(name, str)), None)
    if strange is not None:
        raise ValueError(f"expected names of nodes, found {units.found(strange)}")
    return list(value)


def chosen(defaults: Choices, own: Choices, clients: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What holds for a node that runs `clients`: its own choices go before the defaults, client by client; those who
    take all are left out.
    """
    effective = {**defaults, **own}
    return {client: tuple(names) for client in clients if (names := effective.get(client)) is not None}


class Checks:
    """What is wrong with the choices of one file. `own`: by node."""

    def __init__(
        self, document: Document, defaults: Choices, own: Mapping[str, Choices], nodes: Mapping[str, Node]
    ) -> None:
        self._document = document
        self._defaults = defaults
        self._own = own
        self._nodes = nodes

    def names(self, clients: Sequence[str]) -> Iterator[Problem]:
        """Clients and nodes that are not there, or twice. `clients`: all that nodes may run."""
        yield from self._check_names(("defaults",), self._defaults, clients)
        for node, choices in self._own.items():
            yield from self._check_names(("nodes", node), choices, clients)
            for client in choices:
                runs = self._nodes[node].clients
                if client in clients and client not in runs:
                    hint = did_you_mean(client, runs) or f"; it runs: {', '.join(runs) or 'none'}"
                    place = ("nodes", node, KEY, client)
                    yield self._document.problem(place, f"node {node} does not run {client}{hint}", key=True)

    def _check_names(self, place: Place, choices: Choices, clients: Sequence[str]) -> Iterator[Problem]:
        for client, names in choices.items():
            spot = (*place, KEY, client)
            if client not in clients:
                hint = did_you_mean(client, clients) or f" (known: {', '.join(clients)}; your own: see client_code)"
                yield self._document.problem(spot, f'unknown client "{client}"{hint}', key=True)
            for index, name in enumerate(names or ()):
                if name not in self._nodes:
                    hint = did_you_mean(name, self._nodes) or f" (nodes: {_listed(self._nodes)})"
                    yield self._document.problem((*spot, index), f'{client}: no node "{name}"{hint}')
                elif name in (names or ())[:index]:
                    yield self._document.problem((*spot, index), f'{client}: node "{name}" is there twice')

    def meaning(self, plan: Plan) -> Iterator[Problem]:
        """Choices that can bring no session. Names are right."""
        found = [
            problem
            for node in self._nodes.values()
            for client, names in node.partners.items()
            for index, name in enumerate(names)
            if (problem := self._check_choice(plan, node, client, index, name)) is not None
        ]
        itself = [problem for problem in found if " itself " in problem.message]
        yield from itself or found or self._check_ring(plan)  # what only follows from another mistake is not told

    def _check_choice(self, plan: Plan, node: Node, client: str, index: int, name: str) -> Problem | None:
        other, place = self._nodes[name], (*self._place(node.name, client), index)
        if name == node.name:
            others = [each for each in plan.partners(name) if client in self._nodes[each].clients]
            advice = "" if place[0] == "nodes" else f"; give {name} {KEY} of its own"
            text = f"{client}: expected partners of {name}, found {name} itself (partners: {_listed(others)}){advice}"
        elif name not in plan.partners(node.name):
            reached = _listed(plan.partners(node.name))
            text = f"{client}: no cable leads from {node.name} to {name} (partners: {reached})"
        elif client not in other.clients:
            text = f"{client}: node {name} does not run it; it runs: {', '.join(other.clients) or 'none'}"
        elif client in other.partners and node.name not in other.partners[client]:
            text = (
                f"{client}: {node.name} names {name}, but {name} names {', '.join(other.partners[client])} only: a "
                f"session needs both (add {node.name} there, or leave {name} out here)"
            )
        else:
            return None
        return self._document.problem(place, text)

    def _check_ring(self, plan: Plan) -> Iterator[Problem]:
        """Mirrors that were given partners: each must be written by the node that it expects."""
        client = NvramMirror.name
        numbers = plan.node_ids
        names = {number: name for name, number in numbers.items()}
        rings = {
            node.name: [numbers[other] for other in plan.session_partners(node.name, client)]
            for node in self._nodes.values()
            if client in node.clients
        }
        for name in rings if plan.is_chosen(client) else ():
            target = names[ring_neighbours(numbers[name], rings[name])[0]]
            source = names[ring_neighbours(numbers[target], rings[target])[1]]
            if source == name:
                continue
            text = (
                f"{client}: {name} would mirror to {target}, which mirrors {source}; nodes that mirror to each other "
                f"form a ring and name the same nodes (found: {name} with {_of(names, rings[name])}, "
                f"{target} with {_of(names, rings[target])})"
            )
            choosers = (each for each in (name, target, source) if client in self._nodes[each].partners)
            yield self._document.problem(self._place(next(choosers, name), client), text, key=True)
            return

    def _place(self, node: str, client: str) -> Place:
        """Where the choice stands that holds for a node."""
        if client in self._own.get(node, {}):
            return ("nodes", node, KEY, client)
        return ("defaults", KEY, client) if client in self._defaults else ("nodes", node)


def _of(names: Mapping[int, str], numbers: Iterable[int]) -> str:
    return _listed(names[number] for number in numbers)


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") or "none"
