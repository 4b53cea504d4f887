"""Usage of one pool by call site and caller: tallies combined for a snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from poolwatch.ledger.histogram import merged
from poolwatch.ledger.site_stats import Tally
from poolwatch.model import Collected, Frame, Outside, SiteStats
from poolwatch.stacks.callers import caller_at, first_difference

BySite = Mapping[Frame | None, Sequence[Tally]]
"""The tallies of each call site: one per stack that led to it."""

_MIN_HOLDS = 10
"""Call sites with fewer ended holds are not reported."""
_MIN_MEAN_HOLD_S = 0.02
"""Call sites with shorter holds on average are not reported."""
_MIN_OUTSIDE_S = 2.0
"""A smaller total may be the start of a service, or one burst of requests."""
_MAX_SQL_SHARE = 0.25
"""Share of the held time in SQL from which a call site is not reported."""


def mostly_outside(by_site: BySite) -> list[Outside]:
    """Call sites whose held time is mostly spent outside SQL."""
    found = []
    for site, tallies in by_site.items():
        if site is not None and _is_outside(tallies):
            callers = [c for c, group in _by_caller(tallies) if _is_outside(group)]
            time_spent = _time_spent(tallies)
            found.append(Outside(site, *time_spent, callers=_not_none(callers)))
    return found


def collected(by_site: BySite) -> list[Collected]:
    """Call sites whose connections the garbage collector returned, and how many."""
    found = []
    for site, tallies in by_site.items():
        count = _collected(tallies)
        if site is not None and count:
            callers = [c for c, group in _by_caller(tallies) if _collected(group)]
            found.append(Collected(site, count, _not_none(callers)))
    return found


def _collected(tallies: Iterable[Tally]) -> int:
    return sum(tally.collected for tally in tallies)


class Figures(NamedTuple):
    """Computes the figures of the call sites of one pool at one moment."""

    pool: str
    elapsed: float
    """Seconds since counting began."""
    out: dict[Tally, list[float]]
    """Ages of the open holds."""
    causing: Counter[Tally]
    """Seconds of the open waits that each tally has caused so far."""

    def of_all_sites(self, by_site: BySite) -> tuple[list[SiteStats], list[SiteStats]]:
        """Return figures per call site, and per caller where there are several."""
        sites, callers = [], []
        for site, tallies in by_site.items():
            if site is not None:
                sites.append(self._stats(site, tallies))
                callers += [
                    self._stats(site, group, c) for c, group in _by_caller(tallies)
                ]
        for stats in (sites, callers):
            stats.sort(key=lambda each: each.connections, reverse=True)
        return sites, callers

    def _stats(
        self, site: Frame, tallies: Sequence[Tally], caller: Frame | None = None
    ) -> SiteStats:
        ages = [age for tally in tallies for age in self.out.get(tally, ())]
        hold = merged(tally.hold for tally in tallies)
        measured = [tally for tally in tallies if tally.used]
        return SiteStats(
            pool=self.pool,
            site=site,
            count=sum(tally.count for tally in tallies) + len(ages),
            connections=(hold.total + sum(ages)) / self.elapsed,
            hold_s=hold.distribution(),
            wait_s=merged(tally.wait for tally in tallies).distribution(),
            leaked=sum(tally.leaked for tally in tallies),
            in_sql_s=sum(tally.in_sql for tally in measured) if measured else None,
            in_transaction_idle_s=sum(tally.idle for tally in measured)
            if measured
            else None,
            wait_caused_s=sum(
                tally.wait_caused + self.causing[tally] for tally in tallies
            ),
            caller=caller,
        )


def _by_caller(tallies: Sequence[Tally]) -> list[tuple[Frame | None, list[Tally]]]:
    """Group the tallies of one call site by caller; empty if there is only one."""
    at = first_difference(tally.stack for tally in tallies)
    if at is None:
        return []
    groups: dict[Frame | None, list[Tally]] = {}
    for tally in tallies:
        groups.setdefault(caller_at(tally.stack, at), []).append(tally)
    return list(groups.items())


def _not_none(callers: Iterable[Frame | None]) -> tuple[Frame, ...]:
    return tuple(caller for caller in callers if caller is not None)


class _TimeSpent(NamedTuple):
    """Where the ended holds of some tallies spent their time, in seconds."""

    ended: int = 0
    held: float = 0.0
    in_sql: float = 0.0
    idle: float = 0.0
    """In a transaction, without a running statement."""
    pool_wait: float = 0.0
    """While their holders waited for another connection."""


def _time_spent(tallies: Iterable[Tally]) -> _TimeSpent:
    each = [
        (t.hold.count, t.hold.total, t.in_sql, t.idle, t.pool_wait) for t in tallies
    ]
    return _TimeSpent(*map(sum, zip(*each, strict=True)))


def _is_outside(tallies: Sequence[Tally]) -> bool:
    """Whether the held time is mostly spent outside SQL.

    Requires enough holds, all of them with measured statements. The time in which a
    holder waited for another connection is subtracted: it could not use this one.
    """
    spent = _time_spent(tallies)
    usable = spent.held - spent.pool_wait
    if spent.ended < _MIN_HOLDS or usable < spent.ended * _MIN_MEAN_HOLD_S:
        return False
    if sum(tally.used for tally in tallies) < spent.ended:
        return False
    outside = usable - spent.in_sql
    return outside >= _MIN_OUTSIDE_S and spent.in_sql < usable * _MAX_SQL_SHARE
