"""The filter language: ``state:idle-tx held:>30s !pool:audit export``.

A row must match every word of the filter. A word is ``field:value``, or a text that
occurs anywhere in the row. A field not in ``FIELDS`` is a label. ``!`` negates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_SPAN = re.compile(r"(>=|<=|>|<)?(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


class Fields(Protocol):
    """The fields of one row."""

    def values(self, name: str) -> Sequence[Any] | None:
        """Return the values of a field or label; None if the view has no such field."""

    def texts(self) -> Iterable[str]:
        """Return every text of the row."""


Test = Callable[[Fields], bool]


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


def parse(text: str) -> Filter:
    """Parse a filter; a word that cannot be used is left out, with an error."""
    tests: list[Test] = []
    error = None
    for word in text.split():
        term = word.removeprefix("!")
        test = _test(term)
        if isinstance(test, str):
            error = error or test
        elif test is not None:
            tests.append(_negated(test) if word.startswith("!") else test)
    return Filter(text.strip(), tuple(tests), error)


def _negated(test: Test) -> Test:
    return lambda row: not test(row)


def _test(word: str) -> Test | str | None:
    field, colon, value = word.partition(":")
    value, field = value.casefold(), field.casefold()
    if not colon or not field.isidentifier():
        return (lambda row: _contains(word.casefold(), row.texts())) if word else None
    if not value:
        return None
    if field == "held":
        return _held(value)
    if field == "pid":
        return lambda row: value in map(str, row.values(field) or ())
    return lambda row: _contains(value, row.values(field) or ())


def _held(value: str) -> Test | str:
    match = _SPAN.fullmatch(value)
    if match is None:
        return f"held:{value} is not a duration; write held:>30s"
    sign, number, unit = match.groups()
    limit = float(number) * _UNITS[unit]
    if sign in ("<", "<="):
        return lambda row: all(held <= limit for held in row.values("held") or ())
    return lambda row: all(held >= limit for held in row.values("held") or ())


def _contains(wanted: str, values: Iterable[Any]) -> bool:
    return any(wanted in str(value).casefold() for value in values if value is not None)
