"""Removes the literals from a statement before it leaves the process.

Safety comes first: a statement may be cut off in the middle (PostgreSQL keeps
``track_activity_query_size`` bytes), may be invalid SQL, and may contain secrets as
literals. Everything that might be a literal is replaced; if a quote is ambiguous (a
backslash before it), the rest of the statement is dropped.

sqlparse is not used: this runs inside the instrumented application, which may not have
it, and a parser is too slow for megabytes of text.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

MAX_LENGTH = 8192
"""Maximum number of characters of a statement that are read."""

_MASK = "?"
_CUT = " …"

_PIECE = r"""
      (?P<line>--[^\n]*)
    | (?P<block>/\*)
    | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
    | (?P<string>(?:\b[eEbBxXnN]|\b[uU]&)?')
    | (?P<name>"(?:[^"]|"")*"?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<place>\$\d+|[$:@][^\W\d]\w*|%\(\w+)
    | (?P<number>\.?\d(?:[eE][+-]\d|[\w.])*)
"""
_QUOTED = r"'(?:[^']|'')*(?:'|$)"
_CALL_SITE = r"\bcall_site='[\w.~%-]*%3A\d+'"
"""What poolwatch itself writes into a comment: a line of code, no secret."""
_IN_COMMENT = rf"""({_CALL_SITE})|'[^']*'?|"[^"]*"?|(?<!\w)\d[\w.:-]*"""


@cache
def _piece() -> re.Pattern[str]:
    """Compiled on first use: that takes a millisecond, and most runs mask nothing."""
    return re.compile(_PIECE, re.VERBOSE)


@lru_cache(maxsize=128)
def mask_literals(sql: str) -> str:
    """Return ``sql`` with every literal as ``?``; at most MAX_LENGTH characters of it.

    Keywords, identifiers, placeholders and comments are kept. Quoted text and numbers
    inside comments are masked too, except the call site that poolwatch writes there.
    """
    cut = len(sql) > MAX_LENGTH
    text = sql[:MAX_LENGTH]
    out: list[str] = []
    position = 0
    while (token := _piece().search(text, position)) is not None:
        out.append(text[position : token.start()])
        replacement, position = _replace(text, token)
        out.append(replacement)
    out.append(text[position:])
    return "".join(out) + (_CUT if cut else "")


def _replace(text: str, token: re.Match[str]) -> tuple[str, int]:
    """Return the replacement of ``token``, and the position after it."""
    kind = token.lastgroup
    if kind == "string":
        return _string(text, token)
    if kind == "dollar":
        end = text.find(token.group(), token.end())
        return _MASK, len(text) if end < 0 else end + len(token.group())
    if kind == "line":
        return _masked_comment(token.group()), token.end()
    if kind == "block":
        end = _end_of_block(text, token.end())
        return _masked_comment(text[token.start() : end]), end
    if kind == "number":
        return _MASK, token.end()
    return token.group(), token.end()


def _masked_comment(comment: str) -> str:
    return re.sub(_IN_COMMENT, lambda found: found[1] or _MASK, comment)


def _string(text: str, token: re.Match[str]) -> tuple[str, int]:
    quote = token.end() - 1
    match = re.compile(_QUOTED).match(text, quote)
    end = match.end() if match else len(text)
    if "\\" in text[quote:end]:  # an escaped quote or a plain backslash: ambiguous
        return _MASK + _CUT, len(text)
    return _MASK, end


def _end_of_block(text: str, position: int) -> int:
    """Return the end of a block comment; in PostgreSQL they nest."""
    depth = 1
    while depth:
        opening = text.find("/*", position)
        closing = text.find("*/", position)
        if closing < 0:
            return len(text)
        if 0 <= opening < closing:
            depth, position = depth + 1, opening + 2
        else:
            depth, position = depth - 1, closing + 2
    return position
