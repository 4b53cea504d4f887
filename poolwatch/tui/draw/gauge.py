"""Bars and sparklines within a line."""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.tui.draw.line import Line, Run

_STEPS = " ▁▂▃▄▅▆▇█"


def bar(share: float, cells: int, ink: str, soft_from: float = 1.0) -> Line:
    """Draw ``share`` (0 to 1) as a bar; its track is dashed from ``soft_from`` on.

    A bar of any width has at most three runs: each run costs bytes at every redraw.
    """
    halves = round(min(max(share, 0.0), 1.0) * cells * 2)
    if share > 0 and halves == 0:
        halves = 1
    full, half = divmod(halves, 2)
    runs: list[Run] = [("━" * full + "╸" * half, ink)]
    drawn = full + half
    solid = max(round(min(soft_from, 1.0) * cells) - drawn, 0)
    runs.append(("─" * solid, "faint"))
    runs.append(("╌" * (cells - drawn - solid), "faint"))
    return tuple(run for run in runs if run[0])


def spark(values: Sequence[int], top: int, cells: int) -> str:
    """Draw the last values, newest at the right edge, against ``top``."""
    shown = list(values)[-cells:]
    top = max(top, *shown, 1) if shown else 1
    last = len(_STEPS) - 1
    drawn = "".join(
        _STEPS[0 if value <= 0 else max(1, round(value / top * last))]
        for value in shown
    )
    return drawn.rjust(cells)
