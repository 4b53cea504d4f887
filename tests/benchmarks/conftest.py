"""Prints the ratios of the cost contract after the tables of pytest-benchmark."""

from __future__ import annotations

import pytest

FIGURES: list[str] = []


@pytest.fixture
def figure() -> object:
    """Note a measured figure for the summary."""
    return FIGURES.append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say instrumented / bare and recipe / instrumented for each group."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, float]] = {}
    for each in getattr(session, "benchmarks", []):
        if each.group and each.stats:
            per_cycle = each.stats.min / each.extra_info.get("cycles", 1)
            groups.setdefault(each.group, {})[each.extra_info["way"]] = per_cycle
    lines = [line for name, ways in groups.items() for line in _ratios(name, ways)]
    if lines or FIGURES:
        terminalreporter.section("cost contract")
        for line in [*lines, *FIGURES]:
            terminalreporter.line(line)


def _ratios(name: str, ways: dict[str, float]) -> list[str]:
    lines = [f"{name}:"]
    lines += [
        f"    {way:<13} {took * 1e6:10.2f} µs a cycle" for way, took in ways.items()
    ]
    bare, ours = ways.get("bare"), ways.get("instrumented")
    for way, took in ways.items():
        if bare and way != "bare":
            added = f"(adds {(took - bare) * 1e6:.2f} µs)"
            lines.append(f"    {way} / bare: {took / bare:.3f} {added}")
            if ours and way != "instrumented":
                times = (took - bare) / (ours - bare)
                lines.append(f"    {way} adds {times:.1f} times what poolwatch adds")
    return lines
