"""The filter language: ``state:idle-tx held:>30s !pool:audit export``.

A row must match every word of the filter. A word is ``field:value``, or a text that
occurs anywhere in the row. A field not in ``FIELDS`` is a label. ``!`` negates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from poolwatch.model import Frame, Hold
from poolwatch.text.format import place
from poolwatch.tui.state.rows import Row

FIELDS = (
    "state",
    "pool",
    "site",
    "thread",
    "task",
    "app",
    "pid",
    "verdict",
    "held",
)

_SPAN = re.compile(r"(>=|<=|>|<)?(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}

Test = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter: the text that was typed, and a test per word."""

    text: str = ""
    tests: tuple[Test, ...] = ()
    error: str | None = None
    """Why a word cannot be used."""

    def __call__(self, row: Row) -> bool:
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
    value = value.casefold()
    if not colon or not field.isidentifier():
        return (
            (lambda row: _contains(word.casefold(), _all_values(row))) if word else None
        )
    if not value:
        return None
    field = field.casefold()
    if field == "held":
        return _held(value)
    if field == "pid":
        return lambda row: value in {str(row.process.pid), str(row.hold.backend_pid)}
    if field in FIELDS:
        return lambda row: _contains(value, _values(row, field))
    return lambda row: _contains(value, _label(row.hold.labels, field))


def _held(value: str) -> Test | str:
    match = _SPAN.fullmatch(value)
    if match is None:
        return f"held:{value} is not a duration; write held:>30s"
    sign, number, unit = match.groups()
    limit = float(number) * _UNITS[unit]
    if sign in ("<", "<="):
        return lambda row: row.hold.held_s <= limit
    return lambda row: row.hold.held_s >= limit


def _contains(wanted: str, values: Iterable[str | None]) -> bool:
    return any(wanted in value.casefold() for value in values if value)


def _label(labels: Mapping[str, str], name: str) -> list[str]:
    return [value for key, value in labels.items() if key.casefold() == name]


def _values(row: Row, field: str) -> list[str | None]:
    hold, process = row.hold, row.process
    values: dict[str, list[str | None]] = {
        "state": [short_state(hold), hold.server.state if hold.server else None],
        "pool": [row.pool_name],
        "site": [_site(hold.site), _site(hold.caller)],
        "thread": [hold.thread],
        "task": [hold.task],
        "app": [process.name, process.program],
        "verdict": [row.verdict, hold.verdict],
    }
    return values[field]


def _site(site: Frame | None) -> str | None:
    return f"{place(site, 99)} {site.function}" if site else None


def _all_values(row: Row) -> list[str | None]:
    values = [value for name in FIELDS[:6] for value in _values(row, name)]
    hold = row.hold
    server = (hold.server.query, hold.server.wait_event) if hold.server else ()
    numbers = (str(hold.backend_pid), str(row.process.pid))
    statement = (hold.statement, row.verdict)
    return [*values, *hold.labels.values(), *server, *numbers, *statement]


def short_state(hold: Hold) -> str | None:
    """Return the backend's state in one word: ``idle-tx`` for "idle in transaction"."""
    state = hold.server.state if hold.server else None
    if state is None:
        return None
    state = state.replace("idle in transaction", "idle-tx")
    return state.replace(" (aborted)", "!").replace(
        "fastpath function call", "fastpath"
    )
