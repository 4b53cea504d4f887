"""The help page: every key, every verdict, every column."""

from __future__ import annotations

from poolwatch.tui.draw.line import BLANK, Line, beside
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
    ("held:>30s", "held for half a minute or longer"),
    ("state:idle-tx", "by the state of the backend"),
    ("!pool:audit", "all but that pool"),
    ("endpoint:/pay", "by a label"),
    ("export", "anywhere in the row"),
)


def help_lines(cells: int) -> list[Line]:
    """Return the page, in two columns if there is room."""
    keys = tuple(key.help for key in KEYS if key.help)
    left = [*_part("KEYS", keys), BLANK, *_part("FILTER", FILTERS)]
    left.append((("  fields: " + " ".join(sorted(known_fields())), "muted"),))
    right = [*_verdicts(), BLANK, *_part("COLUMNS", COLUMNS)]
    right += [BLANK, *_part("CALL SITES", EXPLAINED)]
    if cells < 110:
        return [*left, BLANK, *right]
    return beside(left, right, cells // 2)


def _part(title: str, pairs: tuple[tuple[str, str], ...]) -> list[Line]:
    lines: list[Line] = [((f"  {title}", "title"),)]
    return lines + [
        ((f"  {name:<16}", "strong"), (text, "text")) for name, text in pairs
    ]


def _verdicts() -> list[Line]:
    lines: list[Line] = [(("  VERDICTS, worst first", "title"),)]
    for word, (shape, ink, text) in VERDICTS.items():
        name = f"{shape} {word}{' n' if word == 'ROOT' else ''}"
        lines.append(((f"  {name:<16}", ink), (text, "text")))
    return lines
