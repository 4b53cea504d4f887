"""The rows of call sites, of their callers, and of the values of a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poolwatch.model import (
    BUCKETS,
    Distribution,
    Frame,
    LabelStats,
    Process,
    SiteStats,
)
from poolwatch.text.format import place
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row, process_key

Stats = SiteStats | LabelStats


@dataclass(frozen=True, slots=True, eq=False)
class SiteRow:
    """A call site of one pool, a caller of it, or a value of a label."""

    key: Any
    stats: Stats
    pool: str
    """Name of the pool."""
    processes: tuple[Process, ...]
    """Those that it was merged over."""
    holds: tuple[Row, ...]
    """Its open holds."""
    below: bool = False
    """Whether this is a caller of the call site above."""
    most: float = 0.0
    """Connections of the row with the most: the full width of the gauge."""

    @property
    def members(self) -> list[Any]:
        """What identifies the rows of each process that it stands for."""
        what = _what(self.stats, self.below)
        return [(process_key(each), self.pool, *what) for each in self.processes]

    @property
    def label(self) -> tuple[str, str] | None:
        """Name and value of the label; None for a call site."""
        stats = self.stats
        return (stats.label, stats.value) if isinstance(stats, LabelStats) else None

    @property
    def site(self) -> Frame | None:
        """The call site; None for a label."""
        return self.stats.site if isinstance(self.stats, SiteStats) else None

    @property
    def frame(self) -> Frame | None:
        """The call site or caller of this line; None if a library is the caller."""
        if isinstance(self.stats, LabelStats):
            return None
        return self.stats.caller if self.below else self.stats.site

    @property
    def oldest_s(self) -> float | None:
        """For how long the longest of its holds is out now."""
        return max((row.hold.known_s for row in self.holds), default=None)


def label_names(board: Board) -> list[str]:
    """Return the names of all labels that statistics are kept of."""
    processes = board.snapshot.processes
    return sorted({each.label for process in processes for each in process.labels})


def site_rows(board: Board, label: str | None) -> list[SiteRow]:
    """Return a row for each call site and caller of each process, or label value."""
    holds = _open_holds(board, label)
    rows = []
    for process in board.snapshot.processes:
        names, owner = {p.id: p.name for p in process.pools}, process_key(process)
        for stats, below in _all_stats(process, label):
            name = names.get(stats.pool, stats.pool)
            key = owner, stats.pool, *_what(stats, below)
            open_ = tuple(holds.get(key, ()))
            rows.append(SiteRow(key, stats, name, (process,), open_, below))
    return rows


def merged_sites(rows: Iterable[SiteRow]) -> list[SiteRow]:
    """Merge the rows of one pool's name over all processes."""
    groups: dict[Any, list[SiteRow]] = {}
    for row in rows:
        groups.setdefault((row.pool, *_what(row.stats, row.below)), []).append(row)
    return in_order(
        SiteRow(
            key,
            group[0].stats if len(group) == 1 else _sum([row.stats for row in group]),
            group[0].pool,
            tuple({process_key(p): p for row in group for p in row.processes}.values()),
            tuple([hold for row in group for hold in row.holds]),
            group[0].below,
        )
        for key, group in groups.items()
    )


def below_their_sites(rows: Sequence[SiteRow]) -> list[SiteRow]:
    """Put each caller below its call site, however the rows are sorted."""
    callers: dict[Any, list[SiteRow]] = {}
    for row in rows:
        if row.below:
            callers.setdefault(row.key[:-1], []).append(row)
    found = []
    for row in rows:
        if not row.below:
            found += [row, *callers.pop(row.key[:-1], ())]
    return found + [row for rest in callers.values() for row in rest]


def in_order(rows: Iterable[SiteRow]) -> list[SiteRow]:
    """Order by connections held; equal rows in the same way at every refresh."""
    found = sorted(
        rows,
        key=lambda row: (
            -row.stats.connections,
            place(row.frame, 9),
            *(row.processes[0].host, row.processes[0].pid),
            *(row.label or ()),
            row.pool,
        ),
    )
    most = max((row.stats.connections for row in found), default=0.0)
    return below_their_sites([replace(row, most=most) for row in found])


def _all_stats(process: Process, label: str | None) -> Iterator[tuple[Stats, bool]]:
    """Yield the statistics, and whether they are of a caller."""
    if label is None:
        known = {(stats.pool, stats.site) for stats in process.sites}
        yield from ((stats, False) for stats in process.sites)
        yield from ((s, True) for s in process.callers if (s.pool, s.site) in known)
    else:
        yield from ((each, False) for each in process.labels if each.label == label)


def counted(process: Process, label: str | None) -> Iterator[tuple[Stats, Any]]:
    """Yield the statistics that are counted, without callers, and what they are of."""
    for stats, below in _all_stats(process, label):
        if not below:
            yield stats, _what(stats, below)


def _what(stats: Stats, below: bool) -> tuple[Any, Any]:
    """What statistics are of: a call site and perhaps a caller; a label's value."""
    if isinstance(stats, LabelStats):
        return stats.value, ()
    return stats.site, (stats.caller,) if below else ()


def _open_holds(board: Board, label: str | None) -> dict[Any, list[Row]]:
    """By process, pool, and what statistics may be of."""
    found: dict[Any, list[Row]] = {}
    for row in board.rows.values():
        hold = row.hold
        where = process_key(row.process), hold.pool
        keys: tuple[Any, ...] = (hold.site, ()), (hold.site, (hold.caller,))
        if label is not None:
            keys = ((hold.labels.get(label), ()),)
        for what in keys:
            found.setdefault((*where, *what), []).append(row)
    return found


def _sum(parts: Sequence[Stats]) -> Stats:
    """Return the statistics of all processes together."""
    return replace(
        parts[0],
        count=sum([each.count for each in parts]),
        connections=sum([each.connections for each in parts]),
        hold_s=together([each.hold_s for each in parts]),
        wait_s=together([each.wait_s for each in parts]),
        leaked=sum([each.leaked for each in parts]),
        in_sql_s=_known_sum([each.in_sql_s for each in parts]),
        in_transaction_idle_s=_known_sum([p.in_transaction_idle_s for p in parts]),
        wait_caused_s=sum([each.wait_caused_s for each in parts]),
        held_s=sum([each.held_s for each in parts]),
    )


def _known_sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def together(parts: Sequence[Distribution]) -> Distribution:
    """Merge distributions; a percentile is the upper edge of its bucket at most.

    It lies between the least and the greatest of the parts'. Without buckets, it is
    the worst.
    """
    parts = [part for part in parts if part.count]
    if len(parts) < 2:
        return parts[0] if parts else Distribution(0, 0.0, None, None, None, None)
    known = all(part.up_to for part in parts)
    up_to = (
        tuple(map(sum, zip(*(p.up_to for p in parts), strict=True))) if known else ()
    )
    count = sum(part.count for part in parts)
    longest = _greatest(part.max for part in parts)

    def percentile(share: float, each: Sequence[float | None]) -> float | None:
        least = min((value for value in each if value is not None), default=None)
        greatest = _greatest(each)
        if not up_to or least is None or greatest is None:
            return greatest
        edges = zip(BUCKETS, up_to, strict=True)
        edge = next((edge for edge, n in edges if n >= share * count), greatest)
        return min(max(edge, least), greatest)

    return Distribution(
        count,
        sum(part.sum for part in parts),
        longest,
        percentile(0.5, [part.p50 for part in parts]),
        percentile(0.95, [part.p95 for part in parts]),
        percentile(0.99, [part.p99 for part in parts]),
        up_to,
    )


def _greatest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
