"""The last line: which keys work here."""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.tui.draw.line import Line, Run, length

Keys = tuple[tuple[str, str], ...]

MAIN: Keys = (
    ("↵", "detail"),
    ("w", "why"),
    ("c", "call sites"),
    ("/", "filter"),
    ("s", "sort"),
    ("p", "pause"),
    ("R", "read now"),
    ("+-", "pace"),
    ("v", "pane"),
    ("?", "help"),
    ("q", "quit"),
)
FILTERING: Keys = (("↵", "keep the filter"), ("esc", "clear it"), ("↑↓", "select"))
ALBUM: Keys = (("z", "kept pictures"),)
FROZEN: Keys = (("↵", "open"), ("↑↓", "select"), ("esc", "back"))
PAST: Keys = (
    ("↵", "detail"),
    ("w", "why"),
    ("c", "call sites"),
    ("/", "filter"),
    ("s", "sort"),
    ("v", "pane"),
    ("esc", "back"),
)
DETAIL: Keys = (("esc", "back"), ("j k", "scroll"), ("f", "fold"), ("p", "pause"))
PAST_DETAIL: Keys = DETAIL[:-1]
PAGE: Keys = (("esc", "back"), ("j k", "scroll"))

_ESSENTIAL = {"?", "q", "esc", "↵", "/"}


def footer(keys: Sequence[tuple[str, str]], cells: int) -> Line:
    """Name the keys; on a narrow terminal only those nobody can do without."""
    line = _line(keys)
    for key in reversed(keys):
        if length(line) <= cells:
            break
        if key[0] not in _ESSENTIAL:
            keys = [other for other in keys if other != key]
            line = _line(keys)
    return line


def _line(keys: Sequence[tuple[str, str]]) -> Line:
    runs: list[Run] = [(" ", "muted")]
    for key, what in keys:
        runs += [(f" {key}", "accent"), (f" {what} ", "muted")]
    return tuple(runs)
