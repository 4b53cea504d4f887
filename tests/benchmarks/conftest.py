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
    bare, ours, recipe = (ways.get(way) for way in ("bare", "instrumented", "recipe"))
    for name, other in (("instrumented", ours), ("recipe", recipe)):
        if bare and other:
            lines.append(
                f"    {name} / bare: {other / bare:.3f} "
                f"(adds {(other - bare) * 1e6:.2f} µs)"
            )
    if bare and ours and recipe:
        lines.append(
            f"    what the recipe adds / what poolwatch adds: "
            f"{(recipe - bare) / (ours - bare):.1f}"
        )
    return lines
