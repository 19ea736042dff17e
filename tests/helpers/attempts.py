"""Verdicts that depend on time, on a machine that others use too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

ATTEMPTS_MAX = 3


def judged_on_a_steady_machine(attempt: Callable[[int], Mapping[str, object]]) -> Mapping[str, object]:
    """The result of the first attempt that the machine did not disturb; of the last one, if it disturbed them all.

    A run says itself when the machine was overloaded, and then a path may well have been silent for longer than any
    bound. Only such a run, or one that could not decide, is tried again: a verdict of a steady machine stands.
    """
    result = attempt(0)
    for number in range(1, ATTEMPTS_MAX):
        disturbed = "overloaded" in json.dumps(result["checks"]) or result["verdict"] == "inconclusive"
        if result["verdict"] == "pass" or not disturbed:
            break
        result = attempt(number)
    return result
