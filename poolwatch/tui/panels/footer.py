"""The last line: the keys that work on this screen."""

from __future__ import annotations

from collections.abc import Collection

from poolwatch.tui.draw.line import Line, Run, length
from poolwatch.tui.keys import KEYS

_ESSENTIAL = {"?", "q", "esc", "↵", "/"}


def footer(
    screen: str, cells: int, *, past: bool = False, hidden: Collection[str] = ()
) -> Line:
    """Name the keys of a screen; where it is narrow the last ones are left out.

    Args:
        screen: as the table of keys names it.
        cells: the width.
        past: whether the screen shows an incident snapshot.
        hidden: actions that are of no use now.
    """
    named = [
        key.footer
        for key in KEYS
        if key.footer and screen in key.footers.split() and key.action not in hidden
        if not (past and key.live)
    ]
    for sign, label in reversed(named):
        if length(_line(named)) <= cells:
            break
        if sign not in _ESSENTIAL:
            named.remove((sign, label))
    return _line(named)


def _line(named: list[tuple[str, str]]) -> Line:
    runs: list[Run] = [(" ", "muted")]
    for sign, label in named:
        runs += [(f" {sign}", "accent"), (f" {label} ", "muted")]
    return tuple(runs)
