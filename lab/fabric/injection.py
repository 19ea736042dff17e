"""The injector from the fabric's side: started at first need, told its rules, and fed with the frames of armed cables.
Shaped cables lead through it from the lab's beginning to its end.

`lab.injector` describes rules and the control messages. The order matters: rules are armed before frames are led to
them, and frames are led past the injector only after it has let go of the last one it held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.fabric.cables import Cabling
from lab.fabric.channel import Channel, ChannelClosedError, ChannelTimeoutError, Message
from lab.fabric.spawner_link import RequestError

READY_MAX_S = 10.0
ANSWER_MAX_S = 10.0
DRAIN_IDLE_NS = 1_000_000
"""An injector that has seen nothing of a direction for so long holds nothing of it."""
DRAIN_MAX_S = 0.25
"""Under steady load a direction never idles; then a frame may overtake another at the moment of disarming."""
_POLL_S = 0.001


class Injection:
    """The injector of one lab. `start` starts its process with a configuration; `running` tells whether it lives."""

    def __init__(
        self,
        directory: Path,
        cabling: Cabling,
        config: Mapping[str, object],
        start: Callable[[Message], None],
        running: Callable[[], bool],
    ) -> None:
        self._control = directory / "injector.sock"
        self._cabling = cabling
        self._config = {
            **config, "control": str(self._control), "cables": [], "log": str(directory / "injector.log"),
        }  # fmt: skip
        self._start = start
        self._running = running
        self._channel: Channel | None = None
        self._tapped: set[str] = set()
        self._diverted: set[tuple[str, str]] = set()
        self._shaped: dict[str, Mapping[str, int]] = {}

    def shape(self, shapes: Mapping[str, Mapping[str, int]]) -> None:
        """Leads these cables through the injector for good; a shape has delay_ns, rate_bps or both."""
        self._shaped.update(shapes)
        self._tap(list(shapes))
        for cable in shapes:
            self._cabling.arm(cable)

    def on_cut(self, cable: str) -> None:
        """A cable was pulled out: what was under way in it must not arrive after it is plugged in again."""
        if cable in self._shaped:
            self._ask({"op": "flush", "cables": [cable]})

    def arm(self, rules: Sequence[Mapping[str, Any]], seed: int) -> list[int]:
        """Arms `rules`, then leads the directions that they need through the injector; their ids."""
        self._tap(sorted({cable for rule in rules for cable in rule.get("cables") or self._cabling.names()}))
        answer = self._ask({"op": "arm", "rules": list(rules), "seed": seed})
        for cable, end in answer["directions"]:
            if (cable, end) not in self._diverted and cable not in self._shaped:
                self._cabling.arm(cable, end)
                self._diverted.add((cable, end))
        return [int(number) for number in answer["ids"]]

    def disarm(self, ids: Sequence[int]) -> None:
        """Disarms rules; directions that nobody needs any more idle for a moment and get their joint back."""
        if self._channel is None:
            return
        answer = self._ask({"op": "disarm", "ids": list(ids)})
        needed = {(str(cable), str(end)) for cable, end in answer["directions"]}
        for cable, end in sorted(self._diverted - needed):
            self._drain(cable, end)
            self._cabling.disarm(cable, end)
            self._diverted.discard((cable, end))

    def fired(self, after: int) -> Message:
        """Counts of all rules, and the events since number `after`."""
        if self._channel is None:
            return {"counts": {}, "matched": {}, "events": [], "next": after, "at": time.monotonic_ns()}
        return self._ask({"op": "fired", "after": after})

    def _drain(self, cable: str, end: str) -> None:
        """Waits until the injector has seen no frame of this direction for a while, DRAIN_MAX_S at the most."""
        deadline = time.monotonic() + DRAIN_MAX_S
        while time.monotonic() < deadline:
            idle_ns = self._ask({"op": "state"})["cables"][cable][end]["idle_ns"]
            if idle_ns is None or idle_ns >= DRAIN_IDLE_NS:
                return
            time.sleep(_POLL_S)

    def _tap(self, cables: Sequence[str]) -> None:
        """Lets the injector (started if need be) meet these cables."""
        fresh = [cable for cable in cables if cable not in self._tapped]
        added = [
            {
                **self._shaped.get(cable, {}),
                "name": cable,
                "ends": [
                    {"node": port.label, "interface": port.interface, "tap": port.tap}
                    for port in self._cabling.injector_ports(cable)
                ],
            }
            for cable in fresh
        ]
        if self._channel is None:
            self._channel = self._start_process()
        if added:
            self._ask({"op": "cables", "add": added})
            self._tapped.update(fresh)

    def _start_process(self) -> Channel:
        self._start(dict(self._config))
        deadline = time.monotonic() + READY_MAX_S
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                return Channel.connect(self._control)
            if not self._running() or time.monotonic() > deadline:
                raise RequestError("the injector did not start; injector.log tells why")
            time.sleep(_POLL_S)

    def _ask(self, request: Message) -> dict[str, Any]:
        assert self._channel is not None, "asked before it was started"
        try:
            self._channel.send(request)
            answer, _ = self._channel.receive(ANSWER_MAX_S)
        except (ChannelClosedError, ChannelTimeoutError) as error:
            raise RequestError(f"the injector does not answer ({error}); injector.log tells why") from error
        if not answer.get("ok"):
            raise RequestError(f"injector: {answer.get('error')}")
        return answer
