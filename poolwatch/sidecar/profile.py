"""The hold profile of a stretch of history.

The minutes of the call sites have the exact seconds, the kept snapshots have stacks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poolwatch.diagnosis.hold_profile import Group, HoldProfile, Profile
from poolwatch.errors import UsageError
from poolwatch.sidecar.report.stretch import Progress, pieces, within
from poolwatch.text.format import utc_time

if TYPE_CHECKING:
    from poolwatch.sidecar.history.reading import History

_MINUTE_S = 60


def read(
    history: History, since: float | None, until: float | None, progress: Progress
) -> tuple[Profile, float, float]:
    """Return the profile, and from when to when it is: whole minutes.

    Raises UsageError if the history has no process there.
    """
    since, until = within(history.extent(), since, until)
    found = HoldProfile()
    before = math.nextafter(until, since)  # the minute that begins there is not in it
    empty = True
    for begin, last in pieces(since, until, progress):
        for minute in history.site_minutes(begin, min(last, before)):
            group = Group(minute.service, minute.pool, minute.site)
            found.count(group, minute.held_s)
        end = min(last + _MINUTE_S, math.nextafter(until, math.inf))
        for at, process in history.kept_snapshots(begin, end):
            found.see(at, process, unseen_s=max(0.0, at - since))
            empty = False
        empty = empty and not history.pool_minutes(begin, before)
    if empty:
        raise UsageError(
            f"the history has no process from {utc_time(since)} to {utc_time(until)}"
        )
    found.end(until)
    return found.by_stack(), since, until
