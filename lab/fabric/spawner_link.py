"""The server's side of the spawner: asks for processes, hears of their ends."""

from __future__ import annotations

import os
import signal
from collections import deque

from lab.errors import LabError
from lab.fabric import namespaces, spawner
from lab.fabric.channel import Channel, ChannelClosedError, ChannelTimeoutError, Message

WARM_UP_MAX_S = 30.0
START_WINDOW = 32
"""Starts asked of the spawner before its answers are taken: both socket buffers hold that many packets."""
ANSWER_MAX_S = 10.0
EVENTS_MAX = 4096
"""Exits of processes remembered; the oldest go first."""


class RequestError(LabError):
    """A request that can't be served, told to the one who asked."""


class SpawnerLink:
    """The spawner, forked when this is made: requests with answers, and exits as they come."""

    def __init__(self) -> None:
        mine, theirs = Channel.pair()
        if os.fork() == 0:
            mine.close()
            namespaces.die_with_parent(signal.SIGKILL)
            spawner.serve(theirs)
        theirs.close()
        self.channel = mine
        self.exits: deque[Message] = deque(maxlen=EVENTS_MAX)

    def wait_warm(self) -> None:
        """Returns when the spawner has imported everything. Raises LabError when it could not."""
        try:
            message, _ = self.channel.receive(WARM_UP_MAX_S)
        except (ChannelClosedError, ChannelTimeoutError) as error:
            raise LabError(f"the spawner did not start ({error})") from error
        assert message == {"event": "warm"}

    def ask(self, request: Message, descriptors: list[int] | None = None) -> Message:
        """One request and its answer. Raises RequestError."""
        self.channel.send(request, descriptors or [])
        return self._answer()

    def ask_many(self, requests: list[tuple[Message, list[int]]]) -> list[Message]:
        """Several requests, the answers in the same order. Raises RequestError for the first refused one."""
        answers: list[Message] = []
        for start in range(0, len(requests), START_WINDOW):
            window = requests[start : start + START_WINDOW]
            for request, descriptors in window:
                self.channel.send(request, descriptors)
            answers += [self._answer() for _ in window]
        return answers

    def take_exits(self) -> list[Message]:
        """Exits that wait, also earlier ones that came between answers."""
        while self.channel.readable(0):
            message, _ = self.channel.receive()
            self.exits.append(message)
        taken = list(self.exits)
        self.exits.clear()
        return taken

    def _answer(self) -> Message:
        while True:
            message, _ = self.channel.receive(ANSWER_MAX_S)
            if message.get("event") == "exit":
                self.exits.append(message)
                continue
            if "error" in message:
                raise RequestError(str(message["error"]))
            return message
