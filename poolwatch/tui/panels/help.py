"""The help page: every key, every verdict, every column."""

from __future__ import annotations

from poolwatch.tui.draw.line import BLANK, Line, beside, wrap
from poolwatch.tui.keys import KEYS
from poolwatch.tui.state.rows import VERDICTS
from poolwatch.tui.views import known_fields
from poolwatch.tui.views.sites import EXPLAINED

COLUMNS = (
    ("held", "time since the checkout"),
    ("holder", "task or thread, and its labels"),
    ("call site", "the line of your code that checked it out"),
    ("backend", "pid of the PostgreSQL process"),
    ("state, for", "state of the backend, and since when"),
    ("xact", "age of the open transaction"),
    ("wait event", "what the backend waits for"),
    ("statement", "the last one, literals masked"),
    ("xmin", "transactions by which it holds back vacuum"),
    ("holds up", "sessions that wait for it, at once or behind others"),
    ("out", "connections checked out, of the pool's maximum"),
    ("1m avg", "requests waiting, average of the last minute"),
    ("cancelled", "waits that the application cancelled"),
    ("p99", "99 of 100 waits or holds are shorter"),
)

FILTERS = (
    ("held>30s", "numbers and durations: > >= < <="),
    ("state:idle-tx", "by the state of the backend"),
    ("!pool:audit", "all but that pool"),
    ("endpoint:/pay", "by a label"),
    ("export|etl", "either, anywhere in the row"),
    ('task="a b"', "exactly; quotes keep spaces"),
)

TWO_COLUMNS = 110
"""Minimum width for two columns."""


def help_lines(cells: int) -> list[Line]:
    """Return the page, in two columns if there is room."""
    width = cells if cells < TWO_COLUMNS else cells // 2 - 2
    keys = tuple(key.help for key in KEYS if key.help)
    left = [*_part("KEYS", keys, width), BLANK, *_part("FILTER", FILTERS, width)]
    fields = " ".join(sorted(known_fields()))
    left += _explained("fields", fields, "muted", width)
    right = [*_verdicts(), BLANK, *_part("COLUMNS", COLUMNS, width)]
    right += [BLANK, *_part("CALL SITES", EXPLAINED, width)]
    if cells < TWO_COLUMNS:
        return [*left, BLANK, *right]
    return beside(left, right, cells // 2)


def _part(title: str, pairs: tuple[tuple[str, str], ...], cells: int) -> list[Line]:
    lines: list[Line] = [((f"  {title}", "title"),)]
    for name, text in pairs:
        lines += _explained(name, text, "strong", cells)
    return lines


def _explained(name: str, text: str, ink: str, cells: int) -> list[Line]:
    """Draw a name and its explanation, in several lines if it is long."""
    return [
        ((f"  {'' if at else name:<16}", ink), (part, "text"))
        for at, part in enumerate(wrap(text, cells - 18))
    ]


def _verdicts() -> list[Line]:
    lines: list[Line] = [(("  VERDICTS, worst first", "title"),)]
    for word, (shape, ink, text) in VERDICTS.items():
        name = f"{shape} {word}{' n' if word == 'ROOT' else ''}"
        lines.append(((f"  {name:<16}", ink), (text, "text")))
    return lines
