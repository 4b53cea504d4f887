"""What call sites have cost one pool: their tallies, put together for a viewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from poolwatch.ledger.histogram import merged
from poolwatch.ledger.site_stats import Tally
from poolwatch.model import Collected, Frame, Outside, SiteStats
from poolwatch.stacks.callers import caller_at, first_difference

BySite = Mapping[Frame | None, Sequence[Tally]]
"""The tallies of each call site, one for each stack that led to it."""

_ENOUGH_HOLDS = 10
_BRIEF_HOLD_S = 0.02
"""Below this, on average, a call site is not said to hold across anything."""
_ENOUGH_OUTSIDE_S = 2.0
"""Less than that in all is the start of a service, or one burst of requests."""
_MOSTLY_OUTSIDE = 0.25
"""Share of the held time in SQL below which the rest is mostly something else."""


def mostly_outside(by_site: BySite) -> list[Outside]:
    """Call sites whose held time is mostly not in SQL."""
    found = []
    for site, tallies in by_site.items():
        if site is not None and _is_outside(tallies):
            callers = [c for c, some in _by_caller(tallies) if _is_outside(some)]
            found.append(Outside(site, *_spent(tallies), callers=_known(callers)))
    return found


def collected(by_site: BySite) -> list[Collected]:
    """Call sites whose connections the garbage collector returned, and how many."""
    found = []
    for site, tallies in by_site.items():
        count = _collected(tallies)
        if site is not None and count:
            callers = [c for c, some in _by_caller(tallies) if _collected(some)]
            found.append(Collected(site, count, _known(callers)))
    return found


def _collected(tallies: Iterable[Tally]) -> int:
    return sum(tally.collected for tally in tallies)


class Figures(NamedTuple):
    """The figures of the call sites of one pool at one moment."""

    pool: str
    elapsed: float
    out: dict[Tally, list[float]]
    """Ages of the open holds."""
    causing: Counter[Tally]

    def of_all(self, by_site: BySite) -> tuple[list[SiteStats], list[SiteStats]]:
        """Figures of each call site, and of each caller of a call site with several."""
        sites, callers = [], []
        for site, tallies in by_site.items():
            if site is not None:
                sites.append(self._of(site, tallies))
                callers += [self._of(site, some, c) for c, some in _by_caller(tallies)]
        for stats in (sites, callers):
            stats.sort(key=lambda each: each.connections, reverse=True)
        return sites, callers

    def _of(
        self, site: Frame, tallies: Sequence[Tally], caller: Frame | None = None
    ) -> SiteStats:
        ages = [age for tally in tallies for age in self.out.get(tally, ())]
        hold = merged(tally.hold for tally in tallies)
        seen = [tally for tally in tallies if tally.used]
        return SiteStats(
            pool=self.pool,
            site=site,
            count=sum(tally.count for tally in tallies) + len(ages),
            connections=(hold.total + sum(ages)) / self.elapsed,
            hold_s=hold.distribution(),
            wait_s=merged(tally.wait for tally in tallies).distribution(),
            leaked=sum(tally.leaked for tally in tallies),
            in_sql_s=sum(tally.in_sql for tally in seen) if seen else None,
            in_transaction_idle_s=sum(tally.idle for tally in seen) if seen else None,
            wait_caused_s=sum(tally.caused + self.causing[tally] for tally in tallies),
            caller=caller,
        )


def _by_caller(tallies: Sequence[Tally]) -> list[tuple[Frame | None, list[Tally]]]:
    """The tallies of one call site by the caller that tells them apart, if one does."""
    at = first_difference(tally.stack for tally in tallies)
    if at is None:
        return []
    groups: dict[Frame | None, list[Tally]] = {}
    for tally in tallies:
        groups.setdefault(caller_at(tally.stack, at), []).append(tally)
    return list(groups.items())


def _known(callers: Iterable[Frame | None]) -> tuple[Frame, ...]:
    return tuple(caller for caller in callers if caller is not None)


class _Spent(NamedTuple):
    """What the ended holds of some tallies spent their time on, in seconds."""

    ended: int = 0
    held: float = 0.0
    in_sql: float = 0.0
    idle: float = 0.0
    """In a transaction without a statement."""
    pool_wait: float = 0.0
    """While their holders waited for another connection."""


def _spent(tallies: Iterable[Tally]) -> _Spent:
    each = [
        (t.hold.count, t.hold.total, t.in_sql, t.idle, t.pool_wait) for t in tallies
    ]
    return _Spent(*map(sum, zip(*each, strict=True)))


def _is_outside(tallies: Sequence[Tally]) -> bool:
    """Whether their held time is mostly not in SQL, of enough holds that were seen.

    While a holder waits for another connection it can do nothing with this one.
    """
    spent = _spent(tallies)
    free = spent.held - spent.pool_wait
    if spent.ended < _ENOUGH_HOLDS or free < spent.ended * _BRIEF_HOLD_S:
        return False
    if sum(tally.used for tally in tallies) < spent.ended:
        return False
    outside = free - spent.in_sql
    return outside >= _ENOUGH_OUTSIDE_S and spent.in_sql < free * _MOSTLY_OUTSIDE
