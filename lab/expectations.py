"""What a scenario may expect: the names under `expect`, and what each takes.

The checks themselves are in lab.check; a scenario is checked against this table before anything starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.parameters import Parameter, ParameterKind

_WITHIN = Parameter("within", ParameterKind.DURATION, "the bound, from the moment of the fault (or of its undoing)")


@dataclass(frozen=True, slots=True)
class Expectation:
    """One thing that must hold."""

    name: str
    help: str
    parameters: tuple[Parameter, ...] = ()


_EXPECTATIONS = (
    Expectation("sessions.recovered", "after each fault every client's work flows again, within a bound", (_WITHIN,)),
    Expectation("traffic.continued", "no session broke: no client was told of an error", (_WITHIN,)),
    Expectation("mirror.no_committed_loss", "every committed write is in the memory of both sides, to the byte"),
    Expectation("alerts.exactly_once", "one ready and at most one error alert for each client, side and epoch"),
    Expectation("session.broken", "a session broke, its clients were told, it came back in a newer epoch", (_WITHIN,)),
    Expectation("partner.readable", "the node's boot status could be read by its partner while its host was down"),
    Expectation("retransmission.seen", "an adapter sent a packet again"),
    Expectation("nothing.leaked", "after closing, no queue pair, memory region, thread, descriptor or process is left"),
    Expectation("wire.conformant", "each captured packet follows the InfiniBand specification (lab run --capture)"),
)
EXPECTATIONS: dict[str, Expectation] = {expectation.name: expectation for expectation in _EXPECTATIONS}
