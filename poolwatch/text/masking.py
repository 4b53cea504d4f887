"""Removes the literals from a statement before it leaves the process.

Safety comes first: a statement may be cut off in the middle (PostgreSQL keeps
``track_activity_query_size`` bytes), may be invalid SQL, and may contain secrets as
literals. Everything that might be a literal is replaced, and so are comments. Where the
end of a literal is ambiguous (a backslash before a quote, signs that begin a comment in
MySQL and nothing in SQLite), the rest of the statement is dropped.

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

_NO_LETTER = r"\x3a-\x40\x5b-\x5e\x60\x7b-\x7f"
_WORD = rf"[^\x00-\x39{_NO_LETTER}][^\x00-\x23\x25-\x2f{_NO_LETTER}]*"
_TAG = rf"[^\x00-\x39{_NO_LETTER}][^\x00-\x2f{_NO_LETTER}]*"
"""All that is not ASCII is a letter, as in PostgreSQL; words may contain ``$``."""
_PIECES = rf"""
      (?P<block>/\*)
    | (?P<dollar>\$(?:{_TAG})?\$)
    | (?P<string>(?:\b[eEbBxXnN]|\b[uU]&)?')
    | (?P<word>{_WORD})
    | (?P<place>\$\d+|[$:@][^\W\d]\w*|%\(\w+)
    | (?P<number>\.?[0-9](?:[eE][+-]\d|[\w.])*)
"""
_POSTGRES = rf"""
      (?P<line>--[^\n\r]*)
    | (?P<name>"(?:[^"]|"")*"?)
    | {_PIECES}
"""
_OTHER = rf"""
      (?P<line>--(?=\s|\Z)[^\n]*)
    | (?P<perhaps>(?:--|\#)[^\n]*|`(?:[^`]|``)*`?|\[[^\[\]]*|\b[nN]?[qQ]'[^']*)
    | (?P<quoted>")
    | {_PIECES}
"""
"""``perhaps``: comments, names and strings of one dialect, nothing such in others."""
_AMBIGUOUS = r"""['"`$#]|--|/\*|\r."""
_NOT_ALL = r"/\*|M?!"
"""In a block comment: what begins another one in PostgreSQL, or code in MySQL."""
_CALL_SITE = r"\bcall_site='[\w.~%-]*%3A\d+'"
"""What poolwatch itself writes into a comment: a line of code, no secret."""

_STATEMENT = r'(?:"[^"]*"?|[^;"])+;?|;'
_BEFORE_VALUES = r"""
    (?:\s|/\*[^*]*\*/|--[^\n\r]*)*
    (?i: (?P<copy>copy\b.*?\bfrom\s+stdin\b)
       | set\b.*?(?:=|\b(?:to|zone|names)\b)
       | (?:alter|create)\b.*?\sset\s+[^\s=]+\s*(?:=|\bto\b)
       | (?:alter|create|grant)\b.*?\bidentified\s+by\b
       | (?:alter|create)\s+(?:group|role|user)\b.*?\bpassword\b)
"""
"""Where a statement goes on with values that have no quotes."""


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """Compiled on first use: that takes a millisecond, and most runs mask nothing."""
    return re.compile(text, re.VERBOSE | re.DOTALL)


@lru_cache(maxsize=128)
def mask_literals(sql: str, *, postgres: bool = True) -> str:
    """Return ``sql`` with every literal as ``?``; at most MAX_LENGTH characters of it.

    Keywords, identifiers and placeholders are kept; of comments only the call site that
    poolwatch writes there. Text in double quotes is an identifier in ``postgres``, and
    perhaps a literal in other dialects.
    """
    cut = len(sql) > MAX_LENGTH
    text = sql[:MAX_LENGTH]
    pieces = _pattern(_POSTGRES if postgres else _OTHER)
    out: list[str] = []
    position = 0
    while (token := pieces.search(text, position)) is not None:
        out.append(text[position : token.start()])
        replacement, position = _replace(text, token, postgres)
        out.append(replacement)
    out.append(text[position:])
    return _without_bare_values("".join(out)) + (_CUT if cut else "")


def _replace(text: str, token: re.Match[str], postgres: bool) -> tuple[str, int]:
    """Return the replacement of ``token``, and the position after it."""
    kind, found = token.lastgroup, token.group()
    if kind in ("string", "quoted"):
        return _string(text, token.end() - 1)
    if kind == "dollar" and postgres:
        end = text.find(found, token.end())
        return _MASK, len(text) if end < 0 else end + len(found)
    if kind == "block":
        return _block(text, token.start(), postgres)
    if kind in ("line", "perhaps", "dollar") and not postgres:
        return _perhaps(text, token)
    if kind == "line":
        return f"-- {_MASK}", token.end()
    return _MASK if kind == "number" else found, token.end()


def _string(text: str, quote: int) -> tuple[str, int]:
    sign = text[quote]
    match = _pattern(rf"{sign}(?:[^{sign}]|{sign}{sign})*{sign}?").match(text, quote)
    end = match.end() if match else len(text)
    if "\\" in text[quote:end]:  # an escaped quote or a plain backslash: ambiguous
        return _MASK + _CUT, len(text)
    return _MASK, end


def _perhaps(text: str, token: re.Match[str]) -> tuple[str, int]:
    """What not all dialects understand alike: harmless unless a literal is near."""
    found = token.group()
    if _pattern(_AMBIGUOUS).search(found.lstrip("-#`").rstrip("`")):
        return _MASK + _CUT, len(text)
    if found[0] == "[":  # a name, or an array
        return found[0], token.start() + 1
    return found if found[0] == "`" else f"-- {_MASK}", token.end()


def _block(text: str, start: int, postgres: bool) -> tuple[str, int]:
    end = _end_of_block(text, start + 2)
    comment = text[start:end]
    if not postgres and _pattern(_NOT_ALL).search(comment, 2):
        return _MASK + _CUT, len(text)
    call_sites = ",".join(_pattern(_CALL_SITE).findall(comment))
    return f"/*{call_sites or f' {_MASK} '}*/", end


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


def _without_bare_values(masked: str) -> str:
    """Mask the values of SET, passwords and inline data, which need no quotes."""
    out: list[str] = []
    for part in _pattern(_STATEMENT).finditer(masked):
        statement = part.group()
        before = _pattern(_BEFORE_VALUES).match(statement)
        if before is None:
            out.append(statement)
            continue
        out.append(before.group())
        if before["copy"]:
            data = masked[part.start() + before.end() :].strip("; \t\r\n")
            return "".join(out) + (_CUT if data else "")
        out.append(f" {_MASK}" + ";" * statement.endswith(";"))
    return "".join(out)
