"""Times as the dashboard takes them: in the zone of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from poolwatch.errors import UsageError
from poolwatch.text.times import moment

NOW = datetime(2026, 11, 29, 4, 0, 30, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-28T22:12", "2026-11-29T03:12:00"),
        ("2026-07-01T12:00", "2026-07-01T16:00:00"),
        ("22:12:44", "2026-11-29T03:12:44"),
        ("23:01", "2026-11-28T04:01:00"),
        ("03:12Z", "2026-11-29T03:12:00"),
        ("-10min", "2026-11-29T03:50:30"),
    ],
)
def test_local_time(text: str, meant: str) -> None:
    at = datetime.fromisoformat(meant).replace(tzinfo=UTC)
    assert moment(text, None) == at.timestamp()


def test_what_is_no_time() -> None:
    with pytest.raises(UsageError, match=r"is not a time: give .*local time, unless"):
        moment("noon", None)
    for before_all in ("0001-01-01", "1969-12-31"):
        with pytest.raises(UsageError):
            moment(before_all, None)
