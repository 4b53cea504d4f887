"""Names, numbers and sentences of the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from poolwatch.model import OTHER_SITES, Frame
from poolwatch.sidecar.report.faults import Fault, when
from poolwatch.sidecar.report.totals import Durations, PoolKey
from poolwatch.text.format import duration, one_line, place, plural, short_time


def pool_names(keys: Iterable[PoolKey]) -> dict[PoolKey, str]:
    """Return the names of pools, with their service where one name has several."""
    known = list(keys)
    services = Counter(key.pool for key in known)
    return {
        key: one_line(
            key.pool if services[key.pool] == 1 else f"{key.service} · {key.pool}", 60
        )
        for key in known
    }


def site_name(site: Frame) -> str:
    """Return ``shop/cart.py:51``."""
    if site.file == OTHER_SITES.file:
        return site.file
    return one_line(place(site, 3), 80)


def clock(at: float, since: float, until: float) -> str:
    """Return the time of day; with the date if the stretch has more than one."""
    first, last, then = (datetime.fromtimestamp(t, UTC) for t in (since, until, at))
    style = "%H:%M:%S" if first.date() == last.date() else "%d %b %H:%M:%S"
    return then.strftime(style)


def stretch_words(since: float, until: float) -> str:
    """Return ``29 November 2026, 20:00 to 21:00 UTC``."""
    first, last = (datetime.fromtimestamp(at, UTC) for at in (since, until))
    day = "%-d %B %Y"
    if first.date() == last.date():
        return f"{first:{day}}, {first:%H:%M} to {last:%H:%M} UTC"
    return f"{first:{day}}, {first:%H:%M} to {last:{day}}, {last:%H:%M} UTC"


def minute(at: float) -> str:
    """Return ``29 November 2026, 21:40 UTC``."""
    return f"{datetime.fromtimestamp(at, UTC):%-d %B %Y, %H:%M} UTC"


def extent_words(fault: Fault, since: float, until: float) -> str:
    """Return how often, where and how long something went wrong."""
    many = len(fault.incidents)
    often = "once" if many == 1 else f"{many:,} times"
    where = f" in {fault.processes:,} processes" if fault.processes > 1 else ""
    if fault.hosts > 1:
        where += f" on {plural(fault.hosts, 'host')}"
    began = clock(fault.spans[0][0], since, until)
    end = clock(fault.spans[-1][1], since, until)
    ended = "and still there at the end" if fault.lasting else f"to {end} UTC"
    length = length_words(fault.seconds)
    long = f"for {length}" if many == 1 else f"{length} in all"
    return f"{often}{where}, {long}, from {began} {ended}"


def within_words(durations: Durations, share: float) -> str:
    """Return the bound that this share did not exceed, in words."""
    bound = durations.within(share)
    if bound is None:
        return "-"
    return "over 10 s" if math.isinf(bound) else f"≤ {short_time(bound)}"


def number(value: float) -> str:
    """Return ``1,234``, ``12.3 k`` beyond 100,000, ``4.56 M`` beyond a million."""
    if value >= 1e9:
        return f"{value / 1e9:.3g} G"
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}"


def incident_words(
    began: str, seen: str, since: float, until: float
) -> tuple[str, str]:
    """Return when an incident began, and how long it lasted."""
    length = length_words(when(seen) - when(began))
    return clock(when(began), since, until), length


def length_words(seconds: float) -> str:
    """Return how long something lasted; one look has no length."""
    return duration(seconds) if seconds >= 0.05 else "a moment"
