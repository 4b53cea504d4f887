"""Formats statements; the only module that imports sqlparse.

On some input sqlparse takes quadratic time or recurses deeply. It is used only for
statements of ordinary length; longer ones are wrapped unformatted.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from poolwatch.text.format import neutral
from poolwatch.tui.draw.line import Line, wrap

LONGEST = 4_000
"""Maximum characters of a statement for sqlparse: about 50 ms at worst."""
SHOWN = 8_000


@lru_cache(maxsize=32)
def statement_lines(statement: str, cells: int, limit: int = 60) -> tuple[Line, ...]:
    """Format a statement in at most ``limit`` lines."""
    if len(statement) > LONGEST:
        lines = wrap(statement[:SHOWN], cells, limit)
        note = f"… {len(statement):,} characters in all"
        return (*(((line, "text"),) for line in lines), ((note, "muted"),))
    try:
        return tuple(_coloured(_formatted(statement)))[:limit]
    except Exception:  # noqa: BLE001 - a failing parser must not end the app
        return tuple(((line, "text"),) for line in wrap(statement, cells, limit))


def _formatted(statement: str) -> str:
    import sqlparse

    formatted: str = sqlparse.format(
        neutral(statement, lines=True), reindent=True, indent_width=2, wrap_after=60
    )
    return formatted


def _coloured(text: str) -> list[Line]:
    from sqlparse import lexer

    lines: list[list[tuple[str, str]]] = [[]]
    for kind, value in lexer.tokenize(text):  # type: ignore[no-untyped-call]
        ink = _ink(kind)
        first, *others = value.split("\n")
        lines[-1].append((neutral(first), ink))
        lines += [[(neutral(other), ink)] for other in others]
    return [tuple(run for run in line if run[0]) for line in lines if line]


def _ink(kind: Any) -> str:
    name = str(kind)
    if name.startswith("Token.Keyword"):
        return "keyword"
    return (
        "muted" if name.startswith(("Token.Comment", "Token.Punctuation")) else "text"
    )
