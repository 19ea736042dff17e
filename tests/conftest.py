"""What all tests share: markers for what a test needs of the machine.

A test that needs what is not there is skipped, and says what is missing. With LAB_REQUIRE=docker,tshark,... it fails
instead: CI must not turn green by leaving out.
"""

from __future__ import annotations

import signal

import pytest

from tests.capabilities import CAPABILITIES, missing, required


def pytest_configure(config: pytest.Config) -> None:
    """A misspelt LAB_REQUIRE would require nothing: refuse it. What the tests start can be interrupted, even if they
    were started in a shell's background, where SIGINT is ignored and each child would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    unknown = sorted(required() - set(CAPABILITIES))
    if unknown:
        raise pytest.UsageError(f"LAB_REQUIRE: unknown {', '.join(unknown)} (known: {', '.join(CAPABILITIES)})")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips or fails a test whose markers ask for what the machine doesn't have."""
    for name, capability in CAPABILITIES.items():
        if item.get_closest_marker(capability.marker) is None:
            continue
        reason = missing(name)
        if reason is not None and name in required():
            pytest.fail(f"LAB_REQUIRE asks for {name}: {reason}", pytrace=False)
        if reason is not None:
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists what was left out and why, by file."""
    left_out: dict[tuple[str, str], int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        key = (reason, report.nodeid.partition("::")[0])
        left_out[key] = left_out.get(key, 0) + 1
    if left_out:
        terminalreporter.section("left out on this machine")
    for (reason, file), count in sorted(left_out.items()):
        terminalreporter.line(f"{file}: {count} ({reason})")
