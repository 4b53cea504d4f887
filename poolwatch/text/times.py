"""Times that people type: ``03:12``, ``-10min``, ISO 8601."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import time as TimeOfDay  # noqa: N812 - a class

from poolwatch.errors import UsageError

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
AGO = re.compile(rf"-?([0-9]{{1,12}}(?:\.[0-9]+)?)({'|'.join(_UNITS)})")


def moment(text: str, zone: tzinfo | None = UTC) -> float:
    """Return the moment that a text names, in seconds since the epoch.

    ``zone``: the time zone of a text that names none; None is that of this machine.
    Raises UsageError.
    """
    now = time.time()
    ago = AGO.fullmatch(text)
    try:
        if ago:
            at = now - float(ago[1]) * _UNITS[ago[2]]
        elif re.match("[0-9]{1,2}:", text):
            at = _last(TimeOfDay.fromisoformat(text), now, zone)
        else:
            given = datetime.fromisoformat(text)
            at = (given if given.tzinfo else _in(given, zone)).timestamp()
    except (ValueError, OverflowError):
        default = "UTC" if zone is UTC else "local time"
        raise UsageError(
            f"{text!r:.60} is not a time: give 2026-11-29T03:12 ({default}, unless it "
            "says otherwise), 03:12 or -10min (s, min, h, d)"
        ) from None
    if at < 0:
        raise UsageError(f"{text!r:.60} lies before the history")
    return at


def _in(given: datetime, zone: tzinfo | None) -> datetime:
    return given.replace(tzinfo=zone) if zone else given.astimezone()


def _last(clock: TimeOfDay, now: float, zone: tzinfo | None) -> float:
    """The last moment with this time of day."""
    zone = clock.tzinfo or zone
    today = datetime.fromtimestamp(now, zone)
    at = _in(datetime.combine(today.date(), clock.replace(tzinfo=None)), zone)
    if at.timestamp() > now:
        day_before = today.date() - timedelta(days=1)
        at = _in(datetime.combine(day_before, clock.replace(tzinfo=None)), zone)
    return at.timestamp()
