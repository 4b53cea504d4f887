"""Usage of one pool by call site and caller: statistics combined for a snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from poolwatch.ledger.histogram import merged
from poolwatch.ledger.site_stats import StackStats
from poolwatch.model import Collected, Frame, LabelStats, MostlyOutsideSql, SiteStats
from poolwatch.runtime.installation import import_path
from poolwatch.stacks.callers import Stack, caller_at, first_difference
from poolwatch.stacks.capture import Pairs

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.label_stats import LabelStats as Labels
    from poolwatch.stacks.capture import CapturedStack

BySite = Mapping[Frame | None, Sequence[StackStats]]
"""The statistics of each call site: one record per stack that led to it."""

_MIN_HOLDS = 10
"""Call sites with fewer ended holds are not reported."""
_MIN_MEAN_HOLD_S = 0.02
"""Call sites with shorter holds on average are not reported."""
_MIN_OUTSIDE_S = 2.0
"""A smaller total may be the start of a service, or one burst of requests."""
_MAX_SQL_SHARE = 0.25
"""Share of the held time in SQL from which a call site is not reported."""


def mostly_outside(by_site: BySite, *, per_thread: bool) -> list[MostlyOutsideSql]:
    """Call sites whose held time is mostly spent outside SQL.

    Where each thread has a connection of its own, only transactions count.
    """
    is_outside = partial(_is_outside, in_transactions=per_thread)
    found = []
    for site, stats in by_site.items():
        if site is not None and is_outside(stats):
            callers = [c for c, group in _by_caller(stats) if is_outside(group)]
            time_spent = _time_spent(stats)
            found.append(
                MostlyOutsideSql(site, *time_spent, callers=_not_none(callers))
            )
    return found


def stacks(by_site: BySite) -> dict[Frame, list[Stack]]:
    """The exact part of the stacks that led to each call site so far."""
    return {
        site: [stats.stack for stats in all_stats]
        for site, all_stats in by_site.items()
        if site is not None
    }


def collected(by_site: BySite) -> list[Collected]:
    """Call sites whose connections the garbage collector returned, and how many."""
    found = []
    for site, stats in by_site.items():
        count = _collected(stats)
        if site is not None and count:
            callers = [c for c, group in _by_caller(stats) if _collected(group)]
            found.append(Collected(site, count, _not_none(callers), _stack(stats)))
    return found


def _stack(stats: Iterable[StackStats]) -> Pairs:
    """The latest stack whose connections were collected."""
    stacks = [s for each in stats if each.collected for s in each.captured]
    return stacks[-1].pairs() if stacks else ()


def _collected(stats: Iterable[StackStats]) -> int:
    return sum(each.collected for each in stats)


def open_ages(
    holds: Iterable[Checkout],
    now: float,
    stats_of: Callable[[CapturedStack], StackStats],
    labels: Labels,
) -> dict[StackStats, list[float]]:
    """The ages of open holds, by their stack and by each of their labels."""
    ages: dict[StackStats, list[float]] = {}
    for hold in holds:
        for stats in (stats_of(hold.stack), *labels.of(hold.context.labels)):
            ages.setdefault(stats, []).append(now - hold.checked_out_at)
    return ages


class Figures(NamedTuple):
    """Computes the figures of the call sites of one pool at one moment."""

    pool: str
    elapsed: float
    """Seconds since counting began."""
    open_ages: dict[StackStats, list[float]]
    """Ages of the open holds."""
    causing: Counter[StackStats]
    """Seconds of the open waits that each stack has caused so far."""

    def of_all_sites(self, by_site: BySite) -> tuple[list[SiteStats], list[SiteStats]]:
        """Return figures per call site, and per caller where there are several."""
        sites, callers = [], []
        for site, stats in by_site.items():
            if site is not None:
                sites.append(self._site_stats(site, stats))
                callers += [
                    self._site_stats(site, group, c) for c, group in _by_caller(stats)
                ]
        for figures in (sites, callers):
            figures.sort(key=lambda each: each.connections, reverse=True)
        return sites, callers

    def _site_stats(
        self, site: Frame, stats: Sequence[StackStats], caller: Frame | None = None
    ) -> SiteStats:
        return SiteStats(
            self.pool,
            site,
            caller=caller,
            path=import_path(site.file),
            **self._usage(stats),
        )

    def of_labels(
        self, labels: Iterable[tuple[str, str, StackStats]]
    ) -> list[LabelStats]:
        """Return figures per value of each label."""
        found = [
            LabelStats(self.pool, label, value, **self._usage([stats]))
            for label, value, stats in labels
        ]
        return sorted(found, key=lambda each: each.connections, reverse=True)

    def _usage(self, stats: Sequence[StackStats]) -> dict[str, Any]:
        """The figures that SiteStats and LabelStats share."""
        ages = [age for each in stats for age in self.open_ages.get(each, ())]
        hold = merged(each.hold for each in stats)
        held = hold.total + sum(ages)
        measured = [each for each in stats if each.used]
        return {
            "count": sum(each.count for each in stats) + len(ages),
            "connections": held / self.elapsed,
            "held_s": held,
            "hold_s": hold.distribution(),
            "wait_s": merged(each.wait for each in stats).distribution(),
            "leaked": sum(each.leaked for each in stats),
            "in_sql_s": sum(each.in_sql for each in measured) if measured else None,
            "in_transaction_idle_s": sum(each.idle for each in measured)
            if measured
            else None,
            "wait_caused_s": sum(
                each.wait_caused + self.causing[each] for each in stats
            ),
        }


class AllFigures(NamedTuple):
    """The figures of one pool."""

    sites: list[SiteStats]
    callers: list[SiteStats]
    """Per caller, for call sites that several callers share."""
    labels: list[LabelStats]


def _by_caller(
    stats: Sequence[StackStats],
) -> list[tuple[Frame | None, list[StackStats]]]:
    """Group the statistics of one call site by caller; empty if there is only one."""
    at = first_difference(each.stack for each in stats)
    if at is None:
        return []
    groups: dict[Frame | None, list[StackStats]] = {}
    for each in stats:
        groups.setdefault(caller_at(each.stack, at), []).append(each)
    return list(groups.items())


def _not_none(callers: Iterable[Frame | None]) -> tuple[Frame, ...]:
    return tuple(caller for caller in callers if caller is not None)


class _TimeSpent(NamedTuple):
    """Where the ended holds of some stacks spent their time, in seconds."""

    ended: int = 0
    held: float = 0.0
    in_sql: float = 0.0
    idle: float = 0.0
    """In a transaction, without a running statement."""
    pool_wait: float = 0.0
    """While their holders waited for another connection."""


def _time_spent(stats: Iterable[StackStats]) -> _TimeSpent:
    each = [(t.hold.count, t.hold.total, t.in_sql, t.idle, t.pool_wait) for t in stats]
    return _TimeSpent(*map(sum, zip(*each, strict=True)))


def _is_outside(stats: Sequence[StackStats], *, in_transactions: bool) -> bool:
    """Whether the held time is mostly spent outside SQL.

    Requires enough holds, all of them with measured statements. The time in which a
    holder waited for another connection is subtracted: it could not use this one.
    """
    spent = _time_spent(stats)
    usable = spent.held - spent.pool_wait
    if in_transactions:
        usable = min(usable, spent.in_sql + spent.idle)
    if spent.ended < _MIN_HOLDS or usable < spent.ended * _MIN_MEAN_HOLD_S:
        return False
    if sum(each.used for each in stats) < spent.ended:
        return False
    outside = usable - spent.in_sql
    return outside >= _MIN_OUTSIDE_S and spent.in_sql < usable * _MAX_SQL_SHARE
