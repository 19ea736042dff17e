"""A run as JUnit XML: one test case for each check."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from lab.verdict import Result


def junit_xml(result: Result) -> str:
    """A test suite named after the scenario. A check that was not exercised is skipped, not passed."""
    failed = sum(check.ok is False for check in result.checks)
    skipped = sum(check.ok is None for check in result.checks)
    seconds = result.outcome.timings.run / 1e9
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuite name={quoteattr(result.scenario.name)} tests={quoteattr(str(len(result.checks)))}"
        f' failures="{failed}" skipped="{skipped}" errors="0" time="{seconds:.3f}">',
        "  <properties>",
        *(
            f"    <property name={quoteattr(name)} value={quoteattr(str(value))}/>"
            for name, value in (
                ("world", result.world), ("wire", result.wire), ("seed", result.seed), ("verdict", result.verdict),
            )
        ),
        "  </properties>",
    ]  # fmt: skip
    for check in result.checks:
        case = f"  <testcase classname={quoteattr('lab.' + result.scenario.name)} name={quoteattr(check.name)}"
        if check.ok:
            lines.append(f"{case}/>")
            continue
        tag = "skipped" if check.ok is None else "failure"
        lines += [
            f"{case}>",
            f"    <{tag} message={quoteattr(check.detail)}>{escape(check.detail)}</{tag}>",
            "  </testcase>",
        ]
    return "\n".join([*lines, "</testsuite>", ""])
