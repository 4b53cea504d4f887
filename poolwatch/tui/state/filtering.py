"""The filter language: ``state:idle-tx held>30s !pool:audit export|etl``.

A row must match every word of the filter. A word is a text that occurs anywhere in the
row, or a field with a test: ``:`` contains, ``=`` is, ``>`` ``>=`` ``<`` ``<=`` compare
numbers and durations. ``|`` between words means either, ``!`` before a word means not,
and quotes keep spaces and signs: ``task="nightly export"``; a quote between quotes is
written twice. Labels are fields.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_QUOTED = r'"(?:[^"]|"")*"?'
_WORD = re.compile(
    rf"""(?P<no>!*)
    (?: (?P<field>[^\W\d][\w.-]*) (?P<sign>:(?:>=|<=|>|<)?|!=|>=|<=|=|>|<)
        (?P<value>{_QUOTED}|[^\s|"]*)
      | (?P<text>{_QUOTED}|[^\s|"]+) )""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_NAMED = 12
"""Most fields that an error names."""


class Fields(Protocol):
    """The fields of one row."""

    def values(self, name: str) -> Sequence[Any] | None:
        """Return the values of a field or label; None if the view has no such field."""

    def texts(self) -> Iterable[str]:
        """Return every text of the row."""


Test = Callable[[Fields], bool]


class _UnusableError(ValueError):
    """A word that cannot be used, with the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter: the text that was typed, and a test per word."""

    text: str = ""
    tests: tuple[Test, ...] = ()
    error: str | None = None
    """Why a word cannot be used."""

    def __call__(self, row: Fields) -> bool:
        """Whether a row is shown."""
        return all(test(row) for test in self.tests)


def parse(text: str, known: Collection[str] | None = None) -> Filter:
    """Parse a filter; a word that cannot be used is left out, with an error.

    ``known``: the names of all fields and labels; None accepts any.
    """
    tests: list[Test] = []
    error = None
    for words in _alternatives(text):
        try:
            either = [_test(word, known) for word in words]
        except _UnusableError as unusable:
            error = error or str(unusable)
        else:
            tests.append(either[0] if len(either) == 1 else _any(either))
    return Filter(text.strip(), tuple(tests), error)


def quoted(text: str) -> str:
    """Return a text as a filter's value, whatever signs it has."""
    return '"' + text.replace('"', '""') + '"'


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    return text[1:].removesuffix('"').replace('""', '"')


def _alternatives(text: str) -> list[list[re.Match[str]]]:
    """Return the words, those joined by ``|`` together; stray signs are skipped."""
    groups: list[list[re.Match[str]]] = []
    joined = False
    at = 0
    while at < len(text):
        word = _WORD.match(text, at)
        if word is None:
            joined = joined or text[at] == "|"
            at += 1
            continue
        if joined and groups:
            groups[-1].append(word)
        else:
            groups.append([word])
        joined, at = False, word.end()
    return groups


def _any(tests: Sequence[Test]) -> Test:
    return lambda row: any(test(row) for test in tests)


def _test(word: re.Match[str], known: Collection[str] | None) -> Test:
    wanted = len(word["no"]) % 2 == 0
    if word["text"] is not None:
        text = _unquoted(word["text"]).casefold()
        return lambda row: _occurs(text, row) == wanted
    field, sign = word["field"].casefold(), word["sign"]
    if known is not None and field not in known:
        raise _UnusableError(_unknown(field, known))
    value = _unquoted(word["value"]).casefold()
    if not value:
        return lambda _: True  # it is still being typed
    matches = _matcher(field, sign, value)
    wanted = wanted != (sign == "!=")

    def test(row: Fields) -> bool:
        values = row.values(field)
        if values is None:
            return True  # a word says nothing of a view without the field
        return wanted == any(matches(each) for each in values if each is not None)

    return test


def _occurs(text: str, row: Fields) -> bool:
    return any(text in each.casefold() for each in row.texts())


def _unknown(field: str, known: Collection[str]) -> str:
    names = sorted(known)
    close = [name for name in names if name[:2] == field[:2]]
    listed = list(dict.fromkeys([*close, *names]))[:_NAMED]
    return f"no field {field!r}; there are {', '.join(listed)}"


def _matcher(field: str, sign: str, value: str) -> Callable[[Any], bool]:
    compare = _COMPARE.get(sign.lstrip(":"))
    if compare is None:
        matches = _contains if sign == ":" else _is
        return lambda found: matches(found, value)
    limit = _number(value)
    if limit is None:
        raise _UnusableError(
            f"{field}: {value!r} is no number and no duration such as 30s, 5m, 200ms"
        )
    return lambda found: isinstance(found, int | float) and compare(found, limit)


def _contains(value: Any, wanted: str) -> bool:
    """A text contains the other one; a duration is at least as long."""
    if isinstance(value, float):
        limit = _number(wanted)
        return limit is not None and value >= limit
    return _is(value, wanted) if isinstance(value, int) else wanted in value.casefold()


def _is(value: Any, wanted: str) -> bool:
    if isinstance(value, float):
        return value == _number(wanted)
    return bool(str(value).casefold() == wanted)


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text)
    return float(match[1]) * _UNITS[match[2]] if match else None
