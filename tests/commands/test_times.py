"""TIME on the command line, as ``--at``, ``--since`` and ``--until`` take it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from poolwatch.commands import arguments
from poolwatch.errors import UsageError

NOW = datetime(2026, 11, 29, 4, 0, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-29T03:12", "2026-11-29T03:12:00"),
        ("2026-11-29 03:12:44.5", "2026-11-29T03:12:44.500000"),
        ("2026-11-29T03:12:00Z", "2026-11-29T03:12:00"),
        ("2026-11-29T03:12+01:00", "2026-11-29T02:12:00"),
        ("2026-11-28", "2026-11-28T00:00:00"),
        ("03:12", "2026-11-29T03:12:00"),
        ("04:01", "2026-11-28T04:01:00"),
        ("03:12:44", "2026-11-29T03:12:44"),
        ("03:12+02:00", "2026-11-29T01:12:00"),
        ("05:30+02:00", "2026-11-29T03:30:00"),
        ("23:30-02:00", "2026-11-29T01:30:00"),
        ("-10min", "2026-11-29T03:50:30"),
        ("-10m", "2026-11-29T03:50:30"),
        ("-90s", "2026-11-29T03:59:00"),
        ("-1.5h", "2026-11-29T02:30:30"),
        ("24h", "2026-11-28T04:00:30"),
        ("-7d", "2026-11-22T04:00:30"),
    ],
)
def test_what_is_a_time(monkeypatch, text, meant):
    monkeypatch.setattr(time, "time", lambda: NOW)
    at = datetime.fromisoformat(meant).replace(tzinfo=UTC)
    assert arguments.moment(text) == at.timestamp()


@pytest.mark.parametrize(
    "text",
    ["", "-", "yesterday", "25:00", "03:61", "3", "-10", "-10years", "--10min", "+1h",
     "2026-13-01", "1e9", "nan", "٣:١٢", "03:12 noon", "-99999999999999d", "x" * 999],
)  # fmt: skip
def test_what_is_none(text):
    with pytest.raises(UsageError, match="is not a time") as caught:
        arguments.moment(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["-999999999999d", "0001-01-01", "1969-12-31"])
def test_before_all_history(text):
    with pytest.raises(UsageError, match="lies before the history"):
        arguments.moment(text)


def test_a_value_with_a_minus_sign():
    joined = arguments.joined_times
    assert joined(["ps", "--at", "-10min", "-v"]) == ["ps", "--at=-10min", "-v"]
    assert joined(["ps", "--at", "-v"]) == ["ps", "--at", "-v"]
    assert joined(["ps", "--at=-1h"]) == ["ps", "--at=-1h"]
    other = ["run", "--", "report", "--since", "-2h"]
    assert joined(other) == other
