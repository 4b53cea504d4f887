"""The time of a hold as a bar: in SQL, idle in transaction, and the rest."""

from __future__ import annotations

from poolwatch.model import Hold
from poolwatch.text.format import duration, short_time
from poolwatch.tui.draw.line import Line, Run, length

LONGEST = 36
"""Maximum width of the bar, in cells."""
SHORTEST = 6
_EDGES = 4
"""Cells of the gap before the bar and of its two edges."""
_MIN_WITH_PERCENT = 16
"""Minimum width of the bar if percentages are shown."""

_BRIEF = {"in SQL": "SQL", "idle in tx": "idle-tx", "outside": "rest", "other": "rest"}

_Part = tuple[str, str, str, float]
"""Shape, ink and name of a part, and its seconds."""


def parts(hold: Hold) -> list[_Part]:
    """Return the parts of the held time; none if no part is known."""
    sql, idle = hold.in_sql_s, hold.in_transaction_idle_s
    if sql is None and idle is None:
        return []
    found: list[_Part] = []
    if sql is not None:
        found.append(("█", "accent", "in SQL", max(sql, 0.0)))
    if idle is not None:
        found.append(("▓", "warn", "idle in tx", max(idle, 0.0)))
    rest = hold.known_s - sum(seconds for *_, seconds in found)
    name = "outside" if len(found) == 2 else "other"
    return [*found, ("░", "muted", name, max(rest, 0.0))]


def spent_line(hold: Hold, cells: int) -> Line | None:
    """Draw the figures, then the bar; None if nothing is known."""
    shares = parts(hold)
    whole = sum(seconds for *_, seconds in shares)
    if whole <= 0:
        return None
    figures = _figures(shares, whole, percent=True)
    if length(figures) + _MIN_WITH_PERCENT > cells:
        figures = _figures(shares, whole, percent=False)
    if length(figures) + SHORTEST > cells:
        abbreviated = [(shape, ink, _BRIEF[name], s) for shape, ink, name, s in shares]
        figures = _figures(abbreviated, whole, percent=False)
    (mark, ink), *others = figures
    figures = ((mark.lstrip(), ink), *others)
    drawn = min(cells - length(figures) - _EDGES, LONGEST)
    if drawn < SHORTEST:
        return figures
    bar = _bar(shares, whole, drawn)
    return (*figures, ("  ▏", "faint"), *bar, ("▕", "faint"))


def _bar(shares: list[_Part], whole: float, cells: int) -> Line:
    """Distribute the cells; every part that is not zero gets one."""
    sizes = [
        max(round(seconds / whole * cells), int(seconds / whole > 0.001))
        for *_, seconds in shares
    ]
    sizes[sizes.index(max(sizes))] += cells - sum(sizes)
    return tuple(
        (shape * size, ink)
        for (shape, ink, *_), size in zip(shares, sizes, strict=True)
        if size > 0
    )


def _time(seconds: float) -> str:
    """Return a duration; short ones in ms or µs instead of ``0.0s``."""
    if seconds <= 0:
        return "0s"
    return short_time(seconds) if seconds < 0.0995 else duration(seconds)


def _figures(shares: list[_Part], whole: float, *, percent: bool) -> Line:
    runs: list[Run] = []
    for shape, ink, name, seconds in shares:
        share = f" {seconds / whole * 100:.0f}%" if percent else ""
        runs += [
            (f"  {shape} ", ink),
            (f"{name} ", "muted"),
            (f"{_time(seconds)}{share}", "text"),
        ]
    return tuple(runs)
