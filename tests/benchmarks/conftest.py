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
    if not groups and not FIGURES:
        return
    terminalreporter.section("cost contract")
    for name, ways in groups.items():
        terminalreporter.line(f"{name}:")
        for way, seconds in ways.items():
            terminalreporter.line(f"    {way:<13} {seconds * 1e6:10.2f} µs a cycle")
        bare, ours = ways.get("bare"), ways.get("instrumented")
        recipe = ways.get("recipe")
        if bare and ours:
            terminalreporter.line(
                f"    instrumented / bare   {ours / bare:.3f}   "
                f"(added {(ours - bare) * 1e6:.2f} µs)"
            )
        if bare and ours and recipe:
            terminalreporter.line(
                f"    recipe / bare         {recipe / bare:.3f}   "
                f"(added {(recipe - bare) * 1e6:.2f} µs)"
            )
            terminalreporter.line(
                f"    recipe / instrumented {recipe / ours:.1f}, of what is added "
                f"{(recipe - bare) / (ours - bare):.1f}"
            )
    for line in FIGURES:
        terminalreporter.line(line)
