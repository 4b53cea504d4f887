"""The last line: the keys that work on this screen."""

from __future__ import annotations

from collections.abc import Collection

from poolwatch.tui.draw.line import Line, Run, length
from poolwatch.tui.keys import KEYS

_ESSENTIAL = {"?", "q", "esc", "↵", "/"}


def footer(
    screen: str,
    cells: int,
    *,
    is_fixed: bool = False,
    paused: bool = False,
    hidden: Collection[str] = (),
) -> Line:
    """Return the line of a screen's keys; the last keys are dropped if it is narrow.

    Args:
        screen: the screen's name in KEYS.
        cells: width of the line.
        is_fixed: whether there are no readings to control.
        paused: whether the readings are paused: then the label of ``p`` is "go on".
        hidden: actions to leave out.
    """
    keys = [
        key.footer
        for key in KEYS
        if key.footer and screen in key.footers.split() and key.action not in hidden
        if not (is_fixed and key.live)
    ]
    if paused:
        keys = [(sign, "go on" if sign == "p" else label) for sign, label in keys]
    for sign, label in reversed(keys):
        if length(_line(keys)) <= cells:
            break
        if sign not in _ESSENTIAL:
            keys.remove((sign, label))
    return _line(keys)


def _line(keys: list[tuple[str, str]]) -> Line:
    runs: list[Run] = [(" ", "muted")]
    for sign, label in keys:
        runs += [(f" {sign}", "accent"), (f" {label} ", "muted")]
    return tuple(runs)
