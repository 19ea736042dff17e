"""A failed verdict is tried again only when the run itself says that the machine was overloaded."""

from __future__ import annotations

import pytest

from tests.helpers.attempts import ATTEMPTS_MAX, judged_on_a_steady_machine

PASS = {"verdict": "pass", "checks": []}
FAIL = {"verdict": "fail", "checks": [{"name": "traffic.continued", "detail": "an error alert"}]}
BUSY = {"verdict": "fail", "checks": [{"name": "traffic.continued", "detail": "[the machine was overloaded, 3 times"}]}
OPEN = {"verdict": "inconclusive", "checks": []}


@pytest.mark.parametrize(
    ("results", "verdict", "attempts"),
    [
        ([PASS], "pass", 1),
        ([FAIL, PASS], "fail", 1),
        ([BUSY, PASS], "pass", 2),
        ([OPEN, BUSY, PASS], "pass", 3),
        ([BUSY, FAIL, PASS], "fail", 2),
        ([BUSY, BUSY, BUSY, PASS], "fail", ATTEMPTS_MAX),
    ],
)
def test_only_a_disturbed_run_is_tried_again(results: list[dict[str, object]], verdict: str, attempts: int) -> None:
    tried: list[int] = []

    def attempt(number: int) -> dict[str, object]:
        tried.append(number)
        return results[number]

    assert judged_on_a_steady_machine(attempt)["verdict"] == verdict
    assert tried == list(range(attempts))
